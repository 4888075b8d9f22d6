//! `score`: the importance of every block.

use anyhow::{Context, Result, bail};

use super::{arguments, devices, note_counts, print};
use crate::choose::ablated::{self, Ablated};
use crate::choose::outcome::{BlockReport, PairsReport, block_rows};
use crate::choose::rating::{AgainstReport, ConfidenceReport, Rating, Sets};
use crate::choose::removal;
use crate::choose::scored::scored;
use crate::choose::stability::Goal;
use crate::choose::stability::Stopping;
use crate::choose::stability::ties::Chosen;
use crate::cli::options::Score;
use crate::engine::imatrix::Gathers;
use crate::engine::logits as evaluator;
use crate::engine::settings::Calibration;
use crate::engine::text::Texts;
use crate::measure::calibrate::{Calibrated, Extras, Until};
use crate::measure::experts;
use crate::measure::pairs::Pairs;
use crate::model::block::{BlockSet, numbers};
use crate::model::input::Input;
use crate::model::outcome::ModelReport;
use crate::model::{Model, warning};
use crate::output::Parent;
use crate::output::outputs::Outputs;
use crate::plan::experts::Mixture;
use crate::plan::{Budget, Constraints};
use crate::report::Report;

/// Runs the command.
///
/// # Errors
/// Whatever keeps the model from being scored.
pub fn run(options: &Score) -> Result<()> {
    let printing = &options.printing;
    devices::warn(&options.calibration, printing);
    let input = Input::open(&options.model)?;
    let at_path = || options.model.display().to_string();
    let model = Model::new(input.parse()?).with_context(at_path)?;
    let constraints = Constraints::of(&model).with_context(at_path)?;
    let parent = Parent { input: &input, model: &model, constraints: &constraints };
    let outputs = Outputs::claim(parent, &options.files)?;
    let keep = kept(&model, &constraints, options).with_context(at_path)?;
    let n = options.budget.map(|budget| budget.n_removed(model.n_trunk_blocks()));
    if let Some(n) = n {
        removal::check(&constraints, &keep, n).with_context(at_path)?;
    }
    if options.experts {
        Mixture::of(&model).with_context(at_path)?;
    }
    if options.ablate {
        evaluator::check_causal(&model).with_context(at_path)?;
    }
    if let Some(text) = &options.against {
        // Faults of it are found before the first text is measured.
        Texts::read(text.source.clone())?;
    }
    warning::of_weights(&input, &model, printing);
    note_counts(&model, &input, printing);
    let scoring = Scoring { parent, options, keep: &keep, n };
    let mut pairs = Pairs::default();
    let extras = Extras {
        pairs: options.pairs.then_some(&mut pairs),
        gathers: Gathers { imatrix: options.files.imatrix_out.is_some(), experts: options.experts },
        ..Extras::default()
    };
    let mut here = scoring.measure(&options.calibration, extras)?;
    let matrix = here.calibrated.imatrix.take();
    let there = options.against.as_ref();
    let there = there.map(|text| scoring.measure(text, Extras::default())).transpose()?;
    let ablated =
        options.ablate.then(|| ablated::measure(parent, &options.calibration, printing)).transpose()?;
    let mut blocks = scoring.rows(&here);
    if let Some(ablated) = &ablated {
        for (row, loss) in blocks.iter_mut().zip(&ablated.losses) {
            row.ablate_kl = loss.map(|loss| loss.kl_divergence());
            row.ablate_perplexity = loss.map(|loss| loss.perplexity());
        }
    }
    let against = there.map(|there| scoring.compare(&here, there)).transpose();
    let against = against.with_context(at_path)?;
    let blake3 = printing.json.is_some().then(|| input.blake3_once());
    let model = ModelReport::of(&model, &input, blake3);
    let imatrix_out = outputs.write_measured(matrix.as_ref())?;
    let expert_scores = options.experts.then(|| experts::scores(&here.calibrated.experts));
    let report = Report {
        confidence: Some(here.confidence()),
        calibration: Some(here.calibrated.report),
        against,
        ablate: ablated.map(Ablated::report),
        removed: numbers(&here.removed),
        pairs: options.pairs.then(|| PairsReport { cosine: pairs.cosine() }),
        imatrix_out,
        expert_scores,
        ..Report::new(arguments(), model, options.method.to_string(), blocks)
    };
    print(&report, printing)
}

/// The blocks that the user keeps.
fn kept(model: &Model<'_>, constraints: &Constraints, options: &Score) -> Result<BlockSet> {
    let keep = match &options.keep {
        Some(list) => list.blocks(model.n_blocks(), "keep")?,
        None => BlockSet::new(),
    };
    if let Some(block) = keep.intersection(&constraints.dropped).next() {
        bail!("cannot keep block {block}: it has no tensors");
    }
    Ok(keep)
}

/// The measurements of each text.
struct Scoring<'s> {
    parent: Parent<'s>,
    options: &'s Score,
    keep: &'s BlockSet,
    /// The number of blocks that would be removed.
    n: Option<usize>,
}

/// The scores by a text.
struct Scored {
    calibrated: Calibrated,
    /// Blocks that would be removed.
    removed: BlockSet,
    rating: Rating,
    /// Whether the text was to be used only as needed.
    may_stop: bool,
}

impl Scored {
    fn confidence(&self) -> ConfidenceReport {
        let allowed = self.calibrated.n_tokens_allowed;
        let stopped = self.calibrated.report.tokens < allowed;
        self.rating.report(allowed, self.may_stop.then_some(stopped))
    }
}

impl Scoring<'_> {
    fn measure(&self, text: &Calibration, extras: Extras<'_, '_>) -> Result<Scored> {
        let options = self.options;
        let goal = match (options.confidence, self.n) {
            (Some(confidence), Some(n)) => {
                Some(Goal { method: options.method, n, keep: self.keep, confidence })
            }
            _ => None,
        };
        let constraints = self.parent.constraints;
        let until = goal.map(|goal| Stopping::rule(constraints, goal));
        let until = until.as_ref().map(|until| until as &Until<'_>);
        let extras = Extras { sub_blocks: options.sub_blocks, until, ..extras };
        let calibrated = scored(self.parent, options.method, text, &options.printing, extras)?;
        let removed = match self.n {
            Some(n) => self.choose(&calibrated, n)?,
            None => BlockSet::new(),
        };
        let chosen = self.n.map(|_| Chosen { constraints, keep: self.keep, removed: &removed });
        let confidence = options.confidence.unwrap_or_default();
        let rating = Rating::new(&calibrated.importance, options.method, confidence, chosen);
        Ok(Scored { calibrated, removed, rating, may_stop: goal.is_some() })
    }

    fn choose(&self, calibrated: &Calibrated, n: usize) -> Result<BlockSet> {
        let importance = Some(&calibrated.importance);
        removal::choose(self.parent.constraints, self.options.method, importance, self.keep, n)
            .with_context(|| self.options.model.display().to_string())
    }

    fn rows(&self, scored: &Scored) -> Vec<BlockReport> {
        let importance = Some(&scored.calibrated.importance);
        let n_blocks = self.parent.model.n_blocks();
        let mut rows = block_rows(n_blocks, importance, &scored.removed, &BlockSet::new());
        scored.rating.mark(&mut rows);
        rows
    }

    /// Without a number of blocks, the sets of a quarter are compared.
    fn compare(&self, here: &Scored, there: Scored) -> Result<AgainstReport> {
        const SHARE: Budget = Budget::Percent(25.0);
        let n = self.n.or_else(|| {
            let n = SHARE.n_removed(self.parent.model.n_trunk_blocks());
            let is_allowed = removal::check(self.parent.constraints, self.keep, n).is_ok();
            is_allowed.then_some(n)
        });
        let sets = n
            .map(|n| {
                anyhow::Ok(Sets {
                    here: self.choose(&here.calibrated, n)?,
                    there: self.choose(&there.calibrated, n)?,
                })
            })
            .transpose()?;
        let importances = [&here.calibrated.importance, &there.calibrated.importance];
        let (rows, confidence) = (self.rows(&there), there.confidence());
        Ok(AgainstReport::new(
            self.options.method,
            importances,
            sets.as_ref(),
            rows,
            there.calibrated.report.clone(),
            confidence,
        ))
    }
}
