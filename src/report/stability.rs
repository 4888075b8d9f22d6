//! Lines on the certainty of scores, another text, and single blocks' losses.

use super::lines;
use crate::choose::rating::AblateReport;
use crate::choose::rating::AgainstReport;
use crate::choose::rating::ConfidenceReport;
use crate::engine::outcome::CalibrationReport;
use crate::model::block::block_list;
use indicatif::HumanCount;
use std::fmt::Write as _;

/// On lines of their own: why the calibration ended, and what is tied.
#[must_use]
pub fn sure(confidence: &ConfidenceReport, calibration: &CalibrationReport) -> String {
    let mut text = String::new();
    let level = confidence.level;
    match confidence.stopped {
        Some("set certain") => {
            let _ = writeln!(
                text,
                "stopped  after {} of {} tokens: more of it would not change the set (confidence {level})",
                HumanCount(calibration.tokens as u64),
                HumanCount(confidence.tokens_allowed as u64)
            );
        }
        Some(_) => {
            let _ = writeln!(
                text,
                "stopped  at the end of all {} tokens: no part of the text was enough (confidence {level})",
                HumanCount(confidence.tokens_allowed as u64)
            );
        }
        None => {}
    }
    match confidence.tied.as_deref() {
        Some([]) => {
            let _ = writeln!(
                text,
                "sure     another text of this kind would lead to the same set (confidence {level})"
            );
        }
        Some(tied) => {
            let _ = writeln!(
                text,
                "tied     {} (~): another text of this kind might choose otherwise among these, and among no others \
                 (confidence {level})",
                block_list(tied)
            );
        }
        None => {}
    }
    text
}

/// On lines of their own: the other text, and how far it agrees.
#[must_use]
pub fn against(against: &AgainstReport) -> String {
    let mut text = String::new();
    let number = |value: Option<f64>| value.map_or("none".to_owned(), |value| format!("{value:.3}"));
    let _ = writeln!(
        text,
        "against  {}: rank correlation {} (Spearman), {} (Kendall)",
        lines::calibrated(&against.calibration),
        number(against.spearman),
        number(against.kendall)
    );
    if let (Some(here), Some(there), Some(both)) =
        (&against.removed_here, &against.removed_there, &against.removed_by_both)
    {
        let only =
            |set: &[usize]| -> Vec<usize> { set.iter().filter(|b| !both.contains(b)).copied().collect() };
        let _ = writeln!(
            text,
            "         of the {} that would go {} are the same: {}; only by the first text {}, only by the other {}",
            here.len(),
            both.len(),
            block_list(both),
            block_list(&only(here)),
            block_list(&only(there))
        );
    }
    text
}

/// What single removals are compared with, and which are not allowed. Each is on lines of its own; those that may not go
/// alone are there by reason.
#[must_use]
pub fn ablated(ablate: &AblateReport) -> String {
    let mut text = String::new();
    if let Some(perplexity) = ablate.parent_perplexity {
        let _ = writeln!(
            text,
            "alone    KL divergence and perplexity without this block alone, of {perplexity:.2} with all; {} evaluations of a \
             block in {:.1} s",
            HumanCount(ablate.block_evaluations),
            ablate.seconds
        );
    }
    let mut reasons: Vec<(&str, Vec<usize>)> = Vec::new();
    for refused in &ablate.refused {
        match reasons.iter_mut().find(|(why, _)| *why == refused.reason) {
            Some((_, blocks)) => blocks.push(refused.block),
            None => reasons.push((&refused.reason, vec![refused.block])),
        }
    }
    for (why, blocks) in reasons {
        let _ = writeln!(text, "not      {} alone: {why}", block_list(&blocks));
    }
    text
}
