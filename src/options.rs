//! Checked settings made from the arguments: values of flags, and every cross-check between flags.

mod compare;
mod rpc;
mod score;

use std::collections::BTreeSet;
use std::fmt;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Result, bail};
use ggml::rpc::Endpoints;

use crate::calibration::{DEFAULT_TOKENS, DEFAULT_WINDOW, Source};
use crate::cli::{CalibrationArgs, CommonArgs, EvalArgs, ShortenArgs, TextArgs, VerifyArgs};
use crate::error::Usage;
use crate::gguf::TensorType;
use crate::healer::HealType;
use crate::model::{BlockId, MAX_BLOCKS};
use crate::plan::{Budget, Method, Splitting};
use crate::quality::MIN_WINDOW;
use crate::search::{Goal, Objective};
use crate::stability::Confidence;

pub use compare::{Compare, DropList, Drops};
pub use score::Score;

/// A list of block numbers such as `21-29,31`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockList(Vec<RangeInclusive<usize>>);

impl BlockList {
    /// The blocks of the list, of a model with `n_blocks`.
    ///
    /// # Errors
    /// A number that is not a block's; `verb` says what cannot be done with it.
    pub fn blocks(&self, n_blocks: usize, verb: &str) -> Result<BTreeSet<BlockId>> {
        let mut blocks = BTreeSet::new();
        for range in &self.0 {
            if let Some(outside) = [*range.start(), *range.end()]
                .into_iter()
                .find(|&number| number >= n_blocks)
            {
                bail!(
                    "cannot {verb} block {outside}: the model has {n_blocks} blocks, 0 to {}",
                    n_blocks.saturating_sub(1)
                );
            }
            blocks.extend(range.clone().map(BlockId::new));
        }
        Ok(blocks)
    }
}

impl FromStr for BlockList {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |text: &str| -> Result<usize, String> {
            let text = text.trim();
            if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
                return Err(format!(
                    "'{text}' is not a block number; expected numbers and ranges such as 21-29,31"
                ));
            }
            // Too large for the type is too large for any model.
            Ok(text.parse().unwrap_or(usize::MAX))
        };
        let range = |item: &str| -> Result<RangeInclusive<usize>, String> {
            let (start, end) = match item.split_once('-') {
                Some((start, end)) => (number(start)?, number(end)?),
                None => (number(item)?, number(item)?),
            };
            if start > end {
                return Err(format!("the range {start}-{end} runs backwards"));
            }
            Ok(start..=end)
        };
        Ok(Self(text.split(',').map(range).collect::<Result<_, _>>()?))
    }
}

impl FromStr for Budget {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = "expected a number of blocks such as 9, or a share such as 25%";
        if let Some(share) = text.strip_suffix('%') {
            return match share.trim().parse::<f64>() {
                Ok(share) if share > 0.0 && share < 100.0 => Ok(Self::Percent(share)),
                Ok(_) => Err("a share lies between 0% and 100%".to_owned()),
                Err(_) => Err(expected.to_owned()),
            };
        }
        match text.parse::<usize>() {
            Ok(0) => Err("at least one block has to go".to_owned()),
            Ok(n) if n < MAX_BLOCKS => Ok(Self::Blocks(n)),
            Ok(_) => Err(format!("no model has more than {MAX_BLOCKS} blocks")),
            Err(_) => Err(expected.to_owned()),
        }
    }
}

/// A number of bytes such as `4G`: decimal units with one letter, as for `llama-gguf-split`, or with a `B`, binary ones with
/// `iB`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ByteSize(pub u64);

impl FromStr for ByteSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = || format!("'{text}' is not a size; expected one such as 500M, 4G or 2GiB");
        let end = text.find(|c: char| !c.is_ascii_digit());
        let (number, unit) = text.split_at(end.unwrap_or(text.len()));
        let number: u64 = match number.parse() {
            Ok(0) => return Err("a size is at least 1 byte".to_owned()),
            Ok(number) => number,
            Err(_) if number.is_empty() => return Err(expected()),
            Err(_) => return Err(format!("{text} is more than any file has")),
        };
        let unit = unit.trim_start().to_ascii_lowercase();
        let unit = unit.strip_suffix('b').unwrap_or(&unit);
        let (letter, base) = match unit.strip_suffix('i') {
            Some(letter) if !letter.is_empty() => (letter, 1024u64),
            _ => (unit, 1000),
        };
        let power = match letter {
            "" => 0,
            "k" => 1,
            "m" => 2,
            "g" => 3,
            "t" => 4,
            _ => return Err(expected()),
        };
        number
            .checked_mul(base.pow(power))
            .map(Self)
            .ok_or_else(|| format!("{text} is more than any file has"))
    }
}

/// What makes up for the removed blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum HealArg {
    /// Nothing: the output computes exactly the input without the removed blocks
    None,
    /// The stream behind each cut multiplied by a number, through scales alone: what blocks add to it is divided by that
    Scale,
    /// Feed-forward matrices before each cut, and behind it as long as that helps, refitted by least squares; the norms behind
    /// them, where there are such
    Linear,
    /// Of each run of removed blocks one stays as its feed-forward network alone, refitted (dense llama, written as deci)
    Block,
    /// What is best of all on text that nothing was fitted to
    Auto,
}

impl fmt::Display for HealArg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::Scale => "scale",
            Self::Linear => "linear",
            Self::Block => "block",
            Self::Auto => "auto",
        })
    }
}

impl FromStr for HealType {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "keep" => return Ok(Self::Keep),
            "auto" => return Ok(Self::Auto),
            _ => {}
        }
        TensorType::all()
            .find(|of| of.name().eq_ignore_ascii_case(text))
            .filter(|of| ggml::quantize::can_quantize(of.id()))
            .map(Self::To)
            .ok_or_else(|| {
                format!("'{text}' is no type that weights can be rounded to; expected keep, auto, or one such as Q8_0 or F16")
            })
    }
}

/// What makes up for the removed blocks, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heal {
    /// How.
    pub how: HealArg,
    /// What weights are rounded to.
    pub heal_type: HealType,
    /// Most bytes that it may take.
    pub max_memory: Option<u64>,
    /// Whether the number of tokens was left to the program.
    pub tokens_are_default: bool,
}

impl Heal {
    fn new(args: &ShortenArgs) -> Result<Self> {
        if args.heal == HealArg::None && (args.heal_type.is_some() || args.max_memory.is_some()) {
            bail!(Usage(
                "--heal-type and --max-memory need --heal linear, block or auto".to_owned()
            ));
        }
        if args.heal == HealArg::Scale && args.heal_type.is_some() {
            bail!(Usage(
                "--heal-type needs --heal linear, block or auto".to_owned()
            ));
        }
        Ok(Self {
            how: args.heal,
            heal_type: args.heal_type.unwrap_or(HealType::Auto),
            max_memory: args.max_memory.map(|ByteSize(bytes)| bytes),
            tokens_are_default: args.calibration.tokens.is_none(),
        })
    }
}

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

/// How a model is calibrated, before the model is known.
#[derive(Clone, Debug)]
pub struct Calibration {
    /// The text.
    pub source: Source,
    /// At most this many tokens.
    pub tokens: usize,
    /// Tokens of a window.
    pub window: usize,
    /// Whether a model with a shorter context may have shorter windows.
    pub window_is_default: bool,
    /// CPU threads.
    pub threads: usize,
    /// As in llama.cpp; `None` is its default.
    pub gpu_layers: Option<i32>,
    /// Servers that evaluate blocks, too.
    pub rpc: Endpoints,
    /// Whether scores may come from the cache, and go there.
    pub cache: bool,
}

/// What a user gets who says nothing, but without the cache.
impl Default for Calibration {
    fn default() -> Self {
        Self {
            source: Source::BuiltIn,
            tokens: DEFAULT_TOKENS,
            window: DEFAULT_WINDOW,
            window_is_default: true,
            threads: default_threads(),
            gpu_layers: None,
            rpc: Endpoints::default(),
            cache: false,
        }
    }
}

impl Calibration {
    /// Checks the arguments.
    ///
    /// # Errors
    /// [`Usage`] for numbers that do not fit together.
    pub fn new(args: &CalibrationArgs) -> Result<Self> {
        if let Some(servers) = &args.rpc {
            rpc::check(servers)?;
        }
        let own = OwnText::find(&args.calibration)?;
        if own.is_none() && args.seed.is_some() {
            bail!(Usage("--seed needs --calibration self".to_owned()));
        }
        // What a model is to write is all used, unless less is asked for.
        let written = own.and_then(|own| own.tokens);
        let asked = match (args.tokens, written) {
            (Some(tokens), Some(written)) => Some(tokens.min(written)),
            (tokens, written) => tokens.or(written),
        };
        // What was not asked for gives way to what was.
        let window = args
            .window
            .unwrap_or(DEFAULT_WINDOW.min(asked.unwrap_or(usize::MAX)));
        let tokens = asked.unwrap_or(DEFAULT_TOKENS.max(window));
        if window == 0 || args.threads == Some(0) {
            bail!(Usage(
                "--tokens, --window and --threads are at least 1".to_owned()
            ));
        }
        if tokens < window {
            bail!(Usage(format!(
                "{} {tokens} is less than one window of {window}",
                match args.tokens {
                    None if written.is_some() => "--calibration self of",
                    _ => "--tokens",
                }
            )));
        }
        Ok(Self {
            source: match (&args.calibration[..], own) {
                (_, Some(_)) => Source::Own {
                    seed: args.seed.unwrap_or(0),
                },
                ([], None) => Source::BuiltIn,
                (files, None) => Source::Files(files.to_vec()),
            },
            tokens,
            window,
            window_is_default: args.window.is_none(),
            threads: args.threads.unwrap_or_else(default_threads),
            gpu_layers: args.gpu_layers,
            rpc: args.rpc.clone().unwrap_or_default(),
            cache: !args.no_cache,
        })
    }
}

/// The text that is scored, and how.
fn scored_text(args: &TextArgs) -> Result<Calibration> {
    let text = Calibration::new(&CalibrationArgs {
        calibration: args.calibration.clone(),
        seed: args.seed,
        tokens: args.tokens,
        window: args.window,
        threads: args.threads,
        gpu_layers: args.gpu_layers,
        rpc: args.rpc.clone(),
        // What a model writes is kept; there are no scores.
        no_cache: false,
    })?;
    if text.window < MIN_WINDOW {
        bail!(Usage(format!(
            "--window {} leaves no token to score, expected {MIN_WINDOW} or more",
            text.window
        )));
    }
    Ok(text)
}

/// The text that the model is to write: `self` or `self:TOKENS`. A file of that name is `./self`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct OwnText {
    /// How much of it.
    tokens: Option<usize>,
}

impl OwnText {
    /// Among the values of `--calibration`.
    fn find(values: &[PathBuf]) -> Result<Option<Self>> {
        let own = |value: &PathBuf| value.to_str().map(Self::parse)?.transpose();
        let Some(own) = values.iter().find_map(own) else {
            return Ok(None);
        };
        let own = own.map_err(Usage)?;
        if values.len() > 1 {
            bail!(Usage(
                "--calibration self stands alone; a file of that name is ./self".to_owned()
            ));
        }
        Ok(Some(own))
    }

    /// `None` if `text` is the name of a file.
    fn parse(text: &str) -> Result<Option<Self>, String> {
        let Some(rest) = text.strip_prefix("self") else {
            return Ok(None);
        };
        if rest.is_empty() {
            return Ok(Some(Self { tokens: None }));
        }
        let Some(number) = rest.strip_prefix(':') else {
            return Ok(None);
        };
        let is_number = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
        match number.parse() {
            Ok(0) => Err(format!("--calibration {text} is no text")),
            Ok(tokens) if is_number && tokens <= MAX_OWN_TOKENS => Ok(Some(Self {
                tokens: Some(tokens),
            })),
            _ if is_number => Err(format!(
                "--calibration {text} is more than a model can write, at most {MAX_OWN_TOKENS} tokens"
            )),
            _ => Err(format!(
                "--calibration {text}: '{number}' is not a number of tokens; a file of that name is ./{text}"
            )),
        }
    }
}

/// More would take weeks, and is a mistake.
const MAX_OWN_TOKENS: usize = 1 << 30;

/// One thread for each physical core that this process may use: two threads of a core slow each other down, and more
/// threads than cores wait at every barrier of ggml.
fn default_threads() -> usize {
    num_cpus::get_physical().min(num_cpus::get()).max(1)
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

/// The main job, checked.
#[derive(Clone, Debug)]
pub struct Shorten {
    /// The input.
    pub model: PathBuf,
    /// Which blocks go.
    pub choice: Choice,
    /// Prediction blocks go too.
    pub drop_mtp: bool,
    /// No list takes the place of a built-in pattern.
    pub portable: bool,
    /// What methods that measure losses make small.
    pub objective: Objective,
    /// How sure the set must be for the calibration to stop early; `None`: it does not.
    pub confidence: Option<Confidence>,
    /// Tasks that candidates do, and how many at most.
    pub tasks: Option<(PathBuf, usize)>,
    /// Where a search keeps what it has measured; `None` for the system's folder for caches.
    pub scratch: Option<PathBuf>,
    /// What makes up for them.
    pub heal: Heal,
    /// Which of those that stay lose their attention.
    pub attention: Choice,
    /// The user answers for the cut.
    pub trust_any_cut: bool,
    /// The output; `None` for a dry run.
    pub output: Option<PathBuf>,
    /// How the output is cut into files.
    pub splitting: Splitting,
    /// An importance matrix that is renumbered too, and where it goes.
    pub imatrix: Option<(PathBuf, PathBuf)>,
    /// What the output is to be called in Ollama.
    pub ollama: Option<String>,
    /// A model card, and where it goes.
    pub card: Option<PathBuf>,
    /// Overwrite the output.
    pub force: bool,
    /// Bytes that stay free on the output's disk.
    pub min_free: u64,
    /// Write nothing.
    pub dry_run: bool,
    /// How to calibrate.
    pub calibration: Calibration,
    /// What to print.
    pub printing: Printing,
}

impl Shorten {
    /// Checks the arguments.
    ///
    /// # Errors
    /// [`Usage`] for arguments that do not fit together.
    pub fn new(args: &ShortenArgs) -> Result<Self> {
        let heal = Heal::new(args)?;
        let Some(model) = args.model.clone() else {
            bail!(Usage("a model is needed".to_owned()));
        };
        let goal = goal(args)?;
        let choice = match (&args.blocks, goal, args.drop) {
            (Some(blocks), ..) => Choice::Blocks(blocks.clone()),
            (None, Some(goal), most) => Choice::Goal {
                goal,
                most,
                method: args.method,
                keep: args.keep.clone(),
            },
            (None, None, Some(budget)) => Choice::Best {
                budget,
                method: args.method,
                keep: args.keep.clone(),
            },
            (None, None, None) => Choice::Nothing {
                keep: args.keep.clone(),
            },
        };
        let attention = match (&args.attention_blocks, args.drop_attention) {
            (Some(blocks), _) => Choice::Blocks(blocks.clone()),
            (None, Some(budget)) => Choice::Best {
                budget,
                method: args.method,
                keep: args.keep.clone(),
            },
            (None, None) => Choice::Nothing { keep: None },
        };
        let is_nothing = |choice: &Choice| matches!(choice, Choice::Nothing { .. });
        if is_nothing(&choice) && is_nothing(&attention) && !args.drop_mtp {
            bail!(Usage("--drop or --blocks is needed".to_owned()));
        }
        if args.drop_attention.is_some()
            && (args.method.needs_losses() || args.method == Method::Run)
        {
            bail!(Usage(format!(
                "--drop-attention goes by scores, which method '{}' has not",
                args.method
            )));
        }
        if heal.how != HealArg::None {
            if is_nothing(&choice) && is_nothing(&attention) {
                bail!(Usage("--heal needs blocks that are removed".to_owned()));
            }
            let window = args.calibration.window.unwrap_or(DEFAULT_WINDOW);
            if window < MIN_WINDOW {
                bail!(Usage(format!(
                    "--window {window} leaves no token to score, expected {MIN_WINDOW} or more"
                )));
            }
        }
        if args.confidence.is_some() {
            check_may_stop(args, goal)?;
        }
        if let Some(name) = &args.ollama {
            crate::commands::ollama::check_name(name)?;
        }
        if args.output.is_none() && !args.dry_run {
            bail!(Usage("--output is needed".to_owned()));
        }
        check_tasks(args)?;
        let options = Self {
            model,
            choice,
            drop_mtp: args.drop_mtp,
            portable: args.portable,
            objective: args.objective.unwrap_or(match args.goal.max_ppl {
                Some(_) => Objective::Ppl,
                None => Objective::Kl,
            }),
            confidence: args.confidence,
            tasks: (args.goal.task_file.clone())
                .map(|path| (path, args.goal.tasks.unwrap_or(DEFAULT_SEARCH_TASKS))),
            scratch: args.goal.scratch.clone(),
            heal,
            attention,
            trust_any_cut: args.trust_any_cut,
            output: args.output.clone(),
            splitting: match args.split_max_size {
                Some(ByteSize(max)) => Splitting::MaxBytes(max),
                None if args.keep_split => Splitting::AsInput,
                None => Splitting::Whole,
            },
            imatrix: match args.imatrix.as_deref() {
                Some([from, to]) => Some((from.clone(), to.clone())),
                _ => None,
            },
            ollama: args.ollama.clone(),
            card: args.card.clone(),
            force: args.force,
            min_free: args.min_free.map_or(0, |ByteSize(n_bytes)| n_bytes),
            dry_run: args.dry_run,
            calibration: Calibration::new(&args.calibration)?,
            printing: Printing::new(&args.common),
        };
        rpc::check_shorten(&options)?;
        Ok(options)
    }
}

/// Checks that there is a calibration that may stop early.
fn check_may_stop(args: &ShortenArgs, goal: Option<Goal>) -> Result<()> {
    match goal {
        Some(Goal::SpeedUp) => bail!(Usage(
            "--confidence needs a number of blocks, and --objective draft says itself how many go"
                .to_owned()
        )),
        Some(goal) => bail!(Usage(format!(
            "--confidence needs a number of blocks, so it does not go with --{}",
            goal.flag()
        ))),
        None => {}
    }
    if args.drop.is_none() {
        bail!(Usage(
            "--confidence needs --drop: without it nothing is chosen by scores of whole blocks"
                .to_owned()
        ));
    }
    if !args.method.needs_scores() {
        bail!(Usage(format!(
            "--confidence cannot end method '{}' early: it goes by no scores, expected bi, relative-magnitude or safe",
            args.method
        )));
    }
    if args.drop_attention.is_some() {
        bail!(Usage(
            "--confidence is about whole blocks alone, so it does not go with --drop-attention"
                .to_owned()
        ));
    }
    Ok(())
}

/// Tasks that each candidate of a search does where the user does not say otherwise: a task takes as long as some windows.
const DEFAULT_SEARCH_TASKS: usize = 50;

/// The goal that the arguments name, if they name one.
fn goal(args: &ShortenArgs) -> Result<Option<Goal>> {
    let goals = &args.goal;
    let goal = match (goals.target_size, goals.max_ppl, goals.max_kl) {
        (Some(ByteSize(n_bytes)), ..) => Some(Goal::Size(n_bytes)),
        (_, Some(limit), _) => Some(Goal::Perplexity(limit)),
        (.., Some(limit)) => Some(Goal::Kl(limit.0)),
        _ => None,
    };
    if args.objective != Some(Objective::Draft) {
        return Ok(goal);
    }
    if let Some(other) = goal {
        bail!(Usage(format!(
            "--objective draft says itself how many blocks go, so --{} has no place beside it",
            other.flag()
        )));
    }
    if args.drop_attention.is_some() || args.attention_blocks.is_some() {
        bail!(Usage(
            "--objective draft measures whole blocks, so no attention goes beside them".to_owned()
        ));
    }
    Ok(Some(Goal::SpeedUp))
}

/// Checks what belongs to the tasks of a search.
fn check_tasks(args: &ShortenArgs) -> Result<()> {
    let is_objective = args.objective == Some(Objective::Task);
    if is_objective != args.goal.task_file.is_some() {
        bail!(Usage(
            "--objective task and --task-file need each other".to_owned()
        ));
    }
    if is_objective && !args.method.needs_losses() {
        bail!(Usage(format!(
            "--objective task needs --method search or ablate, which measure, not '{}'",
            args.method
        )));
    }
    if args.goal.tasks == Some(0) {
        bail!(Usage("--tasks is at least 1".to_owned()));
    }
    Ok(())
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

#[cfg(test)]
mod tests {
    use super::*;

    fn list(text: &str) -> Result<Vec<usize>, String> {
        let list: BlockList = text.parse()?;
        let blocks = list
            .blocks(40, "remove")
            .map_err(|error| error.to_string())?;
        Ok(blocks.iter().map(|block| block.index()).collect())
    }

    #[test]
    fn block_lists_are_numbers_and_ranges() {
        assert_eq!(list("21-23,31").unwrap(), [21, 22, 23, 31]);
        assert_eq!(list("3, 1,3").unwrap(), [1, 3]);
        assert_eq!(list("7-7").unwrap(), [7]);
        for wrong in ["", "a", "1,", "-1", "1-", "5-3", "1.5", "0x3", "+1"] {
            assert!(list(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn huge_numbers_are_blocks_that_do_not_exist() {
        assert_eq!(
            list("0-99999999999999999999999").unwrap_err(),
            format!(
                "cannot remove block {}: the model has 40 blocks, 0 to 39",
                usize::MAX
            )
        );
    }

    #[test]
    fn budgets_are_counts_and_shares() {
        assert_eq!("9".parse(), Ok(Budget::Blocks(9)));
        assert_eq!("25%".parse(), Ok(Budget::Percent(25.0)));
        assert_eq!("12.5%".parse(), Ok(Budget::Percent(12.5)));
        for wrong in ["0", "-1", "x", "", "%", "0%", "100%", "nan%", "1e3", "600"] {
            assert!(wrong.parse::<Budget>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn sizes_have_units_of_1000_or_1024() {
        let of = |text: &str| text.parse::<ByteSize>().map(|size| size.0);
        for (text, n_bytes) in [
            ("1", 1),
            ("12B", 12),
            ("30M", 30_000_000),
            ("4G", 4_000_000_000),
            ("4GB", 4_000_000_000),
            ("2GiB", 2 << 30),
            ("2 gib", 2 << 30),
            ("1Ki", 1024),
            ("7kB", 7000),
            ("1T", 1_000_000_000_000),
        ] {
            assert_eq!(of(text), Ok(n_bytes), "{text}");
        }
        for wrong in [
            "",
            "G",
            "0",
            "0G",
            "-1G",
            "1.5G",
            "1iB",
            "1X",
            "1GG",
            "99999999999999999999",
            "99999999T",
        ] {
            assert!(of(wrong).is_err(), "{wrong}");
        }
    }
}
