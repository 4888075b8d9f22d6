//! [`HiddenStates`] by llama.cpp: finds the residual stream among the nodes of its graph.

use std::path::Path;
use std::rc::Rc;

use anyhow::{Error, Result, anyhow, bail, ensure};
use ggml::{
    Backend, Context, ContextOptions, Flow, ModelOptions, Node, Tap, ThreadPool, WindowInput,
};

use crate::arch::{Architecture, Middle, Stream};
use crate::gguf::Quoted;
use crate::hidden_state::{HiddenStates, Position, Token, Visitor};
use crate::model::{BlockId, Model};
use crate::plan::kinds::Kinds;
use crate::recoded::Recoded;
use crate::segment::memory::MemoryFile;

/// Loads the model at `path`, which is `model`, to take scores from: [`Recoded`] where that gains time and the CPU
/// evaluates all of it, else as it is, with `options`.
///
/// # Errors
/// llama.cpp's reason for not loading it.
pub fn load_for_scores(
    model: &Model<'_>,
    path: &Path,
    options: ModelOptions,
) -> Result<ggml::Model> {
    let backend = Backend::init();
    let has_gpu = options.rpc.is_some() || backend.supports_gpu_offload();
    if options.gpu_layers == Some(0) || !has_gpu {
        // Whatever keeps it from being recoded, such as no room, does not keep it from being loaded.
        if let Ok(Some(engine)) = load_recoded(model) {
            return Ok(engine);
        }
    }
    Ok(ggml::Model::load(backend, path, options)?)
}

fn load_recoded(model: &Model<'_>) -> Result<Option<ggml::Model>> {
    let Some(recoded) = Recoded::of(model)? else {
        return Ok(None);
    };
    let file = MemoryFile::of_layout(&recoded.layout, &mut |i, out| recoded.write(model, i, out))?;
    Ok(Some(file.load()?))
}

/// How the stream between the halves of a model's blocks is found.
#[derive(Clone, Debug)]
pub struct Halves {
    node: MiddleNode,
    /// For each block whether it has no attention, so that its middle is what enters it; empty where all have.
    without_attention: Vec<bool>,
}

#[derive(Clone, Copy, Debug)]
enum MiddleNode {
    Named(&'static str),
    ReadByNorm,
}

impl Halves {
    /// Of the blocks of `model`, whose kinds and whose architecture's rules are these.
    ///
    /// # Errors
    /// Blocks that have no such halves.
    pub fn of(model: &Model<'_>, rules: &Architecture, kinds: &Kinds) -> Result<Self> {
        let has_tensor = |name: &str| {
            let of_block = |tensor: &crate::model::ModelTensor<'_>| {
                tensor.block.is_some_and(|(_, rest)| rest == name)
            };
            model.tensors().iter().any(of_block)
        };
        let is_true = |key: &str| {
            let key = format!("{}.{key}", model.architecture());
            let entry = model.metadata().get(&key);
            entry.map_or(Ok(false), |entry| entry.value().as_bool())
        };
        let node = match rules.middle() {
            Middle::Named(name) => Some(MiddleNode::Named(name)),
            Middle::ReadByNorm => Some(MiddleNode::ReadByNorm),
            Middle::ParallelIf(key) => (!is_true(key)?).then_some(MiddleNode::Named("ffn_inp")),
            Middle::ParallelWithout(name) => {
                has_tensor(name).then_some(MiddleNode::Named("ffn_inp"))
            }
            Middle::Parallel => None,
            Middle::Nowhere(why) => bail!(
                "has no halves of blocks to score apart: a block of {} {why}",
                Quoted(model.architecture())
            ),
        };
        let Some(node) = node else {
            bail!(
                "has no halves of blocks to score apart: attention and feed-forward network of {} both read what enters \
                 the block, so no hidden state lies between them",
                Quoted(model.architecture())
            );
        };
        Ok(Self {
            node,
            without_attention: kinds.no_attention.iter().flatten().copied().collect(),
        })
    }
}

/// Checks that llama.cpp comes to an end with `model`: where block 0 of plamo2 has no heads, nothing is rotated, and its loop
/// over rotated pairs never ends (`ops.cpp: ggml_compute_forward_rope_flt`).
///
/// # Errors
/// A model with which it does not.
pub fn check_ends(model: &Model<'_>) -> Result<()> {
    const HEADS: &str = "plamo2.attention.head_count";
    let Some(entry) = model.metadata().get(HEADS) else {
        return Ok(());
    };
    let first = match entry.value().as_array() {
        Ok(heads) => heads.i64s().next().transpose()?,
        Err(_) => None,
    };
    ensure!(
        model.architecture() != "plamo2" || first != Some(0),
        "cannot be evaluated: metadata '{HEADS}' says no heads for block 0, and there llama.cpp never ends"
    );
    Ok(())
}

/// How a model's blocks run, and what passes between them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Course {
    /// Blocks that are evaluated.
    pub n_blocks: usize,
    /// How often: once, but for looped models.
    pub n_loops: usize,
    /// Streams of each token: one, but for hyper-connections.
    pub n_streams: usize,
}

impl Course {
    /// That of `model`, whose hidden states appear as `stream` says.
    ///
    /// # Errors
    /// A count in the metadata that is not a number.
    pub fn of(model: &Model<'_>, stream: Stream) -> Result<Self> {
        let count = |key| Ok::<_, Error>(model.count(key)?.unwrap_or(1));
        Ok(Self {
            n_blocks: model.n_trunk_blocks(),
            n_loops: match stream {
                Stream::Looped { loops_key, .. } => count(loops_key)?,
                _ => 1,
            },
            n_streams: match stream {
                Stream::Parallel { streams_key, .. } => count(streams_key)?,
                _ => 1,
            },
        })
    }
}

/// Evaluates windows with llama.cpp and taps the residual stream.
pub struct LlamaHiddenStates<'model> {
    context: Context<'model>,
    stream: Stream,
    course: Course,
    n_embd: usize,
    halves: Option<Halves>,
    /// Runs of a block after which an evaluation stops.
    n_wanted: usize,
    state: Vec<f32>,
}

impl<'model> LlamaHiddenStates<'model> {
    /// Prepares evaluation of windows of at most `options.window` tokens.
    ///
    /// # Errors
    /// llama.cpp's, if it cannot set up the evaluation.
    pub fn new(
        model: &'model ggml::Model,
        options: ContextOptions,
        stream: Stream,
        course: Course,
    ) -> Result<Self> {
        Ok(Self::of(
            Context::new(model, options)?,
            model,
            stream,
            course,
        ))
    }

    /// As [`LlamaHiddenStates::new`], with threads that others use, too.
    ///
    /// # Errors
    /// As [`LlamaHiddenStates::new`].
    pub fn with_threads(
        model: &'model ggml::Model,
        window: usize,
        threads: &Rc<ThreadPool>,
        stream: Stream,
        course: Course,
    ) -> Result<Self> {
        let context = Context::with_threads(model, window, threads)?;
        Ok(Self::of(context, model, stream, course))
    }

    fn of(context: Context<'model>, model: &ggml::Model, stream: Stream, course: Course) -> Self {
        Self {
            context,
            stream,
            course,
            n_embd: model.n_embd(),
            halves: None,
            n_wanted: course.n_blocks * course.n_loops,
            state: Vec::new(),
        }
    }

    /// Stops behind the first `n_blocks` blocks, one at least: only their hidden states are shown.
    #[must_use]
    pub fn up_to(self, n_blocks: usize) -> Self {
        let n_wanted = n_blocks.clamp(1, self.n_wanted);
        Self { n_wanted, ..self }
    }

    /// Shows the stream between the halves of every block, too.
    #[must_use]
    pub fn with_halves(self, halves: Option<Halves>) -> Self {
        Self { halves, ..self }
    }
}

impl HiddenStates for LlamaHiddenStates<'_> {
    fn n_blocks(&self) -> usize {
        self.course.n_blocks
    }

    fn n_embd(&self) -> usize {
        self.n_embd * self.course.n_streams
    }

    fn visit(&mut self, window: &[Token], visit: &mut Visitor<'_>) -> Result<()> {
        let mut tap = StreamTap {
            stream: self.stream,
            n_blocks: self.course.n_blocks,
            n_runs: self.course.n_blocks * self.course.n_loops,
            n_wanted: self.n_wanted,
            shape: match self.stream {
                Stream::Parallel { .. } => [self.n_embd, self.course.n_streams, window.len(), 1],
                _ => [self.n_embd, window.len(), 1, 1],
            },
            halves: self.halves.as_ref(),
            state: &mut self.state,
            visit,
            n_outputs: 0,
            seen_middle: false,
            seen_input: false,
            error: None,
        };
        let result = self.context.evaluate(WindowInput::Tokens(window), &mut tap);
        if let Some(error) = tap.error {
            return Err(error);
        }
        result?;
        if tap.n_outputs < tap.n_wanted {
            bail!(
                "llama.cpp's graph shows the hidden state after {} of {} blocks; the names in this build are not those \
                 that are known for the architecture",
                tap.n_outputs,
                tap.n_wanted
            );
        }
        Ok(())
    }
}

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
        seen_input: false,
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
    let mut tap = ReaderTap {
        reader,
        n_tokens: input.len() / n_embd,
        read,
        n_found: 0,
        error: None,
    };
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

struct StreamTap<'t, 'v> {
    stream: Stream,
    n_blocks: usize,
    /// Runs of a block on one window: the number of blocks times that of loops.
    n_runs: usize,
    /// After how many of them evaluation stops.
    n_wanted: usize,
    /// `[n_embd, n_tokens]`, or with several streams `[n_embd, n_streams, n_tokens]`, as ggml writes it.
    shape: [usize; 4],
    halves: Option<&'t Halves>,
    state: &'t mut Vec<f32>,
    visit: &'t mut Visitor<'v>,
    /// Block outputs seen so far. They come in order, so this is also the run that comes next.
    n_outputs: usize,
    /// Whether the middle of the block that comes next was seen.
    seen_middle: bool,
    seen_input: bool,
    error: Option<Error>,
}

impl StreamTap<'_, '_> {
    /// The block that comes next.
    fn next_block(&self) -> BlockId {
        BlockId::new(self.n_outputs % self.n_blocks)
    }

    /// The middle of the next block, if it shows at `node`: as that or as an operand that still lives.
    fn middle<'n>(&self, node: Node<'n>) -> Option<Node<'n>> {
        let halves = self.halves?;
        if self.seen_middle || !self.seen_input {
            return None;
        }
        match halves.node {
            MiddleNode::Named(name) => {
                (numbered(node.name(), name) == Some(self.n_outputs)).then_some(node)
            }
            MiddleNode::ReadByNorm => {
                // The norm is two nodes: the middle is scaled to length one, then multiplied by the weights.
                let weights = node.operand(1)?.name();
                let number = weights
                    .strip_prefix("blk.")?
                    .strip_suffix(".ffn_norm.weight")?;
                (number.parse() == Ok(self.next_block().index()))
                    .then(|| node.operand(0)?.operand(0))?
            }
        }
    }

    /// The point of the stream that `node` is, if it is one that has not been seen.
    fn sight(&self, node: Node<'_>) -> Option<Position> {
        let next = self.n_outputs;
        let output = |run: usize| Position::Output(BlockId::new(run % self.n_blocks));
        let name = node.name();
        if self.middle(node).is_some() {
            return Some(Position::Middle(self.next_block()));
        }
        match self.stream {
            Stream::Named { input }
            | Stream::Renamed { input, .. }
            | Stream::Parallel { input, .. }
            | Stream::NamedTo { input, .. }
            | Stream::Stacked { input }
            | Stream::Looped { input, .. } => {
                let is_input =
                    || name == input || node.operand(1).is_some_and(|o| o.name() == input);
                if !self.seen_input && is_input() {
                    return Some(Position::Input);
                }
                let of_block = match self.stream {
                    Stream::Renamed { output, .. } | Stream::Parallel { output, .. } => output,
                    _ => "l_out",
                };
                if numbered(name, of_block) == Some(next) {
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
            Stream::ResidualSum { input } => {
                if !self.seen_input {
                    return (name == input).then_some(Position::Input);
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
        let n_floats = self.shape.iter().product();
        let fits = match self.stream {
            Stream::Stacked { .. } => node.ne()[..2] == self.shape[..2],
            _ => node.ne() == self.shape,
        };
        if !fits {
            return Err(anyhow!(
                "graph node '{}' has the shape {:?}, expected {:?} for a hidden state",
                node.name(),
                node.ne(),
                self.shape
            ));
        }
        if let (Position::Output(block), Some(halves)) = (position, self.halves)
            && !self.seen_middle
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
            Position::Input => self.seen_input = true,
            Position::Middle(_) => self.seen_middle = true,
            Position::Output(_) => {
                self.n_outputs += 1;
                self.seen_middle = false;
            }
        }
        Ok(if self.n_outputs == self.n_wanted {
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
