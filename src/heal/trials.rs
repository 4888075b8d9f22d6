//! Trials: the repairs of a cut, each measured, and the best of them.

use anyhow::{Context, Result};

use crate::heal::healer::stepwise::Order;
use crate::heal::healer::{Candidate, Healer};
use crate::heal::outcome::{
    HealCandidateReport, HealReport, Healed, HealedSetReport, HealedTensorReport, HeldOutReport,
};
use crate::heal::projections::Projections;
use crate::heal::settings::Heal;
use crate::heal::split::Split;
use crate::measure::loss::{Loss, Objective};
use crate::model::Model;
use crate::model::block::{BlockSet, numbers};
use crate::plan::{ChangedTensor, Cut, HealMethod, Healing};

/// The repairs that were tried on a cut.
pub(crate) struct Trials {
    /// The cut as it was, with the blocks that were chosen.
    pub(crate) cut: Cut,
    objective: Objective,
    /// Sets that were compared.
    shortlist: Vec<HealedSetReport>,
    tried: Vec<Tried>,
}

impl Trials {
    pub(crate) fn new(cut: Cut, objective: Objective) -> Self {
        Self { cut, objective, shortlist: Vec::new(), tried: Vec::new() }
    }

    /// Chooses the one of `sets` that loses least once it is healed. Its cuts are healed in the first way of the first of
    /// `orders`.
    pub(crate) fn choose(
        &mut self,
        healer: &mut Healer<'_, '_>,
        sets: &[BlockSet],
        orders: &[Order],
    ) -> Result<()> {
        let Some(order) = orders.first() else {
            return Ok(());
        };
        let order = Order {
            weightings: order.weightings[..1].to_vec(),
            with_block: false,
            patience: 0,
            ..order.clone()
        };
        // Streams of a block come from those of the one before.
        let mut by_first: Vec<&BlockSet> = sets.iter().collect();
        by_first.sort_by_key(|set| set.first().copied());
        let mut best = f64::INFINITY;
        for set in by_first {
            let (_, loss) = healer.unhealed(set, None)?;
            let loss = loss.mean(self.objective);
            let steps = healer.fit(set, None, &order)?;
            let measured = steps.iter().filter_map(|step| step.measured.as_ref());
            // Of steps that stay, each is better than the one before it.
            let loss_healed = measured.map(|(_, loss)| loss.mean(self.objective)).fold(loss, f64::min);
            if loss_healed < best {
                best = loss_healed;
                self.cut.blocks = set.clone();
            }
            self.shortlist.push(HealedSetReport { removed: numbers(set), loss, loss_healed });
        }
        Ok(())
    }

    /// Measures the cut as it is, and healed by each of `orders`.
    pub(crate) fn try_fits(&mut self, healer: &mut Healer<'_, '_>, orders: &[Order]) -> Result<()> {
        let (removed, attention) = (&self.cut.blocks, self.cut.attention.as_ref());
        let none = healer.unhealed(removed, attention)?;
        self.tried.push(Tried::new(HealMethod::None, None, Some(none)));
        for order in orders {
            let steps = healer
                .fit(removed, attention, order)
                .with_context(|| format!("healing by {}", method(order, false)))?;
            for step in steps {
                let measured = step.measured.as_ref();
                let has_block =
                    measured.is_some_and(|(candidate, _)| candidate.removed.len() < removed.len());
                let method = method(order, has_block);
                self.tried.push(Tried::new(method, Some(step.variant), step.measured));
            }
        }
        Ok(())
    }

    /// Measures the cut as it is, by the whole model.
    pub(crate) fn try_none(&mut self, healer: &Healer<'_, '_>, split: &Split) -> Result<()> {
        let none = Candidate::unhealed(&self.cut.blocks, self.cut.attention.as_ref());
        let loss = healer.loss(&none, &split.validation)?;
        self.tried.push(Tried::new(HealMethod::None, None, Some((none, loss))));
        Ok(())
    }

    /// Measures the cut with its projections scaled. It does so as the cut is, and on top of the best so far. Returns warnings.
    pub(crate) fn try_scales(
        &mut self,
        healer: &mut Healer<'_, '_>,
        projections: &Projections,
    ) -> Result<Vec<String>> {
        let candidate_of = |tried: &Tried| {
            let (candidate, _) = tried.measured.as_ref()?;
            Some(candidate.clone())
        };
        let mut bases: Vec<(HealMethod, Candidate)> = Vec::new();
        bases.extend(self.tried.first().and_then(candidate_of).map(|none| (HealMethod::Scale, none)));
        if let Some(best) = self.best().filter(|&best| best > 0) {
            let method = self.tried[best].method.with_scale();
            bases.extend(candidate_of(&self.tried[best]).map(|candidate| (method, candidate)));
        }
        let mut said = Vec::new();
        for (method, base) in bases {
            let at_method = || format!("healing by {method}");
            let scaling = healer.scale(projections, &base, self.objective).with_context(at_method)?;
            let Some(scaling) = scaling else {
                self.tried.push(Tried::new(method, None, None));
                continue;
            };
            let loss = healer.validation_loss(&scaling.candidate).with_context(at_method)?;
            if !scaling.requantized.is_empty() {
                said.push(format!(
                    "{method}: rounded again, since no scale can carry the factor: {}",
                    scaling.requantized.join(", ")
                ));
            }
            let variant = scaling.to_string();
            let measured = (scaling.candidate, loss);
            self.tried.push(Tried::new(method, Some(variant), Some(measured)));
        }
        Ok(said)
    }

    /// The number of the trial of least loss, of equals the first.
    fn best(&self) -> Option<usize> {
        let measured = self.tried.iter().enumerate();
        measured
            .filter_map(|(i, tried)| Some((i, tried.measured.as_ref()?.1.mean(self.objective))))
            .filter(|(_, loss)| loss.is_finite())
            .min_by(|(_, a), (_, b)| a.total_cmp(b))
            .map(|(i, _)| i)
    }

    /// The cut of the best trial, and a report of all. Time and warnings are missing.
    pub(crate) fn outcome(self, model: &Model<'_>, heal: &Heal, split: &Split) -> Healed {
        let best = self.best();
        let held_out = best.and_then(|best| self.held_out(best, split.validation.len()));
        let candidates = self.reports(model, best);
        let chosen = best.and_then(|best| self.tried.into_iter().nth(best));
        let (method, variant, candidate) = match chosen {
            Some(Tried { method, variant, measured: Some((candidate, _)) }) => {
                (method, variant, Some(candidate))
            }
            _ => (HealMethod::None, None, None),
        };
        let candidate = candidate.filter(|candidate| !candidate.tensors.is_empty());
        let first = candidate.as_ref().and_then(|candidate| candidate.fitted.first());
        let report = HealReport {
            requested: heal.how.to_string(),
            method: method.to_string(),
            variant,
            tensors: candidate.as_ref().map(|candidate| tensors(model, candidate)).unwrap_or_default(),
            tokens: split.n_tokens,
            ridge: first.map(|fitted| fitted.ridge),
            held_out,
            candidates,
            shortlist: self.shortlist,
            seconds: 0.0,
            warnings: Vec::new(),
        };
        let mut cut = Cut { heal: method.to_string(), ..self.cut };
        if let Some(candidate) = candidate {
            let loss = held_out.map_or([0.0; 2], |held_out| {
                #[expect(clippy::cast_possible_truncation, reason = "rounded to a float")]
                [held_out.loss_none as f32, held_out.loss_healed as f32]
            });
            (cut.blocks, cut.attention) = (candidate.removed, candidate.attention);
            cut.healing = Some(Healing { tensors: candidate.tensors, loss });
        }
        Healed { cut, report }
    }

    /// Trial `best` beside the cut as it was, on `n_windows` windows.
    fn held_out(&self, best: usize, n_windows: usize) -> Option<HeldOutReport> {
        let loss_of = |i: usize| self.tried.get(i)?.measured.as_ref().map(|(_, loss)| *loss);
        let (none, healed) = (loss_of(0)?, loss_of(best)?);
        Some(HeldOutReport {
            windows: n_windows,
            loss_none: none.mean(self.objective),
            loss_healed: healed.mean(self.objective),
            objective: match self.objective {
                Objective::Ppl => "ppl",
                Objective::Kl | Objective::Task | Objective::Draft => "kl",
            },
            parent_perplexity: none.parent_perplexity(),
            perplexity_none: none.perplexity(),
            perplexity_healed: healed.perplexity(),
        })
    }

    /// All trials, of which `best` is kept.
    fn reports(&self, model: &Model<'_>, best: Option<usize>) -> Vec<HealCandidateReport> {
        let report = |(i, tried): (usize, &Tried)| {
            let measured = tried.measured.as_ref();
            HealCandidateReport {
                method: tried.method.to_string(),
                variant: tried.variant.clone(),
                loss: measured.map(|(_, loss)| loss.mean(self.objective)),
                perplexity: measured.map(|(_, loss)| loss.perplexity()),
                bytes_added: measured.map_or(0, |(candidate, _)| {
                    tensors(model, candidate).iter().map(|tensor| tensor.bytes_added).sum()
                }),
                kept: best == Some(i),
            }
        };
        self.tried.iter().enumerate().map(report).collect()
    }
}

/// The tensors of a candidate with other weights.
fn tensors(model: &Model<'_>, candidate: &Candidate) -> Vec<HealedTensorReport> {
    let report = |(&source, changed): (&usize, &ChangedTensor)| {
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

/// A trial.
struct Tried {
    method: HealMethod,
    variant: Option<String>,
    /// `None` if no weight was changed.
    measured: Option<(Candidate, Loss)>,
}

impl Tried {
    fn new(method: HealMethod, variant: Option<String>, measured: Option<(Candidate, Loss)>) -> Self {
        Self { method, variant, measured }
    }
}

/// The name of a fit, with a block per run or without.
fn method(order: &Order, has_block: bool) -> HealMethod {
    match (order.before, has_block) {
        (true, false) => HealMethod::Linear,
        (true, true) => HealMethod::LinearBlock,
        (false, _) => HealMethod::Block,
    }
}
