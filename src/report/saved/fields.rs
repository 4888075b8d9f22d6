//! Fields of a JSON object, checked. One that is null or not there is `None`, one of another kind is an error that names it.

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value};

use crate::gguf::Quoted;
use crate::model::MAX_BLOCKS;

/// An object and the names of the fields that lead to it.
#[derive(Clone)]
pub(super) struct Fields<'v> {
    object: &'v Map<String, Value>,
    name: String,
}

impl<'v> Fields<'v> {
    /// The fields of `value`, which has no name.
    pub(super) fn of(value: &'v Value) -> Result<Self> {
        Self::named(value, "the result".to_owned()).map(|fields| Self { name: String::new(), ..fields })
    }

    fn named(value: &'v Value, name: String) -> Result<Self> {
        match value {
            Value::Object(object) => Ok(Self { object, name }),
            other => bail!("{name} is {}, expected an object", kind(other)),
        }
    }

    fn name(&self, key: &str) -> String {
        match self.name.as_str() {
            "" => format!("'{key}'"),
            name => format!("'{}.{key}'", name.trim_matches('\'')),
        }
    }

    /// The value of a field that is there and not null.
    pub(super) fn value(&self, key: &str) -> Option<&'v Value> {
        self.object.get(key).filter(|value| !value.is_null())
    }

    pub(super) fn has(&self, key: &str) -> bool {
        self.value(key).is_some()
    }

    fn expect<T>(
        &self,
        key: &str,
        expected: &str,
        take: impl Fn(&'v Value) -> Option<T>,
    ) -> Result<Option<T>> {
        let Some(value) = self.value(key) else {
            return Ok(None);
        };
        let taken = take(value);
        let name = || format!("{} is {}, expected {expected}", self.name(key), kind(value));
        Ok(Some(taken.with_context(name)?))
    }

    pub(super) fn text(&self, key: &str) -> Result<Option<String>> {
        self.expect(key, "a string", |value| value.as_str().map(str::to_owned))
    }

    pub(super) fn number(&self, key: &str) -> Result<Option<f64>> {
        self.expect(key, "a number", Value::as_f64)
    }

    pub(super) fn count(&self, key: &str) -> Result<Option<u64>> {
        self.expect(key, "a whole number", Value::as_u64)
    }

    pub(super) fn flag(&self, key: &str) -> Result<Option<bool>> {
        self.expect(key, "true or false", Value::as_bool)
    }

    pub(super) fn object(&self, key: &str) -> Result<Option<Self>> {
        self.value(key).map(|value| Self::named(value, self.name(key))).transpose()
    }

    pub(super) fn list(&self, key: &str) -> Result<Option<&'v Vec<Value>>> {
        self.expect(key, "a list", Value::as_array)
    }

    /// The objects of a list.
    pub(super) fn objects(&self, key: &str) -> Result<Vec<Self>> {
        let list = self.list(key)?.map_or(&[][..], Vec::as_slice);
        let list_name = self.name(key);
        let list_name = list_name.trim_matches('\'');
        let object = |(i, value)| Self::named(value, format!("'{list_name}[{i}]'"));
        list.iter().enumerate().map(object).collect()
    }

    /// A number of blocks.
    pub(super) fn n_blocks(&self, key: &str) -> Result<Option<usize>> {
        let Some(n) = self.count(key)? else {
            return Ok(None);
        };
        let n = usize::try_from(n).ok().filter(|&n| n <= MAX_BLOCKS);
        let name = || format!("{} is more than {MAX_BLOCKS}", self.name(key));
        Ok(Some(n.with_context(name)?))
    }

    /// A list of block numbers, each once, in order.
    pub(super) fn blocks(&self, key: &str) -> Result<Vec<usize>> {
        let list = self.list(key)?.map_or(&[][..], Vec::as_slice);
        let block = |value: &Value| usize::try_from(value.as_u64()?).ok();
        let mut blocks = Vec::new();
        for value in list {
            let block = block(value).filter(|&block| block < MAX_BLOCKS);
            let name = || format!("{} has an entry that is no block's number", self.name(key));
            blocks.push(block.with_context(name)?);
        }
        blocks.sort_unstable();
        blocks.dedup();
        Ok(blocks)
    }

    /// The strings of a list.
    pub(super) fn texts(&self, key: &str) -> Result<Vec<String>> {
        let list = self.list(key)?.map_or(&[][..], Vec::as_slice);
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let texts: Option<_> = list.iter().map(text).collect();
        texts.with_context(|| format!("{} has an entry that is no string", self.name(key)))
    }

    /// A square of numbers, with null where there is none.
    pub(super) fn square(&self, key: &str) -> Result<Vec<Vec<Option<f64>>>> {
        let rows = self.list(key)?.map_or(&[][..], Vec::as_slice);
        let n = rows.len();
        ensure!(n <= MAX_BLOCKS + 1, "{} has {n} rows, expected {} at most", self.name(key), MAX_BLOCKS + 1);
        let row = |(i, row): (usize, &Value)| -> Result<Vec<Option<f64>>> {
            let row = row.as_array().filter(|row| row.len() == n);
            let row = row.with_context(|| {
                format!("row {i} of {} is no list of {n}, as many as it has rows", self.name(key))
            })?;
            Ok(row.iter().map(Value::as_f64).collect())
        };
        rows.iter().enumerate().map(row).collect()
    }

    /// Whatever is in a field, as a few short words. What a newer release says there is not known here.
    pub(super) fn words(&self, key: &str) -> Option<String> {
        /// Of a field with more, the first ones.
        const ENTRIES: usize = 16;
        let of = |value: &Value| match value {
            Value::Null => None,
            Value::Bool(value) => Some(if *value { "yes" } else { "no" }.to_owned()),
            Value::Number(number) => Some(number.to_string()),
            Value::String(text) => Some(text.clone()),
            Value::Array(list) if list.iter().all(Value::is_number) && list.len() <= ENTRIES => {
                let numbers: Vec<_> = list.iter().map(Value::to_string).collect();
                Some(numbers.join(" "))
            }
            Value::Array(list) => Some(format!("{} entries", list.len())),
            Value::Object(_) => Some("(more in the file)".to_owned()),
        };
        let value = self.value(key)?;
        let Value::Object(object) = value else {
            return of(value);
        };
        let entries = object
            .iter()
            .filter_map(|(key, value)| Some(format!("{}: {}", key.replace('_', " "), of(value)?)));
        let words: Vec<_> = entries.take(ENTRIES).collect();
        (!words.is_empty()).then(|| words.join(", "))
    }
}

/// What a value is, for messages.
fn kind(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Bool(value) => value.to_string(),
        // Perhaps a fraction, or negative.
        Value::Number(number) => number.to_string(),
        Value::String(text) => Quoted(text).to_string(),
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "an object".to_owned(),
    }
}
