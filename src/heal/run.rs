//! Healing as a part of the main job: what is tried, and what is kept.

use std::collections::BTreeSet;
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use super::repairs::Repairs;
use super::trials::{Tried, TriedAll, best_of};
use crate::engine::hidden_state::Token;
use crate::engine::llama;
use crate::engine::load::load_and_cut;
use crate::engine::scored::MIN_WINDOW;
use crate::engine::settings::Calibration;
use crate::engine::text::{CalibrationSet, DEFAULT_TOKENS, DEFAULT_WINDOW};
use crate::heal::Weighting;
use crate::heal::healer::stepwise::{Order, PATIENCE};
use crate::heal::healer::validation::LOGITS_BYTES;
use crate::heal::healer::{Candidate, HealType, Healer, Setup};
use crate::heal::normal::NormalEquations;
use crate::heal::outcome::HealReport;
use crate::heal::outcome::{HealCandidateReport, HealedTensorReport, HeldOutReport};
use crate::heal::settings::{Heal, HealArg};
use crate::heal::split::{MIN_WINDOWS, Split};
use crate::heal::target_matrix::TargetMatrix;
use crate::measure::loss::Objective;
use crate::model::input::Input;
use crate::model::{BlockId, Model};
use crate::plan::{AttentionCut, Constraints, HealMethod, Healing, attention};
use crate::watch::{Unit, Watch};

/// Tokens for each unknown of a row below which a fit is not to be trusted.
const TOKENS_PER_UNKNOWN: usize = 8;

/// What healing made of a selection.
pub(crate) struct Healed {
    pub(crate) removed: BTreeSet<BlockId>,
    pub(crate) attention: Option<AttentionCut>,
    /// `none` if nothing helped.
    pub(crate) method: String,
    /// `None` if nothing helped.
    pub(crate) healing: Option<Healing>,
    pub(crate) report: HealReport,
}

/// How much text is used, where the user does not say otherwise: enough for the largest matrix.
fn default_tokens(carrier: Option<&TargetMatrix>) -> usize {
    let n_in = carrier.map_or(0, |carrier| carrier.n_in);
    // A part of the windows is not fitted to.
    let wanted = n_in.saturating_mul(TOKENS_PER_UNKNOWN * 2);
    wanted.next_multiple_of(DEFAULT_WINDOW).max(DEFAULT_TOKENS)
}

/// Streams that are kept: the parent's, before the cut and after it, and the shortened model's.
const STREAMS: u64 = 3;

/// Bytes for each token.
fn streams_bytes(carrier: &TargetMatrix) -> u64 {
    (carrier.n_out as u64).saturating_mul(STREAMS * size_of::<f32>() as u64)
}

/// As [`default_tokens`], or as many as the memory that may be taken has room for, in windows of `window`.
fn wanted_tokens(carrier: Option<&TargetMatrix>, heal: &Heal, window: usize) -> usize {
    let wanted = default_tokens(carrier).max(window);
    let (Some(max), Some(carrier)) = (heal.max_memory, carrier) else {
        return wanted;
    };
    let room = max.saturating_sub(sums_bytes(carrier, 1)) / streams_bytes(carrier).max(1);
    let room = usize::try_from(room).unwrap_or(usize::MAX);
    let least = window.saturating_mul(MIN_WINDOWS);
    (room / window.max(1)).saturating_mul(window).clamp(least, wanted.max(least))
}

/// Checks before any calibration whether `model` can be healed as `heal` says, and in the memory that it may take.
///
/// # Errors
/// It cannot.
pub(crate) fn check(model: &Model<'_>, heal: &Heal, calibration: &Calibration) -> Result<()> {
    if heal.how == HealArg::None {
        return Ok(());
    }
    llama::check_ends(model)?;
    let carrier = Repairs::of(model, heal.how)?.carrier;
    if let (HealType::To(tensor_type), Some(carrier)) = (heal.heal_type, carrier) {
        ensure!(
            tensor_type.row_bytes(carrier.n_in as u64).is_some(),
            "--heal-type {tensor_type}: rows of 'ffn_down' have {} weights, which are not whole quantisation blocks of {}",
            carrier.n_in,
            tensor_type.block_size()
        );
    }
    if heal.how == HealArg::Block {
        attention::check_model(model).context("cannot be healed by a block without attention")?;
    }
    let (Some(max), Some(carrier)) = (heal.max_memory, carrier) else {
        return Ok(());
    };
    let n_tokens = match heal.tokens_are_default {
        true => wanted_tokens(Some(&carrier), heal, calibration.window),
        false => calibration.tokens,
    };
    let sums = sums_bytes(&carrier, 1);
    let streams = (n_tokens as u64).saturating_mul(streams_bytes(&carrier));
    let needed = sums.saturating_add(streams);
    ensure!(
        needed <= max,
        "healing needs {needed} bytes beside the model ({sums} for sums of {} inputs of 'ffn_down', {streams} for the hidden \
         states of {n_tokens} tokens), but --max-memory is {max}",
        carrier.n_in
    );
    Ok(())
}

/// Tries what `heal` says for `model` without `removed`, and keeps what is best on windows that nothing was fitted to.
///
/// # Errors
/// Whatever keeps the model from being evaluated; a block before a cut that cannot make up for it.
#[expect(clippy::too_many_arguments, reason = "all of them are the job's settings")]
pub(crate) fn heal(
    model: &Model<'_>,
    constraints: &Constraints,
    input: &Input,
    (removed, shortlist): (&BTreeSet<BlockId>, &[BTreeSet<BlockId>]),
    attention: Option<&AttentionCut>,
    heal: &Heal,
    objective: Objective,
    calibration: &Calibration,
    watch: &dyn Watch,
) -> Result<Healed> {
    let at_path = || input.path().display().to_string();
    let objective = match objective {
        Objective::Ppl => Objective::Ppl,
        Objective::Kl | Objective::Task | Objective::Draft => Objective::Kl,
    };
    let repairs = Repairs::of(model, heal.how).with_context(at_path)?;
    let carrier = repairs.carrier;
    let mut calibration = calibration.clone();
    if heal.tokens_are_default {
        calibration.tokens = wanted_tokens(carrier.as_ref(), heal, calibration.window);
    }
    let (engine, set) = load_and_cut(input, model, &calibration, watch, false)?;
    ensure!(
        set.window >= MIN_WINDOW,
        "{}: a window has {} tokens, but {MIN_WINDOW} or more are needed to score predictions",
        at_path(),
        set.window
    );
    let start = Instant::now();
    let windows: Vec<&[Token]> = set.windows().collect();
    let split = Split::of(&windows, set.texts(), set.own());
    let (mut warnings, is_hopeless) = warnings(&split, carrier.as_ref());
    warnings.extend(repairs.left_out.iter().cloned());
    for warning in &warnings {
        watch.warn(warning);
    }
    let mut all = TriedAll { removed: removed.clone(), shortlist: Vec::new(), tried: Vec::new() };
    if !is_hopeless {
        let bar = watch.begin("healing".into(), Unit::Time, 0);
        let tell = |what: &str, n_done: usize, n_windows: usize| {
            bar.set_message(match n_windows {
                0 => format!("healing: {what}"),
                _ => format!("healing: {what}, window {}/{n_windows}", n_done + 1),
            });
        };
        // To scale writers, blocks need not be evaluated one by one.
        let make = match repairs.fits {
            true => Healer::new,
            false => Healer::of_whole_models,
        };
        let n_threads = calibration.threads;
        let setup =
            Setup { model, constraints, engine: &engine, windows: windows.clone(), split: &split, n_threads };
        let result = make(setup).and_then(|healer| {
            let mut healer = healer.with_progress(Box::new(tell)).with_logits_bytes(logits_bytes(
                heal,
                carrier.as_ref(),
                &set,
                engine.n_embd(),
            ));
            if repairs.fits {
                let carrier = carrier.as_ref();
                let orders = |may_block| orders(heal, objective, carrier, set.n_tokens(), may_block);
                if attention.is_none() && shortlist.len() > 1 {
                    all.choose(&mut healer, shortlist, &orders(false))?;
                }
                let may_block = !repairs.post_norms && attention::check_model(model).is_ok();
                all.try_all(&mut healer, attention, &orders(may_block))?;
            } else {
                all.try_none(&healer, attention, &split)?;
            }
            match &repairs.writers {
                Some(writers) => all.try_scales(&mut healer, writers, objective),
                None => Ok(Vec::new()),
            }
        });
        drop(bar);
        let n_before = warnings.len();
        warnings.extend(result.with_context(at_path)?);
        for warning in &warnings[n_before..] {
            watch.warn(warning);
        }
    }
    let TriedAll { removed, shortlist, tried } = all;
    let best = best_of(&tried, objective);
    let mut healed = kept(model, &removed, attention, heal, objective, &split, tried, best, warnings, start);
    healed.report.shortlist = shortlist;
    Ok(healed)
}

/// Memory for logits of the parent: what the streams of all windows and one fit's sums leave.
fn logits_bytes(heal: &Heal, carrier: Option<&TargetMatrix>, set: &CalibrationSet, n_embd: usize) -> u64 {
    let Some(max) = heal.max_memory else {
        return LOGITS_BYTES;
    };
    let per_token = (n_embd as u64).saturating_mul(STREAMS * size_of::<f32>() as u64);
    let streams = (set.n_tokens() as u64).saturating_mul(per_token);
    let sums = carrier.map_or(0, |carrier| sums_bytes(carrier, 1));
    max.saturating_sub(streams.saturating_add(sums)).min(LOGITS_BYTES)
}

/// What is tried.
fn orders(
    heal: &Heal,
    objective: Objective,
    carrier: Option<&TargetMatrix>,
    n_tokens: usize,
    may_block: bool,
) -> Vec<Order> {
    // Whether the block before a cut is fitted, and whether one of the run stays as its network.
    let ways: &[(bool, bool)] = match heal.how {
        HealArg::None | HealArg::Scale => &[],
        HealArg::Linear => &[(true, false)],
        HealArg::Block => &[(false, true), (true, true)],
        HealArg::Auto => &[(true, may_block)],
    };
    let all = [Weighting::InverseNorm, Weighting::Plain, Weighting::InverseSquaredNorm];
    let has_room = heal.max_memory.zip(carrier).is_none_or(|(max, carrier)| {
        let streams = (n_tokens as u64).saturating_mul(streams_bytes(carrier));
        sums_bytes(carrier, all.len()).saturating_add(streams) <= max
    });
    let order = |&(before, with_block): &(bool, bool)| Order {
        patience: PATIENCE,
        weightings: match has_room && before {
            true => all.to_vec(),
            false => all[..1].to_vec(),
        },
        before,
        with_block,
        heal_type: heal.heal_type,
        objective,
    };
    ways.iter().map(order).collect()
}

/// Bytes of the sums for so many weightings: both folds of each, and beside them their sum and a factor of it.
fn sums_bytes(carrier: &TargetMatrix, n_weightings: usize) -> u64 {
    NormalEquations::n_bytes(carrier.n_in, carrier.n_out).saturating_mul(2 * n_weightings as u64 + 2)
}

/// What speaks against trusting a fit to these windows, and whether none is to be tried.
fn warnings(split: &Split, carrier: Option<&TargetMatrix>) -> (Vec<String>, bool) {
    let n_in = carrier.map_or(1, |carrier| carrier.n_in);
    let mut warnings = Vec::new();
    if split.n_repeated > 0 {
        warnings.push(format!("{} windows of the text repeat others and are left out", split.n_repeated));
    }
    if !split.is_enough() {
        warnings.push(format!(
            "the text has {} different windows, but healing needs {MIN_WINDOWS}, so nothing is healed",
            split.all().len()
        ));
        return (warnings, true);
    }
    if split.n_distinct * 2 < split.n_tokens {
        warnings.push(format!(
            "the text repeats itself: only {} of {} tokens follow others than before",
            split.n_distinct, split.n_tokens
        ));
        if split.n_distinct < n_in {
            warnings.push("a fit to it would mean nothing, so nothing is healed".to_owned());
            return (warnings, true);
        }
    }
    let wanted = n_in * TOKENS_PER_UNKNOWN;
    let n_new = split.n_distinct.min(split.n_tokens);
    if n_new < wanted {
        warnings.push(format!(
            "{n_new} tokens, repetitions left out, to fit {n_in} unknowns of each output; {wanted} or more are advised"
        ));
    }
    (warnings, false)
}

#[expect(clippy::too_many_arguments, reason = "gathers one result")]
fn kept(
    model: &Model<'_>,
    removed: &BTreeSet<BlockId>,
    attention: Option<&AttentionCut>,
    heal: &Heal,
    objective: Objective,
    split: &Split,
    tried: Vec<Tried>,
    best: Option<usize>,
    warnings: Vec<String>,
    start: Instant,
) -> Healed {
    let loss_of = |i: usize| tried.get(i)?.measured.as_ref().map(|(_, loss)| *loss);
    let held_out = best.and_then(|best| {
        let (none, healed) = (loss_of(0)?, loss_of(best)?);
        Some(HeldOutReport {
            windows: split.validation.len(),
            loss_none: none.mean(objective),
            loss_healed: healed.mean(objective),
            objective: match objective {
                Objective::Ppl => "ppl",
                // What is chosen for a task or a draft is healed toward the parent's predictions.
                Objective::Kl | Objective::Task | Objective::Draft => "kl",
            },
            parent_perplexity: none.parent_perplexity(),
            perplexity_none: none.perplexity(),
            perplexity_healed: healed.perplexity(),
        })
    });
    let candidates = tried
        .iter()
        .enumerate()
        .map(|(i, tried)| {
            let measured = tried.measured.as_ref();
            HealCandidateReport {
                method: tried.method.to_string(),
                variant: tried.variant.clone(),
                loss: measured.map(|(_, loss)| loss.mean(objective)),
                perplexity: measured.map(|(_, loss)| loss.perplexity()),
                bytes_added: measured.map_or(0, |(candidate, _)| {
                    tensor_reports(model, candidate).iter().map(|t| t.bytes_added).sum()
                }),
                kept: best == Some(i),
            }
        })
        .collect();
    let chosen = best.and_then(|best| tried.into_iter().nth(best));
    let (method, variant, candidate) = match chosen {
        Some(Tried { method, variant, measured: Some((candidate, _)) }) => (method, variant, Some(candidate)),
        _ => (HealMethod::None, None, None),
    };
    let candidate = candidate.filter(|candidate| !candidate.tensors.is_empty());
    let report = HealReport {
        requested: heal.how.to_string(),
        method: method.to_string(),
        variant,
        tensors: candidate.as_ref().map(|candidate| tensor_reports(model, candidate)).unwrap_or_default(),
        tokens: split.n_tokens,
        ridge: candidate.as_ref().and_then(|candidate| candidate.fitted.first()).map(|fitted| fitted.ridge),
        held_out,
        candidates,
        shortlist: Vec::new(),
        seconds: start.elapsed().as_secs_f64(),
        warnings,
    };
    let loss = held_out.map_or([0.0; 2], |held_out| {
        #[expect(clippy::cast_possible_truncation, reason = "rounded to a float")]
        [held_out.loss_none as f32, held_out.loss_healed as f32]
    });
    Healed {
        removed: candidate.as_ref().map_or_else(|| removed.clone(), |c| c.removed.clone()),
        attention: candidate
            .as_ref()
            .map_or_else(|| attention.cloned(), |candidate| candidate.attention.clone()),
        method: method.to_string(),
        healing: candidate.map(|candidate| Healing { tensors: candidate.tensors, loss }),
        report,
    }
}

fn tensor_reports(model: &Model<'_>, candidate: &Candidate) -> Vec<HealedTensorReport> {
    let report = |(&source, changed): (&usize, &crate::plan::ChangedTensor)| {
        let info = &model.tensors().get(source)?.info;
        let fitted = candidate.fitted.iter().find(|fitted| fitted.source == source);
        let n_bytes = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        Some(HealedTensorReport {
            name: info.name().to_owned(),
            from_type: info.tensor_type().to_string(),
            r#type: changed.tensor_type.to_string(),
            bytes_added: n_bytes(changed.bytes.len()) - n_bytes(info.bytes().len()),
            ridge: fitted.map(|fitted| fitted.ridge),
            error_left: fitted.map(|fitted| fitted.left),
        })
    };
    candidate.tensors.iter().filter_map(report).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::TensorType;

    #[test]
    fn as_much_text_is_used_as_memory_has_room_for() {
        // Of 7 billion parameters.
        let carrier = TargetMatrix { source: 0, tensor_type: TensorType::F16, n_in: 11_008, n_out: 4096 };
        let heal = |max_memory| Heal {
            how: HealArg::Linear,
            heal_type: HealType::Auto,
            max_memory,
            tokens_are_default: true,
        };
        let tokens = |max_memory| wanted_tokens(Some(&carrier), &heal(max_memory), 512);
        assert_eq!(tokens(None), 16 * 11_008);
        assert_eq!(tokens(Some(1 << 40)), 16 * 11_008);
        let sums = 4 * 8 * 11_008 * (11_008 + 4096);
        let per_token = 12 * 4096;
        let found = tokens(Some(8_000_000_000));
        assert_eq!(found as u64, (8_000_000_000 - sums) / per_token / 512 * 512);
        // Never less than healing needs, which is then refused.
        assert_eq!(tokens(Some(1000)), 3 * 512);
        let n_weightings = |max_memory| {
            let orders = orders(&heal(max_memory), Objective::Kl, Some(&carrier), found, false);
            orders[0].weightings.len()
        };
        assert_eq!(n_weightings(Some(8_000_000_000)), 1);
        assert_eq!(n_weightings(None), 3);
        let text = found as u64 * per_token;
        assert_eq!(n_weightings(Some(2 * sums + text)), 3);
        assert_eq!(n_weightings(Some(2 * sums + text - 1)), 1);
    }
}
