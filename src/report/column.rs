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
pub(super) fn table(
    head: Vec<Cell>,
    rows: impl Iterator<Item = (Vec<Cell>, bool)>,
    colour: Colour,
) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header(head);
    for (cells, is_marked) in rows {
        let paint = |cell: Cell| if colour && is_marked { cell.fg(Color::Red) } else { cell };
        table.add_row(cells.into_iter().map(paint));
    }
    if colour {
        table.enforce_styling();
    }
    trimmed(table)
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
