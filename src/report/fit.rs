//! A fit as a screen for a person.

use std::fmt::Write as _;

use indicatif::DecimalBytes;

use super::column::{right, table};
use super::lines::Colour;
use crate::fit::outcome::{FitCandidateReport, FitReport};
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
            "         KL {kl:.4}{stderr} on {} later windows (as a sum of single losses {expected:.4}), perplexity {:.2} (parent {:.2}), \
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
    let removals = || fit.candidates.iter().filter_map(|one| Some((one, removal(one)?)));
    let of = |kind: &'static str| removals().filter(move |(_, (of, _))| *of == kind);
    let counts = KINDS.iter().map(|kind| (of(kind).count(), kind)).filter(|(n, _)| *n > 0);
    let counts: String = counts.map(|(n, kind)| format!(", {n} with {kind}")).collect();
    let _ = writeln!(
        text,
        "         {} choices measured{counts}; {:.1} passes of 8,192 tokens, {:.0} s",
        fit.candidates.len(),
        fit.passes,
        fit.seconds
    );
    for kind in KINDS {
        let others = of(kind).filter(|(candidate, _)| !candidate.chosen);
        let best = others.min_by(|(a, _), (b, _)| a.kl_divergence.total_cmp(&b.kl_divergence));
        if let Some((best, (_, words))) = best {
            let _ = writeln!(text, "         {words} it would be KL {:.4}", best.kl_divergence);
        }
    }
    text
}

/// Kinds of removals.
const KINDS: [&str; 3] = ["removed blocks", "blocks without attention", "fewer experts"];

/// What a choice removes: its kind, and in words. `None` of types alone.
fn removal(candidate: &FitCandidateReport) -> Option<(&'static str, String)> {
    let [blocks, attention, experts] = KINDS;
    if !candidate.removed.is_empty() {
        return Some((blocks, format!("without blocks {}", block_list(&candidate.removed))));
    }
    if !candidate.attention_removed.is_empty() {
        let of = block_list(&candidate.attention_removed);
        return Some((attention, format!("without the attention of {of}")));
    }
    candidate.experts_kept.map(|n| (experts, format!("with {n} experts in each block")))
}
