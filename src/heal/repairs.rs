//! Repairs: the ways to heal a model, known before anything is measured.

use anyhow::{Context, Result, ensure};

use crate::gguf::Quoted;
use crate::heal::healer::norms;
use crate::heal::post_norms;
use crate::heal::projections::Projections;
use crate::heal::settings::HealArg;
use crate::heal::target_matrix::TargetMatrix;
use crate::model::Model;
use crate::model::arch::Alone;

/// The repairs that are wanted and possible.
pub(crate) struct Repairs {
    /// The largest matrix that may be fitted. `None` if nothing is fitted, or norms alone.
    pub(crate) target: Option<TargetMatrix>,
    /// Weights are fitted to the stream, block by block.
    pub(crate) fits: bool,
    /// Weights of the norms after branches are fitted.
    pub(crate) post_norms: bool,
    /// Tensors to divide; `None` for none.
    pub(crate) projections: Option<Projections>,
    /// Repairs that `auto` does not try, with the reason.
    pub(crate) left_out: Vec<String>,
}

impl Repairs {
    /// Of `model`, as `how` says.
    ///
    /// # Errors
    /// Nothing of it can be done, with the reason.
    pub(crate) fn of(model: &Model<'_>, how: HealArg) -> Result<Self> {
        let post_norms = post_norms::has_post_norms(model) && how != HealArg::Block;
        let mut repairs =
            Self { target: None, fits: false, post_norms: false, projections: None, left_out: Vec::new() };
        let fit = match how {
            HealArg::None => return Ok(repairs),
            HealArg::Scale => None,
            HealArg::Linear | HealArg::Block | HealArg::Auto => Some(match post_norms {
                true => norms::check(model),
                false => TargetMatrix::largest(model).map(Some),
            }),
        };
        let fit = fit.map(|fit| fit.and_then(|fit| check_blocks(model, post_norms).map(|()| fit)));
        let projections = match how {
            HealArg::Scale | HealArg::Auto => Some(Projections::of(model)),
            HealArg::None | HealArg::Linear | HealArg::Block => None,
        };
        let mut refusal = None;
        match fit {
            Some(Ok(target)) => {
                (repairs.target, repairs.fits, repairs.post_norms) = (target, true, post_norms);
            }
            Some(Err(error)) => refusal = Some(error),
            None => {}
        }
        match projections {
            Some(Ok(projections)) => repairs.projections = Some(projections),
            Some(Err(error)) if repairs.fits => {
                repairs.left_out.push(format!("scale is not tried: {error:#}"));
            }
            Some(Err(error)) => refusal = refusal.or(Some(error)),
            None => {}
        }
        match refusal {
            Some(error) if repairs.projections.is_some() => {
                repairs.left_out.push(format!("only scale is tried: {error:#}"));
            }
            Some(error) => return Err(error).context("cannot be healed"),
            None => {}
        }
        Ok(repairs)
    }
}

/// Checks that blocks are evaluated one by one, as a fit needs.
fn check_blocks(model: &Model<'_>, post_norms: bool) -> Result<()> {
    ensure!(
        model.n_blocks() == model.n_trunk_blocks(),
        "it has blocks after those that pass the stream on, which are not evaluated one by one"
    );
    let is_known = match model.rules().map(|rules| rules.alone) {
        Some(Alone::Exact) => true,
        Some(Alone::Scaled) => post_norms,
        Some(Alone::Unknown) | None => false,
    };
    ensure!(is_known, "blocks of {} are not evaluated one by one", Quoted(model.architecture()));
    Ok(())
}
