//! Names of blocks in other programs: with a prefix, in another format, as a number.
//!
//! ```text
//! language_model.blk.4.attn_q.weight    a block, with the language model as prefix
//! v.blk.4.attn_q.weight                 a block of another tower
//! model.layers.4.mlp                    in another format
//! q.skip_layers                         [0, 4], as numbers
//! model.layers[4], BLK\.4, layer_4      in a text
//! ```

/// Names of language models.
const TEXT: [&str; 5] = ["language_model", "llm", "model", "text", "text_model"];

/// Names of other towers, which stand right before their blocks.
const TOWERS: [&str; 4] = ["a", "mm", "t", "v"];

/// Beginnings of words for other towers.
const TOWER_WORDS: [&str; 6] = ["audio", "clip", "image", "speech", "vision", "visual"];

/// Words of other formats before a block's number.
const BLOCK_WORDS: [&str; 5] = ["block", "blocks", "h", "layer", "layers"];

/// Whether the text before a block's name is the language model's.
pub(super) fn is_text(before: &str) -> bool {
    before.split('.').all(|part| TEXT.contains(&part))
}

/// Whether what stands right before `blk.` is llama.cpp's name of another tower.
pub(super) fn is_tower_name(before: &str) -> bool {
    before.rsplit('.').next().is_some_and(|part| TOWERS.contains(&part))
}

/// Whether a name or key has a word for another tower.
pub(super) fn is_of_tower(name: &str) -> bool {
    tower_word(name) < name.len()
}

/// Where the first part that is a word for another tower begins; the end of a name without one.
pub(super) fn tower_word(name: &str) -> usize {
    let is_word = |part: &str| TOWER_WORDS.iter().any(|word| part.starts_with(word));
    let parts = name.split('.').take_while(|part| !is_word(part));
    parts.map(|part| part.len() + 1).sum::<usize>().min(name.len())
}

/// The number of the block at `at` of a name. The name has the words of another format.
pub(super) fn number_at(name: &str, at: usize) -> Option<usize> {
    let mut parts = name[at..].split('.');
    let word = parts.next()?;
    let number = parts.next()?;
    // A letter alone is a word of nothing.
    let is_word = BLOCK_WORDS.contains(&word) && (at > 0 || word != "h");
    let is_number = is_word && !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
    number.parse().ok().filter(|_| is_number)
}

/// The first block of a name in the words of another format. Where it stands, and its number.
pub(super) fn first_number(name: &str) -> Option<(usize, usize)> {
    let starts = name.match_indices('.').map(|(dot, _)| dot + 1);
    [0].into_iter().chain(starts).find_map(|at| Some((at, number_at(name, at)?)))
}

/// A block in a text.
pub(super) struct Spoken {
    /// The name's parts before the block word, each with its dot.
    pub(super) before: String,
    /// Whether the word is llama.cpp's.
    pub(super) is_own: bool,
    pub(super) number: usize,
}

/// How much of a text before a number is looked at.
const NAME_BYTES: usize = 64;

/// The blocks that a text mentions, in the words of any format. Takes time in proportion to the text.
pub(super) fn spoken<'t>(text: &'t [u8], prefix: &'t str) -> impl Iterator<Item = Spoken> + 't {
    let mut at = 0;
    std::iter::from_fn(move || {
        loop {
            let start = at + text[at..].iter().position(u8::is_ascii_digit)?;
            let n_digits = text[start..].iter().take_while(|byte| byte.is_ascii_digit()).count();
            at = start + n_digits;
            let number = str::from_utf8(&text[start..at]).ok().and_then(|digits| digits.parse().ok());
            let found = spoken_of(&text[start.saturating_sub(NAME_BYTES)..start], prefix);
            if let (Some(number), Some((before, is_own))) = (number, found) {
                return Some(Spoken { before, is_own, number });
            }
        }
    })
}

/// What stands in a text before a block's number: as of [`Spoken`], if it ends in a word for a block.
fn spoken_of(text: &[u8], prefix: &str) -> Option<(String, bool)> {
    let is_between = |byte: &&u8| b"._/[\\".contains(byte);
    let text = &text[..text.len() - text.iter().rev().take(2).take_while(is_between).count()];
    let is_name = |byte: &&u8| byte.is_ascii_alphanumeric() || b"._/-".contains(byte);
    let n_bytes = text.iter().rev().take_while(is_name).count();
    let name = text[text.len() - n_bytes..].to_ascii_lowercase();
    let name = str::from_utf8(&name).ok()?.replace(['_', '/', '-'], ".");
    let word = name.rsplit('.').next()?;
    let (before, is_own) = match name.strip_suffix(prefix.trim_end_matches('.')) {
        Some(before) => (before, true),
        // A letter alone is a word of nothing.
        None if word.len() > 1 && BLOCK_WORDS.contains(&word) => (&name[..name.len() - word.len()], false),
        None => return None,
    };
    (before.is_empty() || before.ends_with('.')).then(|| (before.to_owned(), is_own))
}

/// Whether a key is about blocks of the language model.
pub(super) fn is_of_blocks(key: &str) -> bool {
    let is_number = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    ["blk", "block", "layer"].iter().any(|word| key.contains(word))
        && !is_of_tower(key)
        && !key.split('.').any(is_number)
}

/// Whether numbers under a key are sizes.
pub(super) fn is_size(key: &str) -> bool {
    let last = key.rsplit('.').next().unwrap_or(key);
    ["count", "length", "shape", "size"].iter().any(|word| last.contains(word))
}
