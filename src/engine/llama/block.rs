//! Evaluation of a segment's first block on a window.

use anyhow::{Error, Result, ensure};
use ggml::{Context, Flow, Node, Tap, WindowInput};

use super::stream_tap::{BothTaps, Seen, StreamTap};
use super::{Halves, StreamGraph};
use crate::engine::hidden_state::{Position, Visitor};
use crate::gguf::Quoted;

/// The hidden state after a segment's first block, for `input` before it.
///
/// Both are `[n_tokens, n_embd]`. The evaluation is shown to `other`, too.
///
/// # Errors
/// llama.cpp's; a graph in which that state is not found.
pub(crate) fn evaluate_block(
    context: &mut Context<'_>,
    graph: StreamGraph,
    input: &[f32],
    other: Option<&mut dyn Tap>,
) -> Result<Vec<f32>> {
    let mut output = Vec::new();
    let mut state = Vec::new();
    let mut visit = |position, state: &[f32]| {
        if let Position::Output(_) = position {
            state.clone_into(&mut output);
        }
        Ok(())
    };
    let mut tap = BothTaps { stream: tap_of_block(graph, input, &mut state, &mut visit), other };
    let result = context.evaluate(WindowInput::HiddenStates(input), &mut tap);
    if let Some(error) = tap.stream.error.take() {
        return Err(error);
    }
    result?;
    ensure!(tap.stream.seen.n_outputs > 0, "llama.cpp's graph shows the hidden state after 0 of 1 blocks");
    Ok(output)
}

/// As [`evaluate_block`], with what the matrix `reader` multiplies there.
///
/// That goes to `read`, `[n_tokens, n_in]`, in place of what it held.
///
/// # Errors
/// As [`evaluate_block`]; a graph in which no product with that matrix, or more than one, is found.
pub(crate) fn evaluate_reading(
    context: &mut Context<'_>,
    graph: StreamGraph,
    input: &[f32],
    reader: &str,
    read: &mut Vec<f32>,
) -> Result<Vec<f32>> {
    let mut tap = ReaderTap { reader, n_tokens: input.len() / graph.n_embd, read, n_found: 0, error: None };
    let output = evaluate_block(context, graph, input, Some(&mut tap));
    if let Some(error) = tap.error {
        return Err(error);
    }
    let output = output?;
    ensure!(
        tap.n_found == 1,
        "llama.cpp's graph multiplies {} times by {}, expected once",
        tap.n_found,
        Quoted(reader)
    );
    Ok(output)
}

/// As [`evaluate_block`], with the hidden state between the block's halves.
///
/// That one comes first.
///
/// # Errors
/// As [`evaluate_block`].
pub(crate) fn evaluate_halves(
    context: &mut Context<'_>,
    graph: StreamGraph,
    input: &[f32],
    halves: &Halves,
    other: Option<&mut dyn Tap>,
) -> Result<(Vec<f32>, Vec<f32>)> {
    let (mut middle, mut output) = (Vec::new(), Vec::new());
    // What enters a block without attention is its middle.
    let mut state = input.to_vec();
    let mut visit = |position, state: &[f32]| {
        match position {
            Position::Input => {}
            Position::Middle(_) => state.clone_into(&mut middle),
            Position::Output(_) => state.clone_into(&mut output),
        }
        Ok(())
    };
    let mut stream = tap_of_block(graph, input, &mut state, &mut visit);
    stream.halves = Some(halves);
    // It is given, and may show nowhere before the middle.
    stream.seen.input = true;
    let mut tap = BothTaps { stream, other };
    let result = context.evaluate(WindowInput::HiddenStates(input), &mut tap);
    if let Some(error) = tap.stream.error.take() {
        return Err(error);
    }
    result?;
    ensure!(
        middle.len() == input.len() && output.len() == input.len(),
        "llama.cpp's graph does not show the hidden states of the block"
    );
    Ok((middle, output))
}

/// The tap of the stream up to the first block's output.
fn tap_of_block<'t, 'v>(
    graph: StreamGraph,
    input: &[f32],
    state: &'t mut Vec<f32>,
    visit: &'t mut Visitor<'v>,
) -> StreamTap<'t, 'v> {
    StreamTap {
        graph,
        n_tokens: input.len() / graph.n_embd,
        n_wanted: 1,
        halves: None,
        state,
        visit,
        seen: Seen::default(),
        error: None,
    }
}

/// Finds what a matrix multiplies.
struct ReaderTap<'r> {
    /// The name of the matrix.
    reader: &'r str,
    n_tokens: usize,
    read: &'r mut Vec<f32>,
    n_found: usize,
    error: Option<Error>,
}

impl ReaderTap<'_> {
    /// What the matrix multiplies, if `node` is such a product.
    fn operand<'n>(&self, node: Node<'n>) -> Option<Node<'n>> {
        let matrix = node.operand(0)?;
        let operand = node.operand(1)?;
        let [n_in, n_out, ..] = matrix.ne();
        (matrix.name() == self.reader
            && operand.ne() == [n_in, self.n_tokens, 1, 1]
            && node.ne() == [n_out, self.n_tokens, 1, 1])
        .then_some(operand)
    }
}

impl Tap for ReaderTap<'_> {
    fn wants(&mut self, node: Node<'_>) -> bool {
        self.operand(node).is_some()
    }

    fn read(&mut self, node: Node<'_>) -> Flow {
        let Some(operand) = self.operand(node) else {
            return Flow::Continue;
        };
        self.n_found += 1;
        match operand.read(self.read) {
            Ok(()) => Flow::Continue,
            Err(error) => {
                self.error = Some(error.into());
                Flow::Stop
            }
        }
    }
}
