//! Parent: the model to shorten, with the rules of its architecture.

use crate::model::Model;
use crate::model::block::BlockSet;
use crate::model::input::Input;
use crate::plan::{Constraints, Cut, Plan, Splitting, parts};
use anyhow::Result;

/// The model to shorten: its files, their content, and the sets of blocks that may be removed.
#[derive(Clone, Copy)]
pub struct Parent<'a> {
    /// The files.
    pub input: &'a Input,
    /// Their content.
    pub model: &'a Model<'a>,
    /// The rules for a removal.
    pub constraints: &'a Constraints,
}

impl Parent<'_> {
    /// The path by which errors name it.
    #[must_use]
    pub fn name(&self) -> String {
        self.input.path().display().to_string()
    }

    /// Bytes of all files of the output without `removed`, which `method` chose.
    ///
    /// # Errors
    /// A set that cannot be planned.
    pub fn output_bytes(&self, removed: &BlockSet, method: &str, splitting: Splitting) -> Result<u64> {
        let plan = Plan::draft(self.model, self.constraints, &Cut::new(removed.clone(), method))?;
        parts::n_bytes(self.model, &plan, splitting)
    }
}
