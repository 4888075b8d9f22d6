//! Provenance: what the output says about where it comes from.

/// What the output says about where it comes from, under `gguf_shorten.`.
#[derive(Clone, Debug)]
pub struct Provenance {
    /// Hash of the input's bytes, a split model's parts in order.
    pub parent_blake3: blake3::Hash,
    /// How the blocks were chosen. The word of a [`ChosenBy`](super::ChosenBy), or what a file says in its place.
    pub method: String,
    /// What made up for the removed blocks. The word of a [`HealMethod`](super::HealMethod), or what a file says in its place.
    pub heal: String,
}

impl Provenance {
    /// The parent's hash in a file that is evaluated but not kept.
    pub const DRAFT: blake3::Hash = blake3::Hash::from_bytes([0; blake3::OUT_LEN]);
}
