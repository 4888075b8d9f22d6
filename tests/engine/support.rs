//! Evaluation and surgery for tests: logits, hidden states, shortening, and zeroed parents.

use std::collections::BTreeSet;
use std::path::Path;

use ggml::{Backend, Context, ContextOptions, ModelOptions, Token};
use gguf_shorten::arch::Stream;
use gguf_shorten::gguf::File;
use gguf_shorten::hidden_state::{HiddenStates, Recorded};
use gguf_shorten::input::Input;
use gguf_shorten::llama::LlamaHiddenStates;
use gguf_shorten::model::{BlockId, Model};
use gguf_shorten::plan::{Constraints, Plan, Provenance};
use gguf_shorten::save::Target;

use crate::random_model::N_VOCAB;

/// Tokens that a test evaluates: more than the tiny models' sliding window.
pub const N_TOKENS: usize = 72;

/// One thread: the threads of ggml spin at barriers, and tests run side by side.
const OPTIONS: ContextOptions = ContextOptions {
    window: N_TOKENS,
    threads: 1,
};

/// Some tokens, the same for every model.
pub fn tokens() -> Vec<Token> {
    (0..N_TOKENS)
        .map(|i| ((i * i * 31 + i * 7 + 3) % N_VOCAB) as Token)
        .collect()
}

/// Loads the model at `path`.
pub fn load(path: &Path) -> Result<ggml::Model, String> {
    ggml::Model::load(Backend::init(), path, ModelOptions::default())
        .map_err(|error| error.to_string())
}

/// What the model at `path` computes for [`tokens`]: its logits, or of a model that has none the last hidden state.
pub fn outputs(path: &Path) -> Result<Vec<f32>, String> {
    let model = load(path)?;
    let mut context = Context::new(&model, OPTIONS).map_err(|error| error.to_string())?;
    if let Ok(logits) = context.logits(&tokens())
        && logits.iter().any(|&logit| logit != 0.0)
    {
        return Ok(logits.to_vec());
    }
    drop(context);
    let states = hidden_states(path)?;
    states.windows[0]
        .last()
        .map(|(_, state)| state.clone())
        .ok_or("no hidden state".to_owned())
}

/// The hidden states of the model at `path` for [`tokens`].
pub fn hidden_states(path: &Path) -> Result<Recorded, String> {
    let input = Input::open(path).map_err(|error| format!("{error:#}"))?;
    let engine = load(path)?;
    let model = Model::new(input.parse().unwrap()).map_err(|error| format!("{error:#}"))?;
    let stream = model.rules().unwrap().stream;
    let n_loops = match stream {
        Stream::Looped { loops_key, .. } => model.count(loops_key).unwrap().unwrap_or(1),
        _ => 1,
    };
    let mut states =
        LlamaHiddenStates::new(&engine, OPTIONS, stream, model.n_trunk_blocks(), n_loops)
            .map_err(|error| format!("{error:#}"))?;
    let window = tokens();
    assert_eq!(states.n_embd(), engine.n_embd());
    Recorded::record(&mut states, std::iter::once(&window[..]))
        .map_err(|error| format!("{error:#}"))
}

/// Removes `blocks` from the model at `path`.
pub fn shorten(path: &Path, blocks: &[usize], out: &Path) -> Result<(), String> {
    let removed: BTreeSet<BlockId> = blocks.iter().copied().map(BlockId::new).collect();
    let run = || -> anyhow::Result<()> {
        let input = Input::open(path)?;
        let model = Model::new(input.parse()?)?;
        let constraints = Constraints::of(&model)?;
        let target = Target::new(out, &input, true)?;
        let plan = |parent_blake3| {
            let provenance = Provenance {
                parent_blake3,
                method: "blocks".to_owned(),
                heal: "none".to_owned(),
            };
            Plan::new(&model, &constraints, removed.clone(), &provenance)
        };
        target.save(&input, &model, &plan, &mut |_| {})?;
        Ok(())
    };
    run().map_err(|error| format!("{error:#}"))
}

/// What takes the place of a tensor so that its block is exactly the identity.
#[derive(Clone, Copy)]
enum Fill {
    Zeros,
    Ones,
    /// Rows that begin with this number and are zero else.
    First(f32),
}

/// Copies the model at `path`, with the output projections of `blocks` zeroed: in a pre-norm model such a block is
/// exactly the identity.
///
/// A block of gemma3n predicts four streams and adds to each the difference between what it computes and its prediction,
/// times one more than a combination of four numbers between -1 and 1, the tanh of a product with the normed active stream
/// (`gemma3n.cpp: altup_correct`). Where element 0 of that stream is positive ([`Spec`](crate::random_model::Spec) sees to
/// that), a large first weight makes those numbers 1, and the combination -1: nothing is added, and the block is the
/// identity once it predicts no change and adds no embedding.
pub fn zero(path: &Path, blocks: &[usize], out: &Path) {
    const WRITERS: &[&str] = &[
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
        // What a block adds of an embedding of its own.
        "proj.",
    ];
    let mut bytes = std::fs::read(path).unwrap();
    let file = File::parse(&bytes).unwrap();
    let architecture = file.metadata().get("general.architecture").unwrap();
    let architecture = architecture.value().as_str().unwrap();
    let fill = |rest: &str| match (architecture, rest) {
        // The scale of the embedding that each block adds.
        ("talkie", "layer_output_scale.weight") => Some(Fill::Zeros),
        // The scale of the whole stream.
        (_, "layer_output_scale.weight") => Some(Fill::Ones),
        ("gemma3n", "altup_predict_coef.weight" | "post_norm.weight") => Some(Fill::Zeros),
        ("gemma3n", "altup_router.weight") => Some(Fill::First(1e9)),
        ("gemma3n", "altup_router_norm.weight") => Some(Fill::Ones),
        ("gemma3n", "altup_correct_coef.weight") => Some(Fill::First(-1.0)),
        ("gemma3n", _) => None,
        _ if WRITERS.iter().any(|writer| rest.starts_with(writer)) => Some(Fill::Zeros),
        _ => None,
    };
    let mut fills = Vec::new();
    for tensor in file.tensors() {
        let rest = blocks.iter().find_map(|block| {
            let name = tensor.name();
            let name = name.strip_prefix("enc.").unwrap_or(name);
            name.strip_prefix(&format!("blk.{block}."))
        });
        if let Some(fill) = rest.and_then(fill) {
            let row = tensor.dims()[0] as usize;
            let range = tensor.position().0 as usize..tensor.end().0 as usize;
            fills.push((range, fill, row));
        }
    }
    assert!(!fills.is_empty(), "nothing to zero");
    for (range, fill, row) in fills {
        let bytes = &mut bytes[range];
        bytes.fill(0);
        let (first, step) = match fill {
            Fill::Zeros => continue,
            Fill::Ones => (1f32, 1),
            Fill::First(first) => (first, row),
        };
        // All weights of such models are F32.
        for element in bytes.chunks_exact_mut(4).step_by(step) {
            element.copy_from_slice(&first.to_le_bytes());
        }
    }
    std::fs::write(out, bytes).unwrap();
}

/// How many numbers of `a` and `b` differ in any bit, but for the sign of a zero. (An output may be minus infinity where
/// a head is padded.)
pub fn n_different(a: &[f32], b: &[f32]) -> usize {
    assert_eq!(a.len(), b.len());
    assert!(a.iter().all(|x| !x.is_nan()), "not a number");
    assert!(a.iter().any(|x| x.is_finite()), "nothing is finite");
    a.iter().zip(b).filter(|(a, b)| a != b).count()
}
