//! How sure a choice is, in a result.

use crate::choose::outcome::BlockReport;
use crate::choose::stability::ties::Chosen;
use crate::choose::stability::{Confidence, Sample, Ties, correlation, ranks};
use crate::engine::outcome::CalibrationReport;
use crate::measure::importance::Importance;
use crate::model::BlockId;
use crate::model::block::BlockSet;
use crate::plan::Method;
use serde::Serialize;
use std::ops::RangeInclusive;

/// How sure a choice by scores is.
#[derive(Clone, Debug, Serialize)]
pub struct ConfidenceReport {
    /// The least probability that all that is called certain is so.
    pub level: f64,
    /// Tokens that the calibration might have used.
    pub tokens_allowed: usize,
    /// Why it ended: `set certain` or `text used up`. Null if it was not to end early.
    pub stopped: Option<&'static str>,
    /// Blocks on which another text of this kind might decide otherwise. Null if no set was chosen by scores, or by those of
    /// a single window.
    pub tied: Option<Vec<usize>>,
}

/// Ranks of blocks, and those tied at the chosen set's edge.
#[derive(Clone, Debug)]
pub struct Rating {
    ranks: Vec<usize>,
    /// `None` of a single window.
    ranges: Option<Vec<RangeInclusive<usize>>>,
    tied: Option<BlockSet>,
    confidence: Confidence,
}

impl Rating {
    /// By the scores that `method` goes by. Of the set that was `chosen` by them, if one was.
    #[must_use]
    pub fn new(
        importance: &Importance,
        method: Method,
        confidence: Confidence,
        chosen: Option<Chosen<'_>>,
    ) -> Self {
        let sample = Sample::of(method, importance);
        let scores = method.of_scores(importance.scores()).unwrap_or_default();
        let tied = |sample: &Sample| {
            let ties = Ties::of(chosen?, sample, confidence.alpha());
            Some(ties.tied)
        };
        Self {
            ranks: ascending(&scores),
            ranges: sample.as_ref().map(|sample| ranks::ranks(sample, confidence)),
            tied: sample.as_ref().and_then(tied),
            confidence,
        }
    }

    /// Writes them into the rows.
    pub fn mark(&self, rows: &mut [BlockReport]) {
        for (i, (row, rank)) in rows.iter_mut().zip(&self.ranks).enumerate() {
            row.rank = Some(*rank);
            let range = self.ranges.as_ref().map(|ranges| &ranges[i]);
            row.rank_low = range.map(|range| *range.start());
            row.rank_high = range.map(|range| *range.end());
            row.tied = (self.tied.as_ref()).map(|tied| tied.contains(&BlockId::new(i)));
        }
    }

    /// The report, of a calibration that might have used `tokens_allowed`. `stopped` if it ended before, `None` if it was
    /// not to.
    #[must_use]
    pub fn report(&self, tokens_allowed: usize, stopped: Option<bool>) -> ConfidenceReport {
        ConfidenceReport {
            level: self.confidence.level(),
            tokens_allowed,
            stopped: stopped.map(|stopped| match stopped {
                true => "set certain",
                false => "text used up",
            }),
            tied: (self.tied.as_ref()).map(|tied| tied.iter().map(|b| b.index()).collect()),
        }
    }
}

/// The rank of each score, from 1 for the lowest. Of equals the later block comes first, as it goes first.
pub(crate) fn ascending(scores: &[f64]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| scores[a].total_cmp(&scores[b]).then(b.cmp(&a)));
    let mut ranks = vec![0; scores.len()];
    for (rank, block) in order.into_iter().enumerate() {
        ranks[block] = rank + 1;
    }
    ranks
}

/// The same scores on another text.
#[derive(Clone, Debug, Serialize)]
pub struct AgainstReport {
    /// That text.
    pub calibration: CalibrationReport,
    /// Tokens of it that might have been used, and why it ended: as of the first text.
    pub confidence: ConfidenceReport,
    /// Spearman's rank correlation of the scores that the method goes by. Null where it is not defined.
    pub spearman: Option<f64>,
    /// Kendall's tau-b of those.
    pub kendall: Option<f64>,
    /// Spearman's rank correlation of Block Influence.
    pub bi_spearman: Option<f64>,
    /// Kendall's tau-b of it.
    pub bi_kendall: Option<f64>,
    /// Spearman's rank correlation of Relative Magnitude.
    pub relative_magnitude_spearman: Option<f64>,
    /// Kendall's tau-b of it.
    pub relative_magnitude_kendall: Option<f64>,
    /// How many blocks the sets have that are compared: those asked for, else a quarter. Null if no such set is allowed.
    pub drop: Option<usize>,
    /// The set by the first text.
    pub removed_here: Option<Vec<usize>>,
    /// The set by the other text.
    pub removed_there: Option<Vec<usize>>,
    /// What both have in common.
    pub removed_by_both: Option<Vec<usize>>,
    /// Every block, first to last, by the other text.
    pub blocks: Vec<BlockReport>,
}

/// The sets of the same number of blocks by two texts.
#[derive(Clone, Debug)]
pub struct Sets {
    /// By the first.
    pub here: BlockSet,
    /// By the other.
    pub there: BlockSet,
}

impl AgainstReport {
    /// Of what two texts gave by `method`. `blocks`, `calibration` and `confidence` of the other text.
    #[must_use]
    pub fn new(
        method: Method,
        [here, there]: [&Importance; 2],
        sets: Option<&Sets>,
        blocks: Vec<BlockReport>,
        calibration: CalibrationReport,
        confidence: ConfidenceReport,
    ) -> Self {
        let both = |by: Method| {
            let scores = |importance: &Importance| by.of_scores(importance.scores());
            let (a, b) = (scores(here).unwrap_or_default(), scores(there).unwrap_or_default());
            (correlation::spearman(&a, &b), correlation::kendall(&a, &b))
        };
        let (spearman, kendall) = both(method);
        let (bi_spearman, bi_kendall) = both(Method::Bi);
        let (magnitude_spearman, magnitude_kendall) = both(Method::RelativeMagnitude);
        let numbers = |set: &mut dyn Iterator<Item = &BlockId>| set.map(|b| b.index()).collect();
        Self {
            calibration,
            confidence,
            spearman,
            kendall,
            bi_spearman,
            bi_kendall,
            relative_magnitude_spearman: magnitude_spearman,
            relative_magnitude_kendall: magnitude_kendall,
            drop: sets.map(|sets| sets.here.len()),
            removed_here: sets.map(|sets| numbers(&mut sets.here.iter())),
            removed_there: sets.map(|sets| numbers(&mut sets.there.iter())),
            removed_by_both: sets.map(|sets| numbers(&mut sets.here.intersection(&sets.there))),
            blocks,
        }
    }
}

/// What each block alone costs.
#[derive(Clone, Debug, Serialize)]
pub struct AblateReport {
    /// How models without a block were evaluated. Block by block (`segments`), or each as a whole model (`whole`). Null if
    /// no block may go alone.
    pub evaluated: Option<&'static str>,
    /// Evaluations of one block on one window.
    pub block_evaluations: u64,
    /// Time of all of it.
    pub seconds: f64,
    /// Of the whole model on the same text. Null if no block may go alone.
    pub parent_perplexity: Option<f64>,
    /// Blocks that may not go alone.
    pub refused: Vec<RefusedReport>,
}

/// A block that may not go alone.
#[derive(Clone, Debug, Serialize)]
pub struct RefusedReport {
    /// Its number.
    pub block: usize,
    /// Why.
    pub reason: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_ascend_and_the_later_of_equals_is_first() {
        assert_eq!(ascending(&[0.3, 0.1, 0.3, 0.2]), [4, 1, 3, 2]);
        assert!(ascending(&[]).is_empty());
    }
}
