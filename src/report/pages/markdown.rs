//! The tables as Markdown, for a page of a repository or an issue.

use std::fmt::Write as _;

use indicatif::DecimalBytes;

use super::escape::markdown;
use super::table::{Row, rows};
use super::{Collection, Section};
use crate::report::pages::words::{
    about, commands, details, done, hashes, measured, percent, plural, versions,
};

/// The page.
#[must_use]
pub fn page(collection: &Collection) -> String {
    let mut text = format!(
        "# Shortened models\n\n{} of {}. {}.\n",
        plural(collection.n_results, "result"),
        plural(collection.sections.len(), "parent model"),
        markdown(&versions(collection))
    );
    let rows = rows(collection);
    if !rows.is_empty() {
        text.push_str(
            "\n| model | | blocks | removed | size | share | perplexity | KL divergence | same top | prompt t/s | decode t/s | verified |\n\
             | --- | --- | ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- |\n",
        );
    }
    for row in &rows {
        let _ = writeln!(text, "{}", line(row));
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

fn line(row: &Row) -> String {
    let (model, quality) = (&row.model, &row.quality);
    let mut name = markdown(&row.name);
    if let Some(error) = &row.error {
        let _ = write!(name, " ({})", markdown(error));
    }
    let cells = [
        name,
        row.kind.to_owned(),
        model.n_blocks.map_or(String::new(), |n| n.to_string()),
        markdown(&row.removed),
        model.bytes.map_or(String::new(), |bytes| DecimalBytes(bytes).to_string()),
        percent(row.share),
        measured(quality.perplexity, quality.perplexity_stderr, 2),
        measured(quality.kl, quality.kl_stderr, 4),
        percent(quality.same_top),
        measured(quality.prompt, None, 0),
        measured(quality.decode, None, 1),
        row.verified.map_or("", |verified| if verified { "yes" } else { "NO" }).to_owned(),
    ];
    format!("| {} |", cells.join(" | "))
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
