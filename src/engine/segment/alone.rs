//! Whether the blocks of a model, each alone, compute what they do inside of it.

use std::rc::Rc;

use anyhow::{Result, ensure};
use ggml::{Context, ThreadPool, WindowInput};

use super::plan::takes_streams;
use super::{Lone, Tail};
use crate::engine::hidden_state::{HiddenStates, Position, Token};
use crate::engine::llama::{Course, LlamaHiddenStates};
use crate::engine::scored::scored;
use crate::model::arch::Alone;
use crate::model::{BlockId, Model};
use crate::plan::{ChangedTensors, Constraints};

/// Compares every block of `model`, which is `engine`, with the whole model on a window, and the logits behind the last one:
/// in every bit but the sign of a zero, or up to rounding for [`Alone::Scaled`]. In memory is one block at a time.
///
/// # Errors
/// A difference; a block that llama.cpp does not take alone.
pub fn check_alone(
    model: &Model<'_>,
    constraints: &Constraints,
    engine: &ggml::Model,
    window: &[Token],
    threads: &Rc<ThreadPool>,
) -> Result<()> {
    check_takes_streams(takes_streams(constraints), engine)?;
    let same = match constraints.rules.alone {
        Alone::Exact => same_bits,
        Alone::Scaled | Alone::Unknown => nearly_same,
    };
    let stream = constraints.rules.stream;
    let course = Course::of(model, stream)?;
    let mut states: Vec<Vec<f32>> = Vec::new();
    LlamaHiddenStates::with_threads(engine, window.len(), threads, stream, course)?.visit(
        window,
        &mut |position, state| {
            if !matches!(position, Position::Middle(_)) {
                states.push(state.to_vec());
            }
            Ok(())
        },
    )?;
    let n_blocks = model.n_trunk_blocks();
    ensure!(states.len() == n_blocks + 1, "the stream is changed between blocks");
    let unchanged = ChangedTensors::new();
    for (block, states) in states.windows(2).enumerate() {
        let block = BlockId::new(block);
        let mut lone = Lone::new(model, constraints, block, &unchanged, window.len(), threads)?;
        ensure!(
            same(&lone.run(&states[0])?, &states[1]),
            "block {block} alone does not compute what it does inside of the model"
        );
    }
    let rows = scored(window.len());
    let mut context = Context::with_outputs(engine, window.len(), rows.len(), threads)?;
    let expected = context.logits_of(WindowInput::Tokens(window), rows.clone())?;
    ensure!(expected.iter().any(|&logit| logit != 0.0), "the model gives no logits");
    let last = [BlockId::new(n_blocks - 1)];
    let mut tail = Tail::new(model, constraints, &last, &unchanged, window.len(), threads)?;
    ensure!(
        same(tail.logits(&states[n_blocks - 1], rows)?, expected),
        "the last block alone does not give the model's logits"
    );
    Ok(())
}

/// Checks what is known of a model before anything is evaluated: that its blocks alone are exact, and that block 0 takes the
/// stream.
///
/// # Errors
/// Its blocks are not evaluated one by one.
pub(super) fn check_known(constraints: &Constraints, engine: &ggml::Model) -> Result<()> {
    let is_exact = !constraints.trusted && constraints.rules.alone == Alone::Exact;
    check_takes_streams(is_exact, engine)
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

/// Whether two results are the same in every bit but the sign of a zero.
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
