//! Text -> windows of tokens.

use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use crate::hidden_state::Token;

/// Windows this long are evaluated where the user does not say otherwise, in tokens.
pub const DEFAULT_WINDOW: usize = 512;

/// This many tokens are evaluated where the user does not say otherwise.
pub const DEFAULT_TOKENS: usize = 8192;

/// Where calibration text comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// The text built into the program.
    BuiltIn,
    /// These files.
    Files(Vec<PathBuf>),
}

/// Calibration text, read but not yet tokenized.
pub struct Texts {
    source: Source,
    texts: Vec<String>,
    blake3: blake3::Hash,
}

impl Texts {
    /// Reads every text of `source` whole.
    ///
    /// # Errors
    /// A file that cannot be read, is empty or is not UTF-8.
    pub fn read(source: Source) -> Result<Self> {
        let texts = match &source {
            Source::BuiltIn => vec![built_in()?],
            Source::Files(paths) => paths
                .iter()
                .map(|path| read_file(path).with_context(|| path.display().to_string()))
                .collect::<Result<_>>()?,
        };
        let mut hasher = blake3::Hasher::new();
        for text in &texts {
            hasher.update(text.as_bytes());
        }
        Ok(Self {
            source,
            texts,
            blake3: hasher.finalize(),
        })
    }

    /// Hash of the texts, one after another.
    #[must_use]
    pub fn blake3(&self) -> blake3::Hash {
        self.blake3
    }
}

/// How much text is used and how it is cut.
#[derive(Clone, Copy, Debug)]
pub struct Cut {
    /// Tokens of one window.
    pub window: usize,
    /// At most this many tokens in all.
    pub tokens: usize,
    /// Takes the place of every window's first token, as llama-perplexity and llama-imatrix do, for models that were
    /// trained with a token at the beginning of every text.
    pub bos: Option<Token>,
}

/// All windows of tokens, and where they come from.
#[derive(Clone, Debug)]
pub struct CalibrationSet {
    /// Where the text comes from.
    pub source: Source,
    /// Hash of the texts, one after another.
    pub blake3: blake3::Hash,
    /// Tokens of one window.
    pub window: usize,
    /// Whether every window begins with the model's BOS token.
    pub bos: bool,
    tokens: Vec<Token>,
}

impl CalibrationSet {
    /// Tokenizes the texts and cuts them: consecutive windows from the start of the text; with several texts, one window
    /// of each in turn, each text from its own start. A rest shorter than a window is left out.
    ///
    /// # Errors
    /// Texts that give less than one window; the tokenizer's.
    pub fn new(
        texts: &Texts,
        cut: Cut,
        tokenize: &dyn Fn(&str) -> Result<Vec<Token>>,
    ) -> Result<Self> {
        ensure!(cut.window > 0, "a window has at least 1 token");
        let n_windows = cut.tokens / cut.window;
        ensure!(
            n_windows > 0,
            "{} tokens are less than one window of {}",
            cut.tokens,
            cut.window
        );
        let tokenized = texts
            .texts
            .iter()
            .map(|text| tokens_of_start(text, n_windows.saturating_mul(cut.window), tokenize))
            .collect::<Result<Vec<_>>>()?;
        let mut by_text: Vec<_> = tokenized
            .iter()
            .map(|tokens| tokens.chunks_exact(cut.window))
            .collect();
        let mut tokens = Vec::new();
        let mut taken = 0;
        while taken < n_windows {
            let before = taken;
            for windows in &mut by_text {
                if taken < n_windows
                    && let Some(window) = windows.next()
                {
                    let start = tokens.len();
                    tokens.extend_from_slice(window);
                    if let Some(bos) = cut.bos {
                        tokens[start] = bos;
                    }
                    taken += 1;
                }
            }
            if taken == before {
                break;
            }
        }
        if taken == 0 {
            let longest = tokenized.iter().map(Vec::len).max().unwrap_or(0);
            bail!(
                "the text has {longest} tokens, less than one window of {}",
                cut.window
            );
        }
        Ok(Self {
            source: texts.source.clone(),
            blake3: texts.blake3,
            window: cut.window,
            bos: cut.bos.is_some(),
            tokens,
        })
    }

    /// What lies behind the first `n_windows`, or `None` if fewer than `least` windows do. The fingerprint is that of the
    /// tokens that are left: their text is no whole one.
    #[must_use]
    pub fn behind(&self, n_windows: usize, least: usize) -> Option<Self> {
        let left = self.tokens.get(n_windows.checked_mul(self.window)?..)?;
        if left.len() < least.max(1).checked_mul(self.window)? {
            return None;
        }
        let mut hasher = blake3::Hasher::new();
        for token in left {
            hasher.update(&token.to_le_bytes());
        }
        Some(Self {
            source: self.source.clone(),
            blake3: hasher.finalize(),
            tokens: left.to_vec(),
            ..*self
        })
    }

    /// The windows, in order.
    pub fn windows(&self) -> impl ExactSizeIterator<Item = &[Token]> {
        self.tokens.chunks_exact(self.window)
    }

    /// Number of tokens of all windows.
    #[must_use]
    pub fn n_tokens(&self) -> usize {
        self.tokens.len()
    }
}

/// The first `wanted` tokens of `text`, or all if it has fewer. Tokenizes no more of the text than it has to: a long
/// corpus costs no more than its start.
fn tokens_of_start(
    text: &str,
    wanted: usize,
    tokenize: &dyn Fn(&str) -> Result<Vec<Token>>,
) -> Result<Vec<Token>> {
    /// Where the text is cut the last tokens may differ from those of the whole text.
    const MARGIN: usize = 256;
    let wanted_with_margin = wanted.saturating_add(MARGIN);
    let mut n_bytes = wanted_with_margin.saturating_mul(8);
    loop {
        let start = &text[..text.floor_char_boundary(n_bytes)];
        let mut tokens = tokenize(start)?;
        if start.len() == text.len() || tokens.len() >= wanted_with_margin {
            tokens.truncate(wanted);
            return Ok(tokens);
        }
        n_bytes = n_bytes.saturating_mul(2);
    }
}

fn read_file(path: &Path) -> Result<String> {
    let mut bytes = Vec::new();
    std::fs::File::open(path)?.read_to_end(&mut bytes)?;
    ensure!(!bytes.is_empty(), "is empty, expected text");
    String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        anyhow::anyhow!("is not UTF-8 text: byte {at} does not belong to a character")
    })
}

/// The text built into the program: `testdata/calibration.txt`, compressed by `build.rs`.
fn built_in() -> Result<String> {
    let compressed: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/calibration.txt.deflate"));
    let mut text = String::new();
    flate2::read::DeflateDecoder::new(compressed)
        .read_to_string(&mut text)
        .context("bug: the built-in calibration text is damaged")?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One token a byte.
    fn bytes(text: &str) -> Result<Vec<Token>> {
        Ok(text.bytes().map(Token::from).collect())
    }

    fn texts(texts: &[&str]) -> Texts {
        Texts {
            source: Source::BuiltIn,
            texts: texts.iter().map(|text| (*text).to_owned()).collect(),
            blake3: blake3::hash(b""),
        }
    }

    fn cut(window: usize, tokens: usize) -> Cut {
        Cut {
            window,
            tokens,
            bos: None,
        }
    }

    fn windows(set: &CalibrationSet) -> Vec<String> {
        set.windows()
            .map(|window| {
                window
                    .iter()
                    .map(|&t| char::from(u8::try_from(t).unwrap()))
                    .collect()
            })
            .collect()
    }

    #[test]
    fn windows_are_consecutive_and_whole() {
        let set = CalibrationSet::new(&texts(&["abcdefgh"]), cut(3, 100), &bytes).unwrap();
        assert_eq!(windows(&set), ["abc", "def"]);
        assert_eq!(set.n_tokens(), 6);
        let set = CalibrationSet::new(&texts(&["abcdefgh"]), cut(3, 5), &bytes).unwrap();
        assert_eq!(windows(&set), ["abc"]);
    }

    #[test]
    fn what_lies_behind_has_a_fingerprint_of_its_own() {
        let set = CalibrationSet::new(&texts(&["abcdefgh"]), cut(2, 8), &bytes).unwrap();
        let behind = set.behind(1, 2).unwrap();
        assert_eq!(windows(&behind), ["cd", "ef", "gh"]);
        assert_ne!(behind.blake3, set.blake3);
        assert_ne!(behind.blake3, set.behind(2, 2).unwrap().blake3);
        assert!(
            set.behind(3, 2).is_none() && set.behind(4, 1).is_none() && set.behind(9, 0).is_none()
        );
        assert!(set.behind(usize::MAX, 1).is_none());
    }

    #[test]
    fn several_texts_take_turns() {
        let set = CalibrationSet::new(&texts(&["abcdef", "xy", "uv"]), cut(2, 10), &bytes).unwrap();
        assert_eq!(windows(&set), ["ab", "xy", "uv", "cd", "ef"]);
    }

    #[test]
    fn bos_takes_the_place_of_each_first_token() {
        let cut = Cut {
            bos: Some(Token::from(b'^')),
            ..cut(3, 100)
        };
        let set = CalibrationSet::new(&texts(&["abcdef"]), cut, &bytes).unwrap();
        assert_eq!(windows(&set), ["^bc", "^ef"]);
    }

    #[test]
    fn a_text_shorter_than_a_window_is_an_error() {
        let error = CalibrationSet::new(&texts(&["abc"]), cut(4, 100), &bytes).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the text has 3 tokens, less than one window of 4"
        );
    }

    #[test]
    fn the_start_of_a_long_text_gives_the_tokens_of_the_whole() {
        let long = "ab\u{e9}".repeat(10_000);
        let tokens = tokens_of_start(&long, 10, &bytes).unwrap();
        assert_eq!(tokens, bytes(&long).unwrap()[..10]);
    }

    #[test]
    fn built_in_text_is_there_and_long_enough() {
        let text = built_in().unwrap();
        assert!(text.len() > 60_000, "{}", text.len());
    }
}
