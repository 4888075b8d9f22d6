//! `help`: the help of a command, or a page on a topic.

use std::fmt::Write as _;

use anyhow::{Result, anyhow};
use clap::CommandFactory;

use super::to_stdout;
use crate::cli::args::Cli;
use crate::cli::help::{PAGES, Page};
use crate::error::{Hint, Usage};

/// The least likeness of a topic's name to what was asked for. From 0 to 1.
const ALIKE: f64 = 0.7;

/// Prints the help of the command that `words` name, with its page. Or prints the page of that topic. Without words what there
/// is.
///
/// # Errors
/// [`Usage`] for a topic that is not; those of stdout.
pub fn run(words: &[String]) -> Result<()> {
    let mut program = Cli::command();
    program.build();
    let mut command = Some(&mut program);
    for word in words {
        command = command.and_then(|command| command.find_subcommand_mut(word));
    }
    let page = match words {
        [topic] => Page::find(topic),
        _ => None,
    };
    let mut text = String::new();
    if let Some(command) = command {
        write!(text, "{}", command.render_long_help())?;
    } else if page.is_none() {
        return Err(unknown(&words.join(" ")));
    }
    if let Some(page) = page {
        let gap = if text.is_empty() { "" } else { "\n" };
        write!(text, "{gap}{}", page.text)?;
    }
    if words.is_empty() {
        text.push_str("\nTopics, each shown by gguf-shorten help TOPIC:\n");
        for page in PAGES {
            writeln!(text, "  {:<14} {}", page.topic, page.title())?;
        }
    }
    to_stdout(&text)
}

fn unknown(topic: &str) -> anyhow::Error {
    let error = anyhow!(Usage(format!("there is no help on '{}'", topic.escape_debug())));
    let program = Cli::command();
    let commands = program.get_subcommands().map(|command| command.get_name().to_owned());
    let topics = commands.chain(PAGES.iter().map(|page| page.topic.to_owned()));
    let nearest = topics
        .map(|name| (strsim::jaro_winkler(topic, &name), name))
        .filter(|(alike, _)| *alike >= ALIKE)
        .max_by(|(a, _), (b, _)| a.total_cmp(b));
    error.context(Hint(match nearest {
        Some((_, name)) => format!("gguf-shorten help {name}"),
        None => "gguf-shorten help lists the topics".to_owned(),
    }))
}
