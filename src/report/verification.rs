//! What a verification found, as JSON and as text.

use std::fmt::Write as _;

use indicatif::{DecimalBytes, HumanCount};
use serde::Serialize;

use super::lines;
use crate::gguf;
use crate::measure::oracle::Run;
use crate::model::block::{block_list, counted};
use crate::model::outcome::ModelReport;
use crate::output::outcome::ExpertsReport;
use crate::output::verify::{BlocksBy, MetadataCounts, Rounded, Verification, Weights};
use crate::plan::{ChangeKind, TensorChange};
use std::path::Path;

/// The result of `verify`. Its fields are the JSON contract: unknown values are null, never left out.
#[derive(Clone, Debug, Serialize)]
pub struct VerifyReport {
    /// Version of this program.
    pub gguf_shorten: &'static str,
    /// Version of the bundled llama.cpp.
    pub llama_cpp: &'static str,
    /// The command line, without the program's name; empty where there was none.
    pub arguments: Vec<String>,
    /// Whether nothing differs.
    pub verified: bool,
    /// The shortened model.
    pub output: VerifiedReport,
    /// The model that it was made from.
    pub parent: ModelReport,
    /// Hash of the parent, as the shortened model says.
    pub recorded_blake3: Option<String>,
    /// The blocks that were left out, in the parent's numbering.
    pub removed: Vec<usize>,
    /// Why the rules refuse this cut, where it was taken on trust. Null if they allow it.
    pub on_trust: Option<String>,
    /// The blocks whose attention was left out, in the parent's numbering.
    pub attention_removed: Vec<usize>,
    /// The experts that were kept; null where none were left out.
    pub experts: Option<ExpertsReport>,
    /// Metadata entries.
    pub metadata: MetadataCounts,
    /// Tensors whose data was compared.
    pub tensors: usize,
    /// Bytes of that data.
    pub tensor_bytes: u64,
    /// Planned tensors that differ from the parent's, and those left out.
    pub changes: Vec<TensorChange>,
    /// How the tensors in other types were proven; null where there are none.
    pub rounded: Option<Rounded>,
    /// How weights alone were compared; null where every byte was.
    pub weights: Option<Weights>,
    /// How many things differ.
    pub difference_count: usize,
    /// The first few of them.
    pub differences: Vec<String>,
    /// What the earlier release that wrote the file may have done wrong. Of a verified file, nothing.
    pub known_faults: Vec<String>,
    /// The run with llama.cpp; null if there was none.
    pub run: Option<Run>,
    /// Bytes of both models.
    pub bytes: u64,
    /// Time of the comparison, without the run.
    pub seconds: f64,
}

/// The shortened model.
#[derive(Clone, Debug, Serialize)]
pub struct VerifiedReport {
    /// Where it is; of a split model, its first part.
    pub path: String,
    /// The release that wrote it.
    pub version: Option<String>,
    /// How the blocks were chosen.
    pub method: Option<String>,
    /// What made up for the removed blocks.
    pub heal: Option<String>,
    /// Number of blocks.
    pub block_count: usize,
    /// Bytes of all files.
    pub bytes: u64,
    /// Number of weights.
    pub parameters: u64,
}

impl VerifyReport {
    /// Of a comparison of `out`, at `path`, with `parent` that took `seconds`.
    #[must_use]
    pub fn new(
        verification: &Verification,
        out: &[gguf::File<'_>],
        path: &Path,
        parent: ModelReport,
        run: Option<Run>,
        seconds: f64,
    ) -> Self {
        let claim = &verification.claim;
        let bytes = out.iter().map(|file| file.bytes().len() as u64).sum();
        let same_floats = run.is_none_or(|run| run.floats_different == 0);
        Self {
            gguf_shorten: env!("CARGO_PKG_VERSION"),
            llama_cpp: ggml::backend::llama_cpp_version(),
            arguments: Vec::new(),
            verified: verification.differences.is_empty() && same_floats,
            output: VerifiedReport {
                path: path.display().to_string(),
                version: claim.version.clone(),
                method: claim.method.clone(),
                heal: claim.heal.clone(),
                block_count: claim.kept.len(),
                bytes,
                parameters: out
                    .iter()
                    .flat_map(|file| file.tensors())
                    .map(gguf::TensorInfo::n_elements)
                    .sum(),
            },
            bytes: bytes + parent.bytes,
            parent,
            recorded_blake3: claim.parent_blake3.map(|hash| hash.to_hex().to_string()),
            removed: verification.removed.iter().map(|block| block.index()).collect(),
            on_trust: verification.on_trust.clone(),
            attention_removed: verification.attention_removed.iter().map(|block| block.index()).collect(),
            experts: verification.experts.clone(),
            metadata: verification.metadata,
            tensors: verification.n_tensors,
            tensor_bytes: verification.n_tensor_bytes,
            changes: verification.changes.clone(),
            rounded: verification.rounded.clone(),
            weights: verification.weights,
            difference_count: verification.differences.len(),
            differences: verification.differences.first().iter().map(ToString::to_string).collect(),
            known_faults: Vec::new(),
            run,
            seconds,
        }
    }
}

/// The result on one screen.
#[must_use]
pub fn screen(report: &VerifyReport) -> String {
    let mut text = String::new();
    let output = &report.output;
    let _ = writeln!(
        text,
        "output   {}: {}, {} parameters, {}, written by version {}",
        output.path,
        counted(output.block_count),
        HumanCount(output.parameters),
        DecimalBytes(output.bytes),
        gguf::Quoted(output.version.as_deref().unwrap_or("unknown"))
    );
    let _ = writeln!(text, "parent   {}", lines::model(&report.parent));
    let hash = report.parent.blake3.as_deref().unwrap_or_default();
    let recorded = report.recorded_blake3.as_deref() == Some(hash);
    let _ = writeln!(
        text,
        "         blake3 {hash}, {}",
        match (recorded, &report.recorded_blake3) {
            (true, _) => "as recorded",
            (false, None) => "none is recorded",
            (false, Some(_)) => "not as recorded",
        }
    );
    if report.weights.is_some_and(|weights| weights.blocks_by == BlocksBy::Bytes) {
        text.push_str("blocks   found by their bytes, not by what the file says\n");
    }
    let _ = writeln!(
        text,
        "removed  {}",
        lines::removed(
            &report.removed,
            &report.parent,
            &format!("by {}", gguf::Quoted(output.method.as_deref().unwrap_or("unknown")))
        )
    );
    if !report.attention_removed.is_empty() {
        let _ = writeln!(
            text,
            "         attention of {} ({})",
            block_list(&report.attention_removed),
            counted(report.attention_removed.len())
        );
    }
    if let Some(experts) = &report.experts {
        let _ = writeln!(text, "experts  {experts} (by {})", gguf::Quoted(&experts.method));
    }
    let _ = writeln!(text, "metadata {}", metadata(report));
    let _ = writeln!(
        text,
        "tensors  {} compared, {}{}",
        HumanCount(report.tensors as u64),
        DecimalBytes(report.tensor_bytes),
        planned_as(report)
    );
    text.push_str(&lines::changes(&report.changes));
    if let Some(rounded) = &report.rounded {
        let _ = writeln!(text, "types    {}", proven(rounded));
    }
    if let Some(run) = &report.run {
        let _ = writeln!(text, "run      {}", evaluated(run));
    }
    if let Some(why) = &report.on_trust {
        let _ = writeln!(text, "on trust {}", trusted(report, why));
    }
    let verdict = if report.verified { "verified" } else { "DIFFERS " };
    let _ = writeln!(text, "{verdict} {}", took(report));
    for difference in &report.differences {
        let _ = writeln!(text, "  {difference}");
    }
    let n_more = report.difference_count - report.differences.len();
    if n_more > 0 {
        let _ = writeln!(text, "  and {} more", HumanCount(n_more as u64));
    }
    text
}

/// What was compared of the metadata.
fn metadata(report: &VerifyReport) -> String {
    let Some(weights) = report.weights else {
        let MetadataCounts { kept, changed, added, left_out } = report.metadata;
        return format!("{kept} kept, {changed} changed, {added} added, {left_out} left out");
    };
    let of_other_types = match weights.other_types {
        0 => String::new(),
        n => format!(", {n} of another type"),
    };
    format!(
        "{} of the computation compared by value{of_other_types}; {} others not compared",
        weights.metadata, weights.metadata_ignored
    )
}

/// How tensors in other types were proven.
fn proven(rounded: &Rounded) -> String {
    let again = format!("{} tensors rounded again, bit for bit the same", rounded.recomputed);
    match &rounded.why {
        None => again,
        Some(why) => format!("{again}; {} by their recorded hash, since {why}", rounded.by_hash),
    }
}

/// What a run has shown of a cut that the rules refuse.
fn trusted(report: &VerifyReport, why: &str) -> String {
    let proof = match &report.run {
        Some(run) if run.floats_different == 0 => {
            "that the model computes the parent without those blocks is shown for the run's tokens alone"
        }
        Some(_) => "the model computes something else than the parent without those blocks",
        None => "that the model computes the parent without those blocks was not checked",
    };
    format!("{proof}; the rules refuse this cut: {why}")
}

/// How many tensors are planned in which way. Not all are the parent's with all their bytes.
fn planned_as(report: &VerifyReport) -> String {
    let count = |kind| {
        let changes = report.changes.iter();
        changes.filter(|change| change.change == kind).count()
    };
    let (sliced, new) = (count(ChangeKind::Sliced), count(ChangeKind::New));
    let (changed, left_out) = (count(ChangeKind::Changed), count(ChangeKind::LeftOut));
    if report.changes.is_empty() {
        return String::new();
    }
    let kept = report.tensors.saturating_sub(sliced + changed + new);
    format!(": {kept} identical, {sliced} sliced, {changed} changed, {new} new, {left_out} left out")
}

fn took(report: &VerifyReport) -> String {
    let rate = report.bytes as f64 / report.seconds / 1e9;
    format!("{} of both files in {:.3} s ({rate:.2} GB/s)", DecimalBytes(report.bytes), report.seconds)
}

fn evaluated(run: &Run) -> String {
    let past = match run.sliding_window {
        Some(window) if window < run.tokens => format!(", past a sliding window of {window}"),
        Some(window) => format!(", not past the sliding window of {window}"),
        None => String::new(),
    };
    format!(
        "{} tokens{past}: {} floats, {} differ, {:.1} s",
        HumanCount(run.tokens as u64),
        HumanCount(run.floats),
        HumanCount(run.floats_different),
        run.seconds
    )
}
