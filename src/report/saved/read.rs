//! Files of results: one JSON object after another.

use std::collections::HashSet;

use anyhow::{Context, Result, bail, ensure};
use serde_json::error::Category;
use serde_json::{Deserializer, Value};

use super::Saved;

/// A larger file is no file of results: one for each of ten thousand models has less.
pub const MAX_FILE_BYTES: u64 = 1 << 28;

/// The results of a file.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Read {
    /// Those that are whole, in order.
    pub results: Vec<Saved>,
    /// The last line, if it is cut off. A run that writes line by line was ended in the middle of one.
    pub torn: Option<usize>,
    /// Results that were read before, and are left out. They are byte for byte the same but for their layout.
    pub n_repeated: usize,
}

/// Reads the text of a file. `seen` are the results read before, of other files too.
///
/// # Errors
/// What is not JSON, or no result, with its line; a file without a result.
pub fn read(bytes: &[u8], seen: &mut HashSet<blake3::Hash>) -> Result<Read> {
    let mut read = Read::default();
    let mut lines = Lines::new(bytes);
    let mut values = Deserializer::from_slice(bytes).into_iter::<Value>();
    loop {
        let blank = bytes[values.byte_offset()..].iter();
        let start = values.byte_offset() + blank.take_while(|byte| byte.is_ascii_whitespace()).count();
        let line = lines.at(start);
        let value = match values.next() {
            None => break,
            Some(Ok(value)) => value,
            Some(Err(error)) if error.classify() == Category::Eof => {
                let rest = bytes[start..].trim_ascii_end();
                let is_last_line = !rest.contains(&b'\n');
                ensure!(
                    is_last_line && start > 0,
                    "line {line}: ends inside of the object that begins there"
                );
                read.torn = Some(line);
                break;
            }
            Some(Err(error)) => bail!(
                "line {}, column {}: is not JSON, expected results that --json wrote",
                error.line(),
                error.column()
            ),
        };
        let result = Saved::new(&value).with_context(|| format!("line {line}"))?;
        // Sorted keys: the same object gives the same text.
        if seen.insert(blake3::hash(value.to_string().as_bytes())) {
            read.results.push(result);
        } else {
            read.n_repeated += 1;
        }
    }
    ensure!(!read.results.is_empty() || read.n_repeated > 0 || read.torn.is_some(), "has no result");
    Ok(read)
}

/// Numbers of lines at positions that only grow.
struct Lines<'b> {
    bytes: &'b [u8],
    position: usize,
    line: usize,
}

impl<'b> Lines<'b> {
    fn new(bytes: &'b [u8]) -> Self {
        Self { bytes, position: 0, line: 1 }
    }

    fn at(&mut self, position: usize) -> usize {
        let passed = &self.bytes[self.position..position];
        self.line += passed.iter().filter(|&&byte| byte == b'\n').count();
        self.position = position;
        self.line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FAILED: &str = r#"{"model": {"path": "a.gguf"}, "error": "no"}"#;

    fn of(text: &str) -> Result<Read> {
        read(text.as_bytes(), &mut HashSet::new())
    }

    #[test]
    fn objects_may_lie_on_one_line_or_many() {
        let other = FAILED.replace('a', "b");
        for text in [
            format!("{FAILED}\n{other}\n"),
            format!("{FAILED}{other}"),
            format!("\n\n{}\n{other}", FAILED.replace(',', ",\n")),
        ] {
            let read = of(&text).unwrap();
            assert_eq!((read.results.len(), read.torn), (2, None), "{text}");
        }
    }

    #[test]
    fn the_same_result_counts_once() {
        let read = of(&format!("{FAILED}\n{}\n", FAILED.replace(' ', ""))).unwrap();
        assert_eq!((read.results.len(), read.n_repeated), (1, 1));
    }

    #[test]
    fn a_last_line_may_be_torn_anywhere() {
        let next = FAILED.replace("a.gguf", "\u{e9}.gguf");
        for end in 1..next.len() {
            let mut bytes = format!("{FAILED}\n").into_bytes();
            bytes.extend_from_slice(&next.as_bytes()[..end]);
            let read = read(&bytes, &mut HashSet::new()).unwrap();
            assert_eq!((read.results.len(), read.torn), (1, Some(2)), "{end}");
        }
    }

    #[test]
    fn what_is_no_result_is_named_by_line() {
        let message = |text: &str| format!("{:#}", of(text).unwrap_err());
        assert_eq!(message(""), "has no result");
        assert_eq!(message(" \n"), "has no result");
        assert_eq!(
            message(&format!("{FAILED}\n\n{{\"a\":\n 1")),
            "line 3: ends inside of the object that begins there"
        );
        assert_eq!(message(&FAILED[..20]), "line 1: ends inside of the object that begins there");
        assert_eq!(
            message(&format!("{FAILED}\nx\n")),
            "line 2, column 1: is not JSON, expected results that --json wrote"
        );
        assert_eq!(message("[]"), "line 1: the result is a list, expected an object");
        assert!(message("\n{}").starts_with("line 2: is no result of gguf-shorten"));
        assert_eq!(
            message(r#"{"model": {"block_count": "x"}, "blocks": []}"#),
            "line 1: 'model.block_count' is 'x', expected a whole number"
        );
        assert_eq!(
            message(r#"{"model": {"block_count": 4}, "blocks": [], "removed": [4]}"#),
            "line 1: 'removed' has block 4, but the model has 4 blocks"
        );
        // Deeper than anything is written, without an end of the stack.
        let deep = "[".repeat(100_000);
        assert!(message(&deep).contains("is not JSON"), "{}", message(&deep));
    }
}
