//! Words of a command line for a POSIX shell.

/// A word of a command line for a POSIX shell.
#[must_use]
pub fn shell(word: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,+%@".contains(c);
    if !word.is_empty() && word.chars().all(is_plain) {
        return word.to_owned();
    }
    let word = word.replace(is_unprintable, "\u{fffd}");
    format!("'{}'", word.replace('\'', "'\\''"))
}

/// Whether a character is invalid in XML or misleads when shown.
#[must_use]
pub fn is_unprintable(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{fffe}' | '\u{ffff}')
        // They turn the order of what follows.
        || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}
