//! Evaluation and surgery for tests: logits, hidden states, shortening, and zeroed parents.

use std::path::Path;

use ggml::{Backend, Context, ContextOptions, ModelOptions, Token};
use gguf_shorten::engine::hidden_state::{HiddenStates, Position, Recorded};
use gguf_shorten::engine::llama::{Halves, LlamaHiddenStates, StreamGraph};
use gguf_shorten::gguf::File;
use gguf_shorten::heal::healer::Setup;
use gguf_shorten::heal::split::Split;
use gguf_shorten::model::block::BlockSet;
use gguf_shorten::model::input::Input;
use gguf_shorten::model::{BlockId, Model};
use gguf_shorten::output::Parent;
use gguf_shorten::output::save::Target;
use gguf_shorten::plan::{AttentionCut, Constraints, Cut, Plan};

use crate::random_model::N_VOCAB;

/// Tokens that a test evaluates. They are more than the tiny models' sliding window, and than keys that one block compresses
/// into one.
pub fn n_tokens(architecture: &str) -> usize {
    match architecture {
        "deepseek4" => 300,
        _ => 72,
    }
}

/// One thread: the threads of ggml spin at barriers, and tests run side by side.
fn options(window: usize) -> ContextOptions {
    ContextOptions { window, threads: 1 }
}

/// Some tokens, the same for every model.
pub fn tokens(n_tokens: usize) -> Vec<Token> {
    (0..n_tokens).map(|i| ((i * i * 31 + i * 7 + 3) % N_VOCAB) as Token).collect()
}

/// The architecture of the model at `path`.
fn architecture(path: &Path) -> Result<String, String> {
    let input = Input::open(path).map_err(|error| format!("{error:#}"))?;
    let model = Model::new(input.parse().unwrap()).map_err(|error| format!("{error:#}"))?;
    Ok(model.architecture().to_owned())
}

/// The healing of a model that is `engine`, on one thread.
pub fn setup<'m, 'a>(
    model: &'m Model<'a>,
    constraints: &'m Constraints,
    engine: &'m ggml::Model,
    windows: Vec<&'m [Token]>,
    split: &'m Split,
) -> Setup<'m, 'a> {
    Setup { model, constraints, engine, windows, split, n_threads: 1 }
}

/// Loads the model at `path`.
pub fn load(path: &Path) -> Result<ggml::Model, String> {
    ggml::Model::load(Backend::init(), path, ModelOptions::default()).map_err(|error| error.to_string())
}

/// What the model at `path` computes for [`tokens`]. It is its logits, or of a model that has none the last hidden state.
pub fn outputs(path: &Path) -> Result<Vec<f32>, String> {
    outputs_of(&load(path)?, path)
}

/// What the model at `path` computes, which is loaded.
pub fn outputs_of(model: &ggml::Model, path: &Path) -> Result<Vec<f32>, String> {
    let n_tokens = n_tokens(&architecture(path)?);
    let mut context = Context::new(model, options(n_tokens)).map_err(|error| error.to_string())?;
    if let Ok(logits) = context.logits(&tokens(n_tokens))
        && logits.iter().any(|&logit| logit != 0.0)
    {
        return Ok(logits.to_vec());
    }
    drop(context);
    let states = hidden_states(path)?;
    states.windows[0].last().map(|(_, state)| state.clone()).ok_or("no hidden state".to_owned())
}

/// The hidden states of the model at `path` for [`tokens`].
pub fn hidden_states(path: &Path) -> Result<Recorded, String> {
    states(path, false)
}

/// As [`hidden_states`], with the middle of every block.
pub fn hidden_states_with_middles(path: &Path) -> Result<Recorded, String> {
    states(path, true)
}

fn states(path: &Path, with_middles: bool) -> Result<Recorded, String> {
    let input = Input::open(path).map_err(|error| format!("{error:#}"))?;
    let engine = load(path)?;
    let model = Model::new(input.parse().unwrap()).map_err(|error| format!("{error:#}"))?;
    let stream = model.rules().unwrap().stream;
    let graph = StreamGraph::of(&model, &engine, stream).unwrap();
    let n_tokens = n_tokens(model.architecture());
    let mut states =
        LlamaHiddenStates::new(&engine, options(n_tokens), graph).map_err(|error| format!("{error:#}"))?;
    if with_middles {
        let constraints = Constraints::of(&model).map_err(|error| format!("{error:#}"))?;
        let halves = Halves::of(&model, constraints.rules, &constraints.kinds)
            .map_err(|error| format!("{error:#}"))?;
        states = states.with_halves(Some(halves));
    }
    let window = tokens(n_tokens);
    assert_eq!(states.n_embd(), engine.n_embd() * graph.n_streams);
    Recorded::record(&mut states, std::iter::once(&window[..])).map_err(|error| format!("{error:#}"))
}

/// The hidden state that `block` of a model leaves for [`tokens`].
pub fn state_after(path: &Path, block: usize) -> Result<Vec<f32>, String> {
    let states = hidden_states(path)?;
    states.windows[0]
        .iter()
        .rfind(|(position, _)| *position == Position::Output(BlockId::new(block)))
        .map(|(_, state)| state.clone())
        .ok_or("no hidden state".to_owned())
}

/// Removes `blocks` from the model at `path`.
pub fn shorten(path: &Path, blocks: &[usize], out: &Path) -> Result<(), String> {
    shorten_under(path, blocks, out, Ok)
}

/// The same, under constraints that are changed first.
pub fn shorten_under(
    path: &Path,
    blocks: &[usize],
    out: &Path,
    change: fn(Constraints) -> anyhow::Result<Constraints>,
) -> Result<(), String> {
    cut(path, blocks, &[], out, change)
}

/// Removes `blocks` from a model, and the attention of `attention`.
pub fn shorten_and_cut_attention(
    path: &Path,
    blocks: &[usize],
    attention: &[usize],
    out: &Path,
) -> Result<(), String> {
    cut(path, blocks, attention, out, Ok)
}

fn cut(
    path: &Path,
    blocks: &[usize],
    attention: &[usize],
    out: &Path,
    change: fn(Constraints) -> anyhow::Result<Constraints>,
) -> Result<(), String> {
    let ids = |blocks: &[usize]| -> BlockSet { blocks.iter().copied().map(BlockId::new).collect() };
    let attention =
        (!attention.is_empty()).then(|| AttentionCut { blocks: ids(attention), method: "blocks".to_owned() });
    let cut = Cut { attention, ..Cut::new(ids(blocks), "blocks") };
    let run = || -> anyhow::Result<()> {
        let input = Input::open(path)?;
        let model = Model::new(input.parse()?)?;
        let constraints = change(Constraints::of(&model)?)?;
        let target = Target::new(out, &input, true)?;
        let plan = |parent_blake3| Plan::new(&model, &constraints, &cut, parent_blake3);
        let parent = Parent { input: &input, model: &model, constraints: &constraints };
        target.save(parent, &plan, &mut |_| {})?;
        Ok(())
    };
    run().map_err(|error| format!("{error:#}"))
}

/// The output projections of what mixes tokens.
pub const MIXER_WRITERS: &[&str] = &[
    "attn_output.",
    "attn_output_b.",
    "attn_o.",
    "ssm_out.",
    "shortconv.out_proj.",
    "time_mix_output.",
    // What hyper-connections derive from the stream.
    "hc_attn_scale.",
];

/// The output projections of feed-forward networks. Also talkie's scale of the embedding that each block adds.
pub const FFN_WRITERS: &[&str] = &[
    "ffn_down.",
    "ffn_down_exps.",
    "ffn_down_shexp.",
    "ffn_down_chexps.",
    "channel_mix_value.",
    "layer_output_scale.",
    "hc_ffn_scale.",
    // What a block adds of an embedding of its own.
    "proj.",
];

/// Copies the model at `path`, with the output projections of `blocks` zeroed. In a pre-norm model such a block is exactly the
/// identity. Of hyper-connections, too: their mixing becomes that of every stream with itself alone, exactly if the epsilon of
/// its normalisation is zero.
pub fn zero(path: &Path, blocks: &[usize], out: &Path) {
    zero_halves(path, &[(blocks, MIXER_WRITERS), (blocks, FFN_WRITERS)], out);
}

/// A tensor's replacement that makes its block exactly the identity.
#[derive(Clone, Copy)]
enum Fill {
    Zeros,
    Ones,
    /// Rows that begin with this number and are zero else.
    First(f32),
    /// Each stream mixes with itself alone.
    StreamsApart,
}

/// Copies the model at `path`, with some tensors made to add nothing. They are those of some blocks whose names begin so.
///
/// A block of gemma3n predicts four streams and adds to each the difference between what it computes and its prediction, times
/// a factor. That is one more than a combination of four numbers between -1 and 1, the tanh of a product with the normed active
/// stream (`gemma3n.cpp: altup_correct`). Where element 0 of that stream is positive ([`Spec`](crate::random_model::Spec) sees
/// to that), a large first weight makes those numbers 1, and the combination -1. Then nothing is added, and the block is the
/// identity once it predicts no change and adds no embedding.
pub fn zero_halves(path: &Path, halves: &[(&[usize], &[&str])], out: &Path) {
    let mut bytes = std::fs::read(path).unwrap();
    let file = File::parse(&bytes).unwrap();
    let architecture = file.metadata().get("general.architecture").unwrap();
    let architecture = architecture.value().as_str().unwrap();
    let fill = |rest: &str, writers: &[&str]| match (architecture, rest) {
        // The scale of the whole stream. In talkie it is that of the embedding that each block adds.
        (name, "layer_output_scale.weight") if name != "talkie" => {
            writers.contains(&"layer_output_scale.").then_some(Fill::Ones)
        }
        ("gemma3n", "altup_predict_coef.weight" | "post_norm.weight") => Some(Fill::Zeros),
        ("gemma3n", "altup_router.weight") => Some(Fill::First(1e9)),
        ("gemma3n", "altup_router_norm.weight") => Some(Fill::Ones),
        ("gemma3n", "altup_correct_coef.weight") => Some(Fill::First(-1.0)),
        ("gemma3n", _) => None,
        // How hyper-connections mix streams, where the stream itself does not say it.
        (_, "hc_attn_base.weight" | "hc_ffn_base.weight") => Some(Fill::StreamsApart),
        _ if writers.iter().any(|writer| rest.starts_with(writer)) => Some(Fill::Zeros),
        _ => None,
    };
    let mut fills = Vec::new();
    for tensor in file.tensors() {
        let found = halves.iter().find_map(|(blocks, writers)| {
            let name = tensor.name();
            let name = name.strip_prefix("enc.").unwrap_or(name);
            let rest = blocks.iter().find_map(|block| name.strip_prefix(&format!("blk.{block}.")))?;
            fill(rest, writers)
        });
        if let Some(fill) = found {
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
            Fill::StreamsApart => {
                bytes.copy_from_slice(&streams_apart());
                continue;
            }
        };
        // All weights of such models are F32.
        for element in bytes.chunks_exact_mut(4).step_by(step) {
            element.copy_from_slice(&first.to_le_bytes());
        }
    }
    std::fs::write(out, bytes).unwrap();
}

/// The base of hyper-connections of four streams that leaves them apart. F32 `[4 + 4 + 4 * 4]`: weights before and after the
/// block, and those of the mixing before their softmax (`deepseek4.cpp: build_hc_pre`).
fn streams_apart() -> Vec<u8> {
    let mixing = (0..16).map(|i| if i % 5 == 0 { 1000.0f32 } else { 0.0 });
    let base = std::iter::repeat_n(0.0, 8).chain(mixing);
    base.flat_map(f32::to_le_bytes).collect()
}

/// Numbers of `a` and `b` that differ, signs of zero aside. (An output may be minus infinity where a head is padded.)
pub fn n_different(a: &[f32], b: &[f32]) -> usize {
    assert_eq!(a.len(), b.len());
    assert!(a.iter().all(|x| !x.is_nan()), "not a number");
    assert!(a.iter().any(|x| x.is_finite()), "nothing is finite");
    a.iter().zip(b).filter(|(a, b)| a != b).count()
}
