//! Words and numbers that pages share.

use crate::model::block::block_list;
use crate::report::lines::{chosen, is_list};
use crate::report::pages::escape::command;
use crate::report::pages::{Collection, Section, name};
use crate::report::saved::{SavedModel, Scored};
use indicatif::{DecimalBytes, HumanCount};

pub(super) fn versions(collection: &Collection) -> String {
    match collection.versions.is_empty() {
        true => "Made with an unknown release".to_owned(),
        false => {
            let versions: Vec<_> = collection.versions.iter().map(String::as_str).collect();
            format!("Made with {}", versions.join(", "))
        }
    }
}

pub(super) fn plural(n: usize, word: &str) -> String {
    format!("{} {word}{}", HumanCount(n as u64), if n == 1 { "" } else { "s" })
}

/// A number with its standard error, if there are any.
pub(super) fn measured(value: Option<f64>, stderr: Option<f64>, digits: usize) -> String {
    let Some(value) = value else {
        return String::new();
    };
    // Beyond this the digits would fill the page.
    let number = |value: f64| match value.abs() < 1e9 {
        true => format!("{value:.digits$}"),
        false => format!("{value:.2e}"),
    };
    let stderr = stderr.map_or(String::new(), |stderr| format!(" \u{b1} {}", number(stderr)));
    format!("{}{stderr}", number(value))
}

pub(super) fn percent(share: Option<f64>) -> String {
    share.map_or(String::new(), |share| format!("{} %", measured(Some(100.0 * share), None, 1)))
}

/// A model on one line.
pub(super) fn about(model: &SavedModel) -> String {
    let mut words = vec![model.architecture.clone().unwrap_or_else(|| "unknown architecture".to_owned())];
    words.extend(model.n_blocks.map(|n| plural(n, "block")));
    words.extend(model.parameters.map(|n| format!("{} parameters", HumanCount(n))));
    words.extend(model.bytes.map(|bytes| DecimalBytes(bytes).to_string()));
    words.join(", ")
}

/// What was done, on one line.
pub(super) fn done(scored: &Scored) -> String {
    let by = chosen(scored.method.as_deref().unwrap_or("?"));
    let Some(output) = &scored.output else {
        return "Scores".to_owned();
    };
    let mut gone = Vec::new();
    if !scored.removed.is_empty() {
        let n = scored.removed.len();
        gone.push(format!(
            "{} {} removed",
            if n == 1 { "Block" } else { "Blocks" },
            block_list(&scored.removed)
        ));
    }
    if !scored.attention_removed.is_empty() {
        gone.push(format!("attention of {} removed", block_list(&scored.attention_removed)));
    }
    if scored.remarks.iter().any(|(key, _)| *key == "experts") {
        gone.push("experts removed".to_owned());
    }
    if scored.fit.is_some() {
        gone.push("types chosen by fit".to_owned());
    }
    if gone.is_empty() {
        gone.push("Nothing removed".to_owned());
    }
    let planned = if output.path.is_none() || output.blake3.is_none() { ", not written" } else { "" };
    format!("{} ({by}{planned}): {}", gone.join(", "), name(output))
}

/// More of what was done, a line each.
pub(super) fn details(scored: &Scored) -> Vec<String> {
    let mut lines = Vec::new();
    lines.extend(scored.output.as_ref().map(|output| format!("Output: {}", about(output))));
    if let Some(text) = &scored.text {
        let source = text.source.as_deref().unwrap_or("unnamed");
        let tokens = text.tokens.map_or(String::new(), |n| format!(", {} tokens", HumanCount(n)));
        let window = text.window.map_or(String::new(), |n| format!(" in windows of {n}"));
        lines.push(format!("Calibration text: {source}{tokens}{window}"));
    }
    for (key, words) in &scored.remarks {
        let mut key = (*key).to_owned();
        key[..1].make_ascii_uppercase();
        lines.push(format!("{key}: {words}"));
    }
    lines
}

/// Every command, once, in order.
pub(super) fn commands(section: &Section) -> Vec<String> {
    let mut commands: Vec<String> = Vec::new();
    for made in section.made.iter().filter(|made| !made.arguments.is_empty()) {
        let command = command(&made.arguments);
        if !commands.contains(&command) {
            commands.push(command);
        }
    }
    // The blocks by number come to the same file, whatever chose them.
    for scored in &section.scored {
        let (Some(output), false) = (&scored.output, scored.removed.is_empty()) else {
            continue;
        };
        if !scored.attention_removed.is_empty()
            || scored.method.as_deref().is_some_and(is_list)
            || changes_more(scored)
        {
            continue;
        }
        let path = |model: &SavedModel, other: &str| model.path.clone().unwrap_or_else(|| other.to_owned());
        let arguments = [
            path(&section.parent, "MODEL"),
            "--blocks".to_owned(),
            block_list(&scored.removed),
            "-o".to_owned(),
            path(output, "OUT"),
        ];
        let command = super::escape::command(&arguments);
        if !commands.contains(&command) {
            commands.push(command);
        }
    }
    commands
}

/// Flags that change more of a model than its number of blocks, or that may.
const MORE: &[&str] = &[
    "--config",
    "--drop-experts",
    "--drop-mtp",
    "--effort",
    "--experts",
    "--heal",
    "--keep-experts",
    "--ollama",
    "--portable",
    "--requantize",
];

/// Whether the output is not only the input without some blocks.
fn changes_more(scored: &Scored) -> bool {
    let is_flag = |argument: &String| {
        let flag = argument.split_once('=').map_or(&**argument, |(flag, _)| flag);
        MORE.contains(&flag)
    };
    scored.fit.is_some() || scored.made.arguments.iter().any(is_flag)
}

/// Every file and text with its hash, once, in order.
pub(super) fn hashes(section: &Section) -> Vec<(String, String)> {
    let mut hashes: Vec<(String, String)> = Vec::new();
    let mut add = |what: String, hash: &Option<String>| {
        if let Some(hash) = hash
            && !hashes.iter().any(|known| known.1 == *hash)
        {
            hashes.push((what, hash.clone()));
        }
    };
    let path = |model: &SavedModel| model.path.clone().unwrap_or_default();
    add(path(&section.parent), &section.parent.blake3);
    let outputs = section.scored.iter().filter_map(|scored| scored.output.as_ref());
    for model in outputs.chain(section.points.iter().map(|point| &point.model)) {
        add(path(model), &model.blake3);
    }
    let texts = section.scored.iter().filter_map(|scored| scored.text.as_ref());
    for text in texts.chain(section.points.iter().map(|point| &point.text)) {
        add(format!("text: {}", text.source.as_deref().unwrap_or("unnamed")), &text.blake3);
    }
    hashes
}
