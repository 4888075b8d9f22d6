//! The table of architectures: one line each where nothing depends on a block's number.

use super::{Architecture, CountRule, Stream, WindowPattern};

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
        stream,
        window: None,
        counts: &[],
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
    of_stream("neo-bert", Stream::ResidualSum),
    of_stream("eurobert", Stream::ResidualSum),
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
        window: Some(WindowPattern {
            default_period: 2,
            only_with_key: false,
        }),
        counts: &[CountRule::Exactly {
            n_blocks: 46,
            what: "scales queries by the width per head instead of the head size (gemma2.cpp)",
        }],
        ..with_input("gemma2", "inp_scaled")
    },
    Architecture {
        window: Some(WindowPattern {
            default_period: 6,
            only_with_key: true,
        }),
        counts: &[CountRule::Exactly {
            n_blocks: 62,
            what: "scales queries by the width per head instead of the head size (gemma3.cpp)",
        }],
        ..with_input("gemma3", "inp_scaled")
    },
];
