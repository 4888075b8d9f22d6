//! [`HiddenStates`] by llama.cpp: finds the residual stream among the nodes of its graph.

use anyhow::{Error, Result, anyhow, bail};
use ggml::{Context, ContextOptions, Flow, Node, Tap};

use crate::arch::Stream;
use crate::hidden_state::{HiddenStates, Position, Token, Visitor};
use crate::model::BlockId;

/// Evaluates windows with llama.cpp and taps the residual stream.
pub struct LlamaHiddenStates<'model> {
    context: Context<'model>,
    stream: Stream,
    n_blocks: usize,
    n_loops: usize,
    n_embd: usize,
    state: Vec<f32>,
}

impl<'model> LlamaHiddenStates<'model> {
    /// Prepares evaluation of windows of at most `options.window` tokens. `n_blocks` blocks are evaluated `n_loops` times
    /// (once, but for looped models).
    ///
    /// # Errors
    /// llama.cpp's, if it cannot set up the evaluation.
    pub fn new(
        model: &'model ggml::Model,
        options: ContextOptions,
        stream: Stream,
        n_blocks: usize,
        n_loops: usize,
    ) -> Result<Self> {
        Ok(Self {
            context: Context::new(model, options)?,
            stream,
            n_blocks,
            n_loops,
            n_embd: model.n_embd(),
            state: Vec::new(),
        })
    }
}

impl HiddenStates for LlamaHiddenStates<'_> {
    fn n_blocks(&self) -> usize {
        self.n_blocks
    }

    fn n_embd(&self) -> usize {
        self.n_embd
    }

    fn visit(&mut self, window: &[Token], visit: &mut Visitor<'_>) -> Result<()> {
        let mut tap = StreamTap {
            stream: self.stream,
            n_blocks: self.n_blocks,
            n_runs: self.n_blocks * self.n_loops,
            shape: [self.n_embd, window.len()],
            state: &mut self.state,
            visit,
            n_outputs: 0,
            seen_input: false,
            error: None,
        };
        let result = self.context.evaluate(window, &mut tap);
        if let Some(error) = tap.error {
            return Err(error);
        }
        result?;
        if tap.n_outputs < tap.n_runs {
            bail!(
                "llama.cpp's graph shows the hidden state after {} of {} blocks; the names in this build are not those \
                 that are known for the architecture",
                tap.n_outputs,
                tap.n_runs
            );
        }
        Ok(())
    }
}

struct StreamTap<'t, 'v> {
    stream: Stream,
    n_blocks: usize,
    /// Runs of a block on one window: the number of blocks times that of loops.
    n_runs: usize,
    /// `[n_embd, n_tokens]`, as ggml writes it.
    shape: [usize; 2],
    state: &'t mut Vec<f32>,
    visit: &'t mut Visitor<'v>,
    /// Block outputs seen so far. They come in order, so this is also the run that comes next.
    n_outputs: usize,
    seen_input: bool,
    error: Option<Error>,
}

impl StreamTap<'_, '_> {
    /// The point of the stream that `node` is, if it is one that has not been seen.
    fn sight(&self, node: Node<'_>) -> Option<Position> {
        let next = self.n_outputs;
        let output = |run: usize| Position::Output(BlockId::new(run % self.n_blocks));
        let name = node.name();
        match self.stream {
            Stream::Named { input }
            | Stream::NamedTo { input, .. }
            | Stream::Stacked { input }
            | Stream::Looped { input, .. } => {
                let is_input =
                    || name == input || node.operand(1).is_some_and(|o| o.name() == input);
                if !self.seen_input && is_input() {
                    return Some(Position::Input);
                }
                if numbered(name, "l_out") == Some(next) {
                    return Some(output(next));
                }
                if let Stream::NamedTo { last, .. } = self.stream
                    && next + 1 == self.n_runs
                    && name == last
                {
                    return Some(output(next));
                }
                if matches!(self.stream, Stream::Looped { .. })
                    && next > 0
                    && numbered(name, "loop_norm") == Some(next - 1)
                {
                    return Some(Position::Input);
                }
                None
            }
            Stream::NamedByReader { reader, last } => {
                if !self.seen_input {
                    return (numbered(name, reader) == Some(0)).then_some(Position::Input);
                }
                let is_next = if next + 1 == self.n_runs {
                    name == last
                } else {
                    numbered(name, reader) == Some(next + 1)
                };
                is_next.then(|| output(next))
            }
            Stream::ResidualSum => {
                if !self.seen_input {
                    return (name == "inp_embd").then_some(Position::Input);
                }
                let is_next = numbered(node.operand(1)?.name(), "ffn_inp") == Some(next);
                is_next.then(|| output(next))
            }
            Stream::LayerOutputNorm => {
                if !self.seen_input {
                    return (name == "inp_norm-0").then_some(Position::Input);
                }
                let bias = node.operand(1)?.name();
                let of_next = bias
                    .strip_prefix("blk.")
                    .and_then(|rest| rest.strip_suffix(".layer_output_norm.bias"))
                    .is_some_and(|number| number.parse() == Ok(next));
                of_next.then(|| output(next))
            }
        }
    }

    fn show(&mut self, node: Node<'_>, position: Position) -> Result<Flow> {
        let [n_embd, n_rows, ..] = node.ne();
        let n_floats = n_embd * n_rows;
        let is_stacked = matches!(self.stream, Stream::Stacked { .. });
        let n_states = node.ne()[2..].iter().product::<usize>();
        if [n_embd, n_rows] != self.shape || (n_states != 1 && !is_stacked) {
            return Err(anyhow!(
                "graph node '{}' has the shape {:?}, expected {:?} for a hidden state",
                node.name(),
                node.ne(),
                self.shape
            ));
        }
        node.read(self.state)?;
        // Of several states the first.
        let state = self.state.get(..n_floats);
        let state = state.ok_or_else(|| anyhow!("graph node '{}' is empty", node.name()))?;
        (self.visit)(position, state)?;
        match position {
            Position::Input => self.seen_input = true,
            Position::Output(_) => self.n_outputs += 1,
        }
        Ok(if self.n_outputs == self.n_runs {
            Flow::Stop
        } else {
            Flow::Continue
        })
    }
}

impl Tap for StreamTap<'_, '_> {
    fn wants(&mut self, node: Node<'_>) -> bool {
        self.error.is_none() && self.sight(node).is_some()
    }

    fn read(&mut self, node: Node<'_>) -> Flow {
        let Some(position) = self.sight(node) else {
            return Flow::Continue;
        };
        self.show(node, position).unwrap_or_else(|error| {
            self.error = Some(error);
            Flow::Stop
        })
    }
}

/// The number in `<prefix>-<number>`.
fn numbered(name: &str, prefix: &str) -> Option<usize> {
    name.strip_prefix(prefix)?.strip_prefix('-')?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::numbered;

    #[test]
    fn node_names_are_read_whole() {
        assert_eq!(numbered("l_out-12", "l_out"), Some(12));
        assert_eq!(numbered("l_out-12 (view)", "l_out"), None);
        assert_eq!(numbered("l_out", "l_out"), None);
        assert_eq!(numbered("norm-0", "norm"), Some(0));
        assert_eq!(numbered("norm_w-0", "norm"), None);
    }
}
