//! What healing tried, and what it kept.

use crate::heal::outcome::HealReport;
use crate::named::Named as _;
use crate::plan::healing::HealMethod;
use indicatif::{DecimalBytes, HumanCount};
use std::fmt::Write as _;

/// The result for a person.
#[must_use]
pub fn lines(heal: &HealReport) -> String {
    let mut text = String::new();
    let Some(held_out) = &heal.held_out else {
        let _ = writeln!(text, "healed   nothing: {}", heal.warnings.join("; "));
        return text;
    };
    let measured = format!(
        "on {} {} that nothing was fitted to",
        held_out.windows,
        if held_out.windows == 1 { "window" } else { "windows" }
    );
    if HealMethod::of_word(&heal.method) == Some(HealMethod::None) {
        let _ = writeln!(text, "healed   nothing: nothing that was tried is better {measured}");
        return text;
    }
    let added: i64 = heal.tensors.iter().map(|tensor| tensor.bytes_added).sum();
    let sign = if added < 0 { "less" } else { "more" };
    let _ = writeln!(
        text,
        "healed   by {} ({}): {} tensors, {} {sign}, fitted to {} tokens in {:.1} s",
        heal.method,
        heal.variant.as_deref().unwrap_or_default(),
        heal.tensors.len(),
        DecimalBytes(added.unsigned_abs()),
        HumanCount(heal.tokens as u64),
        heal.seconds,
    );
    let _ = writeln!(
        text,
        "         {measured}: perplexity {:.2}, without {:.2}, whole model {:.2}; {} {:.4}, without {:.4}",
        held_out.perplexity_healed,
        held_out.perplexity_none,
        held_out.parent_perplexity,
        held_out.objective,
        held_out.loss_healed,
        held_out.loss_none
    );
    text
}
