//! Whole models recoded to types that evaluate faster. Pure but for what is written to `out`.
//!
//! For scores of models that are not evaluated block by block.

use std::io::{self, Write};

use anyhow::Result;

use crate::engine::conversion::{Conversion, Converted};
use crate::engine::memory_file;
use crate::gguf::{EntryOut, Layout, TensorOut};
use crate::model::Model;

/// The largest recoded file, in bytes.
///
/// Recoded weights are not shared with the file's pages, and a user whose model hardly fits has no room for them.
const MAX_BYTES: u64 = 1 << 30;

/// A whole model, to be evaluated and not to be kept.
#[derive(Debug)]
pub struct Recoded<'a> {
    /// Every position of the file.
    pub layout: Layout<'a>,
    /// What each tensor becomes; `None` for those that are kept.
    converted: Vec<Option<Converted<'a>>>,
}

impl<'a> Recoded<'a> {
    /// Plans the file; `None` if nothing is gained or memory is short.
    ///
    /// # Errors
    /// A model that one file cannot hold.
    pub fn of(model: &Model<'a>) -> Result<Option<Self>> {
        let (mut tensors, mut converted) = (Vec::new(), Vec::new());
        for tensor in model.tensors() {
            let (info, rest) = (&tensor.info, tensor.block.as_ref().map(|(_, rest)| *rest));
            let to = rest.and_then(|rest| Conversion::Q8_0.target(rest, info));
            tensors.push(match to {
                None => TensorOut::keep(info),
                Some(to) => TensorOut::new(info.name(), &info.dims()[..info.n_dims()], to)?,
            });
            converted.push(to.map(|to| Converted { bytes: info.bytes(), from: info.tensor_type(), to }));
        }
        if converted.iter().all(Option::is_none) {
            return Ok(None);
        }
        let entries = model.metadata().iter().filter(|entry| !entry.key().starts_with("split."));
        let layout = memory_file::layout(model, entries.map(EntryOut::keep).collect(), tensors)?;
        Ok((layout.file_len() <= MAX_BYTES).then_some(Self { layout, converted }))
    }

    /// Writes the data of the tensor with number `i`.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn write(&self, model: &Model<'_>, i: usize, out: &mut dyn Write) -> io::Result<()> {
        let Some(converted) = self.converted[i] else {
            return out.write_all(model.tensors()[i].info.bytes());
        };
        let mut chunk = vec![0; 1 << 20];
        let n_bytes = self.layout.tensors()[i].tensor().n_bytes();
        let mut position = 0;
        while position < n_bytes {
            let n = usize::try_from(n_bytes - position).unwrap_or(usize::MAX).min(chunk.len());
            let at = usize::try_from(position).map_err(io::Error::other)?;
            converted.read_at(at, &mut chunk[..n])?;
            out.write_all(&chunk[..n])?;
            position += n as u64;
        }
        Ok(())
    }
}
