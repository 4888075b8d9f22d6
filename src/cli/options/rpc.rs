//! Whether `--rpc` can be followed.

use anyhow::{Result, anyhow, bail};
use ggml::rpc;

use super::{Score, Shorten};
use crate::choose::search::Goal;
use crate::choose::settings::Choice;
use crate::error::{Hint, Usage};
use crate::heal::settings::HealArg;

/// Checks that there is what `--rpc` asks for.
///
/// # Errors
/// [`Usage`] where this was built without.
pub(crate) fn check(servers: &rpc::Endpoints) -> Result<()> {
    if !servers.is_empty() && !rpc::IS_BUILT {
        bail!(
            anyhow!(Usage("--rpc needs feature 'rpc', without which this program was built".to_owned()))
                .context(Hint("cargo build --release --features rpc builds it in".to_owned()))
        );
    }
    Ok(())
}

/// What evaluates blocks one by one. Each is a model of its own in the memory of this machine.
pub(crate) fn refused(what: &str) -> anyhow::Error {
    anyhow!(Usage(format!(
        "{what} evaluates blocks one by one on this machine, so it does not go with --rpc"
    )))
}

/// Checks that servers can evaluate all that the main job evaluates.
///
/// # Errors
/// [`Usage`]
pub(crate) fn check_shorten(options: &Shorten) -> Result<()> {
    if options.choosing.calibration.rpc.is_empty() {
        return Ok(());
    }
    if options.heal.how != HealArg::None {
        bail!(refused("--heal"));
    }
    match &options.choosing.choice {
        Choice::Goal { goal: Goal::SpeedUp, .. } => bail!(refused("--objective draft")),
        Choice::Goal { goal, .. } if !matches!(goal, Goal::Size(_)) => {
            bail!(refused(&format!("--{}", goal.flag())))
        }
        Choice::Best { method, .. } | Choice::Goal { method, .. } if method.needs_losses() => {
            bail!(refused(&format!("method '{method}'")))
        }
        _ => Ok(()),
    }
}

/// Checks that servers can evaluate all that `score` evaluates.
///
/// # Errors
/// [`Usage`]
pub(crate) fn check_score(options: &Score) -> Result<()> {
    if options.ablate && !options.calibration.rpc.is_empty() {
        bail!(refused("--ablate"));
    }
    Ok(())
}
