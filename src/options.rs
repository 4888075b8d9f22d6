//! Checked settings made from the arguments: values of flags, and every cross-check between flags.

mod calibration;
mod compare;
mod heal;
mod rpc;
mod score;
mod shorten;
mod values;

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

use crate::cli::{CommonArgs, EvalArgs, VerifyArgs};
use crate::error::Usage;
use crate::plan::{Budget, Method};
use crate::search::Goal;

pub use calibration::Calibration;
pub use compare::{Compare, DropList, Drops};
pub use heal::{Heal, HealArg};
pub use score::Score;
pub use shorten::Shorten;
pub use values::{BlockList, ByteSize};

use calibration::{default_threads, scored_text};

/// What a page of results is written as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum PageFormat {
    /// One page with charts and tables that fetches nothing
    Html,
    /// The charts alone
    Svg,
    /// Tables as Markdown
    Md,
    /// The table of all models, with all digits
    Csv,
}

impl PageFormat {
    /// That of a file with this name.
    #[must_use]
    pub fn of(path: &Path) -> Option<Self> {
        let ending = path.extension()?.to_str()?.to_ascii_lowercase();
        match ending.as_str() {
            "html" | "htm" => Some(Self::Html),
            "svg" => Some(Self::Svg),
            "md" | "markdown" => Some(Self::Md),
            "csv" => Some(Self::Csv),
            _ => None,
        }
    }
}

/// Which blocks go.
#[derive(Clone, Debug, PartialEq)]
pub enum Choice {
    /// None, or none but prediction blocks.
    Nothing {
        /// Blocks that stay in any case.
        keep: Option<BlockList>,
    },
    /// Exactly these.
    Blocks(BlockList),
    /// The best of this many.
    Best {
        /// How many.
        budget: Budget,
        /// By which importance.
        method: Method,
        /// Blocks that stay in any case.
        keep: Option<BlockList>,
    },
    /// The best of as many as a goal says.
    Goal {
        /// The goal.
        goal: Goal,
        /// At most this many.
        most: Option<Budget>,
        /// By which importance.
        method: Method,
        /// Blocks that stay in any case.
        keep: Option<BlockList>,
    },
}

/// What a command prints.
#[derive(Clone, Debug)]
pub struct Printing {
    /// Where the result goes as JSON.
    pub json: Option<PathBuf>,
    /// No progress and no notes.
    pub quiet: bool,
    /// What llama.cpp says.
    pub verbose: bool,
}

impl Printing {
    /// Takes over the arguments.
    #[must_use]
    pub fn new(args: &CommonArgs) -> Self {
        Self {
            json: args.json.clone(),
            quiet: args.quiet,
            verbose: args.verbose,
        }
    }

    /// Whether tables go to stdout: not where JSON does.
    #[must_use]
    pub fn tables(&self) -> bool {
        self.json.as_deref() != Some("-".as_ref())
    }
}

/// A verification, checked.
#[derive(Clone, Debug)]
pub struct Verify {
    /// The shortened model.
    pub output: PathBuf,
    /// The model that it was made from.
    pub parent: PathBuf,
    /// The user answers for the cut.
    pub trust_any_cut: bool,
    /// Compare logits too.
    pub run: bool,
    /// CPU threads.
    pub threads: usize,
    /// What to print.
    pub printing: Printing,
}

impl Verify {
    /// Checks the arguments.
    ///
    /// # Errors
    /// [`Usage`] for no threads.
    pub fn new(args: &VerifyArgs) -> Result<Self> {
        if args.threads == Some(0) {
            bail!(Usage("--threads is at least 1".to_owned()));
        }
        Ok(Self {
            output: args.output.clone(),
            parent: args.parent.clone(),
            trust_any_cut: args.trust_any_cut,
            run: args.run,
            threads: args.threads.unwrap_or_else(default_threads),
            printing: Printing::new(&args.common),
        })
    }
}

/// Tasks of a file that are done where the user does not say otherwise.
const DEFAULT_TASKS: usize = 400;

/// An evaluation, checked.
#[derive(Clone, Debug)]
pub struct Eval {
    /// The model.
    pub model: PathBuf,
    /// What it is compared with.
    pub parent: Option<PathBuf>,
    /// The text that is scored, and how.
    pub text: Calibration,
    /// HellaSwag tasks.
    pub hellaswag: Option<PathBuf>,
    /// Multiple-choice tasks.
    pub multiple_choice: Option<PathBuf>,
    /// At most this many tasks of each file.
    pub n_tasks: usize,
    /// What to print.
    pub printing: Printing,
}

impl Eval {
    /// Checks the arguments.
    ///
    /// # Errors
    /// [`Usage`] for numbers that do not fit together.
    pub fn new(args: &EvalArgs) -> Result<Self> {
        let text = scored_text(&args.text)?;
        if args.tasks.is_some() && args.hellaswag.is_none() && args.multiple_choice.is_none() {
            bail!(Usage(
                "--tasks needs --hellaswag or --multiple-choice".to_owned()
            ));
        }
        if args.tasks == Some(0) {
            bail!(Usage("--tasks is at least 1".to_owned()));
        }
        Ok(Self {
            model: args.model.clone(),
            parent: args.parent.clone(),
            text,
            hellaswag: args.hellaswag.clone(),
            multiple_choice: args.multiple_choice.clone(),
            n_tasks: args.tasks.unwrap_or(DEFAULT_TASKS),
            printing: Printing::new(&args.common),
        })
    }
}
