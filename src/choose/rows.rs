//! The removed blocks or experts of each row of `compare`.

use anyhow::{Context, Result, bail};

use super::auto;
use super::measured::Chosen;
use crate::choose::expert_sets::{ChosenExperts, Experts};
use crate::choose::experts::check;
use crate::choose::outcome::ChoiceReport;
use crate::choose::removal;
use crate::choose::request::{Request, Target};
use crate::choose::resume::close_journal;
use crate::choose::scored::scored;
use crate::choose::settings::Drops;
use crate::engine::imatrix::Gathers;
use crate::engine::load::LoadedModel;
use crate::engine::outcome::CalibrationReport;
use crate::engine::text::{CalibrationSet, Source, Texts};
use crate::measure::calibrate::Extras;
use crate::measure::comparison::overlap;
use crate::measure::experts::{self, BlockOfExperts};
use crate::measure::pairs::Pairs;
use crate::model::block::BlockSet;
use crate::output::Parent;
use crate::plan::experts::{ExpertBudget, ExpertMethod, Mixture};
use crate::plan::{ChosenBy, Cut, Method, Splitting};
use crate::watch::Watch;

/// A row of fewer blocks, as the main job would choose it.
pub(crate) struct Row {
    pub(crate) cut: Cut,
    /// Sets that may be better once they are healed.
    pub(crate) shortlist: Vec<BlockSet>,
}

/// A row of fewer experts.
pub(crate) struct ExpertRow {
    /// How many go.
    pub(crate) n_fewer: usize,
    /// The experts that stay, or why there are none such.
    pub(crate) chosen: Result<ChosenExperts>,
}

/// Rows of fewer blocks and experts, and the text of their choice.
pub(crate) struct Rows {
    /// For each number, or why there is none.
    pub(crate) rows: Vec<Result<Row>>,
    /// Those of fewer experts.
    pub(crate) experts: Vec<ExpertRow>,
    calibration: Option<CalibrationReport>,
    /// Windows after those of the calibration on which sets were compared.
    n_compared: usize,
}

impl Rows {
    /// Chooses the blocks of each of `numbers` as the main job does.
    ///
    /// # Errors
    /// Whatever keeps the text from being read, or all of them from being chosen.
    pub(crate) fn choose(
        parent: Parent<'_>,
        drops: &Drops,
        numbers: &[usize],
        watch: &dyn Watch,
    ) -> Result<Self> {
        let Parent { model, constraints, .. } = parent;
        let at_path = || parent.name();
        let keep = match &drops.keep {
            Some(list) => list.blocks(model.n_blocks(), "keep").with_context(at_path)?,
            None => BlockSet::new(),
        };
        if let Some(block) = keep.intersection(&constraints.dropped).next() {
            bail!("{}: cannot keep block {block}: it goes with any cut", at_path());
        }
        // What can be refused is refused before anything is measured for it.
        let possible = |n: usize| removal::check(constraints, &keep, n).with_context(at_path);
        let checked: Vec<Result<usize>> = numbers.iter().map(|&n| possible(n).map(|()| n)).collect();
        let why_not_auto = match drops.method {
            Method::Auto => auto::why_not(parent, &drops.calibration, None, false),
            _ => None,
        };
        let method = match why_not_auto {
            Some(_) => drops.method.unmeasured(),
            None => drops.method,
        };
        let mut pairs = Pairs::lenient();
        let (mut calibration, mut importance) = (None, None);
        let needs_scores = method.unmeasured().needs_scores() && checked.iter().any(Result::is_ok);
        let budgets = ExpertBudgets::of(parent, &drops.experts)?;
        let mut expert_scores = Vec::new();
        if needs_scores || budgets.any() {
            let method = if needs_scores { method } else { Method::Bi };
            let pairs = (method == Method::Auto).then_some(&mut pairs);
            let gathers = Gathers { imatrix: false, experts: budgets.any() };
            let extras = Extras { pairs, gathers, ..Extras::default() };
            let found = scored(parent, method, &drops.calibration, watch, extras)?;
            expert_scores = experts::scores(&found.experts);
            importance = Some(found.importance);
            calibration = Some(found.report);
        }
        let request = Request {
            parent,
            method: drops.method,
            objective: drops.objective,
            target: Target::Exactly(0),
            keep: &keep,
            importance: importance.as_ref(),
            pairs: (method == Method::Auto).then_some(&pairs),
            why_not_auto,
            tasks: None,
            splitting: Splitting::Whole,
            scratch: None,
            heals: drops.heals,
            text: &drops.calibration,
            watch,
        };
        let targets: Vec<Target> = checked.iter().flatten().copied().map(Target::Exactly).collect();
        let mut chosen = auto::choose_each(&request, &targets).into_iter();
        let mut rows = Self { rows: Vec::new(), experts: Vec::new(), calibration, n_compared: 0 };
        for possible in checked {
            let row = possible.and_then(|_| chosen.next().context("bug: a row that was not chosen")?);
            let row = row.map(|chosen| rows.take(chosen, &request));
            rows.rows.push(row);
        }
        rows.choose_experts(&request, budgets, drops.experts_by, &expert_scores);
        Ok(rows)
    }

    /// The rows of fewer experts.
    fn choose_experts(
        &mut self,
        request: &Request<'_>,
        budgets: ExpertBudgets,
        method: ExpertMethod,
        scores: &[BlockOfExperts],
    ) {
        let Request { parent, objective, text, watch, .. } = *request;
        let cut = &Cut::new(BlockSet::new(), &ChosenBy::NoBlock.to_string());
        let n_scored = request.importance.map_or(0, |importance| importance.n_windows);
        let n_tokens = request.importance.map_or(0, |importance| importance.n_tokens);
        let window = n_tokens / n_scored.max(1);
        let n_seen = n_scored + self.n_compared;
        let possible: Vec<ExpertBudget> = budgets.possible().collect();
        let chosen =
            Experts { parent, method, objective, scores, cut, text, n_seen, window, watch }.choose(&possible);
        let mut chosen = chosen.into_iter();
        for (n_fewer, possible) in budgets.0 {
            let row = possible.and_then(|_| chosen.next().context("bug: a row that was not chosen")?);
            let auto = row.as_ref().ok().and_then(|row| row.auto.as_ref());
            self.n_compared = self.n_compared.max(auto.map_or(0, |auto| n_seen - n_scored + auto.windows));
            let chosen = row.with_context(|| parent.name());
            self.experts.push(ExpertRow { n_fewer, chosen });
        }
    }

    /// The row of a choice, whose text is noted.
    fn take(&mut self, chosen: Chosen, request: &Request<'_>) -> Row {
        close_journal(chosen.journal, request.watch);
        if let Some(mut text) = chosen.calibration {
            let earlier = self.calibration.take();
            text.seconds += earlier.as_ref().map_or(0.0, |earlier| earlier.seconds);
            text.cached &= earlier.is_none_or(|earlier| earlier.cached);
            self.calibration = Some(text);
        }
        let auto = chosen.auto.as_ref();
        self.n_compared = self.n_compared.max(auto.map_or(0, |auto| auto.report.windows));
        let method = auto.map_or(request.method, |auto| auto.method);
        Row { cut: Cut::new(chosen.removed, &method.to_string()), shortlist: chosen.shortlist }
    }
}

/// The experts that go by row, each number once, or why not.
struct ExpertBudgets(Vec<(usize, Result<ExpertBudget>)>);

impl ExpertBudgets {
    /// # Errors
    /// A model from which no expert can be removed.
    fn of(parent: Parent<'_>, budgets: &[ExpertBudget]) -> Result<Self> {
        let Some(_) = budgets.first() else {
            return Ok(Self(Vec::new()));
        };
        let Parent { model, constraints, .. } = parent;
        let mixture = Mixture::of(model).with_context(|| parent.name())?;
        let mut found: Vec<(usize, Result<ExpertBudget>)> = Vec::new();
        for &budget in budgets {
            let n_fewer = match budget {
                ExpertBudget::Experts(n) => n,
                ExpertBudget::Percent(_) => mixture.n_experts - budget.n_kept(&mixture),
            };
            if found.iter().all(|(other, _)| *other != n_fewer) {
                let possible = check(model, budget, &constraints.dropped).map(|()| budget);
                found.push((n_fewer, possible));
            }
        }
        Ok(Self(found))
    }

    fn possible(&self) -> impl Iterator<Item = ExpertBudget> {
        self.0.iter().filter_map(|(_, possible)| possible.as_ref().ok().copied())
    }

    fn any(&self) -> bool {
        self.possible().next().is_some()
    }
}

/// How blocks were chosen, and what of the scored text was seen. Of `set` that is `n_healed` tokens at least.
///
/// # Errors
/// A text that cannot be read or cut.
pub(crate) fn report(
    drops: &Drops,
    rows: &mut Rows,
    n_healed: usize,
    loaded: &LoadedModel<'_>,
    set: &CalibrationSet,
    watch: &dyn Watch,
) -> Result<ChoiceReport> {
    let calibration = rows.calibration.take();
    let mut text = drops.calibration.clone();
    if !matches!(text.source, Source::Own { .. }) {
        text.tokens = text.tokens.saturating_add(rows.n_compared.saturating_mul(text.window));
    }
    text.tokens = text.tokens.max(n_healed);
    let seen_share = match calibration.is_some() || n_healed > 0 {
        false => 0.0,
        true => {
            let texts = Texts::read(text.source.clone())?;
            let choosing = loaded.cut(&texts, &text, watch)?;
            let scored: Vec<_> = set.windows().collect();
            let choosing: Vec<_> = choosing.windows().collect();
            overlap::share(&scored, &choosing)
        }
    };
    Ok(ChoiceReport {
        method: drops.method.to_string(),
        objective: drops.method.needs_losses().then(|| drops.objective.to_string()),
        calibration,
        seen_share,
        experts_by: (!drops.experts.is_empty()).then(|| drops.experts_by.to_string()),
    })
}
