//! What lies beside a model and goes by numbers of blocks: its importance matrix, which is renumbered with it.

use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use ggml::Mapping;

use crate::commit::Staged;
use crate::imatrix::{Imatrix, Planned};
use crate::input::Input;
use crate::model::Model;
use crate::plan::Renumbering;
use crate::save::{self, Naming};

/// An importance matrix to be renumbered, and where it goes.
pub struct ImatrixFile {
    from: PathBuf,
    to: PathBuf,
    mapping: Mapping,
}

impl ImatrixFile {
    /// Maps the file at `from`, and checks that one can be written at `to`: the folder is there and writable, nothing is
    /// overwritten without `force`, and never the model, the importance matrix itself, or another output.
    ///
    /// # Errors
    /// What is wrong with either.
    pub fn open(
        from: &Path,
        to: &Path,
        input: &Input,
        output: Option<&Naming>,
        force: bool,
    ) -> Result<Self> {
        let mapping = Mapping::open(from).with_context(|| from.display().to_string())?;
        let fail = || to.display().to_string();
        ensure!(
            !same_file::is_same_file(from, to).unwrap_or(false),
            "{}: is the importance matrix that is read",
            fail()
        );
        save::check_place(to, input, force)?;
        ensure!(
            !output.is_some_and(|output| output.takes(to)),
            "{}: is the output itself",
            fail()
        );
        Ok(Self {
            from: from.to_owned(),
            to: to.to_owned(),
            mapping,
        })
    }

    /// Reads it and checks that it can be the one of `model`.
    ///
    /// # Errors
    /// What is wrong with it, or does not fit.
    pub fn parse(&self, model: &Model<'_>) -> Result<Imatrix<'_>> {
        let parse = || -> Result<Imatrix<'_>> {
            let imatrix = Imatrix::parse(&self.mapping)?;
            imatrix.check(model)?;
            Ok(imatrix)
        };
        parse().with_context(|| self.from.display().to_string())
    }

    /// Plans what is written.
    ///
    /// # Errors
    /// Those of [`Imatrix::plan`].
    pub fn plan<'i>(&self, imatrix: &Imatrix<'i>, blocks: &Renumbering) -> Result<Planned<'i>> {
        let planned = imatrix.plan(blocks);
        planned.with_context(|| self.from.display().to_string())
    }

    /// Where it goes.
    #[must_use]
    pub fn to(&self) -> &Path {
        &self.to
    }

    /// Writes it beside its place, ready to be committed.
    ///
    /// # Errors
    /// The system's.
    pub fn stage(&self, planned: &Planned<'_>, force: bool) -> Result<Staged> {
        let write = || -> Result<Staged> {
            let staged = Staged::new(&self.to, force, save::permissions(&self.mapping)?)?;
            save::reserve(staged.file(), planned.n_bytes())?;
            let mut writer = BufWriter::with_capacity(1 << 16, staged.file());
            planned.write(&mut writer)?;
            writer.flush()?;
            drop(writer);
            staged.file().sync_all()?;
            Ok(staged)
        };
        write().with_context(|| format!("{}: nothing was written", self.to.display()))
    }
}
