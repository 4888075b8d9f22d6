//! Text -> windows of tokens.

use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use crate::engine::hidden_state::Token;
use crate::engine::openings;
use crate::files::place::read_at_most;

/// Default length of a window in tokens.
pub const DEFAULT_WINDOW: usize = 512;

/// This many tokens are evaluated where the user does not say otherwise.
pub const DEFAULT_TOKENS: usize = 8192;

/// The longest text; what says more, such as a device, does not end.
const MAX_TEXT_BYTES: u64 = 1 << 30;

/// Where calibration text comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// The text built into the program.
    BuiltIn,
    /// These files.
    Files(Vec<PathBuf>),
    /// What the model writes itself.
    Own {
        /// Another number gives another text.
        seed: u64,
    },
    /// These files, and what the model writes as one text more.
    FilesAndOwn {
        /// The files.
        files: Vec<PathBuf>,
        /// As of [`Source::Own`].
        seed: u64,
        /// How many tokens it writes at most. `None` for as many as there are of each file.
        tokens: Option<usize>,
    },
}

impl Source {
    /// The name of each text: `built-in`, the file, or `self`.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        let of_files = |files: &[PathBuf]| files.iter().map(|file| file.display().to_string()).collect();
        let own = || vec!["self".to_owned()];
        match self {
            Self::BuiltIn => vec!["built-in".to_owned()],
            Self::Files(files) => of_files(files),
            Self::Own { .. } => own(),
            Self::FilesAndOwn { files, .. } => [of_files(files), own()].concat(),
        }
    }

    /// The files that are read.
    #[must_use]
    pub fn files(&self) -> &[PathBuf] {
        match self {
            Self::Files(files) | Self::FilesAndOwn { files, .. } => files,
            Self::BuiltIn | Self::Own { .. } => &[],
        }
    }

    /// What chose the text that a model writes; `None` of any other.
    #[must_use]
    pub fn seed(&self) -> Option<u64> {
        match *self {
            Self::Own { seed } | Self::FilesAndOwn { seed, .. } => Some(seed),
            Self::BuiltIn | Self::Files(_) => None,
        }
    }
}

/// All names, such as `a.txt, self`.
impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.names().join(", "))
    }
}

/// Calibration text, read but not yet tokenized.
pub struct Texts {
    source: Source,
    texts: Vec<String>,
}

impl Texts {
    /// Reads every text of `source` whole.
    ///
    /// # Errors
    /// A file that cannot be read, is empty or is not UTF-8.
    pub fn read(source: Source) -> Result<Self> {
        let texts = match &source {
            Source::BuiltIn => vec![built_in()?],
            Source::Files(paths) | Source::FilesAndOwn { files: paths, .. } => paths
                .iter()
                .map(|path| read_file(path).with_context(|| path.display().to_string()))
                .collect::<Result<_>>()?,
            // It is written once the model is there.
            Source::Own { .. } => Vec::new(),
        };
        Ok(Self { source, texts })
    }

    /// Where they come from.
    #[must_use]
    pub fn source(&self) -> &Source {
        &self.source
    }

    /// A hash of all that they are. What each of them says, or by what a model writes one.
    #[must_use]
    pub fn fingerprint(&self) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new();
        for text in &self.texts {
            hasher.update(&(text.len() as u64).to_le_bytes());
            hasher.update(text.as_bytes());
        }
        if let Some(seed) = self.source.seed() {
            hasher.update(b"self");
            hasher.update(openings::fingerprint().as_bytes());
            hasher.update(&seed.to_le_bytes());
        }
        if let Source::FilesAndOwn { tokens, .. } = self.source {
            hasher.update(&tokens.map_or(u64::MAX, |tokens| tokens as u64).to_le_bytes());
        }
        hasher.finalize()
    }

    /// How many of `n_windows` the model writes beside the files. They count as one text of several.
    #[must_use]
    pub fn n_own_windows(&self, n_windows: usize, window: usize) -> usize {
        match self.source {
            Source::BuiltIn | Source::Files(_) => 0,
            Source::Own { .. } => n_windows,
            Source::FilesAndOwn { tokens, .. } => {
                let asked = tokens.map(|tokens| tokens / window.max(1));
                asked.unwrap_or(n_windows.div_ceil(self.texts.len() + 1))
            }
        }
    }
}

/// How much text is used and how it is cut.
#[derive(Clone, Copy, Debug)]
pub struct Cut {
    /// Tokens of one window.
    pub window: usize,
    /// At most this many tokens in all.
    pub tokens: usize,
    /// Takes the place of every window's first token. Perplexity and importance matrices of llama.cpp have it so, for models
    /// that were trained with a token at the beginning of every text.
    pub bos: Option<Token>,
}

/// All windows of tokens, and where they come from.
#[derive(Clone, Debug)]
pub struct CalibrationSet {
    /// Where the text comes from.
    pub source: Source,
    /// Hash of the texts, and of the tokens that the model wrote. Texts are one after another, tokens four bytes each.
    pub blake3: blake3::Hash,
    /// Tokens of one window.
    pub window: usize,
    /// Whether every window begins with the model's BOS token.
    pub bos: bool,
    tokens: Vec<Token>,
    /// Of each window, which text it is from.
    texts: Vec<usize>,
    /// The number of the text that the model wrote itself.
    own: Option<usize>,
}

impl CalibrationSet {
    /// Tokenizes the texts and cuts them: consecutive windows from the start of the text. With several texts, one window
    /// of each in turn, each text from its own start. A rest shorter than a window is left out. `own` is what the model wrote,
    /// the last of the texts, in windows that each begin with its BOS token; empty if it wrote none.
    ///
    /// # Errors
    /// Texts that give less than one window; the tokenizer's.
    pub fn new(
        texts: &Texts,
        own: Vec<Token>,
        cut: Cut,
        tokenize: &dyn Fn(&str) -> Result<Vec<Token>>,
    ) -> Result<Self> {
        ensure!(cut.window > 0, "a window has at least 1 token");
        let n_windows = cut.tokens / cut.window;
        ensure!(n_windows > 0, "{} tokens are less than one window of {}", cut.tokens, cut.window);
        let mut tokenized = texts
            .texts
            .iter()
            .map(|text| tokens_of_start(text, n_windows.saturating_mul(cut.window), tokenize))
            .collect::<Result<Vec<_>>>()?;
        let mut hasher = blake3::Hasher::new();
        for text in &texts.texts {
            hasher.update(text.as_bytes());
        }
        for token in &own {
            hasher.update(&token.to_le_bytes());
        }
        let number_of_own = (!own.is_empty()).then_some(tokenized.len());
        tokenized.extend(number_of_own.map(|_| own));
        let mut by_text: Vec<_> = tokenized.iter().map(|tokens| tokens.chunks_exact(cut.window)).collect();
        let mut tokens = Vec::new();
        let mut from = Vec::new();
        let mut taken = 0;
        while taken < n_windows {
            let before = taken;
            for (text, windows) in by_text.iter_mut().enumerate() {
                if taken < n_windows
                    && let Some(window) = windows.next()
                {
                    let start = tokens.len();
                    tokens.extend_from_slice(window);
                    if let Some(bos) = cut.bos {
                        tokens[start] = bos;
                    }
                    from.push(text);
                    taken += 1;
                }
            }
            if taken == before {
                break;
            }
        }
        if taken == 0 {
            let longest = tokenized.iter().map(Vec::len).max().unwrap_or(0);
            bail!("the text has {longest} tokens, less than one window of {}", cut.window);
        }
        Ok(Self {
            source: texts.source.clone(),
            blake3: hasher.finalize(),
            window: cut.window,
            bos: cut.bos.is_some() || texts.texts.is_empty(),
            tokens,
            texts: from,
            own: number_of_own,
        })
    }

    /// The windows after the first `n_windows`, or `None` below `least`. The fingerprint is that of the remaining tokens: their
    /// text is no whole one.
    #[must_use]
    pub fn after(&self, n_windows: usize, least: usize) -> Option<Self> {
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
            texts: self.texts.get(n_windows..)?.to_vec(),
            ..*self
        })
    }

    /// Of each window the number of the text that it is from.
    #[must_use]
    pub fn texts(&self) -> &[usize] {
        &self.texts
    }

    /// The number of the text that the model wrote itself. `None` if there is none.
    #[must_use]
    pub fn own(&self) -> Option<usize> {
        self.own
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
    /// At a cut the last tokens may differ from the whole text's.
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
    let bytes = read_at_most(path, MAX_TEXT_BYTES, "text")?;
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
        Texts { source: Source::BuiltIn, texts: texts.iter().map(|text| (*text).to_owned()).collect() }
    }

    fn cut(window: usize, tokens: usize) -> Cut {
        Cut { window, tokens, bos: None }
    }

    fn windows(set: &CalibrationSet) -> Vec<String> {
        set.windows()
            .map(|window| window.iter().map(|&t| char::from(u8::try_from(t).unwrap())).collect())
            .collect()
    }

    #[test]
    fn windows_are_consecutive_and_whole() {
        let set = CalibrationSet::new(&texts(&["abcdefgh"]), Vec::new(), cut(3, 100), &bytes).unwrap();
        assert_eq!(windows(&set), ["abc", "def"]);
        assert_eq!(set.n_tokens(), 6);
        let set = CalibrationSet::new(&texts(&["abcdefgh"]), Vec::new(), cut(3, 5), &bytes).unwrap();
        assert_eq!(windows(&set), ["abc"]);
    }

    #[test]
    fn a_fingerprint_tells_apart_what_is_cut_in_other_ways() {
        let own = |seed| Texts { source: Source::Own { seed }, ..texts(&[]) };
        let all = [
            texts(&["abc"]),
            texts(&["ab", "c"]),
            texts(&["a", "bc"]),
            texts(&["bc", "a"]),
            texts(&[]),
            own(0),
            own(1),
        ];
        let hashes: std::collections::BTreeSet<_> =
            all.iter().map(|texts| texts.fingerprint().to_hex().to_string()).collect();
        assert_eq!(hashes.len(), all.len());
        assert_eq!(own(1).fingerprint(), own(1).fingerprint());
    }

    #[test]
    fn windows_after_the_first_have_a_fingerprint_of_their_own() {
        let set = CalibrationSet::new(&texts(&["abcdefgh"]), Vec::new(), cut(2, 8), &bytes).unwrap();
        let later = set.after(1, 2).unwrap();
        assert_eq!(windows(&later), ["cd", "ef", "gh"]);
        assert_ne!(later.blake3, set.blake3);
        assert_ne!(later.blake3, set.after(2, 2).unwrap().blake3);
        assert!(set.after(3, 2).is_none() && set.after(4, 1).is_none() && set.after(9, 0).is_none());
        assert!(set.after(usize::MAX, 1).is_none());
    }

    #[test]
    fn several_texts_take_turns() {
        let set =
            CalibrationSet::new(&texts(&["abcdef", "xy", "uv"]), Vec::new(), cut(2, 10), &bytes).unwrap();
        assert_eq!(windows(&set), ["ab", "xy", "uv", "cd", "ef"]);
    }

    #[test]
    fn what_the_model_writes_is_the_last_text() {
        let own = bytes("^a^b").unwrap();
        let set = CalibrationSet::new(&texts(&["abcdef", "xy"]), own, cut(2, 10), &bytes).unwrap();
        assert_eq!(windows(&set), ["ab", "xy", "^a", "cd", "^b"]);
        assert_eq!((set.texts(), set.own()), (&[0, 1, 2, 0, 2][..], Some(2)));
        let mut mixed = texts(&["abcdef", "xy"]);
        mixed.source = Source::FilesAndOwn { files: Vec::new(), seed: 0, tokens: None };
        assert_eq!(mixed.n_own_windows(10, 2), 4);
        mixed.source = Source::FilesAndOwn { files: Vec::new(), seed: 0, tokens: Some(5) };
        assert_eq!(mixed.n_own_windows(10, 2), 2);
    }

    #[test]
    fn bos_takes_the_place_of_each_first_token() {
        let cut = Cut { bos: Some(Token::from(b'^')), ..cut(3, 100) };
        let set = CalibrationSet::new(&texts(&["abcdef"]), Vec::new(), cut, &bytes).unwrap();
        assert_eq!(windows(&set), ["^bc", "^ef"]);
    }

    #[test]
    fn a_text_shorter_than_a_window_is_an_error() {
        let error = CalibrationSet::new(&texts(&["abc"]), Vec::new(), cut(4, 100), &bytes).unwrap_err();
        assert_eq!(error.to_string(), "the text has 3 tokens, less than one window of 4");
    }

    #[test]
    fn the_start_of_a_long_text_gives_the_tokens_of_the_whole() {
        let long = "ab\u{e9}".repeat(10_000);
        let tokens = tokens_of_start(&long, 10, &bytes).unwrap();
        assert_eq!(tokens, bytes(&long).unwrap()[..10]);
    }

    #[test]
    fn built_in_text_is_long_and_says_little_twice() {
        /// Share of its size to which deflate brings a novel at best: those of Jane Austen come to 0.36 and 0.37.
        const NOVEL: f64 = 0.37;
        let text = built_in().unwrap();
        assert!(text.len() >= 1_000_000, "{}", text.len());
        let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::best());
        std::io::Write::write_all(&mut encoder, text.as_bytes()).unwrap();
        let share = encoder.finish().unwrap().len() as f64 / text.len() as f64;
        assert!(share >= NOVEL, "deflate leaves {share} of it");

        let mut counts = std::collections::HashMap::<&[u8], u32>::new();
        for string in text.as_bytes().windows(50) {
            *counts.entry(string).or_default() += 1;
        }
        let (string, count) = counts.into_iter().max_by_key(|&(_, count)| count).unwrap();
        assert!(count <= 5, "{count} times: {:?}", String::from_utf8_lossy(string));
    }

    #[test]
    fn the_start_of_the_built_in_text_has_many_kinds_of_it() {
        /// As much as 8,192 tokens are of most models.
        const START: usize = 32 << 10;
        let text = built_in().unwrap();
        let start = &text[..text.floor_char_boundary(START)];
        // Each kind by words of which it has some.
        let kinds = [
            ["GDP", "republic", "independence"],
            ["    return ", "self.", "function "],
            ["\n- ", "User:", "Assistant:"],
            ["algebra", "equation", "$"],
            [" que ", " para ", " una "],
            [" der ", " und ", " wird "],
            [" said ", " cried ", " replied "],
        ];
        for words in kinds {
            assert!(words.iter().any(|word| start.contains(word)), "none of {words:?}");
        }
        let others = start.chars().filter(|&c| c > '\u{2ff}' && c.is_alphabetic()).count();
        assert!(others >= 100, "{others} letters of other alphabets");
    }
}
