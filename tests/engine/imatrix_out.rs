//! The importance matrix that is measured, against twins. Those are products that are found by their results, evaluations to
//! the end, and parts of a model.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use ggml::testing::quantize_with_imatrix;
use ggml::{
    Backend, Context, ContextOptions, Flow, ModelOptions, Node, Operation, Tap, ThreadPool, Token,
    WindowInput,
};
use gguf_shorten::engine::blockwise::need::Size;
use gguf_shorten::engine::blockwise::{self, Pass};
use gguf_shorten::engine::hidden_state::{HiddenStates, Position};
use gguf_shorten::engine::imatrix::{Collector, Gathered, Gathers};
use gguf_shorten::engine::llama::{LlamaHiddenStates, StreamGraph};
use gguf_shorten::engine::settings::Calibration;
use gguf_shorten::engine::text::{CalibrationSet, Cut, Source, Texts};
use gguf_shorten::gguf::File;
use gguf_shorten::model::arch::{Alone, Architecture};
use gguf_shorten::model::input::Input;
use gguf_shorten::model::{BlockId, Model};
use gguf_shorten::plan::Constraints;
use gguf_shorten::plan::imatrix::Imatrix;
use gguf_shorten::plan::imatrix::measured::Sums;
use gguf_shorten::watch::{Silent, Unit, Watch};
use serde_json::Value;

use crate::blockwise::{SHORT, memory};
use crate::eval::byte_model;
use crate::imatrix::values;
use crate::program::{failure, json, on_one_thread};
use crate::random_model::Spec;
use crate::support::{load, n_tokens, shorten, tokens};

fn options(window: usize) -> ContextOptions {
    ContextOptions { window, threads: 1 }
}

/// Two windows that differ, for the model of an architecture.
fn windows(architecture: &str) -> [Vec<Token>; 2] {
    let first = tokens(n_tokens(architecture));
    let second = first.iter().rev().copied().collect();
    [first, second]
}

/// What is added up for an importance matrix alone.
const IMATRIX: Gathers = Gathers { imatrix: true, experts: false };

/// All that can be added up.
const ALL: Gathers = Gathers { imatrix: true, experts: true };

/// The sums of the calibration's evaluation.
fn collected(path: &Path, windows: &[Vec<Token>]) -> Sums {
    gathered(path, windows).imatrix
}

/// The sums of the calibration's evaluation, which ends after the last block.
pub fn gathered(path: &Path, windows: &[Vec<Token>]) -> Gathered {
    let engine = load(path).unwrap();
    let input = Input::open(path).unwrap();
    let model = Model::new(input.parse().unwrap()).unwrap();
    let graph = StreamGraph::of(&model, &engine, model.rules().unwrap().stream).unwrap();
    let mut states = LlamaHiddenStates::new(&engine, options(windows[0].len()), graph)
        .unwrap()
        .with_collector(Some(Collector::of(ALL)));
    for window in windows {
        states.visit(window, &mut |_, _| Ok(())).unwrap();
    }
    states.into_collector().unwrap().into_gathered()
}

/// The sums by evaluations of the whole graph.
fn to_the_end(path: &Path, windows: &[Vec<Token>]) -> Sums {
    let engine = load(path).unwrap();
    let mut context = Context::new(&engine, options(windows[0].len())).unwrap();
    let mut collector = Collector::default();
    for window in windows {
        context.evaluate(WindowInput::Tokens(window), &mut collector).unwrap();
        collector.check().unwrap();
    }
    collector.into_sums()
}

#[test]
fn an_evaluation_that_stops_after_the_last_block_misses_no_product() {
    let dir = tempfile::tempdir().unwrap();
    for architecture in [
        "llama",
        "gemma3",
        "gemma3n",
        "qwen3moe",
        "gpt-oss",
        "deepseek2",
        "jamba",
        "lfm2",
        "mamba2",
        "rwkv7",
        "qwen35moe",
    ] {
        let path = dir.path().join(architecture);
        Spec::new(architecture, 12).save(Backend::init(), &path).unwrap();
        let windows = windows(architecture);
        let found = collected(&path, &windows);
        assert!(found == to_the_end(&path, &windows), "{architecture}");
        let last = found.iter().filter(|(name, ..)| name.starts_with("blk.11.")).count();
        assert!(last > 0, "{architecture}");
    }
}

/// A product: the name of the matrix, its inputs and outputs with their shapes.
struct Product {
    name: String,
    inputs: Vec<f32>,
    inputs_ne: [usize; 4],
    outputs: Vec<f32>,
    outputs_ne: [usize; 4],
}

/// Records products with matrices of blocks.
#[derive(Default)]
struct Products(Vec<Product>);

impl Tap for Products {
    fn wants(&mut self, node: Node<'_>) -> bool {
        node.operation() != Operation::Other && node.operand(0).is_some_and(|o| o.name().starts_with("blk."))
    }

    fn read(&mut self, node: Node<'_>) -> Flow {
        let values = |node: Node<'_>| {
            let mut values = Vec::new();
            node.read(&mut values).unwrap();
            values
        };
        let inputs = node.operand(1).unwrap();
        self.0.push(Product {
            name: node.operand(0).unwrap().name().to_owned(),
            inputs: values(inputs),
            inputs_ne: inputs.ne(),
            outputs: values(node),
            outputs_ne: node.ne(),
        });
        Flow::Continue
    }
}

/// Each weight's F32 numbers and its number of matrices.
fn weights(path: &Path) -> BTreeMap<String, (Vec<f32>, usize)> {
    let bytes = fs::read(path).unwrap();
    let file = File::parse(&bytes).unwrap();
    let floats = |bytes: &[u8]| bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
    let tensors = file.tensors().iter();
    tensors.map(|t| (t.name().to_owned(), (floats(t.bytes()), t.dims()[2] as usize))).collect()
}

/// The twin: what each matrix of a stack multiplies is found by the product alone.
///
/// Sums of squares and counts by name, `[n_matrices][n_columns]` and `[n_matrices]`.
fn naive(path: &Path, windows: &[Vec<Token>]) -> BTreeMap<String, (Vec<Vec<f64>>, Vec<u64>)> {
    let engine = load(path).unwrap();
    let mut context = Context::new(&engine, options(windows[0].len())).unwrap();
    let mut products = Products::default();
    for window in windows {
        context.evaluate(WindowInput::Tokens(window), &mut products).unwrap();
    }
    let weights = weights(path);
    let mut found: BTreeMap<String, (Vec<Vec<f64>>, Vec<u64>)> = BTreeMap::new();
    for Product { name, inputs, inputs_ne, outputs, outputs_ne } in products.0 {
        let (numbers, n_matrices) = &weights[&name];
        let ([n_in, n_slots, ..], n_out) = (inputs_ne, outputs_ne[0]);
        let (sums, counts) = found
            .entry(name.clone())
            .or_insert_with(|| (vec![vec![0.0; n_in]; *n_matrices], vec![0; *n_matrices]));
        let row_of = |i: usize| match *n_matrices {
            1 => i,
            // Of a token all slots, or one for all.
            _ => i / outputs_ne[1] * n_slots + i % outputs_ne[1] % n_slots,
        };
        for (i, output) in outputs.chunks(n_out).enumerate() {
            let row = &inputs[row_of(i) * n_in..][..n_in];
            let is_product = |matrix: &&[f32]| {
                matrix.chunks(n_in).zip(output).all(|(weights, &output)| {
                    let terms = weights.iter().zip(row).map(|(w, x)| f64::from(*w) * f64::from(*x));
                    let size: f64 = terms.clone().map(f64::abs).sum();
                    (terms.sum::<f64>() - f64::from(output)).abs() <= 1e-2 * size + 1e-12
                })
            };
            let fitting: Vec<usize> = numbers
                .chunks(n_in * n_out)
                .enumerate()
                .filter(|(_, matrix)| is_product(matrix))
                .map(|(number, _)| number)
                .collect();
            let [matrix] = fitting[..] else {
                panic!("{name}: row {i} fits matrices {fitting:?}");
            };
            sums[matrix].iter_mut().zip(row).for_each(|(sum, x)| *sum += f64::from(*x) * f64::from(*x));
            counts[matrix] += 1;
        }
    }
    found
}

#[test]
fn sums_and_counts_equal_the_naive_twin() {
    let dir = tempfile::tempdir().unwrap();
    for architecture in ["llama", "gemma3", "qwen3moe", "qwen2moe"] {
        let path = dir.path().join(architecture);
        Spec::new(architecture, 3).save(Backend::init(), &path).unwrap();
        let windows = windows(architecture);
        let (found, mut expected) = (collected(&path, &windows), naive(&path, &windows));
        let mut n_experts = 0;
        for (name, squares, counts) in found.iter() {
            let (expected, expected_counts) = expected.remove(name).unwrap();
            assert_eq!(counts, expected_counts, "{architecture} {name}");
            for (found, expected) in squares.iter().zip(expected.iter().flatten()) {
                assert!(
                    (found - expected).abs() <= 1e-9 * expected,
                    "{architecture} {name} {found} {expected}"
                );
            }
            assert_eq!(squares.len(), expected.iter().map(Vec::len).sum::<usize>());
            n_experts += usize::from(counts.len() > 1);
        }
        assert!(expected.is_empty(), "{architecture} {:?}", expected.keys());
        assert_eq!(n_experts > 0, architecture != "llama" && architecture != "gemma3");
    }
}

#[test]
fn parts_of_a_model_under_other_numbers_add_up_to_the_whole() {
    let dir = tempfile::tempdir().unwrap();
    for architecture in ["llama", "qwen3moe"] {
        let path = |name: &str| dir.path().join(format!("{architecture}-{name}"));
        Spec::new(architecture, 5).save(Backend::init(), &path("whole")).unwrap();
        shorten(&path("whole"), &[2, 3, 4], &path("first")).unwrap();
        shorten(&path("whole"), &[0, 1], &path("rest")).unwrap();
        let windows = windows(architecture);
        let mut sums = collected(&path("first"), &windows);
        let engine = load(&path("first")).unwrap();
        let input = Input::open(&path("first")).unwrap();
        let model = Model::new(input.parse().unwrap()).unwrap();
        let graph = StreamGraph::of(&model, &engine, model.rules().unwrap().stream).unwrap();
        let mut states = LlamaHiddenStates::new(&engine, options(windows[0].len()), graph).unwrap();
        let rest = load(&path("rest")).unwrap();
        let mut context = Context::new(&rest, options(windows[0].len())).unwrap();
        let mut collector = Collector::of_blocks([2, 3, 4].map(BlockId::new).into());
        for window in &windows {
            let mut entering = Vec::new();
            let mut visit = |position, state: &[f32]| {
                if position == Position::Output(BlockId::new(1)) {
                    entering = state.to_vec();
                }
                Ok(())
            };
            states.visit(window, &mut visit).unwrap();
            context.evaluate(WindowInput::HiddenStates(&entering), &mut collector).unwrap();
            collector.check().unwrap();
        }
        sums.merge(collector.into_sums()).unwrap();
        assert!(sums == collected(&path("whole"), &windows), "{architecture}");
        // A block that is not named is not looked at.
        let mut collector = Collector::of_blocks(vec![BlockId::new(7)]);
        context.evaluate(WindowInput::HiddenStates(&vec![0.5; 32 * 256]), &mut collector).unwrap();
        assert!(collector.into_sums().iter().all(|(name, ..)| name.starts_with("blk.7.")));
    }
}

/// Evaluates the first `n` blocks.
fn run<'m>(pass: &mut Pass<'m, 'm>, n: usize) {
    let bar = Silent.begin("".into(), Unit::Time, 0);
    pass.run(n, &mut (), &mut |(), _| Ok(()), &*bar, &Silent).unwrap();
}

/// The sums block by block. With a folder, of a pass that is interrupted after two blocks, and goes on
/// after `between`. With them the block at which it went on. `None` of a model that is not evaluated so.
fn by_blocks(
    path: &Path,
    windows: &[Vec<Token>],
    folder: Option<&Path>,
    between: fn(&Path),
) -> Option<(Gathered, usize)> {
    let input = Input::open(path).unwrap();
    let model = Model::new(input.parse().unwrap()).unwrap();
    let constraints = Constraints::of(&model).unwrap();
    blockwise::check(&model, &constraints).ok()?;
    let window = windows[0].len();
    let cut = Cut { window, tokens: windows.len() * window, bos: None };
    let texts = Texts::read(Source::BuiltIn).unwrap();
    let set = CalibrationSet::new(&texts, Vec::new(), cut, &|_| Ok(windows.concat())).unwrap();
    let threads = Arc::new(ThreadPool::new(1).unwrap());
    let pass = || {
        let options = ModelOptions::default();
        let pass = Pass::new(&input, &model, &constraints, &set, &threads, options).unwrap();
        let pass = pass.gathering(ALL);
        let Some(folder) = folder else { return pass };
        let key = pass.key(&Calibration::default()).unwrap();
        pass.kept_in::<()>(folder, key, &Silent).unwrap().0
    };
    if let Some(folder) = folder {
        let mut pass = pass();
        run(&mut pass, 2);
        drop(pass);
        between(folder);
    }
    let mut pass = pass();
    let start = pass.next();
    let n_blocks = pass.n_blocks();
    run(&mut pass, n_blocks);
    let sums = pass.take_gathered();
    pass.finish();
    Some((sums, start))
}

#[test]
fn block_by_block_the_sums_are_those_of_the_whole_model_in_every_bit() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    let (mut n_compared, mut n_experts, mut n_routed) = (0, 0, 0);
    let exact = Architecture::all().iter().filter(|architecture| architecture.alone == Alone::Exact);
    for architecture in exact {
        let name = architecture.name;
        if Spec::new(name, 5).save(Backend::init(), &path).is_err() {
            continue;
        }
        let windows = windows(name);
        let Some((found, _)) = by_blocks(&path, &windows, None, |_| {}) else { continue };
        assert!(found == gathered(&path, &windows), "{name}");
        n_compared += 1;
        n_experts += usize::from(found.imatrix.iter().any(|(.., counts)| counts.len() > 1));
        n_routed += usize::from(!found.experts.0.is_empty());
    }
    assert!(n_compared > 50 && n_experts > 15, "{n_compared} {n_experts}");
    assert_eq!(n_routed, n_experts);
}

/// Changes a byte in the sums of the first block.
fn damage_sums(folder: &Path) {
    let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let of_first = files.filter(|path| path.extension().is_some_and(|end| end == "sums")).min().unwrap();
    let mut bytes = fs::read(&of_first).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(of_first, bytes).unwrap();
}

#[test]
fn the_sums_of_an_interrupted_pass_go_on_and_damaged_ones_are_made_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    for architecture in ["llama", "qwen3moe"] {
        Spec::new(architecture, 4).save(Backend::init(), &path).unwrap();
        let windows = windows(architecture);
        let whole = gathered(&path, &windows);
        let scratch = dir.path().join(architecture);
        for (between, expected) in [((|_| {}) as fn(&Path), 2), (damage_sums, 0)] {
            let (found, start) = by_blocks(&path, &windows, Some(&scratch), between).unwrap();
            assert_eq!(start, expected, "{architecture}");
            assert!(found == whole, "{architecture}");
            assert_eq!(fs::read_dir(&scratch).unwrap().count(), 0);
        }
    }
}

#[test]
fn within_a_memory_the_program_writes_the_same_file() {
    let dir = tempfile::tempdir().unwrap();
    let read = |name: &str| fs::read(dir.path().join(name)).unwrap();
    for architecture in ["llama", "qwen3moe"] {
        byte_model(architecture, 12).save(Backend::init(), &dir.path().join("m.gguf")).unwrap();
        let text = "--tokens 128 --window 32 --no-cache --force";
        let limit = memory(dir.path(), Size { gathers: IMATRIX, ..SHORT });
        for line in ["score m.gguf", "score m.gguf --sub-blocks", "m.gguf --blocks 3 -o o.gguf"] {
            let whole = json(dir.path(), &format!("{line} {text} --imatrix-out whole"));
            for more in ["", "--scratch s"] {
                let line = format!("{line} {text} --memory {limit} {more} --imatrix-out blocks");
                let blocks = json(dir.path(), &line);
                assert!(read("blocks") == read("whole"), "{line}");
                assert_eq!(blocks["imatrix_out"]["entries"], whole["imatrix_out"]["entries"]);
                assert_eq!(blocks["blocks"], whole["blocks"], "{line}");
            }
        }
    }
}

/// A folder with a model, and a text for it.
fn folder(architecture: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    Spec::new(architecture, 5).save(Backend::init(), &dir.path().join("m.gguf")).unwrap();
    let text: String = (0..3000).map(|i| char::from(b'a' + (i * i * 7 % 26) as u8)).collect();
    fs::write(dir.path().join("t.txt"), text).unwrap();
    dir
}

const TEXT: &str = "--calibration t.txt --tokens 320 --window 64";

fn scores(result: &Value) -> Vec<f64> {
    result["blocks"].as_array().unwrap().iter().map(|block| block["bi"].as_f64().unwrap()).collect()
}

#[test]
fn score_writes_the_matrix_beside_the_same_scores() {
    let dir = folder("qwen3moe");
    let score = |more: &str| json(dir.path(), &format!("score m.gguf {TEXT} {more}"));
    let plain = score("");
    assert!(plain["imatrix_out"].is_null());
    // The scores are cached now, and are measured all the same.
    let with = score("--imatrix-out i.gguf");
    assert_eq!(with["calibration"]["cached"], false);
    assert_eq!(scores(&with), scores(&plain));
    let out = &with["imatrix_out"];
    let bytes = fs::read(dir.path().join("i.gguf")).unwrap();
    assert_eq!((&out["path"], &out["bytes"]), (&"i.gguf".into(), &bytes.len().into()));
    assert_eq!((&out["windows"], &out["window"]), (&5.into(), &64.into()));
    assert_eq!(out["unused_experts"], 0);
    let file = File::parse(&bytes).unwrap();
    let string = |key: &str| file.metadata().require(key).unwrap();
    assert_eq!(string("general.type").as_str().unwrap(), "imatrix");
    assert_eq!(string("imatrix.chunk_count").as_u64().unwrap(), 5);
    assert_eq!(string("imatrix.chunk_size").as_u64().unwrap(), 64);
    let matrix = Imatrix::parse(&bytes).unwrap();
    assert_eq!(out["entries"], matrix.entries().len());
    let input = Input::open(&dir.path().join("m.gguf")).unwrap();
    matrix.check(&Model::new(input.parse().unwrap()).unwrap()).unwrap();
    let queries = file.tensors().get("blk.4.attn_q.weight.counts").unwrap();
    assert_eq!(queries.bytes(), 320f32.to_le_bytes());
    // It is not overwritten, and then it is.
    let error = failure(dir.path(), &format!("score m.gguf {TEXT} --imatrix-out i.gguf"));
    assert!(error.contains("i.gguf: exists already"), "{error}");
    score("--imatrix-out i.gguf --force");
    assert!(fs::read(dir.path().join("i.gguf")).unwrap() == bytes);
}

#[test]
fn a_measured_matrix_steers_llama_cpp_s_quantization_and_is_renumbered() {
    let dir = folder("llama");
    json(dir.path(), &format!("score m.gguf {TEXT} --imatrix-out i.gguf"));
    let path = |name: &str| dir.path().join(name);
    let quantized = |to: &str, imatrix: &[(String, Vec<f32>)]| {
        // `LLAMA_FTYPE_MOSTLY_Q4_K_S` of llama.h.
        quantize_with_imatrix(Backend::init(), &path("m.gguf"), &path(to), 14, imatrix, true).unwrap();
        fs::read(path(to)).unwrap()
    };
    let values = values(&fs::read(path("i.gguf")).unwrap());
    assert!(values.iter().all(|(_, values)| values.iter().all(|value| *value > 0.0)));
    let flat: Vec<_> = values.iter().map(|(name, v)| (name.clone(), vec![1.0; v.len()])).collect();
    assert!(quantized("a", &values) != quantized("b", &flat));
    let short = json(dir.path(), "m.gguf --blocks 1 -o s.gguf --imatrix i.gguf j.gguf");
    assert_eq!(short["output"]["imatrix"]["entries"], 4 * 7);
}

#[test]
fn the_main_job_writes_the_matrix_of_the_whole_model_however_blocks_are_chosen() {
    let dir = folder("llama");
    let read = |name: &str| fs::read(dir.path().join(name)).unwrap();
    json(dir.path(), &format!("score m.gguf {TEXT} --imatrix-out i.gguf"));
    for (i, choice) in ["--drop 1", "--blocks 2", "--drop 1 --method run", "--drop 1 --method search"]
        .into_iter()
        .enumerate()
    {
        let line = format!("m.gguf {choice} {TEXT} -o {i}.gguf --imatrix-out {i}.imatrix");
        let result = json(dir.path(), &line);
        assert_eq!(result["imatrix_out"]["entries"], 5 * 7, "{choice}");
        assert!(read(&format!("{i}.imatrix")) == read("i.gguf"), "{choice}");
    }
    // A dry run writes none, and measures none.
    let result = json(dir.path(), &format!("m.gguf --blocks 2 {TEXT} --dry-run --imatrix-out dry"));
    assert!(result["imatrix_out"].is_null() && !dir.path().join("dry").exists());
}

#[test]
fn of_a_text_that_is_used_in_part_the_matrix_is_of_that_part() {
    let dir = folder("llama");
    let line = "score m.gguf --calibration t.txt --window 64 --tokens 1280 --drop 1 --confidence 0.6 --imatrix-out i.gguf";
    let result = json(dir.path(), line);
    let n_windows = result["calibration"]["windows"].as_u64().unwrap();
    assert_eq!(result["imatrix_out"]["windows"], n_windows);
    let bytes = fs::read(dir.path().join("i.gguf")).unwrap();
    let file = File::parse(&bytes).unwrap();
    let counts = file.tensors().get("blk.0.ffn_down.weight.counts").unwrap();
    assert_eq!(counts.bytes(), (n_windows as f32 * 64.0).to_le_bytes());
}

#[test]
fn a_context_too_short_for_a_matrix_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut spec = Spec::new("llama", 3);
    spec.extra.push((".context_length", gguf_shorten::gguf::ValueOut::u32(8)));
    spec.save(Backend::init(), &dir.path().join("m.gguf")).unwrap();
    let output = on_one_thread(dir.path(), "score m.gguf --imatrix-out i.gguf");
    assert_eq!(output.status.code(), Some(1));
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.contains("m.gguf: a window of 8 tokens gives no importance matrix"), "{error}");
}
