//! The tap that finds the residual stream in a graph.

use anyhow::{Error, Result, anyhow, ensure};
use ggml::{Flow, Node, Tap};

use super::{Halves, MiddleNode, StreamGraph};
use crate::engine::hidden_state::{Position, Visitor};
use crate::model::BlockId;
use crate::model::arch::Stream;

/// What has been seen of a graph.
#[derive(Default)]
pub(super) struct Seen {
    /// Block outputs. They come in order, so this is also the run that comes next.
    pub(super) n_outputs: usize,
    /// Whether the middle of the block that comes next was seen.
    pub(super) middle: bool,
    /// Whether the stream before the first block was.
    pub(super) input: bool,
}

pub(super) struct StreamTap<'t, 'v> {
    pub(super) graph: StreamGraph,
    pub(super) n_tokens: usize,
    /// Runs of a block after which the evaluation stops.
    pub(super) n_wanted: usize,
    pub(super) halves: Option<&'t Halves>,
    pub(super) state: &'t mut Vec<f32>,
    pub(super) visit: &'t mut Visitor<'v>,
    pub(super) seen: Seen,
    pub(super) error: Option<Error>,
}

impl StreamTap<'_, '_> {
    /// The block that comes next.
    fn next_block(&self) -> BlockId {
        BlockId::new(self.seen.n_outputs % self.graph.n_blocks)
    }

    /// The next block's middle, if `node` or a living operand is it.
    fn middle<'n>(&self, node: Node<'n>) -> Option<Node<'n>> {
        let halves = self.halves?;
        if self.seen.middle || !self.seen.input {
            return None;
        }
        match halves.node {
            MiddleNode::Named(name) => {
                (numbered(node.name(), name) == Some(self.seen.n_outputs)).then_some(node)
            }
            MiddleNode::ReadByNorm => {
                // The norm is two nodes: the middle is scaled to length one, then multiplied by the weights.
                let weights = node.operand(1)?.name();
                let number = weights.strip_prefix("blk.")?.strip_suffix(".ffn_norm.weight")?;
                (number.parse() == Ok(self.next_block().index())).then(|| node.operand(0)?.operand(0))?
            }
        }
    }

    /// The point of the stream that `node` is, if it is new.
    fn sight(&self, node: Node<'_>) -> Option<Position> {
        let next = self.seen.n_outputs;
        let output = |run: usize| Position::Output(BlockId::new(run % self.graph.n_blocks));
        let name = node.name();
        if self.middle(node).is_some() {
            return Some(Position::Middle(self.next_block()));
        }
        match self.graph.stream {
            Stream::Named { input }
            | Stream::Renamed { input, .. }
            | Stream::Parallel { input, .. }
            | Stream::NamedTo { input, .. }
            | Stream::Stacked { input }
            | Stream::Looped { input, .. } => {
                let is_input = || name == input || node.operand(1).is_some_and(|o| o.name() == input);
                if !self.seen.input && is_input() {
                    return Some(Position::Input);
                }
                let of_block = match self.graph.stream {
                    Stream::Renamed { output, .. } | Stream::Parallel { output, .. } => output,
                    _ => "l_out",
                };
                if numbered(name, of_block) == Some(next) {
                    return Some(output(next));
                }
                if let Stream::NamedTo { last, .. } = self.graph.stream
                    && next + 1 == self.graph.n_runs()
                    && name == last
                {
                    return Some(output(next));
                }
                if matches!(self.graph.stream, Stream::Looped { .. })
                    && next > 0
                    && numbered(name, "loop_norm") == Some(next - 1)
                {
                    return Some(Position::Input);
                }
                None
            }
            Stream::NamedByReader { reader, last } => {
                if !self.seen.input {
                    return (numbered(name, reader) == Some(0)).then_some(Position::Input);
                }
                let is_next = if next + 1 == self.graph.n_runs() {
                    name == last
                } else {
                    numbered(name, reader) == Some(next + 1)
                };
                is_next.then(|| output(next))
            }
            Stream::ResidualSum { input } => {
                if !self.seen.input {
                    return (name == input).then_some(Position::Input);
                }
                let is_next = numbered(node.operand(1)?.name(), "ffn_inp") == Some(next);
                is_next.then(|| output(next))
            }
            Stream::LayerOutputNorm => {
                if !self.seen.input {
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
        let shape = self.graph.shape(self.n_tokens);
        let n_floats = shape.iter().product();
        let fits = match self.graph.stream {
            Stream::Stacked { .. } => node.ne()[..2] == shape[..2],
            _ => node.ne() == shape,
        };
        if !fits {
            return Err(anyhow!(
                "graph node '{}' has the shape {:?}, expected {:?} for a hidden state",
                node.name(),
                node.ne(),
                shape
            ));
        }
        if let (Position::Output(block), Some(halves)) = (position, self.halves)
            && !self.seen.middle
        {
            ensure!(
                halves.without_attention.get(block.index()) == Some(&true),
                "llama.cpp's graph does not show the hidden state between attention and feed-forward network of block \
                 {block}; the names in this build are not those that are known for the architecture"
            );
            // What was read last entered the block.
            (self.visit)(Position::Middle(block), self.state)?;
        }
        node.read(self.state)?;
        // Of several states the first.
        let state = self.state.get(..n_floats);
        let state = state.ok_or_else(|| anyhow!("graph node '{}' is empty", node.name()))?;
        (self.visit)(position, state)?;
        match position {
            Position::Input => self.seen.input = true,
            Position::Middle(_) => self.seen.middle = true,
            Position::Output(_) => {
                self.seen.n_outputs += 1;
                self.seen.middle = false;
            }
        }
        Ok(if self.seen.n_outputs == self.n_wanted { Flow::Stop } else { Flow::Continue })
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
        let node = match position {
            Position::Middle(_) => self.middle(node).unwrap_or(node),
            _ => node,
        };
        self.show(node, position).unwrap_or_else(|error| {
            self.error = Some(error);
            Flow::Stop
        })
    }
}

/// The tap of a stream, and another one beside it.
pub(super) struct BothTaps<'t, 's, 'v> {
    pub(super) stream: StreamTap<'s, 'v>,
    pub(super) other: Option<&'t mut dyn Tap>,
}

impl Tap for BothTaps<'_, '_, '_> {
    fn wants(&mut self, node: Node<'_>) -> bool {
        let by_other = self.other.as_mut().is_some_and(|other| other.wants(node));
        self.stream.wants(node) || by_other
    }

    fn read(&mut self, node: Node<'_>) -> Flow {
        if let Some(other) = &mut self.other
            && other.wants(node)
            && other.read(node) == Flow::Stop
        {
            return Flow::Stop;
        }
        self.stream.read(node)
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
