//! Lines that several results share: model, text, blocks, changes, output.

use crate::choose::outcome::{
    AutoReport, CandidateReport, ExpertCandidateReport, ExpertsAutoReport, SearchReport, SetCost,
};
use crate::engine::conversion::Conversion;
use crate::engine::outcome::CalibrationReport;
use crate::gguf;
use crate::model::block::{block_list, counted};
use crate::model::outcome::ModelReport;
use crate::named::Named as _;
use crate::output::outcome::OutputReport;
use crate::plan::{ChangeKind, ChosenBy, TensorChange};
use indicatif::{DecimalBytes, HumanCount};
use std::fmt::Write as _;

/// Whether a table may use colour.
pub type Colour = bool;

/// The removed blocks of `model`, chosen as `how` says. Prediction blocks apart, of which all go or none.
#[must_use]
pub fn removed(removed: &[usize], model: &ModelReport, how: &str) -> String {
    if removed.is_empty() {
        return "no whole block".to_owned();
    }
    let n_trunk = model.block_count - model.prediction_block_count;
    let n = removed.iter().filter(|&&block| block < n_trunk).count();
    let (trunk, prediction) = removed.split_at(n);
    let trunk = || format!("{} ({n} of {n_trunk} blocks, {how})", block_list(trunk));
    let prediction = || match prediction {
        [block] => format!("prediction block {block}"),
        blocks => format!("prediction blocks {}", block_list(blocks)),
    };
    match (n, removed.len() - n) {
        (_, 0) => trunk(),
        (0, _) => prediction(),
        _ => format!("{}, {}", trunk(), prediction()),
    }
}

/// How blocks were chosen, in words.
pub(super) fn chosen(method: &str) -> String {
    match is_list(method) {
        true => "as listed".to_owned(),
        false => format!("by {method}"),
    }
}

/// Whether that is the word of blocks that were given.
pub(super) fn is_list(method: &str) -> bool {
    ChosenBy::of_word(method) == Some(ChosenBy::List)
}

/// So many tensors that are alike are each named.
const MAX_NAMED: usize = 4;

/// Tensors that are not the input's with all their bytes: a line for each reason.
#[must_use]
pub fn changes(changes: &[TensorChange]) -> String {
    let mut text = String::new();
    let mut groups: Vec<(&TensorChange, Vec<&TensorChange>)> = Vec::new();
    for change in changes {
        let is_alike = |(first, _): &&mut (&TensorChange, Vec<&TensorChange>)| {
            first.change == change.change && first.why == change.why
        };
        match groups.iter_mut().find(is_alike) {
            Some((_, all)) => all.push(change),
            None => groups.push((change, vec![change])),
        }
    }
    for (first, all) in groups {
        let word = match first.change {
            ChangeKind::Sliced => "sliced  ",
            ChangeKind::Changed => "changed ",
            ChangeKind::New => "new     ",
            ChangeKind::LeftOut => "left out",
        };
        let name = |change: &TensorChange| {
            let name = change.tensor.as_ref().or(change.parent.as_ref());
            gguf::Quoted(name.map_or("", String::as_str)).to_string()
        };
        let names = match all.len() {
            n if n <= MAX_NAMED => all.into_iter().map(name).collect::<Vec<_>>().join(", "),
            n => format!("{} and {} more", name(first), n - 1),
        };
        let _ = writeln!(text, "{word} {names}: {}", first.why);
    }
    text
}

/// The input on one line.
#[must_use]
pub fn model(model: &ModelReport) -> String {
    format!(
        "{}: {}, {}, {} parameters, {}",
        model.path,
        model.architecture,
        counted(model.block_count),
        HumanCount(model.parameters),
        DecimalBytes(model.bytes)
    )
}

/// What the removal costs, on one line.
pub(super) fn loss(search: &SearchReport) -> String {
    format!(
        "on that text: perplexity {:.2} (whole model {:.2}), KL divergence {:.4}, same top {:.1} %; {} evaluations of a \
         block",
        search.perplexity,
        search.parent_perplexity,
        search.kl_divergence,
        search.same_top * 100.0,
        HumanCount(search.block_evaluations)
    )
}

/// The sets that method `auto` compared, the best first.
pub(super) fn compared(auto: &AutoReport) -> String {
    let mut candidates: Vec<_> = auto.candidates.iter().collect();
    candidates.sort_by(|a, b| b.chosen.cmp(&a.chosen).then(a.cost.order(&b.cost)));
    let set = |candidate: &CandidateReport| {
        let cost = cost(&candidate.cost);
        format!("{} by {}{cost}", block_list(&candidate.removed), candidate.methods.join(", "))
    };
    let mut text = match (auto.windows, &auto.fallback) {
        (_, Some(why)) => format!("compared nothing: {why}\n"),
        (0, None) => "compared nothing: all methods name the same set\n".to_owned(),
        (n, None) => format!(
            "compared {} sets on {}; {} evaluations of a block\n",
            candidates.len(),
            held_out(auto.tokens, n, auto.seen_windows),
            HumanCount(auto.block_evaluations)
        ),
    };
    if auto.windows > 0 {
        candidates.iter().for_each(|candidate| {
            let _ = writeln!(text, "         {}", set(candidate));
        });
    }
    text
}

/// What a set costs, where that was measured.
fn cost(of: &SetCost) -> String {
    let (Some(kl), Some(perplexity)) = (of.kl_divergence, of.perplexity) else {
        return String::new();
    };
    let stderr = of.kl_divergence_stderr.map_or(String::new(), |stderr| format!(" \u{b1} {stderr:.4}"));
    format!(": KL {kl:.4}{stderr}, perplexity {perplexity:.2}")
}

/// The windows that sets were compared on. `n_seen` of them were scored, too.
fn held_out(n_tokens: usize, n: usize, n_seen: usize) -> String {
    format!(
        "{} tokens, {n} {}{}",
        HumanCount(n_tokens as u64),
        if n == 1 { "window" } else { "windows" },
        match n_seen {
            0 => " that chose nothing".to_owned(),
            seen => format!(", {seen} of them scored before, as the text has no others"),
        }
    )
}

/// The sets of experts that `auto` compared, the best first.
pub(super) fn compared_experts(auto: &ExpertsAutoReport) -> String {
    let mut text = match (auto.windows, &auto.fallback) {
        (_, Some(why)) => return format!("         compared nothing: {why}\n"),
        (0, None) => return "         compared nothing: all scores name the same set\n".to_owned(),
        (n, None) => format!(
            "         compared {} sets on {}; {} evaluations of a block\n",
            auto.candidates.len(),
            held_out(auto.tokens, n, auto.seen_windows),
            HumanCount(auto.block_evaluations)
        ),
    };
    let mut candidates: Vec<&ExpertCandidateReport> = auto.candidates.iter().collect();
    candidates.sort_by(|a, b| b.chosen.cmp(&a.chosen).then(a.cost.order(&b.cost)));
    for candidate in candidates {
        let cost = cost(&candidate.cost);
        let _ = writeln!(text, "         by {}{cost}", candidate.methods.join(", "));
    }
    text
}

/// The runs of 1, 2, 3, ... blocks across which the stream is most alike.
pub(super) fn alike(cosine: &[Vec<Option<f64>>]) -> String {
    const LONGEST: usize = 8;
    let n_blocks = cosine.len().saturating_sub(1);
    let mut text = String::new();
    for n in 1..=LONGEST.min(n_blocks.saturating_sub(1)) {
        let runs = (0..=n_blocks - n).filter_map(|start| Some((start, cosine[start][start + n]?)));
        let Some((start, best)) = runs.max_by(|a, b| a.1.total_cmp(&b.1)) else {
            continue;
        };
        let run: Vec<usize> = (start..start + n).collect();
        let word = if n == 1 { "block" } else { "blocks" };
        let _ = writeln!(
            text,
            "{} cosine {best:.4} across {word} {}",
            if n == 1 { "alike   " } else { "        " },
            block_list(&run)
        );
    }
    text
}

/// The text that was evaluated, on one line.
#[must_use]
pub fn calibrated(calibration: &CalibrationReport) -> String {
    let windows = match calibration.windows {
        1 => "window",
        _ => "windows",
    };
    if calibration.cached {
        return format!(
            "scores from the cache: {} tokens of {} text, {} {windows} of {}",
            HumanCount(calibration.tokens as u64),
            calibration.source,
            calibration.windows,
            calibration.window
        );
    }
    let rate = calibration.tokens as f64 / calibration.seconds;
    let converted = match calibration.conversion {
        Conversion::None => String::new(),
        Conversion::NoRepack => ", weights not repacked".to_owned(),
        conversion => format!(", weights as {}", conversion.word().to_ascii_uppercase()),
    };
    format!(
        "{} tokens of {} text in {:.1} s ({rate:.0} tokens/s), {} {windows} of {}{converted}",
        HumanCount(calibration.tokens as u64),
        calibration.source,
        calibration.seconds,
        calibration.windows,
        calibration.window,
    )
}

pub(super) fn written(output: &OutputReport, parent_bytes: u64) -> String {
    let share = output.bytes as f64 / parent_bytes as f64 * 100.0;
    let path = output.path.as_deref().unwrap_or("(dry run)");
    let seconds = output.seconds.map_or("nothing written".to_owned(), |seconds| format!("{seconds:.2} s"));
    let parts = match output.parts.len() {
        0 | 1 => String::new(),
        n => format!("{n} parts, "),
    };
    format!(
        "{path}: {parts}{}, {} parameters, {} ({share:.1} %), {seconds}",
        counted(output.block_count),
        HumanCount(output.parameters),
        DecimalBytes(output.bytes)
    )
}
