//! JSON objects of which every key stands once.

use std::collections::BTreeMap;
use std::fmt::{self, Display};
use std::marker::PhantomData;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, Visitor};

/// An object as a map. With a key that stands twice it would say two things.
///
/// # Errors
/// Such a key; what is no object.
pub fn unique<'de, D, K, V>(deserializer: D) -> Result<BTreeMap<K, V>, D::Error>
where
    D: Deserializer<'de>,
    K: Deserialize<'de> + Ord + Display,
    V: Deserialize<'de>,
{
    deserializer.deserialize_map(Unique(PhantomData))
}

struct Unique<K, V>(PhantomData<(K, V)>);

impl<'de, K, V> Visitor<'de> for Unique<K, V>
where
    K: Deserialize<'de> + Ord + Display,
    V: Deserialize<'de>,
{
    type Value = BTreeMap<K, V>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<Self::Value, A::Error> {
        let mut map = BTreeMap::new();
        while let Some(key) = object.next_key::<K>()? {
            if map.contains_key(&key) {
                return Err(A::Error::custom(format!("'{}' stands twice", key.to_string().escape_default())));
            }
            map.insert(key, object.next_value()?);
        }
        Ok(map)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_that_stands_twice_is_refused() {
        let read = |text: &str| {
            let mut json = serde_json::Deserializer::from_str(text);
            unique::<_, String, u32>(&mut json).map_err(|error| error.to_string())
        };
        assert_eq!(read(r#"{"a": 1, "b": 2}"#).unwrap(), [("a".to_owned(), 1), ("b".to_owned(), 2)].into());
        assert!(read(r#"{"a": 1, "b": 2, "a": 1}"#).unwrap_err().starts_with("'a' stands twice"));
        assert!(read("[1]").is_err());
        let of_numbers = |text: &str| {
            let mut json = serde_json::Deserializer::from_str(text);
            unique::<_, usize, u32>(&mut json).is_ok()
        };
        assert!(of_numbers(r#"{"0": 1, "1": 2}"#));
        assert!(!of_numbers(r#"{"0": 1, "00": 2, "0": 3}"#));
    }
}
