//! A choice by measured losses, and its progress bar.

use std::cell::Cell;

use anyhow::{Context, Result, bail};

use super::goals;
use super::runs::{Runs, consecutive};
use crate::choose::outcome::GoalReport;
use crate::choose::removal;
use crate::choose::request::{Request, Target};
use crate::choose::search::draft::BytesPerToken;
use crate::choose::search::goal::{Greedy, Growth, LossBound, Named, SizeBound, fastest, fewest, most};
use crate::choose::search::{
    Goal, Measure, Measured, Memo, Search, Settings, expected_losses, measured, race,
};
use crate::measure::loss::{Objective, TaskLoss};
use crate::model::BlockId;
use crate::model::block::{BlockSet, block_list, numbers};
use crate::plan::Method;
use crate::watch::{self, Unit};

/// Sets of a search that are healed, beside the best one. So many are taken of those measured on all windows, and so many of
/// the runs of consecutive blocks, whose single cut is healed best.
const SHORTLISTED: usize = 3;

/// A choice by losses, once there is something that measures them.
pub(crate) struct Job<'j> {
    pub(crate) request: &'j Request<'j>,
    pub(crate) settings: &'j Settings,
    pub(crate) runs: &'j Runs<'j>,
    pub(crate) progress: &'j Progress,
}

/// The set that was chosen, with the sets to compare it with.
pub(crate) struct Found {
    pub(crate) chosen: Measured,
    pub(crate) goal: Option<GoalReport>,
    /// Sets that may be better once they are healed.
    pub(crate) shortlist: Vec<BlockSet>,
    /// The whole model in the tasks, where there are tasks.
    pub(crate) parent_tasks: Option<TaskLoss>,
}

impl Job<'_> {
    /// Chooses, and measures all that the result says beside the choice.
    pub(crate) fn run(&self, memo: &mut Memo<'_>) -> Result<Found> {
        let (chosen, goal) = self.decide(memo)?;
        let shortlist = match self.request.target {
            Target::Exactly(n) if self.request.heals => self.shortlist(memo, n, &chosen.removed)?,
            _ => Vec::new(),
        };
        let parent_tasks = match self.request.tasks {
            Some(_) => memo.tasks(&[BlockSet::new()])?.first().copied(),
            None => None,
        };
        Ok(Found { chosen, goal, shortlist, parent_tasks })
    }

    /// The chosen set, the next best, and the best consecutive runs.
    fn shortlist(&self, memo: &mut Memo<'_>, n: usize, chosen: &BlockSet) -> Result<Vec<BlockSet>> {
        let objective = self.request.objective;
        let runs = race(memo, objective, consecutive(self.request, n).collect(), SHORTLISTED)?;
        let all_windows = memo.best_known(n, objective, SHORTLISTED);
        let mut sets = vec![chosen.clone()];
        for set in all_windows.into_iter().chain(runs.best.into_iter().map(|run| run.removed)) {
            if !sets.contains(&set) {
                sets.push(set);
            }
        }
        Ok(sets)
    }

    fn decide(&self, measure: &mut dyn Measure) -> Result<(Measured, Option<GoalReport>)> {
        let (constraints, request) = (self.request.parent.constraints, self.request);
        let most_blocks = request.target.most();
        let mut on_set = |measured: &Measured| self.progress.set(measured.removed.len());
        if request.method == Method::Search {
            let mut search = Search::new(constraints, self.settings.clone());
            return match request.target {
                Target::Exactly(n) => Ok((search.remove(measure, n, &mut on_set)?, None)),
                Target::Goal { goal, .. } => {
                    let mut growth = Greedy { search, most: most_blocks, progress: &mut on_set };
                    self.reach(&goal, &mut growth, measure)
                }
            };
        }
        // Each block alone, where that is the score.
        let scores = match request.method {
            Method::Ablate => Some(self.ablate(measure)?),
            Method::Run => None,
            method => Some(method.scores(request.importance, constraints.n_trunk_blocks)?),
        };
        let hidden = watch::Silent;
        let mut sets = |n| match &scores {
            Some(scores) => Ok(removal::lowest_if_any(constraints, scores, request.keep, n)),
            None => self.runs.best_if_any(n, &hidden),
        };
        match (request.target, &scores) {
            (Target::Exactly(n), Some(scores)) => {
                let removed = removal::lowest(constraints, scores, request.keep, n)?;
                Ok((measured(measure, removed, request.objective)?, None))
            }
            (Target::Exactly(_), None) => bail!("bug: a run is not chosen by its loss"),
            (Target::Goal { goal: Goal::Size(limit), first, most }, _) => {
                let (removed, report) = goals::first_of_size(&mut sets, first..=most, request, limit)?;
                Ok((measured(measure, removed, request.objective)?, Some(report)))
            }
            (Target::Goal { goal, .. }, _) => {
                let mut growth = Named {
                    sets: &mut sets,
                    n: 0,
                    most: most_blocks,
                    objective: request.objective,
                    progress: &mut on_set,
                };
                self.reach(&goal, &mut growth, measure)
            }
        }
    }

    /// Grows sets up to the goal.
    fn reach(
        &self,
        goal: &Goal,
        growth: &mut dyn Growth,
        measure: &mut dyn Measure,
    ) -> Result<(Measured, Option<GoalReport>)> {
        match goal {
            Goal::Size(limit) => {
                let n_bytes = |removed: &_| self.request.n_bytes(removed);
                let mut bound = SizeBound { n_bytes: &n_bytes, limit: *limit };
                let found = fewest(growth, measure, &mut bound)?;
                goals::sizes_report(found, &n_bytes, *limit)
            }
            Goal::Perplexity(_) | Goal::Kl(_) => {
                let found = most(growth, measure, &mut LossBound(*goal))?;
                goals::losses_report(found, goal)
            }
            Goal::SpeedUp => {
                let bytes = BytesPerToken::of(self.request.parent.model)?;
                let found = fastest(growth, measure, &bytes, self.request.target.most())?;
                goals::draft_report(found, &bytes)
            }
        }
    }

    /// The loss of each block's removal alone.
    fn ablate(&self, measure: &mut dyn Measure) -> Result<Vec<f64>> {
        let (constraints, objective) = (self.request.parent.constraints, self.request.objective);
        let singles: Vec<BlockSet> =
            (0..constraints.n_trunk_blocks).map(|block| BlockSet::from([BlockId::new(block)])).collect();
        if let Some(single) = singles.iter().find(|set| constraints.check(set).is_err()) {
            constraints.check(single).with_context(|| {
                format!(
                    "method 'ablate' removes each block alone, but block {} may not go alone",
                    block_list(&numbers(single))
                )
            })?;
        }
        if objective == Objective::Task {
            let losses = measure.tasks(&singles)?;
            return Ok(losses.iter().map(crate::measure::loss::TaskLoss::mean).collect());
        }
        let losses = measure.losses(measure.n_windows(), &singles)?;
        Ok(losses.iter().map(|loss| loss.mean(objective)).collect())
    }
}

/// The progress bar of a search.
pub(crate) struct Progress {
    bar: Box<dyn watch::Progress>,
    n_measured: Cell<u64>,
    /// Expected loss evaluations to the end, by the number of removed blocks. `None` where that is not known.
    expected: Option<Vec<u64>>,
    n: Option<usize>,
}

impl Progress {
    pub(crate) fn new(request: &Request<'_>, settings: &Settings, n_windows: usize) -> Self {
        let constraints = request.parent.constraints;
        let n_free = constraints.n_trunk_blocks
            - request
                .keep
                .union(&constraints.must_stay.keys().copied().collect())
                .filter(|block| block.index() < constraints.n_trunk_blocks)
                .count();
        let n_blocks = constraints.n_trunk_blocks;
        let (expected, n) = match (request.method, request.target) {
            (Method::Search, Target::Exactly(n)) => {
                let from = |went| expected_losses(settings, n_free, went..n, n_windows);
                (Some((0..=n).map(from).collect()), Some(n))
            }
            (Method::Ablate, Target::Exactly(n)) => {
                let all = (n_blocks as u64 + 1) * n_windows as u64;
                (Some(vec![all]), Some(n))
            }
            _ => (None, None),
        };
        let total = expected.as_ref().map_or(0, |expected: &Vec<u64>| expected[0]);
        Self {
            bar: request.watch.begin("searching".into(), Unit::Losses, total),
            n_measured: Cell::new(0),
            expected,
            n,
        }
    }

    /// A loss was measured.
    pub(crate) fn measured(&self) {
        self.n_measured.set(self.n_measured.get() + 1);
        self.bar.set_position(self.n_measured.get());
    }

    /// So many blocks are removed.
    fn set(&self, n: usize) {
        self.bar.set_message(match self.n {
            Some(of) => format!("searching: {n} of {of} blocks"),
            None => format!("searching: {n} blocks"),
        });
        // The total assumed that all blocks may go alone.
        let rest = (self.expected.as_ref()).and_then(|expected| expected.get(n));
        if let Some(rest) = rest {
            self.bar.set_total(self.n_measured.get() + rest);
        }
    }
}
