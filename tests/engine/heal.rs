//! `--heal` against a solution that is found here with loops. The weights that are written are its weights, and all else is the
//! parent's.

use std::collections::BTreeSet;
use std::path::Path;

use ggml::{Backend, Token};
use gguf_shorten::gguf::File;
use gguf_shorten::heal::Weighting;
use gguf_shorten::heal::healer::stepwise::Order;
use gguf_shorten::heal::healer::{HealType, Healer};
use gguf_shorten::heal::split::Split;
use gguf_shorten::measure::loss::Objective;
use gguf_shorten::model::input::Input;
use gguf_shorten::model::{BlockId, Model};
use gguf_shorten::plan::{AttentionCut, Constraints};
use serde_json::Value;

use crate::eval::byte_model;
use crate::program::program;
use crate::random_model::Spec;
use crate::support::{load, outputs, setup};

pub const WINDOW: usize = 64;
const N_WINDOWS: usize = 14;

/// A plain model of six blocks that takes any text. Its blocks have no scales or biases.
pub fn plain_model(architecture: &str) -> Spec<'_> {
    let mut spec = byte_model(architecture, 6);
    spec.omitted = |name| name.contains("scale") || name.ends_with(".bias");
    spec
}

/// A parent of six blocks and a text in `dir`.
pub fn prepare(dir: &Path) {
    let parent = dir.join("parent.gguf");
    plain_model("llama").save(Backend::init(), &parent).unwrap();
    let mut state = 1u32;
    let text: String = std::iter::repeat_with(|| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        char::from(b'a' + u8::try_from((state >> 24) % 26).unwrap())
    })
    .take(WINDOW * (N_WINDOWS + 1))
    .collect();
    std::fs::write(dir.join("text.txt"), text).unwrap();
}

const HEAL: &str = "parent.gguf --blocks 2,3 --calibration text.txt --tokens 896 --window 64 -t 1 --heal";

pub fn heal(dir: &Path, rest: &str) -> Value {
    let out = program(dir, &format!("{HEAL} {rest} --json result.json --force"));
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    serde_json::from_slice(&std::fs::read(dir.join("result.json")).unwrap()).unwrap()
}

/// The windows that the program cuts the text into: a BOS, then bytes.
pub fn windows(path: &Path, text: &Path) -> Vec<Vec<Token>> {
    let engine = load(path).unwrap();
    let tokens = engine.tokenize(&std::fs::read_to_string(text).unwrap()).unwrap();
    let windows = tokens.chunks_exact(WINDOW).take(N_WINDOWS);
    windows
        .map(|window| {
            let mut window = window.to_vec();
            window[0] = engine.bos().unwrap();
            window
        })
        .collect()
}

#[test]
fn a_healed_file_is_the_parent_but_for_the_tensors_that_it_names() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    prepare(dir);
    for how in ["linear --heal-type F16", "block --heal-type keep", "auto"] {
        let json = heal(dir, &format!("{how} -o out.gguf"));
        let heal = &json["heal"];
        let candidates = heal["candidates"].as_array().unwrap();
        let lowest = candidates.iter().filter_map(|one| one["loss"].as_f64()).fold(f64::MAX, f64::min);
        assert_eq!(heal["held_out"]["loss_healed"].as_f64().unwrap(), lowest);
        let again = std::fs::read(dir.join("out.gguf")).unwrap();
        self::heal(dir, &format!("{how} -o out.gguf"));
        assert!(again == std::fs::read(dir.join("out.gguf")).unwrap(), "{how} is not repeated");

        let verify = |rest: &str| program(dir, &format!("verify out.gguf --parent parent.gguf {rest}"));
        let out = verify("--run -t 1 --json verified.json");
        assert!(out.status.success(), "{how}: {}", String::from_utf8_lossy(&out.stderr));
        let verified: Value =
            serde_json::from_slice(&std::fs::read(dir.join("verified.json")).unwrap()).unwrap();
        let names = |of: &Value, key: &str| -> BTreeSet<String> {
            let all = of.as_array().unwrap().iter();
            all.filter_map(|one| one[key].as_str().map(str::to_owned)).collect()
        };
        let changed = verified["changes"].as_array().unwrap().iter();
        let changed: BTreeSet<String> = changed
            .filter(|change| change["change"] == "changed")
            .map(|change| change["parent"].as_str().unwrap().to_owned())
            .collect();
        assert_eq!(changed, names(&heal["tensors"], "name"));
        assert_eq!(heal["method"] == "none", changed.is_empty());

        // Any other byte is still found: of a kept tensor, of a healed one, and of what is said of healing.
        let bytes = std::fs::read(dir.join("out.gguf")).unwrap();
        let file = File::parse(&bytes).unwrap();
        let mut places: Vec<usize> =
            file.tensors().iter().map(|tensor| tensor.position().0 as usize + 5).step_by(7).collect();
        for tensor in &changed {
            // Block 1 keeps its number, and is healed whenever one is.
            let of = file.tensors().get(tensor).filter(|_| tensor.contains("blk.1."));
            places.extend(of.map(|tensor| tensor.position().0 as usize + 5));
        }
        for key in ["gguf_shorten.heal.loss", "gguf_shorten.heal.blake3", "gguf_shorten.heal"] {
            if let Some(entry) = file.metadata().get(key) {
                let raw = entry.raw();
                let at = bytes.windows(raw.len()).position(|window| window == raw).unwrap();
                places.push(at + raw.len() - 1);
            }
        }
        for place in places {
            let mut bad = bytes.clone();
            bad[place] ^= 1;
            std::fs::write(dir.join("out.gguf"), bad).unwrap();
            assert_eq!(verify("-q").status.code(), Some(1), "{how}: byte {place}");
        }
    }
}

#[test]
fn a_portable_file_is_healed_like_one_with_a_list() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    prepare(dir);
    // Block 5 has full attention, and would have a window as the first block without a list.
    byte_model("gemma3", 8).save(Backend::init(), &dir.join("parent.gguf")).unwrap();
    let healed = |more: &str| {
        let run = "parent.gguf --blocks 6,7 --calibration text.txt --tokens 896 --window 64 -t 1 --heal linear --json result.json";
        let out = program(dir, &format!("{run} --force -o out.gguf {more}"));
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        let json: Value = serde_json::from_slice(&std::fs::read(dir.join("result.json")).unwrap()).unwrap();
        let bytes = std::fs::read(dir.join("out.gguf")).unwrap();
        let file = File::parse(&bytes).unwrap();
        let has_list = file.metadata().get("gemma3.attention.sliding_window_pattern").is_some();
        let logits = outputs(&dir.join("out.gguf")).unwrap();
        (json["heal"]["held_out"].clone(), has_list, logits)
    };
    let (with_list, without) = (healed(""), healed("--portable"));
    assert!(with_list.1 && !without.1);
    assert!(with_list.0.is_object());
    assert_eq!(with_list.0, without.0);
    assert_eq!(with_list.2, without.2);
}

#[test]
fn losses_with_norms_fitted_are_those_of_whole_models() {
    // Blocks of the last give their results up to rounding.
    for architecture in ["gemma3", "olmo2", "gemma2"] {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        prepare(dir);
        let parent = dir.join("parent.gguf");
        byte_model(architecture, 6).save(Backend::init(), &parent).unwrap();
        let input = Input::open(&parent).unwrap();
        let engine = load(&parent).unwrap();
        let model = Model::new(input.parse().unwrap()).unwrap();
        let constraints = Constraints::of(&model).unwrap();
        let all = windows(&parent, &dir.join("text.txt"));
        let slices: Vec<&[Token]> = all.iter().map(Vec::as_slice).collect();
        let split = Split::of(&slices, &vec![0; all.len()], None);
        let setup = setup(&model, &constraints, &engine, slices, &split);
        let mut healer = Healer::new(setup).unwrap();
        let order = Order {
            weightings: vec![Weighting::Plain, Weighting::InverseSquaredNorm],
            before: true,
            with_block: false,
            patience: 2,
            heal_type: HealType::Auto,
            objective: Objective::Kl,
        };
        let removed = [1, 3].map(BlockId::new).into();
        let steps = healer.fit(&removed, None, &order).unwrap();
        let measured = steps.iter().filter_map(|step| step.measured.as_ref());
        let mut blocks = BTreeSet::new();
        for (candidate, loss) in measured.clone() {
            let whole = healer.loss(candidate, &split.validation).unwrap();
            if architecture == "gemma2" {
                let (loss, whole) = (loss.kl_divergence(), whole.kl_divergence());
                assert!((loss / whole - 1.0).abs() < 1e-3, "{loss} {whole}");
            } else {
                assert_eq!(*loss, whole, "{architecture}");
            }
            let sources = candidate.tensors.keys();
            blocks.extend(sources.map(|&source| model.tensors()[source].block.unwrap().0));
        }
        // Those at both cuts.
        assert!(measured.count() > 4, "{architecture}");
        assert!(blocks.is_superset(&[0, 2].map(BlockId::new).into()), "{blocks:?}");
    }
}

#[test]
fn losses_measured_from_hidden_states_are_those_of_whole_models() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    prepare(dir);
    let parent = dir.join("parent.gguf");
    let input = Input::open(&parent).unwrap();
    let engine = load(&parent).unwrap();
    let model = Model::new(input.parse().unwrap()).unwrap();
    let constraints = Constraints::of(&model).unwrap();
    let all = windows(&parent, &dir.join("text.txt"));
    let slices: Vec<&[Token]> = all.iter().map(Vec::as_slice).collect();
    let split = Split::of(&slices, &vec![0; all.len()], None);
    let setup = setup(&model, &constraints, &engine, slices, &split);
    let mut healer = Healer::new(setup).unwrap();
    let blocks = |of: &[usize]| of.iter().copied().map(BlockId::new).collect::<BTreeSet<_>>();
    let attention = AttentionCut { blocks: blocks(&[4]), method: "blocks".to_owned() };
    let mut n_measured = 0;
    // From the back to the front and on again. So streams are both made and passed on.
    for (removed, attention) in
        [(vec![4], None), (vec![0, 2], None), (vec![2, 3], None), (vec![2], Some(&attention))]
    {
        let removed = blocks(&removed);
        let (none, loss) = healer.unhealed(&removed, attention).unwrap();
        assert_eq!(loss, healer.loss(&none, &split.validation).unwrap());
        for (before, with_block) in [(true, false), (false, true), (true, true)] {
            // llama.cpp takes the head size from the first block's heads.
            if with_block && removed.contains(&BlockId::new(0)) {
                continue;
            }
            let order = Order {
                weightings: vec![Weighting::InverseNorm, Weighting::Plain],
                before,
                with_block,
                patience: 2,
                heal_type: HealType::Auto,
                objective: Objective::Kl,
            };
            for step in healer.fit(&removed, attention, &order).unwrap() {
                let Some((candidate, loss)) = step.measured else {
                    continue;
                };
                n_measured += 1;
                let whole = healer.loss(&candidate, &split.validation).unwrap();
                assert_eq!(loss, whole, "{removed:?} {}", step.variant);
            }
        }
    }
    assert!(n_measured > 12, "{n_measured}");
}

#[test]
fn a_search_takes_the_set_that_is_best_once_healed() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    prepare(dir);
    let command = "parent.gguf --drop 2 --method search --calibration text.txt --tokens 896 --window 64 -t 1 \
                   --heal linear --json result.json --dry-run --scratch .";
    let out = program(dir, command);
    let stderr = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{stderr}");
    let json: Value = serde_json::from_slice(&std::fs::read(dir.join("result.json")).unwrap()).unwrap();
    let sets = json["heal"]["shortlist"].as_array().unwrap();
    assert!(sets.len() > 2, "{sets:?}");
    let healed = |set: &Value| set["loss_healed"].as_f64().unwrap();
    let best = sets.iter().min_by(|a, b| healed(a).total_cmp(&healed(b))).unwrap();
    for set in sets {
        assert_eq!(set["removed"].as_array().unwrap().len(), 2);
        assert!(healed(set) <= set["loss"].as_f64().unwrap());
    }
    let held_out = &json["heal"]["held_out"];
    assert_eq!(held_out["loss_none"], best["loss"]);
    assert!(held_out["loss_healed"].as_f64().unwrap() <= healed(best));
    if json["heal"]["method"] == "linear" {
        assert_eq!(json["removed"], best["removed"]);
    }
    // At least one of them is a run.
    let is_run = |set: &Value| {
        let of = |i: usize| set["removed"][i].as_u64().unwrap();
        of(1) == of(0) + 1
    };
    assert!(sets.iter().any(is_run));
}

#[test]
fn what_cannot_be_healed_is_refused_before_calibration() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    prepare(dir);
    let cases = [
        ("gemma2", "block", "a norm stands between its 'ffn_down' and the stream"),
        ("gemma", "linear", "blocks of 'gemma' are not evaluated one by one"),
        ("qwen2moe", "linear", "its feed-forward network has experts"),
        ("granite", "linear", "in 'granite' what a block writes is multiplied by a factor"),
        ("mamba", "linear", "it has no 'ffn_down.weight'"),
        ("qwen2", "block", "only of 'llama' is it known how to write that"),
    ];
    for (architecture, how, why) in cases {
        plain_model(architecture).save(Backend::init(), &dir.join("parent.gguf")).unwrap();
        // The text does not exist, which would be said first.
        let command = format!("parent.gguf --blocks 2 --calibration none.txt --heal {how} -o out.gguf");
        let out = program(dir, &command);
        let stderr = String::from_utf8_lossy(&out.stderr);
        assert_eq!(out.status.code(), Some(1));
        assert!(stderr.contains(why), "{architecture}: {stderr}");
    }
}

#[test]
fn text_that_says_nothing_heals_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    prepare(dir);
    let text = |text: String| std::fs::write(dir.join("text.txt"), text).unwrap();
    let plain = program(dir, "parent.gguf --blocks 2,3 -o plain.gguf");
    assert!(plain.status.success());
    text("a".repeat(2000));
    let json = heal(dir, "linear -o out.gguf");
    assert_eq!(json["heal"]["method"], "none");
    let warnings = json["heal"]["warnings"].to_string();
    assert!(warnings.contains("nothing is healed"), "{warnings}");
    // Windows hold no whole number of seventeen letters.
    text("abcdefghijklmnopq".repeat(100));
    let json = heal(dir, "auto -o out.gguf");
    assert_eq!(json["heal"]["method"], "none");
    assert!(json["heal"]["warnings"].to_string().contains("repeats itself"));
    let same = std::fs::read(dir.join("out.gguf")).unwrap() == std::fs::read(dir.join("plain.gguf")).unwrap();
    assert!(same);
}
