//! Names of blocks in other programs: with a prefix, in another format, as a number.
//!
//! ```text
//! language_model.blk.4.attn_q.weight    a block, with the language model as prefix
//! v.blk.4.attn_q.weight                 a block of another tower
//! model.layers.4.mlp                    in another format
//! q.skip_layers                         [0, 4], as numbers
//! ```

/// Names of language models.
const TEXT: [&str; 5] = ["language_model", "llm", "model", "text", "text_model"];

/// Names of other towers, which stand right before their blocks.
const TOWERS: [&str; 4] = ["a", "mm", "t", "v"];

/// Beginnings of words for other towers.
const TOWER_WORDS: [&str; 6] = ["audio", "clip", "image", "speech", "vision", "visual"];

/// Words of other formats before a block's number.
const BLOCK_WORDS: [&str; 5] = ["block", "blocks", "h", "layer", "layers"];

/// Whether what stands before a block's name is that of the language model.
pub(super) fn is_text(before: &str) -> bool {
    before.split('.').all(|part| TEXT.contains(&part))
}

/// Whether what stands right before `blk.` is llama.cpp's name of another tower.
pub(super) fn is_tower_name(before: &str) -> bool {
    before.rsplit('.').next().is_some_and(|part| TOWERS.contains(&part))
}

/// Whether a part of a name or key is a word for another tower.
pub(super) fn is_of_tower(name: &str) -> bool {
    name.split('.').any(|part| TOWER_WORDS.iter().any(|word| part.starts_with(word)))
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

/// Whether a key is that of something of all or some blocks of the language model.
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
