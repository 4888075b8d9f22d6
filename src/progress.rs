//! The progress bar: on stderr, only for a person at a terminal.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// What a bar counts.
#[derive(Clone, Copy, Debug)]
pub enum Unit {
    /// Tokens evaluated.
    Tokens,
    /// Losses measured; a total of 0 is one that is not known.
    Losses,
    /// Nothing that could be counted.
    Time,
    /// Bytes written.
    Bytes,
    /// Tasks done.
    Tasks,
}

/// A bar of `total` units; hidden if `quiet` or where stderr is no terminal.
#[must_use]
pub fn bar(what: &'static str, unit: Unit, total: u64, quiet: bool) -> ProgressBar {
    let target = if quiet || !std::io::stderr().is_terminal() {
        ProgressDrawTarget::hidden()
    } else {
        ProgressDrawTarget::stderr()
    };
    let template = match unit {
        Unit::Tokens => "{msg} [{bar:30}] {human_pos}/{human_len} tokens, {per_sec:.0}, {eta} left",
        Unit::Tasks => "{msg} [{bar:30}] {human_pos}/{human_len} tasks, {per_sec:.1}, {eta} left",
        Unit::Losses if total == 0 => "{msg}, {human_pos} losses, {per_sec:.1}, {elapsed}",
        Unit::Losses => "{msg} [{bar:30}] {human_pos}/{human_len} losses, {per_sec:.1}, {eta} left",
        Unit::Time => "{msg}, {elapsed}",
        Unit::Bytes => {
            "{msg} [{bar:30}] {decimal_bytes}/{decimal_total_bytes}, {decimal_bytes_per_sec}, {eta} left"
        }
    };
    let style = ProgressStyle::with_template(template)
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("=> ");
    let bar = ProgressBar::with_draw_target(Some(total), target)
        .with_style(style)
        .with_message(what);
    bar.enable_steady_tick(Duration::from_millis(250));
    bar
}
