//! Block by block: all windows of a text through one block, then through the next.
//!
//! One block's weights are in memory at a time, each read once from the mapped file and given back. What stays are the hidden
//! states of the text, in memory or in files. So a model may be larger than memory, and an evaluation that was interrupted goes
//! on with the block that it was at. Each block is a segment ([`crate::engine::segment`]), which computes what it does inside
//! of the model, bit for bit, where [`check`] finds no reason against it. Where all blocks fit in memory, a window goes through
//! all of them before the next ([`Pass::in_parallel`]).

mod checkpoint;
mod fastest;
mod hashing;
pub mod logits;
pub mod need;
pub mod replay;
mod states;
mod workers;

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use ggml::{ModelOptions, ThreadPool};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::engine::conversion::Conversion;
use crate::engine::hidden_state::{Passage, Position, Token};
use crate::engine::imatrix::{Collector, Gathered, Gathers};
use crate::engine::llama::Halves;
use crate::engine::segment::{FrontSegment, Segments, Tokens, is_exact};
use crate::engine::settings::Calibration;
use crate::engine::text::CalibrationSet;
use crate::files::byte_size::ByteSize;
use crate::files::place;
use crate::model::input::Input;
use crate::model::{BlockId, Model};
use crate::plan::{ChangedTensors, Constraints};
use crate::watch::{Progress, Watch};
use checkpoint::{Checkpoint, Record};
use hashing::Reading;
use need::Need;
use states::States;

/// Checks that evaluation block by block gives the bits of the whole.
///
/// # Errors
/// The reason.
pub fn check(model: &Model<'_>, constraints: &Constraints) -> Result<()> {
    ensure!(
        is_exact(constraints),
        "its architecture, '{}', is not one of those whose blocks are known to compute alone what they do inside of the model",
        model.architecture()
    );
    ensure!(
        model.n_blocks() == model.n_trunk_blocks(),
        "it has next-token prediction blocks, with which no block is evaluated alone"
    );
    n_embd(model)?;
    Ok(())
}

/// Width of the stream, in elements.
fn n_embd(model: &Model<'_>) -> Result<usize> {
    let n_embd = model.count("embedding_length")?;
    n_embd
        .filter(|n| *n > 0)
        .with_context(|| format!("metadata '{}.embedding_length' is missing", model.architecture()))
}

/// The evaluation of a text, block by block.
pub struct Pass<'m, 'a> {
    input: &'m Input,
    model: &'m Model<'m>,
    segments: Segments<'m, 'a>,
    /// The threads of each worker. Empty where windows are evaluated one by one.
    pools: Vec<Arc<ThreadPool>>,
    /// Whether all blocks are in memory.
    all_at_once: bool,
    windows: Vec<&'m [Token]>,
    tokens: Tokens,
    halves: Option<Halves>,
    gathers: Gathers,
    /// What was added up of the blocks so far.
    gathered: Gathered,
    states: States,
    n_embd: usize,
    next: usize,
    kept: Option<(Checkpoint, blake3::Hash)>,
    reading: Reading<'m>,
}

impl<'m> Pass<'m, 'm> {
    /// A pass of `set`'s windows through `model`, with states in memory. The model is in `input`.
    ///
    /// # Errors
    /// As [`check`].
    pub fn new(
        input: &'m Input,
        model: &'m Model<'m>,
        constraints: &'m Constraints,
        set: &'m CalibrationSet,
        threads: &Arc<ThreadPool>,
        options: ModelOptions,
    ) -> Result<Self> {
        check(model, constraints)
            .with_context(|| format!("{}: cannot be evaluated block by block", input.path().display()))?;
        let windows: Vec<&[Token]> = set.windows().collect();
        Ok(Self {
            input,
            model,
            segments: Segments::new(model, constraints, set.window, threads).on(options),
            tokens: Tokens::of(windows.iter().copied()),
            states: States::in_memory(windows.len()),
            n_embd: n_embd(model)?,
            windows,
            pools: Vec::new(),
            all_at_once: false,
            halves: None,
            gathers: Gathers::default(),
            gathered: Gathered::default(),
            next: 0,
            kept: None,
            reading: Reading::new(input, model),
        })
    }

    /// Shows the stream between the halves of blocks, too.
    #[must_use]
    pub fn with_halves(self, halves: Option<Halves>) -> Self {
        Self { halves, ..self }
    }

    /// Adds up what weights multiply or experts do, too.
    #[must_use]
    pub fn gathering(self, gathers: Gathers) -> Self {
        Self { gathers, ..self }
    }

    /// Gives what was added up.
    #[must_use]
    pub fn take_gathered(&mut self) -> Gathered {
        std::mem::take(&mut self.gathered)
    }

    /// Keeps states, and how far the pass is, in `folder`. Goes on where a pass with the same `key` was interrupted. Returns
    /// what was measured up to there.
    ///
    /// # Errors
    /// A folder that cannot be used; another run that uses it.
    pub fn kept_in<M: DeserializeOwned>(
        mut self,
        folder: &Path,
        key: blake3::Hash,
        watch: &dyn Watch,
    ) -> Result<(Self, Option<M>)> {
        let n_floats = self.segments.window() * self.n_embd;
        let (checkpoint, states, mut resumed) =
            Checkpoint::open(folder, &key, self.windows.len(), n_floats, watch)?;
        if let Some(at) = resumed.as_ref().filter(|_| self.gathers.any()) {
            match checkpoint.sums(at.next, watch) {
                None => resumed = None,
                Some(found) => self.gathered = found,
            }
        }
        let kept = Some((checkpoint, key));
        match resumed {
            None => Ok((Self { states, kept, ..self }, None)),
            Some(resumed) => {
                ensure!(resumed.next <= self.n_blocks(), "bug: a checkpoint after the last block");
                watch.note(&format!(
                    "goes on at block {} of {}, where it was interrupted",
                    resumed.next,
                    self.n_blocks()
                ));
                let segments = self.segments.converted(resumed.conversion);
                // What lies before was read by another run.
                let reading = self.reading.without_hash();
                let pass = Self { segments, states, kept, next: resumed.next, reading, ..self };
                Ok((pass, Some(resumed.measured)))
            }
        }
    }

    /// Converts the weights of blocks, unless they were already before an interrupt.
    ///
    /// To `conversion`, or without one to what is fastest here, if blocks then take at most `spare` more bytes.
    ///
    /// # Errors
    /// A block that llama.cpp does not take alone.
    pub fn converted(self, conversion: Option<Conversion>, spare: u64) -> Result<Self> {
        let conversion = match (self.next, conversion) {
            (0, Some(conversion)) => conversion,
            (0, None) => {
                let n_tokens = self.windows.iter().map(|window| window.len()).sum();
                fastest::fastest(&self.segments, spare, n_tokens)?
            }
            _ => self.segments.conversion(),
        };
        Ok(Self { segments: self.segments.converted(conversion), ..self })
    }

    /// Evaluates several windows at the same time, each on its share of `n_threads`.
    ///
    /// So no thread waits for another at every step. They are as many as have room in `spare` bytes of `need`. Where all
    /// blocks have room, too, and nothing is kept in a folder, a window goes through all of them before the next: that saves
    /// what llama.cpp does for each window and model. What is gathered is added up window by window, and block by block.
    ///
    /// # Errors
    /// Threads that cannot be started; a block that llama.cpp does not take alone.
    pub fn in_parallel(self, n_threads: usize, spare: u64, need: &Need) -> Result<Self> {
        if self.gathers.any() {
            return Ok(self);
        }
        let sizes = self.segments.sizes()?;
        let largest = sizes.iter().copied().max().unwrap_or(0);
        let unconverted = match self.conversion() {
            Conversion::None => largest,
            _ => self.segments.clone().converted(Conversion::None).largest()?.map_or(0, |(_, n)| n),
        };
        let spare = spare.saturating_sub(largest.saturating_sub(unconverted));
        let room = usize::try_from(spare / need.each.max(1)).unwrap_or(usize::MAX).saturating_add(1);
        let n = n_threads.min(self.windows.len()).min(room).max(1);
        let others = (sizes.into_iter().fold(0, u64::saturating_add) - largest)
            .saturating_add((need.cache.saturating_mul(self.n_blocks() as u64)).saturating_mul(n as u64))
            .saturating_add((need.each.saturating_add(need.outputs)).saturating_mul(n as u64 - 1));
        let all_at_once = self.kept.is_none() && others <= spare;
        if n < 2 {
            return Ok(Self { all_at_once, ..self });
        }
        let share = |worker| n_threads / n + usize::from(worker < n_threads % n);
        let pools = (0..n).map(|worker| Ok(Arc::new(ThreadPool::new(share(worker))?)));
        Ok(Self { pools: pools.collect::<Result<_>>()?, all_at_once, ..self })
    }

    /// What the weights of blocks are converted to.
    #[must_use]
    pub fn conversion(&self) -> Conversion {
        self.segments.conversion()
    }

    /// Keeps states in `folder`, in files without a name.
    ///
    /// # Errors
    /// A folder in which no file can be made; not enough room.
    pub fn kept_for_logits(self, folder: &Path) -> Result<Self> {
        let n_floats = self.segments.window() * self.n_embd;
        let file =
            || tempfile::tempfile_in(folder).with_context(|| format!("a file in '{}'", folder.display()));
        let n_bytes = (n_floats as u64).saturating_mul(self.windows.len() as u64).saturating_mul(8);
        place::check_free(folder, n_bytes, 0).context("hidden states of the text")?;
        Ok(Self { states: States::in_files([file()?, file()?], n_floats, 0), ..self })
    }

    /// The number of blocks.
    #[must_use]
    pub fn n_blocks(&self) -> usize {
        self.model.n_trunk_blocks()
    }

    /// Width of the stream, in elements.
    #[must_use]
    pub fn n_embd(&self) -> usize {
        self.n_embd
    }

    /// The number of windows.
    #[must_use]
    pub fn n_windows(&self) -> usize {
        self.windows.len()
    }

    /// The block that comes next; the number of blocks at the end.
    #[must_use]
    pub fn next(&self) -> usize {
        self.next
    }

    /// Evaluates the next block on all windows. `visit` sees each result.
    ///
    /// # Errors
    /// The visitor's; llama.cpp's; states that cannot be kept.
    pub fn block(
        &mut self,
        visit: &mut dyn FnMut(Passage<'_>) -> Result<()>,
        watch: &dyn Watch,
    ) -> Result<()> {
        let block = BlockId::new(self.next);
        // In its segment it is block 0.
        let collector = self.gathers.any().then(|| Collector::of(self.gathers).in_segment(block));
        let collector = match self.next {
            0 => self.first_block(collector, visit)?,
            _ => self.later_block(collector, visit)?,
        };
        if let Some(collector) = collector {
            let of_block = collector.into_gathered();
            if let Some((checkpoint, _)) = &self.kept {
                checkpoint.keep_sums(self.next, &of_block, watch);
            }
            self.gathered.merge(of_block)?;
        }
        self.reading.give_back(block);
        self.next += 1;
        Ok(())
    }

    fn first_block(
        &mut self,
        collector: Option<Collector>,
        visit: &mut dyn FnMut(Passage<'_>) -> Result<()>,
    ) -> Result<Option<Collector>> {
        let front = FrontSegment::load(&self.segments, &self.tokens, self.halves.as_ref())?;
        let mut front = front.with_collector(collector);
        for (number, window) in self.windows.iter().enumerate() {
            let (mut before, mut middle, mut after) = (Vec::new(), None, Vec::new());
            front.visit(window, &mut |position, state| {
                match position {
                    Position::Input => before = state.to_vec(),
                    Position::Middle(_) => middle = Some(state.to_vec()),
                    Position::Output(_) => after = state.to_vec(),
                }
                Ok(())
            })?;
            ensure!(!before.is_empty(), "llama.cpp's graph does not show the hidden state before block 0");
            let (block, middle) = (BlockId::new(0), middle.as_deref());
            visit(Passage { block, window: number, before: &before, middle, after: &after })?;
            self.states.write(number, after)?;
        }
        if !self.pools.is_empty() {
            // Its threads would look for work for a while.
            self.segments.threads().pause();
        }
        Ok(front.into_collector())
    }

    fn later_block(
        &mut self,
        mut collector: Option<Collector>,
        visit: &mut dyn FnMut(Passage<'_>) -> Result<()>,
    ) -> Result<Option<Collector>> {
        let block = BlockId::new(self.next);
        let halves = self.halves.as_ref().map(|halves| halves.of_block(block));
        let halves = halves.as_ref();
        let n_windows = self.windows.len();
        if !self.pools.is_empty() {
            let mut segments = self.segments.block_on_each(block, &self.pools)?;
            workers::evaluate(block, &mut segments, halves, &mut self.states, n_windows, visit)?;
            return Ok(collector);
        }
        let mut segment = self.segments.block(block, &ChangedTensors::new())?;
        for window in 0..n_windows {
            let before = self.states.take(window)?;
            let (middle, after) = segment.run_collecting(&before, halves, collector.as_mut())?;
            visit(Passage { block, window, before: &before, middle: middle.as_deref(), after: &after })?;
            self.states.write(window, after)?;
        }
        Ok(collector)
    }

    /// Ends the block that was evaluated last. Its states take the place of those before it, and with a folder what was
    /// `measured` so far is kept.
    pub fn turn<M: Serialize>(&mut self, measured: &M, watch: &dyn Watch) {
        if let (Some((checkpoint, key)), Some(written)) = (&self.kept, self.states.turn()) {
            let record = Record {
                key: key.to_hex().to_string(),
                next: self.next,
                file: written.file,
                blake3: written.blake3.to_hex().to_string(),
                conversion: self.conversion(),
                measured,
            };
            checkpoint.keep(&record, watch);
        }
    }

    /// Evaluates all blocks that are left, with progress, and ends each. `measured` is what is kept of them.
    ///
    /// # Errors
    /// As [`Pass::block`].
    pub fn run<M: Serialize>(
        &mut self,
        up_to: usize,
        measured: &mut M,
        visit: &mut dyn FnMut(&mut M, Passage<'_>) -> Result<()>,
        bar: &dyn Progress,
        watch: &dyn Watch,
    ) -> Result<()> {
        if self.all_at_once && self.next == 0 && up_to == self.n_blocks() {
            return self.all_blocks(&mut |passage| visit(measured, passage), bar);
        }
        let n_tokens: usize = self.windows.iter().map(|window| window.len()).sum();
        let n_blocks = up_to.max(1);
        while self.next < up_to {
            let number = self.next;
            bar.set_message(format!(
                "block {} of {n_blocks}, {} read",
                number + 1,
                ByteSize(self.reading.n_bytes)
            ));
            let mut done = 0;
            let window = self.segments.window();
            let mut visit = |passage: Passage<'_>| {
                visit(measured, passage)?;
                done += window;
                bar.set_position(((number * n_tokens + done) / n_blocks) as u64);
                Ok(())
            };
            self.block(&mut visit, watch)?;
            self.turn(measured, watch);
        }
        Ok(())
    }

    /// Evaluates all blocks of a window before the next.
    fn all_blocks(
        &mut self,
        visit: &mut dyn FnMut(Passage<'_>) -> Result<()>,
        bar: &dyn Progress,
    ) -> Result<()> {
        let own = [Arc::clone(self.segments.threads())];
        let n_blocks = self.n_blocks();
        let pools = if self.pools.is_empty() { &own[..] } else { &self.pools[..] };
        let halves = self.halves.as_ref();
        let mut fronts = FrontSegment::load_on_each(&self.segments, n_blocks, &self.tokens, halves, pools)?;
        (0..n_blocks).map(BlockId::new).for_each(|block| self.reading.give_back(block));
        if !self.pools.is_empty() {
            // They would look for work for a while.
            self.segments.threads().pause();
        }
        let (mut done, window) = (0, self.segments.window());
        let mut visit = |passage: Passage<'_>| {
            visit(passage)?;
            done += window;
            bar.set_position((done / n_blocks) as u64);
            Ok(())
        };
        workers::evaluate_windows(&mut fronts, n_blocks, &self.windows, &mut visit)?;
        self.next = n_blocks;
        Ok(())
    }

    /// What the pass is, for its checkpoint.
    ///
    /// # Errors
    /// A bug.
    pub fn key(&self, options: &Calibration) -> Result<blake3::Hash> {
        let mut tokens = blake3::Hasher::new();
        for token in self.windows.iter().copied().flatten() {
            tokens.update(&token.to_le_bytes());
        }
        let files = self.input.parts().iter();
        let key = Key {
            gguf_shorten: env!("GGUF_SHORTEN_VERSION"),
            files: files.map(|part| (part.path.display().to_string(), part.stamp)).collect(),
            tokens: tokens.finalize().to_hex().to_string(),
            window: self.segments.window(),
            halves: self.halves.is_some(),
            gathers: self.gathers,
            gpu_layers: options.gpu_layers,
            conversion: options.conversion,
        };
        Ok(blake3::hash(&serde_json::to_vec(&key)?))
    }

    /// Ends the pass: its files go. Returns the hash of the model's files where all of them were read on the way.
    pub fn finish(mut self) -> Option<blake3::Hash> {
        if let Some((checkpoint, _)) = &self.kept {
            checkpoint.remove(self.n_blocks());
        }
        self.reading.finish()
    }
}

/// What a pass depends on, for the key of its checkpoint.
#[derive(Serialize)]
struct Key<'k> {
    /// Version of this program.
    gguf_shorten: &'k str,
    /// The model's files: path and stamp of each.
    files: Vec<(String, crate::files::stamp::Stamp)>,
    /// Hash of the tokens of all windows.
    tokens: String,
    /// Tokens of a window.
    window: usize,
    /// Whether halves of blocks are scored.
    halves: bool,
    /// What is added up.
    gathers: Gathers,
    /// As in llama.cpp; null is its default.
    gpu_layers: Option<i32>,
    /// What weights are to be converted to; null is what is fastest.
    conversion: Option<Conversion>,
}
