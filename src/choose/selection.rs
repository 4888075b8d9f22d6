//! The entry of this room: the cut of a model. It is chosen by a list, by scores, by losses, or by a goal.

use anyhow::{Context, Result, bail, ensure};

use super::auto;
use super::goals;
use super::measured::Chosen;
use crate::choose::attention as attention_choice;
use crate::choose::expert_sets::{ChosenExperts, Experts};
use crate::choose::experts;
use crate::choose::outcome::{AutoReport, ExpertsAutoReport, Figure, GoalReport, SearchReport, StepReport};
use crate::choose::rating::{ConfidenceReport, Rating};
use crate::choose::removal;
use crate::choose::request::{Request, Target};
use crate::choose::scored::scored;
use crate::choose::search::Goal;
use crate::choose::search::journal::Journal;
use crate::choose::settings::{Choice, Choosing, ExpertChoice};
use crate::choose::stability::ties::Chosen as ByScores;
use crate::choose::stability::{self, Stopping};
use crate::engine::imatrix::Gathers;
use crate::engine::outcome::CalibrationReport;
use crate::error::Hint;
use crate::measure;
use crate::measure::calibrate::{self, Calibrated, Until};
use crate::measure::experts::BlockOfExperts;
use crate::measure::importance::Importance;
use crate::measure::pairs::Pairs;
use crate::measure::tasks;
use crate::model::BlockId;
use crate::model::Model;
use crate::model::block::{BlockSet, block_list, counted, numbers};
use crate::output::Parent;
use crate::plan::imatrix::measured::MeasuredImatrix;
use crate::plan::{AttentionCut, ChosenBy, Constraints, Cut, ExpertCut, Method, attention};
use crate::watch::Watch;

/// The cut that was chosen, and its measurements.
pub struct Selection {
    /// The blocks to remove and the attention to leave out.
    pub cut: Cut,
    /// Sets that may be better once they are healed.
    pub shortlist: Vec<BlockSet>,
    /// The scores of all blocks, where they were measured.
    pub importance: Option<Importance>,
    /// The text of the measurements.
    pub calibration: Option<CalibrationReport>,
    /// The search, where losses were measured.
    pub search: Option<SearchReport>,
    /// The goal, where one decided how many blocks are removed.
    pub goal: Option<GoalReport>,
    /// The sets of several methods, where `auto` chose among them.
    pub auto: Option<AutoReport>,
    /// The losses on disk, until the output is there ([`Journal::remove`]).
    pub journal: Option<Journal>,
    /// Ranks of the blocks by their scores.
    pub rating: Option<Rating>,
    /// How sure the choice by scores is.
    pub confidence: Option<ConfidenceReport>,
    /// The importance matrix of the whole model, where it was asked for.
    pub imatrix: Option<MeasuredImatrix>,
    /// The scores of experts, where they were measured.
    pub experts: Option<Vec<BlockOfExperts>>,
    /// The sets of several scores of experts, where `auto` chose among them.
    pub experts_auto: Option<ExpertsAutoReport>,
}

/// The start of the text that holds all a choice rests on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Its windows.
    pub windows: usize,
    /// Their tokens.
    pub tokens: usize,
    /// Whether sets of several methods were compared.
    pub auto: bool,
}

impl Selection {
    /// The text of the choice. A calibration that may end early takes windows from all of it in random order.
    #[must_use]
    pub fn seen(&self) -> Seen {
        let Some(text) = &self.calibration else {
            return Seen::default();
        };
        let allowed = (self.confidence.as_ref()).map_or(0, |sure| sure.tokens_allowed);
        let compared = self.auto.as_ref().map_or(0, |auto| auto.windows - auto.seen_windows);
        let of_experts = self.experts_auto.as_ref().map_or(0, |auto| auto.windows - auto.seen_windows);
        let windows = text.windows.max(allowed / text.window.max(1)) + compared + of_experts;
        let auto = self.auto.as_ref().is_some_and(|auto| auto.fallback.is_none());
        Seen { windows, tokens: windows.saturating_mul(text.window), auto }
    }

    /// Of what was chosen without scores.
    fn of(cut: Cut, chosen: Chosen) -> Self {
        let Chosen { calibration, search, goal, journal, shortlist, auto, .. } = chosen;
        Self {
            cut,
            shortlist,
            importance: None,
            calibration,
            search,
            goal,
            auto: auto.map(|auto| auto.report),
            journal,
            rating: None,
            confidence: None,
            imatrix: None,
            experts: None,
            experts_auto: None,
        }
    }
}

/// Chooses the cut of `parent`.
///
/// # Errors
/// A removal that is not allowed; a goal that cannot be reached; whatever keeps the model from being measured.
///
/// # Examples
/// By measured losses, for a number of blocks:
///
/// ```
/// use gguf_shorten::choose::selection::select;
/// use gguf_shorten::choose::settings::{Choice, Choosing};
/// use gguf_shorten::engine::settings::Calibration;
/// use gguf_shorten::model::Model;
/// use gguf_shorten::model::input::Input;
/// use gguf_shorten::output::Parent;
/// use gguf_shorten::plan::{Budget, Constraints, Method};
/// use gguf_shorten::watch::Silent;
///
/// # include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/examples/tiny_model.rs"));
/// # fn main() -> anyhow::Result<()> {
/// # let folder = tempfile::tempdir()?;
/// # let path = folder.path().join("model.gguf");
/// # save_tiny_model(&path, 6)?;
/// let input = Input::open(&path)?;
/// let model = Model::new(input.parse()?)?;
/// let constraints = Constraints::of(&model)?;
/// let parent = Parent { input: &input, model: &model, constraints: &constraints };
///
/// let calibration = Calibration { tokens: 128, window: 32, threads: 1, ..Calibration::default() };
/// let choice = Choice::Best { budget: Budget::Blocks(2), method: Method::Search, keep: None };
/// let scratch = Some(folder.path().to_owned());
/// let chosen = select(parent, &Choosing { choice, calibration, scratch, ..Choosing::default() }, &Silent)?;
/// assert_eq!(chosen.cut.blocks.len(), 2);
/// assert_eq!(chosen.cut.method, "search");
/// // What the search measured is kept until the output is there.
/// chosen.journal.map_or(Ok(()), |journal| journal.remove())?;
/// # Ok(())
/// # }
/// ```
///
/// For goals: within a KL divergence, and within a size:
///
/// ```
/// use gguf_shorten::choose::search::Goal;
/// use gguf_shorten::choose::selection::select;
/// use gguf_shorten::choose::settings::{Choice, Choosing};
/// use gguf_shorten::engine::settings::Calibration;
/// use gguf_shorten::model::Model;
/// use gguf_shorten::model::input::Input;
/// use gguf_shorten::output::Parent;
/// use gguf_shorten::plan::{Constraints, Method, Splitting};
/// use gguf_shorten::watch::Silent;
///
/// # include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/examples/tiny_model.rs"));
/// # fn main() -> anyhow::Result<()> {
/// # let folder = tempfile::tempdir()?;
/// # let path = folder.path().join("model.gguf");
/// # save_tiny_model(&path, 6)?;
/// let input = Input::open(&path)?;
/// let model = Model::new(input.parse()?)?;
/// let constraints = Constraints::of(&model)?;
/// let parent = Parent { input: &input, model: &model, constraints: &constraints };
/// let calibration = Calibration { tokens: 128, window: 32, threads: 1, ..Calibration::default() };
/// let choosing = |goal, method| Choosing {
///     choice: Choice::Goal { goal, most: None, method, keep: None },
///     calibration: calibration.clone(),
///     scratch: Some(folder.path().to_owned()),
///     ..Choosing::default()
/// };
///
/// // As many blocks as keep the divergence from the model's predictions within 5 nats.
/// let chosen = select(parent, &choosing(Goal::Kl(5.0), Method::Search), &Silent)?;
/// assert!(chosen.search.is_some_and(|search| search.kl_divergence <= 5.0));
///
/// // As few blocks as bring the file to two thirds.
/// let limit = model.n_bytes() * 2 / 3;
/// let chosen = select(parent, &choosing(Goal::Size(limit), Method::Bi), &Silent)?;
/// assert!(parent.output_bytes(&chosen.cut.blocks, "bi", Splitting::Whole)? <= limit);
/// # Ok(())
/// # }
/// ```
pub fn select(parent: Parent<'_>, options: &Choosing, watch: &dyn Watch) -> Result<Selection> {
    let mut selection = select_cut(parent, options, watch)?;
    if options.imatrix && selection.imatrix.is_none() {
        // The blocks were chosen without scores.
        let gathers = Gathers { imatrix: true, experts: false };
        let extras = calibrate::Extras { gathers, ..calibrate::Extras::default() };
        selection.imatrix = calibrate::calibrate(parent, &options.calibration, watch, extras)?.imatrix;
    }
    Ok(selection)
}

/// Chooses the cut. Where that takes scores, they are measured together with an importance matrix.
fn select_cut(parent: Parent<'_>, options: &Choosing, watch: &dyn Watch) -> Result<Selection> {
    let at_path = || parent.name();
    let checked = Checked::new(parent, options).with_context(at_path)?;
    if let Some((limit, n_bytes)) = checked.reached {
        return Ok(without_trunk_blocks(limit, n_bytes));
    }
    let task_file = options.tasks.as_ref();
    let task_file = task_file.map(|(path, n)| tasks::read_tasks(path, *n, tasks::any)).transpose()?;
    let tasks = task_file.as_ref().map(|(path, tasks)| (*path, &tasks[..]));
    let mut pairs = Pairs::lenient();
    let calibrated = calibrated(parent, options, &checked, &mut pairs, watch)?;
    let importance = calibrated.as_ref().map(|calibrated| &calibrated.importance);
    let chosen = match options.choice.method() {
        None => Chosen { removed: checked.removed.clone(), ..Chosen::default() },
        Some(method) => auto::choose(&Request {
            parent,
            method,
            objective: options.objective,
            target: checked.target,
            keep: &checked.keep,
            importance,
            pairs: (method == Method::Auto).then_some(&pairs),
            why_not_auto: checked.why_not_auto,
            tasks,
            splitting: options.splitting,
            scratch: options.scratch.as_deref(),
            heals: options.heals,
            text: &options.calibration,
            watch,
        })?,
    };
    let attention = attention_cut(parent.model, options, &checked, importance, &chosen.removed);
    let attention = attention.with_context(at_path)?;
    let method = match chosen.auto.as_ref().map(|auto| auto.method).or(options.choice.method()) {
        Some(method) => method.to_string(),
        None if is_no_block(options) => ChosenBy::NoBlock.to_string(),
        None => ChosenBy::List.to_string(),
    };
    let scored = calibrated.as_ref().map(|found| measure::experts::scores(&found.experts));
    let mut cut = Cut { attention, ..Cut::new(chosen.removed.clone(), &method) };
    let Some(calibrated) = calibrated else {
        return Ok(Selection::of(Cut { experts: checked.experts, ..cut }, chosen));
    };
    let scores = scored.as_deref().unwrap_or_default();
    let seen = seen_windows(&calibrated, &chosen);
    let by_scores = experts_by_scores(parent, options, &cut, scores, seen, watch);
    let (experts, experts_auto) = match by_scores.transpose().with_context(at_path)? {
        Some(ChosenExperts { cut, auto }) => (Some(cut), auto),
        None => (checked.experts.clone(), None),
    };
    cut.experts = experts;
    let rating = rate(&calibrated, parent.constraints, options, &checked.keep, &chosen);
    let allowed = calibrated.n_tokens_allowed;
    let stopped = options.confidence.map(|_| calibrated.report.tokens < allowed);
    Ok(Selection {
        confidence: Some(rating.report(allowed, stopped)),
        rating: Some(rating),
        // Losses are measured on the same text.
        calibration: Some(calibrated.report),
        importance: Some(calibrated.importance),
        imatrix: calibrated.imatrix,
        experts: scored.filter(|scores| !scores.is_empty()),
        experts_auto,
        ..Selection::of(cut, chosen)
    })
}

/// First windows of the text, which took part in the choice.
#[derive(Clone, Copy)]
struct SeenWindows {
    n: usize,
    /// Tokens of a window.
    window: usize,
}

fn seen_windows(calibrated: &Calibrated, chosen: &Chosen) -> SeenWindows {
    let window = calibrated.report.window;
    // A calibration that may end early takes windows from everywhere.
    let scored = calibrated.n_tokens_allowed / window.max(1);
    let compared = chosen.auto.as_ref().map_or(0, |auto| auto.report.windows - auto.report.seen_windows);
    SeenWindows { n: scored.max(calibrated.importance.n_windows) + compared, window }
}

/// The experts that stay beside the rest of the cut, by scores.
fn experts_by_scores(
    parent: Parent<'_>,
    options: &Choosing,
    cut: &Cut,
    scores: &[BlockOfExperts],
    seen: SeenWindows,
    watch: &dyn Watch,
) -> Option<Result<ChosenExperts>> {
    let ExpertChoice::Lowest(budget, method) = options.experts else {
        return None;
    };
    let (objective, text) = (options.objective, &options.calibration);
    let SeenWindows { n: n_seen, window } = seen;
    Experts { parent, method, objective, scores, cut, text, n_seen, window, watch }.choose(&[budget]).pop()
}

/// Whether no whole block is removed, not even for prediction.
fn is_no_block(options: &Choosing) -> bool {
    matches!(options.choice, Choice::Nothing { .. }) && !options.rules.drop_mtp
}

/// A choice, checked as far as possible before anything is measured.
struct Checked {
    /// Blocks that stay, or lose their attention, by a list.
    keep: BlockSet,
    /// Blocks to remove, by a list.
    removed: BlockSet,
    /// Blocks that lose their attention, by a list.
    attention: BlockSet,
    /// Experts that stay, by a list.
    experts: Option<ExpertCut>,
    target: Target,
    /// Limit and size, where dropping the prediction blocks alone is enough.
    reached: Option<(u64, u64)>,
    /// Why method `auto`, if it is that, cannot compare sets.
    why_not_auto: Option<&'static str>,
}

impl Checked {
    fn new(parent: Parent<'_>, options: &Choosing) -> Result<Self> {
        let Parent { model, constraints, .. } = parent;
        let n_trunk = model.n_trunk_blocks();
        let attention = listed_attention(model, &options.attention)?;
        let mut keep = kept_by_hand(model, constraints, options)?;
        keep.extend(&attention);
        let (removed, target) = (BlockSet::new(), Target::Exactly(0));
        let why_not_auto = match &options.choice {
            Choice::Best { method: Method::Auto, .. } => {
                auto::why_not(parent, &options.calibration, None, options.confidence.is_some())
            }
            Choice::Goal { method: Method::Auto, goal, .. } => {
                auto::why_not(parent, &options.calibration, Some(goal), false)
            }
            _ => None,
        };
        let experts = None;
        let mut checked = Self { keep, removed, attention, experts, target, reached: None, why_not_auto };
        let mut n_removed = 0;
        match &options.choice {
            Choice::Nothing { .. } => {}
            Choice::Blocks(_) | Choice::Layers(_) => {
                let removed = removed_by_hand(model, constraints, &options.choice)?;
                constraints.check(&removed).map_err(|error| with_nearest(error, constraints, &removed))?;
                n_removed = removed.len();
                checked.removed = removed;
            }
            Choice::Best { budget, .. } => {
                n_removed = budget.n_removed(n_trunk);
                removal::check(constraints, &checked.keep, n_removed)?;
                checked.target = Target::Exactly(n_removed);
            }
            Choice::Goal { goal, most, method, .. } => {
                let most = most.map_or(n_trunk, |budget| budget.n_removed(n_trunk));
                let most = most.min(n_trunk.saturating_sub(1));
                let mut first = 1;
                if let Goal::Size(limit) = *goal {
                    checked.reached = reached(parent, options, limit)?;
                    if checked.reached.is_some() {
                        return Ok(checked);
                    }
                    let method = method.unmeasured().to_string();
                    let n_bytes = |removed: &_| parent.output_bytes(removed, &method, options.splitting);
                    first = goals::fewest_of_size(parent, &checked.keep, &n_bytes, limit)?;
                }
                checked.target = Target::Goal { goal: *goal, first, most };
            }
        }
        let gone = checked.removed.union(&constraints.dropped).copied().collect();
        checked.experts = experts::listed(model, &options.experts, &gone)?;
        if !checked.attention.is_empty() {
            attention::check(model, &checked.removed, &checked.attention)?;
        }
        if let Choice::Best { budget, .. } = &options.attention {
            let n_may = n_trunk.saturating_sub(n_removed + 1);
            attention_choice::check_number(budget.n_removed(n_trunk), n_may)?;
        }
        Ok(checked)
    }
}

/// Limit and size of an output without the prediction blocks alone. It has at most `limit` bytes.
fn reached(parent: Parent<'_>, options: &Choosing, limit: u64) -> Result<Option<(u64, u64)>> {
    if options.rules.drop_mtp {
        let n_bytes = parent.output_bytes(&BlockSet::new(), "blocks", options.splitting)?;
        if n_bytes <= limit {
            return Ok(Some((limit, n_bytes)));
        }
    }
    let n_bytes = parent.model.n_bytes();
    ensure!(n_bytes > limit, "has {n_bytes} bytes, which is within --target-size, so no block has to go");
    Ok(None)
}

/// The selection of no block but those for prediction. The output has `n_bytes`, at most `limit`.
fn without_trunk_blocks(limit: u64, n_bytes: u64) -> Selection {
    let none = BlockSet::new();
    let step = StepReport::of_size(&none, Figure::Bytes(n_bytes), Some(true));
    let goal = Some(GoalReport::of_sizes(limit, n_bytes, vec![step]));
    Selection::of(Cut::new(none, "blocks"), Chosen { goal, ..Chosen::default() })
}

/// Whether experts are chosen by what was measured of them.
fn is_by_scores(choice: &ExpertChoice) -> bool {
    matches!(choice, ExpertChoice::Lowest(..))
}

/// Measures the scores that the choice goes by, if any.
fn calibrated(
    parent: Parent<'_>,
    options: &Choosing,
    checked: &Checked,
    pairs: &mut Pairs,
    watch: &dyn Watch,
) -> Result<Option<Calibrated>> {
    let needs_scores =
        |choice: &Choice| choice.method().is_some_and(|method| method.unmeasured().needs_scores());
    let sub_blocks = needs_scores(&options.attention);
    let gathers = Gathers { imatrix: options.imatrix, experts: is_by_scores(&options.experts) };
    if !sub_blocks && !gathers.experts && !needs_scores(&options.choice) {
        return Ok(None);
    }
    let goal = match (&options.choice, checked.target, options.confidence) {
        (Choice::Best { method, .. }, Target::Exactly(n), Some(confidence)) => {
            Some(stability::Goal { method: method.unmeasured(), n, keep: &checked.keep, confidence })
        }
        _ => None,
    };
    let until = goal.map(|goal| Stopping::rule(parent.constraints, goal));
    let until = until.as_ref().map(|until| until as &Until<'_>);
    // Attention alone is chosen by scores of halves.
    let mut method = options.choice.method().unwrap_or(Method::Bi);
    if checked.why_not_auto.is_some() {
        method = method.unmeasured();
    }
    let pairs = (method == Method::Auto).then_some(pairs);
    let extras = calibrate::Extras { sub_blocks, pairs, until, gathers };
    scored(parent, method, &options.calibration, watch, extras).map(Some)
}

/// Chooses the blocks that lose their attention, beside those of `removed`.
fn attention_cut(
    model: &Model<'_>,
    options: &Choosing,
    checked: &Checked,
    importance: Option<&Importance>,
    removed: &BlockSet,
) -> Result<Option<AttentionCut>> {
    let (blocks, method) = match &options.attention {
        Choice::Nothing { .. } | Choice::Goal { .. } => return Ok(None),
        Choice::Blocks(_) | Choice::Layers(_) => (checked.attention.clone(), ChosenBy::List.to_string()),
        Choice::Best { budget, method, .. } => {
            let n = budget.n_removed(model.n_trunk_blocks());
            let blocks = attention_choice::choose(model, *method, importance, removed, &checked.keep, n)?;
            (blocks, method.to_string())
        }
    };
    // Blocks that go as a whole may make another one the first.
    attention::check(model, removed, &blocks)?;
    Ok(Some(AttentionCut { blocks, method }))
}

/// How sure the scores are by which a set was chosen. Where it was not, the scores alone.
fn rate(
    calibrated: &Calibrated,
    constraints: &Constraints,
    options: &Choosing,
    keep: &BlockSet,
    chosen: &Chosen,
) -> Rating {
    let removed = &chosen.removed;
    let (method, chosen) = match chosen.auto.as_ref().map(|auto| auto.method).or(options.choice.method()) {
        Some(method) if method.needs_scores() => (method, Some(ByScores { constraints, keep, removed })),
        _ => (Method::Bi, None),
    };
    let confidence = options.confidence.unwrap_or_default();
    Rating::new(&calibrated.importance, method, confidence, chosen)
}

/// The blocks that lose their attention by a list. Checks that the model can lose attention, if any is to.
fn listed_attention(model: &Model<'_>, choice: &Choice) -> Result<BlockSet> {
    match choice {
        Choice::Nothing { .. } | Choice::Goal { .. } => Ok(BlockSet::new()),
        Choice::Best { .. } => attention::check_model(model).map(|()| BlockSet::new()),
        Choice::Blocks(list) | Choice::Layers(list) => {
            attention::check_model(model)?;
            list.blocks(model.n_blocks(), "remove the attention of")
        }
    }
}

/// The blocks that go, by a list of them or of those that stay.
fn removed_by_hand(model: &Model<'_>, constraints: &Constraints, choice: &Choice) -> Result<BlockSet> {
    match choice {
        Choice::Blocks(list) => list.blocks(model.n_blocks(), "remove"),
        Choice::Layers(list) => {
            let kept = list.blocks(model.n_blocks(), "keep")?;
            if let Some(block) = kept.intersection(&constraints.dropped).next() {
                bail!("cannot keep block {block}: --drop-mtp removes it");
            }
            let removed: BlockSet =
                (0..model.n_trunk_blocks()).map(BlockId::new).filter(|block| !kept.contains(block)).collect();
            if removed.is_empty() && constraints.dropped.is_empty() {
                bail!(
                    "--layers names all {} of the model, so none would be removed",
                    counted(model.n_trunk_blocks())
                );
            }
            Ok(removed)
        }
        Choice::Nothing { .. } | Choice::Best { .. } | Choice::Goal { .. } => Ok(BlockSet::new()),
    }
}

/// The blocks that stay as they are, by a list.
fn kept_by_hand(model: &Model<'_>, constraints: &Constraints, options: &Choosing) -> Result<BlockSet> {
    let mut kept = BlockSet::new();
    for choice in [&options.choice, &options.attention] {
        if let Choice::Best { keep: Some(list), .. }
        | Choice::Goal { keep: Some(list), .. }
        | Choice::Nothing { keep: Some(list) } = choice
        {
            kept.extend(list.blocks(model.n_blocks(), "keep")?);
        }
    }
    if let Some(block) = kept.intersection(&constraints.dropped).next() {
        let why = match options.rules.drop_mtp {
            true => "--drop-mtp removes it",
            false => "it has no tensors",
        };
        bail!("cannot keep block {block}: {why}");
    }
    Ok(kept)
}

/// Names the nearest set that is allowed, where there is one.
fn with_nearest(error: anyhow::Error, constraints: &Constraints, removed: &BlockSet) -> anyhow::Error {
    match removal::nearest(constraints, removed) {
        Some(nearest) if error.downcast_ref::<Hint>().is_none() => {
            let nearest = block_list(&numbers(&nearest));
            error.context(Hint(format!("the nearest allowed set is --blocks {nearest}")))
        }
        _ => error,
    }
}
