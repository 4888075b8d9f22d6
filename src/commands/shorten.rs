//! The main job: one model -> one shorter model.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};

use super::card::CardFile;
use super::healed;
use super::measured::{self, Request, Target as Wanted};
use super::ollama::Creation;
use super::resume::close_journal;
use super::{Asked, Calibrated, arguments, calibrate, check_json, eval, goal, note_layout, print};
use crate::beside::{ImatrixFile, stale};
use crate::cache::Cache;
use crate::commit::Staged;
use crate::companion::Companion;
use crate::error::Hint;
use crate::gguf;
use crate::importance::Importance;
use crate::input::Input;
use crate::model::{BlockId, Model};
use crate::options::{Choice, HealArg, Printing, Shorten};
use crate::plan::parts::{self, Part};
use crate::plan::{
    AttentionCut, Constraints, Method, Plan, Provenance, Renumbering, Splitting, attention, removal,
};
use crate::progress::{self, Unit};
use crate::report::goal::{Figure, GoalReport, StepReport};
use crate::report::stability::{ConfidenceReport, Rating};
use crate::report::{
    CalibrationReport, ImatrixReport, ModelReport, OllamaReport, OutputReport, PartReport, Report,
    SearchReport, block_list, block_rows, restated_changes,
};
use crate::save::{Naming, Target, Tell, Unplaced, Written};
use crate::search::Goal;
use crate::search::journal::Journal;
use crate::stability::{self, edge::Chosen};
use crate::tasks;

/// Runs the command.
///
/// # Errors
/// Whatever keeps the model from being shortened; nothing is written then.
pub fn run(options: &Shorten) -> Result<()> {
    let input = Input::open(&options.model)?;
    let at_path = || options.model.display().to_string();
    let model = Model::new(input.parse()?).with_context(at_path)?;
    let constraints = constraints(&model, options).with_context(at_path)?;
    let target = match &options.output {
        Some(path) if !options.dry_run => {
            let splitting = options.splitting;
            let target = Target::split(path, splitting, &input, options.force)?;
            Some(target.leaving(options.min_free))
        }
        _ => None,
    };
    check_json(&options.printing, &input, target.as_ref().map(Target::path))?;
    if let (Some(target), Some(json)) = (&target, &options.printing.json) {
        check_apart(target, json)?;
    }
    let card = match (&options.card, &target) {
        (Some(path), Some(target)) => Some(CardFile::new(path, &input, target, options)?),
        _ => None,
    };
    let imatrix_file = open_imatrix(&input, target.as_ref(), options)?;
    let imatrix = imatrix_file
        .as_ref()
        .map(|file| file.parse(&model))
        .transpose()?;
    healed::check(&model, &options.heal, &options.calibration).with_context(at_path)?;
    let creation = Creation::plan(&model, &input, target.as_ref(), options)?;
    note_layout(&input, &options.printing);
    let mut selection = select(&model, &constraints, &input, options)?;
    let scored = selection.calibration.as_ref().and_then(|of| of.scored);
    let mut heal_report = None;
    let mut heal = HealArg::None.to_string();
    let mut healing = None;
    if options.heal.how != HealArg::None {
        let healed = healed::heal(
            &model,
            &constraints,
            &input,
            (&selection.removed, &selection.shortlist),
            selection.attention.as_ref(),
            &options.heal,
            options.objective,
            &options.calibration,
            &options.printing,
        )?;
        selection.removed = healed.removed;
        selection.attention = healed.attention;
        (heal, healing) = (healed.method, healed.healing);
        heal_report = Some(healed.report);
    }
    let plan = |parent_blake3: blake3::Hash| {
        check_scored(scored, parent_blake3, &input).with_context(at_path)?;
        let provenance = Provenance {
            parent_blake3,
            method: selection.method.clone(),
            heal: heal.clone(),
        };
        Plan::healed(
            &model,
            &constraints,
            selection.removed.clone(),
            selection.attention.as_ref(),
            healing.as_ref(),
            &provenance,
        )
        .with_context(at_path)
    };
    // Before there is an output that would be found.
    let stale = stale_note(&model, &input, options);
    let mut beside = Vec::new();
    let mut imatrix_report = None;
    if let (Some(file), Some(imatrix)) = (&imatrix_file, &imatrix) {
        let renumbering = Renumbering::new(model.n_blocks(), &selection.removed);
        let planned = file.plan(imatrix, &renumbering)?;
        imatrix_report = Some(ImatrixReport {
            path: file.to().display().to_string(),
            bytes: planned.n_bytes(),
            entries: planned.n_entries,
            removed: planned.n_removed,
        });
        if target.is_some() {
            beside.push(file.stage(&planned, options.force)?);
        }
    }
    if let (Some(creation), Some(_)) = (&creation, &target) {
        beside.push(creation.stage(&input, options.force)?);
    }
    let mut blake3 = None;
    let mut evaluation = None;
    let (plan, files, seconds) = match &target {
        Some(target) => {
            let mut telling = 0.0;
            let mut tell = |plan: &Plan<'_>, files: &[Unplaced<'_>]| {
                let Some(card) = &card else {
                    return Ok(Vec::new());
                };
                let start = Instant::now();
                let n_windows = selection.n_windows();
                let (staged, found) =
                    card.write((&input, &model), plan, files, n_windows, options)?;
                evaluation = found;
                telling = start.elapsed().as_secs_f64();
                Ok(vec![staged])
            };
            let (plan, files, seconds) = write(
                target,
                beside,
                &mut tell,
                (&input, &model),
                &plan,
                &options.printing,
            )?;
            let seconds = seconds - telling;
            // Read again only for those who ask.
            if options.printing.json.is_some() {
                blake3 = Some(
                    Input::open_file(&files[0].path)?
                        .blake3()
                        .to_hex()
                        .to_string(),
                );
            }
            let report = |file: Written| PartReport {
                path: Some(file.path.display().to_string()),
                bytes: file.n_bytes,
            };
            (plan, files.into_iter().map(report).collect(), Some(seconds))
        }
        None => {
            let plan = plan(input.blake3())?;
            let files = planned_files(&model, &plan, &input, options).with_context(at_path)?;
            (plan, files, None)
        }
    };
    if !options.printing.quiet {
        if let Some(stale) = stale {
            eprintln!("gguf-shorten: note: {stale}");
        }
        if let Some((name, n_bytes)) = parts::too_large(&plan.layout, options.splitting) {
            eprintln!(
                "gguf-shorten: note: tensor {} alone has {n_bytes} bytes, so its part is larger than --split-max-size",
                gguf::Quoted(name)
            );
        }
        for key in constraints.lists_needed(&plan.renumbering) {
            let seen = match constraints.rules.lists_since {
                Some(release) => format!("release {release} does"),
                None => format!("the bundled {} does", ggml::backend::llama_cpp_version()),
            };
            eprintln!(
                "gguf-shorten: note: the output needs a llama.cpp that reads '{}.{key}' block by block, as {seen}; an older \
                 one may compute something else without a word; --portable needs no such list",
                model.architecture(),
            );
        }
    }
    if selection.attention.is_some() && !options.printing.quiet {
        eprintln!(
            "gguf-shorten: note: the output is of architecture '{}', for which llama.cpp takes no adapters made for '{}'",
            attention::TO,
            model.architecture()
        );
    }
    let mut blocks = block_rows(
        model.n_blocks(),
        selection.importance.as_ref(),
        &plan.removed,
        &plan.attention_removed,
    );
    if let Some(rating) = &selection.rating {
        rating.mark(&mut blocks);
    }
    let mut ollama = None;
    let mut failure = None;
    if let Some(creation) = &creation {
        if !options.printing.quiet {
            for note in creation.notes() {
                eprintln!("gguf-shorten: note: {note}");
            }
        }
        let created = match &target {
            Some(_) => creation.run(&options.printing).unwrap_or_else(|error| {
                failure = Some(error);
                false
            }),
            None => false,
        };
        ollama = Some(OllamaReport {
            name: creation.name().to_owned(),
            modelfile: creation.path().display().to_string(),
            created,
        });
    }
    let report = Report {
        gguf_shorten: env!("CARGO_PKG_VERSION"),
        llama_cpp: ggml::backend::llama_cpp_version(),
        arguments: arguments(),
        model: ModelReport::of(&model, &input, Some(plan.provenance.parent_blake3)),
        calibration: selection.calibration,
        method: selection.method,
        search: selection.search,
        goal: selection.goal,
        heal: heal_report,
        confidence: selection.confidence,
        against: None,
        ablate: None,
        blocks,
        removed: plan.removed.iter().map(|block| block.index()).collect(),
        attention_removed: plan
            .attention_removed
            .iter()
            .map(|block| block.index())
            .collect(),
        attention_method: selection.attention.as_ref().map(|cut| cut.method.clone()),
        pairs: None,
        output: Some(OutputReport {
            path: files[0].path.clone(),
            block_count: plan.renumbering.kept().len(),
            architecture: match selection.attention {
                Some(_) => attention::TO.to_owned(),
                None => model.architecture().to_owned(),
            },
            bytes: files.iter().map(|file| file.bytes).sum(),
            parameters: plan.n_parameters,
            blake3,
            seconds,
            parts: files,
            imatrix: imatrix_report,
            ollama,
            changes: [plan.changes, restated_changes(&input)].concat(),
        }),
        evaluation,
    };
    print(&report, &options.printing)?;
    // What an interrupt would have left to go on with is not needed any more.
    close_journal(selection.journal, &options.printing);
    failure.map_or(Ok(()), Err)
}

/// Checks that the scores are of the model that is written: its hash was remembered where they come from the cache, and it may
/// have been changed since it was read.
fn check_scored(scored: Option<blake3::Hash>, parent: blake3::Hash, input: &Input) -> Result<()> {
    // Of a draft.
    let is_draft = parent == blake3::Hash::from_bytes([0; blake3::OUT_LEN]);
    if scored.is_some_and(|scored| scored != parent) && !is_draft {
        if let Some(cache) = Cache::of_user(true) {
            cache.forget(input);
        }
        bail!(
            anyhow::anyhow!("is not the model that was scored: it was changed in place")
                .context(Hint("the next run scores it anew".to_owned()))
        );
    }
    Ok(())
}

fn constraints(model: &Model<'_>, options: &Shorten) -> Result<Constraints> {
    let mut constraints = Constraints::new(model, options.trust_any_cut)?;
    if options.drop_mtp {
        constraints = constraints.dropping_prediction_blocks()?;
    }
    if options.portable {
        constraints = constraints.portable();
    }
    Ok(constraints)
}

/// What goes, and why.
struct Selection {
    removed: BTreeSet<BlockId>,
    /// Sets that may be better once they are healed.
    shortlist: Vec<BTreeSet<BlockId>>,
    method: String,
    attention: Option<AttentionCut>,
    importance: Option<Importance>,
    calibration: Option<CalibrationReport>,
    search: Option<SearchReport>,
    goal: Option<GoalReport>,
    journal: Option<Journal>,
    rating: Option<Rating>,
    confidence: Option<ConfidenceReport>,
}

impl Selection {
    /// Windows, from the first, among which are all that the choice has seen: a calibration that may end early takes them
    /// in random order.
    fn n_windows(&self) -> usize {
        let Some(text) = &self.calibration else {
            return 0;
        };
        let allowed = (self.confidence.as_ref()).map_or(0, |sure| sure.tokens_allowed);
        text.windows.max(allowed / text.window.max(1))
    }
}

fn select(
    model: &Model<'_>,
    constraints: &Constraints,
    input: &Input,
    options: &Shorten,
) -> Result<Selection> {
    let at_path = || options.model.display().to_string();
    let n_trunk = model.n_trunk_blocks();
    // All that can be refused is refused before anything is measured.
    let listed = listed_attention(model, &options.attention).with_context(at_path)?;
    let mut keep = kept_by_hand(model, constraints, options).with_context(at_path)?;
    keep.extend(&listed);
    let mut removed = BTreeSet::new();
    let n_removed = match &options.choice {
        Choice::Nothing { .. } => 0,
        Choice::Blocks(list) => {
            removed = list
                .blocks(model.n_blocks(), "remove")
                .with_context(at_path)?;
            constraints
                .check(&removed)
                .map_err(|error| with_nearest(error, constraints, &removed))
                .with_context(at_path)?;
            removed.len()
        }
        Choice::Best { budget, .. } => {
            let n = budget.n_removed(n_trunk);
            removal::check(constraints, &keep, n).with_context(at_path)?;
            n
        }
        Choice::Goal { .. } => 0,
    };
    let mut wanted = None;
    if let Choice::Goal {
        goal, most, method, ..
    } = &options.choice
    {
        let bytes_of = |removed: &BTreeSet<BlockId>, method: &str| {
            n_bytes(model, constraints, input, options, removed, method)
        };
        let most = most.map_or(n_trunk.saturating_sub(1), |budget| {
            budget.n_removed(n_trunk).min(n_trunk.saturating_sub(1))
        });
        let mut first = 1;
        if let Goal::Size(limit) = goal {
            if options.drop_mtp {
                let n_bytes = bytes_of(&removed, "blocks").with_context(at_path)?;
                if n_bytes <= *limit {
                    return Ok(without_trunk_blocks(*limit, n_bytes));
                }
            }
            ensure!(
                model.n_bytes() > *limit,
                "{}: has {} bytes, which is within --target-size, so no block has to go",
                at_path(),
                model.n_bytes()
            );
            let bytes_of = |removed: &_| bytes_of(removed, &method.to_string());
            first = goal::fewest_of_size(model, constraints, &keep, &bytes_of, *limit)
                .with_context(at_path)?;
        }
        wanted = Some(Wanted::Goal {
            goal: *goal,
            first,
            most,
        });
    }
    let task_file = options.tasks.as_ref();
    let task_file = task_file.map(|(path, n)| eval::read_tasks(path, *n, tasks::any));
    let task_file = task_file.transpose()?;
    if !listed.is_empty() {
        attention::check(model, &removed, &listed).with_context(at_path)?;
    }
    if let Choice::Best { budget, .. } = &options.attention {
        let n_may = n_trunk.saturating_sub(n_removed + 1);
        attention::check_number(budget.n_removed(n_trunk), n_may).with_context(at_path)?;
    }
    let needs_scores = |choice: &Choice| matches!(choice, Choice::Best { method, .. } | Choice::Goal { method, .. } if method.needs_scores());
    let calibrated = if needs_scores(&options.choice) || needs_scores(&options.attention) {
        let goal = match (&options.choice, options.confidence) {
            (Choice::Best { method, .. }, Some(confidence)) => Some(stability::Goal {
                method: *method,
                n: n_removed,
                keep: &keep,
                confidence,
            }),
            _ => None,
        };
        Some(calibrate(
            model,
            constraints,
            input,
            &options.calibration,
            &options.printing,
            Asked {
                sub_blocks: needs_scores(&options.attention),
                goal,
                ..Asked::default()
            },
        )?)
    } else {
        None
    };
    let importance = calibrated.as_ref().map(|calibrated| &calibrated.importance);
    let mut calibration = calibrated
        .as_ref()
        .map(|calibrated| calibrated.report.clone());
    let mut search = None;
    let mut goal_report = None;
    let mut journal = None;
    let mut shortlist = Vec::new();
    let method = match &options.choice {
        Choice::Nothing { .. } if options.drop_mtp => "blocks".to_owned(),
        Choice::Nothing { .. } => attention::NO_WHOLE_BLOCK.to_owned(),
        Choice::Blocks(_) => "blocks".to_owned(),
        Choice::Best { method, .. } | Choice::Goal { method, .. }
            if method.needs_losses() || *method == Method::Run || wanted.is_some() =>
        {
            let name = method.to_string();
            let bytes_of =
                |removed: &_| n_bytes(model, constraints, input, options, removed, &name);
            let request = Request {
                method: *method,
                objective: options.objective,
                target: wanted.unwrap_or(Wanted::Exactly(n_removed)),
                keep: &keep,
                importance,
                tasks: task_file.as_ref().map(|(path, tasks)| (*path, &tasks[..])),
                n_bytes: &bytes_of,
                scratch: options.scratch.as_deref(),
                heals: healed::may_choose(&options.heal, options.objective),
            };
            let chosen = measured::choose(
                model,
                constraints,
                input,
                &request,
                &options.calibration,
                &options.printing,
            )?;
            removed = chosen.removed;
            // Scores that were measured first have the same text.
            calibration = calibration.or(chosen.calibration);
            search = chosen.search;
            goal_report = chosen.goal;
            journal = chosen.journal;
            shortlist = chosen.shortlist;
            name
        }
        Choice::Goal { .. } => bail!("bug: a goal that is not wanted"),
        Choice::Best { method, .. } => {
            removed = removal::choose(constraints, *method, importance, &keep, n_removed)
                .with_context(at_path)?;
            method.to_string()
        }
    };
    let attention = match &options.attention {
        Choice::Nothing { .. } | Choice::Goal { .. } => None,
        Choice::Blocks(_) => Some(AttentionCut {
            blocks: listed,
            method: "blocks".to_owned(),
        }),
        Choice::Best { budget, method, .. } => {
            let n = budget.n_removed(n_trunk);
            let blocks = attention::choose(model, *method, importance, &removed, &keep, n)
                .with_context(at_path)?;
            Some(AttentionCut {
                blocks,
                method: method.to_string(),
            })
        }
    };
    if let Some(cut) = &attention {
        // The blocks that were chosen to go as a whole may have made another one the first.
        attention::check(model, &removed, &cut.blocks).with_context(at_path)?;
    }
    let rating = (calibrated.as_ref())
        .map(|calibrated| rate(calibrated, constraints, options, &keep, &removed));
    let confidence = match (&rating, &calibrated) {
        (Some(rating), Some(calibrated)) => {
            let allowed = calibrated.n_tokens_allowed;
            let stopped = options
                .confidence
                .map(|_| calibrated.report.tokens < allowed);
            Some(rating.report(allowed, stopped))
        }
        _ => None,
    };
    Ok(Selection {
        removed,
        shortlist,
        method,
        attention,
        importance: calibrated.map(|calibrated| calibrated.importance),
        calibration,
        search,
        goal: goal_report,
        journal,
        rating,
        confidence,
    })
}

/// How sure the scores are by which `removed` was chosen; where it was not, the scores alone.
fn rate(
    calibrated: &Calibrated,
    constraints: &Constraints,
    options: &Shorten,
    keep: &BTreeSet<BlockId>,
    removed: &BTreeSet<BlockId>,
) -> Rating {
    let chosen = Chosen {
        constraints,
        keep,
        removed,
    };
    let (method, chosen) = match &options.choice {
        Choice::Best { method, .. } | Choice::Goal { method, .. } if method.needs_scores() => {
            (*method, Some(chosen))
        }
        _ => (Method::Bi, None),
    };
    let confidence = options.confidence.unwrap_or_default();
    Rating::new(&calibrated.importance, method, confidence, chosen)
}

/// A size that is reached without any block but those for prediction.
fn without_trunk_blocks(limit: u64, n_bytes: u64) -> Selection {
    let value = Figure::Bytes(n_bytes);
    let step = StepReport::of_size(&BTreeSet::new(), value, Some(true));
    Selection {
        removed: BTreeSet::new(),
        shortlist: Vec::new(),
        method: "blocks".to_owned(),
        attention: None,
        importance: None,
        calibration: None,
        search: None,
        goal: Some(GoalReport::of_sizes(limit, n_bytes, vec![step])),
        journal: None,
        rating: None,
        confidence: None,
    }
}

/// The bytes of all files of the output without `removed`, which `method` chose.
fn n_bytes(
    model: &Model<'_>,
    constraints: &Constraints,
    input: &Input,
    options: &Shorten,
    removed: &BTreeSet<BlockId>,
    method: &str,
) -> Result<u64> {
    let plan = Plan::new(
        model,
        constraints,
        removed.clone(),
        &Provenance::draft(method),
    )?;
    let files = planned_files(model, &plan, input, options)?;
    Ok(files.iter().map(|file| file.bytes).sum())
}

/// The blocks whose attention goes by a list; checks that the model can lose attention if any may be asked for.
fn listed_attention(model: &Model<'_>, choice: &Choice) -> Result<BTreeSet<BlockId>> {
    match choice {
        Choice::Nothing { .. } | Choice::Goal { .. } => Ok(BTreeSet::new()),
        Choice::Best { .. } => attention::check_model(model).map(|()| BTreeSet::new()),
        Choice::Blocks(list) => {
            attention::check_model(model)?;
            list.blocks(model.n_blocks(), "remove the attention of")
        }
    }
}

/// The blocks that stay as they are, by a list.
fn kept_by_hand(
    model: &Model<'_>,
    constraints: &Constraints,
    options: &Shorten,
) -> Result<BTreeSet<BlockId>> {
    let mut kept = BTreeSet::new();
    for choice in [&options.choice, &options.attention] {
        if let Choice::Best {
            keep: Some(list), ..
        }
        | Choice::Goal {
            keep: Some(list), ..
        }
        | Choice::Nothing { keep: Some(list) } = choice
        {
            kept.extend(list.blocks(model.n_blocks(), "keep")?);
        }
    }
    if let Some(block) = kept.intersection(&constraints.dropped).next() {
        let why = match options.drop_mtp {
            true => "--drop-mtp removes it",
            false => "it has no tensors",
        };
        bail!("cannot keep block {block}: {why}");
    }
    Ok(kept)
}

/// Names the nearest set that is allowed, where there is one.
fn with_nearest(
    error: anyhow::Error,
    constraints: &Constraints,
    removed: &BTreeSet<BlockId>,
) -> anyhow::Error {
    match removal::nearest(constraints, removed) {
        Some(nearest) if error.downcast_ref::<Hint>().is_none() => {
            let nearest: Vec<usize> = nearest.iter().map(|block| block.index()).collect();
            error.context(Hint(format!(
                "the nearest allowed set is --blocks {}",
                block_list(&nearest)
            )))
        }
        _ => error,
    }
}

/// The importance matrix that the user names, and a place for the new one.
fn open_imatrix(
    input: &Input,
    target: Option<&Target>,
    options: &Shorten,
) -> Result<Option<ImatrixFile>> {
    let Some((from, to)) = &options.imatrix else {
        return Ok(None);
    };
    let output = target.map(Target::naming);
    // A dry run writes nothing over anything.
    let force = options.force || options.dry_run;
    let file = ImatrixFile::open(from, to, input, output, force)?;
    if let Some(json) = options
        .printing
        .json
        .as_ref()
        .filter(|_| options.printing.tables())
    {
        let json_naming = Naming::new(json, Splitting::Whole, input)?;
        ensure!(
            !json_naming.takes(to),
            "{}: is named for two results",
            to.display()
        );
        ensure!(
            !same_file::is_same_file(from, json).unwrap_or(false),
            "{}: is the importance matrix that is read",
            json.display()
        );
    }
    Ok(Some(file))
}

/// Which files beside the model no longer fit what is left of it.
fn stale_note(model: &Model<'_>, input: &Input, options: &Shorten) -> Option<String> {
    if options.printing.quiet {
        return None;
    }
    let named = options.imatrix.as_ref();
    let known: Vec<&Path> = named.map_or_else(Vec::new, |(from, to)| vec![from.as_path(), to]);
    let stale = stale(input, model.architecture(), &known);
    if stale.is_empty() {
        return None;
    }
    let files: Vec<_> = stale
        .iter()
        .map(|(name, kind)| format!("{} ({kind})", gguf::Quoted(name)))
        .collect();
    let has_imatrix = stale
        .iter()
        .any(|(_, kind)| *kind == Companion::Imatrix.to_string());
    let remedy = if has_imatrix && options.imatrix.is_none() {
        "; --imatrix IN OUT renumbers an importance matrix"
    } else {
        ""
    };
    Some(format!(
        "what goes by block number beside the model does not fit the shortened one: {}{remedy}",
        files.join(", ")
    ))
}

/// Checks that another result takes the place of no part of the output.
fn check_apart(target: &Target, other: &Path) -> Result<()> {
    ensure!(
        !target.naming().takes(other),
        "{}: is the output itself",
        other.display()
    );
    Ok(())
}

/// The files that would be written.
fn planned_files(
    model: &Model<'_>,
    plan: &Plan<'_>,
    input: &Input,
    options: &Shorten,
) -> Result<Vec<PartReport>> {
    let place = |path: &PathBuf| Naming::new(path, options.splitting, input)?.files(model, plan);
    let files = match options.output.as_ref().map(place).transpose()? {
        Some(files) => files
            .into_iter()
            .map(|(path, part)| (Some(path), part))
            .collect(),
        None => {
            let parts = parts::parts(model, plan, options.splitting)?;
            parts
                .into_iter()
                .map(|part| (None, part))
                .collect::<Vec<_>>()
        }
    };
    let report = |(path, part): (Option<PathBuf>, Part<'_>)| PartReport {
        path: path.map(|path| path.display().to_string()),
        bytes: part.layout.file_len(),
    };
    Ok(files.into_iter().map(report).collect())
}

/// Writes the planned files. Returns their plan, what they are, and the seconds that it took.
fn write<'a>(
    target: &Target,
    beside: Vec<Staged>,
    tell: &mut Tell<'_, 'a>,
    (input, model): (&Input, &Model<'a>),
    plan: &dyn Fn(blake3::Hash) -> Result<Plan<'a>>,
    printing: &Printing,
) -> Result<(Plan<'a>, Vec<Written>, f64)> {
    let bar = progress::bar("writing", Unit::Bytes, model.n_bytes(), printing.quiet);
    let start = Instant::now();
    let result = target.save_and_tell(beside, tell, input, model, plan, &mut |n_bytes| {
        bar.inc(n_bytes);
    });
    bar.finish_and_clear();
    let (plan, files) = result?;
    Ok((plan, files, start.elapsed().as_secs_f64()))
}
