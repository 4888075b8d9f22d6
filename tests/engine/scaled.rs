//! The writers that `--heal scale` scales are all that there are. With them and the embedding doubled, the stream doubles and
//! nothing else changes. And what it makes of a model, proven by `verify`.

use std::collections::BTreeMap;
use std::path::Path;

use ggml::{Backend, Token};
use gguf_shorten::gguf::ValueOut;
use gguf_shorten::heal::healer::{Candidate, Healer};
use gguf_shorten::heal::projections::Projections;
use gguf_shorten::heal::scale;
use gguf_shorten::heal::split::Split;
use gguf_shorten::measure::loss::Objective;
use gguf_shorten::model::arch::Architecture;
use gguf_shorten::model::input::Input;
use gguf_shorten::model::{BlockId, Model};
use gguf_shorten::plan::{ChangedTensors, Constraints};

use crate::architectures::{NOT_EVALUATED, n_blocks};
use crate::eval::byte_model;
use crate::program::{json, on_one_thread};
use crate::random_model::Spec;
use crate::support::{hidden_states, load, setup};

/// Architectures whose stream does not double with the embedding. A norm without weights follows it (`muse-glimmer.cpp`).
const NORMED: &[&str] = &["muse-glimmer"];

/// What a stream begins with: a norm of it where there is one, else the embeddings.
fn begins_stream(model: &Model<'_>, name: &str) -> bool {
    const NORM: [&str; 2] = ["token_embd_norm.weight", "token_embd_norm.bias"];
    let has_norm = model.tensors().iter().any(|t| t.info.name() == NORM[0])
        // There it is the norm of the output (`lfm2.cpp`).
        && !model.architecture().starts_with("lfm2");
    match has_norm {
        true => NORM.contains(&name),
        false => ["token_embd.weight", "position_embd.weight"].contains(&name),
    }
}

/// The relative error of the doubled model's stream against twice the original. All writers and the embedding are doubled.
/// `None` if its writers are not known.
fn error(architecture: &Architecture, dir: &Path) -> Option<f64> {
    let [path, doubled] = ["m.gguf", "doubled.gguf"].map(|name| dir.join(name));
    let mut spec = Spec::new(architecture.name, n_blocks(architecture));
    // The usual epsilon of norms would show.
    for key in [".attention.layer_norm_rms_epsilon", ".attention.layer_norm_epsilon"] {
        spec.extra.push((key, ValueOut::f32(1e-12)));
    }
    spec.save(Backend::init(), &path).unwrap();
    let input = Input::open(&path).unwrap();
    let model = Model::new(input.parse().unwrap()).unwrap();
    let writers = Projections::of(&model).ok()?;
    let blocks = (0..model.n_trunk_blocks()).map(BlockId::new);
    let factors: BTreeMap<BlockId, f64> = blocks.map(|block| (block, 2.0)).collect();
    let scaled = writers.scaled(&model, &ChangedTensors::new(), &factors, &|_| false).unwrap();
    assert!(scaled.requantized.is_empty());
    let mut bytes = std::fs::read(&path).unwrap();
    for (i, tensor) in model.tensors().iter().enumerate() {
        let info = &tensor.info;
        let new = match scaled.tensors.get(&i) {
            Some(changed) => changed.bytes.clone(),
            None if begins_stream(&model, info.name()) => {
                let scaled = scale::scaled(info.tensor_type(), info.bytes(), 2.0);
                scaled.unwrap().bytes
            }
            None => continue,
        };
        let start = info.position().0 as usize;
        bytes[start..start + new.len()].copy_from_slice(&new);
    }
    std::fs::write(&doubled, bytes).unwrap();
    let [one, two] = [&path, &doubled].map(|path| hidden_states(path).unwrap());
    let pairs = one.windows[0].iter().zip(&two.windows[0]);
    let errors = pairs.map(|((_, one), (_, two))| {
        let square = |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>();
        let wrong = square(&mut one.iter().zip(two).map(|(a, b)| f64::from(b - 2.0 * a)));
        (wrong / square(&mut one.iter().map(|a| 2.0 * f64::from(*a)))).sqrt()
    });
    Some(errors.fold(0.0, f64::max))
}

#[test]
fn twice_the_writers_is_twice_the_stream() {
    let dir = tempfile::tempdir().unwrap();
    let only = std::env::var("ARCHITECTURE").ok();
    let (mut n_checked, mut wrong) = (0, Vec::new());
    for architecture in Architecture::all() {
        let name = architecture.name;
        let is_left_out = only.as_deref().is_some_and(|only| only.split(',').all(|only| only != name));
        if is_left_out || NOT_EVALUATED.contains(&name) || NORMED.contains(&name) {
            continue;
        }
        let Some(error) = error(architecture, dir.path()) else {
            continue;
        };
        println!("{name:<16} {error:.2e}");
        n_checked += 1;
        // Keys and values are kept in half precision.
        if error > 1e-3 {
            wrong.push((name, error));
        }
    }
    assert!(wrong.is_empty(), "{wrong:?}");
    assert!(only.is_some() || n_checked > 90, "{n_checked}");
}

/// Heals a cut model, and proves that only these tensors changed. Returns how.
fn healed(architecture: &str, how: &str, may_change: impl Fn(usize, &str) -> bool) -> String {
    let dir = tempfile::tempdir().unwrap();
    let parent = dir.path().join("m.gguf");
    byte_model(architecture, 6).save(Backend::init(), &parent).unwrap();
    let result =
        json(dir.path(), &format!("m.gguf --blocks 2,3 --heal {how} --tokens 960 --window 48 -o o.gguf"));
    let heal = &result["heal"];
    let loss = |key: &str| heal["held_out"][key].as_f64().unwrap();
    assert!(loss("loss_healed") <= loss("loss_none"));
    for tensor in heal["tensors"].as_array().unwrap() {
        let name = tensor["name"].as_str().unwrap();
        let (block, rest) = name.strip_prefix("blk.").unwrap().split_once('.').unwrap();
        assert!(may_change(block.parse().unwrap(), rest), "{name}");
    }
    let verified = on_one_thread(dir.path(), "verify o.gguf --parent m.gguf");
    let stderr = String::from_utf8_lossy(&verified.stderr);
    assert!(verified.status.success(), "{architecture} {how}: {stderr}");
    load(&dir.path().join("o.gguf")).unwrap();
    heal["method"].as_str().unwrap().to_owned()
}

/// Makes blocks 2 and 3 write eight times as much.
pub(crate) fn strengthen(path: &Path) {
    let input = Input::open(path).unwrap();
    let model = Model::new(input.parse().unwrap()).unwrap();
    let factors = BTreeMap::from([(BlockId::new(2), 8.0), (BlockId::new(3), 8.0)]);
    let none = ChangedTensors::new();
    let scaled = Projections::of(&model).unwrap().scaled(&model, &none, &factors, &|_| false).unwrap();
    let mut bytes = std::fs::read(path).unwrap();
    for (i, changed) in scaled.tensors {
        let start = model.tensors()[i].info.position().0 as usize;
        bytes[start..start + changed.bytes.len()].copy_from_slice(&changed.bytes);
    }
    std::fs::write(path, bytes).unwrap();
}

/// The weights of a tensor.
fn weights(path: &Path, name: &str) -> Vec<f32> {
    let input = Input::open(path).unwrap();
    let model = Model::new(input.parse().unwrap()).unwrap();
    let tensors = model.tensors();
    let info = &tensors.iter().find(|t| t.info.name() == name).unwrap().info;
    ggml::quantize::dequantize(info.tensor_type().id(), info.bytes()).unwrap()
}

#[test]
fn what_is_written_after_a_cut_is_divided_by_the_number_that_is_said() {
    // Weights are so small that a Q4_K scale would have three bits.
    const Q8_0: u32 = 7;
    let architecture = "llama";
    for quantized in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let [plain, parent] = ["plain.gguf", "m.gguf"].map(|name| dir.path().join(name));
        let spec = byte_model(architecture, 8);
        spec.save(Backend::init(), &plain).unwrap();
        strengthen(&plain);
        match quantized {
            true => ggml::testing::quantize(Backend::init(), &plain, &parent, Q8_0).unwrap(),
            false => std::fs::rename(&plain, &parent).unwrap(),
        }
        let arguments = "m.gguf --blocks 2,3,5 --heal scale --tokens 960 --window 48 -o o.gguf";
        let result = json(dir.path(), arguments);
        let heal = &result["heal"];
        assert_eq!(heal["method"], "scale", "{architecture}: {heal:#}");
        let held_out = &heal["held_out"];
        assert!(held_out["loss_healed"].as_f64() < held_out["loss_none"].as_f64());
        // "stream times 1.2 after block 3, stream times 1.1 after block 5"
        let said: Vec<f64> = heal["variant"]
            .as_str()
            .unwrap()
            .split(", ")
            .map(|cut| cut.split(' ').nth(2).unwrap().parse().unwrap())
            .collect();
        assert_eq!(said.len(), 2);
        assert!(said[0] > 1.1, "{said:?}");
        let tensors = heal["tensors"].as_array().unwrap();
        let mut blocks = Vec::new();
        for tensor in tensors {
            let name = tensor["name"].as_str().unwrap();
            let (block, rest) = name.strip_prefix("blk.").unwrap().split_once('.').unwrap();
            let block: usize = block.parse().unwrap();
            let known = ["attn_output.", "ffn_down."];
            assert!(known.iter().any(|known| rest.starts_with(known)), "{name}");
            blocks.push(block);
            assert_eq!(tensor["bytes_added"], 0);
            let factor = 1.0 / if block > 5 { said[0] * said[1] } else { said[0] };
            let number = match block {
                4 => 2,
                _ => block - 3,
            };
            let old = weights(&parent, name);
            let new = weights(&dir.path().join("o.gguf"), &format!("blk.{number}.{rest}"));
            let square = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>();
            let pairs = old.iter().zip(&new);
            let wrong = square(&mut pairs.map(|(a, b)| f64::from(*b) - f64::from(*a) * factor));
            let size = square(&mut old.iter().map(|a| f64::from(*a) * factor));
            // The number is said with four digits after the point; half-precision scales of such small weights have few.
            let allowed = if quantized { 5e-2f64 } else { 1e-3 };
            assert!(wrong <= allowed.powi(2) * size, "{name}: {wrong} of {size}");
        }
        let wanted: Vec<usize> =
            [4, 6, 7].into_iter().flat_map(|block| vec![block; tensors.len() / 3]).collect();
        blocks.sort_unstable();
        assert_eq!(blocks, wanted);
        for rest in ["", "--run"] {
            let verified = on_one_thread(dir.path(), &format!("verify o.gguf --parent m.gguf {rest}"));
            let stderr = String::from_utf8_lossy(&verified.stderr);
            assert!(verified.status.success(), "{architecture}: {stderr}");
        }
    }
}

#[test]
fn the_number_is_about_the_best_for_the_whole_model() {
    // The first is evaluated by blocks, the second as whole models.
    for architecture in ["llama", "gpt2"] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.gguf");
        byte_model(architecture, 7).save(Backend::init(), &path).unwrap();
        strengthen(&path);
        let input = Input::open(&path).unwrap();
        let model = Model::new(input.parse().unwrap()).unwrap();
        let constraints = Constraints::of(&model).unwrap();
        let engine = load(&path).unwrap();
        let windows: Vec<Vec<Token>> =
            (0..5).map(|w| (0..48).map(|t| (w * w * 31 + t * t * 7 + t) % 256).collect()).collect();
        let windows: Vec<&[Token]> = windows.iter().map(Vec::as_slice).collect();
        let split = Split::of(&windows, &[0; 5], None);
        let all = split.folds.concat();
        // Whether the parent's logits are kept or not.
        let [mut healer, mut poor] = [u64::MAX, 0].map(|room| {
            let setup = setup(&model, &constraints, &engine, windows.clone(), &split);
            Healer::of_whole_models(setup).unwrap().with_logits_bytes(room)
        });
        let base = Candidate {
            removed: [2, 3].map(BlockId::new).into(),
            attention: None,
            tensors: ChangedTensors::new(),
            fitted: Vec::new(),
        };
        let writers = Projections::of(&model).unwrap();
        let [scaling, again] = [&mut healer, &mut poor].map(|healer| {
            let found = healer.scale(&writers, &base, Objective::Kl).unwrap();
            found.unwrap()
        });
        assert_eq!(scaling.factors, again.factors);
        let kl = |candidate: &Candidate| healer.loss(candidate, &all).unwrap().kl_divergence();
        let best = kl(&scaling.candidate);
        let [(cut, factor)] = scaling.factors[..] else {
            panic!("{:?}", scaling.factors);
        };
        assert_eq!(cut.last, BlockId::new(3));
        assert!(best < kl(&base));
        for other in [0.8, 1.25] {
            let divided = (4..7).map(|block| (BlockId::new(block), 1.0 / (factor * other)));
            let scaled = writers.scaled(&model, &base.tensors, &divided.collect(), &|_| false).unwrap();
            let candidate = Candidate { tensors: scaled.tensors, ..base.clone() };
            assert!(best < kl(&candidate), "{architecture}: {factor} times {other}");
        }
    }
}

#[test]
fn norms_and_matrices_under_them_are_fitted_from_the_cut_on() {
    let may_change = |block: usize, rest: &str| {
        let fitted = ["post_attention_norm", "post_ffw_norm", "ffn_down"];
        block > 0 && fitted.contains(&rest.strip_suffix(".weight").unwrap_or(rest))
    };
    let methods =
        ["gemma2", "gemma3", "olmo2"].map(|architecture| healed(architecture, "linear", may_change));
    println!("{methods:?}");
    assert!(methods.contains(&"linear".to_owned()));
}

#[test]
fn where_the_length_of_the_stream_shows_scaling_is_refused_before_anything_is_measured() {
    let dir = tempfile::tempdir().unwrap();
    byte_model("olmo2", 4).save(Backend::init(), &dir.path().join("m.gguf")).unwrap();
    let output = on_one_thread(dir.path(), "m.gguf --blocks 2 --heal scale -o o.gguf");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(
        stderr.lines().next().unwrap(),
        "gguf-shorten: m.gguf: cannot be healed: residual-writing projections of 'olmo2' cannot be scaled: attention and feed-forward network \
         read the stream without a norm (olmo2.cpp)"
    );
    assert!(!dir.path().join("o.gguf").exists());
}
