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

/// A table for a terminal, without lines. Rows that are marked are red where there is colour.
pub(super) fn table(head: Vec<Cell>, rows: impl Iterator<Item = (Vec<Cell>, bool)>, colour: Colour) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header(head);
    for (cells, is_marked) in rows {
        let paint = |cell: Cell| if colour && is_marked { cell.fg(Color::Red) } else { cell };
        table.add_row(cells.into_iter().map(paint));
    }
    if colour {
        table.enforce_styling();
    }
    table
}
