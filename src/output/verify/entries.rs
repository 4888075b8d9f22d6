//! Metadata entries that decide what is computed, compared by value.

use std::collections::BTreeMap;

use super::{Difference, Differences};
use crate::gguf::{Entry, EntryOut, Metadata, Place, Value, ValueType};
use crate::plan::{healing, requantized};

/// Characters of a value in a message.
const SHOWN: usize = 40;

/// Entries of this program's own that no tensor can be proven without.
const OWN: [&str; 2] = [healing::HASH_KEY, requantized::HASHES_KEY];

/// How many entries were compared.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Compared {
    /// Those that decide.
    pub(super) n: usize,
    /// Those of them that are of another type.
    pub(super) n_other_types: usize,
    /// Those of the file that decide nothing.
    pub(super) n_ignored: usize,
}

/// Whether an entry of a model of `architecture` decides what is computed from tokens.
fn decides(key: &str, architecture: &str) -> bool {
    let of_architecture = key.strip_prefix(architecture).is_some_and(|rest| rest.starts_with('.'));
    of_architecture || key == ARCHITECTURE || key.starts_with("tokenizer.ggml.")
}

/// The name of the architecture.
const ARCHITECTURE: &str = "general.architecture";

/// Compares the entries that decide. Of other programs' numbers the type may be another.
pub(super) fn compare<'p>(
    planned: impl Iterator<Item = &'p EntryOut<'p>>,
    found: &Metadata<'_>,
    differences: &mut Differences,
) -> Compared {
    let planned: BTreeMap<&str, &EntryOut<'_>> = planned.map(|entry| (entry.key(), entry)).collect();
    let architecture = planned.get(ARCHITECTURE).and_then(|entry| entry.value().as_str().ok());
    let architecture = architecture.unwrap_or_default();
    let matters = |key: &str| decides(key, architecture) || OWN.contains(&key);
    let mut compared = Compared::default();
    for (key, planned) in planned.iter().filter(|(key, _)| matters(key)) {
        compared.n += 1;
        let entry = || Place::Key((*key).to_owned());
        let Some(found) = found.get(key).map(Entry::value) else {
            differences.push(Difference::Missing(entry()));
            continue;
        };
        let expected = planned.value();
        if !same(&expected, &found) {
            differences.push(Difference::Value {
                entry: entry(),
                found: shown(&found),
                expected: shown(&expected),
            });
        } else if expected.raw() != found.raw() {
            compared.n_other_types += 1;
        }
    }
    for entry in found {
        match (matters(entry.key()), planned.contains_key(entry.key())) {
            (true, false) => differences.push(Difference::Extra(Place::Key(entry.key().to_owned()))),
            (true, true) => {}
            (false, _) => compared.n_ignored += 1,
        }
    }
    compared
}

/// Whether two values are equal. Integers of any two types, and floats of any two, may be; so may arrays of them.
fn same(a: &Value<'_>, b: &Value<'_>) -> bool {
    if (a.value_type(), a.raw()) == (b.value_type(), b.raw()) {
        return true;
    }
    if a.value_type().is_integer() && b.value_type().is_integer() {
        return integer(a) == integer(b);
    }
    if let (Ok(a), Ok(b)) = (a.as_array(), b.as_array()) {
        return a.len() == b.len() && a.elements().zip(b.elements()).all(|(a, b)| same(&a, &b));
    }
    match (a.as_bool(), b.as_bool()) {
        // Any byte but 0 is true.
        (Ok(a), Ok(b)) => a == b,
        _ => same_floats(a, b),
    }
}

/// An integer of any type; `None` for what is none.
fn integer(value: &Value<'_>) -> Option<i128> {
    let signed = value.as_i64().map(i128::from);
    signed.or_else(|_| value.as_u64().map(i128::from)).ok()
}

/// Whether two floats are one number: in double precision, or in single where one of them is.
fn same_floats(a: &Value<'_>, b: &Value<'_>) -> bool {
    let (Ok(wide_a), Ok(wide_b)) = (a.as_f64(), b.as_f64()) else {
        return false;
    };
    #[expect(clippy::cast_possible_truncation, reason = "a single one was rounded so")]
    let narrow = |value: f64| value as f32;
    let single = [a, b].iter().any(|value| value.value_type() == ValueType::F32);
    wide_a == wide_b || (single && narrow(wide_a) == narrow(wide_b))
}

/// A value for a message.
fn shown(value: &Value<'_>) -> String {
    let kind = value.value_type();
    if let Ok(array) = value.as_array() {
        return format!("{}[{}]", array.element_type(), array.len());
    }
    if let Ok(text) = value.as_str() {
        let shown: String = text.chars().take(SHOWN).collect();
        return format!("'{}'", shown.escape_debug());
    }
    let number = integer(value).map(|number| number.to_string());
    let float = || value.as_f64().ok().map(|number| number.to_string());
    let flag = || value.as_bool().ok().map(|flag| flag.to_string());
    number.or_else(float).or_else(flag).map_or_else(|| kind.to_string(), |text| format!("{kind} {text}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::ValueOut;

    fn is_same(a: ValueOut, b: ValueOut) -> bool {
        let (a, b) = (EntryOut::new("k", a), EntryOut::new("k", b));
        same(&a.value(), &b.value())
    }

    #[test]
    fn numbers_are_compared_by_value() {
        assert!(is_same(ValueOut::u32(7), ValueOut::u64(7)));
        assert!(is_same(ValueOut::i32(7), ValueOut::u32(7)));
        assert!(!is_same(ValueOut::i32(-1), ValueOut::u32(u32::MAX)), "the same bytes");
        assert!(is_same(ValueOut::u32s(&[1, 2]), ValueOut::i32s(&[1, 2])));
        assert!(!is_same(ValueOut::u32s(&[1, 2]), ValueOut::i32s(&[1, 2, 3])));
        assert!(!is_same(ValueOut::u32s(&[1, 2]), ValueOut::i32s(&[1, -2])));
        assert!(!is_same(ValueOut::u32(1), ValueOut::f32(1.0)), "an integer is no float");
        assert!(!is_same(ValueOut::u32(1), ValueOut::bool(true)));
        assert!(!is_same(ValueOut::f32(0.1), ValueOut::f32(0.2)));
        assert!(is_same(ValueOut::string("a"), ValueOut::string("a")));
        assert!(!is_same(ValueOut::string("a"), ValueOut::string("b")));
    }

    #[test]
    fn what_decides_is_the_architectures_and_the_vocabulary() {
        for key in ["llama.block_count", "general.architecture", "tokenizer.ggml.tokens"] {
            assert!(decides(key, "llama"), "{key}");
        }
        for key in ["general.name", "llama4.block_count", "tokenizer.chat_template", "gguf_shorten.version"] {
            assert!(!decides(key, "llama"), "{key}");
        }
    }
}
