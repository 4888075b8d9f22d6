//! What a fit may remove: blocks, experts or attention, for each of several numbers the set of cheap methods.

use std::collections::BTreeSet;

use anyhow::Result;

use super::removal::Removal;
use crate::choose::attention::choose as attention;
use crate::choose::auto::{choose_each, why_not};
use crate::choose::expert_sets::{ChosenExperts, Experts};
use crate::choose::experts::check;
use crate::choose::measured::Chosen;
use crate::choose::request::{Request, Target};
use crate::engine::settings::Calibration;
use crate::measure::experts::BlockOfExperts;
use crate::measure::importance::Importance;
use crate::measure::loss::Objective;
use crate::measure::pairs::Pairs;
use crate::model::block::BlockSet;
use crate::output::Parent;
use crate::plan::attention::check_model;
use crate::plan::experts::{ExpertBudget, ExpertMethod, Mixture};
use crate::plan::{AttentionCut, Budget, ChosenBy, Cut, Method, Splitting};
use crate::watch::Watch;

/// Numbers of blocks that are tried: from one on, each about a third more than the one before.
const NUMBERS: [usize; 12] = [1, 2, 3, 4, 5, 6, 8, 11, 15, 20, 27, 36];

/// Shares of experts that are tried, and of blocks without attention, in percent.
const SHARES: [f64; 3] = [12.5, 25.0, 50.0];

/// What names sets of blocks and of experts.
pub(super) struct Sets<'s> {
    pub(super) parent: Parent<'s>,
    pub(super) importance: &'s Importance,
    pub(super) pairs: &'s Pairs,
    pub(super) keep: &'s BlockSet,
    /// The scores of experts; of none where none may go.
    pub(super) experts: &'s [BlockOfExperts],
    pub(super) text: &'s Calibration,
    pub(super) watch: &'s dyn Watch,
}

impl Sets<'_> {
    /// The best set of each number of blocks, at most `most`; `first` is tried whatever it is.
    pub(super) fn measured(&self, first: usize, most: usize) -> Result<Vec<Removal>> {
        let numbers = NUMBERS.into_iter().filter(|n| *n > first);
        let numbers = std::iter::once(first).chain(numbers).take_while(|n| *n > 0 && *n <= most);
        let targets: Vec<Target> = numbers.map(Target::Exactly).collect();
        let request = Request {
            parent: self.parent,
            method: Method::Auto,
            objective: Objective::Kl,
            target: Target::Exactly(first),
            keep: self.keep,
            importance: Some(self.importance),
            pairs: Some(self.pairs),
            why_not_auto: why_not(self.parent, self.text, None, false),
            tasks: None,
            splitting: Splitting::Whole,
            scratch: None,
            heals: false,
            text: self.text,
            watch: self.watch,
        };
        // Numbers of blocks without an allowed set are left out.
        let found = choose_each(&request, &targets).into_iter().filter_map(Result::ok);
        Ok(found.map(removal).collect())
    }

    /// The best set of each share of experts that is tried.
    pub(super) fn of_experts(&self) -> Vec<Removal> {
        let Self { parent, text, watch, .. } = *self;
        let budgets = budgets(parent);
        if self.experts.is_empty() || budgets.is_empty() {
            return Vec::new();
        }
        let none = Cut::new(BlockSet::new(), &ChosenBy::NoBlock.to_string());
        let experts = Experts {
            parent,
            method: ExpertMethod::Auto,
            objective: Objective::Kl,
            scores: self.experts,
            cut: &none,
            text,
            n_seen: self.importance.n_windows,
            window: self.importance.n_tokens / self.importance.n_windows.max(1),
            watch,
        };
        let removal = |chosen: ChosenExperts| {
            let candidates = chosen.auto.iter().flat_map(|auto| &auto.candidates);
            let best =
                candidates.filter(|candidate| candidate.chosen).find_map(|best| best.cost.kl_divergence);
            Removal {
                experts: Some(chosen.cut),
                method: none.method.clone(),
                // As of blocks, a set without a rival was not measured.
                kl: best.unwrap_or(0.0),
                ..Removal::default()
            }
        };
        experts.choose(&budgets).into_iter().filter_map(Result::ok).map(removal).collect()
    }

    /// The sets of blocks that lose their attention, for each share that is tried. They are not measured.
    pub(super) fn of_attention(&self) -> Vec<Removal> {
        let Parent { model, constraints, .. } = self.parent;
        let numbers: BTreeSet<usize> =
            SHARES.iter().map(|share| Budget::Percent(*share).n_removed(model.n_trunk_blocks())).collect();
        let choose = |n: usize| {
            let gone = &constraints.dropped;
            let blocks = attention(model, Method::Bi, Some(self.importance), gone, self.keep, n).ok()?;
            let cut = AttentionCut { blocks, method: Method::Bi.to_string() };
            Some(Removal {
                attention: Some(cut),
                method: ChosenBy::NoBlock.to_string(),
                ..Removal::default()
            })
        };
        match may_lose_attention(self.parent) {
            true => numbers.into_iter().filter_map(choose).collect(),
            false => Vec::new(),
        }
    }
}

/// Whether blocks of `parent` may lose their attention.
pub(super) fn may_lose_attention(parent: Parent<'_>) -> bool {
    check_model(parent.model).is_ok()
}

/// The shares of experts that are tried, each number once. None of a model from which none may go.
fn budgets(parent: Parent<'_>) -> Vec<ExpertBudget> {
    let Ok(mixture) = Mixture::of(parent.model) else {
        return Vec::new();
    };
    let mut budgets: Vec<ExpertBudget> = Vec::new();
    for budget in SHARES.map(ExpertBudget::Percent) {
        let is_new = budgets.iter().all(|other| other.n_kept(&mixture) != budget.n_kept(&mixture));
        if is_new && check(parent.model, budget, &parent.constraints.dropped).is_ok() {
            budgets.push(budget);
        }
    }
    budgets
}

/// Whether experts of `parent` may go.
pub(super) fn may_lose_experts(parent: Parent<'_>) -> bool {
    !budgets(parent).is_empty()
}

/// The set that was chosen, with its loss.
fn removal(chosen: Chosen) -> Removal {
    let auto = chosen.auto.as_ref();
    let best = auto.and_then(|auto| auto.report.candidates.iter().find(|candidate| candidate.chosen));
    Removal {
        blocks: chosen.removed.clone(),
        method: auto.map_or(Method::Bi, |auto| auto.method).to_string(),
        // A set without a rival was not measured: its loss is that of the choice as a whole.
        kl: best.and_then(|best| best.cost.kl_divergence).unwrap_or(0.0),
        ..Removal::default()
    }
}
