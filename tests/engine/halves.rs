//! The stream between the halves of a block. Attention has added to it, and the feed-forward network has not.

use std::path::Path;

use ggml::Backend;
use gguf_shorten::engine::hidden_state::Position;
use gguf_shorten::gguf::ValueOut;
use gguf_shorten::model::arch::{Architecture, Middle, Stream};

use crate::random_model::Spec;
use crate::support::{FFN_WRITERS, MIXER_WRITERS, hidden_states_with_middles, n_different, zero_halves};

/// Architectures that the bundled llama.cpp cannot evaluate; see `architectures`.
const NOT_EVALUATED: &[&str] = &["plm"];

/// Blocks: two periods of most kinds.
const N_BLOCKS: u32 = 8;

/// The block whose halves are zeroed one after the other, and another.
const ZEROED: [usize; 2] = [4, N_BLOCKS as usize - 1];

type States = Vec<(Position, Vec<f32>)>;

fn states(path: &Path) -> Result<States, String> {
    Ok(hidden_states_with_middles(path)?.windows.remove(0))
}

/// States entering, in the middle of and leaving each block. Blocks are in order of evaluation.
fn by_block(states: &States) -> Result<Vec<[&[f32]; 3]>, String> {
    let mut blocks = Vec::new();
    let mut entered: &[f32] = &[];
    let mut middle = None;
    for (position, state) in states {
        match *position {
            Position::Input => {}
            Position::Middle(block) => {
                middle = Some((block, state));
                continue;
            }
            Position::Output(block) => match middle.take() {
                Some((of, middle)) if of == block => blocks.push([entered, &middle[..], &state[..]]),
                other => return Err(format!("block {block} follows {:?}", other.map(|o| o.0))),
            },
        }
        entered = state;
    }
    Ok(blocks)
}

fn check(name: &str, spec: &Spec<'_>, is_sum: bool, dir: &Path) -> Result<(), String> {
    let [parent, zeroed] = ["parent", "zeroed"].map(|name| dir.join(format!("{name}.gguf")));
    spec.save(Backend::init(), &parent)?;
    let found = states(&parent)?;
    for (i, [entered, middle, left]) in by_block(&found)?.into_iter().enumerate() {
        if entered == middle || middle == left {
            return Err(format!("a half of block {i} of {name} changes nothing"));
        }
    }
    if !is_sum {
        return Ok(());
    }
    for block in ZEROED {
        // Only the mixer writes: what leaves is the middle.
        zero_halves(&parent, &[(&[block], FFN_WRITERS)], &zeroed);
        let states_zeroed = states(&zeroed)?;
        let [_, middle, left] = by_block(&states_zeroed)?[block];
        if n_different(middle, left) > 0 {
            return Err(format!("block {block} leaves more than its middle"));
        }
        // The middle is before the feed-forward network: that it writes nothing does not show there.
        if n_different(middle, by_block(&found)?[block][1]) > 0 {
            return Err(format!("the middle of block {block} depends on the other half"));
        }
        // Only the feed-forward network writes: what enters is the middle.
        zero_halves(&parent, &[(&[block], MIXER_WRITERS)], &zeroed);
        let states_zeroed = states(&zeroed)?;
        let [entered, middle, left] = by_block(&states_zeroed)?[block];
        if n_different(entered, middle) > 0 {
            return Err(format!("the middle of block {block} is more than what enters"));
        }
        if entered == left {
            return Err(format!("the other half of block {block} changes nothing"));
        }
    }
    Ok(())
}

#[test]
fn the_middle_is_the_input_and_what_attention_adds() {
    let dir = tempfile::tempdir().unwrap();
    let only = std::env::var("ARCHITECTURE").ok();
    let mut failed = Vec::new();
    for architecture in Architecture::all() {
        let name = architecture.name;
        if NOT_EVALUATED.contains(&name) || only.as_deref().is_some_and(|only| only != name) {
            continue;
        }
        // The stream of post-norm encoders passes norms. So a half that adds nothing still changes it.
        let is_sum = architecture.stream != Stream::LayerOutputNorm;
        let n_blocks = match name {
            // Its first 20 are of another kind.
            "gemma3n" => 21,
            // The last share the keys and values of those before.
            "gemma4" => 14,
            _ => N_BLOCKS,
        };
        let result = check(name, &Spec::new(name, n_blocks), is_sum, dir.path());
        let has_halves =
            !matches!(architecture.middle, Middle::Parallel | Middle::ParallelIf(_) | Middle::Nowhere(_));
        match result {
            Ok(()) if has_halves => {}
            Err(error) if !has_halves && error.contains("no halves of blocks") => {}
            other => failed.push(format!("{name}: {other:?}")),
        }
    }
    assert!(failed.is_empty(), "{failed:#?}");
}

#[test]
fn models_of_one_architecture_may_or_may_not_have_halves() {
    let dir = tempfile::tempdir().unwrap();
    let mut spec = Spec::new("gptneox", N_BLOCKS);
    spec.extra.push((".use_parallel_residual", ValueOut::bool(false)));
    check("gptneox", &spec, true, dir.path()).unwrap();
    let mut spec = Spec::new("stablelm", N_BLOCKS);
    spec.omitted = |name| name.contains("ffn_norm.");
    let error = check("stablelm", &spec, true, dir.path()).unwrap_err();
    assert_eq!(
        error,
        "has no halves of blocks to score apart: attention and feed-forward network of 'stablelm' both read what enters \
         the block, so no hidden state lies between them"
    );
}
