//! Columns: a head, and the text of each row under it.

use comfy_table::{Cell, CellAlignment, Color, Table, presets};

use super::lines::Colour;

/// A column of a table with a row for each `R`.
pub(super) struct Column<R> {
    pub(super) head: &'static str,
    pub(super) get: fn(&R) -> String,
}

impl<R> Column<R> {
    pub(super) const fn new(head: &'static str, get: fn(&R) -> String) -> Self {
        Self { head, get }
    }
}

/// A number with so many digits, if there is one.
pub(super) fn number(value: Option<f64>, digits: usize) -> String {
    value.map_or(String::new(), |value| format!("{value:.digits$}"))
}

/// A cell of a table for a terminal, at its right end.
pub(super) fn right(text: impl ToString) -> Cell {
    Cell::new(text).set_alignment(CellAlignment::Right)
}

/// A table for a terminal, without lines. Rows that are marked are red where there is colour. Lines have no blanks at their ends.
///
/// Columns that a terminal has no room for are in a second table under the first, and so on; each begins with the first column.
pub(super) fn table(
    head: Vec<Cell>,
    rows: impl Iterator<Item = (Vec<Cell>, bool)>,
    colour: Colour,
) -> String {
    fitted(&head, &rows.collect::<Vec<_>>(), colour, Table::new().width().map(usize::from))
}

/// As [`table`], for lines of `width` characters.
fn fitted(head: &[Cell], rows: &[(Vec<Cell>, bool)], colour: Colour, width: Option<usize>) -> String {
    let of_columns = |columns: &[usize]| {
        let cells =
            |all: &[Cell]| -> Vec<Cell> { columns.iter().filter_map(|&i| all.get(i).cloned()).collect() };
        let mut table = Table::new();
        table.load_preset(presets::NOTHING).set_header(cells(head));
        for (row, is_marked) in rows {
            let paint = |cell: Cell| if colour && *is_marked { cell.fg(Color::Red) } else { cell };
            table.add_row(cells(row).into_iter().map(paint));
        }
        table
    };
    let all: Vec<usize> = (0..head.len()).collect();
    let widths = of_columns(&all).column_max_content_widths();
    let tables = groups(head, &widths, width.unwrap_or(usize::MAX)).into_iter().map(|columns| {
        let mut table = of_columns(&columns);
        if colour {
            table.enforce_styling();
        }
        trimmed(table)
    });
    tables.collect::<Vec<_>>().join("\n\n")
}

/// The columns of each table, of which none is wider than `width`, where that can be. An error stays with what it is of.
fn groups(head: &[Cell], widths: &[u16], width: usize) -> Vec<Vec<usize>> {
    /// Blanks between two columns.
    const GAP: usize = 2;
    let is_error = |i: usize| head.get(i).is_some_and(|cell| cell.content() == "\u{b1}");
    let of = |columns: &[usize]| columns.iter().map(|&i| usize::from(widths[i]) + GAP).sum::<usize>();
    let mut groups: Vec<Vec<usize>> = Vec::new();
    let mut at = 1;
    while at < widths.len() {
        let end = at + 1 + (at + 1..widths.len()).take_while(|&i| is_error(i)).count();
        let more: Vec<usize> = (at..end).collect();
        match groups.last_mut() {
            Some(group) if of(group) + of(&more) <= width.saturating_add(GAP) => group.extend(more),
            _ => groups.push([vec![0], more].concat()),
        }
        at = end;
    }
    if groups.is_empty() {
        groups.push((0..widths.len()).collect());
    }
    groups
}

/// The lines of a table without the blanks at their ends, and without those on its left.
#[must_use]
pub fn trimmed(mut table: Table) -> String {
    if let Some(first) = table.column_mut(0) {
        first.set_padding((0, 1));
    }
    let lines = table.lines().map(|line| {
        let (mut text, mut ends) = (line.trim_end(), String::new());
        // What ends a colour stands after the blanks.
        while let Some((before, code)) = text.rsplit_once('\u{1b}')
            && code.find('m') == Some(code.len() - 1)
        {
            ends = format!("\u{1b}{code}{ends}");
            text = before.trim_end();
        }
        format!("{text}{ends}")
    });
    lines.collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_without_room_are_in_a_table_under_the_first() {
        let head: Vec<Cell> = ["", "size", "KL", "\u{b1}", "front"].map(right).to_vec();
        let rows = [(["m.gguf", "9.00 MB", "0.1234", "0.0012", "*"].map(right).to_vec(), false)];
        let of = |width| fitted(&head, &rows, false, width);
        let whole = "           size      KL       \u{b1}  front\nm.gguf  9.00 MB  0.1234  0.0012      *";
        assert_eq!(of(None), whole);
        assert_eq!(of(Some(38)), whole);
        let narrow = "           size      KL       \u{b1}\nm.gguf  9.00 MB  0.1234  0.0012\n\n        front\nm.gguf      *";
        assert_eq!(of(Some(37)), narrow);
        // An error is not parted from its value.
        assert!(
            of(Some(30))
                .starts_with("           size\nm.gguf  9.00 MB\n\n            KL       \u{b1}  front\n")
        );
        assert_eq!(of(Some(1)).lines().count(), 3 * 3 - 1);
        assert!(of(Some(1)).lines().all(|line| line.trim_end() == line));
    }

    #[test]
    fn lines_end_with_their_text_with_and_without_colour() {
        let rows =
            || [(vec![right("1"), Cell::new("goes")], true), (vec![right("10"), Cell::new("")], false)];
        let head = || vec![right("block"), Cell::new("")];
        assert_eq!(table(head(), rows().into_iter(), false), "block\n    1  goes\n   10");
        let coloured = table(head(), rows().into_iter(), true);
        assert!(coloured.contains("\u{1b}["), "{coloured:?}");
        for line in coloured.lines() {
            let mut shown = String::new();
            let mut rest = line;
            while let Some((before, after)) = rest.split_once('\u{1b}') {
                shown += before;
                rest = after.split_once('m').unwrap().1;
            }
            shown += rest;
            assert_eq!(shown.trim_end(), shown, "{line:?}");
        }
    }
}
