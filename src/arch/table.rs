//! The table of architectures: one line each where nothing depends on a block's number.

use super::{
    Architecture, BLOCK_PREFIX, CountRule, Derived, FirstRule, FullBlock, LastRule, PartsTensor,
    Period, PositionRule, QueryScale, Recurrent, Stream, WindowPattern, WindowPresence,
};

/// Nothing depends on a block's number or on how many there are.
const fn plain(name: &'static str) -> Architecture {
    with_input(name, "embd")
}

/// As [`plain`], with another name of the node that enters block 0.
const fn with_input(name: &'static str, input: &'static str) -> Architecture {
    of_stream(name, Stream::Named { input })
}

/// As [`plain`], with hidden states that are found another way.
const fn of_stream(name: &'static str, stream: Stream) -> Architecture {
    Architecture {
        name,
        block_prefix: BLOCK_PREFIX,
        stream,
        window: None,
        recurrent: None,
        head_blocks: None,
        leading: &[],
        arrays: &[],
        long_arrays: &[],
        inherited: None,
        parts: &[],
        full_only: &[],
        shared_kv: None,
        positions: &[],
        first: None,
        last: None,
        counts: &[],
        derived: &[],
        lists_since: None,
    }
}

/// As [`plain`], with numbers of blocks that llama.cpp treats in a special way.
const fn with_counts(name: &'static str, counts: &'static [CountRule]) -> Architecture {
    Architecture {
        counts,
        ..plain(name)
    }
}

pub(super) const ARCHITECTURES: &[Architecture] = &[
    plain("llama"),
    plain("llama-embed"),
    plain("maincoder"),
    plain("arcee"),
    plain("arctic"),
    plain("falcon"),
    plain("grok"),
    with_input("gpt2", "inpL"),
    plain("gptneox"),
    with_input("mpt", "inpL"),
    with_input("starcoder", "inpL"),
    plain("starcoder2"),
    plain("refact"),
    of_stream("bert", Stream::LayerOutputNorm),
    of_stream("nomic-bert", Stream::LayerOutputNorm),
    of_stream("jina-bert-v2", Stream::LayerOutputNorm),
    of_stream("jina-bert-v3", Stream::LayerOutputNorm),
    of_stream("neo-bert", Stream::ResidualSum { input: "inp_embd" }),
    of_stream("eurobert", Stream::ResidualSum { input: "inp_embd" }),
    with_input("bloom", "inp_norm-0"),
    plain("stablelm"),
    plain("qwen"),
    plain("qwen2"),
    plain("qwen2moe"),
    plain("qwen2vl"),
    plain("qwen3"),
    plain("qwen3moe"),
    plain("qwen3vl"),
    plain("qwen3vlmoe"),
    plain("qwen3tts"),
    plain("phi2"),
    // Both ignore their sliding-window key: every block attends to everything (phi3.cpp).
    plain("phi3"),
    plain("phimoe"),
    plain("plamo"),
    plain("codeshell"),
    plain("orion"),
    plain("internlm2"),
    with_input("gemma", "inp_scaled"),
    plain("mamba"),
    plain("mamba2"),
    plain("falcon-h1"),
    plain("xverse"),
    plain("dbrx"),
    plain("olmo"),
    plain("olmoe"),
    plain("chatglm"),
    plain("glm4"),
    plain("bitnet"),
    plain("jais"),
    plain("jais2"),
    plain("nemotron"),
    plain("exaone"),
    with_counts(
        "exaone4",
        &[CountRule::Exactly {
            n_blocks: 64,
            what: "gives exaone4 a sliding window and full blocks without rotary embedding (exaone4.cpp)",
        }],
    ),
    plain("rwkv6qwen2"),
    plain("granite"),
    plain("granitemoe"),
    with_input("graniteswitch", "inp_embd"),
    plain("chameleon"),
    plain("plm"),
    plain("bailingmoe"),
    plain("hunyuan-moe"),
    plain("hunyuan-dense"),
    plain("hunyuan_vl"),
    plain("hy_v3"),
    plain("ernie4_5"),
    plain("paddleocr"),
    plain("dream"),
    plain("llada"),
    plain("llada-moe"),
    plain("rnd1"),
    plain("seed_oss"),
    plain("grovemoe"),
    plain("minimax-m2"),
    plain("cogvlm"),
    plain("pangu-embedded"),
    plain("mistral3"),
    with_input("talkie", "inp_norm"),
    plain("pockettts"),
    of_stream(
        "nanbeige",
        Stream::Looped {
            input: "embd",
            loops_key: "num_loops",
        },
    ),
    with_counts(
        "command-r",
        &[CountRule::AtLeast {
            n_blocks: 64,
            what: "loads norms of queries and keys (command-r.cpp)",
        }],
    ),
    Architecture {
        counts: &[CountRule::QueryScale {
            n_blocks: 46,
            scale: QueryScale::Tensor,
        }],
        stream: GEMMA,
        ..windowed("gemma2", 2, FullBlock::Last, WindowPresence::Always)
    },
    Architecture {
        counts: &[CountRule::QueryScale {
            n_blocks: 62,
            scale: QueryScale::Norm,
        }],
        stream: GEMMA,
        ..windowed("gemma3", 6, FullBlock::Last, WindowPresence::IfPositive)
    },
    Architecture {
        stream: GEMMA,
        lists_since: None,
        ..with_full(windowed(
            "gemma-embedding",
            6,
            FullBlock::Last,
            WindowPresence::Always,
        ))
    },
    Architecture {
        stream: Stream::ResidualSum {
            input: "inp_norm-0",
        },
        head_blocks: Some("decision.block_count"),
        ..with_full(windowed(
            "modern-bert",
            3,
            FullBlock::First,
            WindowPresence::IfPositive,
        ))
    },
    Architecture {
        stream: Stream::Stacked {
            input: "inp_stacked",
        },
        parts: PER_LAYER,
        first: Some(FirstRule::These {
            n_blocks: 20,
            why: "the first 10 have sparse activations and the first 20 keys and values of their own (gemma3n.cpp)",
        }),
        ..windowed("gemma3n", 5, FullBlock::Last, WindowPresence::Always)
    },
    Architecture {
        stream: GEMMA,
        parts: PER_LAYER,
        full_only: &["rope_freqs.weight"],
        shared_kv: Some("attention.shared_kv_layers"),
        counts: &[CountRule::AtLeast {
            n_blocks: 2,
            what: "can make a cache of keys and values (llama-model.cpp)",
        }],
        ..flagged("gemma4")
    },
    Architecture {
        block_prefix: "enc.blk.",
        inherited: Some("attn_rel_b.weight"),
        ..of_stream(
            "t5encoder",
            Stream::NamedTo {
                input: "embd",
                last: "result_embd",
            },
        )
    },
    windowed("cohere2", 4, FullBlock::Last, WindowPresence::Always),
    Architecture {
        leading: DENSE,
        ..windowed("cohere2moe", 4, FullBlock::First, WindowPresence::Always)
    },
    windowed("olmo2", 4, FullBlock::Last, WindowPresence::IfPositive),
    windowed("plamo3", 8, FullBlock::Last, WindowPresence::IfPositive),
    windowed("mellum", 4, FullBlock::Last, WindowPresence::IfPositive),
    Architecture {
        stream: Stream::Named { input: "embd_norm" },
        ..windowed("muse-glimmer", 4, FullBlock::Last, WindowPresence::Always)
    },
    windowed("gpt-oss", 2, FullBlock::Last, WindowPresence::Always),
    Architecture {
        leading: DENSE,
        ..windowed("exaone-moe", 4, FullBlock::Last, WindowPresence::Always)
    },
    Architecture {
        leading: DENSE,
        first: Some(FirstRule::FullAttention {
            why: "full blocks rotate as many dimensions as the first block does (laguna.cpp)",
        }),
        ..windowed("laguna", 4, FullBlock::First, WindowPresence::Always)
    },
    flagged("mimo2"),
    Architecture {
        stream: Stream::NamedByReader {
            reader: "attn_norm_in",
            last: "h_nextn",
        },
        ..flagged("step35")
    },
    flagged("spark2_5"),
    flagged("maple"),
    Architecture {
        arrays: &["attention.rope_pattern"],
        ..flagged("granite_swa")
    },
    Architecture {
        leading: DENSE,
        arrays: &["attention.indexer.types"],
        ..with_full(flagged("dots3note"))
    },
    dense_lead("deepseek"),
    dense_lead("deepseek2-ocr"),
    dense_lead("dots1"),
    dense_lead("deepseek32"),
    dense_lead("glm4moe"),
    dense_lead("bailingmoe2"),
    dense_lead("minimax-m3"),
    Architecture {
        counts: &[CountRule::QueryRank],
        derived: &[Derived::QueryRank, Derived::Gating],
        ..dense_lead("deepseek2")
    },
    Architecture {
        counts: &[CountRule::QueryRank],
        derived: &[Derived::QueryRank, Derived::Gating],
        ..dense_lead("mistral4")
    },
    Architecture {
        positions: &[EXPERTS_BY_STEP],
        ..dense_lead("ernie4_5-moe")
    },
    // Every block has a sliding window (deepseek4.cpp).
    Architecture {
        leading: &["hash_layer_count"],
        arrays: &["attention.compress_ratios"],
        long_arrays: &["attention.compress_ratios"],
        ..of_stream(
            "deepseek4",
            Stream::Parallel {
                input: "hc_init",
                output: "l_last",
                streams_key: "hyper_connection.count",
            },
        )
    },
    hybrid("jamba"),
    hybrid("granitehybrid"),
    Architecture {
        stream: TOKENS,
        ..hybrid("lfm2")
    },
    Architecture {
        stream: TOKENS,
        leading: DENSE,
        ..hybrid("lfm2moe")
    },
    Architecture {
        stream: TOKENS,
        leading: DENSE,
        ..hybrid("kimi-linear")
    },
    Architecture {
        stream: Stream::Named { input: "inp_embd" },
        leading: DENSE,
        positions: &[PositionRule {
            period: Period::Key("attn_res.block_size"),
            phase: 0,
            only_with_window: false,
            in_period: true,
            what: "the stream banked before it",
        }],
        ..hybrid("kimi-k3")
    },
    Architecture {
        stream: Stream::Named {
            input: "model.input_embed",
        },
        leading: DENSE,
        ..hybrid("bailingmoe3")
    },
    Architecture {
        stream: TOKENS,
        ..intervals("qwen3next")
    },
    Architecture {
        stream: Stream::Named {
            input: "model.input_embed",
        },
        ..intervals("qwen35")
    },
    Architecture {
        stream: Stream::Named {
            input: "model.input_embed",
        },
        ..intervals("qwen35moe")
    },
    Architecture {
        stream: Stream::Renamed {
            input: "embedding_output",
            output: "ffn_residual",
        },
        ..hybrid("plamo2")
    },
    sub_blocks("nemotron_h"),
    sub_blocks("nemotron_h_moe"),
    plain("openelm"),
    Architecture {
        arrays: &[
            ".xielu.alpha_n",
            ".xielu.alpha_p",
            ".xielu.beta",
            ".xielu.eps",
        ],
        ..plain("apertus")
    },
    Architecture {
        last: Some(LastRule::WithFeedForward {
            why: "the rows of the last block are chosen before its feed-forward network (deci.cpp)",
        }),
        ..plain("deci")
    },
    Architecture {
        derived: &[Derived::ResidualScale],
        ..plain("minicpm")
    },
    Architecture {
        positions: &[NO_ROPE_EVERY_FOURTH],
        ..plain("smollm3")
    },
    Architecture {
        stream: Stream::Named {
            input: "inp_embd_scaled",
        },
        leading: DENSE,
        positions: &[NO_ROPE_EVERY_FOURTH],
        lists_since: None,
        ..windowed("afmoe", 4, FullBlock::Last, WindowPresence::IfPositive)
    },
    Architecture {
        positions: &[
            PositionRule {
                only_with_window: true,
                ..NO_ROPE_EVERY_FOURTH
            },
            EXPERTS_BY_STEP,
        ],
        last: Some(LastRule::ItselfWithoutWindow {
            why: "without a sliding window the last block, and no other, has no rotary embedding (llama4.cpp)",
        }),
        lists_since: None,
        // The scale of its full blocks' queries is an input of its own.
        ..with_full(windowed(
            "llama4",
            4,
            FullBlock::Last,
            WindowPresence::UnlessZero,
        ))
    },
    Architecture {
        counts: &[CountRule::Exactly {
            n_blocks: 4,
            what: "gives every block of smallthinker a rotary embedding (smallthinker.cpp)",
        }],
        positions: &[PositionRule {
            period: Period::Fixed(4),
            phase: 0,
            only_with_window: true,
            in_period: false,
            what: "no rotary embedding",
        }],
        lists_since: None,
        ..windowed(
            "smallthinker",
            4,
            FullBlock::First,
            WindowPresence::IfPositive,
        )
    },
    Architecture {
        positions: &[PositionRule {
            period: Period::Key("moe_every_n_layers"),
            phase: 1,
            only_with_window: false,
            in_period: false,
            what: "experts",
        }],
        ..of_stream("nomic-bert-moe", Stream::LayerOutputNorm)
    },
    Architecture {
        positions: &[PositionRule {
            period: Period::Key("rescale_every_n_layers"),
            phase: -1,
            only_with_window: false,
            in_period: true,
            what: "the stream halved behind it",
        }],
        ..with_input("rwkv6", "token_embd_norm.bias")
    },
    Architecture {
        first: Some(FIRST_VALUES),
        ..with_input("rwkv7", "token_embd_norm.bias")
    },
    Architecture {
        first: Some(FIRST_VALUES),
        ..plain("arwkv7")
    },
];

/// What each block of gemma3n and gemma4 adds of an embedding of its own.
const PER_LAYER: &[PartsTensor] = &[
    PartsTensor {
        name: "per_layer_token_embd.weight",
        dim: 0,
    },
    PartsTensor {
        name: "per_layer_model_proj.weight",
        dim: 1,
    },
];

const GEMMA: Stream = Stream::Named {
    input: "inp_scaled",
};

const TOKENS: Stream = Stream::Named {
    input: "model.embed_tokens",
};

const DENSE: &[&str] = &["leading_dense_block_count"];

const NO_ROPE_EVERY_FOURTH: PositionRule = PositionRule {
    period: Period::Fixed(4),
    phase: -1,
    only_with_window: false,
    in_period: false,
    what: "no rotary embedding",
};

const EXPERTS_BY_STEP: PositionRule = PositionRule {
    period: Period::Key("interleave_moe_layer_step"),
    phase: -1,
    only_with_window: false,
    in_period: false,
    what: "experts",
};

const FIRST_VALUES: FirstRule = FirstRule::Itself {
    why: "it makes the values that all later blocks mix in (rwkv7-base.cpp)",
};

/// The oldest release that `tests/stock/lists.sh` was run with, and saw to read lists. It sees nothing where the model has no
/// logits (gemma-embedding), or where another kind is tied to the same period, so that no cut that is allowed shifts it
/// (afmoe, llama4, smallthinker).
const SEEN: Option<&str> = Some("0.5.0");

/// A pattern of sliding windows with a built-in period.
const fn windowed(
    name: &'static str,
    period: u64,
    full: FullBlock,
    present: WindowPresence,
) -> Architecture {
    Architecture {
        window: Some(WindowPattern {
            period: Some(period),
            full,
            present,
            needs_full: false,
        }),
        lists_since: SEEN,
        ..plain(name)
    }
}

/// As `rules`, where at least one block without a window must stay, too.
const fn with_full(rules: Architecture) -> Architecture {
    let window = match rules.window {
        Some(window) => Some(WindowPattern {
            needs_full: true,
            ..window
        }),
        None => None,
    };
    Architecture { window, ..rules }
}

/// A pattern of sliding windows that the file says block by block.
const fn flagged(name: &'static str) -> Architecture {
    Architecture {
        window: Some(WindowPattern {
            period: None,
            full: FullBlock::Last,
            present: WindowPresence::Always,
            needs_full: false,
        }),
        ..plain(name)
    }
}

/// Leading blocks without experts.
const fn dense_lead(name: &'static str) -> Architecture {
    Architecture {
        leading: DENSE,
        ..plain(name)
    }
}

/// Blocks without KV heads are recurrent.
const fn hybrid(name: &'static str) -> Architecture {
    Architecture {
        recurrent: Some(Recurrent::WithoutKvHeads),
        ..plain(name)
    }
}

/// Every block is attention, recurrent or a feed-forward network alone (`nemotron-h.cpp`).
const fn sub_blocks(name: &'static str) -> Architecture {
    Architecture {
        recurrent: Some(Recurrent::WithoutKvHeadsAndFeedForward),
        ..of_stream(
            name,
            Stream::Renamed {
                input: "embd",
                output: "nemotron_h_block_out",
            },
        )
    }
}

/// Recurrent blocks with attention at intervals.
const fn intervals(name: &'static str) -> Architecture {
    Architecture {
        recurrent: Some(Recurrent::Interval {
            key: "full_attention_interval",
            default: 4,
        }),
        lists_since: SEEN,
        ..plain(name)
    }
}

/// An architecture that is not in the table, taken for a plain one on the user's word.
pub(super) const TRUSTED: Architecture = plain("");

/// Architectures that cannot be shortened, each with the reason.
pub(super) const REFUSED: &[(&str, &str)] = &[
    (
        "clip",
        "it is a projector for images or sound, not a text model",
    ),
    (
        "t5",
        "it has blocks of an encoder and of a decoder, and one number does not say which",
    ),
    ("gptj", "llama.cpp names it but cannot evaluate it"),
    ("wavtokenizer-dec", "it is no stack of residual blocks"),
    (
        "eagle3",
        "it is a draft head, bound to blocks of the model that it drafts for",
    ),
    (
        "dflash",
        "it is a draft head, bound to blocks of the model that it drafts for",
    ),
    (
        "gemma4-assistant",
        "it is a draft head, bound to blocks of the model that it drafts for",
    ),
    ("clef", "its blocks feed a decision head"),
    (
        "glm-dsa",
        "some of its blocks attend to what an earlier block chose, and which sets keep them together is not worked out \
         (glm-dsa.cpp)",
    ),
    (
        "hy_v4",
        "some of its blocks attend to what an earlier block chose, and which sets keep them together is not worked out \
         (hy-v4.cpp)",
    ),
    (
        "glm5-next",
        "some of its blocks attend to what an earlier block chose, and which sets keep them together is not worked out \
         (glm5-next.cpp)",
    ),
    (
        "qwen4exp",
        "an embedding of its own enters at one block by its number, and which sets keep that is not worked out (qwen4exp.cpp)",
    ),
    (
        "hrm_text",
        "two stacks of its blocks run in turns, and their numbers of blocks depend on each other (hrm-text.cpp)",
    ),
    (
        "baichuan",
        "llama.cpp chooses its position embedding by the number of blocks (baichuan.cpp)",
    ),
    (
        "minimax-01",
        "the decay of its blocks depends on their numbers and on how many there are (minimax-01.cpp)",
    ),
    (
        "minicpm3",
        "llama.cpp scales its blocks by their number (minicpm3.cpp)",
    ),
];
