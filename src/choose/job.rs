//! A choice by measured losses, once there is something that measures them, and what a person sees of it.

use std::cell::Cell;

use anyhow::{Context, Result, bail};

use super::goals as goal;
use super::runs::Runs;
use crate::choose::outcome::GoalReport;
use crate::choose::removal;
use crate::choose::request::{Request, Target};
use crate::choose::search::draft::BytesPerToken;
use crate::choose::search::goal::{Greedy, Growth, LossBound, Named, SizeBound, fastest, fewest, most};
use crate::choose::search::{Goal, Measure, Measured, Removed, Search, Settings, expected_losses, measured};
use crate::measure::loss::Objective;
use crate::model::block::block_list;
use crate::model::{BlockId, Model};
use crate::plan::{Constraints, Method};
use crate::watch::{self, Unit, Watch};

/// A choice by losses, once there is something that measures them.
pub(crate) struct Job<'j, 'a> {
    pub(crate) model: &'j Model<'a>,
    pub(crate) constraints: &'j Constraints,
    pub(crate) request: &'j Request<'j>,
    pub(crate) settings: &'j Settings,
    pub(crate) runs: &'j Runs<'j, 'a>,
    pub(crate) progress: &'j Progress,
}

impl Job<'_, '_> {
    /// All runs of `n` consecutive blocks that may go.
    pub(crate) fn consecutive(&self, n: usize) -> Vec<Removed> {
        let n_blocks = self.constraints.n_trunk_blocks;
        let runs = (0..=n_blocks.saturating_sub(n))
            .map(|start| (start..start + n).map(BlockId::new).collect::<Removed>());
        runs.filter(|run| run.is_disjoint(self.request.keep) && self.constraints.check(run).is_ok()).collect()
    }

    pub(crate) fn decide(&self, measure: &mut dyn Measure) -> Result<(Measured, Option<GoalReport>)> {
        let (constraints, request) = (self.constraints, self.request);
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
                let (removed, report) = goal::first_of_size(&mut sets, first..=most, request.n_bytes, limit)?;
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
                let mut bound = SizeBound { n_bytes: self.request.n_bytes, limit: *limit };
                let way = fewest(growth, measure, &mut bound)?;
                goal::sizes_report(way, self.request.n_bytes, *limit)
            }
            Goal::Perplexity(_) | Goal::Kl(_) => {
                let way = most(growth, measure, &mut LossBound(*goal))?;
                goal::losses_report(way, goal)
            }
            Goal::SpeedUp => {
                let bytes = BytesPerToken::of(self.model)?;
                let way = fastest(growth, measure, &bytes, self.request.target.most())?;
                goal::draft_report(way, &bytes)
            }
        }
    }

    /// The loss of each block's removal alone.
    fn ablate(&self, measure: &mut dyn Measure) -> Result<Vec<f64>> {
        let (constraints, objective) = (self.constraints, self.request.objective);
        let singles: Vec<Removed> =
            (0..constraints.n_trunk_blocks).map(|block| Removed::from([BlockId::new(block)])).collect();
        if let Some(single) = singles.iter().find(|set| constraints.check(set).is_err()) {
            constraints.check(single).with_context(|| {
                let blocks: Vec<usize> = single.iter().map(|block| block.index()).collect();
                format!(
                    "method 'ablate' removes each block alone, but block {} may not go alone",
                    block_list(&blocks)
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

/// What a person sees of a search.
pub(crate) struct Progress {
    bar: Box<dyn watch::Progress>,
    n_measured: Cell<u64>,
    /// Losses that the rest takes, by the number of blocks that went; `None` where that is not known.
    expected: Option<Vec<u64>>,
    n: Option<usize>,
}

impl Progress {
    pub(crate) fn new(
        constraints: &Constraints,
        request: &Request<'_>,
        settings: &Settings,
        n_windows: usize,
        watch: &dyn Watch,
    ) -> Self {
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
            bar: watch.begin("searching".into(), Unit::Losses, total),
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

    /// So many blocks are gone.
    fn set(&self, n: usize) {
        self.bar.set_message(match self.n {
            Some(of) => format!("searching: {n} of {of} blocks"),
            None => format!("searching: {n} blocks"),
        });
        // The number of losses was that of a model all of whose blocks may go alone.
        let rest = (self.expected.as_ref()).and_then(|expected| expected.get(n));
        if let Some(rest) = rest {
            self.bar.set_total(self.n_measured.get() + rest);
        }
    }
}
