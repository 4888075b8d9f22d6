//! Settings of the main job, checked.

use std::path::PathBuf;

use anyhow::{Result, bail};
use ggml::FileType;

use super::calibration::check_matrix;
use super::{Printing, check_not_stdout, heal, one_model, rpc};
use crate::choose::search::Goal;
use crate::choose::settings::{Choice, Choosing, CutRules, Effort, ExpertChoice};
use crate::cli::args::ShortenArgs;
use crate::engine::scored::MIN_WINDOW;
use crate::engine::settings::Calibration;
use crate::engine::text::DEFAULT_WINDOW;
use crate::error::Usage;
use crate::files::byte_size::ByteSize;
use crate::heal::settings::{Heal, HealArg};
use crate::measure::loss::Objective;
use crate::output::ollama::check_name;
use crate::output::outputs::Files;
use crate::plan::experts::ExpertMethod;
use crate::plan::{Basis, Method, Splitting};

/// The main job, checked.
#[derive(Clone, Debug)]
pub struct Shorten {
    /// The input.
    pub model: PathBuf,
    /// How the blocks to remove are chosen.
    pub choosing: Choosing,
    /// How they are made up for.
    pub heal: Heal,
    /// The types that the tensors become.
    pub requantize: Option<FileType>,
    /// The files that are read beside the model and written.
    pub files: Files,
    /// The output of the command.
    pub printing: Printing,
}

/// A hint for several models.
const BATCH: &str = "batch shortens several models: gguf-shorten batch MODEL... --drop N --out-dir DIR";

impl Shorten {
    /// Checks the arguments.
    ///
    /// # Errors
    /// [`Usage`] for arguments that do not fit together.
    pub fn new(args: &ShortenArgs) -> Result<Self> {
        heal::check(args)?;
        let model = one_model(&args.model, None, Some(BATCH))?;
        let goal = goal(args)?;
        let choice = choice(args, goal);
        let attention = attention(args);
        check_removal(args, &choice, &attention)?;
        check_experts(args, goal)?;
        check_types(args, goal)?;
        if args.confidence.is_some() {
            check_may_stop(args, goal)?;
        }
        if let Some(name) = &args.ollama {
            check_name(name)?;
        }
        if args.output.is_none() && !args.dry_run {
            bail!(Usage("--output is needed".to_owned()));
        }
        let matrix = args.imatrix.as_ref().and_then(|files| files.last());
        check_not_stdout("output", args.output.as_deref())?;
        check_not_stdout("imatrix", matrix.map(PathBuf::as_path))?;
        check_not_stdout("imatrix-out", args.imatrix_out.as_deref())?;
        check_not_stdout("card", args.card.as_deref())?;
        check_tasks(args)?;
        let objective = args.objective.unwrap_or(match args.goal.max_ppl {
            Some(_) => Objective::Ppl,
            None => Objective::Kl,
        });
        let calibration =
            Calibration { scratch: args.goal.scratch.clone(), ..Calibration::new(&args.calibration)? };
        check_matrix(args.imatrix_out.as_deref(), &calibration)?;
        let heal = Heal::new(args, objective, calibration.clone());
        let read = calibration.source.files().iter().chain(&args.goal.task_file).cloned();
        let files = Files { read: read.collect(), ..files(args) };
        let choosing = Choosing {
            choice,
            attention,
            experts: experts(args),
            rules: CutRules {
                drop_mtp: args.drop_mtp,
                portable: args.portable,
                trust_any_cut: args.trust_any_cut,
            },
            splitting: files.splitting,
            objective,
            confidence: args.confidence,
            tasks: (args.goal.task_file.clone())
                .map(|path| (path, args.goal.tasks.unwrap_or(DEFAULT_SEARCH_TASKS))),
            scratch: args.goal.scratch.clone(),
            calibration,
            heals: heal.may_choose(),
            imatrix: files.imatrix_out.is_some() && !files.dry_run,
        };
        let requantize = args.requantize;
        let options =
            Self { model, choosing, heal, requantize, files, printing: Printing::new(&args.common) };
        rpc::check_shorten(&options)?;
        Ok(options)
    }
}

/// The method of the choice.
fn method(args: &ShortenArgs) -> Method {
    args.effort.method(args.method)
}

/// The choice of whole blocks.
fn choice(args: &ShortenArgs, goal: Option<Goal>) -> Choice {
    let (method, keep) = (method(args), args.keep.clone());
    if let Some(layers) = &args.layers {
        return Choice::Layers(layers.clone());
    }
    match (&args.blocks, goal, args.drop) {
        (Some(blocks), ..) => Choice::Blocks(blocks.clone()),
        (None, Some(goal), most) => Choice::Goal { goal, most, method, keep },
        (None, None, Some(budget)) => Choice::Best { budget, method, keep },
        (None, None, None) => Choice::Nothing { keep },
    }
}

/// The choice of blocks that lose their attention.
fn attention(args: &ShortenArgs) -> Choice {
    match (&args.attention_blocks, args.drop_attention) {
        (Some(blocks), _) => Choice::Blocks(blocks.clone()),
        (None, Some(budget)) => {
            Choice::Best { budget, method: method(args).unmeasured(), keep: args.keep.clone() }
        }
        (None, None) => Choice::Nothing { keep: None },
    }
}

/// The choice of experts.
fn experts(args: &ShortenArgs) -> ExpertChoice {
    match (&args.keep_experts, &args.experts) {
        (Some(list), _) => ExpertChoice::Same(list.clone()),
        (None, Some(path)) => ExpertChoice::File(path.clone()),
        (None, None) => {
            let method = args.experts_by.unwrap_or(match args.effort {
                Effort::Quick => ExpertMethod::Reap,
                Effort::Normal | Effort::Thorough => ExpertMethod::Auto,
            });
            args.drop_experts.map_or(ExpertChoice::All, |n| ExpertChoice::Lowest(n, method))
        }
    }
}

/// Checks that nothing is measured where experts are removed.
fn check_experts(args: &ShortenArgs, goal: Option<Goal>) -> Result<()> {
    if experts(args) == ExpertChoice::All {
        return Ok(());
    }
    if let Some(goal) = goal {
        bail!(Usage(format!(
            "--{} is measured with all experts, so none can be removed beside it; --drop or --blocks can be given",
            goal.flag()
        )));
    }
    if heal::how(args) != HealArg::None {
        bail!(Usage(
            "--heal fits weights to blocks that have all experts, so none can be removed beside it"
                .to_owned()
        ));
    }
    Ok(())
}

/// Checks that nothing is promised of a model that is then quantized.
fn check_types(args: &ShortenArgs, goal: Option<Goal>) -> Result<()> {
    if args.requantize.is_none() {
        return Ok(());
    }
    if let Some(goal) = goal {
        bail!(Usage(format!(
            "--{} is measured of the input's own types, so --requantize has no place beside it; fit finds types within a size",
            goal.flag()
        )));
    }
    if heal::how(args) != HealArg::None {
        bail!(Usage("--requantize rounds the input's weights, so nothing is healed beside it".to_owned()));
    }
    Ok(())
}

/// The files to read and write.
fn files(args: &ShortenArgs) -> Files {
    Files {
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
        imatrix_out: args.imatrix_out.clone(),
        read: Vec::new(),
        ollama: args.ollama.clone(),
        card: args.card.clone(),
        json: args.common.json.clone(),
        force: args.force,
        min_free: args.min_free.map_or(0, |ByteSize(n_bytes)| n_bytes),
        dry_run: args.dry_run,
    }
}

/// Checks that something is removed, by a method that can choose it. Healing must have something to make up for.
fn check_removal(args: &ShortenArgs, choice: &Choice, attention: &Choice) -> Result<()> {
    let is_nothing = |choice: &Choice| matches!(choice, Choice::Nothing { .. });
    let removes_none = is_nothing(choice) && is_nothing(attention);
    if removes_none && !args.drop_mtp && experts(args) == ExpertChoice::All {
        bail!(Usage("--drop, --blocks or --layers is needed".to_owned()));
    }
    let method = method(args);
    if args.drop_attention.is_some() && !matches!(method.unmeasured().basis(), Basis::Order | Basis::Scores) {
        bail!(Usage(format!("--drop-attention goes by scores, which method '{method}' has not")));
    }
    if heal::how(args) == HealArg::None {
        return Ok(());
    }
    if removes_none {
        bail!(Usage("--heal needs blocks that are removed".to_owned()));
    }
    let window = args.calibration.window.unwrap_or(DEFAULT_WINDOW);
    if window < MIN_WINDOW {
        bail!(Usage(format!("--window {window} leaves no token to score, expected {MIN_WINDOW} or more")));
    }
    Ok(())
}

/// Checks that there is a calibration that may stop early.
fn check_may_stop(args: &ShortenArgs, goal: Option<Goal>) -> Result<()> {
    match goal {
        Some(Goal::SpeedUp) => bail!(Usage(
            "--confidence needs a number of blocks, and --objective draft says itself how many go".to_owned()
        )),
        Some(goal) => bail!(Usage(format!(
            "--confidence needs a number of blocks, so it does not go with --{}",
            goal.flag()
        ))),
        None => {}
    }
    if args.drop.is_none() {
        bail!(Usage(
            "--confidence needs --drop: without it nothing is chosen by scores of whole blocks".to_owned()
        ));
    }
    let method = method(args);
    if method.unmeasured().basis() != Basis::Scores {
        bail!(Usage(format!(
            "--confidence cannot end method '{method}' early: it goes by no scores, expected {}",
            Method::list(|method| method.basis() == Basis::Scores)
        )));
    }
    if args.drop_attention.is_some() {
        bail!(Usage(
            "--confidence is about whole blocks alone, so it does not go with --drop-attention".to_owned()
        ));
    }
    Ok(())
}

/// Tasks for each candidate of a search, by default. A task takes as long as some windows.
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
        bail!(Usage("--objective draft measures whole blocks, so no attention goes beside them".to_owned()));
    }
    Ok(Some(Goal::SpeedUp))
}

/// Checks what belongs to the tasks of a search.
fn check_tasks(args: &ShortenArgs) -> Result<()> {
    let is_objective = args.objective == Some(Objective::Task);
    if is_objective != args.goal.task_file.is_some() {
        bail!(Usage("--objective task and --task-file need each other".to_owned()));
    }
    let method = method(args);
    if is_objective && !method.needs_losses() {
        bail!(Usage(format!(
            "--objective task needs --method search or ablate, which measure tasks, not '{method}'"
        )));
    }
    if args.goal.tasks == Some(0) {
        bail!(Usage("--tasks is at least 1".to_owned()));
    }
    Ok(())
}
