//! Healing as a part of the main job: all repairs are tried, and the best is kept.

use std::time::Instant;

use anyhow::{Context, Result, ensure};

use super::repairs::Repairs;
use super::trials::Trials;
use crate::engine::hidden_state::Token;
use crate::engine::llama;
use crate::engine::load::{Loaded, Weights, load_and_cut};
use crate::engine::memory_file::MemoryFile;
use crate::engine::scored::MIN_WINDOW;
use crate::engine::text::{CalibrationSet, DEFAULT_TOKENS, DEFAULT_WINDOW};
use crate::heal::Weighting;
use crate::heal::healer::stepwise::{Order, PATIENCE};
use crate::heal::healer::validation::LOGITS_BYTES;
use crate::heal::healer::{HealType, Healer, Setup};
use crate::heal::normal::NormalEquations;
use crate::heal::outcome::Healed;
use crate::heal::settings::{Heal, HealArg};
use crate::heal::split::{MIN_WINDOWS, Split};
use crate::heal::target_matrix::TargetMatrix;
use crate::measure::blockwise;
use crate::measure::loss::Objective;
use crate::model::Model;
use crate::model::block::BlockSet;
use crate::output::Parent;
use crate::plan::{Cut, attention};
use crate::watch::{Unit, Watch};

/// Minimum tokens per fitted coefficient of a row.
const TOKENS_PER_UNKNOWN: usize = 8;

/// Default tokens per fitted coefficient of a row. More gain little.
const DEFAULT_PER_UNKNOWN: usize = 32;

/// The same of a wide model, which takes long.
const LEAST_PER_UNKNOWN: usize = 10;

/// Tokens that a wide model gets at least.
const MANY_TOKENS: usize = 65_536;

/// Default number of tokens: enough for the largest matrix.
fn default_tokens(target: Option<&TargetMatrix>) -> usize {
    let n_in = target.map_or(0, |target| target.n_in);
    // A part of the windows is not fitted to.
    let least = n_in.saturating_mul(LEAST_PER_UNKNOWN).max(MANY_TOKENS);
    let wanted = n_in.saturating_mul(DEFAULT_PER_UNKNOWN).min(least);
    wanted.next_multiple_of(DEFAULT_WINDOW).max(DEFAULT_TOKENS)
}

/// Streams that are kept: the parent's, before the cut and after it, and the shortened model's.
const STREAMS: u64 = 3;

/// Bytes for each token.
fn streams_bytes(target: &TargetMatrix) -> u64 {
    (target.n_out as u64).saturating_mul(STREAMS * size_of::<f32>() as u64)
}

/// As [`default_tokens`], or as many as the memory has room for. They are whole windows.
fn wanted_tokens(target: Option<&TargetMatrix>, heal: &Heal) -> usize {
    let window = heal.calibration.window;
    let wanted = default_tokens(target).max(window);
    let (Some(max), Some(target)) = (heal.max_memory, target) else {
        return wanted;
    };
    let room = max.saturating_sub(sums_bytes(target, 1)) / streams_bytes(target).max(1);
    let room = usize::try_from(room).unwrap_or(usize::MAX);
    let least = window.saturating_mul(MIN_WINDOWS);
    (room / window.max(1)).saturating_mul(window).clamp(least, wanted.max(least))
}

/// Checks before any calibration whether `parent` can be healed as `heal` says. The memory that it may take must be enough.
///
/// # Errors
/// It cannot.
pub fn check(parent: Parent<'_>, heal: &Heal) -> Result<()> {
    if heal.how == HealArg::None {
        return Ok(());
    }
    check_model(parent.model, heal).with_context(|| parent.name())?;
    let target = Repairs::of(parent.model, heal.how)?.target;
    check_whole(parent, &settled(heal, target.as_ref()), target.as_ref())
}

/// Refuses a model that does not fit beside all that healing takes.
fn check_whole(parent: Parent<'_>, heal: &Heal, target: Option<&TargetMatrix>) -> Result<()> {
    let text = &heal.calibration;
    let streams = |target| streams_bytes(target).saturating_mul(text.tokens as u64);
    let fits = |target| sums_bytes(target, WEIGHTINGS.len()).saturating_add(streams(target));
    let states = heal.max_memory.unwrap_or(target.map_or(0, fits).saturating_add(LOGITS_BYTES));
    let beside = states.saturating_add(MemoryFile::loading_bytes(parent.model.n_bytes()));
    let why = "healing compares shortened models with the whole one";
    blockwise::check_whole(parent, text, beside, why)
}

fn check_model(model: &Model<'_>, heal: &Heal) -> Result<()> {
    llama::check_ends(model)?;
    let target = Repairs::of(model, heal.how)?.target;
    if let (HealType::To(tensor_type), Some(target)) = (heal.heal_type, target) {
        ensure!(
            tensor_type.row_bytes(target.n_in as u64).is_some(),
            "--heal-type {tensor_type}: rows of 'ffn_down' have {} weights, which are not whole quantisation blocks of {}",
            target.n_in,
            tensor_type.block_size()
        );
    }
    if heal.how == HealArg::Block {
        attention::check_model(model).context("cannot be healed by a block without attention")?;
    }
    let (Some(max), Some(target)) = (heal.max_memory, target) else {
        return Ok(());
    };
    let n_tokens = match heal.tokens_are_default {
        true => wanted_tokens(Some(&target), heal),
        false => heal.calibration.tokens,
    };
    let sums = sums_bytes(&target, 1);
    let streams = (n_tokens as u64).saturating_mul(streams_bytes(&target));
    let needed = sums.saturating_add(streams);
    ensure!(
        needed <= max,
        "healing needs {needed} bytes beside the model ({sums} for sums of {} inputs of 'ffn_down', {streams} for the hidden \
         states of {n_tokens} tokens), but --max-memory is {max}",
        target.n_in
    );
    Ok(())
}

/// Tries the repairs of `heal` for `parent` with `cut`. Sets of `shortlist` may take the place of its blocks. The best one on
/// held-out windows is kept.
///
/// # Errors
/// Whatever keeps the model from being evaluated; a block before a cut that cannot make up for it.
///
/// # Examples
/// ```
/// use gguf_shorten::engine::settings::Calibration;
/// use gguf_shorten::heal::run::heal;
/// use gguf_shorten::heal::settings::{Heal, HealArg};
/// use gguf_shorten::model::input::Input;
/// use gguf_shorten::model::{BlockId, Model};
/// use gguf_shorten::output::save::Target;
/// use gguf_shorten::output::verify::verify;
/// use gguf_shorten::output::Parent;
/// use gguf_shorten::plan::{Constraints, Cut, Plan};
/// use gguf_shorten::watch::Silent;
///
/// # include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/examples/tiny_model.rs"));
/// # fn main() -> anyhow::Result<()> {
/// # let folder = tempfile::tempdir()?;
/// # let [path, out] = ["model.gguf", "short.gguf"].map(|name| folder.path().join(name));
/// # save_tiny_model(&path, 6)?;
/// let input = Input::open(&path)?;
/// let model = Model::new(input.parse()?)?;
/// let constraints = Constraints::of(&model)?;
/// let parent = Parent { input: &input, model: &model, constraints: &constraints };
///
/// let cut = Cut::new([2, 3].map(BlockId::new).into(), "blocks");
/// let calibration = Calibration { tokens: 1024, window: 32, threads: 1, ..Calibration::default() };
/// let settings = Heal { how: HealArg::Auto, calibration, ..Heal::default() };
/// let healed = heal(parent, cut, &[], &settings, &Silent)?;
/// // Measured on windows that no weight was fitted to.
/// assert!(healed.report.held_out.is_some_and(|loss| loss.loss_healed <= loss.loss_none));
///
/// let plan = |parent_blake3| Plan::new(&model, &constraints, &healed.cut, parent_blake3);
/// Target::new(&out, &input, false)?.save(parent, &plan, &mut |_n_bytes| {})?;
/// let written = Input::open_file(&out)?;
/// assert!(verify(&model, &constraints, &written.parse()?, &|_n_bytes| {})?.differences.is_empty());
/// # Ok(())
/// # }
/// ```
pub fn heal(
    parent: Parent<'_>,
    cut: Cut,
    shortlist: &[BlockSet],
    heal: &Heal,
    watch: &dyn Watch,
) -> Result<Healed> {
    let at_path = || parent.name();
    ensure!(
        cut.experts.is_none(),
        "{}: cannot be healed without some of its experts: weights are fitted to blocks that have all",
        at_path()
    );
    let repairs = Repairs::of(parent.model, heal.how).with_context(at_path)?;
    let heal = &settled(heal, repairs.target.as_ref());
    check_whole(parent, heal, repairs.target.as_ref())?;
    let Loaded { engine, set, .. } =
        load_and_cut(parent.input, parent.model, &heal.calibration, watch, Weights::AsTheyAre)?;
    ensure!(
        set.window >= MIN_WINDOW,
        "{}: a window has {} tokens, but {MIN_WINDOW} or more are needed to score predictions",
        at_path(),
        set.window
    );
    let start = Instant::now();
    let windows: Vec<&[Token]> = set.windows().collect();
    let split = Split::of(&windows, set.texts(), set.own());
    let (mut warnings, is_hopeless) = warnings(&split, repairs.target.as_ref());
    warnings.extend(repairs.left_out.iter().cloned());
    warnings.iter().for_each(|warning| watch.warn(warning));
    let mut trials = Trials::new(cut, heal.objective);
    if !is_hopeless {
        let job = Job { parent, heal, repairs: &repairs, engine: &engine, set: &set, split: &split };
        let found = job.try_all(&mut trials, shortlist, watch).with_context(at_path)?;
        found.iter().for_each(|warning| watch.warn(warning));
        warnings.extend(found);
    }
    let mut healed = trials.outcome(parent.model, heal, &split);
    healed.report.seconds = start.elapsed().as_secs_f64();
    healed.report.warnings = warnings;
    Ok(healed)
}

/// Tokens of the calibration text, from its start, that healing `model` uses.
///
/// # Errors
/// It cannot be healed so.
pub fn n_tokens(model: &Model<'_>, heal: &Heal) -> Result<usize> {
    let repairs = Repairs::of(model, heal.how)?;
    Ok(settled(heal, repairs.target.as_ref()).calibration.tokens)
}

/// The settings with a fit's number of tokens and objective. For a task or a draft model, too, that is the parent's
/// predictions.
fn settled(heal: &Heal, target: Option<&TargetMatrix>) -> Heal {
    let mut heal = heal.clone();
    if heal.tokens_are_default {
        heal.calibration.tokens = wanted_tokens(target, &heal);
    }
    heal.objective = match heal.objective {
        Objective::Ppl => Objective::Ppl,
        Objective::Kl | Objective::Task | Objective::Draft => Objective::Kl,
    };
    heal
}

/// A model that is loaded to be healed.
struct Job<'j> {
    parent: Parent<'j>,
    heal: &'j Heal,
    repairs: &'j Repairs,
    engine: &'j ggml::Model,
    set: &'j CalibrationSet,
    split: &'j Split,
}

impl Job<'_> {
    /// Tries all repairs. Returns warnings about them.
    fn try_all(&self, trials: &mut Trials, shortlist: &[BlockSet], watch: &dyn Watch) -> Result<Vec<String>> {
        let Self { heal, repairs, set, split, .. } = *self;
        let Parent { model, constraints, .. } = self.parent;
        let target = repairs.target.as_ref();
        let bar = watch.begin("healing".into(), Unit::Time, 0);
        let tell = |what: &str, n_done: usize, n_windows: usize| {
            bar.set_message(match n_windows {
                0 => format!("healing: {what}"),
                _ => format!("healing: {what}, window {}/{n_windows}", n_done + 1),
            });
        };
        // To scale projections, blocks need not be evaluated one by one.
        let make = match repairs.fits {
            true => Healer::new,
            false => Healer::of_whole_models,
        };
        let windows = set.windows().collect();
        let n_threads = heal.calibration.threads;
        let setup = Setup { model, constraints, engine: self.engine, windows, split, n_threads };
        let mut healer = make(setup)?.with_progress(Box::new(tell)).with_logits_bytes(logits_bytes(
            heal,
            target,
            set,
            self.engine.n_embd(),
        ));
        if repairs.fits {
            let orders = |may_block| orders(heal, target, set.n_tokens(), may_block);
            if trials.cut.attention.is_none() && shortlist.len() > 1 {
                trials.choose(&mut healer, shortlist, &orders(false))?;
            }
            let may_block = !repairs.post_norms && attention::check_model(model).is_ok();
            trials.try_fits(&mut healer, &orders(may_block))?;
        } else {
            trials.try_none(&healer, split)?;
        }
        match &repairs.projections {
            Some(projections) => trials.try_scales(&mut healer, projections),
            None => Ok(Vec::new()),
        }
    }
}

/// Memory for logits of the parent: what the streams of all windows and one fit's sums leave.
fn logits_bytes(heal: &Heal, target: Option<&TargetMatrix>, set: &CalibrationSet, n_embd: usize) -> u64 {
    let Some(max) = heal.max_memory else {
        return LOGITS_BYTES;
    };
    let per_token = (n_embd as u64).saturating_mul(STREAMS * size_of::<f32>() as u64);
    let streams = (set.n_tokens() as u64).saturating_mul(per_token);
    let sums = target.map_or(0, |target| sums_bytes(target, 1));
    max.saturating_sub(streams.saturating_add(sums)).min(LOGITS_BYTES)
}

/// Weightings of tokens to try, where memory suffices for all.
const WEIGHTINGS: [Weighting; 3] = [Weighting::InverseNorm, Weighting::Plain, Weighting::InverseSquaredNorm];

/// The fits to try.
fn orders(heal: &Heal, target: Option<&TargetMatrix>, n_tokens: usize, may_block: bool) -> Vec<Order> {
    // The fields `before` and `with_block` of each [`Order`].
    let variants: &[(bool, bool)] = match heal.how {
        HealArg::None | HealArg::Scale => &[],
        HealArg::Linear => &[(true, false)],
        HealArg::Block => &[(false, true), (true, true)],
        HealArg::Auto => &[(true, may_block)],
    };
    let has_room = heal.max_memory.zip(target).is_none_or(|(max, target)| {
        let streams = (n_tokens as u64).saturating_mul(streams_bytes(target));
        sums_bytes(target, WEIGHTINGS.len()).saturating_add(streams) <= max
    });
    let order = |&(before, with_block): &(bool, bool)| Order {
        patience: PATIENCE,
        weightings: match has_room && before {
            true => WEIGHTINGS.to_vec(),
            false => WEIGHTINGS[..1].to_vec(),
        },
        before,
        with_block,
        heal_type: heal.heal_type,
        objective: heal.objective,
    };
    variants.iter().map(order).collect()
}

/// Bytes of the sums for so many weightings. Each has both folds, and beside them their sum and a factor of it.
fn sums_bytes(target: &TargetMatrix, n_weightings: usize) -> u64 {
    NormalEquations::n_bytes(target.n_in, target.n_out).saturating_mul(2 * n_weightings as u64 + 2)
}

/// Warnings about a fit to these windows, and whether to try none.
fn warnings(split: &Split, target: Option<&TargetMatrix>) -> (Vec<String>, bool) {
    let n_in = target.map_or(1, |target| target.n_in);
    let mut warnings = Vec::new();
    if split.n_repeated > 0 {
        warnings.push(format!("{} windows of the text repeat others and are left out", split.n_repeated));
    }
    if !split.is_enough() {
        warnings.push(format!(
            "the text has {} different windows, but healing needs {MIN_WINDOWS}, so nothing is healed",
            split.all().len()
        ));
        return (warnings, true);
    }
    if split.n_distinct * 2 < split.n_tokens {
        warnings.push(format!(
            "the text repeats itself: only {} of {} tokens follow others than before",
            split.n_distinct, split.n_tokens
        ));
        if split.n_distinct < n_in {
            warnings.push("a fit to it would mean nothing, so nothing is healed".to_owned());
            return (warnings, true);
        }
    }
    let wanted = n_in * TOKENS_PER_UNKNOWN;
    let n_new = split.n_distinct.min(split.n_tokens);
    if n_new < wanted {
        warnings.push(format!(
            "{n_new} tokens, repetitions left out, to fit {n_in} unknowns of each output; {wanted} or more are advised"
        ));
    }
    (warnings, false)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::settings::Calibration;
    use crate::gguf::TensorType;

    #[test]
    fn as_much_text_is_used_as_memory_has_room_for() {
        // Of 7 billion parameters.
        let target = TargetMatrix { source: 0, tensor_type: TensorType::F16, n_in: 11_008, n_out: 4096 };
        let heal = |max_memory| Heal {
            how: HealArg::Linear,
            heal_type: HealType::Auto,
            max_memory,
            tokens_are_default: true,
            objective: Objective::Kl,
            calibration: Calibration { window: 512, ..Calibration::default() },
        };
        let tokens = |max_memory| wanted_tokens(Some(&target), &heal(max_memory));
        assert_eq!(tokens(None), 10 * 11_008);
        assert_eq!(tokens(Some(1 << 40)), 10 * 11_008);
        // Of 135 million parameters.
        let small = TargetMatrix { n_in: 1536, n_out: 576, ..target };
        assert_eq!(wanted_tokens(Some(&small), &heal(None)), 32 * 1536);
        let sums = 4 * 8 * 11_008 * (11_008 + 4096);
        let per_token = 12 * 4096;
        let found = tokens(Some(8_000_000_000));
        assert_eq!(found as u64, (8_000_000_000 - sums) / per_token / 512 * 512);
        // Never less than healing needs, which is then refused.
        assert_eq!(tokens(Some(1000)), 3 * 512);
        let n_weightings = |max_memory| {
            let orders = orders(&heal(max_memory), Some(&target), found, false);
            orders[0].weightings.len()
        };
        assert_eq!(n_weightings(Some(8_000_000_000)), 1);
        assert_eq!(n_weightings(None), 3);
        let text = found as u64 * per_token;
        assert_eq!(n_weightings(Some(2 * sums + text)), 3);
        assert_eq!(n_weightings(Some(2 * sums + text - 1)), 1);
    }
}
