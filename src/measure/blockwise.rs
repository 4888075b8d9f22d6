//! A calibration block by block: the scores of models larger than memory.

use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use ggml::{Backend, ModelOptions, ThreadPool};

use crate::engine::blockwise::need::{Need, Size, Way};
use crate::engine::blockwise::replay::Replay;
use crate::engine::blockwise::{self, Pass, need};
use crate::engine::conversion::Conversion;
use crate::engine::hidden_state::HiddenStates;
use crate::engine::imatrix::{self, Gathered, Gathers};
use crate::engine::llama::Halves;
use crate::engine::load::{Weights, load_and_cut};
use crate::engine::memory_file::MemoryFile;
use crate::engine::scored::scored;
use crate::engine::segment::{Chain, takes_streams};
use crate::engine::settings::Calibration;
use crate::engine::text::CalibrationSet;
use crate::files::free_memory;
use crate::measure::importance::{Importance, Measuring};
use crate::measure::pairs::{Paired, Pairs};
use crate::model::Model;
use crate::output::Parent;
use crate::watch::{Progress, Unit, Watch};

/// Scores of blocks on a text, before they are reported.
pub(crate) struct Measured {
    pub(crate) importance: Importance,
    pub(crate) set: CalibrationSet,
    pub(crate) seconds: f64,
    /// What the weights of blocks were converted to.
    pub(crate) conversion: Conversion,
    /// Of the model's files, where they were hashed on the way.
    pub(crate) hash: Option<blake3::Hash>,
    /// What was added up beside.
    pub(crate) gathered: Gathered,
}

/// What is kept of a text, beside one hidden state per window.
#[derive(Clone, Copy)]
pub(crate) struct Kept {
    /// The hidden states at all positions of the stream.
    pub(crate) states: bool,
    /// What is added up.
    pub(crate) gathers: Gathers,
}

/// What is measured block by block, beside the scores of whole blocks.
pub(super) struct Wanted<'p> {
    /// How alike states are.
    pub(super) pairs: Option<&'p mut Pairs>,
    /// The scores of halves.
    pub(super) halves: Option<Halves>,
    /// What is added up.
    pub(super) gathers: Gathers,
}

/// How the hidden states of `parent` are measured. As a whole where that fits, else block by block.
///
/// # Errors
/// Neither fits.
pub(crate) fn way(parent: Parent<'_>, options: &Calibration, kept: Kept) -> Result<Way> {
    if is_elsewhere(options) {
        return Ok(Way::Whole);
    }
    Ok(need_and_way(parent, options, size(parent, options, kept), options.memory)?.1)
}

/// The size of a text, with what is kept of it.
fn size(parent: Parent<'_>, options: &Calibration, kept: Kept) -> Size {
    let window = options.window.max(1);
    let n_kept = if kept.states { parent.model.n_trunk_blocks() + 2 } else { 1 };
    let n_windows = (options.tokens / window).saturating_mul(n_kept);
    Size { window, n_windows, n_logits: 0, gathers: kept.gathers }
}

/// Whether scores may come from the whole model, as asked for.
pub(crate) fn fits(parent: Parent<'_>, options: &Calibration, kept: Kept) -> bool {
    let asked = options.conversion.is_some_and(|conversion| conversion != Conversion::None);
    !asked && matches!(way(parent, options, kept), Ok(Way::Whole))
}

/// Operations below which timing what is fastest is not worth it. A slow core does them in a second.
const WORTH: u64 = 100_000_000_000;

/// As [`way`], of scores. Also block by block where converted blocks are likely to be faster than the whole.
///
/// # Errors
/// As [`way`]; a conversion that was asked for and is not possible.
pub(crate) fn way_of_scores(parent: Parent<'_>, options: &Calibration, kept: Kept) -> Result<Way> {
    let found = way(parent, options, kept)?;
    if found != Way::Whole || options.conversion == Some(Conversion::None) {
        return Ok(found);
    }
    let possible = match is_elsewhere(options) {
        true => Err(anyhow::anyhow!("another device than the CPU evaluates them")),
        false => by_blocks_at_all(parent, options),
    };
    let asked = options.conversion.is_some();
    if let Err(why) = possible {
        let why = why.context("weights are not converted, since the model does not go block by block");
        return if asked { Err(why).with_context(|| parent.name()) } else { Ok(found) };
    }
    let need = Need::of(parent.model, parent.constraints, size(parent, options, kept))?;
    let spare = need.spare(options.memory, Way::Blocks);
    // Speed is worth a quarter of the memory.
    let pays = spare.is_some_and(|spare| need.states <= spare / 3) && n_operations(parent, options) >= WORTH;
    Ok(if pays || asked && spare.is_some() { Way::Blocks } else { found })
}

/// Multiplications and additions of the text with weights that may be converted.
fn n_operations(parent: Parent<'_>, options: &Calibration) -> u64 {
    let tensors = parent.model.tensors().iter();
    let weights = tensors.filter_map(|tensor| {
        let (_, rest) = tensor.block.as_ref()?;
        Conversion::F32.target(rest, &tensor.info).map(|_| tensor.info.n_elements())
    });
    weights.fold(0u64, u64::saturating_add).saturating_mul(2).saturating_mul(options.tokens as u64)
}

/// What logits take block by block, and the memory beside it, where the whole model does not fit in `room`.
///
/// # Errors
/// As [`way`].
pub(crate) fn logits_by_blocks(
    parent: Parent<'_>,
    options: &Calibration,
    room: Option<u64>,
) -> Result<Option<(Need, u64)>> {
    if is_elsewhere(options) {
        return Ok(None);
    }
    let (need, way) = need_and_way(parent, options, logits_size(options), room)?;
    Ok((way != Way::Whole).then(|| (need, need.spare(room, way).unwrap_or(0))))
}

/// The memory that evaluations may take together, in bytes. `None` where it is not known.
pub fn room(options: &Calibration) -> Option<u64> {
    options.memory.or_else(free_memory::available)
}

/// Bytes that the logits of the whole model take. 0 where it is in the memory of a device.
pub fn whole_bytes(model: &Model<'_>, options: &Calibration) -> u64 {
    if is_elsewhere(options) { 0 } else { Need::of_whole(model, logits_size(options)) }
}

fn need_and_way(
    parent: Parent<'_>,
    options: &Calibration,
    size: Size,
    room: Option<u64>,
) -> Result<(Need, Way)> {
    let by_blocks = by_blocks_at_all(parent, options);
    let need = Need::of(parent.model, parent.constraints, size).with_context(|| parent.name())?;
    let way = need.way(room, by_blocks, options.scratch.is_some()).with_context(|| parent.name())?;
    Ok((need, way))
}

/// Has `pass` evaluate several windows at the same time, unless a GPU evaluates them.
///
/// # Errors
/// As [`Pass::in_parallel`].
pub(crate) fn in_parallel<'m>(
    pass: Pass<'m, 'm>,
    options: &Calibration,
    spare: u64,
    need: &Need,
) -> Result<Pass<'m, 'm>> {
    match has_device(options) {
        true => Ok(pass),
        false => pass.in_parallel(options.threads, spare, need),
    }
}

/// Why the model cannot go block by block, whatever memory there is.
fn by_blocks_at_all(parent: Parent<'_>, options: &Calibration) -> Result<()> {
    ensure!(
        options.rpc.is_empty() && options.source.seed().is_none(),
        "neither servers nor text that the model writes go block by block"
    );
    blockwise::check(parent.model, parent.constraints)
}

/// The size of a text whose second halves of windows are scored.
fn logits_size(options: &Calibration) -> Size {
    let window = options.window.max(1);
    Size {
        window,
        n_windows: options.tokens / window,
        n_logits: scored(window).len(),
        gathers: Gathers::default(),
    }
}

/// Refuses a model that does not fit whole beside so many bytes.
///
/// # Errors
/// What it would take.
pub fn check_whole(parent: Parent<'_>, options: &Calibration, beside: u64, why: &str) -> Result<()> {
    if is_elsewhere(options) {
        return Ok(());
    }
    let whole = Need::of_whole(parent.model, logits_size(options)).saturating_add(beside);
    need::check_whole(whole, options.memory, why).with_context(|| parent.name())
}

/// Whether the whole model fits beside so many bytes.
pub(crate) fn fits_whole(parent: Parent<'_>, options: &Calibration, beside: u64) -> bool {
    check_whole(parent, options, beside, "").is_ok()
}

/// Bytes that the losses of removals take beside the whole model: its blocks once more, or a shortened model.
pub(crate) fn losses_bytes(parent: Parent<'_>, options: &Calibration) -> u64 {
    match takes_streams(parent.constraints) {
        true => Chain::n_bytes(parent.model, options.window, options.tokens),
        false => MemoryFile::loading_bytes(parent.model.n_bytes()),
    }
}

/// As [`losses_bytes`], with a candidate as a model of its own.
pub(crate) fn candidate_bytes(parent: Parent<'_>, options: &Calibration) -> u64 {
    losses_bytes(parent, options).saturating_add(MemoryFile::loading_bytes(parent.model.n_bytes()))
}

/// What weights are to be converted to. Nothing on a device, or where that takes longer than it saves.
fn conversion(parent: Parent<'_>, options: &Calibration) -> Option<Conversion> {
    let is_none = has_device(options) || n_operations(parent, options) < WORTH;
    options.conversion.or(is_none.then_some(Conversion::None))
}

/// Whether a GPU evaluates blocks.
fn has_device(options: &Calibration) -> bool {
    Backend::init().supports_gpu_offload() && options.gpu_layers != Some(0)
}

/// Whether weights are on a device or server, as far as known.
fn is_elsewhere(options: &Calibration) -> bool {
    options.memory.is_none() && (!options.rpc.is_empty() || has_device(options))
}

/// Measures block by block every block's importance, and all else `wanted`.
///
/// # Errors
/// Whatever keeps a block from being evaluated, or states from being kept.
pub(super) fn by_blocks(
    parent: Parent<'_>,
    options: &Calibration,
    watch: &dyn Watch,
    wanted: Wanted<'_>,
    way: Way,
) -> Result<Measured> {
    let Wanted { pairs, halves, gathers } = wanted;
    let at_path = || parent.name();
    let set = load_and_cut(parent.input, parent.model, options, watch, Weights::None)?.set;
    if gathers.imatrix {
        imatrix::check_window(set.window).with_context(at_path)?;
    }
    let start = Instant::now();
    let bar = watch.begin("calibrating".into(), Unit::Tokens, set.n_tokens() as u64);
    let by_blocks = ByBlocks { parent, options, set: &set, way, bar: &*bar, watch };
    let done = by_blocks.run(halves, Kept { states: pairs.is_some(), gathers })?;
    if let (Some(pairs), Some(mut replay)) = (pairs, done.replay) {
        let mut paired = Paired::new(&mut replay, pairs);
        for window in set.windows() {
            paired.visit(window, &mut |_, _| Ok(())).with_context(at_path)?;
        }
    }
    drop(bar);
    parent.input.check_unchanged()?;
    let importance = done.measuring.importance().with_context(at_path)?;
    let seconds = start.elapsed().as_secs_f64();
    let Evaluated { conversion, hash, gathered, .. } = done;
    Ok(Measured { importance, set, seconds, conversion, hash, gathered })
}

/// Keeps the states of `set` at every position, evaluated block by block. Says what weights were converted to.
///
/// # Errors
/// As [`by_blocks`].
pub(crate) fn replay(
    parent: Parent<'_>,
    options: &Calibration,
    set: &CalibrationSet,
    way: Way,
    watch: &dyn Watch,
) -> Result<(Replay, Conversion)> {
    let bar = watch.begin("evaluating blocks".into(), Unit::Tokens, set.n_tokens() as u64);
    let by_blocks = ByBlocks { parent, options, set, way, bar: &*bar, watch };
    let done = by_blocks.run(None, Kept { states: true, gathers: Gathers::default() })?;
    Ok((done.replay.context("bug: no states were kept")?, done.conversion))
}

/// What comes of a text that went through all blocks.
struct Evaluated {
    measuring: Measuring,
    conversion: Conversion,
    replay: Option<Replay>,
    hash: Option<blake3::Hash>,
    gathered: Gathered,
}

/// A text on its way through the blocks.
struct ByBlocks<'b> {
    parent: Parent<'b>,
    options: &'b Calibration,
    set: &'b CalibrationSet,
    way: Way,
    bar: &'b dyn Progress,
    watch: &'b dyn Watch,
}

impl ByBlocks<'_> {
    /// Evaluates all blocks. Where all states are kept, nothing goes on after an interrupt.
    fn run(&self, halves: Option<Halves>, kept: Kept) -> Result<Evaluated> {
        let Self { parent, options, set, watch, .. } = *self;
        let at_path = || parent.name();
        let n_blocks = parent.model.n_trunk_blocks();
        let threads = Arc::new(ThreadPool::new(options.threads)?);
        let on = ModelOptions { gpu_layers: options.gpu_layers, ..ModelOptions::default() };
        let mut pass = Pass::new(parent.input, parent.model, parent.constraints, set, &threads, on)?
            .with_halves(halves)
            .gathering(kept.gathers);
        let mut measuring = Measuring::new(n_blocks);
        if let Some(folder) = options.scratch.as_deref().filter(|_| !kept.states) {
            let key = pass.key(options)?;
            let (resumed, measured) = pass.kept_in(folder, key, watch)?;
            (pass, measuring) = (resumed, measured.unwrap_or(measuring));
        }
        let need = Need::of(parent.model, parent.constraints, size(parent, options, kept))?;
        let spare = need.spare(options.memory, self.way).unwrap_or(0);
        pass = pass.converted(conversion(parent, options), spare).with_context(at_path)?;
        pass = in_parallel(pass, options, spare, &need).with_context(at_path)?;
        let n_embd = pass.n_embd();
        let folder = options.scratch.as_deref().filter(|_| self.way == Way::BlocksOnDisk);
        let mut replay =
            kept.states.then(|| Replay::new(n_blocks, pass.n_windows(), n_embd, folder)).transpose()?;
        let evaluated = pass.run(
            n_blocks,
            &mut measuring,
            &mut |measuring, passage| {
                measuring.passage(&passage, n_embd)?;
                replay.as_mut().map_or(Ok(()), |replay| replay.add(&passage))
            },
            self.bar,
            watch,
        );
        evaluated.with_context(at_path)?;
        let (conversion, gathered) = (pass.conversion(), pass.take_gathered());
        Ok(Evaluated { measuring, conversion, replay, hash: pass.finish(), gathered })
    }
}
