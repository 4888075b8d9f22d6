//! Healing as a part of the main job: what is tried, and what is kept.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use super::load_and_cut;
use super::repairs::Repairs;
use crate::calibration::{DEFAULT_TOKENS, DEFAULT_WINDOW};
use crate::heal::Weighting;
use crate::heal::carrier::Carrier;
use crate::heal::normal::NormalEquations;
use crate::heal::split::{MIN_WINDOWS, Split};
use crate::healer::scaling::LOGITS_BYTES;
use crate::healer::{Candidate, Extent, HealType, Healer, Request};
use crate::hidden_state::Token;
use crate::llama;
use crate::model::{BlockId, Model};
use crate::options::{Calibration, Heal, HealArg, Printing};
use crate::plan::{AttentionCut, ChangedTensors, Constraints, Healing, attention};
use crate::quality::MIN_WINDOW;
use crate::report::HealReport;
use crate::report::healing::{HealCandidateReport, HealedTensorReport, HeldOutReport};
use crate::search::{Loss, Objective};

/// Tokens for each unknown of a row below which a fit is not to be trusted.
const TOKENS_PER_UNKNOWN: usize = 8;

/// What healing made of a selection.
pub(super) struct Healed {
    pub(super) removed: BTreeSet<BlockId>,
    pub(super) attention: Option<AttentionCut>,
    /// `none` if nothing helped.
    pub(super) method: String,
    /// `None` if nothing helped.
    pub(super) healing: Option<Healing>,
    pub(super) report: HealReport,
}

/// How much text is used, where the user does not say otherwise: enough for the largest matrix.
fn default_tokens(carrier: Option<&Carrier>) -> usize {
    let n_in = carrier.map_or(0, |carrier| carrier.n_in);
    // A part of the windows is not fitted to.
    let wanted = n_in.saturating_mul(TOKENS_PER_UNKNOWN * 2);
    wanted.next_multiple_of(DEFAULT_WINDOW).max(DEFAULT_TOKENS)
}

/// Checks before any calibration whether `model` can be healed as `heal` says, and in the memory that it may take.
///
/// # Errors
/// It cannot.
pub(super) fn check(model: &Model<'_>, heal: &Heal, calibration: &Calibration) -> Result<()> {
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
        true => default_tokens(Some(&carrier)),
        false => calibration.tokens,
    };
    // Both folds, their sum, and a factor of it.
    let sums = NormalEquations::n_bytes(carrier.n_in, carrier.n_out).saturating_mul(4);
    // The streams of the parent, before the cut and after it, and of the shortened model.
    let streams = (n_tokens as u64)
        .saturating_mul(carrier.n_out as u64)
        .saturating_mul(4 * 3);
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
#[expect(
    clippy::too_many_arguments,
    reason = "all of them are the job's settings"
)]
pub(super) fn heal(
    model: &Model<'_>,
    constraints: &Constraints,
    path: &Path,
    removed: &BTreeSet<BlockId>,
    attention: Option<&AttentionCut>,
    heal: &Heal,
    objective: Objective,
    calibration: &Calibration,
    printing: &Printing,
) -> Result<Healed> {
    let at_path = || path.display().to_string();
    let objective = match objective {
        Objective::Ppl => Objective::Ppl,
        Objective::Kl | Objective::Task | Objective::Draft => Objective::Kl,
    };
    let repairs = Repairs::of(model, heal.how).with_context(at_path)?;
    let carrier = repairs.carrier;
    let mut calibration = calibration.clone();
    if heal.tokens_are_default {
        calibration.tokens = default_tokens(carrier.as_ref()).max(calibration.window);
    }
    let (engine, set) = load_and_cut(path, &calibration, printing, None)?;
    ensure!(
        set.window >= MIN_WINDOW,
        "{}: a window has {} tokens, but {MIN_WINDOW} or more are needed to score predictions",
        path.display(),
        set.window
    );
    let start = Instant::now();
    let windows: Vec<&[Token]> = set.windows().collect();
    let split = Split::of(&windows, set.texts());
    let (mut warnings, is_hopeless) = warnings(&split, carrier.as_ref());
    warnings.extend(repairs.left_out);
    if !printing.quiet {
        for warning in &warnings {
            eprintln!("gguf-shorten: warning: {warning}");
        }
    }
    let mut tried = Vec::new();
    if !is_hopeless {
        // To scale writers, blocks need not be evaluated one by one.
        let make = match (repairs.fits, repairs.post_norms) {
            (true, false) => Healer::new,
            (true, true) => Healer::of_blocks,
            (false, _) => Healer::of_whole_models,
        };
        let n_threads = calibration.threads;
        let mut healer =
            make(model, constraints, &engine, windows, &split, n_threads).with_context(at_path)?;
        let none = Candidate {
            removed: removed.clone(),
            attention: attention.cloned(),
            tensors: ChangedTensors::new(),
            fitted: Vec::new(),
        };
        let loss = healer.loss(&none, &split.judge).with_context(at_path)?;
        tried.push(Tried::new("none", None, Some((none.clone(), loss))));
        let requests = match (repairs.fits, repairs.post_norms) {
            (true, true) => norm_requests(heal),
            (true, false) => requests(heal, attention::check_model(model).is_ok()),
            (false, _) => Vec::new(),
        };
        for (method, variant, request) in requests {
            let candidate = match repairs.post_norms {
                true => healer.fit_norms(removed, request, variant.contains(UNDER)),
                false => healer.fit(removed, attention, request),
            };
            let candidate = candidate
                .with_context(|| format!("healing by {method}"))
                .with_context(at_path)?;
            let measured = match candidate {
                Some(candidate) => {
                    let loss = healer
                        .loss(&candidate, &split.judge)
                        .with_context(at_path)?;
                    Some((candidate, loss))
                }
                None => None,
            };
            tried.push(Tried::new(method, Some(variant), measured));
        }
        if let Some(writers) = &repairs.writers {
            let room = heal.max_memory.map_or(LOGITS_BYTES, |max| {
                // The streams of all windows are kept by what was fitted before.
                let streams = (calibration.tokens as u64)
                    .saturating_mul(engine.n_embd() as u64)
                    .saturating_mul(4);
                max.saturating_sub(streams).min(LOGITS_BYTES)
            });
            // Of the model as it is, and of the best that was fitted.
            let mut bases = vec![("scale", none)];
            if let Some(i) = best_of(&tried, objective).filter(|&i| i > 0)
                && let Some((candidate, _)) = &tried[i].measured
            {
                let method = match tried[i].method {
                    "block" => "block+scale",
                    _ => "linear+scale",
                };
                bases.push((method, candidate.clone()));
            }
            for (method, base) in bases {
                let scaling = healer
                    .scale(writers, &base, objective, room)
                    .and_then(|scaling| {
                        let Some(scaling) = scaling else {
                            return Ok(None);
                        };
                        let loss = healer.loss(&scaling.candidate, &split.judge)?;
                        Ok(Some((scaling, loss)))
                    })
                    .with_context(|| format!("healing by {method}"))
                    .with_context(at_path)?;
                let variant = scaling.as_ref().map(|(scaling, _)| scaling.to_string());
                if let Some((scaling, _)) = &scaling
                    && !scaling.requantized.is_empty()
                {
                    let warning = format!(
                        "{method}: rounded again, since no scale can carry the factor: {}",
                        scaling.requantized.join(", ")
                    );
                    if !printing.quiet {
                        eprintln!("gguf-shorten: warning: {warning}");
                    }
                    warnings.push(warning);
                }
                let measured = scaling.map(|(scaling, loss)| (scaling.candidate, loss));
                tried.push(Tried::new(method, variant, measured));
            }
        }
    }
    let best = best_of(&tried, objective);
    Ok(kept(
        model, removed, attention, heal, objective, &split, tried, best, warnings, start,
    ))
}

/// One thing that was tried.
struct Tried {
    method: &'static str,
    variant: Option<String>,
    /// `None` if no weight was changed.
    measured: Option<(Candidate, Loss)>,
}

impl Tried {
    fn new(
        method: &'static str,
        variant: Option<String>,
        measured: Option<(Candidate, Loss)>,
    ) -> Self {
        Self {
            method,
            variant,
            measured,
        }
    }
}

/// The number of what has the least loss, of equals the first.
fn best_of(tried: &[Tried], objective: Objective) -> Option<usize> {
    let measured = tried.iter().enumerate();
    measured
        .filter_map(|(i, tried)| Some((i, tried.measured.as_ref()?.1.mean(objective))))
        .filter(|(_, loss)| loss.is_finite())
        .min_by(|(_, a), (_, b)| a.total_cmp(b))
        .map(|(i, _)| i)
}

/// How a variant with the matrices under norms is called.
const UNDER: &str = "ffn_down";

/// What is tried of a model whose branches pass norms before they are added, each with its name.
fn norm_requests(heal: &Heal) -> Vec<(&'static str, String, Request)> {
    let mut requests = Vec::new();
    for weighting in [Weighting::Plain, Weighting::Direction] {
        for (extent, name) in [(Extent::Cuts, "cuts"), (Extent::Onward, "onward")] {
            for what in ["norms", "norms and ffn_down"] {
                let request = Request {
                    weighting,
                    extent,
                    with_block: false,
                    heal_type: heal.heal_type,
                };
                requests.push(("linear", format!("{weighting}, {name}, {what}"), request));
            }
        }
    }
    requests
}

/// What is tried, each with its name.
fn requests(heal: &Heal, may_block: bool) -> Vec<(&'static str, String, Request)> {
    let mut requests = Vec::new();
    for weighting in [Weighting::Plain, Weighting::Direction] {
        for extent in [Extent::Cuts, Extent::Onward] {
            for with_block in [false, true] {
                let wanted = match heal.how {
                    HealArg::None | HealArg::Scale => false,
                    HealArg::Linear => !with_block,
                    HealArg::Block => with_block,
                    HealArg::Auto => !with_block || may_block,
                };
                let extent_name = match extent {
                    Extent::Cuts => "cuts",
                    Extent::Onward => "onward",
                };
                let method = if with_block { "block" } else { "linear" };
                if wanted {
                    let request = Request {
                        weighting,
                        extent,
                        with_block,
                        heal_type: heal.heal_type,
                    };
                    requests.push((method, format!("{weighting}, {extent_name}"), request));
                }
            }
        }
    }
    requests
}

/// What speaks against trusting a fit to these windows, and whether none is to be tried.
fn warnings(split: &Split, carrier: Option<&Carrier>) -> (Vec<String>, bool) {
    let n_in = carrier.map_or(1, |carrier| carrier.n_in);
    let mut warnings = Vec::new();
    if split.n_repeated > 0 {
        warnings.push(format!(
            "{} windows of the text repeat others and are left out",
            split.n_repeated
        ));
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
    if split.n_distinct.min(split.n_tokens) < wanted {
        warnings.push(format!(
            "{} tokens to fit {} unknowns of each output; {wanted} or more are advised",
            split.n_tokens, n_in
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
            windows: split.judge.len(),
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
                method: tried.method.to_owned(),
                variant: tried.variant.clone(),
                loss: measured.map(|(_, loss)| loss.mean(objective)),
                perplexity: measured.map(|(_, loss)| loss.perplexity()),
                bytes_added: measured.map_or(0, |(candidate, _)| {
                    tensor_reports(model, candidate)
                        .iter()
                        .map(|t| t.bytes_added)
                        .sum()
                }),
                kept: best == Some(i),
            }
        })
        .collect();
    let chosen = best.and_then(|best| tried.into_iter().nth(best));
    let (method, variant, candidate) = match chosen {
        Some(Tried {
            method,
            variant,
            measured: Some((candidate, _)),
        }) => (method, variant, Some(candidate)),
        _ => ("none", None, None),
    };
    let candidate = candidate.filter(|candidate| !candidate.tensors.is_empty());
    let report = HealReport {
        requested: heal.how.to_string(),
        method: method.to_owned(),
        variant,
        tensors: candidate
            .as_ref()
            .map(|candidate| tensor_reports(model, candidate))
            .unwrap_or_default(),
        tokens: split.n_tokens,
        ridge: candidate
            .as_ref()
            .and_then(|candidate| candidate.fitted.first())
            .map(|fitted| fitted.ridge),
        held_out,
        candidates,
        seconds: start.elapsed().as_secs_f64(),
        warnings,
    };
    let loss = held_out.map_or([0.0; 2], |held_out| {
        #[expect(clippy::cast_possible_truncation, reason = "rounded to a float")]
        [held_out.loss_none as f32, held_out.loss_healed as f32]
    });
    Healed {
        removed: candidate
            .as_ref()
            .map_or_else(|| removed.clone(), |c| c.removed.clone()),
        attention: candidate.as_ref().map_or_else(
            || attention.cloned(),
            |candidate| candidate.attention.clone(),
        ),
        method: method.to_owned(),
        healing: candidate.map(|candidate| Healing {
            tensors: candidate.tensors,
            loss,
        }),
        report,
    }
}

fn tensor_reports(model: &Model<'_>, candidate: &Candidate) -> Vec<HealedTensorReport> {
    let report = |(&source, changed): (&usize, &crate::plan::ChangedTensor)| {
        let info = &model.tensors().get(source)?.info;
        let fitted = candidate
            .fitted
            .iter()
            .find(|fitted| fitted.source == source);
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
