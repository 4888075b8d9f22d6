//! The table of architectures: one line each where nothing depends on a block's number.

use super::family::{
    DENSE, EXPERTS_BY_STEP, FIRST_VALUES, GEMMA, NO_ROPE_EVERY_FOURTH, PER_LAYER, TOKENS, dense_lead,
    flagged, hybrid, intervals, of_stream, plain, sub_blocks, windowed, with_counts, with_full, with_input,
};
use super::{
    Architecture, CountRule, Derived, FirstRule, FullBlock, LastRule, Needed, Period, PositionRule,
    QueryScale, Stream, Which, WindowPresence,
};

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
    of_stream("nanbeige", Stream::Looped { input: "embd", loops_key: "num_loops" }),
    with_counts(
        "command-r",
        &[CountRule::AtLeast { n_blocks: 64, what: "loads norms of queries and keys (command-r.cpp)" }],
    ),
    Architecture {
        counts: &[CountRule::QueryScale { n_blocks: 46, scale: QueryScale::Tensor }],
        stream: GEMMA,
        ..windowed("gemma2", 2, FullBlock::Last, WindowPresence::Always)
    },
    Architecture {
        counts: &[CountRule::QueryScale { n_blocks: 62, scale: QueryScale::Norm }],
        stream: GEMMA,
        ..windowed("gemma3", 6, FullBlock::Last, WindowPresence::IfPositive)
    },
    Architecture {
        stream: GEMMA,
        lists_since: None,
        ..with_full(windowed("gemma-embedding", 6, FullBlock::Last, WindowPresence::Always))
    },
    Architecture {
        stream: Stream::ResidualSum { input: "inp_norm-0" },
        head_blocks: Some("decision.block_count"),
        ..with_full(windowed("modern-bert", 3, FullBlock::First, WindowPresence::IfPositive))
    },
    Architecture {
        stream: Stream::Stacked { input: "inp_stacked" },
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
        ..of_stream("t5encoder", Stream::NamedTo { input: "embd", last: "result_embd" })
    },
    windowed("cohere2", 4, FullBlock::Last, WindowPresence::Always),
    Architecture { leading: DENSE, ..windowed("cohere2moe", 4, FullBlock::First, WindowPresence::Always) },
    windowed("olmo2", 4, FullBlock::Last, WindowPresence::IfPositive),
    windowed("plamo3", 8, FullBlock::Last, WindowPresence::IfPositive),
    windowed("mellum", 4, FullBlock::Last, WindowPresence::IfPositive),
    Architecture {
        stream: Stream::Named { input: "embd_norm" },
        ..windowed("muse-glimmer", 4, FullBlock::Last, WindowPresence::Always)
    },
    windowed("gpt-oss", 2, FullBlock::Last, WindowPresence::Always),
    Architecture { leading: DENSE, ..windowed("exaone-moe", 4, FullBlock::Last, WindowPresence::Always) },
    Architecture {
        leading: DENSE,
        first: Some(FirstRule::FullAttention {
            why: "full blocks rotate as many dimensions as the first block does (laguna.cpp)",
        }),
        ..windowed("laguna", 4, FullBlock::First, WindowPresence::Always)
    },
    flagged("mimo2"),
    Architecture {
        stream: Stream::NamedByReader { reader: "attn_norm_in", last: "h_nextn" },
        ..flagged("step35")
    },
    flagged("spark2_5"),
    flagged("maple"),
    Architecture {
        arrays: &["attention.rope_pattern"],
        // The input of positions is not guarded (granite-swa.cpp, llama-graph.cpp: llm_graph_input_pos).
        needed: &[Needed {
            blocks: Which::WithAny("attention.rope_pattern"),
            what: "blocks with rotary embedding",
        }],
        ..flagged("granite_swa")
    },
    Architecture { leading: DENSE, arrays: &["attention.indexer.types"], ..with_full(flagged("dots3note")) },
    dense_lead("deepseek"),
    dense_lead("deepseek2-ocr"),
    dense_lead("dots1"),
    dense_lead("deepseek32"),
    dense_lead("glm4moe"),
    dense_lead("bailingmoe2"),
    // The inputs of its indexer are not guarded (minimax-m3.cpp: llm_graph_input_msa::set_input).
    Architecture {
        needed: &[Needed {
            blocks: Which::Behind("leading_dense_block_count"),
            what: "blocks with experts and an indexer",
        }],
        ..dense_lead("minimax-m3")
    },
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
    Architecture { positions: &[EXPERTS_BY_STEP], ..dense_lead("ernie4_5-moe") },
    // Every block has a sliding window (deepseek4.cpp).
    Architecture {
        leading: &["hash_layer_count"],
        arrays: &["attention.compress_ratios"],
        long_arrays: &["attention.compress_ratios"],
        // The size of its indexer's rotation is found by dividing the width of the heads of that cache's blocks, which without
        // such a block is 0 (llama-kv-cache-dsv4.cpp, llama-kv-cache.cpp: llama_kv_cache).
        needed: &[Needed {
            blocks: Which::With("attention.compress_ratios", 4),
            what: "blocks with keys compressed 4:1",
        }],
        ..of_stream(
            "deepseek4",
            Stream::Parallel { input: "hc_init", output: "l_last", streams_key: "hyper_connection.count" },
        )
    },
    hybrid("jamba"),
    hybrid("granitehybrid"),
    Architecture { stream: TOKENS, ..hybrid("lfm2") },
    Architecture { stream: TOKENS, leading: DENSE, ..hybrid("lfm2moe") },
    Architecture { stream: TOKENS, leading: DENSE, ..hybrid("kimi-linear") },
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
        stream: Stream::Named { input: "model.input_embed" },
        leading: DENSE,
        ..hybrid("bailingmoe3")
    },
    Architecture { stream: TOKENS, ..intervals("qwen3next") },
    Architecture { stream: Stream::Named { input: "model.input_embed" }, ..intervals("qwen35") },
    Architecture { stream: Stream::Named { input: "model.input_embed" }, ..intervals("qwen35moe") },
    Architecture {
        stream: Stream::Renamed { input: "embedding_output", output: "ffn_residual" },
        ..hybrid("plamo2")
    },
    sub_blocks("nemotron_h"),
    sub_blocks("nemotron_h_moe"),
    plain("openelm"),
    Architecture {
        arrays: &[".xielu.alpha_n", ".xielu.alpha_p", ".xielu.beta", ".xielu.eps"],
        ..plain("apertus")
    },
    Architecture {
        // The inputs of attention are not guarded (deci.cpp, llama-graph.cpp: llm_graph_input_attn_kv).
        needed: &[Needed {
            blocks: Which::WithAny("attention.head_count_kv"),
            what: "blocks with keys and values",
        }],
        last: Some(LastRule::WithFeedForward {
            why: "the rows of the last block are chosen before its feed-forward network (deci.cpp)",
        }),
        ..plain("deci")
    },
    Architecture { derived: &[Derived::ResidualScale], ..plain("minicpm") },
    Architecture { positions: &[NO_ROPE_EVERY_FOURTH], ..plain("smollm3") },
    Architecture {
        stream: Stream::Named { input: "inp_embd_scaled" },
        leading: DENSE,
        positions: &[NO_ROPE_EVERY_FOURTH],
        lists_since: None,
        ..windowed("afmoe", 4, FullBlock::Last, WindowPresence::IfPositive)
    },
    Architecture {
        positions: &[PositionRule { only_with_window: true, ..NO_ROPE_EVERY_FOURTH }, EXPERTS_BY_STEP],
        last: Some(LastRule::ItselfWithoutWindow {
            why: "without a sliding window the last block, and no other, has no rotary embedding (llama4.cpp)",
        }),
        lists_since: None,
        // The scale of its full blocks' queries is an input of its own.
        ..with_full(windowed("llama4", 4, FullBlock::Last, WindowPresence::UnlessZero))
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
        ..windowed("smallthinker", 4, FullBlock::First, WindowPresence::IfPositive)
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
            what: "the stream halved after it",
        }],
        ..with_input("rwkv6", "token_embd_norm.bias")
    },
    Architecture { first: Some(FIRST_VALUES), ..with_input("rwkv7", "token_embd_norm.bias") },
    Architecture { first: Some(FIRST_VALUES), ..plain("arwkv7") },
];

/// An architecture that is not in the table, taken for a plain one on the user's word.
pub(super) const TRUSTED: Architecture = plain("");
