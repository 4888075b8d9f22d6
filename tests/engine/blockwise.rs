//! Evaluation block by block. It gives the bits of the whole model, within the memory that it says.

use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::time::Duration;

use ggml::{Backend, ModelOptions, ThreadPool};
use gguf_shorten::engine::blockwise::need::{Need, Size};
use gguf_shorten::engine::blockwise::replay::Replay;
use gguf_shorten::engine::blockwise::{self, Pass};
use gguf_shorten::engine::hidden_state::{Passage, Position, Recorded};
use gguf_shorten::engine::imatrix::Gathers;
use gguf_shorten::engine::llama::Halves;
use gguf_shorten::engine::text::{CalibrationSet, Cut, Source, Texts};
use gguf_shorten::model::arch::{Alone, Architecture};
use gguf_shorten::model::input::Input;
use gguf_shorten::model::{BlockId, Model};
use gguf_shorten::output::Parent;
use gguf_shorten::plan::Constraints;
use gguf_shorten::watch::{Silent, Watch};
use serde_json::Value;

use crate::eval::byte_model;
use crate::heal::prepare;
use crate::program::{command, failure, json, parsed, program};
use crate::random_model::Spec;
use crate::support::{hidden_states, hidden_states_with_middles, n_tokens, tokens};

/// All hidden states of three windows alike, two at the same time, on two threads and on one. Block by block, or with much
/// `spare` memory all blocks of a window.
fn by_blocks(parent: Parent<'_>, n_tokens: usize, on_disk: bool, spare: u64) -> Recorded {
    passes(parent, n_tokens, on_disk, spare, None).0
}

/// As [`by_blocks`]. With `halves` also the block and the state of each middle.
fn passes(
    parent: Parent<'_>,
    n_tokens: usize,
    on_disk: bool,
    spare: u64,
    halves: Option<Halves>,
) -> (Recorded, Vec<(BlockId, Vec<f32>)>) {
    let texts = Texts::read(Source::BuiltIn).unwrap();
    let cut = Cut { window: n_tokens, tokens: 3 * n_tokens, bos: None };
    let set = CalibrationSet::new(&texts, Vec::new(), cut, &|_| Ok(tokens(n_tokens).repeat(3))).unwrap();
    assert_eq!(set.windows().count(), 3);
    let threads = Arc::new(ThreadPool::new(1).unwrap());
    let folder = tempfile::tempdir().unwrap();
    let mut pass =
        Pass::new(parent.input, parent.model, parent.constraints, &set, &threads, ModelOptions::default())
            .unwrap();
    if on_disk {
        let key = blake3::hash(b"key");
        pass = pass.kept_in::<()>(folder.path(), key, &Silent).unwrap().0;
    }
    // Room for one more, but not for two.
    let need = Need { whole: 0, least: 0, states: 0, each: spare / 2 + 1, cache: 0, outputs: 0 };
    let mut middles = Vec::new();
    pass = pass.with_halves(halves).in_parallel(3, spare, &need).unwrap();
    let mut replay = Replay::new(pass.n_blocks(), 3, pass.n_embd(), None).unwrap();
    let bar = Silent.begin("".into(), gguf_shorten::watch::Unit::Time, 0);
    let n_blocks = pass.n_blocks();
    let mut visit = |(): &mut (), passage: Passage<'_>| {
        middles.extend(passage.middle.map(|middle| (passage.block, middle.to_vec())));
        replay.add(&passage)
    };
    pass.run(n_blocks, &mut (), &mut visit, &*bar, &Silent).unwrap();
    let hash = pass.finish().unwrap();
    assert_eq!(hash, parent.input.blake3());
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    (Recorded::record(&mut replay, set.windows()).unwrap(), middles)
}

#[test]
fn halves_of_blocks_are_those_of_the_whole_model() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    // But for the first, block 0 is not alone in its model: llama.cpp must find one of another kind.
    for name in ["llama", "lfm2", "qwen3next", "jamba"] {
        Spec::new(name, 5).save(Backend::init(), &path).unwrap();
        let input = Input::open(&path).unwrap();
        let model = Model::new(input.parse().unwrap()).unwrap();
        let constraints = Constraints::of(&model).unwrap();
        let parent = Parent { input: &input, model: &model, constraints: &constraints };
        let halves = Halves::of(&model, constraints.rules, &constraints.kinds).unwrap();
        let whole = hidden_states_with_middles(&path).unwrap();
        for (spare, on_disk) in [(2, true), (2, false), (1 << 40, false)] {
            let (_, middles) = passes(parent, n_tokens(name), on_disk, spare, Some(halves.clone()));
            assert_eq!(middles.len(), 3 * 5, "{name} {spare}");
            for (block, found) in middles {
                let of_block = |(position, _): &&(Position, Vec<f32>)| *position == Position::Middle(block);
                let (_, expected) = whole.windows[0].iter().find(of_block).unwrap();
                assert!(found == *expected, "{name} {spare}: middle of block {block}");
            }
        }
    }
}

#[test]
fn every_exact_architecture_gives_the_bits_of_the_whole_model() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    let mut n_compared = 0;
    let exact = Architecture::all().iter().filter(|architecture| architecture.alone == Alone::Exact);
    for (number, architecture) in exact.enumerate() {
        if Spec::new(architecture.name, 5).save(Backend::init(), &path).is_err() {
            continue;
        }
        let input = Input::open(&path).unwrap();
        let model = Model::new(input.parse().unwrap()).unwrap();
        let constraints = Constraints::of(&model).unwrap();
        let parent = Parent { input: &input, model: &model, constraints: &constraints };
        if blockwise::check(&model, &constraints).is_err() {
            continue;
        }
        let whole = hidden_states(&path).unwrap();
        let n_tokens = n_tokens(architecture.name);
        let found = by_blocks(parent, n_tokens, number % 2 == 0, 2);
        let at_once = by_blocks(parent, n_tokens, false, 1 << 40);
        assert_eq!((found.windows.len(), at_once.windows.len()), (3, 3));
        for window in found.windows.iter().chain(&at_once.windows) {
            assert_eq!(window.len(), whole.windows[0].len(), "{}", architecture.name);
            for ((position, found), (_, whole)) in window.iter().zip(&whole.windows[0]) {
                let same = found
                    .iter()
                    .zip(whole)
                    .all(|(a, b)| a.to_bits() == b.to_bits() || (*a == 0.0 && *b == 0.0));
                assert!(same && found.len() == whole.len(), "{} {position:?}", architecture.name);
            }
        }
        n_compared += 1;
    }
    assert!(n_compared > 50, "{n_compared}");
}

/// A text of four windows.
pub const SHORT: Size =
    Size { window: 32, n_windows: 4, n_logits: 0, gathers: Gathers { imatrix: false, experts: false } };

/// What evaluating the model in `dir` takes.
pub fn need(dir: &Path, size: Size) -> Need {
    let input = Input::open(&dir.join("m.gguf")).unwrap();
    let model = Model::new(input.parse().unwrap()).unwrap();
    let constraints = Constraints::of(&model).unwrap();
    Need::of(&model, &constraints, size).unwrap()
}

/// Memory in bytes that has the model evaluated block by block.
pub fn memory(dir: &Path, size: Size) -> u64 {
    let need = need(dir, size);
    assert!(need.least + 20 * need.states < need.whole, "{need:?}");
    need.least + 20 * need.states
}

#[test]
fn scores_and_predictions_within_a_memory_are_those_of_the_whole() {
    let dir = tempfile::tempdir().unwrap();
    byte_model("llama", 12).save(Backend::init(), &dir.path().join("m.gguf")).unwrap();
    let text = "--tokens 128 --window 32";
    let limit = memory(dir.path(), SHORT);
    for arguments in [
        "score m.gguf",
        "score m.gguf --sub-blocks",
        "score m.gguf --pairs",
        "m.gguf --method run --drop 3 --dry-run -o o.gguf",
        "m.gguf --method lorp --drop 3 --dry-run -o o.gguf",
    ] {
        let whole = json(dir.path(), &format!("{arguments} {text} --no-cache"));
        for scratch in ["", "--scratch s"] {
            let blocks =
                json(dir.path(), &format!("{arguments} {text} --no-cache --memory {limit} {scratch}"));
            for key in ["blocks", "removed", "pairs", "method"] {
                assert_eq!(blocks[key], whole[key], "{arguments} {key}");
            }
        }
    }
    // The states go when they are not needed any more.
    assert_eq!(std::fs::read_dir(dir.path().join("s")).unwrap().count(), 0);
    let whole = json(dir.path(), &format!("eval m.gguf {text}"));
    let limit = memory(dir.path(), Size { n_logits: 15, ..SHORT });
    let blocks = json(dir.path(), &format!("eval m.gguf {text} --memory {limit}"));
    for key in ["perplexity", "perplexity_stderr", "tokens_scored"] {
        assert_eq!(blocks[key], whole[key], "{key}");
    }
    assert!(blocks["tokens_per_second"].is_null() && !whole["tokens_per_second"].is_null());
}

/// The rows of a comparison without their speed, and which of them have one.
fn rows(dir: &Path, arguments: &str) -> (Vec<Value>, Vec<bool>) {
    let mut rows = json(dir, arguments)["rows"].as_array().unwrap().clone();
    let is_whole = rows.iter_mut().map(|row| !row["tokens_per_second"].take().is_null()).collect();
    (rows, is_whole)
}

#[test]
fn models_compared_within_a_memory_are_as_close_as_whole_ones() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    byte_model("llama", 12).save(Backend::init(), &dir.join("m.gguf")).unwrap();
    json(dir, "m.gguf --drop 3 --method reverse -o short.gguf");
    std::fs::create_dir(dir.join("s")).unwrap();
    let arguments = "compare m.gguf short.gguf --drop 1..2 --method bi --choose-tokens 128 --requantize Q8_0 --mixed \
                     --tokens 128 --window 32 --no-cache";
    let (whole, is_whole) = rows(dir, arguments);
    assert_eq!(is_whole, [true; 7]);
    let size = Size { n_logits: 15, ..SHORT };
    // Half of it is the parent's.
    let limit = 2 * memory(dir, size);
    for scratch in ["", "--scratch s"] {
        let (blocks, is_whole) = rows(dir, &format!("{arguments} --memory {limit} {scratch}"));
        assert_eq!(blocks, whole);
        assert_eq!(is_whole, [false; 7]);
    }
    assert_eq!(std::fs::read_dir(dir.join("s")).unwrap().count(), 0);
    // A model and its parent.
    let arguments = "eval short.gguf --parent m.gguf --tokens 128 --window 32";
    let [whole, blocks] =
        [arguments, &format!("{arguments} --memory {limit}")].map(|arguments| json(dir, arguments));
    for key in ["perplexity", "kl_divergence", "same_top"] {
        assert!(!whole[key].is_null());
        assert_eq!(blocks[key], whole[key], "{key}");
    }
}

#[test]
fn what_takes_more_than_the_whole_model_says_what_it_takes() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    prepare(dir);
    std::fs::rename(dir.join("parent.gguf"), dir.join("m.gguf")).unwrap();
    let limit = need(dir, Size { n_logits: 15, ..SHORT }).whole;
    let text = format!("--tokens 128 --window 32 --no-cache -t 1 --memory {limit}");
    let whole = json(dir, &format!("eval m.gguf --tokens 128 --window 32 --memory {limit}"));
    assert!(!whole["tokens_per_second"].is_null());
    for (arguments, why) in [
        (
            "m.gguf --drop 2 --method search -o o.gguf",
            "the loss of removals is measured beside the whole model",
        ),
        (
            "m.gguf --drop 2 --method ablate -o o.gguf",
            "the loss of removals is measured beside the whole model",
        ),
        (
            "m.gguf --max-kl 0.5 --method bi -o o.gguf",
            "the loss of removals is measured beside the whole model",
        ),
        ("score m.gguf --ablate", "the loss of removals is measured beside the whole model"),
        (
            "m.gguf --blocks 3-4 --heal linear -o o.gguf",
            "healing compares shortened models with the whole one",
        ),
        ("fit m.gguf --target-size 10K -o o.gguf", "beside it are each of its blocks and a candidate"),
    ] {
        let error = failure(dir, &format!("{arguments} {text}"));
        let lines: Vec<&str> = error.lines().filter(|line| line.contains("evaluating the whole")).collect();
        assert_eq!((lines.len(), error.contains("hint")), (1, false), "{error}");
        assert!(lines[0].contains("m.gguf: evaluating the whole model takes about"), "{error}");
        assert!(lines[0].ends_with(why), "{error}");
    }
}

/// Numbers of llama.cpp's file types (`llama.h: llama_ftype`).
const Q4_0: u32 = 2;
const Q4_1: u32 = 3;
const Q5_0: u32 = 8;
const F32: u32 = 0;
const BF16: u32 = 32;

/// Compares Block Influence.
fn alike(found: &Value, expected: &Value, tolerance: f64) {
    let pairs = found.as_array().unwrap().iter().zip(expected.as_array().unwrap());
    for (found, expected) in pairs {
        let [found, expected] = [found, expected].map(|block| block["bi"].as_f64().unwrap());
        assert!((found - expected).abs() <= tolerance * expected, "{found} {expected}");
    }
}

#[test]
fn converted_blocks_are_those_of_a_converted_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    byte_model("llama", 4).save(Backend::init(), &path("full.gguf")).unwrap();
    let quantize = |from: &str, to: &str, file_type| {
        ggml::testing::quantize(Backend::init(), &path(from), &path(to), file_type).unwrap();
    };
    quantize("full.gguf", "m.gguf", Q4_1);
    let score = |model: &str, conversion: &str| {
        let text = "--tokens 128 --window 32 --no-cache";
        let result = json(dir.path(), &format!("score {model} {text} --sub-blocks --convert {conversion}"));
        assert_eq!(result["calibration"]["conversion"], conversion);
        result["blocks"].clone()
    };
    let plain = score("m.gguf", "none");
    quantize("m.gguf", "f32.gguf", F32);
    let found = score("m.gguf", "f32");
    assert_eq!(found, score("f32.gguf", "none"));
    assert_ne!(found, plain);
    // Its embeddings are rounded, too.
    quantize("m.gguf", "bf16.gguf", BF16);
    alike(&score("m.gguf", "bf16"), &score("bf16.gguf", "none"), 1e-3);
    quantize("full.gguf", "m.gguf", Q5_0);
    let [found, expected] = ["q8_0", "none"].map(|conversion| score("m.gguf", conversion));
    alike(&found, &expected, 1e-5);
    quantize("full.gguf", "m.gguf", Q4_0);
    let [found, expected] = ["no_repack", "none"].map(|conversion| score("m.gguf", conversion));
    alike(&found, &expected, 1e-5);
    let repacks = |conversion: &str| {
        let text = "--tokens 128 --window 32 --no-cache --verbose";
        let output = program(dir.path(), &format!("score m.gguf {text} --memory 80M --convert {conversion}"));
        assert!(output.status.success(), "{output:?}");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.contains("model buffer size"), "{said}");
        said.contains("CPU_REPACK") || said.contains("AMX")
    };
    assert!(!repacks("no_repack"));
    // There llama.cpp has such a kernel (`ggml-cpu/repack.cpp`).
    #[cfg(target_arch = "x86_64")]
    assert_eq!(repacks("none"), std::is_x86_feature_detected!("avx2"));
    byte_model("gemma2", 8).save(Backend::init(), &path("m.gguf")).unwrap();
    let error = failure(dir.path(), "score m.gguf --tokens 128 --window 32 --convert f32");
    assert!(error.contains("weights are not converted") && error.contains("'gemma2'"), "{error}");
}

/// A pass of some seconds, with states in folder `s`.
const LONG: &str = "score m.gguf --tokens 4096 --window 64 --no-cache --scratch s --json - -t 1";

/// How far a pass in folder `s` is.
fn next(dir: &Path) -> u64 {
    let entries = std::fs::read_dir(dir.join("s")).into_iter().flatten();
    let mut paths = entries.map(|entry| entry.unwrap().path());
    let record = paths.find(|path| path.extension().is_some_and(|end| end == "json"));
    let text = record.and_then(|path| std::fs::read_to_string(path).ok()).unwrap_or_default();
    // The record follows its hash.
    let record = text.split_once('\n').and_then(|(_, record)| serde_json::from_str::<Value>(record).ok());
    record.and_then(|record| record["next"].as_u64()).unwrap_or(0)
}

/// Starts a long pass within `limit` bytes. Waits until some blocks are done.
fn begin(dir: &Path, limit: u64) -> Child {
    let mut command = command(dir, &format!("{LONG} --memory {limit}"));
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    while next(dir) < 3 {
        assert!(child.try_wait().unwrap().is_none(), "it ended too early");
        std::thread::sleep(Duration::from_millis(2));
    }
    child
}

#[test]
fn a_killed_pass_goes_on_at_the_block_that_it_was_at() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    byte_model("llama", 12).save(Backend::init(), &dir.join("m.gguf")).unwrap();
    let limit = memory(dir, SHORT);
    let whole = parsed(&program(dir, LONG));
    let kill = || {
        let mut child = begin(dir, limit);
        child.kill().unwrap();
        child.wait().unwrap();
        next(dir)
    };
    let goes_on = |note: &str| {
        let output = program(dir, &format!("{LONG} --memory {limit}"));
        let said = String::from_utf8(output.stderr.clone()).unwrap();
        assert!(said.contains(note), "{said}");
        assert_eq!(parsed(&output)["blocks"], whole["blocks"]);
        assert_eq!(std::fs::read_dir(dir.join("s")).unwrap().count(), 0);
    };
    let next = kill();
    goes_on(&format!("goes on at block {next} of 12"));
    // Damaged states, and a damaged record.
    for (what, note) in [("states", "are damaged"), ("json", "damaged")] {
        kill();
        for entry in std::fs::read_dir(dir.join("s")).unwrap() {
            let path = entry.unwrap().path();
            let mut bytes = std::fs::read(&path).unwrap();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            let is_record = path.extension().is_some_and(|end| end == "json");
            if is_record == (what == "json") {
                std::fs::write(path, bytes).unwrap();
            }
        }
        goes_on(note);
    }
}

#[test]
fn two_passes_on_one_folder_and_a_changed_model_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    byte_model("llama", 12).save(Backend::init(), &dir.join("m.gguf")).unwrap();
    let limit = memory(dir, SHORT);
    let child = begin(dir, limit);
    let output = program(dir, &format!("{LONG} --memory {limit}"));
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), said.lines().count()), (Some(1), 1), "{said}");
    assert!(said.contains("another run of the same job is using it"), "{said}");
    // The first goes on, and finds another file at its end.
    let bytes = std::fs::read(dir.join("m.gguf")).unwrap();
    std::fs::remove_file(dir.join("m.gguf")).unwrap();
    std::fs::write(dir.join("m.gguf"), bytes).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0), "{said}");
    assert!(said.contains("m.gguf: was replaced by another file while it was read"), "{said}");
}

#[test]
fn too_little_memory_is_one_line_that_names_the_least() {
    let dir = tempfile::tempdir().unwrap();
    byte_model("llama", 12).save(Backend::init(), &dir.path().join("m.gguf")).unwrap();
    let error = failure(dir.path(), "score m.gguf --tokens 128 --window 32 --memory 1M --scratch .");
    assert!(
        error.contains("m.gguf: evaluating the model block by block takes about")
            && error.contains("at least, but 1.0 MB may be taken"),
        "{error}"
    );
    let error =
        failure(dir.path(), "m.gguf --drop 2 --method search --tokens 128 --window 32 --memory 1M -o o.gguf");
    assert!(error.contains("the loss of removals is measured beside the whole model"), "{error}");
    let error = failure(dir.path(), "compare m.gguf --drop 1 --tokens 128 --window 32 --memory 1M");
    assert!(error.contains("m.gguf: evaluating the model block by block takes about"), "{error}");
    byte_model("gemma2", 8).save(Backend::init(), &dir.path().join("m.gguf")).unwrap();
    let error = failure(dir.path(), "score m.gguf --tokens 128 --window 32 --memory 1M");
    assert!(error.contains("'gemma2', is not one of those"), "{error}");
}
