//! Fewer experts, on every architecture with experts: a shortened file computes the parent whose router never chooses the
//! others.
//!
//! In that parent the rows of the router that belong to the other experts look at one element of the router's input alone,
//! which is positive for every token, and are so negative there that a softmax or a sigmoid of the product is zero.
//! Where experts are chosen with a bias, that of the others is as negative.

use std::collections::BTreeMap;
use std::path::Path;

use ggml::{Backend, Context, ContextOptions, Flow, Node, Operation, Tap, WindowInput};
use gguf_shorten::engine::blockwise::need::Size;
use gguf_shorten::engine::imatrix::Gathers;
use gguf_shorten::gguf::{File, ValueOut};
use gguf_shorten::measure::experts::scores;
use gguf_shorten::model::arch::{Architecture, Experts, Gate, Normalised};
use gguf_shorten::model::input::Input;
use gguf_shorten::model::{BlockId, Model};
use gguf_shorten::output::Parent;
use gguf_shorten::output::save::Target;
use gguf_shorten::output::verify::verify;
use gguf_shorten::plan::experts::{KeptExperts, Mixture};
use gguf_shorten::plan::{Constraints, Cut, ExpertCut, Plan};
use serde_json::Value;

use crate::architectures::{allowed_sets, constraints, file_type, n_blocks, zeroing_is_identity};
use crate::blockwise::{SHORT, memory};
use crate::eval::byte_model;
use crate::imatrix_out::gathered;
use crate::program::{failure, json, on_one_thread};
use crate::random_model::Spec;
use crate::support::{load, n_different, outputs, tokens, zero};

/// The experts that `block` of a tiny model keeps: three of six, or two of each group of four. So the kernel that multiplies
/// with the router stays: ggml has one for numbers of rows that 4 divides, and another (`sgemm.cpp: matmul`), which round
/// otherwise, and where two experts are nearly equal another one is chosen.
fn kept(block: usize, n_groups: usize) -> Vec<usize> {
    match n_groups {
        1 => (0..6)
            .filter(|expert| (expert + block).is_multiple_of(2) || expert / 2 == block % 3)
            .take(3)
            .collect(),
        _ => (0..8).filter(|expert| (expert + block + expert / 4) % 4 >= 2).collect(),
    }
}

/// Overwrites F32 tensors of the model at `path`: `change` is given the name, the elements and the length of rows.
fn overwrite(path: &Path, out: &Path, change: impl Fn(&str, &mut [f32], usize)) {
    let mut bytes = std::fs::read(path).unwrap();
    let file = File::parse(&bytes).unwrap();
    let mut places = Vec::new();
    for tensor in file.tensors().iter().filter(|tensor| tensor.tensor_type().id() == 0) {
        let range = tensor.position().0 as usize..tensor.end().0 as usize;
        places.push((tensor.name().to_owned(), range, tensor.dims()[0] as usize));
    }
    for (name, range, row) in places {
        let bytes = &mut bytes[range];
        let mut elements: Vec<f32> =
            bytes.chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap())).collect();
        change(&name, &mut elements, row);
        for (to, element) in bytes.chunks_exact_mut(4).zip(elements) {
            to.copy_from_slice(&element.to_le_bytes());
        }
    }
    std::fs::write(out, bytes).unwrap();
}

/// Makes element 0 of embeddings larger than all that blocks add.
fn lift(path: &Path) {
    overwrite(path, path, |name, elements, row| match name {
        "token_embd.weight" => elements.iter_mut().step_by(row).for_each(|first| *first = 32.0),
        // What the router's input is multiplied by (`gemma4.cpp`).
        _ if name.ends_with("ffn_gate_inp.scale") => elements[0] = 1.0,
        // The whole stream (`gemma4.cpp`).
        _ if name.ends_with("layer_output_scale.weight") => elements[0] = 1.0,
        _ => {}
    });
}

/// The block of a tensor, and the rest of its name.
fn block_of(name: &str) -> Option<(usize, &str)> {
    let (block, rest) = name.strip_prefix("blk.")?.split_once('.')?;
    Some((block.parse().ok()?, rest))
}

/// Copies the model with routers that choose only the kept experts.
fn bias(path: &Path, experts: &KeptExperts, out: &Path) {
    overwrite(path, out, |name, elements, row| {
        let Some((block, rest)) = block_of(name) else {
            return;
        };
        let Some(kept) = experts.get(&BlockId::new(block)) else {
            return;
        };
        let n_experts = match rest {
            "ffn_gate_inp.weight" => elements.len() / row,
            _ if rest.starts_with("exp_probs_b") => elements.len(),
            _ => return,
        };
        for expert in (0..n_experts).filter(|expert| !kept.contains(expert)) {
            if rest == "ffn_gate_inp.weight" {
                let row = &mut elements[expert * row..(expert + 1) * row];
                row.fill(0.0);
                row[0] = -1e4;
            } else {
                elements[expert] = -1e9;
            }
        }
    });
}

/// Writes the model without some experts and `blocks` to `out`. The output is verified. Returns the experts that stay.
fn shorten(path: &Path, blocks: &[usize], out: &Path) -> Result<KeptExperts, String> {
    let run = || -> anyhow::Result<KeptExperts> {
        let input = Input::open(path)?;
        let model = Model::new(input.parse()?)?;
        let constraints = Constraints::of(&model)?;
        let mixture = Mixture::of(&model)?;
        let kept: KeptExperts =
            mixture.blocks.iter().map(|block| (*block, kept(block.index(), mixture.n_groups))).collect();
        let experts = Some(ExpertCut { kept: kept.clone(), method: "list".to_owned() });
        let removed = blocks.iter().copied().map(BlockId::new).collect();
        let cut = Cut { experts, ..Cut::new(removed, if blocks.is_empty() { "none" } else { "blocks" }) };
        let parent = Parent { input: &input, model: &model, constraints: &constraints };
        let plan = |blake3| Plan::new(&model, &constraints, &cut, blake3);
        Target::new(out, &input, true)?.save(parent, &plan, &mut |_| {})?;
        let written = Input::open(out)?;
        let found = verify(&model, &constraints, &written.parse()?, &|_| {})?;
        anyhow::ensure!(found.differences.is_empty(), "is not verified");
        Ok(kept)
    };
    run().map_err(|error| format!("{error:#}"))
}

/// The largest difference of two outputs over their largest absolute value.
fn distance(found: &[f32], expected: &[f32]) -> f64 {
    let finite = |x: &&f32| x.is_finite();
    let largest = expected.iter().filter(finite).fold(0f64, |max, &x| max.max(f64::from(x).abs()));
    let pairs = found.iter().zip(expected).filter(|(a, b)| a.is_finite() || b.is_finite());
    pairs.fold(0f64, |max, (&a, &b)| max.max((f64::from(a) - f64::from(b)).abs())) / largest
}

/// How a model was compared.
struct Compared {
    n_floats: usize,
    n_different: usize,
    /// Over the largest logit.
    distance: f64,
    /// The same of the parent with all experts: what the cut changes.
    change: f64,
}

/// Compares the shortened model with the biased parent, both without `blocks`.
fn compare(parent: &Path, blocks: &[usize]) -> Result<Compared, String> {
    let [short, zeroed, biased] = ["short", "zeroed", "biased"].map(|name| parent.with_file_name(name));
    let kept = shorten(parent, blocks, &short)?;
    match blocks {
        [] => drop(std::fs::copy(parent, &zeroed).unwrap()),
        blocks => zero(parent, blocks, &zeroed),
    }
    bias(&zeroed, &kept, &biased);
    let [found, expected, whole] = [&short, &biased, &zeroed].map(|path| outputs(path));
    let (found, expected) = (found?, expected?);
    Ok(Compared {
        n_floats: found.len(),
        n_different: n_different(&found, &expected),
        distance: distance(&found, &expected),
        change: distance(&found, &whole?),
    })
}

/// The models of an architecture with experts: the usual one, and of those that choose among groups first one with groups.
fn specs(architecture: &'static Architecture) -> Vec<Spec<'static>> {
    let with = |extra: Vec<(&'static str, ValueOut)>| {
        let n_experts = if extra.iter().any(|(key, _)| *key == ".expert_group_count") { 8 } else { 6 };
        let mut spec = Spec::with_experts(architecture.name, n_blocks(architecture), n_experts);
        spec.extra.extend(extra);
        if architecture.name == "deepseek4" {
            spec.extra.push((".hash_layer_count", ValueOut::u32(0)));
        }
        spec
    };
    let mut specs = vec![with(Vec::new())];
    if let Experts::Routed(gate, normalised) = architecture.experts {
        if normalised == Normalised::ByKey {
            specs.push(with(vec![(".expert_weights_norm", ValueOut::bool(true))]));
        }
        // deepseek4 takes one function alone.
        if matches!(gate, Gate::ByKey | Gate::ByKeyElseSoftmax) && architecture.name != "deepseek4" {
            specs.push(with(vec![
                (".expert_gating_func", ValueOut::u32(1)),
                (".expert_group_count", ValueOut::u32(2)),
                (".expert_group_used_count", ValueOut::u32(1)),
            ]));
        }
    }
    specs
}

fn check(architecture: &'static Architecture, dir: &Path) -> Result<String, String> {
    let backend = Backend::init();
    let [plain, parent] = ["plain", "parent"].map(|name| dir.join(name));
    let mut found = Vec::new();
    for (variant, spec) in specs(architecture).into_iter().enumerate() {
        let (name, file_type) = file_type(architecture.name, variant);
        let at = |error: String| format!("variant {variant} in {name}: {error}");
        spec.save(backend, &plain).map_err(at)?;
        lift(&plain);
        match file_type {
            None => drop(std::fs::copy(&plain, &parent).unwrap()),
            Some(file_type) => ggml::testing::quantize(backend, &plain, &parent, file_type)
                .map_err(|error| at(error.to_string()))?,
        }
        let mut sets = vec![Vec::new()];
        if variant == 0 && zeroing_is_identity(architecture) && architecture.name != "kimi-k3" {
            let constraints = constraints(&parent).map_err(at)?;
            sets.extend(allowed_sets(&constraints).into_iter().find(|set| set.len() == 2));
        }
        for blocks in sets {
            let compared = compare(&parent, &blocks).map_err(at)?;
            if compared.n_different > 0 || compared.change == 0.0 {
                return Err(at(format!(
                    "without blocks {blocks:?} {} of {} floats differ, by {:.1e} of the largest; with all experts by {:.1e}",
                    compared.n_different, compared.n_floats, compared.distance, compared.change
                )));
            }
            found.push(format!("{name} {} floats ({:.0e})", compared.n_floats, compared.change));
        }
    }
    Ok(found.join(", "))
}

fn check_share(share: usize) {
    let dir = tempfile::tempdir().unwrap();
    let only = std::env::var("ARCHITECTURE").ok();
    let mut failed = Vec::new();
    let routed = Architecture::all().iter().filter(|arch| matches!(arch.experts, Experts::Routed(..)));
    for architecture in routed.skip(share).step_by(N_SHARES) {
        if only.as_deref().is_some_and(|only| only.split(',').all(|only| only != architecture.name)) {
            continue;
        }
        match check(architecture, dir.path()) {
            Ok(found) => println!("{:<16}{found}", architecture.name),
            Err(error) => failed.push(format!("{}: {error}", architecture.name)),
        }
    }
    assert!(failed.is_empty(), "{failed:#?}");
}

/// The numbers of the F32 tensor of a model.
fn floats(file: &File<'_>, name: &str) -> Vec<f64> {
    let tensor = file.tensors().get(name).unwrap_or_else(|| panic!("{name}"));
    let (numbers, _) = tensor.bytes().as_chunks::<4>();
    numbers.iter().map(|bytes| f64::from(f32::from_le_bytes(*bytes))).collect()
}

/// `[n_out]` of a matrix `[n_out, n_in]` and `x`.
fn product(matrix: &[f64], x: &[f64]) -> Vec<f64> {
    matrix.chunks_exact(x.len()).map(|row| row.iter().zip(x).map(|(a, b)| a * b).sum()).collect()
}

/// Records what enters the routers, `[n_tokens, n_embd]`, block after block.
#[derive(Default)]
struct Entering(Vec<(usize, Vec<f32>)>);

impl Tap for Entering {
    fn wants(&mut self, node: Node<'_>) -> bool {
        let weight = node.operand(0).map_or("", |operand| operand.name());
        node.operation() == Operation::Product && weight.ends_with(".ffn_gate_inp.weight")
    }

    fn read(&mut self, node: Node<'_>) -> Flow {
        let (block, _) = block_of(node.operand(0).unwrap().name()).unwrap();
        let mut values = Vec::new();
        node.operand(1).unwrap().read(&mut values).unwrap();
        self.0.push((block, values));
        Flow::Continue
    }
}

/// The weights of the chosen experts of a token, by loops: of qwen3moe and olmoe a softmax over all, of the first over their
/// sum, of dots1 a sigmoid, chosen with a bias, and of llama4 one, chosen without it.
fn routed(architecture: &str, logits: &[f64], bias: &[f64], n_used: usize) -> Vec<(usize, f64)> {
    let sigmoid = |x: &f64| 1.0 / (1.0 + (-x).exp());
    let total: f64 = logits.iter().map(|x| x.exp()).sum();
    let weights: Vec<f64> = match architecture {
        "dots1" | "llama4" => logits.iter().map(sigmoid).collect(),
        _ => logits.iter().map(|x| x.exp() / total).collect(),
    };
    let mut order: Vec<usize> = (0..logits.len()).collect();
    let by = |expert: usize| if bias.is_empty() { logits[expert] } else { weights[expert] + bias[expert] };
    order.sort_by(|&a, &b| by(b).total_cmp(&by(a)));
    order.truncate(n_used);
    let sum: f64 = order.iter().map(|&expert| weights[expert]).sum();
    let scale = match architecture {
        "qwen3moe" => 1.0 / sum,
        // `expert_weights_scale`.
        "dots1" => 1.5,
        _ => 1.0,
    };
    order.into_iter().map(|expert| (expert, weights[expert] * scale)).collect()
}

#[test]
fn scores_of_experts_are_those_of_loops() {
    const N_EMBD: usize = 256;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m");
    for architecture in ["qwen3moe", "olmoe", "dots1", "llama4"] {
        // Factors of the file beside weights, and fused matrices, are left out: the loops know none.
        let spec = Spec {
            omitted: |name| name.ends_with("scale") || name.contains("gate_up_exps"),
            ..Spec::with_experts(architecture, 5, 6)
        };
        spec.save(Backend::init(), &path).unwrap();
        let windows = [tokens(72), tokens(72).into_iter().rev().collect::<Vec<_>>()];
        let found = scores(&gathered(&path, &windows).experts);
        let bytes = std::fs::read(&path).unwrap();
        let file = File::parse(&bytes).unwrap();
        let engine = load(&path).unwrap();
        let mut context = Context::new(&engine, ContextOptions { window: 72, threads: 1 }).unwrap();
        let mut entering = Entering::default();
        for window in &windows {
            context.evaluate(WindowInput::Tokens(window), &mut entering).unwrap();
        }
        // Of each block and expert the tokens, gate weights and outputs.
        let mut sums: BTreeMap<usize, Vec<[f64; 3]>> = BTreeMap::new();
        for (block, inputs) in entering.0 {
            let tensor = |rest: &str| floats(&file, &format!("blk.{block}.{rest}.weight"));
            let bias = match architecture {
                "dots1" => floats(&file, &format!("blk.{block}.exp_probs_b.bias")),
                _ => Vec::new(),
            };
            let (router, down) = (tensor("ffn_gate_inp"), tensor("ffn_down_exps"));
            let (gate, up) = (tensor("ffn_gate_exps"), tensor("ffn_up_exps"));
            let of_block = sums.entry(block).or_insert(vec![[0.0; 3]; 6]);
            for x in inputs.chunks_exact(N_EMBD) {
                let x: Vec<f64> = x.iter().copied().map(f64::from).collect();
                for (expert, weight) in routed(architecture, &product(&router, &x), &bias, 2) {
                    let matrix = |of: &[f64]| of[expert * of.len() / 6..(expert + 1) * of.len() / 6].to_vec();
                    let (before, after) =
                        if architecture == "llama4" { (weight, 1.0) } else { (1.0, weight) };
                    let x: Vec<f64> = x.iter().map(|x| x * before).collect();
                    let (g, u) = (product(&matrix(&gate), &x), product(&matrix(&up), &x));
                    let inner: Vec<f64> = g.iter().zip(&u).map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect();
                    let output = product(&matrix(&down), &inner);
                    let length = output.iter().map(|y| y * y).sum::<f64>().sqrt() * after;
                    for (sum, term) in of_block[expert].iter_mut().zip([1.0, weight, length]) {
                        *sum += term;
                    }
                }
            }
        }
        assert_eq!(
            found.iter().map(|block| block.block.index()).collect::<Vec<_>>(),
            sums.keys().copied().collect::<Vec<_>>()
        );
        for block in &found {
            for (found, [n, gate, output]) in block.experts.iter().zip(&sums[&block.block.index()]) {
                let close = |a: f64, b: f64| (a - b).abs() <= 1e-4 * b.abs();
                assert_eq!(found.tokens, *n as u64, "{architecture} block {}", block.block);
                assert!(close(found.frequency, n / 144.0));
                assert!(close(found.gate, gate / n.max(1.0)), "{architecture}: {} {gate} {n}", found.gate);
                assert!(
                    close(found.reap, output / n.max(1.0)),
                    "{architecture}: {} {output} {n}",
                    found.reap
                );
            }
        }
    }
}

/// A folder with a byte model of six experts, two used.
fn folder() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let mut spec = byte_model("qwen3moe", 4);
    spec.extra.push((".expert_count", ValueOut::u32(6)));
    spec.save(Backend::init(), &dir.path().join("m.gguf")).unwrap();
    dir
}

#[test]
fn those_with_the_lowest_scores_go_beside_blocks() {
    const TEXT: &str = "--tokens 192 --window 32 --no-cache";
    let dir = folder();
    let scored = json(dir.path(), &format!("score m.gguf --experts {TEXT}"));
    let blocks = scored["expert_scores"].as_array().unwrap();
    assert_eq!(blocks.len(), 4);
    // The same windows go through blocks either way.
    let plain = json(dir.path(), &format!("score m.gguf {TEXT}"));
    assert_eq!((&plain["blocks"], &plain["expert_scores"]), (&scored["blocks"], &Value::Null));
    for (line, by) in [
        ("--drop-experts 2 --effort quick", "reap"),
        ("--drop-experts 40% --experts-by frequency", "frequency"),
        ("--drop-experts 2 --experts-by gate --blocks 1", "gate"),
        ("--drop-experts 2 --experts-by contribution", "contribution"),
        ("--drop-experts 2 --experts-by reap --drop 1 --method bi", "reap"),
        ("--drop-experts 2 --experts-by reap --drop 1 --method auto", "reap"),
        ("--drop-experts 2 --experts-by reap --drop 1 --method search", "reap"),
    ] {
        let out = json(dir.path(), &format!("m.gguf {line} -o out.gguf --force {TEXT}"));
        assert_eq!(out["expert_scores"], scored["expert_scores"], "{line}");
        let experts = &out["experts"];
        assert_eq!((&experts["method"], &experts["kept_count"]), (&by.into(), &4.into()), "{line}");
        assert_eq!((&out["experts_chosen_by"], &out["experts_auto"]), (&Value::Null, &Value::Null), "{line}");
        let kept = experts["kept"].as_object().unwrap();
        let removed: Vec<u64> =
            out["removed"].as_array().unwrap().iter().map(|block| block.as_u64().unwrap()).collect();
        assert_eq!(kept.len() + removed.len(), 4, "{line}");
        for (block, kept) in kept {
            let of_block = &blocks[block.parse::<usize>().unwrap()]["experts"];
            let of = |expert: u64, by: &str| of_block[expert as usize][by].as_f64().unwrap();
            let score = |expert: u64| match by {
                "contribution" => of(expert, "reap") * of(expert, "frequency"),
                by => of(expert, by),
            };
            let kept: Vec<u64> = kept.as_array().unwrap().iter().map(|k| k.as_u64().unwrap()).collect();
            let gone = (0..6).filter(|expert| !kept.contains(expert));
            let highest_gone = gone.map(score).fold(0.0, f64::max);
            assert!(kept.iter().all(|expert| score(*expert) >= highest_gone), "{line}");
        }
        let verified = json(dir.path(), "verify out.gguf --parent m.gguf");
        assert_eq!((&verified["verified"], &verified["experts"]), (&true.into(), experts), "{line}");
        // What is left can be evaluated.
        let evaluated = json(dir.path(), "eval out.gguf --tokens 64 --window 32");
        assert!(evaluated["perplexity"].as_f64().unwrap().is_finite(), "{line}");
    }
}

/// Windows that are scored, and those that there are after them.
const N_SCORED: usize = 12;
const N_AFTER: usize = 5;
const WINDOW: usize = 32;

/// A folder with that mixture, and a text of one-byte tokens.
fn folder_with_text() -> tempfile::TempDir {
    let dir = folder();
    let letter = |i: usize| char::from(b'a' + ((i * i * 31 + i / 7) % 26) as u8);
    let text: String = (0..WINDOW * (N_SCORED + N_AFTER)).map(letter).collect();
    std::fs::write(dir.path().join("text"), text).unwrap();
    dir
}

fn text(n_windows: usize) -> String {
    format!("--calibration text --window {WINDOW} --tokens {}", n_windows * WINDOW)
}

/// The sum of KL divergences and the scored tokens of the first windows.
fn sum_of_kl(dir: &Path, out: &str, n_windows: usize) -> (f64, f64) {
    let found = json(dir, &format!("eval {out} --parent m.gguf {}", text(n_windows)));
    let n = found["tokens_scored"].as_f64().unwrap();
    (n * found["kl_divergence"]["mean"].as_f64().unwrap(), n)
}

#[test]
fn by_default_those_go_that_cost_least_on_text_that_chose_nothing() {
    let folder = folder_with_text();
    let dir = folder.path();
    let mut n_rivals = 0;
    for line in ["--drop-experts 2", "--drop-experts 50% --blocks 1"] {
        let found = json(dir, &format!("m.gguf {line} -o out.gguf --force {}", text(N_SCORED)));
        let auto = &found["experts_auto"];
        assert_eq!((&found["experts_chosen_by"], &auto["fallback"]), (&"auto".into(), &Value::Null));
        // The second run takes the scores of the first.
        assert_eq!(found["calibration"]["cached"], line != "--drop-experts 2");
        let candidates = auto["candidates"].as_array().unwrap();
        let chosen: Vec<&Value> = candidates.iter().filter(|one| one["chosen"] == true).collect();
        assert_eq!(chosen.len(), 1);
        assert_eq!(found["experts"]["method"], chosen[0]["methods"][0]);
        assert_eq!(found["experts"]["kept"], without(&chosen[0]["kept"], &found["removed"]));
        for by in ["reap", "frequency", "contribution"] {
            let alone = json(dir, &format!("m.gguf {line} --experts-by {by} --dry-run {}", text(N_SCORED)));
            let of = |one: &&Value| one["methods"].as_array().unwrap().contains(&by.into());
            let of: Vec<&Value> = candidates.iter().filter(of).collect();
            assert_eq!(of.len(), 1, "{by}");
            assert_eq!(without(&of[0]["kept"], &found["removed"]), alone["experts"]["kept"], "{by}");
        }
        if candidates.len() < 2 {
            continue;
        }
        n_rivals += 1;
        let n_windows = auto["windows"].as_u64().unwrap() as usize;
        assert!(n_windows > 1 && auto["seen_windows"] == 0, "{auto}");
        let n_evaluations = auto["block_evaluations"].as_u64().unwrap() as usize;
        assert!(2 * n_evaluations <= 3 * N_SCORED * 4, "{n_evaluations}");
        let kl = |one: &Value| one["kl_divergence"].as_f64().unwrap();
        assert_eq!(kl(chosen[0]), candidates.iter().map(kl).fold(f64::MAX, f64::min));
        let blocks = if line.contains("--blocks 1") { "--blocks 1" } else { "" };
        for one in candidates {
            std::fs::write(dir.join("kept.json"), one["kept"].to_string()).unwrap();
            json(dir, &format!("m.gguf --experts kept.json {blocks} -o one.gguf --force"));
            let (scored, n_scored) = sum_of_kl(dir, "one.gguf", N_SCORED);
            let (all, n_all) = sum_of_kl(dir, "one.gguf", N_SCORED + n_windows);
            let expected = (all - scored) / (n_all - n_scored);
            assert!((kl(one) / expected - 1.0).abs() < 1e-6, "{one} {expected}");
        }
        let verified = json(dir, "verify out.gguf --parent m.gguf");
        assert_eq!((&verified["verified"], &verified["experts"]), (&true.into(), &found["experts"]));
        let table = on_one_thread(dir, &format!("m.gguf {line} --dry-run {}", text(N_SCORED)));
        let table = String::from_utf8(table.stdout).unwrap();
        let best = chosen[0]["methods"].as_array().unwrap().iter().map(|word| word.as_str().unwrap());
        let costs = format!(" windows that chose nothing; {} evaluations", auto["block_evaluations"]);
        let first =
            format!("block\n         by {}: KL {:.4}", best.collect::<Vec<_>>().join(", "), kl(chosen[0]));
        assert!(table.contains(&costs) && table.contains(&first), "{table}");
    }
    assert!(n_rivals > 0);
}

/// Lists of experts without those of the removed blocks.
fn without(kept: &Value, removed: &Value) -> Value {
    let mut kept = kept.as_object().unwrap().clone();
    for block in removed.as_array().unwrap() {
        kept.remove(&block.to_string());
    }
    Value::Object(kept)
}

#[test]
fn where_sets_cannot_be_compared_reap_chooses_and_that_is_said() {
    let dir = folder();
    let limit = memory(dir.path(), Size { gathers: EXPERTS, n_windows: 6, ..SHORT });
    let line = "m.gguf --drop-experts 2 --dry-run --tokens 192 --window 32 --convert none";
    let alone = json(dir.path(), &format!("{line} --experts-by reap"));
    let output = on_one_thread(dir.path(), &format!("{line} --memory {limit} --no-cache --json -"));
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    let why = "there is no memory for the whole model and a smaller one beside it";
    assert_eq!((&found["experts_auto"]["fallback"], &found["experts"]), (&why.into(), &alone["experts"]));
    assert_eq!(found["experts_auto"]["windows"], 0);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains(&format!("experts are chosen by reap alone, since {why}")), "{said}");
}

#[test]
fn rows_of_fewer_experts_are_those_of_the_main_job() {
    let dir = folder();
    let dir = dir.path();
    let text = "--tokens 96 --window 32";
    let by = "--choose-tokens 96";
    let line =
        format!("compare m.gguf --drop-experts 2,50%,3,5 --drop 1 --requantize Q8_0 --mixed {by} {text}");
    let output = on_one_thread(dir, &format!("{line} --json -"));
    // One number is not possible.
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    let rows = found["rows"].as_array().unwrap();
    let names: Vec<&str> = rows.iter().map(|row| row["name"].as_str().unwrap()).collect();
    let expected = [
        "m.gguf",
        "1 block fewer",
        "2 experts fewer",
        "3 experts fewer",
        "5 experts fewer",
        "1 block fewer, Q8_0",
        "2 experts fewer, Q8_0",
        "3 experts fewer, Q8_0",
        "5 experts fewer, Q8_0",
        "Q8_0",
    ];
    assert_eq!(names, expected);
    for (number, n) in [(2, 2), (3, 3)] {
        let row = &rows[number];
        let made = json(dir, &format!("m.gguf --drop-experts {n} --tokens 96 -o short.gguf --force"));
        assert_eq!((&row["kind"], &row["experts"]), (&"experts".into(), &made["experts"]));
        assert_eq!((&row["removed"], &row["method"]), (&Value::Null, &Value::Null));
        let costs = |auto: &Value| auto["candidates"].clone();
        assert_eq!(costs(&row["experts_auto"]), costs(&made["experts_auto"]));
        let eval = json(dir, &format!("eval short.gguf --parent m.gguf {text}"));
        for key in ["perplexity", "kl_divergence", "same_top"] {
            assert_eq!(row[key], eval[key], "{key}");
        }
        assert_eq!(
            (&row["bytes"], &row["parameters"]),
            (&eval["model"]["bytes"], &eval["model"]["parameters"])
        );
        let mixed = &rows[number + 4];
        assert_eq!((&mixed["kind"], &mixed["experts"]), (&"mixed".into(), &made["experts"]));
        assert!(mixed["bytes"].as_u64() < row["bytes"].as_u64());
    }
    let why = "m.gguf: cannot keep 1 of 6 experts: 2 are used at once";
    assert_eq!((&rows[4]["error"], &rows[8]["error"]), (&why.into(), &why.into()));
    assert_eq!((&found["choice"]["experts_by"], &rows[1]["experts"]), (&"auto".into(), &Value::Null));
    let shown = on_one_thread(dir, &format!("compare m.gguf --drop-experts 2 --experts-by gate {by} {text}"));
    let shown = String::from_utf8(shown.stdout).unwrap();
    for line in [
        "experts  2 experts fewer: 4 of 6 stay in each of 4 blocks, by gate",
        "verdict  no verdict: only rows with fewer experts were measured",
        "so fewer blocks or experts look better here",
    ] {
        assert!(shown.contains(line), "{shown}");
    }
    Spec::new("llama", 5).save(Backend::init(), &dir.join("m.gguf")).unwrap();
    let error = failure(dir, "compare m.gguf --drop-experts 2");
    assert!(error.contains("m.gguf: has no experts to remove"), "{error}");
}

#[test]
fn scores_of_experts_go_on_after_an_interrupt_and_within_a_memory() {
    let dir = folder();
    let text = "--tokens 192 --window 32 --no-cache";
    let whole = json(dir.path(), &format!("score m.gguf --experts {text} --convert none"));
    let limit = memory(dir.path(), Size { gathers: EXPERTS, n_windows: 6, ..SHORT });
    for more in ["", "--scratch s", "--imatrix-out i.gguf"] {
        let found = json(
            dir.path(),
            &format!("score m.gguf --experts {text} --convert none --memory {limit} {more}"),
        );
        assert_eq!(found["expert_scores"], whole["expert_scores"], "{more}");
    }
}

/// What is added up for scores of experts.
const EXPERTS: Gathers = Gathers { imatrix: false, experts: true };

#[test]
fn models_without_experts_to_score_are_refused_before_anything_is_measured() {
    let dir = tempfile::tempdir().unwrap();
    let refused = |name: &str, line: &str, reason: &str| {
        Spec::new(name, 5).save(Backend::init(), &dir.path().join("m.gguf")).unwrap();
        let error = failure(dir.path(), line);
        assert!(error.contains(reason), "{error}");
    };
    let lines = ["score m.gguf --experts", "m.gguf --drop-experts 1 -o out.gguf"];
    for line in lines {
        refused("llama", line, "has no experts to remove");
        refused("grovemoe", line, "experts of architecture 'grovemoe' cannot be removed");
        refused("deepseek4", line, "block 0 has a table of the experts of each token");
    }
    refused(
        "qwen3moe",
        "m.gguf --drop-experts 3 -o out.gguf",
        "cannot keep 1 of 4 experts: 2 are used at once",
    );
    refused(
        "qwen3moe",
        "m.gguf --drop-experts 9 -o out.gguf",
        "cannot keep 0 of 4 experts: 2 are used at once",
    );
}

const N_SHARES: usize = 2;

#[test]
fn fewer_experts_compute_the_parent_that_chooses_among_them_share_1() {
    check_share(0);
}

#[test]
fn fewer_experts_compute_the_parent_that_chooses_among_them_share_2() {
    check_share(1);
}
