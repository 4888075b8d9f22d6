//! The tensors by which a block writes to the stream. Pure: goes by their names.

/// What the names of a block's output projections begin with, after `blk.<i>.`: weights, scales and biases.
pub(crate) const WRITERS: &[&str] = &[
    "attn_output.",
    "attn_o.",
    "ffn_down.",
    "ffn_down_exps.",
    "ffn_down_shexp.",
    "ffn_down_chexps.",
    "ssm_out.",
    "shortconv.out_proj.",
    "time_mix_output.",
    "channel_mix_value.",
    // What a block adds of its own per-layer embedding (`gemma4.cpp`).
    "proj.",
];

/// The norms after a block's branches, where it has both (`gemma3.cpp`).
///
/// Where it has but the first, that is the norm before its feed-forward network (`qwen3next.cpp`).
pub const POST_NORMS: [&str; 2] = ["post_attention_norm", "post_ffw_norm"];

/// Whether `rest` is the norm of [`POST_NORMS`] called `norm`.
///
/// In most files it ends in `.weight`, in some not (`plamo3.cpp`).
#[must_use]
pub fn is_norm(rest: &str, norm: &str) -> bool {
    rest.strip_suffix(".weight").unwrap_or(rest) == norm
}

/// Whether a factor on a block's output projection goes into `rest`.
///
/// That is its weights, its bias, and the second matrices of adapters beside it (`granite-switch.cpp`). A scale tensor stays as
/// it is: not all graphs read the one that llama.cpp loads for any architecture (`qwen2.cpp` has none for `ffn_down`).
#[must_use]
pub fn is_projection(rest: &str) -> bool {
    WRITERS.iter().any(|writer| {
        let part = rest.strip_prefix(writer);
        matches!(part, Some("weight" | "bias" | "lora_b"))
    })
}

/// Whether healing may give the tensor called `rest` after `blk.<i>.` other weights; none outside of blocks gets any.
#[must_use]
pub fn may_be_healed(rest: &str) -> bool {
    is_projection(rest) || POST_NORMS.iter().any(|norm| is_norm(rest, norm))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_writes_to_the_stream_may_be_healed_and_nothing_else() {
        for rest in ["ffn_down.weight", "attn_output.bias", "post_ffw_norm.weight", "post_attention_norm"] {
            assert!(may_be_healed(rest), "{rest}");
        }
        for rest in ["ffn_up.weight", "attn_q.weight", "attn_norm.weight", "ffn_down.scale", "weight"] {
            assert!(!may_be_healed(rest), "{rest}");
        }
    }
}
