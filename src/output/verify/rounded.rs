//! Weights in other types: rounded again, and compared bit for bit.
//!
//! ggml rounds by sums of floats, so that another release, or another family of machines, may come to other bits. There the
//! hash that the file records of each tensor has to do, and the output says so.

use anyhow::{Result, ensure};

use super::{Difference, Differences, TypesClaim, Whose};
use crate::gguf::Place;
use crate::model::Model;
use crate::output::rounding::{family, rounded};
use crate::plan::Cut;
use crate::plan::imatrix::Imatrix;

/// How many tensors in other types were proven in which way.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Rounded {
    /// Rounded again, to the same bits.
    pub recomputed: usize,
    /// Found to have the recorded hash alone.
    pub by_hash: usize,
    /// Why those were not rounded again to the same bits; null if there are none.
    pub why: Option<String>,
}

/// Rounds the tensors in other types of `cut` again. These have the data of the file.
pub(super) fn check(
    parent: &Model<'_>,
    cut: &Cut,
    claim: &TypesClaim,
    imatrix: Option<(&Imatrix<'_>, blake3::Hash)>,
    differences: &mut Differences,
) -> Result<Rounded> {
    if let (Some((_, found)), Some(recorded)) = (imatrix, claim.imatrix) {
        ensure!(
            found == recorded,
            "was made with the importance matrix of blake3 {recorded}, but this one has {found}"
        );
    }
    ensure!(imatrix.is_none() || claim.imatrix.is_some(), "was made without an importance matrix");
    let Some(types) = &cut.types else {
        return Ok(Rounded::default());
    };
    let same_family = claim.ggml == family();
    let mut found = Rounded::default();
    for (&source, changed) in &types.tensors {
        let tensor = &parent.tensors()[source];
        let info = &tensor.info;
        let importance = imatrix.map(|(imatrix, _)| imatrix.importance(info.name())).transpose()?.flatten();
        // What cannot be rounded is not what was rounded.
        let again = rounded(info, changed.tensor_type, importance.as_deref()).ok();
        let again = again.map(|again| match &cut.experts {
            Some(experts) => experts.kept_bytes(tensor, again),
            None => again,
        });
        let first =
            again.as_ref().and_then(|again| again.iter().zip(&changed.bytes).position(|(a, b)| a != b));
        if again.is_some() && first.is_none() {
            found.recomputed += 1;
        } else if claim.imatrix.is_some() && imatrix.is_none() {
            found.by_hash += 1;
            found.why = Some("the importance matrix is not given (--imatrix)".to_owned());
        } else if !same_family {
            found.by_hash += 1;
            found.why = Some(format!("they were made by ggml {}, this is {}", claim.ggml, family()));
        } else {
            differences.push(Difference::Data {
                tensor: Place::Tensor(info.name().to_owned()),
                expected: Whose::Rounded,
                byte: first.unwrap_or(0) as u64,
                n_bytes: changed.bytes.len() as u64,
            });
        }
    }
    Ok(found)
}
