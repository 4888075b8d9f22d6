//! What is tried to heal a model, and what each trial came to.

use std::collections::BTreeSet;

use anyhow::{Context, Result};

use crate::heal::healer::stepwise::Order;
use crate::heal::healer::{Candidate, Healer};
use crate::heal::outcome::HealedSetReport;
use crate::heal::projections::Projections;
use crate::heal::split::Split;
use crate::measure::loss::{Loss, Objective};
use crate::model::BlockId;
use crate::plan::{AttentionCut, HealMethod};

/// Everything that was tried.
pub(crate) struct TriedAll {
    /// What goes.
    pub(crate) removed: BTreeSet<BlockId>,
    /// Sets that were compared.
    pub(crate) shortlist: Vec<HealedSetReport>,
    /// For what goes.
    pub(crate) tried: Vec<Tried>,
}

impl TriedAll {
    /// Lets that one of `sets` go which loses least where its cuts are healed in the first way of the first of `orders`.
    pub(crate) fn choose(
        &mut self,
        healer: &mut Healer<'_, '_>,
        sets: &[BTreeSet<BlockId>],
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
        // Streams of a block are got from those of the one before it.
        let mut by_first: Vec<&BTreeSet<BlockId>> = sets.iter().collect();
        by_first.sort_by_key(|set| set.first().copied());
        let mut best = f64::INFINITY;
        for set in by_first {
            let (_, loss) = healer.unhealed(set, None)?;
            let loss = loss.mean(order.objective);
            let steps = healer.fit(set, None, &order)?;
            let measured = steps.iter().filter_map(|step| step.measured.as_ref());
            // Of steps that stay, each is better than the one before it.
            let loss_healed = measured.map(|(_, loss)| loss.mean(order.objective)).fold(loss, f64::min);
            if loss_healed < best {
                best = loss_healed;
                self.removed = set.clone();
            }
            self.shortlist.push(HealedSetReport {
                removed: set.iter().map(|block| block.index()).collect(),
                loss,
                loss_healed,
            });
        }
        Ok(())
    }

    /// Measures what is chosen, as it is and healed in every way of `orders`.
    pub(crate) fn try_all(
        &mut self,
        healer: &mut Healer<'_, '_>,
        attention: Option<&AttentionCut>,
        orders: &[Order],
    ) -> Result<()> {
        let none = healer.unhealed(&self.removed, attention)?;
        self.tried.push(Tried::new(HealMethod::None, None, Some(none)));
        for order in orders {
            let steps = healer
                .fit(&self.removed, attention, order)
                .with_context(|| format!("healing by {}", method(order, false)))?;
            for step in steps {
                let measured = step.measured.as_ref();
                let has_block =
                    measured.is_some_and(|(candidate, _)| candidate.removed.len() < self.removed.len());
                let method = method(order, has_block);
                self.tried.push(Tried::new(method, Some(step.variant), step.measured));
            }
        }
        Ok(())
    }

    /// Measures what is chosen as it is, whole.
    pub(crate) fn try_none(
        &mut self,
        healer: &Healer<'_, '_>,
        attention: Option<&AttentionCut>,
        split: &Split,
    ) -> Result<()> {
        let none = Candidate::unhealed(&self.removed, attention);
        let loss = healer.loss(&none, &split.validation)?;
        self.tried.push(Tried::new(HealMethod::None, None, Some((none, loss))));
        Ok(())
    }

    /// Measures what is chosen with its writers scaled, as it is and on top of the best so far. Returns what is to be said.
    pub(crate) fn try_scales(
        &mut self,
        healer: &mut Healer<'_, '_>,
        writers: &Projections,
        objective: Objective,
    ) -> Result<Vec<String>> {
        let candidate_of = |tried: &Tried| {
            let (candidate, _) = tried.measured.as_ref()?;
            Some(candidate.clone())
        };
        let mut bases: Vec<(HealMethod, Candidate)> = Vec::new();
        bases.extend(self.tried.first().and_then(candidate_of).map(|none| (HealMethod::Scale, none)));
        if let Some(best) = best_of(&self.tried, objective).filter(|&best| best > 0) {
            let method = self.tried[best].method.with_scale();
            bases.extend(candidate_of(&self.tried[best]).map(|candidate| (method, candidate)));
        }
        let mut said = Vec::new();
        for (method, base) in bases {
            let at_method = || format!("healing by {method}");
            let scaling = healer.scale(writers, &base, objective).with_context(at_method)?;
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
}

/// One thing that was tried.
pub(crate) struct Tried {
    pub(crate) method: HealMethod,
    pub(crate) variant: Option<String>,
    /// `None` if no weight was changed.
    pub(crate) measured: Option<(Candidate, Loss)>,
}

impl Tried {
    pub(crate) fn new(
        method: HealMethod,
        variant: Option<String>,
        measured: Option<(Candidate, Loss)>,
    ) -> Self {
        Self { method, variant, measured }
    }
}

/// What a fit is called that has come to a block of its own for a run, or has not.
fn method(order: &Order, has_block: bool) -> HealMethod {
    match (order.before, has_block) {
        (true, false) => HealMethod::Linear,
        (true, true) => HealMethod::LinearBlock,
        (false, _) => HealMethod::Block,
    }
}

/// The number of what has the least loss, of equals the first.
pub(crate) fn best_of(tried: &[Tried], objective: Objective) -> Option<usize> {
    let measured = tried.iter().enumerate();
    measured
        .filter_map(|(i, tried)| Some((i, tried.measured.as_ref()?.1.mean(objective))))
        .filter(|(_, loss)| loss.is_finite())
        .min_by(|(_, a), (_, b)| a.total_cmp(b))
        .map(|(i, _)| i)
}
