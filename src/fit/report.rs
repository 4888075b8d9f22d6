//! A choice as a result. Pure.

use super::candidate::{Candidate, Problem};
use super::outcome::{FitCandidateReport, FitReport, FittedBlockReport, FittedTensorReport};
use super::settings::Aim;
use crate::measure::loss::Loss;
use crate::measure::mean::Mean;
use crate::model::block::numbers;
use crate::model::renumbering::Renumbering;
use crate::plan::requantized::rungs;

/// The result of `best`, one of the choices that were `tried`.
pub(super) fn of(
    problem: &Problem<'_, '_>,
    aim: Option<Aim>,
    best: &Candidate,
    tried: &[Candidate],
) -> FitReport {
    let sum: Loss = best.losses.iter().copied().sum();
    let kl: Vec<f64> = best.losses.iter().map(Loss::kl_divergence).collect();
    let is_best =
        |candidate: &Candidate| candidate.types == best.types && candidate.removal.is_same(&best.removal);
    FitReport {
        target_bytes: match aim {
            Some(Aim::Size(target)) => Some(target),
            _ => None,
        },
        target_kl: match aim {
            Some(Aim::Kl(limit)) => Some(limit),
            _ => None,
        },
        bytes: best.bytes,
        expected_kl: Some(best.expected),
        kl_divergence: Some(sum.kl_divergence()),
        kl_divergence_stderr: if kl.is_empty() { None } else { Mean::of(&kl).stderr },
        perplexity: Some(sum.perplexity()),
        parent_perplexity: Some(sum.parent_perplexity()),
        same_top: Some(sum.same_top()),
        windows: best.losses.len(),
        tensors: tensors(problem, best),
        blocks: blocks(problem, best),
        curve: Vec::new(),
        candidates: tried
            .iter()
            .map(|candidate| FitCandidateReport {
                removed: numbers(&candidate.removal.blocks),
                attention_removed: candidate.removal.without_attention(),
                experts_kept: n_kept(candidate),
                bytes: candidate.bytes,
                expected_kl: candidate.expected,
                kl_divergence: candidate.kl(),
                chosen: is_best(candidate),
            })
            .collect(),
        exact: best.exact,
        evaluated: None,
        known_losses: 0,
        passes: 0.0,
        seconds: 0.0,
    }
}

/// How many experts each block keeps; `None` where none go.
fn n_kept(candidate: &Candidate) -> Option<usize> {
    candidate.removal.experts.as_ref()?.kept.values().next().map(Vec::len)
}

fn tensors(problem: &Problem<'_, '_>, best: &Candidate) -> Vec<FittedTensorReport> {
    let ladders = problem.ladders.iter().zip(problem.losses);
    let tensor = |(ladder, losses): (&super::rungs::Ladder, &Vec<f64>)| {
        let tensor = &problem.parent.model.tensors()[ladder.source];
        let info = &tensor.info;
        let (kept, all) = best.removal.share_of(tensor);
        let to = best.types.get(&ladder.source).copied();
        let rung = ladder.rungs.iter().position(|rung| rung.to == to).unwrap_or(0);
        let stays = kept > 0;
        FittedTensorReport {
            name: info.name().to_owned(),
            from_type: info.tensor_type().name(),
            r#type: stays.then(|| to.unwrap_or(info.tensor_type()).name()),
            parent_bytes: ladder.rungs[0].bytes,
            bytes: ladder.rungs[rung].bytes / all * kept,
            loss: stays.then(|| losses.get(rung).copied()).flatten(),
        }
    };
    ladders.map(tensor).collect()
}

fn blocks(problem: &Problem<'_, '_>, best: &Candidate) -> Vec<FittedBlockReport> {
    let model = problem.parent.model;
    let renumbering = Renumbering::new(model.n_blocks(), &best.removal.blocks);
    let types = best.types.iter().map(|(source, to)| (*source, *to));
    let mut sizes = vec![(0.0, 0.0); model.n_blocks()];
    for (source, tensor) in model.tensors().iter().enumerate() {
        let size = tensor.block.and_then(|(block, _)| sizes.get_mut(block.index()));
        if let Some((bytes, weights)) = size {
            let (kept, all) = best.removal.share_of(tensor);
            let n = (tensor.info.n_elements() / all * kept) as f64;
            let of = best.types.get(&source).copied().unwrap_or(tensor.info.tensor_type());
            *bytes += n * of.block_bytes() as f64 / of.block_size() as f64;
            *weights += n;
        }
    }
    let attention = best.removal.attention.as_ref();
    let rungs = rungs(model, &renumbering, attention, types).into_iter().enumerate();
    let block = |((block, rung), (bytes, weights))| {
        let bits = if weights == 0.0 { 0.0 } else { 8.0 * bytes / weights };
        FittedBlockReport { block, rung, bits }
    };
    rungs.zip(sizes).map(block).collect()
}
