//! The loss of one tensor in another type, the rest unchanged.
//!
//! What stands before the tensor's block is evaluated once for all, what comes after it once for each. Tensors of the vocabulary,
//! and all of a model that does not go block by block, are measured in whole models.

use anyhow::{Context, Result};

use super::maker::Maker;
use super::notebook::Notebook;
use super::removal::Removal;
use super::rungs::Ladder;
use super::whole::Whole;
use crate::choose::loaded::Loaded;
use crate::engine::hidden_state::Token;
use crate::engine::segment::{Chain, Subsets};
use crate::gguf::TensorType;
use crate::measure::loss::Loss;
use crate::model::{BlockId, Model};
use crate::output::Parent;
use crate::output::rounding::family;
use crate::plan::requantized::Requantized;
use crate::plan::{ChangedTensors, ChosenBy, Cut};
use crate::watch::{Unit, Watch};

/// A rung to be measured alone.
#[derive(Clone, Copy, Debug)]
pub(super) struct Probe {
    /// The index of the tensor among the model's.
    pub(super) source: usize,
    pub(super) block: Option<BlockId>,
    /// `None` for the least change of its own type.
    pub(super) to: Option<TensorType>,
}

impl Probe {
    /// The largest rung of `ladder` within `share` of the tensor's bytes. The smallest if there is none.
    pub(super) fn of(ladder: &Ladder, share: f64) -> Result<(usize, Self)> {
        let own = ladder.rungs[0].bytes as f64;
        let below = |rung: &&(usize, TensorType)| ladder.rungs[rung.0].bytes as f64 <= own * share;
        let rungs: Vec<(usize, TensorType)> =
            ladder.rungs.iter().enumerate().filter_map(|(i, rung)| Some((i, rung.to?))).collect();
        let found = rungs.iter().find(below).or(rungs.last());
        let &(number, to) = found.context("bug: a ladder of one rung")?;
        Ok((number, Self { source: ladder.source, block: ladder.block, to: Some(to) }))
    }

    /// The least change of the tensor of `ladder`.
    pub(super) fn nudge(ladder: &Ladder) -> Self {
        Self { source: ladder.source, block: ladder.block, to: None }
    }

    fn name(&self) -> String {
        let to = self.to.map_or_else(|| "nudged".to_owned(), |to| to.to_string());
        format!("alone {} {to}", self.source)
    }

    fn key(&self, window: usize) -> String {
        format!("{} {window}", self.name())
    }

    fn made(&self, maker: &Maker<'_, '_>) -> Result<ChangedTensors> {
        let tensor = self.to.map_or_else(|| maker.nudged(self.source), |to| maker.one(self.source, to))?;
        Ok(ChangedTensors::from([(self.source, tensor)]))
    }
}

/// What measures rungs alone.
pub(super) struct Alone<'r, 'm, 'w> {
    pub(super) parent: Parent<'m>,
    pub(super) loaded: &'r Loaded,
    pub(super) windows: &'r [&'r [Token]],
    pub(super) whole: &'r Whole<'m>,
    pub(super) maker: &'r Maker<'m, 'm>,
    pub(super) notebook: &'r mut Notebook<'w>,
    pub(super) watch: &'r dyn Watch,
}

/// The mean KL divergences of rungs alone, and what they took.
pub(super) struct Measured {
    /// In nats, in the order of the probes.
    pub(super) kl: Vec<f64>,
    /// Evaluations of one block on one window.
    pub(super) n_block_evaluations: u64,
    /// `segments`, or `whole`.
    pub(super) evaluated: &'static str,
}

impl Alone<'_, '_, '_> {
    /// Measures every probe.
    pub(super) fn measure(mut self, probes: &[Probe]) -> Result<Measured> {
        let Parent { model, constraints, .. } = self.parent;
        let all: Vec<usize> = (0..probes.len()).collect();
        let (in_blocks, outside): (Vec<usize>, Vec<usize>) =
            all.iter().partition(|&&i| probes[i].block.is_some());
        let mut kl = vec![0.0; probes.len()];
        let bar = self.watch.begin("evaluating the whole model".into(), Unit::Time, 0);
        let chain = Chain::new(model, constraints, &self.loaded.engine, self.windows, &self.loaded.threads);
        drop(bar);
        let (n_block_evaluations, evaluated) = match chain {
            Ok(mut chain) => {
                self.by_segments(&mut chain, probes, &in_blocks)?;
                for &i in &in_blocks {
                    kl[i] = self.kl(&probes[i], self.windows.len())?;
                }
                self.as_whole(probes, &outside, &mut kl)?;
                (chain.n_block_evaluations(), "segments")
            }
            Err(why) => {
                self.watch.note(&format!(
                    "blocks of this model are not evaluated one by one ({why:#}); every tensor is measured in a whole model, \
                     which takes longer"
                ));
                self.as_whole(probes, &all, &mut kl)?;
                (0, "whole")
            }
        };
        self.notebook.write();
        Ok(Measured { kl, n_block_evaluations, evaluated })
    }

    fn by_segments(&mut self, chain: &mut Chain<'_, '_>, probes: &[Probe], which: &[usize]) -> Result<()> {
        let n_windows = self.windows.len();
        let bar =
            self.watch.begin("measuring tensors".into(), Unit::Losses, (which.len() * n_windows) as u64);
        for window in 0..n_windows {
            let is_new = |i: &&usize| self.notebook.get(&probes[**i].key(window)).is_none();
            let new: Vec<usize> = which.iter().filter(is_new).copied().collect();
            bar.advance((which.len() - new.len()) as u64);
            if new.is_empty() {
                continue;
            }
            let of = |block| new.iter().filter(move |i| probes[**i].block == Some(block)).copied();
            let (maker, notebook) = (self.maker, &mut *self.notebook);
            let mut variants = |block| of(block).map(|i| probes[i].made(maker)).collect();
            chain.visit_changed(window, &mut variants, &mut |block, outcome| {
                let loss = Loss::of(outcome.tokens, outcome.parent, outcome.logits)?;
                let probe = of(block).nth(outcome.set).context("bug: a variant of no probe")?;
                notebook.add(probes[probe].key(window), loss);
                bar.advance(1);
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Measures in whole models.
    fn as_whole(&mut self, probes: &[Probe], which: &[usize], kl: &mut [f64]) -> Result<()> {
        let n_windows = self.whole.n_windows();
        let bar =
            self.watch.begin("measuring tensors".into(), Unit::Losses, (which.len() * n_windows) as u64);
        for &i in which {
            let (probe, none) = (&probes[i], Removal::default());
            let losses = losses(self.whole, self.notebook, &none, &probe.name(), &|| probe.made(self.maker))?;
            kl[i] = losses.iter().copied().sum::<Loss>().kl_divergence();
            bar.advance(n_windows as u64);
        }
        Ok(())
    }

    fn kl(&self, probe: &Probe, n_windows: usize) -> Result<f64> {
        let loss =
            |window| self.notebook.get(&probe.key(window)).context("bug: a rung that was not measured");
        let losses: Vec<Loss> = (0..n_windows).map(loss).collect::<Result<_>>()?;
        Ok(losses.into_iter().sum::<Loss>().kl_divergence())
    }
}

/// The parent's losses without `removal` and with other tensors, by window. Measured is the model as it is shipped.
pub(super) fn losses(
    whole: &Whole<'_>,
    notebook: &mut Notebook<'_>,
    removal: &Removal,
    name: &str,
    tensors: &dyn Fn() -> Result<ChangedTensors>,
) -> Result<Vec<Loss>> {
    let mut hasher = blake3::Hasher::new();
    hasher.update(format!("{:?}{name}", removal.blocks).as_bytes());
    if let Some(attention) = &removal.attention {
        hasher.update(format!("attention {:?}", attention.blocks).as_bytes());
    }
    if let Some(experts) = &removal.experts {
        hasher.update(format!("{:?}", experts.kept).as_bytes());
    }
    let hash = hasher.finalize().to_hex();
    let key = |window: usize| format!("whole {hash} {window}");
    let known: Option<Vec<Loss>> = (0..whole.n_windows()).map(|window| notebook.get(&key(window))).collect();
    if let Some(known) = known {
        return Ok(known);
    }
    let removal = Removal { method: ChosenBy::List.to_string(), ..removal.clone() };
    let found = whole.losses(&cut(whole.parent.model, &removal, tensors()?, None))?;
    for (window, loss) in found.iter().enumerate() {
        notebook.add(key(window), *loss);
    }
    Ok(found)
}

/// The removal, with tensors in other types, given with all experts.
pub(super) fn cut(
    model: &Model<'_>,
    removal: &Removal,
    mut tensors: ChangedTensors,
    imatrix: Option<blake3::Hash>,
) -> Cut {
    if let Some(experts) = &removal.experts {
        for (source, changed) in &mut tensors {
            let bytes = std::mem::take(&mut changed.bytes);
            changed.bytes = experts.kept_bytes(&model.tensors()[*source], bytes);
        }
    }
    let types = Requantized { tensors, loss: [f32::NAN; 2], ggml: family(), imatrix };
    Cut { types: Some(types), ..removal.cut() }
}
