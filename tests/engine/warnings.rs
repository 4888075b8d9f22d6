//! What is said of a model whose numbers may mean something else. And of one that llama.cpp does not load.

use std::path::Path;

use ggml::Backend;
use gguf_shorten::gguf::{File, ValueOut};

use crate::eval::byte_model;
use crate::program::{self, failure, program};
use crate::random_model::{N_VOCAB, Spec};
use crate::support::shorten;

/// A model of the 256 bytes as BPE, with this pre-tokenizer.
fn bpe_model(pre: Option<&str>) -> Spec<'static> {
    let mut spec = Spec::new("llama", 4);
    // As GPT-2 writes bytes: those that are no printable characters after all others.
    let mut n_others = 0;
    let tokens: Vec<String> = (0..N_VOCAB as u32)
        .map(|byte| match byte {
            33..=126 | 161..=172 | 174..=255 => char::from_u32(byte),
            _ => {
                n_others += 1;
                char::from_u32(255 + n_others)
            }
        })
        .map(|character| character.unwrap().to_string())
        .collect();
    spec.extra.extend([
        ("tokenizer.ggml.model", ValueOut::string("gpt2")),
        ("tokenizer.ggml.tokens", ValueOut::strings(&tokens)),
        ("tokenizer.ggml.merges", ValueOut::strings(&["t h"])),
        ("tokenizer.ggml.eos_token_id", ValueOut::u32(2)),
    ]);
    if let Some(pre) = pre {
        spec.extra.push(("tokenizer.ggml.pre", ValueOut::string(pre)));
    }
    spec
}

const TEXT: &str = "--tokens 96 --window 32 -t 1";

/// What the program says beside its result, which it gives.
fn stderr(dir: &Path, arguments: &str) -> String {
    let output = program(dir, &format!("{arguments} {TEXT}"));
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stderr).unwrap()
}

const MISSING: &str = "metadata 'tokenizer.ggml.pre' is missing: llama.cpp then cuts text by a default rule, into other \
                       tokens than most models were trained on, which costs quality; converting the model again adds it";

#[test]
fn a_vocabulary_without_pre_tokenizer_is_told_of_where_text_is_cut() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let save = |pre, name: &str| {
        bpe_model(pre).save(Backend::init(), &dir.join(name)).unwrap();
    };
    save(Some("llama-bpe"), "with.gguf");
    save(None, "without.gguf");
    let warning = format!("gguf-shorten: warning: without.gguf: {MISSING}\n");
    for command in [
        "score # --no-cache",
        "eval #",
        "# --drop 1 -o out.gguf --force --no-cache",
        "# --drop 1 --method run --dry-run --no-cache",
        "# --drop 1 --method search --dry-run --no-cache",
        "compare # --drop 1 --no-cache",
    ] {
        let of = |name| stderr(dir, &command.replace('#', name));
        assert_eq!(of("with.gguf"), "", "{command}");
        // Once, however often text is cut.
        assert_eq!(of("without.gguf"), warning, "{command}");
    }
    assert_eq!(stderr(dir, "score without.gguf -q --no-cache"), "");
    // No text, no word.
    let output = program(dir, "without.gguf --blocks 1 -o out.gguf --force");
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    // Models that differ in that alone are noted, despite equal predictions.
    let differ = |name: &str, own: &str, parent: &str| {
        format!(
            "gguf-shorten: warning: {name}: metadata 'tokenizer.ggml.pre' is {own}, but {parent} in the parent: here both \
             are scored on the same tokens, which hides that each cuts text in its own way\n"
        )
    };
    let missing = differ("without.gguf", "missing", "'llama-bpe'");
    for command in ["eval without.gguf --parent with.gguf", "compare with.gguf without.gguf"] {
        assert_eq!(stderr(dir, command), format!("{warning}{missing}"));
    }
    save(Some("gpt-2"), "other.gguf");
    assert_eq!(
        stderr(dir, "eval other.gguf --parent with.gguf"),
        differ("other.gguf", "'gpt-2'", "'llama-bpe'")
    );
}

#[test]
fn an_adapter_of_ollamas_is_told_of_where_a_model_is_evaluated() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let path = dir.join("m.gguf");
    byte_model("llama", 4).save(Backend::init(), &path).unwrap();
    let blobs = dir.join("store/blobs");
    std::fs::create_dir_all(&blobs).unwrap();
    let layer = |kind: &str, bytes: &[u8]| {
        let hex = blake3::hash(bytes).to_hex();
        std::fs::write(blobs.join(format!("sha256-{hex}")), bytes).unwrap();
        serde_json::json!({
            "mediaType": format!("application/vnd.ollama.image.{kind}"),
            "digest": format!("sha256:{hex}"),
            "size": bytes.len(),
        })
    };
    let layers = [layer("model", &std::fs::read(&path).unwrap()), layer("adapter", b"GGUF adapter")];
    let manifests = dir.join("store/manifests/registry.ollama.ai/library/m");
    std::fs::create_dir_all(&manifests).unwrap();
    let manifest = serde_json::json!({"schemaVersion": 2, "layers": layers});
    std::fs::write(manifests.join("latest"), manifest.to_string()).unwrap();
    for command in [
        "score ollama:m",
        "eval m.gguf --parent ollama:m",
        "compare m.gguf ollama:m",
        "ollama:m --drop 1 -o out.gguf",
    ] {
        let output = program::command(dir, &format!("{command} {TEXT}"))
            .env("OLLAMA_MODELS", dir.join("store"))
            .output()
            .unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{command}: {stderr}");
        let said =
            "'ollama:m:latest' is a model with a LoRA adapter, which takes no part: its base alone is read\n";
        assert!(
            stderr.starts_with("gguf-shorten: warning: ") && stderr.ends_with(said),
            "{command}: {stderr}"
        );
        assert_eq!(stderr.lines().count(), 1, "{command}: {stderr}");
    }
}

/// Exchanges two tensors of one shape in the file.
fn exchange(path: &Path, names: [&str; 2]) {
    let mut bytes = std::fs::read(path).unwrap();
    let copy = bytes.clone();
    let file = File::parse(&copy).unwrap();
    let tensors = names.map(|name| *file.tensors().get(name).unwrap());
    for (info, place) in [(0, 1), (1, 0)] {
        let name = tensors[info].name().as_bytes();
        let start = copy.windows(name.len()).position(|text| text == name);
        let n_dims = tensors[info].n_dims();
        // After the name: number of dimensions, those, type.
        let at = start.unwrap() + name.len() + 4 + 8 * n_dims + 4;
        let offset = tensors[place].offset().0.to_le_bytes();
        bytes[at..at + 8].copy_from_slice(&offset);
    }
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn the_reason_of_llama_cpps_reader_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let path = dir.join("m.gguf");
    byte_model("llama", 4).save(Backend::init(), &path).unwrap();
    exchange(&path, ["blk.1.ffn_gate.weight", "blk.1.ffn_up.weight"]);
    let bytes = std::fs::read(&path).unwrap();
    let file = File::parse(&bytes).unwrap();
    // What its reader comes to first.
    let mut expected = 0;
    let wrong = file.tensors().iter().find(|tensor| {
        let is_wrong = tensor.offset().0 != expected;
        expected += tensor.n_bytes().next_multiple_of(32) * u64::from(!is_wrong);
        is_wrong
    });
    let wrong = wrong.unwrap();
    let reason = format!(
        "gguf-shorten: m.gguf: llama.cpp could not load the model: tensor '{}' has offset {}, expected {expected}\n",
        wrong.name(),
        wrong.offset()
    );
    for command in [
        "score m.gguf --no-cache",
        "eval m.gguf",
        "compare m.gguf --drop 1 --no-cache",
        "m.gguf --drop 1 -o out.gguf --no-cache",
        "m.gguf --drop 1 --method search -o out.gguf --no-cache",
    ] {
        let found = failure(dir, &format!("{command} {TEXT}"));
        assert_eq!(found, reason, "{command}");
    }
    // Blocks that are moved without llama.cpp lie in order again.
    let output = program(dir, "m.gguf --blocks 0 -o out.gguf");
    assert!(output.status.success(), "{output:?}");
    assert!(program(dir, &format!("eval out.gguf {TEXT}")).status.success());
}

#[test]
fn the_verdict_knows_files_with_fewer_blocks_and_names_the_strongest_rival() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let [parent, one, two] = ["parent.gguf", "one.gguf", "two.gguf"].map(|name| dir.join(name));
    byte_model("llama", 6).save(Backend::init(), &parent).unwrap();
    shorten(&parent, &[2], &one).unwrap();
    shorten(&parent, &[2, 3], &two).unwrap();
    let output = program(
        dir,
        &format!(
            "compare --parent parent.gguf one.gguf two.gguf --requantize Q2_K,Q6_K,Q4_K_M {TEXT} --json -"
        ),
    );
    assert!(output.status.success(), "{output:?}");
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let row = |name: &str| {
        let mut rows = json["rows"].as_array().unwrap().iter();
        let row = rows.find(|row| row["name"] == name).unwrap();
        (row["bytes"].as_u64().unwrap(), row["kl_divergence"]["mean"].as_f64().unwrap())
    };
    let files = [row("one.gguf"), row("two.gguf")];
    let rivals = ["Q2_K", "Q6_K", "Q4_K_M"].map(|name| (name, row(name)));
    let beats_all =
        |(_, rival): &&(&str, (u64, f64))| files.iter().all(|file| rival.0 < file.0 && rival.1 < file.1);
    let strongest = rivals.iter().filter(beats_all);
    let strongest = strongest.min_by(|a, b| a.1.1.total_cmp(&b.1.1)).unwrap();
    let verdict = json["verdict"].as_str().unwrap();
    let (start, end) =
        (format!("{} (", strongest.0), ") is smaller and closer than every row with fewer blocks");
    assert!(verdict.starts_with(&start) && verdict.ends_with(end), "{verdict}");
}
