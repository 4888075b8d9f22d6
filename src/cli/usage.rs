//! Wrong arguments: what is wrong with them, and what was probably meant.

use std::path::{Path, PathBuf};

use clap::Subcommand;
use clap::error::{ContextKind, ContextValue};

use crate::cli::args::Command;
use crate::cli::args::words::of_arguments;
use crate::cli::options::{command_after, command_first};

/// What is said of wrong arguments, each on a line.
#[derive(Debug)]
pub struct Fault {
    /// What is wrong.
    pub message: String,
    /// A remedy.
    pub hint: String,
}

impl Fault {
    /// Of `error`, which these words of the command line made.
    #[must_use]
    pub fn new(error: &clap::Error, words: &[PathBuf]) -> Self {
        let first = words.first().and_then(|word| word.to_str());
        if let Some(word) = first
            && let Some(command) = meant_command(word)
        {
            return Self {
                message: format!("'{word}' is neither a command nor a file"),
                hint: format!("did you mean 'gguf-shorten {command}'?"),
            };
        }
        let kinds = [ContextKind::SuggestedArg, ContextKind::SuggestedValue];
        let hint = match kinds.iter().find_map(|kind| suggestion(error, *kind)) {
            Some(suggestion) => format!("did you mean '{suggestion}'?"),
            None => match (command_after(words), first) {
                (Some(command), Some(first)) => command_first(&command, Path::new(first)),
                (None, Some(word)) if is_command(word) => {
                    format!("gguf-shorten {word} --help lists the arguments")
                }
                _ => "gguf-shorten --help lists the arguments".to_owned(),
            },
        };
        Self { message: of_arguments(error), hint }
    }
}

/// Whether `word` is a command.
fn is_command(word: &str) -> bool {
    Command::augment_subcommands(clap::Command::new("gguf-shorten")).find_subcommand(word).is_some()
}

/// The command for which `word`, which is no file, is probably meant.
fn meant_command(word: &str) -> Option<String> {
    if !word.bytes().all(|byte| byte.is_ascii_lowercase()) || Path::new(word).exists() {
        return None;
    }
    // Without the main job, so the word can only be a command.
    let commands = Command::augment_subcommands(clap::Command::new("gguf-shorten"));
    let error = commands.try_get_matches_from(["gguf-shorten", word]).err()?;
    suggestion(&error, ContextKind::SuggestedSubcommand)
}

/// What clap suggests, most likely first.
fn suggestion(error: &clap::Error, kind: ContextKind) -> Option<String> {
    match error.get(kind)? {
        ContextValue::String(text) => Some(text.clone()),
        // Sorted by likeness, the best last.
        ContextValue::Strings(texts) => texts.last().cloned(),
        _ => None,
    }
}
