//! The tables as Markdown, for a repository's page or an issue.

use std::fmt::Write as _;

use super::escape::markdown;
use super::table::{BLOCKS, FIGURES, Row, TEXT, VERIFIED, rows};
use super::words::{about, commands, details, done, hashes, plural, versions};
use super::{Collection, Section};
use crate::report::column::Column;

/// The page.
#[must_use]
pub fn page(collection: &Collection) -> String {
    let mut text = format!(
        "# Shortened models\n\n{} of {}. {}.\n",
        plural(collection.n_results, "result"),
        plural(collection.sections.len(), "parent model"),
        markdown(&versions(collection))
    );
    let (rows, texts) = rows(collection);
    if !rows.is_empty() {
        let line = |cells: Vec<&str>| format!("| {} |\n", cells.join(" | "));
        let heads = line(columns().map(|(_, column)| column.head).collect());
        let ends = line(columns().map(|(is_number, _)| if is_number { "---:" } else { "---" }).collect());
        let _ = write!(text, "\n{}{ends}", heads.replace("  ", " "));
    }
    for row in &rows {
        let cells: Vec<_> = columns().map(|(_, column)| (column.get)(row)).collect();
        let _ = writeln!(text, "| {} |", cells.join(" | "));
    }
    if !texts.is_empty() {
        text.push_str("\nTexts:\n\n");
        for (i, name) in texts.iter().enumerate() {
            let _ = writeln!(text, "{}. {}", i + 1, markdown(name));
        }
    }
    if !collection.failures.is_empty() {
        text.push_str("\n## Failed\n\n| model | reason |\n| --- | --- |\n");
        for failed in &collection.failures {
            let _ = writeln!(
                text,
                "| {} | {} |",
                markdown(failed.path.as_deref().unwrap_or("?")),
                markdown(&failed.error)
            );
        }
    }
    for section in &collection.sections {
        of_model(&mut text, section);
    }
    text
}

/// The columns of the models' table, and which are numbers.
fn columns() -> impl Iterator<Item = (bool, &'static Column<Row>)> {
    const FIRST: [(bool, Column<Row>); 4] = [
        (false, Column::new("model", named)),
        (false, Column::new("", |row| row.kind.to_owned())),
        (true, BLOCKS),
        (false, Column::new("removed", |row| markdown(&row.removed))),
    ];
    let first = FIRST.iter().map(|(is_number, column)| (*is_number, column));
    first.chain(FIGURES.iter().map(|column| (true, column))).chain([(true, &TEXT), (false, &VERIFIED)])
}

fn named(row: &Row) -> String {
    let error = row.error.as_ref().map_or(String::new(), |error| format!(" ({})", markdown(error)));
    markdown(&row.name) + &error
}

fn of_model(text: &mut String, section: &Section) {
    let _ = writeln!(text, "\n## {}\n\n{}", markdown(&section.name()), markdown(&about(&section.parent)));
    for verdict in &section.verdicts {
        let _ = writeln!(text, "\n{}", markdown(verdict));
    }
    for scored in &section.scored {
        let _ = writeln!(text, "\n- {}", markdown(&done(scored)));
        for line in details(scored) {
            let _ = writeln!(text, "  - {}", markdown(&line));
        }
    }
    text.push_str("\nHow to reproduce:\n\n");
    for command in commands(section) {
        // Four spaces make it code, in which nothing has a meaning.
        let _ = writeln!(text, "    {command}");
    }
    text.push_str("\n| file | BLAKE3 |\n| --- | --- |\n");
    for (what, hash) in hashes(section) {
        let _ = writeln!(text, "| {} | {} |", markdown(&what), markdown(&hash));
    }
}
