//! Check that blocks alone compute what they do inside of the model.

use anyhow::{Result, ensure};
use ggml::{Context, WindowInput};

use super::plan::{is_exact, takes_streams};
use super::segments::Segments;
use crate::engine::hidden_state::{HiddenStates, Position, Token};
use crate::engine::llama::{LlamaHiddenStates, StreamGraph};
use crate::engine::scored::scored;
use crate::model::BlockId;
use crate::model::arch::Alone;
use crate::plan::{ChangedTensors, Constraints};

/// Compares every block and the final logits with the whole model.
///
/// They are the same in every bit but the sign of a zero, or up to rounding for [`Alone::Scaled`]. In memory
/// is one block at a time.
///
/// # Errors
/// A difference; a block that llama.cpp does not take alone.
pub fn check_blocks(segments: &Segments<'_, '_>, engine: &ggml::Model, window: &[Token]) -> Result<()> {
    let rules = segments.constraints.rules;
    check_takes_streams(takes_streams(segments.constraints), engine)?;
    let same = match rules.alone {
        Alone::Exact => same_bits,
        Alone::Scaled | Alone::Unknown => nearly_same,
    };
    let graph = StreamGraph::of(segments.model, engine, rules.stream)?;
    let mut whole = LlamaHiddenStates::with_threads(engine, segments.window, &segments.threads, graph)?;
    let states = states(&mut whole, window, &|_| true)?;
    drop(whole);
    let unchanged = ChangedTensors::new();
    for (block, states) in states.windows(2).enumerate() {
        let block = BlockId::new(block);
        let found = segments.block(block, &unchanged)?.run(&states[0])?;
        ensure!(same(&found, &states[1]), differs(block));
    }
    let expected = logits(segments, engine, window)?;
    let last = graph.n_blocks - 1;
    let mut head = segments.head(&[BlockId::new(last)], &unchanged)?;
    ensure!(same(head.logits(&states[last], scored(window.len()))?, &expected), HEAD_DIFFERS);
    Ok(())
}

/// Why a block does not stand for itself inside of the model.
pub(super) fn differs(block: BlockId) -> String {
    format!("block {block} alone does not compute what it does inside of the model")
}

/// Why the last block does not stand for the model's end.
pub(super) const HEAD_DIFFERS: &str = "the last block alone does not give the model's logits";

/// The stream before each block and after the last, where `wanted`.
pub(super) fn states(
    whole: &mut dyn HiddenStates,
    window: &[Token],
    wanted: &dyn Fn(usize) -> bool,
) -> Result<Vec<Vec<f32>>> {
    let mut states: Vec<Vec<f32>> = Vec::new();
    whole.visit(window, &mut |position, state| {
        if !matches!(position, Position::Middle(_)) {
            states.push(if wanted(states.len()) { state.to_vec() } else { Vec::new() });
        }
        Ok(())
    })?;
    ensure!(states.len() == whole.n_blocks() + 1, "the stream is changed between blocks");
    Ok(states)
}

/// The whole model's logits of the scored tokens.
pub(super) fn logits(
    segments: &Segments<'_, '_>,
    engine: &ggml::Model,
    window: &[Token],
) -> Result<Vec<f32>> {
    let rows = scored(window.len());
    let mut context = Context::with_outputs(engine, segments.window, rows.len(), &segments.threads)?;
    let logits = context.logits_of(WindowInput::Tokens(window), rows)?;
    ensure!(logits.iter().any(|&logit| logit != 0.0), "the model gives no logits");
    Ok(logits.to_vec())
}

/// Checks that blocks are exact alone, and block 0 takes the stream.
///
/// # Errors
/// Its blocks are not evaluated one by one.
pub(super) fn check_known(constraints: &Constraints, engine: &ggml::Model) -> Result<()> {
    check_takes_streams(is_exact(constraints), engine)
}

fn check_takes_streams(is_known: bool, engine: &ggml::Model) -> Result<()> {
    ensure!(is_known, "its architecture is not one of those that are known to be evaluated so");
    ensure!(
        engine.n_embd_inp() == engine.n_embd(),
        "block 0 takes rows of {} numbers, but the stream has {}",
        engine.n_embd_inp(),
        engine.n_embd()
    );
    Ok(())
}

/// Whether two results differ in nothing but the sign of a zero.
pub(super) fn same_bits(a: &[f32], b: &[f32]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits() || (*a == 0.0 && *b == 0.0))
}

/// Whether two results are the same up to rounding.
fn nearly_same(a: &[f32], b: &[f32]) -> bool {
    let square = |x: &mut dyn Iterator<Item = f32>| x.map(|x| f64::from(x).powi(2)).sum::<f64>();
    let size = square(&mut a.iter().copied());
    let error = square(&mut a.iter().zip(b).map(|(a, b)| a - b));
    // Not a number is not near to anything.
    a.len() == b.len() && error <= 1e-4 * size
}
