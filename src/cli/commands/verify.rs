//! `verify`: whether a shortened model is its parent without the removed blocks.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use ggml::{Mapping, log};

use super::{arguments, check_json, devices, print_json, to_stdout};
use crate::cli::options::{Printing, Verify};
use crate::gguf::{self, Quoted};
use crate::measure::oracle::{self, Run, ZeroedBlocks};
use crate::model::Model;
use crate::model::input::Input;
use crate::model::outcome::ModelReport;
use crate::model::warning;
use crate::output::verify::{self, Claim, Verification, verify_weights, verify_with};
use crate::plan::imatrix::Imatrix;
use crate::plan::{ChangeKind, ChangedTensors, Constraints, TensorChange};
use crate::report::verification::{VerifyReport, screen};
use crate::watch::{Unit, Watch};

/// Runs the command.
///
/// # Errors
/// Anything that differs, after the result is shown; whatever keeps the two from being compared.
pub fn run(options: &Verify) -> Result<()> {
    let at_output = || options.output.display().to_string();
    let at_parent = || options.parent.display().to_string();
    devices::note_threads(options.threads, &options.printing);
    let output = Input::open(&options.output)?;
    let files = output.parse()?;
    let input = Input::open(&options.parent)?;
    check_json(&options.printing, &[&input, &output], &[])?;
    let parent = Model::new(input.parse()?).with_context(at_parent)?;
    let constraints = Constraints::new(&parent, options.trust_any_cut).with_context(at_parent)?;
    if options.run {
        oracle::check(&parent).with_context(at_parent)?;
    }

    for input in [&input, &output] {
        warning::of_store(input, &options.printing);
    }
    let start = Instant::now();
    let verification = compare(&parent, &constraints, &files, options).with_context(at_output);
    let seconds = start.elapsed().as_secs_f64();
    // Of another release, as far as the file says so.
    let claim = files.first().and_then(|file| Claim::of(file.metadata()).ok());
    let version = claim.as_ref().and_then(Claim::other_release);
    let faults = match (&verification, version) {
        (Ok(found), _) if found.differences.is_empty() => Vec::new(),
        (_, Some(version)) => verify::faults(version, &parent, &files),
        (_, None) => Vec::new(),
    };
    note_release(version, &faults, options);
    let verification = verification?;
    let run = match &verification.differences {
        differences if options.run && differences.is_empty() => {
            let changed = changed_tensors(&parent, &files, &verification);
            Some(evaluate(&parent, &input, &verification, &changed, &output, options)?)
        }
        // A run of a file that is not as planned proves nothing.
        _ => None,
    };
    let of_parent = ModelReport::of(&parent, &input, Some(verification.parent_blake3));
    let mut report = VerifyReport::new(&verification, &files, output.path(), of_parent, run, seconds);
    report.arguments = arguments();
    report.known_faults = faults;
    print(&report, &options.printing)?;
    if !report.verified {
        bail!("{}: {}", at_output(), verdict(&report));
    }
    Ok(())
}

/// Compares the bytes, on the threads that were asked for.
fn compare(
    parent: &Model<'_>,
    constraints: &Constraints,
    out: &[gguf::File<'_>],
    options: &Verify,
) -> Result<Verification> {
    let threads = rayon::ThreadPoolBuilder::new().num_threads(options.threads).build()?;
    let at_matrix = || options.imatrix.as_deref().unwrap_or(Path::new("")).display().to_string();
    let bar = options.printing.begin("comparing".into(), Unit::Bytes, parent.n_bytes());
    let mapping = options.imatrix.as_deref().map(Mapping::open).transpose().with_context(at_matrix)?;
    let imatrix = mapping.as_ref().map(|mapping| -> Result<_> {
        let imatrix = Imatrix::parse(mapping)?;
        imatrix.check(parent)?;
        Ok((imatrix, blake3::hash(mapping)))
    });
    let imatrix = imatrix.transpose().with_context(at_matrix)?;
    let imatrix = imatrix.as_ref().map(|(imatrix, hash)| (imatrix, *hash));
    let progress = |n_bytes| bar.advance(n_bytes);
    let result = threads.install(|| match options.weights {
        true => verify_weights(parent, constraints, out, imatrix, &progress),
        false => verify_with(parent, constraints, out, imatrix, &progress),
    });
    drop(bar);
    result
}

/// The output's weights where it claims to differ from the parent.
fn changed_tensors(
    parent: &Model<'_>,
    files: &[gguf::File<'_>],
    verification: &Verification,
) -> ChangedTensors {
    let healed = verify::healing(parent, &verification.claim, files).map(|healing| healing.tensors);
    let types = verify::types(parent, &verification.claim, files).map(|types| types.tensors);
    healed.into_iter().chain(types).flatten().collect()
}

/// Compares the logits.
fn evaluate(
    parent: &Model<'_>,
    input: &Input,
    verification: &Verification,
    changed: &ChangedTensors,
    output: &Input,
    options: &Verify,
) -> Result<Run> {
    let is_healed = |change: &TensorChange| {
        let source = |source: &usize| parent.tensors().get(*source).map(|tensor| tensor.info.name());
        let name = change.parent.as_deref();
        name.is_some() && changed.keys().any(|key| source(key) == name)
    };
    let is_rounded = |change: &&TensorChange| {
        matches!(change.change, ChangeKind::Changed | ChangeKind::New) && !is_healed(change)
    };
    if let Some(change) = verification.changes.iter().find(is_rounded) {
        bail!(
            "{}: cannot be compared by a run, bit for bit: tensor {} is {}",
            options.output.display(),
            Quoted(change.tensor.as_deref().unwrap_or_default()),
            change.why
        );
    }
    if verification.experts.is_some() {
        bail!(
            "{}: cannot be compared by a run: with zeros in place of an expert's weights the router still chooses it",
            options.output.display()
        );
    }
    log::echo(options.printing.verbose);
    let zeroed = ZeroedBlocks::with_attention(parent, &verification.removed, &verification.attention_removed)
        .with_context(|| input.path().display().to_string())?;
    oracle::run(&zeroed, parent, input, changed, output.path(), options.threads)
}

/// Notes that another release wrote the file, and its possible faults.
fn note_release(version: Option<&str>, faults: &[String], options: &Verify) {
    let Some(version) = version.filter(|_| !options.printing.quiet) else {
        return;
    };
    eprintln!(
        "gguf-shorten: note: {} was written by version {}, this is {}",
        options.output.display(),
        Quoted(version),
        env!("CARGO_PKG_VERSION")
    );
    for fault in faults {
        eprintln!("gguf-shorten: note: version {} {fault}", Quoted(version));
    }
}

fn print(report: &VerifyReport, printing: &Printing) -> Result<()> {
    if printing.tables() {
        to_stdout(&screen(report))?;
    }
    print_json(report, printing)
}

/// Why a model is not verified.
fn verdict(report: &VerifyReport) -> String {
    let parent = &report.parent.path;
    if let Some(first) = report.differences.first() {
        let others = match report.difference_count {
            1 => String::new(),
            n => format!(" (and {} more)", n - 1),
        };
        let is_not = match report.weights {
            Some(_) => "has not the weights of",
            None => "is not what gguf-shorten makes of",
        };
        return format!("{is_not} {parent}: {first}{others}");
    }
    let different = report.run.map_or(0, |run| run.floats_different);
    format!("computes something else than {parent} without those blocks: {different} logits differ")
}
