//! Fewer experts, on every architecture with experts: a shortened file computes the parent whose router never chooses the
//! others.
//!
//! In that parent the rows of the router that belong to the other experts look at one element of the router's input alone,
//! which is positive for every token, and are so negative there that a softmax or a sigmoid of the product is zero.
//! Where experts are chosen with a bias, that of the others is as negative.

use std::path::Path;

use ggml::Backend;
use gguf_shorten::gguf::{File, ValueOut};
use gguf_shorten::model::arch::{Architecture, Experts, Gate, Normalised};
use gguf_shorten::model::input::Input;
use gguf_shorten::model::{BlockId, Model};
use gguf_shorten::output::Parent;
use gguf_shorten::output::save::Target;
use gguf_shorten::output::verify::verify;
use gguf_shorten::plan::experts::{KeptExperts, Mixture};
use gguf_shorten::plan::{Constraints, Cut, ExpertCut, Plan};

use crate::architectures::{allowed_sets, constraints, file_type, n_blocks, zeroing_is_identity};
use crate::random_model::Spec;
use crate::support::{n_different, outputs, zero};

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

/// Makes element 0 of every token's embedding larger than all that blocks add to it.
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

/// Copies the model at `path` with routers that never choose other experts than the kept ones.
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

/// The cut of the model at `path` that keeps those experts, and its output without `blocks` at `out`, which is verified.
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

/// Compares the shortened model with the parent that never chooses the other experts, both without `blocks`.
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
            specs.push(with(vec![(".expert_gating_func", ValueOut::u32(1))]));
            specs.push(with(vec![
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
        if zeroing_is_identity(architecture) && architecture.name != "kimi-k3" {
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

const N_SHARES: usize = 2;

#[test]
fn fewer_experts_compute_the_parent_that_chooses_among_them_share_1() {
    check_share(0);
}

#[test]
fn fewer_experts_compute_the_parent_that_chooses_among_them_share_2() {
    check_share(1);
}
