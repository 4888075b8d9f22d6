//! Calibrate: the scores of every block of a model on a text, measured or from the cache.

use std::borrow::Cow;
use std::time::Instant;

use anyhow::{Context, Result};
use ggml::ContextOptions;

use crate::engine::blockwise::need::Way;
use crate::engine::conversion::Conversion;
use crate::engine::experts::RoutedSums;
use crate::engine::hidden_state::{HiddenStates, Token};
use crate::engine::imatrix::{self, Collector, Gathers};
use crate::engine::llama::{self, Halves, LlamaHiddenStates, StreamGraph};
use crate::engine::load::{Loaded, Weights, load_and_cut};
use crate::engine::order;
use crate::engine::outcome::CalibrationReport;
use crate::engine::segment::SegmentOf;
use crate::engine::settings::Calibration;
use crate::engine::text::CalibrationSet;
use crate::error;
use crate::files::stamp::now_ns;
use crate::measure::blockwise::{self, Kept, Measured, Wanted};
use crate::measure::cache::cached::CachedScores;
use crate::measure::cache::{Entry, Scored};
use crate::measure::importance::{Importance, Measuring};
use crate::measure::pairs::{Paired, Pairs};
use crate::model::input::Input;
use crate::model::{Model, hashes, warning};
use crate::output::Parent;
use crate::plan::imatrix::measured::MeasuredImatrix;
use crate::watch::{Silent, Unit, Watch};

/// Scores of blocks, and the text that they are of.
pub(crate) struct Calibrated {
    pub(crate) importance: Importance,
    /// Of the windows that were evaluated.
    pub(crate) report: CalibrationReport,
    /// Tokens that might have been evaluated.
    pub(crate) n_tokens_allowed: usize,
    /// The importance matrix of the evaluated windows, where it was asked for.
    pub(crate) imatrix: Option<MeasuredImatrix>,
    /// What experts do in those windows; empty where it was not asked for.
    pub(crate) experts: RoutedSums,
}

/// Makes the rule by which a calibration of so many windows ends.
pub(crate) type Until<'u> = dyn Fn(usize) -> Box<dyn Fn(&Measuring) -> bool + 'u> + 'u;

/// Measurements of a calibration beside whole blocks' scores, and its end.
#[derive(Default)]
pub(crate) struct Extras<'c, 'u> {
    /// The scores of the two halves of each block.
    pub(crate) sub_blocks: bool,
    /// How alike hidden states of any two positions are. Of all windows that are evaluated.
    pub(crate) pairs: Option<&'c mut Pairs>,
    /// The rule by which the calibration ends early.
    pub(crate) until: Option<&'c Until<'u>>,
    /// The importance matrix of the unchanged model, and what experts do.
    pub(crate) gathers: Gathers,
}

/// Measures the importance of `parent`'s blocks, and all else of `extras`. Scores that were measured before come from the
/// cache.
pub(crate) fn calibrate(
    parent: Parent<'_>,
    options: &Calibration,
    watch: &dyn Watch,
    extras: Extras<'_, '_>,
) -> Result<Calibrated> {
    let Parent { input, model, .. } = parent;
    let at_path = || parent.name();
    llama::check_ends(model).with_context(at_path)?;
    let options = &*unconverted(options, extras.gathers);
    let gathers = extras.gathers;
    let kept = Kept { states: extras.pairs.is_some(), gathers };
    let mut hash = hashes::known(input, watch);
    // What does not fit is hashed while it is read.
    if hash.is_none() && options.cache && blockwise::way(parent, options, kept)? == Way::Whole {
        hash = Some(hashes::remembered(input, watch));
    }
    let known = Known::look(hash, options, watch, &extras)?;
    if let Some(found) = known.found(model, &extras) {
        warning::of_tokenizer(input, model, watch);
        warn_of_zero_rows(&found.importance, watch);
        return Ok(found);
    }
    let start_ns = now_ns();
    let measured = evaluate(parent, options, watch, extras, kept)?;
    let Measured { importance, set, seconds, conversion, hash: read, gathered } = measured;
    warn_of_zero_rows(&importance, watch);
    let mut report = CalibrationReport {
        windows: importance.n_windows,
        tokens: importance.n_tokens,
        conversion,
        ..CalibrationReport::new(&set, seconds)
    };
    if let Some(read) = read.filter(|_| hash.is_none() && options.cache) {
        input.check_unchanged()?;
        hashes::remember(input, read, start_ns, watch);
        hash = Some(read);
    }
    if let Some(hash) = hash {
        known.keep(input, hash, &mut report, &importance, &gathered.experts);
    }
    let imatrix = gathers.imatrix.then_some(gathered.imatrix).map(|sums| MeasuredImatrix {
        sums,
        datasets: set.source.names(),
        n_windows: importance.n_windows,
        window: set.window,
    });
    Ok(Calibrated {
        importance,
        report,
        n_tokens_allowed: set.n_tokens(),
        imatrix,
        experts: gathered.experts,
    })
}

/// The scores in the cache, or their places there.
struct Known<'w> {
    blocks: Option<CachedScores<'w>>,
    experts: Option<CachedScores<'w>>,
}

impl<'w> Known<'w> {
    fn look(
        hash: Option<blake3::Hash>,
        options: &Calibration,
        watch: &'w dyn Watch,
        extras: &Extras<'_, '_>,
    ) -> Result<Self> {
        // As many windows as a rule needs are no entry.
        let look = |scored, is_wanted: bool| match is_wanted && extras.until.is_none() {
            true => CachedScores::look(hash, options, watch, scored),
            false => Ok(None),
        };
        let blocks = if extras.sub_blocks { Scored::Halves } else { Scored::Blocks };
        Ok(Self { blocks: look(blocks, true)?, experts: look(Scored::Experts, extras.gathers.experts)? })
    }

    /// All that is wanted of `model`, if it is there. Pairs of positions and importance matrices are not kept.
    fn found(&self, model: &Model<'_>, extras: &Extras<'_, '_>) -> Option<Calibrated> {
        if extras.pairs.is_some() || extras.gathers.imatrix {
            return None;
        }
        let n_blocks = model.n_trunk_blocks();
        let (entry, report) = self.blocks.as_ref()?.found()?;
        let importance = entry.blocks(n_blocks)?;
        let experts = match extras.gathers.experts {
            true => self.experts.as_ref()?.found()?.0.experts(n_blocks)?,
            false => RoutedSums::default(),
        };
        let n_tokens_allowed = importance.n_tokens;
        Some(Calibrated { n_tokens_allowed, importance, report, imatrix: None, experts })
    }

    /// Keeps what was measured of the model whose files have this hash.
    fn keep(
        self,
        input: &Input,
        hash: blake3::Hash,
        report: &mut CalibrationReport,
        importance: &Importance,
        experts: &RoutedSums,
    ) {
        if let Some(known) = self.blocks {
            report.scored = Some(hash);
            known.keep(input, hash, report, |key, path, measured| {
                Entry::of_blocks(key, path, measured, importance)
            });
        }
        if let Some(known) = self.experts {
            known.keep(input, hash, report, |key, path, measured| {
                Entry::of_experts(key, path, measured, experts)
            });
        }
    }
}

/// `options`, for an importance matrix without conversion: it adds up what the weights of the file multiply.
pub(crate) fn unconverted(options: &Calibration, gathers: Gathers) -> Cow<'_, Calibration> {
    match gathers.imatrix {
        true => Cow::Owned(Calibration { conversion: Some(Conversion::None), ..options.clone() }),
        false => Cow::Borrowed(options),
    }
}

/// Evaluates the whole model, or all windows block by block.
fn evaluate(
    parent: Parent<'_>,
    options: &Calibration,
    watch: &dyn Watch,
    mut extras: Extras<'_, '_>,
    kept: Kept,
) -> Result<Measured> {
    let Parent { model, constraints, .. } = parent;
    let halves = match extras.sub_blocks {
        true => {
            Some(Halves::of(model, constraints.rules, &constraints.kinds).with_context(|| parent.name())?)
        }
        false => None,
    };
    let way = match extras.until {
        None => blockwise::way_of_scores(parent, options, kept)?,
        Some(_) => blockwise::way(parent, options, kept)?,
    };
    match way {
        Way::Whole => as_whole(parent, options, watch, extras, halves),
        way => {
            let pairs = extras.pairs.as_deref_mut();
            let wanted = Wanted { pairs, halves: halves.clone(), gathers: extras.gathers };
            match blockwise::by_blocks(parent, options, watch, wanted, way) {
                Err(error) if error.is::<SegmentOf>() && blockwise::fits(parent, options, kept) => {
                    watch.note(&format!("the whole model is evaluated, since {}", error::message(&error)));
                    as_whole(parent, options, watch, extras, halves)
                }
                measured => measured,
            }
        }
    }
}

/// Evaluates the whole model, window by window.
fn as_whole(
    parent: Parent<'_>,
    options: &Calibration,
    watch: &dyn Watch,
    extras: Extras<'_, '_>,
    halves: Option<Halves>,
) -> Result<Measured> {
    let Parent { input, model, constraints } = parent;
    let at_path = || parent.name();
    let Loaded { engine, set, conversion } =
        load_and_cut(input, model, options, watch, Weights::of_scores(options))?;
    if extras.gathers.imatrix {
        imatrix::check_window(set.window).with_context(at_path)?;
    }
    let is_enough = extras.until.map(|until| until(set.windows().len()));
    let mut states = LlamaHiddenStates::new(
        &engine,
        ContextOptions { window: set.window, threads: options.threads },
        StreamGraph::of(model, &engine, constraints.rules.stream)?,
    )
    .with_context(at_path)?
    .with_halves(halves)
    .with_collector(extras.gathers.any().then(|| Collector::of(extras.gathers)));
    let start = Instant::now();
    let importance = match extras.pairs {
        None => measure(&mut states, &set, is_enough.as_deref(), watch),
        Some(pairs) => {
            let mut states = Paired::new(&mut states, pairs);
            measure(&mut states, &set, is_enough.as_deref(), watch)
        }
    };
    let importance = importance.with_context(at_path)?;
    let seconds = start.elapsed().as_secs_f64();
    let gathered = states.into_collector().map(Collector::into_gathered).unwrap_or_default();
    Ok(Measured { importance, set, seconds, conversion, hash: None, gathered })
}

/// The importance of all blocks by the windows of `set`. Where fewer are enough, by those.
fn measure(
    states: &mut dyn HiddenStates,
    set: &CalibrationSet,
    is_enough: Option<&dyn Fn(&Measuring) -> bool>,
    watch: &dyn Watch,
) -> Result<Importance> {
    let bar = watch.begin("calibrating".into(), Unit::Tokens, set.n_tokens() as u64);
    match is_enough {
        None => Importance::measure(states, set.windows(), &mut |n_tokens| {
            bar.advance(n_tokens as u64);
        }),
        Some(is_enough) => measure_until(states, set, &mut |measuring, n_tokens| {
            bar.advance(n_tokens as u64);
            is_enough(measuring)
        }),
    }
}

/// Evaluates windows in random order until `is_enough`, or the end. It is called with the tokens of each.
fn measure_until(
    states: &mut dyn HiddenStates,
    set: &CalibrationSet,
    is_enough: &mut dyn FnMut(&Measuring, usize) -> bool,
) -> Result<Importance> {
    let windows: Vec<&[Token]> = set.windows().collect();
    let mut measuring = Measuring::new(states.n_blocks());
    for number in order::order(windows.len(), set.blake3) {
        measuring.window(states, number, windows[number])?;
        if is_enough(&measuring, windows[number].len()) {
            break;
        }
    }
    measuring.importance()
}

pub(crate) fn warn_of_zero_rows(importance: &Importance, watch: &dyn Watch) {
    let rows: u64 = importance.blocks.iter().map(|block| block.n_zero_rows).sum();
    if rows > 0 {
        watch.note(&format!("{rows} hidden states of a token are all zeros and take no part in the scores"));
    }
}

/// Measures the importance of every block of `parent` with llama.cpp. With `options.cache` scores
/// that were measured before come from the cache ([`crate::measure::cache`]), and new ones go there.
///
/// # Errors
/// Whatever keeps the model from being evaluated: a text that is too short, no tokenizer, what llama.cpp refuses.
pub fn score(parent: Parent<'_>, options: &Calibration) -> Result<Importance> {
    Ok(calibrate(parent, options, &Silent, Extras::default())?.importance)
}
