//! Segments: what blocks make of hidden states, and what matrices multiply in them.

use anyhow::{Error, Result, bail, ensure};
use ggml::{Context, Flow, Node, Tap, WindowInput};

use super::Halves;
use super::stream_tap::StreamTap;
use crate::engine::hidden_state::Position;
use crate::gguf::Quoted;
use crate::model::BlockId;
use crate::model::arch::Stream;

/// Evaluates the blocks of a segment on `input`, `[n_tokens, n_embd]`, and returns the hidden state behind the first
/// `n_evaluated` of its `n_blocks`.
///
/// # Errors
/// llama.cpp's; a graph in which that state is not found.
pub(crate) fn evaluate_segment(
    context: &mut Context<'_>,
    stream: Stream,
    n_blocks: usize,
    n_evaluated: usize,
    n_embd: usize,
    input: &[f32],
) -> Result<Vec<f32>> {
    let course = (stream, n_blocks, n_evaluated, n_embd);
    evaluate_tapped(context, course, input, None)
}

/// Evaluates the first block of a segment on `input`, `[n_tokens, n_embd]`. Returns the hidden state between its halves, and
/// the one behind it.
///
/// # Errors
/// As [`evaluate_segment`].
pub(crate) fn evaluate_halves(
    context: &mut Context<'_>,
    (stream, n_blocks, n_embd): (Stream, usize, usize),
    input: &[f32],
    halves: &Halves,
) -> Result<(Vec<f32>, Vec<f32>)> {
    let (mut middle, mut output) = (Vec::new(), Vec::new());
    let mut tap = StreamTap {
        stream,
        n_blocks,
        n_runs: n_blocks,
        n_wanted: 1,
        shape: [n_embd, input.len() / n_embd, 1, 1],
        halves: Some(halves),
        state: &mut Vec::new(),
        visit: &mut |position, state| {
            match position {
                Position::Input => {}
                Position::Middle(_) => state.clone_into(&mut middle),
                Position::Output(_) => state.clone_into(&mut output),
            }
            Ok(())
        },
        n_outputs: 0,
        seen_middle: false,
        // It is given, and may show nowhere before the middle.
        seen_input: true,
        error: None,
    };
    let result = context.evaluate(WindowInput::HiddenStates(input), &mut tap);
    if let Some(error) = tap.error.take() {
        return Err(error);
    }
    result?;
    ensure!(
        middle.len() == input.len() && output.len() == input.len(),
        "llama.cpp's graph does not show the hidden states of the block"
    );
    Ok((middle, output))
}

/// As [`evaluate_segment`] of the first block of a segment; what the matrix `reader` multiplies there goes to `read`, `[n_tokens,
/// n_in]`, in place of what it held.
///
/// # Errors
/// As [`evaluate_segment`]; a graph in which no product with that matrix, or more than one, is found.
pub(crate) fn evaluate_block_reading(
    context: &mut Context<'_>,
    stream: Stream,
    n_blocks: usize,
    n_embd: usize,
    input: &[f32],
    reader: &str,
    read: &mut Vec<f32>,
) -> Result<Vec<f32>> {
    let mut tap = ReaderTap { reader, n_tokens: input.len() / n_embd, read, n_found: 0, error: None };
    let course = (stream, n_blocks, 1, n_embd);
    let output = evaluate_tapped(context, course, input, Some(&mut tap));
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

    fn read(&mut self, operand: Node<'_>) -> Flow {
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

/// The tap of a stream, and perhaps one of what a matrix multiplies.
struct BothTaps<'t, 's, 'v, 'r> {
    stream: StreamTap<'s, 'v>,
    reader: Option<&'t mut ReaderTap<'r>>,
}

impl Tap for BothTaps<'_, '_, '_, '_> {
    fn wants(&mut self, node: Node<'_>) -> bool {
        let reader = self.reader.as_ref();
        self.stream.wants(node) || reader.is_some_and(|reader| reader.operand(node).is_some())
    }

    fn read(&mut self, node: Node<'_>) -> Flow {
        if let Some(reader) = &mut self.reader
            && let Some(operand) = reader.operand(node)
            && reader.read(operand) == Flow::Stop
        {
            return Flow::Stop;
        }
        self.stream.read(node)
    }
}

fn evaluate_tapped(
    context: &mut Context<'_>,
    (stream, n_blocks, n_evaluated, n_embd): (Stream, usize, usize, usize),
    input: &[f32],
    reader: Option<&mut ReaderTap<'_>>,
) -> Result<Vec<f32>> {
    let mut output = Vec::new();
    let stream = StreamTap {
        stream,
        n_blocks,
        n_runs: n_blocks,
        n_wanted: n_evaluated,
        shape: [n_embd, input.len() / n_embd, 1, 1],
        halves: None,
        state: &mut Vec::new(),
        visit: &mut |position, state| {
            if position == Position::Output(BlockId::new(n_evaluated - 1)) {
                state.clone_into(&mut output);
            }
            Ok(())
        },
        n_outputs: 0,
        seen_middle: false,
        seen_input: false,
        error: None,
    };
    let mut tap = BothTaps { stream, reader };
    let result = context.evaluate(WindowInput::HiddenStates(input), &mut tap);
    let (error, n_outputs) = (tap.stream.error.take(), tap.stream.n_outputs);
    if let Some(error) = error {
        return Err(error);
    }
    result?;
    if n_outputs < n_evaluated {
        bail!("llama.cpp's graph shows the hidden state after {n_outputs} of {n_evaluated} blocks");
    }
    Ok(output)
}
