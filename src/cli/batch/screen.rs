//! The screen of a running batch, on stderr. A terminal has a bar for all models and one for each that runs; else there is a
//! line for each that ends.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::child::{Listener, NOTE, WARNING};
use crate::cli::progress::{columns, gauge};

/// All bars, or none.
pub struct Screen {
    bars: MultiProgress,
    all: ProgressBar,
    quiet: bool,
    verbose: bool,
}

/// Characters of a model's name that fit in front of a bar.
const NAME: usize = 32;

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template)
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("=> ")
}

impl Screen {
    /// For `n` models.
    #[must_use]
    pub fn new(n: usize, quiet: bool, verbose: bool) -> Self {
        let target = match quiet || !std::io::stderr().is_terminal() {
            true => ProgressDrawTarget::hidden(),
            false => ProgressDrawTarget::stderr(),
        };
        let bars = MultiProgress::with_draw_target(target);
        let all = bars.add(ProgressBar::new(n as u64));
        all.set_style(style(&format!(
            "models{} {{pos}}/{{len}}, {{elapsed}}, {{eta}} left",
            gauge("models", columns()).0
        )));
        all.enable_steady_tick(Duration::from_millis(250));
        Self { bars, all, quiet, verbose }
    }

    /// The bar of a model that begins.
    #[must_use]
    pub fn model(&self, name: &str) -> ModelBar<'_> {
        let length = name.chars().count();
        // The end of a path tells more than its start.
        let shown = match length > NAME {
            true => format!("...{}", name.chars().skip(length - NAME + 3).collect::<String>()),
            false => name.to_owned(),
        };
        let bar = self.bars.insert_before(&self.all, ProgressBar::new_spinner());
        bar.set_style(style("{prefix} {msg}, {elapsed}"));
        bar.set_prefix(shown);
        bar.set_message("starts");
        bar.enable_steady_tick(Duration::from_millis(250));
        ModelBar { screen: self, bar, name: name.to_owned() }
    }

    /// A model has ended.
    pub fn ends(&self) {
        self.all.inc(1);
    }

    /// Says a line, above the bars.
    pub fn say(&self, line: &str) {
        if !self.quiet {
            self.bars.suspend(|| {
                // A reader that is gone changes nothing of what is done.
                let _ = writeln!(std::io::stderr(), "gguf-shorten: {line}");
            });
        }
    }

    /// Takes the bars away.
    pub fn clear(&self) {
        self.all.finish_and_clear();
    }
}

/// The bar of one model; dropped, it is taken away.
pub struct ModelBar<'s> {
    screen: &'s Screen,
    bar: ProgressBar,
    name: String,
}

impl Listener for ModelBar<'_> {
    fn progress(&self, what: &str, position: u64, len: u64) {
        if self.bar.message() != what || self.bar.length() != Some(len) {
            let template = match len {
                0 => "{prefix} {msg}, {human_pos}, {elapsed}",
                _ => "{prefix} {msg} [{bar:20}] {percent} %, {eta} left",
            };
            // What comes now takes its own time.
            self.bar.reset();
            self.bar.set_style(style(template));
            self.bar.set_message(what.to_owned());
            self.bar.set_length(len);
        }
        self.bar.set_position(position);
    }

    fn line(&self, line: &str) {
        if let Some(note) = line.strip_prefix(NOTE) {
            self.screen.say(&format!("note: {}: {note}", self.name));
        } else if let Some(warning) = line.strip_prefix(WARNING) {
            // Of the model's weights it has the name in front already.
            let prefix = format!("{}: ", self.name);
            let warning = warning.strip_prefix(&*prefix).unwrap_or(warning);
            self.screen.say(&format!("warning: {prefix}{warning}"));
        } else if self.screen.verbose {
            self.screen.say(&format!("{}: {line}", self.name));
        }
    }
}

impl Drop for ModelBar<'_> {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
        self.screen.bars.remove(&self.bar);
    }
}
