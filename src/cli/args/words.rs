//! Flags whose values are words.

use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};

use crate::named::Named;

/// Takes one of the words of `T`, each with its help.
pub fn one_of<T: Named>() -> impl TypedValueParser<Value = T> {
    let values = T::NAMES.iter().map(|(_, word, help)| PossibleValue::new(*word).help(help.trim_start()));
    PossibleValuesParser::new(values)
        .try_map(|word| T::of_word(&word).ok_or_else(|| format!("bug: '{word}' is no value")))
}

/// The fault of arguments, on one line.
#[must_use]
pub fn of_arguments(error: &clap::Error) -> String {
    let text = error.render().to_string();
    let lines = text.lines().take_while(|line| !line.is_empty());
    let message: Vec<&str> = lines.map(str::trim).collect();
    let message = message.join(" ");
    let message = message.strip_prefix("error: ").unwrap_or(&message);
    // The dots after a repeatable argument look like something left out.
    message.trim_end_matches("...").to_owned()
}
