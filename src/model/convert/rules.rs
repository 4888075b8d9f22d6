//! The table of Ollama's layouts.
//!
//! Ollama itself hands such files to llama.cpp's loader through a layer that renames entries and tensors in memory (`ollama:
//! llama/compat/llama-ollama-compat.cpp`, a function `handle_<layout>` each). Its own converters made them (`ollama:
//! convert/convert_<layout>.go`). Every rule here is one of those functions, as far as it leaves the bytes of tensors alone;
//! what `llama.cpp: src/models` reads was compared with it. Where the layer changes bytes, the layout is refused.

/// One layout.
pub(super) struct Rule {
    /// `general.architecture` of such a file.
    pub(super) found: &'static str,
    /// Under which llama.cpp reads it.
    pub(super) stock: &'static str,
    /// Any of the signs that tell it from a stock file. None if the architecture's name does.
    pub(super) signs: &'static [Sign],
    /// Prefixes of the names of tensors outside of the text part.
    pub(super) tensors_left_out: &'static [&'static str],
    /// The same of keys, below the architecture's prefix.
    pub(super) keys_left_out: &'static [&'static str],
    /// Keys below the architecture's prefix, and what llama.cpp calls them.
    pub(super) moved: &'static [(&'static str, &'static str)],
    /// Names of tensors, whole or after `blk.<i>.`, and what llama.cpp calls them. With a dot at the end, what they begin with.
    pub(super) renamed: &'static [(&'static str, &'static str)],
    /// What is to be done besides, in this order.
    pub(super) steps: &'static [Step],
    /// What keeps it from being read.
    pub(super) refused: &'static [Refusal],
}

/// What a layout is known by. A key that begins with a dot lies below the architecture's prefix.
pub(super) enum Sign {
    Key(&'static str),
    NoKey(&'static str),
    /// A tensor whose name begins so.
    Tensors(&'static str),
    /// A tensor of a block with that name after the block's number.
    InBlock(&'static str),
    /// The output norm has the name used in other architectures.
    NormNamedAsOthers,
    /// Two embeddings of tokens are not for the same number of them.
    OtherVocabularies,
    TextIs(&'static str, &'static str),
    /// A number that is there and not 0.
    Positive(&'static str),
}

/// A change of entries. A key that begins with a dot lies below the architecture's prefix.
#[derive(Clone, Copy)]
pub(super) enum Step {
    /// A number or text where the file says nothing.
    F32(&'static str, f32),
    U32(&'static str, u32),
    Text(&'static str, &'static str),
    /// A number or text whatever the file says.
    SetU32(&'static str, u32),
    SetText(&'static str, &'static str),
    /// A text where the file says nothing, or `default`.
    TextUnlessSaid(&'static str, &'static str),
    /// A text where the file says another one.
    TextInPlaceOf(&'static str, &'static str, &'static str),
    Remove(&'static str),
    /// A dimension of a block's tensor, where the file says nothing.
    Width {
        name: &'static str,
        rest: &'static str,
        dim: usize,
    },
    /// The same, where the file says otherwise.
    TrueWidth {
        name: &'static str,
        rest: &'static str,
        dim: usize,
    },
    /// A dimension of a tensor.
    WidthOf {
        name: &'static str,
        tensor: &'static str,
        dim: usize,
    },
    /// A missing number: dimension 0 of a block's tensor over the number under `of`.
    Shares {
        name: &'static str,
        rest: &'static str,
        of: &'static str,
    },
    /// A list of three sections of rotated dimensions gets a fourth.
    Sections {
        from: &'static str,
        to: &'static str,
    },
    /// Qwen3-VL's rotary sections for heads of 128, where the file has none.
    SectionsOf128,
    /// Replaces a list, 0 for recurrent blocks, by the others' number.
    Largest(&'static str),
    /// A missing number: the length of a list of the file.
    LengthOf {
        name: &'static str,
        list: &'static str,
    },
    /// No more tokens than the embedding has rows.
    Vocabulary,
    /// The tokens that end a text, one by one.
    EndTokens,
    /// What Gemma 3 does to reach its full context.
    LongContext,
    /// The lengths of latent attention.
    AbsorbedLengths,
}

/// What keeps a file of a layout from being read. A key that begins with a dot lies below the architecture's prefix.
pub(super) enum Refusal {
    Always(&'static str),
    /// A tensor whose name begins so after the block's number.
    InBlock(&'static str, &'static str),
    Key(&'static str, &'static str),
    /// A flag that is there and not set.
    False(&'static str, &'static str),
}

/// The key `name`. After a dot it is below the prefix of `architecture`.
pub(super) fn key(architecture: &str, name: &str) -> String {
    match name.starts_with('.') {
        true => format!("{architecture}{name}"),
        false => name.to_owned(),
    }
}

/// Vision tower and projector.
const VISION: &[&str] = &["v.", "mm."];
const VISION_KEYS: &[&str] = &["vision.", "mm."];

const fn rule(found: &'static str, stock: &'static str) -> Rule {
    Rule {
        found,
        stock,
        signs: &[],
        tensors_left_out: &[],
        keys_left_out: &[],
        moved: &[],
        renamed: &[],
        steps: &[],
        refused: &[],
    }
}

const fn refused(found: &'static str, refused: &'static [Refusal]) -> Rule {
    Rule { refused, ..rule(found, found) }
}

/// `qwen3vl` and `qwen3vlmoe`: `handle_qwen3vl`.
const fn qwen3vl(name: &'static str) -> Rule {
    Rule {
        signs: &[Sign::Tensors("v."), Sign::Tensors("mm."), Sign::Key(".vision.block_count")],
        tensors_left_out: VISION,
        keys_left_out: VISION_KEYS,
        steps: &[
            Step::LengthOf { name: ".n_deepstack_layers", list: ".vision.deepstack_visual_indexes" },
            Step::SectionsOf128,
        ],
        ..rule(name, name)
    }
}

/// `qwen35` and `qwen35moe`: `apply_qwen35_text_fixes`, without the blocks for multi-token prediction, whose norms would
/// have to be changed.
const fn qwen35(name: &'static str, signs: &'static [Sign]) -> Rule {
    Rule {
        signs,
        tensors_left_out: &["v.", "mm.", "mtp."],
        keys_left_out: VISION_KEYS,
        renamed: &[("ssm_dt", "ssm_dt.bias")],
        steps: &[
            Step::Largest(".attention.head_count_kv"),
            Step::Sections { from: ".rope.dimension_sections", to: ".rope.dimension_sections" },
        ],
        refused: &[Refusal::False(".ssm.v_head_reordered", "its value heads stand in another order")],
        ..rule(name, name)
    }
}

const LATENT: &[(&str, &str)] =
    &[("ffn_latent_in.", "ffn_latent_down."), ("ffn_latent_out.", "ffn_latent_up.")];
const LATENT_STEPS: &[Step] =
    &[Step::Width { name: ".moe_latent_size", rest: "ffn_latent_in.weight", dim: 1 }];

/// In this order: of two rules for one architecture the first that shows.
pub(super) const RULES: &[Rule] = &[
    // handle_embeddinggemma
    Rule {
        signs: &[Sign::Tensors("dense.0.")],
        renamed: &[
            ("dense.0.weight", "dense_2.weight"),
            ("dense.1.weight", "dense_3.weight"),
            ("norm.weight", "output_norm.weight"),
        ],
        steps: &[
            Step::Remove(".attention.causal"),
            Step::Remove(".attention.sliding_window_pattern"),
            Step::F32(".rope.freq_base_swa", 10_000.0),
            Step::WidthOf { name: ".dense_2_feat_in", tensor: "dense.0.weight", dim: 0 },
            Step::WidthOf { name: ".dense_2_feat_out", tensor: "dense.0.weight", dim: 1 },
            Step::WidthOf { name: ".dense_3_feat_in", tensor: "dense.1.weight", dim: 0 },
            Step::WidthOf { name: ".dense_3_feat_out", tensor: "dense.1.weight", dim: 1 },
        ],
        ..rule("gemma3", "gemma-embedding")
    },
    // handle_gemma3
    Rule {
        signs: &[
            Sign::Key(".mm.tokens_per_image"),
            Sign::Tensors("v."),
            Sign::Tensors("mm."),
            Sign::Key(".rope.global.freq_base"),
            Sign::Key(".rope.local.freq_base"),
            Sign::NoKey(".attention.layer_norm_rms_epsilon"),
        ],
        tensors_left_out: VISION,
        keys_left_out: VISION_KEYS,
        moved: &[("rope.global.freq_base", "rope.freq_base"), ("rope.local.freq_base", "rope.freq_base_swa")],
        steps: &[
            Step::F32(".attention.layer_norm_rms_epsilon", 1e-6),
            Step::F32(".rope.freq_base", 1_000_000.0),
            Step::F32(".rope.freq_base_swa", 10_000.0),
            Step::LongContext,
            Step::Vocabulary,
        ],
        refused: &[Refusal::Key(
            ".rope.scaling.extrapolation_factor",
            "its rotary embedding is scaled by YaRN, whose numbers stand under keys for which no others are known",
        )],
        ..rule("gemma3", "gemma3")
    },
    // handle_gemma3n
    Rule {
        signs: &[Sign::OtherVocabularies],
        ..refused(
            "gemma3n",
            &[Refusal::Always(
                "its embedding has rows for tokens of images and sound, which would have to be cut off",
            )],
        )
    },
    // handle_gemma4; split experts are as good to llama.cpp as fused ones (gemma4.cpp).
    Rule {
        signs: &[
            Sign::Tensors("a."),
            Sign::Tensors("v."),
            Sign::Tensors("mm."),
            Sign::Tensors("model.vision_tower."),
            Sign::TextIs("tokenizer.ggml.model", "llama"),
            Sign::InBlock("ffn_gate_inp.per_expert_scale"),
        ],
        tensors_left_out: &["a.", "v.", "mm.", "model.vision_tower."],
        keys_left_out: &["vision.", "audio.", "mm."],
        renamed: &[("ffn_gate_inp.per_expert_scale", "ffn_down_exps.scale")],
        steps: &[Step::TextInPlaceOf("tokenizer.ggml.model", "llama", "gemma4")],
        ..rule("gemma4", "gemma4")
    },
    // handle_gptoss
    Rule {
        renamed: &[
            ("attn_out.", "attn_output."),
            ("attn_sinks", "attn_sinks.weight"),
            ("ffn_norm.", "post_attention_norm."),
        ],
        steps: &[
            Step::Width { name: ".expert_feed_forward_length", rest: "ffn_gate_exps.weight", dim: 1 },
            Step::Text(".rope.scaling.type", "yarn"),
            Step::SetText("tokenizer.ggml.pre", "gpt-4o"),
        ],
        // As convert_gptoss.go first wrote them; openai-moe.cpp reads the two apart.
        refused: &[Refusal::InBlock(
            "ffn_gate_up_exps.",
            "gate and up projections of its experts are interleaved in one tensor",
        )],
        ..rule("gptoss", "gpt-oss")
    },
    // handle_qwen25vl
    Rule {
        tensors_left_out: VISION,
        keys_left_out: VISION_KEYS,
        steps: &[Step::Sections { from: ".rope.mrope_section", to: ".rope.dimension_sections" }],
        ..rule("qwen25vl", "qwen2vl")
    },
    qwen3vl("qwen3vl"),
    qwen3vl("qwen3vlmoe"),
    qwen35(
        "qwen35",
        &[
            Sign::Key(".vision.block_count"),
            Sign::Key(".image_token_id"),
            Sign::Key(".ssm.v_head_reordered"),
            Sign::Key(".rope.mrope_interleaved"),
            Sign::Tensors("mtp."),
            Sign::Tensors("v."),
        ],
    ),
    qwen35(
        "qwen35moe",
        &[
            Sign::Key(".vision.block_count"),
            Sign::Key(".image_token_id"),
            Sign::Key(".ssm.v_head_reordered"),
            Sign::Key(".feed_forward_length"),
            Sign::Key(".rope.mrope_interleaved"),
            Sign::Tensors("mtp."),
            Sign::Tensors("v."),
        ],
    ),
    // handle_qwen3next
    Rule {
        signs: &[Sign::InBlock("ssm_dt")],
        renamed: &[("ssm_dt", "ssm_dt.bias")],
        steps: &[Step::Largest(".attention.head_count_kv")],
        ..rule("qwen3next", "qwen3next")
    },
    // handle_olmo3
    rule("olmo3", "olmo2"),
    // handle_mistral3
    Rule {
        signs: &[
            Sign::Tensors("v."),
            Sign::Tensors("mm."),
            Sign::Key(".rope.scaling.beta_fast"),
            Sign::Key(".rope.scaling.mscale_all_dim"),
            Sign::Key(".rope.scaling_beta"),
        ],
        tensors_left_out: VISION,
        keys_left_out: VISION_KEYS,
        moved: &[
            ("rope.scaling.beta_fast", "rope.scaling.yarn_beta_fast"),
            ("rope.scaling.beta_slow", "rope.scaling.yarn_beta_slow"),
            ("rope.scaling.mscale_all_dim", "rope.scaling.yarn_log_multiplier"),
            ("rope.scaling_beta", "attention.temperature_scale"),
        ],
        steps: &[Step::TextUnlessSaid("tokenizer.ggml.pre", "tekken")],
        ..rule("mistral3", "mistral3")
    },
    // handle_llama4
    Rule {
        signs: &[Sign::Tensors("v."), Sign::Tensors("mm.")],
        tensors_left_out: VISION,
        keys_left_out: VISION_KEYS,
        ..rule("llama4", "llama4")
    },
    // handle_glm4moelite
    Rule {
        steps: &[
            Step::SetU32(".attention.head_count_kv", 1),
            Step::AbsorbedLengths,
            Step::U32(".expert_group_count", 1),
            Step::U32(".expert_group_used_count", 1),
            Step::SetText("tokenizer.ggml.pre", "glm4"),
            Step::EndTokens,
        ],
        ..rule("glm4moelite", "deepseek2")
    },
    // handle_deepseekocr
    Rule {
        tensors_left_out: &["s.", "v.", "mm."],
        keys_left_out: &["vision.", "sam.", "mm."],
        steps: &[
            Step::F32(".attention.layer_norm_rms_epsilon", 1e-6),
            Step::Width { name: ".expert_feed_forward_length", rest: "ffn_down_exps.weight", dim: 0 },
            Step::Shares {
                name: ".expert_shared_count",
                rest: "ffn_down_shexp.weight",
                of: ".expert_feed_forward_length",
            },
        ],
        ..rule("deepseekocr", "deepseek2-ocr")
    },
    // handle_lfm2
    Rule {
        signs: &[Sign::NormNamedAsOthers],
        renamed: &[("output_norm.weight", "token_embd_norm.weight")],
        steps: &[
            Step::SetText("tokenizer.ggml.pre", "lfm2"),
            Step::TrueWidth { name: ".feed_forward_length", rest: "ffn_gate.weight", dim: 1 },
        ],
        ..rule("lfm2", "lfm2")
    },
    // handle_laguna
    Rule {
        signs: &[
            Sign::Key(".rope.swa.dimension_count"),
            Sign::Key(".rope.swa.freq_base"),
            Sign::InBlock("attn_g.weight"),
        ],
        moved: &[
            ("rope.swa.dimension_count", "rope.dimension_count_swa"),
            ("rope.swa.freq_base", "rope.freq_base_swa"),
        ],
        renamed: &[("attn_g.", "attn_gate.")],
        ..rule("laguna", "laguna")
    },
    // handle_nemotron_h_moe
    Rule {
        signs: &[Sign::InBlock("ffn_latent_in.weight"), Sign::Tensors("mtp.")],
        tensors_left_out: &["mtp."],
        renamed: LATENT,
        steps: LATENT_STEPS,
        ..rule("nemotron_h_moe", "nemotron_h_moe")
    },
    // handle_nemotron_h_omni: with experts, and without.
    Rule {
        signs: &[Sign::Positive(".expert_count"), Sign::Positive(".expert_used_count")],
        tensors_left_out: &["a.", "v.", "mm.", "mtp."],
        keys_left_out: &["vision.", "audio.", "mm."],
        renamed: LATENT,
        steps: LATENT_STEPS,
        ..rule("nemotron_h_omni", "nemotron_h_moe")
    },
    Rule {
        tensors_left_out: &["a.", "v.", "mm."],
        keys_left_out: &["vision.", "audio.", "mm."],
        ..rule("nemotron_h_omni", "nemotron_h")
    },
    // handle_glmocr
    refused(
        "glmocr",
        &[Refusal::Always("gate and up projections, which llama.cpp reads as one tensor, are two")],
    ),
    // convert_mllama.go; llama.cpp has no such architecture.
    refused(
        "mllama",
        &[Refusal::Always("some of its blocks attend to an image, which no architecture of llama.cpp does")],
    ),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::arch::Architecture;

    #[test]
    fn what_is_read_under_another_name_has_rules() {
        for rule in RULES {
            let is_refused = matches!(rule.refused, [Refusal::Always(_), ..]);
            assert!(is_refused || Architecture::find(rule.stock).is_some(), "{}", rule.stock);
            // Else stock files would be taken for it.
            let is_own = Architecture::find(rule.found).is_none();
            assert!(is_own || !rule.signs.is_empty(), "{}", rule.found);
        }
    }

    #[test]
    fn a_block_of_a_vision_tower_is_left_out_whole() {
        for rule in RULES {
            let leaves_out = |name: &str| rule.tensors_left_out.iter().any(|prefix| name.starts_with(prefix));
            assert!(!leaves_out("blk.0.attn_q.weight") && !leaves_out("output.weight"));
            if leaves_out("mm.0.weight") {
                assert!(leaves_out("v.blk.0.attn_q.weight"), "{}", rule.found);
            }
        }
    }
}
