//! The blocks that a fit may remove: the best set of cheap methods for each of several numbers, by its measured loss.

use anyhow::Result;

use super::candidate::Removal;
use crate::choose::auto::{choose_each, why_not};
use crate::choose::measured::Chosen;
use crate::choose::request::{Request, Target};
use crate::engine::settings::Calibration;
use crate::measure::importance::Importance;
use crate::measure::loss::Objective;
use crate::measure::pairs::Pairs;
use crate::model::block::BlockSet;
use crate::output::Parent;
use crate::plan::{Method, Splitting};
use crate::watch::Watch;

/// Numbers of blocks that are tried: from one on, each about a third more than the one before.
const NUMBERS: [usize; 12] = [1, 2, 3, 4, 5, 6, 8, 11, 15, 20, 27, 36];

/// What names sets of blocks.
pub(super) struct Sets<'s> {
    pub(super) parent: Parent<'s>,
    pub(super) importance: &'s Importance,
    pub(super) pairs: &'s Pairs,
    pub(super) keep: &'s BlockSet,
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
}

/// The set that was chosen, with its loss.
fn removal(chosen: Chosen) -> Removal {
    let auto = chosen.auto.as_ref();
    let best = auto.and_then(|auto| auto.report.candidates.iter().find(|candidate| candidate.chosen));
    Removal {
        blocks: chosen.removed.clone(),
        method: auto.map_or(Method::Bi, |auto| auto.method).to_string(),
        // A set without a rival was not measured: its loss is that of the choice as a whole.
        kl: best.and_then(|best| best.kl_divergence).unwrap_or(0.0),
    }
}
