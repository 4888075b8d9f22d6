//! What a fit is to reach, and how, as settings.

use std::path::PathBuf;

use crate::engine::settings::Calibration;
use crate::gguf::TensorType;
use crate::model::block::BlockList;

/// The end of a fit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Aim {
    /// The least divergence within so many bytes.
    Size(u64),
    /// The fewest bytes within this mean KL divergence, in nats.
    Kl(f64),
}

/// A fit, checked.
#[derive(Clone, Debug)]
pub struct Fit {
    /// The end.
    pub aim: Aim,
    /// The types that tensors may become; empty for all that are fit for it.
    pub types: Vec<TensorType>,
    /// At most so many blocks are removed; `None` for as many as help.
    pub most_removed: Option<usize>,
    /// Blocks that stay as they are.
    pub keep: Option<BlockList>,
    /// The importance matrix by which weights are rounded.
    pub imatrix: Option<PathBuf>,
    /// Whether it is measured.
    pub measures_imatrix: bool,
    /// Where measurements are kept; `None` for the system's folder for caches.
    pub scratch: Option<PathBuf>,
    /// The text to measure on.
    pub calibration: Calibration,
}

impl Fit {
    /// Whether anything may go.
    pub(super) fn may_remove(&self) -> bool {
        self.most_removed != Some(0)
    }

    /// The types that tensors may become.
    pub(super) fn types(&self) -> Vec<TensorType> {
        match self.types.is_empty() {
            true => default_types(self.imatrix.is_some() || self.measures_imatrix),
            false => self.types.clone(),
        }
    }
}

/// The types that are tried, unless others are named: those for which a kernel of the CPU is fast, from large to small.
const TRIED: &[&str] =
    &["Q8_0", "Q6_K", "Q5_K", "Q5_1", "Q5_0", "Q4_K", "IQ4_NL", "IQ4_XS", "Q3_K", "IQ3_S", "Q2_K"];

/// Those that are tried with an importance matrix beside them.
const TRIED_WITH_MATRIX: &[&str] = &["Q4_1", "IQ3_XXS", "IQ2_S", "IQ2_XS", "IQ2_XXS"];

/// The types that tensors may become, with an importance matrix or without.
#[must_use]
pub fn default_types(with_matrix: bool) -> Vec<TensorType> {
    let names = TRIED.iter().chain(TRIED_WITH_MATRIX.iter().filter(|_| with_matrix));
    let of_name = |name: &&str| TensorType::all().find(|of| of.name() == *name);
    names.filter_map(of_name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::rounding::needs_importance;

    #[test]
    fn types_are_known_and_need_no_matrix_that_is_not_there() {
        assert_eq!(default_types(false).len(), TRIED.len());
        assert_eq!(default_types(true).len(), TRIED.len() + TRIED_WITH_MATRIX.len());
        assert!(!default_types(false).into_iter().any(needs_importance));
        assert!(default_types(true).iter().all(|of| ggml::quantize::can_quantize(of.id())));
    }
}
