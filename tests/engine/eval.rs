//! `eval`: perplexity, divergence and tasks against the same figures computed here, from the logits of whole windows.

use std::path::{Path, PathBuf};

use ggml::{Backend, Context, ContextOptions, Token};
use gguf_shorten::engine::logits::{LlamaLogits, vocabulary_difference};
use gguf_shorten::engine::scored::ScoredLogits;
use gguf_shorten::gguf::ValueOut;
use gguf_shorten::measure::answers::answer_scores;
use gguf_shorten::measure::quality::measure::Quality;
use gguf_shorten::measure::tasks::{self, Task};
use serde_json::Value;

use crate::program::{failure, program};
use crate::random_model::{N_VOCAB, Spec};
use crate::support::{load, shorten};

/// Tokens of a window: more than the tiny models' sliding window.
const WINDOW: usize = 40;

/// A model that takes any text: its vocabulary is the 256 bytes, in the form of SentencePiece.
pub fn byte_model<'s>(architecture: &'s str, n_blocks: u32) -> Spec<'s> {
    let mut spec = Spec::new(architecture, n_blocks);
    let tokens: Vec<String> = (0..N_VOCAB).map(|byte| format!("<0x{byte:02X}>")).collect();
    const BYTE: i32 = 6;
    spec.extra.extend([
        ("tokenizer.ggml.model", ValueOut::string("llama")),
        ("tokenizer.ggml.tokens", ValueOut::strings(&tokens)),
        ("tokenizer.ggml.scores", ValueOut::f32s(&[0.0; N_VOCAB])),
        ("tokenizer.ggml.token_type", ValueOut::i32s(&[BYTE; N_VOCAB])),
        ("tokenizer.ggml.bos_token_id", ValueOut::u32(1)),
        ("tokenizer.ggml.eos_token_id", ValueOut::u32(2)),
        ("tokenizer.ggml.unknown_token_id", ValueOut::u32(0)),
        ("tokenizer.ggml.add_bos_token", ValueOut::bool(true)),
    ]);
    spec
}

/// A folder with a parent, whole and without two blocks.
pub fn models(architecture: &str) -> (tempfile::TempDir, [PathBuf; 2]) {
    let dir = tempfile::tempdir().unwrap();
    let [parent, short] = ["parent.gguf", "short.gguf"].map(|name| dir.path().join(name));
    byte_model(architecture, 4).save(Backend::init(), &parent).unwrap();
    shorten(&parent, &[2, 3], &short).unwrap();
    (dir, [parent, short])
}

/// Textbook probabilities of the next token after each token. They come from the logits of all tokens.
fn probabilities(path: &Path, tokens: &[Token]) -> Vec<Vec<f64>> {
    let model = load(path).unwrap();
    let options = ContextOptions { window: tokens.len(), threads: 1 };
    let mut context = Context::new(&model, options).unwrap();
    let logits = context.logits(tokens).unwrap();
    logits
        .chunks_exact(model.n_vocab())
        .map(|row| {
            let exps: Vec<f64> = row.iter().map(|&logit| f64::from(logit).exp()).collect();
            let sum: f64 = exps.iter().sum();
            exps.into_iter().map(|exp| exp / sum).collect()
        })
        .collect()
}

fn windows() -> Vec<Vec<Token>> {
    let token = |i: usize| ((i * i * 31 + i * 7 + 3) % N_VOCAB) as Token;
    (0..3).map(|w| (0..WINDOW).map(|t| token(w * WINDOW + t)).collect()).collect()
}

fn quality(path: &Path, parent: Option<&Path>) -> Quality {
    let model = load(path).unwrap();
    let parent_model = parent.map(|path| load(path).unwrap());
    let logits = |model, path| LlamaLogits::new(model, path, WINDOW, 1).unwrap();
    let mut side = logits(&model, path);
    let mut parent_side = (parent_model.as_ref()).map(|model| logits(model, path));
    Quality::measure(
        &mut side,
        parent_side.as_mut().map(|side| side as &mut dyn ScoredLogits),
        windows().iter().map(Vec::as_slice),
        &mut |_| {},
    )
    .unwrap()
}

#[track_caller]
pub fn close(found: f64, expected: f64) {
    let error = (found / expected - 1.0).abs();
    assert!(error < 1e-6, "{found}, expected {expected}");
}

#[test]
fn perplexity_and_divergence_are_those_of_whole_windows() {
    for architecture in ["llama", "gemma3", "mamba2"] {
        let (_dir, [parent, short]) = models(architecture);
        let (mut n, mut nll, mut kl, mut largest, mut dp) = (0.0, 0.0, 0.0, 0.0f64, 0.0);
        for window in windows() {
            let (p, q) = (probabilities(&parent, &window), probabilities(&short, &window));
            for t in WINDOW / 2..WINDOW - 1 {
                let next = window[t + 1] as usize;
                let terms = p[t].iter().zip(&q[t]).map(|(p, q)| p * (p / q).ln());
                let sum: f64 = terms.sum();
                n += 1.0;
                nll -= q[t][next].ln();
                kl += sum;
                largest = largest.max(sum);
                dp += q[t][next] - p[t][next];
            }
        }
        let found = quality(&short, Some(&parent));
        assert_eq!(found.perplexity.n_tokens, 3 * 19);
        close(found.perplexity.value, (nll / n).exp());
        let divergence = found.divergence.unwrap();
        close(divergence.kl.mean, kl / n);
        close(divergence.kl_max, largest);
        close(divergence.probability_change.mean, dp / n);
        assert!(divergence.kl.mean > 0.0, "{architecture}");
        // Alone, or as the parent, it is the same model.
        assert_eq!(quality(&short, None).perplexity, found.perplexity);
        assert_eq!(quality(&parent, None).perplexity, divergence.parent);
    }
}

#[test]
fn a_model_does_not_diverge_from_itself() {
    let (_dir, [parent, _]) = models("llama");
    let divergence = quality(&parent, Some(&parent)).divergence.unwrap();
    assert_eq!((divergence.kl.mean, divergence.kl_max), (0.0, 0.0));
    assert_eq!(divergence.same_top.mean, 1.0);
    assert_eq!(divergence.log_ratio.mean, 0.0);
    assert_eq!(divergence.probability_change_rms.mean, 0.0);
}

fn some_tasks() -> Vec<Task> {
    let mut tasks = tasks::hellaswag("A man sits. He\n2\nsings.\nis\nis a stone.\nleaves\n").unwrap();
    tasks.extend(
        tasks::json_lines(
            "{\"question\": \"Why?\", \"choices\": [\"a\", \"ab\", \"because\"], \"answer\": 1}\n\
             {\"question\": \"How?\", \"choices\": {\"text\": [\"so\", \"it is\"], \"label\": [\"1\", \"2\"]}, \
             \"answerKey\": \"2\"}",
        )
        .unwrap(),
    );
    // Too long to be evaluated together.
    let long = |i: usize| format!("{i}{}", "long ".repeat(130 + i));
    tasks.push(Task { line: 1, context: "Say".to_owned(), choices: (0..3).map(long).collect(), right: 0 });
    tasks
}

#[test]
fn answers_have_the_mean_log_probability_of_their_tokens() {
    // One shares answers' tokens, one has sliding windows. One keeps a state, one has both.
    for architecture in ["llama", "gemma3", "mamba2", "jamba"] {
        let (_dir, [path, _]) = models(architecture);
        let model = load(&path).unwrap();
        let tasks = some_tasks();
        let found = answer_scores(&model, &path, &tasks, 1, &mut || {}).unwrap();
        assert_eq!(found.len(), tasks.len());
        for (task, found) in tasks.iter().zip(&found) {
            let sequences: Vec<Vec<Token>> =
                task.texts().map(|text| model.tokenize(&text).unwrap()).collect();
            let shortest = sequences.iter().map(Vec::len).min().unwrap();
            let n_shared = (0..shortest - 1)
                .take_while(|&t| sequences.iter().all(|tokens| tokens[t] == sequences[0][t]))
                .count();
            for (tokens, &found) in sequences.iter().zip(found) {
                let p = probabilities(&path, tokens);
                let own = n_shared..tokens.len();
                let sum: f64 = (own.clone()).map(|t| p[t - 1][tokens[t] as usize].ln()).sum();
                let expected = sum / own.len() as f64;
                // A cache of another size is added up in another order.
                assert!((found / expected - 1.0).abs() < 2e-3, "{architecture}: {found} {expected}");
            }
        }
    }
}

#[test]
fn the_first_difference_of_two_vocabularies_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    let make = |key: &'static str, value: Option<ValueOut>| {
        let mut spec = byte_model("llama", 1);
        if let Some(value) = value {
            spec.extra.retain(|(other, _)| *other != key);
            spec.extra.push((key, value));
        }
        spec.save(Backend::init(), &path).unwrap();
        load(&path).unwrap()
    };
    let parent = make("", None);
    assert_eq!(vocabulary_difference(&make("", None), &parent), None);
    let mut scores = [0.0; N_VOCAB];
    scores[65] = -1.5;
    let mut types = [6; N_VOCAB];
    types[66] = 1;
    for (key, value, difference) in [
        (
            "tokenizer.ggml.scores",
            ValueOut::f32s(&scores),
            "entry 65, '<0x41>', has the score -1.5, 0 in the parent",
        ),
        (
            "tokenizer.ggml.token_type",
            ValueOut::i32s(&types),
            "entry 66, '<0x42>', has the attributes 0x4, 0x20 in the parent",
        ),
        (
            "tokenizer.ggml.add_bos_token",
            ValueOut::bool(false),
            "no token begins every text, token 1 in the parent",
        ),
    ] {
        let other = make(key, Some(value));
        assert_eq!(vocabulary_difference(&other, &parent).as_deref(), Some(difference));
    }
}

#[test]
fn the_json_is_the_contract() {
    let (dir, _) = models("llama");
    let dir = dir.path();
    std::fs::write(dir.join("h.txt"), "A man. He\n0\na\nb\nc\nd\n".repeat(3)).unwrap();
    std::fs::write(
        dir.join("c.jsonl"),
        "{\"question\": \"Why?\", \"choices\": [\"a\", \"b\"], \"answer\": 1}\n",
    )
    .unwrap();
    let arguments = "eval short.gguf --parent parent.gguf --tokens 96 --window 32 -t 1 --hellaswag h.txt \
                     --multiple-choice c.jsonl --tasks 2 --json -";
    let output = program(dir, arguments);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(output.stderr.is_empty(), "{output:?}");
    let json: Value = serde_json::from_slice(&output.stdout).unwrap();
    let number = |pointer: &str| {
        let value = json.pointer(pointer).and_then(Value::as_f64);
        value.unwrap_or_else(|| panic!("{pointer}: {json:#}"))
    };
    assert_eq!(json["model"]["path"], "short.gguf");
    assert_eq!(json["model"]["block_count"], 2);
    assert_eq!(json["parent"]["block_count"], 4);
    assert_eq!(json["calibration"]["source"], "built-in");
    assert_eq!(json["calibration"]["windows"], 3);
    assert_eq!(json["calibration"]["bos"], true);
    assert_eq!(json["tokens_scored"], 3 * 15);
    for positive in [
        "/perplexity",
        "/perplexity_stderr",
        "/parent_perplexity",
        "/parent_perplexity_stderr",
        "/log_perplexity_ratio_stderr",
        "/kl_divergence/mean",
        "/kl_divergence/mean_stderr",
        "/kl_divergence/median",
        "/same_top_stderr",
        "/probability_change/mean_stderr",
        "/probability_change/rms",
        "/probability_change/rms_stderr",
        "/tokens_per_second/prompt",
        "/tokens_per_second/decode",
    ] {
        assert!(number(positive) > 0.0, "{positive}");
    }
    let kl = ["median", "p90", "p99", "max"].map(|name| number(&format!("/kl_divergence/{name}")));
    assert!(kl.is_sorted(), "{kl:?}");
    assert!((0.0..=1.0).contains(&number("/same_top")));
    assert_eq!(json["hellaswag"]["tasks"], 2);
    assert_eq!(json["hellaswag"]["chance"], 0.25);
    assert_eq!(json["multiple_choice"]["tasks"], 1);
    assert_eq!(json["multiple_choice"]["chance"], 0.5);
    assert_eq!(json["multiple_choice"]["accuracy_stderr"], Value::Null);
    let ratio = number("/perplexity") / number("/parent_perplexity");
    close(number("/log_perplexity_ratio"), ratio.ln());

    // Without a parent and tasks the same keys, with null.
    let output = program(dir, "eval short.gguf --tokens 96 --window 32 -t 1 --json -");
    let alone: Value = serde_json::from_slice(&output.stdout).unwrap();
    let keys = |json: &Value| json.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(keys(&alone), keys(&json));
    assert_eq!(alone["kl_divergence"], Value::Null);
    assert_eq!(alone["hellaswag"], Value::Null);
    assert_eq!(alone["perplexity"], json["perplexity"]);

    // The table names what is scored.
    let output = program(dir, "eval short.gguf --tokens 96 --window 32 -t 1");
    let table = String::from_utf8(output.stdout).unwrap();
    assert!(table.contains("96 tokens of built-in text"), "{table}");
    assert!(table.contains("perplexity "), "{table}");
}

#[test]
fn what_cannot_be_evaluated_is_one_line() {
    let (dir, [parent, _]) = models("llama");
    let dir = dir.path();
    std::fs::write(dir.join("short.txt"), "Not much").unwrap();
    assert_eq!(
        failure(dir, "eval parent.gguf --calibration short.txt --window 32"),
        "gguf-shorten: parent.gguf: the text has 14 tokens, less than one window of 32\n"
    );
    let mut other = byte_model("llama", 2);
    other.extra.push(("tokenizer.ggml.bos_token_id", ValueOut::u32(3)));
    other.save(Backend::init(), &dir.join("other.gguf")).unwrap();
    assert_eq!(
        failure(dir, "eval other.gguf --parent parent.gguf --tokens 96 --window 32"),
        "gguf-shorten: other.gguf: the vocabulary differs from that of parent.gguf: token 3 begins every text, token 1 \
         in the parent\n"
    );
    std::fs::write(dir.join("h.txt"), format!("{}. He\n0\na\nb\nc\nd\n", "A man".repeat(300))).unwrap();
    assert_eq!(
        failure(dir, "eval parent.gguf --tokens 96 --window 32 -t 1 --hellaswag h.txt"),
        "gguf-shorten: parent.gguf: h.txt: the task at line 1 has 2114 tokens, the model's context 1024\n"
    );
    // A weight that is not a number reaches every logit.
    let mut bytes = std::fs::read(&parent).unwrap();
    let file = gguf_shorten::gguf::File::parse(&bytes).unwrap();
    let tensor = file.tensors().get("output_norm.weight").unwrap();
    let at = tensor.position().0 as usize;
    bytes[at..at + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    std::fs::write(dir.join("nan.gguf"), bytes).unwrap();
    assert_eq!(
        failure(dir, "eval nan.gguf --tokens 96 --window 32 -t 1"),
        "gguf-shorten: nan.gguf: after token 16 of window 0: the logit of vocabulary entry 0 is NaN\n"
    );
    assert_eq!(
        failure(dir, "eval parent.gguf --parent nan.gguf --tokens 96 --window 32 -t 1"),
        "gguf-shorten: nan.gguf: after token 16 of window 0: the logit of vocabulary entry 0 is NaN\n"
    );
}
