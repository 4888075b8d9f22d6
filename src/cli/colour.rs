//! Colour: whether it is shown, by `--color`, `NO_COLOR` and what the output is.

use std::io::IsTerminal;
use std::sync::OnceLock;

use clap::builder::styling::{AnsiColor, Style, Styles};

use crate::named::{Named as _, named};

named! {
    /// When colour is shown
    pub enum When {
        /// To a terminal, unless NO_COLOR is set
        Auto = "auto",
        /// To a pipe or file too
        Always = "always",
        /// Not at all
        Never = "never",
    }
}

/// What the arguments say, once they are parsed.
static WHEN: OnceLock<When> = OnceLock::new();

/// Takes over what the arguments say.
pub fn set(when: When) {
    // The first stands: a program has one command line.
    let _ = WHEN.set(when);
}

/// What words of a command line say that could not be parsed, or are not yet.
#[must_use]
pub fn in_words(words: &[String]) -> When {
    let after = words.windows(2).find(|pair| pair[0] == "--color").map(|pair| pair[1].as_str());
    let joined = words.iter().find_map(|word| word.strip_prefix("--color="));
    joined.or(after).and_then(When::of_word).unwrap_or(When::Auto)
}

fn is_shown(is_terminal: bool) -> bool {
    match WHEN.get().copied().unwrap_or(When::Auto) {
        When::Always => true,
        When::Never => false,
        When::Auto => is_terminal && !anstyle_query::no_color() && can_show(),
    }
}

/// Whether the terminal understands colours: not one that calls itself `dumb`. A console of Windows is told to.
fn can_show() -> bool {
    anstyle_query::term_supports_color() && anstyle_query::windows::enable_ansi_colors().unwrap_or(true)
}

/// Whether tables are coloured.
#[must_use]
pub fn on_stdout() -> bool {
    is_shown(std::io::stdout().is_terminal())
}

/// The kind of a line on stderr.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// What failed.
    Error,
    /// What may be wrong.
    Warning,
    /// What is good to know.
    Note,
    /// What may help.
    Hint,
}

impl Kind {
    /// As cargo has them.
    fn style(self) -> Style {
        let colour = match self {
            Self::Error => AnsiColor::Red,
            Self::Warning => AnsiColor::Yellow,
            Self::Note => AnsiColor::Green,
            Self::Hint => AnsiColor::Cyan,
        };
        colour.on_default().bold()
    }

    /// Words in front of a line on stderr, coloured where that is shown.
    #[must_use]
    pub fn paint(self, words: &str) -> String {
        match is_shown(std::io::stderr().is_terminal()) {
            true => format!("{}{words}{:#}", self.style(), self.style()),
            false => words.to_owned(),
        }
    }
}

/// The colours of help, as cargo has them.
#[must_use]
pub fn of_help() -> Styles {
    let bold = |colour: AnsiColor| colour.on_default().bold();
    Styles::styled()
        .header(bold(AnsiColor::Green))
        .usage(bold(AnsiColor::Green))
        .literal(bold(AnsiColor::Cyan))
        .placeholder(AnsiColor::Cyan.on_default())
        .error(bold(AnsiColor::Red))
        .valid(bold(AnsiColor::Cyan))
        .invalid(bold(AnsiColor::Yellow))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_say_when() {
        let of = |line: &str| in_words(&line.split(' ').map(str::to_owned).collect::<Vec<_>>());
        assert_eq!(of("score m --color never"), When::Never);
        assert_eq!(of("score m --color=always --drop 1"), When::Always);
        assert_eq!(of("score m --color"), When::Auto);
        assert_eq!(of("score m --color=red"), When::Auto);
    }
}
