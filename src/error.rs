//! What the program's errors carry besides their text.
//!
//! The form is `gguf-shorten: <path>: <what is wrong, with name, found and expected>`, on one line. Library modules give
//! the part after the path; the path is added where it is known, as an [`anyhow`] context.

use std::fmt;

/// A remedy for an error, shown on a line of its own. Attached as a context; it takes no part in the error's text.
#[derive(Debug)]
pub struct Hint(pub String);

impl fmt::Display for Hint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Arguments that do not fit together: exit status 2 instead of 1.
#[derive(Debug)]
pub struct Usage(pub String);

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Usage {}

/// The run was stopped by the user: exit status 130.
#[derive(Debug)]
pub struct Interrupted(pub String);

impl fmt::Display for Interrupted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Interrupted {}

/// The error on one line, without hints: the contexts from outside in, then the cause.
#[must_use]
pub fn message(error: &anyhow::Error) -> String {
    let hint = error.downcast_ref::<Hint>().map(ToString::to_string);
    let mut links = Vec::new();
    for link in error.chain() {
        let text = link.to_string();
        if Some(&text) != hint.as_ref() {
            links.push(on_one_line(&text));
        }
    }
    links.join(": ")
}

/// The remedy, if one is known, on one line.
#[must_use]
pub fn hint(error: &anyhow::Error) -> Option<String> {
    if let Some(hint) = error.downcast_ref::<Hint>() {
        return Some(on_one_line(&hint.0));
    }
    error
        .chain()
        .find_map(|link| link.downcast_ref::<crate::gguf::Error>())
        .and_then(|error| error.hint().map(str::to_owned))
}

/// Text without control characters: a path may hold any character.
fn on_one_line(text: &str) -> String {
    text.replace(char::is_control, " ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::{Context, anyhow};

    #[test]
    fn hints_stand_apart_from_the_message() {
        let error = anyhow!("ends early").context(Hint("fetch it again".to_owned())).context("m.gguf");
        assert_eq!(message(&error), "m.gguf: ends early");
        assert_eq!(hint(&error).as_deref(), Some("fetch it again"));
        let plain = Err::<(), _>(anyhow!("a\nb")).context("m").unwrap_err();
        assert_eq!(message(&plain), "m: a b");
        assert_eq!(hint(&plain), None);
        let named = anyhow!("two").context(Hint("there are a\n.gguf, \u{1b}[31mb.gguf".to_owned()));
        assert_eq!(hint(&named).as_deref(), Some("there are a .gguf,  [31mb.gguf"));
    }
}
