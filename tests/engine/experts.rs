//! Fewer experts, on every architecture with experts: a shortened file computes the parent whose router never chooses the
//! others.
//!
//! In that parent the rows of the router that belong to the other experts look at one element of the router's input alone,
//! which is positive for every token, and are so negative there that a softmax or a sigmoid of the product is zero.
//! Where experts are chosen with a bias, that of the others is as negative.

use std::collections::BTreeMap;
use std::path::Path;

use ggml::{Backend, Context, ContextOptions, Flow, Node, Operation, Tap, WindowInput};
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

use crate::architectures::{allowed_sets, constraints, file_type, n_blocks, zeroing_is_identity};
use crate::imatrix_out::gathered;
use crate::program::json;
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

/// Records nodes of block 0 that have one of these names before the number, and what enters its router.
struct OfBlock<'n> {
    names: &'n [&'n str],
    found: BTreeMap<String, Vec<f32>>,
}

impl Tap for OfBlock<'_> {
    fn wants(&mut self, node: Node<'_>) -> bool {
        node.name().strip_suffix("-0").is_some_and(|name| self.names.contains(&name))
    }

    fn read(&mut self, node: Node<'_>) -> Flow {
        let mut values = Vec::new();
        node.read(&mut values).unwrap();
        self.found.insert(node.name().to_owned(), values);
        if let Some(entering) = node.operand(1).filter(|_| node.name() == "ffn_moe_logits-0") {
            let mut values = Vec::new();
            entering.read(&mut values).unwrap();
            self.found.insert("entering".to_owned(), values);
        }
        Flow::Continue
    }
}

/// The bound of the help page `experts`: where the smaller router is multiplied by another kernel, each logit of it is off by
/// `2 gamma(n) sum |w x|` at most, in whatever order a kernel adds (Higham, Accuracy and Stability of Numerical Algorithms,
/// equation 3.5); another expert is chosen only between two that are nearer than that; and what chosen experts give together
/// changes by the factor of their weights.
#[test]
fn another_kernel_of_the_router_stays_within_its_bound() {
    const N_EMBD: usize = 256;
    const KEPT: [usize; 5] = [0, 1, 3, 4, 6];
    let gamma = |n: usize| {
        let nu = n as f64 * f64::from(f32::EPSILON) / 2.0;
        nu / (1.0 - nu)
    };
    let dir = tempfile::tempdir().unwrap();
    let (path, short) = (dir.path().join("m.gguf"), dir.path().join("short.gguf"));
    let spec = Spec {
        omitted: |name| name.ends_with("scale") || name.contains("gate_up_exps"),
        ..Spec::with_experts("qwen3moe", 2, 8)
    };
    spec.save(Backend::init(), &path).unwrap();
    lift(&path);
    json(dir.path(), "m.gguf --keep-experts 0-1,3-4,6 -o short.gguf");
    let biased = dir.path().join("biased.gguf");
    bias(&path, &(0..2).map(|block| (BlockId::new(block), KEPT.to_vec())).collect(), &biased);
    let [parent, cut] = [&biased, &short].map(|path| {
        let engine = load(path).unwrap();
        let mut context = Context::new(&engine, ContextOptions { window: 144, threads: 1 }).unwrap();
        let mut tap = OfBlock { names: &["ffn_moe_logits", "ffn_moe_out"], found: BTreeMap::new() };
        context.evaluate(WindowInput::Tokens(&tokens(144)), &mut tap).unwrap();
        tap.found
    });
    assert!(n_different(&parent["entering"], &cut["entering"]) == 0);
    let bytes = std::fs::read(&path).unwrap();
    let file = File::parse(&bytes).unwrap();
    let tensor = |rest: &str| floats(&file, &format!("blk.0.{rest}.weight"));
    let [router, gate, up, down] =
        ["ffn_gate_inp", "ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"].map(tensor);
    let matrix = |of: &[f64], expert: usize| of[expert * of.len() / 8..(expert + 1) * of.len() / 8].to_vec();
    let (mut n_compared, mut worst) = (0, 0f64);
    for (token, x) in cut["entering"].chunks_exact(N_EMBD).enumerate() {
        let x: Vec<f64> = x.iter().copied().map(f64::from).collect();
        let of_parent = |expert: usize| f64::from(parent["ffn_moe_logits-0"][token * 8 + expert]);
        let of_cut = |number: usize| f64::from(cut["ffn_moe_logits-0"][token * KEPT.len() + number]);
        let mut delta = 0f64;
        for (number, &expert) in KEPT.iter().enumerate() {
            let row = matrix(&router, expert);
            let exact: f64 = row.iter().zip(&x).map(|(w, x)| w * x).sum();
            let off = gamma(N_EMBD) * row.iter().zip(&x).map(|(w, x)| (w * x).abs()).sum::<f64>();
            for found in [of_parent(expert), of_cut(number)] {
                assert!(
                    (found - exact).abs() <= off,
                    "token {token}, expert {expert}: {found} {exact} {off}"
                );
            }
            delta = delta.max(2.0 * off);
        }
        let two = |logit: &dyn Fn(usize) -> f64| {
            let mut order: Vec<usize> = (0..KEPT.len()).collect();
            order.sort_by(|&a, &b| logit(b).total_cmp(&logit(a)));
            order.truncate(2);
            order.sort_unstable();
            order
        };
        let parent_logit = |number: usize| of_parent(KEPT[number]);
        let (chosen, other) = (two(&of_cut), two(&parent_logit));
        if chosen != other {
            let gap = |a: usize, b: usize| (parent_logit(a) - parent_logit(b)).abs();
            let least = chosen.iter().filter(|n| !other.contains(n)).map(|&n| {
                other.iter().filter(|m| !chosen.contains(m)).map(|&m| gap(n, m)).fold(f64::MAX, f64::min)
            });
            assert!(least.fold(0.0, f64::max) <= 2.0 * delta, "token {token} goes to other experts");
            continue;
        }
        let total: f64 = chosen.iter().map(|&n| of_cut(n).exp()).sum();
        let mut sizes = vec![0.0; N_EMBD];
        for &number in &chosen {
            let [g, u] = [&gate, &up].map(|of| product(&matrix(of, KEPT[number]), &x));
            let inner: Vec<f64> = g.iter().zip(&u).map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect();
            let output = product(&matrix(&down, KEPT[number]), &inner);
            let weight = of_cut(number).exp() / total;
            sizes.iter_mut().zip(output).for_each(|(size, y)| *size += weight * y.abs());
        }
        // Weights are off by both ends of a fraction; a softmax, a division, products and sums are rounded beside that.
        let factor = (2.0 * delta).exp_m1() + 2.0 * gamma(8 + 16);
        let of = |found: &BTreeMap<String, Vec<f32>>, i: usize| {
            f64::from(found["ffn_moe_out-0"][token * N_EMBD + i])
        };
        for (i, size) in sizes.into_iter().enumerate() {
            // The loops' own outputs are near those of ggml.
            let (off, bound) = ((of(&parent, i) - of(&cut, i)).abs(), factor * (1.001 * size + 1e-30));
            assert!(off <= bound, "token {token}, element {i}: {off} {bound}");
            worst = worst.max(off / bound);
        }
        n_compared += 1;
    }
    assert!(n_compared > 100, "{n_compared}");
    println!("largest share of the bound: {worst:.4}");
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
