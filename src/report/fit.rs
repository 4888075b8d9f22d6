//! A fit as a screen for a person.

use std::fmt::Write as _;

use indicatif::DecimalBytes;

use super::column::{right, table};
use super::lines::Colour;
use crate::fit::outcome::FitReport;
use crate::model::block::block_list;

/// The types of every block, and how they were found.
pub(super) fn screen(fit: &FitReport, colour: Colour) -> String {
    let mut text = String::new();
    let head = vec![right("block"), right("bits"), right("types")];
    let rows = fit.blocks.iter().map(|block| {
        let bits = format!("{:.2}", block.bits);
        (vec![right(block.block), right(bits), right(&block.rung)], block.rung == "removed")
    });
    let _ = writeln!(text, "{}\n", table(head, rows, colour));
    text
}

/// What was reached, and what it took.
pub(super) fn lines(fit: &FitReport) -> String {
    let mut text = String::new();
    let aim = match (fit.target_bytes, fit.target_kl) {
        (Some(target), _) => format!("at most {}: {}", DecimalBytes(target), DecimalBytes(fit.bytes)),
        (None, Some(limit)) => format!("KL divergence at most {limit}: {}", DecimalBytes(fit.bytes)),
        (None, None) => format!("by a plan: {}", DecimalBytes(fit.bytes)),
    };
    let _ = writeln!(text, "fit      {aim}");
    if let (Some(kl), Some(expected)) = (fit.kl_divergence, fit.expected_kl) {
        let stderr = fit.kl_divergence_stderr.map_or(String::new(), |stderr| format!(" \u{b1} {stderr:.4}"));
        let _ = writeln!(
            text,
            "         KL {kl:.4}{stderr} on {} windows (as a sum of single losses {expected:.4}), perplexity {:.2} (parent {:.2}), \
             same top {:.1} %",
            fit.windows,
            fit.perplexity.unwrap_or(f64::NAN),
            fit.parent_perplexity.unwrap_or(f64::NAN),
            100.0 * fit.same_top.unwrap_or(f64::NAN)
        );
    }
    if fit.candidates.is_empty() {
        return text;
    }
    let n_removals = fit.candidates.iter().filter(|candidate| !candidate.removed.is_empty()).count();
    let n_mixtures = fit.candidates.iter().filter(|candidate| candidate.experts_kept.is_some()).count();
    let of_experts = match n_mixtures {
        0 => String::new(),
        n => format!(", {n} with fewer experts"),
    };
    let _ = writeln!(
        text,
        "         {} choices measured, {n_removals} with removed blocks{of_experts}; {:.1} passes of 8,192 tokens, {:.0} s",
        fit.candidates.len(),
        fit.passes,
        fit.seconds
    );
    if let Some(best) = fit
        .candidates
        .iter()
        .filter(|candidate| !candidate.removed.is_empty() && !candidate.chosen)
        .min_by(|a, b| a.kl_divergence.total_cmp(&b.kl_divergence))
    {
        let _ = writeln!(
            text,
            "         without blocks {} it would be KL {:.4}",
            block_list(&best.removed),
            best.kl_divergence
        );
    }
    if let Some((n, kl)) = fit
        .candidates
        .iter()
        .filter(|candidate| !candidate.chosen)
        .filter_map(|candidate| Some((candidate.experts_kept?, candidate.kl_divergence)))
        .min_by(|a, b| a.1.total_cmp(&b.1))
    {
        let _ = writeln!(text, "         with {n} experts in each block it would be KL {kl:.4}");
    }
    text
}
