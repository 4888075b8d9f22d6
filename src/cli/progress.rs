//! The progress bar: on stderr, only for a person at a terminal. The process of one model of a batch says on stderr how far it
//! is, and its parent shows that.

use comfy_table::Table;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle, TermLike};
use std::borrow::Cow;
use std::io::{self, IsTerminal, Write};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::cli::colour::Kind;
use crate::cli::options::Printing;
use crate::watch::{Progress, Unit, Watch};

impl Watch for Printing {
    fn note(&self, text: &str) {
        if !self.quiet {
            say(Kind::Note, "note", text);
        }
    }

    fn warn(&self, text: &str) {
        if !self.quiet {
            say(Kind::Warning, "warning", text);
        }
    }

    fn begin(&self, what: Cow<'static, str>, unit: Unit, total: u64) -> Box<dyn Progress> {
        Box::new(Bar::new(what, unit, total, self.quiet))
    }

    fn is_quiet(&self) -> bool {
        self.quiet
    }

    fn is_verbose(&self) -> bool {
        self.verbose
    }
}

/// The bars that are shown now.
static SHOWN: Mutex<Vec<ProgressBar>> = Mutex::new(Vec::new());

fn shown() -> MutexGuard<'static, Vec<ProgressBar>> {
    SHOWN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Says a line, above a bar that is shown. That nobody may read it any more changes nothing of what is done.
fn say(kind: Kind, word: &str, text: &str) {
    let line = format!("{} {text}", kind.paint(&format!("gguf-shorten: {word}:")));
    let write = || {
        let _ = writeln!(io::stderr(), "{line}");
    };
    let last = shown().last().cloned();
    match last {
        Some(bar) => bar.suspend(write),
        None => write(),
    }
}

/// A bar that is cleared when the step ends.
struct Bar {
    bar: ProgressBar,
    unit: Unit,
    /// Whether it is one of those that are shown.
    is_shown: bool,
}

impl Bar {
    fn new(what: Cow<'static, str>, unit: Unit, total: u64, quiet: bool) -> Self {
        let bar = bar(what, unit, total, quiet);
        let is_shown = !is_child() && !bar.is_hidden();
        if is_shown {
            shown().push(bar.clone());
        }
        Self { bar, unit, is_shown }
    }
}

impl Progress for Bar {
    fn advance(&self, n: u64) {
        self.bar.inc(n);
    }

    fn set_position(&self, position: u64) {
        self.bar.set_position(position);
    }

    fn set_total(&self, total: u64) {
        self.bar.set_length(total);
    }

    fn set_message(&self, what: String) {
        if self.is_shown {
            self.bar.set_style(style(&what, self.unit, self.bar.length().unwrap_or(0)));
        }
        self.bar.set_message(what);
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
        if self.is_shown {
            // Few are shown at once, and they end in any order.
            let mut shown = shown();
            if let Some(at) = shown.iter().position(|bar| bar.is_finished()) {
                shown.remove(at);
            }
        }
    }
}

/// A bar of `total` units. Hidden if `quiet` or where stderr is no terminal.
#[must_use]
fn bar(what: Cow<'static, str>, unit: Unit, total: u64, quiet: bool) -> ProgressBar {
    if is_child() && !quiet {
        return told(what, total);
    }
    let target = if quiet || !std::io::stderr().is_terminal() {
        ProgressDrawTarget::hidden()
    } else {
        ProgressDrawTarget::stderr()
    };
    let style = style(&what, unit, total);
    let bar = ProgressBar::with_draw_target(Some(total), target).with_style(style).with_message(what);
    bar.enable_steady_tick(Duration::from_millis(250));
    bar
}

/// What a bar looks like, on this terminal.
fn style(what: &str, unit: Unit, total: u64) -> ProgressStyle {
    ProgressStyle::with_template(&template(what, unit, total, columns()))
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .with_key("rate", rate)
        .progress_chars("=> ")
}

/// The line of a bar, on a terminal of that many columns. What a narrow one has no room for is left out.
fn template(what: &str, unit: Unit, total: u64, columns: u16) -> String {
    let (gauge, rate) = gauge(what, columns);
    let (rate, byte_rate) = if rate { (", {rate}", ", {decimal_bytes_per_sec}") } else { ("", "") };
    match unit {
        Unit::Tokens => format!("{{msg}}{gauge} {{human_pos}}/{{human_len}} tokens{rate}, {{eta}} left"),
        Unit::Tasks => format!("{{msg}}{gauge} {{human_pos}}/{{human_len}} tasks{rate}, {{eta}} left"),
        Unit::Tensors => format!("{{msg}}{gauge} {{human_pos}}/{{human_len}} tensors, {{eta}} left"),
        Unit::Losses if total == 0 => format!("{{msg}}, {{human_pos}} losses{rate}, {{elapsed}}"),
        Unit::Losses => format!("{{msg}}{gauge} {{human_pos}}/{{human_len}} losses{rate}, {{eta}} left"),
        Unit::Time => "{msg}, {elapsed}".to_owned(),
        Unit::Bytes => {
            format!("{{msg}}{gauge} {{decimal_bytes}}/{{decimal_total_bytes}}{byte_rate}, {{eta}} left")
        }
    }
}

/// The bar after a first word, and whether there is room for a rate after it, in a line of that many columns.
pub(super) fn gauge(word: &str, columns: u16) -> (String, bool) {
    /// Columns of the figures, with a rate.
    const FIGURES: usize = 42;
    let left = usize::from(columns).saturating_sub(word.chars().count() + 1);
    let gauge = match left.saturating_sub(FIGURES + 3).min(30) {
        n @ 6.. => format!(" [{{bar:{n}}}]"),
        _ => String::new(),
    };
    (gauge, left >= FIGURES)
}

/// Columns of the terminal that stderr is.
pub(super) fn columns() -> u16 {
    Table::new().use_stderr().width().unwrap_or(80)
}

/// Units a second. A dot in a template would be a colour, not a precision.
fn rate(state: &ProgressState, to: &mut dyn std::fmt::Write) {
    let rate = state.per_sec();
    // Nobody is told of it where it cannot be shown.
    let _ = match rate < 100.0 {
        true => write!(to, "{rate:.1}/s"),
        false => write!(to, "{rate:.0}/s"),
    };
}

/// Beginning of a line of progress: no text of this program or of llama.cpp does.
const TOLD: &str = "progress|";

/// First character of such a line.
pub(crate) const MARK: char = '\u{1e}';

/// A bar of a child process, which its parent shows.
fn told(what: Cow<'static, str>, total: u64) -> ProgressBar {
    let target = ProgressDrawTarget::term_like_with_hz(Box::new(ToParent), 4);
    let style = ProgressStyle::with_template("progress|{msg}|{pos}|{len}");
    let bar = ProgressBar::with_draw_target(Some(total), target).with_message(what);
    match style {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

/// Takes a line of progress apart: what is done, how far it is, and of how much.
#[must_use]
pub fn parse(line: &str) -> Option<(&str, u64, u64)> {
    let rest = line.strip_prefix(MARK)?.strip_prefix(TOLD)?;
    let (rest, len) = rest.rsplit_once('|')?;
    let (what, position) = rest.rsplit_once('|')?;
    Some((what, position.parse().ok()?, len.trim_end().parse().ok()?))
}

/// A terminal of which only the lines matter.
#[derive(Debug)]
struct ToParent;

impl TermLike for ToParent {
    fn width(&self) -> u16 {
        // No line is cut.
        1000
    }

    fn move_cursor_up(&self, _: usize) -> io::Result<()> {
        Ok(())
    }

    fn move_cursor_down(&self, _: usize) -> io::Result<()> {
        Ok(())
    }

    fn move_cursor_right(&self, _: usize) -> io::Result<()> {
        Ok(())
    }

    fn move_cursor_left(&self, _: usize) -> io::Result<()> {
        Ok(())
    }

    fn write_line(&self, line: &str) -> io::Result<()> {
        self.write_str(line)
    }

    fn write_str(&self, text: &str) -> io::Result<()> {
        // Not what fills a line up.
        match text.starts_with(TOLD) {
            true => writeln!(io::stderr(), "{MARK}{}", text.trim_end()),
            false => Ok(()),
        }
    }

    fn clear_line(&self) -> io::Result<()> {
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
}

/// Set for a child.
pub(crate) const IS_CHILD: &str = "GGUF_SHORTEN_IS_CHILD";

/// Whether this process is the child of a batch.
#[must_use]
pub fn is_child() -> bool {
    std::env::var_os(IS_CHILD).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_figure_has_a_colour() {
        for unit in [Unit::Tokens, Unit::Tasks, Unit::Tensors, Unit::Losses, Unit::Time, Unit::Bytes] {
            for total in [0, 1] {
                assert!(!template("calibrating", unit, total, 80).contains(":."));
            }
        }
    }

    #[test]
    fn bars_fit_their_terminal() {
        let what = "calibrating";
        for columns in [40, 64, 80, 200] {
            for unit in [Unit::Tokens, Unit::Bytes, Unit::Losses] {
                let mut line = template(what, unit, 8192, columns);
                for n in 1..=30 {
                    line = line.replace(&format!("{{bar:{n}}}"), &"=".repeat(n));
                }
                for (key, shown) in [
                    ("{msg}", what),
                    ("{human_pos}", "8,192"),
                    ("{human_len}", "8,192"),
                    ("{rate}", "1234/s"),
                    ("{decimal_bytes}", "98.36 MB"),
                    ("{decimal_total_bytes}", "98.36 MB"),
                    ("{decimal_bytes_per_sec}", "123.4 MB/s"),
                    ("{eta}", "12s"),
                ] {
                    line = line.replace(key, shown);
                }
                assert!(!line.contains(['{', '}']), "{line}");
                assert!(line.starts_with(what) && line.ends_with(" left"), "{line}");
                assert!(line.chars().count() <= columns.into(), "{columns}: {line}");
                assert_eq!(line.contains('['), columns >= 64, "{columns}: {line}");
                assert_eq!(line.contains("/s"), columns >= 64, "{columns}: {line}");
            }
        }
        assert_eq!(gauge(what, 200), (" [{bar:30}]".to_owned(), true));
    }

    #[test]
    fn lines_of_progress_are_told_from_others() {
        assert_eq!(parse("\u{1e}progress|a|b|3|0"), Some(("a|b", 3, 0)));
        for other in ["progress|a|3|4", "\u{1e}progress|3|4x", "gguf-shorten: x", ""] {
            assert_eq!(parse(other), None, "{other}");
        }
    }
}
