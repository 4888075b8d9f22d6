//! `fit`: types as llama.cpp makes them, losses that `eval` finds, and files that are what they say.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use ggml::Backend;
use ggml::testing::quantize_with_imatrix;
use gguf_shorten::gguf::{File, TensorType, ValueOut};
use gguf_shorten::model::Model;
use gguf_shorten::output::rounding::{may_be_rounded, rounded};
use serde_json::Value;

use crate::byte_text::{self, text};
use crate::eval::byte_model;
use crate::imatrix::{imatrix_of, values};
use crate::program::{failure, json, on_one_thread};
use crate::random_model::Spec;
use crate::support::{MIXER_WRITERS, zero_halves};

/// Windows that are scored, and those that there are after them.
const N_SCORED: usize = 8;
const N_AFTER: usize = 6;

/// A model of so many blocks and a text, in a folder.
fn folder(architecture: &str, n_blocks: u32) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    byte_model(architecture, n_blocks).save(Backend::init(), &dir.path().join("m.gguf")).unwrap();
    byte_text::write(dir.path(), N_SCORED + N_AFTER);
    dir
}

/// A part of the bytes of the model.
fn share(dir: &Path, percent: u64) -> u64 {
    fs::metadata(dir.join("m.gguf")).unwrap().len() * percent / 100
}

/// A file's mean KL divergence over windows after the first `skipped`.
fn kl(dir: &Path, file: &str, skipped: usize, n_windows: usize) -> f64 {
    let sum = |n: usize| {
        if n == 0 {
            return (0.0, 0.0);
        }
        byte_text::sum_of_kl(dir, file, n)
    };
    let (before, all) = (sum(skipped), sum(skipped + n_windows));
    (all.0 - before.0) / (all.1 - before.1)
}

#[test]
fn weights_are_rounded_to_the_bytes_that_llama_cpp_makes_of_them() {
    let dir = tempfile::tempdir().unwrap();
    // Q4_0, Q8_0, Q2_K, Q3_K_M, Q4_K_S, Q5_K_S, Q6_K, IQ4_NL, IQ3_S, IQ4_XS, IQ2_XS.
    for (architecture, file_types, with_matrix) in [
        ("llama", &[2, 7, 10, 12, 14, 16, 18, 25, 26, 30][..], false),
        ("llama", &[14, 20, 25][..], true),
        ("qwen3moe", &[10, 14][..], false),
    ] {
        let [parent, out] = ["parent.gguf", "out.gguf"].map(|name| dir.path().join(name));
        Spec::new(architecture, 2).save(Backend::init(), &parent).unwrap();
        let bytes = fs::read(&parent).unwrap();
        let model = Model::new(vec![File::parse(&bytes).unwrap()]).unwrap();
        let matrix = if with_matrix { values(&imatrix_of(&parent)) } else { Vec::new() };
        let importance: BTreeMap<&str, &[f32]> =
            matrix.iter().map(|(name, values)| (name.as_str(), &values[..])).collect();
        for file_type in file_types {
            quantize_with_imatrix(Backend::init(), &parent, &out, *file_type, &matrix, true).unwrap();
            let made = fs::read(&out).unwrap();
            let made = File::parse(&made).unwrap();
            let mut n = 0;
            for tensor in model.tensors() {
                let info = &tensor.info;
                let of = made.tensors().get(info.name()).unwrap();
                if of.tensor_type() == info.tensor_type() {
                    continue;
                }
                assert!(may_be_rounded(info), "{}", info.name());
                let found = rounded(info, of.tensor_type(), importance.get(info.name()).copied()).unwrap();
                assert!(found == of.bytes(), "{architecture} {file_type} {}", info.name());
                n += 1;
            }
            assert!(n > 10, "{architecture} {file_type}: {n}");
            // What llama.cpp leaves as it is would not be rounded here either.
            let left = model.tensors().iter().filter(|tensor| {
                let of = made.tensors().get(tensor.info.name()).unwrap();
                of.tensor_type() == tensor.info.tensor_type() && may_be_rounded(&tensor.info)
            });
            assert_eq!(left.count(), 0);
        }
    }
}

#[test]
fn a_file_of_a_size_is_what_it_says() {
    for (architecture, n_blocks, percent) in [("llama", 6, 24), ("qwen3moe", 3, 30)] {
        let folder = folder(architecture, n_blocks);
        let dir = folder.path();
        let target = share(dir, percent);
        let run = format!("fit m.gguf --target-size {target} --max-drop 0 {}", text(N_SCORED));
        let found = json(dir, &format!("{run} -o out.gguf"));
        let fit = &found["fit"];
        let n_bytes = fs::metadata(dir.join("out.gguf")).unwrap().len();
        assert_eq!(fit["bytes"], n_bytes);
        assert!(n_bytes <= target && n_bytes * 100 > target * 97, "{architecture}: {n_bytes} of {target}");
        assert_eq!((&fit["evaluated"], &fit["exact"]), (&Value::from("segments"), &Value::from(true)));
        // As measured on the windows after those that were scored.
        let expected = kl(dir, "out.gguf", N_SCORED, N_AFTER);
        let measured = fit["kl_divergence"].as_f64().unwrap();
        assert!((measured / expected - 1.0).abs() < 1e-4, "{architecture}: {measured} {expected}");
        let least =
            fit["candidates"].as_array().unwrap().iter().map(|one| one["kl_divergence"].as_f64().unwrap());
        assert_eq!(least.fold(f64::MAX, f64::min), measured);

        let verified = json(dir, "verify out.gguf --parent m.gguf --run");
        let n_made =
            fit["tensors"].as_array().unwrap().iter().filter(|one| one["type"] != one["from_type"]).count();
        assert_eq!(verified["rounded"]["recomputed"], n_made, "{architecture}");
        assert_eq!(verified["rounded"]["by_hash"], 0);
        assert_eq!(verified["run"]["floats_different"], 0);

        // The plan alone, and applied: the same file, to the byte.
        json(dir, &format!("{run} --plan-only -o plan.json"));
        json(dir, "fit m.gguf --plan plan.json -o again.gguf");
        assert!(fs::read(dir.join("out.gguf")).unwrap() == fs::read(dir.join("again.gguf")).unwrap());
    }
}

#[test]
fn single_losses_are_those_of_files_with_one_tensor_in_another_type() {
    let folder = folder("llama", 4);
    let dir = folder.path();
    let run = format!("fit m.gguf --target-size {} --types Q4_0 --max-drop 0", share(dir, 60));
    let plan = json(dir, &format!("{run} {} --plan-only -o plan.json", text(N_SCORED)));
    let mut recipe: Value = serde_json::from_slice(&fs::read(dir.join("plan.json")).unwrap()).unwrap();
    let made: Vec<&Value> =
        plan["fit"]["tensors"].as_array().unwrap().iter().filter(|one| one["type"] == "Q4_0").collect();
    assert!(made.len() > 5);
    let mut sum = 0.0;
    for tensor in &made {
        sum += tensor["loss"].as_f64().unwrap();
    }
    let expected = plan["fit"]["expected_kl"].as_f64().unwrap();
    assert!((sum / expected - 1.0).abs() < 1e-9, "{sum} {expected}");
    for tensor in made.iter().step_by(made.len() / 4) {
        let name = tensor["name"].as_str().unwrap();
        recipe["types"] = serde_json::json!({ name: "Q4_0" });
        fs::write(dir.join("one.json"), recipe.to_string()).unwrap();
        let applied = json(dir, "fit m.gguf --plan one.json -o one.gguf --force");
        // It was edited: what was measured is not of this file.
        assert!(applied["fit"]["expected_kl"].is_null() && recipe["expected_kl"].is_number());
        let expected = kl(dir, "one.gguf", 0, N_SCORED);
        let found = tensor["loss"].as_f64().unwrap();
        assert!((found / expected - 1.0).abs() < 1e-3, "{name}: {found} {expected}");
    }
    recipe["method"] = "guess".into();
    fs::write(dir.join("one.json"), recipe.to_string()).unwrap();
    let message = failure(dir, "fit m.gguf --plan one.json -o no.gguf");
    assert!(message.contains("one.json: chose blocks by 'guess', which is no method"), "{message}");
}

#[test]
fn blocks_go_where_types_are_not_enough() {
    let folder = folder("llama", 8);
    let dir = folder.path();
    let target = share(dir, 22);
    let run = format!("fit m.gguf --target-size {target} --types Q8_0 {} -o out.gguf", text(N_SCORED));
    let found = json(dir, &run);
    let removed = found["removed"].as_array().unwrap();
    assert!(!removed.is_empty());
    assert!(fs::metadata(dir.join("out.gguf")).unwrap().len() <= target);
    let rungs = found["fit"]["blocks"].as_array().unwrap();
    assert_eq!(rungs.iter().filter(|one| one["rung"] == "removed").count(), removed.len());
    let verified = json(dir, "verify out.gguf --parent m.gguf --run");
    assert_eq!(
        (&verified["removed"], &verified["run"]["floats_different"]),
        (&found["removed"], &Value::from(0))
    );
    // What cannot be reached is told before a text is read.
    for (target, more, words) in [
        ("1K", "", "a file of 1000 bytes cannot be reached: without all that may go"),
        ("40K", "--max-drop 0", "40000 bytes cannot be reached by types alone; the smallest tensors have"),
    ] {
        let run = format!("fit m.gguf --target-size {target} {more} --calibration none.txt -o no.gguf");
        let message = failure(dir, &run);
        assert!(message.contains(words), "{message}");
    }
    let message = failure(dir, &format!("{run} --force --max-drop 0 -t 1").replace("out.gguf", "no.gguf"));
    assert!(
        message.contains("cannot be reached by types alone") && message.contains("--max-drop"),
        "{message}"
    );
}

#[test]
fn attention_goes_where_types_are_not_enough() {
    let folder = folder("llama", 8);
    let dir = folder.path();
    let mut spec = byte_model("llama", 8);
    spec.omitted = |name| name.ends_with("scale");
    spec.save(Backend::init(), &dir.join("all.gguf")).unwrap();
    let idle = [3, 5, 6, 7];
    zero_halves(&dir.join("all.gguf"), &[(&idle, MIXER_WRITERS)], &dir.join("m.gguf"));
    let without = json(dir, "m.gguf --attention-blocks 3,5-7 --dry-run");
    // In Q8_0 a weight has 8.5 of 32 bits.
    let target = without["output"]["bytes"].as_u64().unwrap() * 28 / 100;
    assert!(share(dir, 26) > target);
    let run = format!("fit m.gguf --target-size {target} --types Q8_0 {}", text(N_SCORED));
    let found = json(dir, &format!("{run} --no-cache -o out.gguf"));
    assert!(!dir.join("cache").exists());
    let fit = &found["fit"];
    assert_eq!(found["attention_removed"], serde_json::json!(idle));
    assert_eq!((&found["attention_method"], &found["removed"]), (&"bi".into(), &Value::Array(Vec::new())));
    assert!(fs::metadata(dir.join("out.gguf")).unwrap().len() <= target);
    let rungs = fit["blocks"].as_array().unwrap().iter();
    let bare = rungs.filter(|one| one["rung"] == "Q8_0 without attention").map(|one| one["block"].clone());
    assert_eq!(bare.collect::<Value>(), serde_json::json!(idle));
    let (measured, expected) =
        (fit["kl_divergence"].as_f64().unwrap(), kl(dir, "out.gguf", N_SCORED, N_AFTER));
    assert!((measured / expected - 1.0).abs() < 1e-4, "{measured} {expected}");
    let verified = json(dir, "verify out.gguf --parent m.gguf --run");
    assert_eq!(
        (&verified["attention_removed"], &verified["run"]["floats_different"]),
        (&found["attention_removed"], &Value::from(0))
    );

    json(dir, &format!("{run} --plan-only -o plan.json"));
    json(dir, "fit m.gguf --plan plan.json -o again.gguf");
    assert!(fs::read(dir.join("out.gguf")).unwrap() == fs::read(dir.join("again.gguf")).unwrap());
    let plan: Value = serde_json::from_slice(&fs::read(dir.join("plan.json")).unwrap()).unwrap();
    let changed = |key: &str, value: Value| {
        let mut plan = plan.clone();
        plan[key] = value;
        fs::write(dir.join("no.json"), plan.to_string()).unwrap();
        failure(dir, "fit m.gguf --plan no.json -o no.gguf")
    };
    let message = changed("attention_removed", serde_json::json!([0]));
    assert!(message.contains("no.json: cannot remove the attention of block 0"), "{message}");
    let message = changed("attention_removed", serde_json::json!([4, 8]));
    assert!(message.contains("the model has 8 blocks, 0 to 7"), "{message}");
    let message = changed("attention_removed", serde_json::json!([4, 5]));
    assert!(
        message.contains("no.json: gives tensor 'blk.4.attn_k.weight' a type and removes it"),
        "{message}"
    );
    let message = changed("attention_method", "fate".into());
    assert!(message.contains("chose attention by 'fate', which is no method"), "{message}");
}

#[test]
fn experts_go_where_types_are_not_enough() {
    let folder = folder("qwen3moe", 4);
    let dir = folder.path();
    let mut spec = byte_model("qwen3moe", 4);
    spec.extra.push((".expert_count", ValueOut::u32(16)));
    spec.save(Backend::init(), &dir.join("m.gguf")).unwrap();
    let half = json(dir, "m.gguf --keep-experts 0-7 --dry-run");
    let shorter = json(dir, "m.gguf --blocks 1 --dry-run");
    let bytes = |found: &Value| found["output"]["bytes"].as_u64().unwrap();
    // In Q8_0 a weight has 8.5 of 32 bits.
    let target = bytes(&half) * 31 / 100;
    assert!(bytes(&shorter) * 8 / 32 > target);
    let run = format!("fit m.gguf --target-size {target} --types Q8_0 --max-drop 1 {}", text(N_SCORED));
    let found = json(dir, &format!("{run} -o out.gguf"));
    let (experts, fit) = (&found["experts"], &found["fit"]);
    assert_eq!((&experts["kept_count"], &experts["count"]), (&8.into(), &16.into()));
    let n_bytes = fs::metadata(dir.join("out.gguf")).unwrap().len();
    assert!(n_bytes <= target && fit["bytes"] == n_bytes, "{n_bytes} {fit}");
    assert_eq!(found["removed"], Value::Array(Vec::new()));
    let chosen: Vec<&Value> =
        fit["candidates"].as_array().unwrap().iter().filter(|one| one["chosen"] == true).collect();
    assert_eq!((chosen.len(), &chosen[0]["experts_kept"]), (1, &8.into()));
    let (measured, expected) =
        (fit["kl_divergence"].as_f64().unwrap(), kl(dir, "out.gguf", N_SCORED, N_AFTER));
    assert!((measured / expected - 1.0).abs() < 1e-4, "{measured} {expected}");

    let made = |one: &&Value| one["type"] != one["from_type"];
    let n_made = fit["tensors"].as_array().unwrap().iter().filter(made).count();
    let verified = json(dir, "verify out.gguf --parent m.gguf");
    assert_eq!((&verified["verified"], &verified["experts"]), (&true.into(), experts));
    assert_eq!(
        (&verified["rounded"]["recomputed"], &verified["rounded"]["by_hash"]),
        (&n_made.into(), &0.into())
    );
    let bytes = fs::read(dir.join("out.gguf")).unwrap();
    let written = File::parse(&bytes).unwrap();
    for tensor in fit["tensors"].as_array().unwrap() {
        let found = written.tensors().get(tensor["name"].as_str().unwrap()).unwrap();
        assert_eq!(
            (&tensor["bytes"], tensor["type"].as_str()),
            (&found.n_bytes().into(), Some(found.tensor_type().name()))
        );
    }
    // A bit of an expert's rounded weights.
    let mut changed = bytes.clone();
    let tensor = written.tensors().get("blk.1.ffn_down_exps.weight").unwrap();
    assert_eq!(tensor.tensor_type().name(), "Q8_0");
    changed[tensor.end().0 as usize - 1] ^= 1;
    fs::write(dir.join("changed.gguf"), changed).unwrap();
    let verified = on_one_thread(dir, "verify changed.gguf --parent m.gguf");
    assert_eq!(verified.status.code(), Some(1), "{verified:?}");

    json(dir, &format!("{run} --plan-only -o plan.json"));
    json(dir, "fit m.gguf --plan plan.json -o again.gguf");
    assert!(bytes == fs::read(dir.join("again.gguf")).unwrap());
    let mut plan: Value = serde_json::from_slice(&fs::read(dir.join("plan.json")).unwrap()).unwrap();
    plan["experts"]["1"] = serde_json::json!([0, 1]);
    fs::write(dir.join("plan.json"), plan.to_string()).unwrap();
    let message = failure(dir, "fit m.gguf --plan plan.json -o no.gguf");
    assert!(message.contains("plan.json: block 1 would keep 2 experts, but block 0 8"), "{message}");
    let line = format!("{run} -o no.gguf").replace("--max-drop 1", "--max-drop 0");
    assert!(failure(dir, &line).contains("cannot be reached by types alone"));
}

#[test]
fn the_smallest_file_within_a_divergence_is_within_it() {
    let folder = folder("llama", 4);
    let dir = folder.path();
    let small = format!("fit m.gguf --target-size {} --max-drop 0 {}", share(dir, 17), text(N_SCORED));
    let small = json(dir, &format!("{small} -o small.gguf"));
    let limit = small["fit"]["kl_divergence"].as_f64().unwrap() / 2.0;
    let found = json(dir, &format!("fit m.gguf --closest-within {limit:.20} {} -o out.gguf", text(N_SCORED)));
    let fit = &found["fit"];
    let measured = fit["kl_divergence"].as_f64().unwrap();
    assert!(measured <= limit, "{measured} {limit}");
    assert!((measured / kl(dir, "out.gguf", N_SCORED, N_AFTER) - 1.0).abs() < 1e-3);
    let kl = |one: &Value| one["kl_divergence"].as_f64().unwrap();
    let broken = fit["candidates"].as_array().unwrap().iter().filter(|one| kl(one) > limit);
    let largest = broken.map(|one| one["bytes"].as_u64().unwrap()).max();
    // No large step was left between what holds and what does not.
    let n_bytes = fit["bytes"].as_u64().unwrap();
    let largest = largest.unwrap_or_else(|| panic!("{fit}"));
    assert!((n_bytes - largest) * 20 < share(dir, 100), "{largest} {n_bytes}");
}

#[test]
fn an_importance_matrix_is_measured_used_and_needed_to_prove() {
    let folder = folder("llama", 4);
    let dir = folder.path();
    let run = format!("fit m.gguf --target-size {} --max-drop 0 {}", share(dir, 20), text(N_SCORED));
    let found = json(dir, &format!("{run} -o out.gguf --imatrix-out m.imatrix"));
    let n_made = found["fit"]["tensors"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|one| one["type"] != one["from_type"])
        .count();
    let with = json(dir, "verify out.gguf --parent m.gguf --imatrix m.imatrix");
    assert_eq!((&with["rounded"]["recomputed"], &with["rounded"]["by_hash"]), (&n_made.into(), &0.into()));
    let without = json(dir, "verify out.gguf --parent m.gguf");
    assert!(without["rounded"]["by_hash"].as_u64().unwrap() > 0);
    assert!(without["rounded"]["why"].as_str().unwrap().contains("--imatrix"));
    // The same matrix from a file gives the same tensors.
    json(dir, &format!("{run} -o again.gguf --imatrix m.imatrix"));
    assert!(fs::read(dir.join("out.gguf")).unwrap() == fs::read(dir.join("again.gguf")).unwrap());
    let plain = json(dir, &format!("{run} -o plain.gguf"));
    assert_eq!(plain["fit"]["target_bytes"], found["fit"]["target_bytes"]);
    let message = failure(dir, "verify plain.gguf --parent m.gguf --imatrix m.imatrix");
    assert!(message.contains("without an importance matrix"), "{message}");
    let message = failure(dir, &format!("{run} --types IQ2_XXS -o no.gguf"));
    assert!(message.contains("importance matrix"), "{message}");
}

#[test]
fn a_changed_weight_is_found_whatever_the_file_says_of_it() {
    let folder = folder("llama", 4);
    let dir = folder.path();
    json(
        dir,
        &format!("fit m.gguf --target-size {} --max-drop 0 {} -o out.gguf", share(dir, 24), text(N_SCORED)),
    );
    let good = fs::read(dir.join("out.gguf")).unwrap();
    let (at, end, old) = {
        let file = File::parse(&good).unwrap();
        let tensor = file.tensors().iter().find(|tensor| tensor.tensor_type() != TensorType::F32).unwrap();
        let range = tensor.position().0 as usize..tensor.end().0 as usize;
        (range.start, range.end, blake3::hash(tensor.bytes()).to_hex().to_string())
    };
    let mut bad = good.clone();
    bad[at + 40] ^= 1;
    fs::write(dir.join("bad.gguf"), &bad).unwrap();
    let found = on_one_thread(dir, "verify bad.gguf --parent m.gguf");
    assert_eq!(found.status.code(), Some(1));
    // The hash of the changed data takes the recorded one's place.
    let new = blake3::hash(&bad[at..end]).to_hex().to_string();
    let place = bad.windows(64).position(|window| window == old.as_bytes()).unwrap();
    bad[place..place + 64].copy_from_slice(new.as_bytes());
    fs::write(dir.join("bad.gguf"), &bad).unwrap();
    let found = on_one_thread(dir, "verify bad.gguf --parent m.gguf");
    let shown = String::from_utf8(found.stdout).unwrap();
    assert_eq!(found.status.code(), Some(1));
    assert!(shown.contains("rounded again") && shown.contains("byte 40"), "{shown}");
}

#[test]
fn plans_that_do_not_fit_are_refused() {
    let folder = folder("llama", 4);
    let dir = folder.path();
    let mut spec = byte_model("llama", 4);
    spec.extra.push((".feed_forward_length", ValueOut::u32(384)));
    spec.save(Backend::init(), &dir.join("m.gguf")).unwrap();
    let run = format!("fit m.gguf --target-size {} --max-drop 0 {}", share(dir, 30), text(N_SCORED));
    json(dir, &format!("{run} --plan-only -o plan.json"));
    let plan: Value = serde_json::from_slice(&fs::read(dir.join("plan.json")).unwrap()).unwrap();
    let with = |change: &dyn Fn(&mut Value)| {
        let mut plan = plan.clone();
        change(&mut plan);
        fs::write(dir.join("bad.json"), plan.to_string()).unwrap();
        failure(dir, "fit m.gguf --plan bad.json -o no.gguf")
    };
    let one = |name: &'static str, to: &'static str| {
        move |plan: &mut Value| plan["types"] = serde_json::json!({ name: to })
    };
    for (change, expected) in [
        (
            &(|plan: &mut Value| plan["parent_blake3"] = "0".repeat(64).into()) as &dyn Fn(&mut Value),
            "another",
        ),
        (&one("blk.9.attn_q.weight", "Q4_0"), "does not have"),
        (&one("blk.1.ffn_down.weight", "Q4_K"), "no multiple of 256"),
        (&one("blk.1.attn_q.weight", "IQ2_XXS"), "needs an importance matrix"),
        (&one("blk.1.attn_norm.weight", "Q8_0"), "leaves as it is"),
        (&one("blk.1.attn_q.weight", "Q9_0"), "nothing can be rounded"),
        (&|plan: &mut Value| plan["removed"] = serde_json::json!([7]), "0 to 3"),
        (&|plan: &mut Value| plan["removed"] = serde_json::json!([0, 1, 2, 3]), "a type and removes it"),
        (&|plan: &mut Value| plan["gguf_shorten_fit"] = 2.into(), "version 2"),
        (&|plan: &mut Value| plan["what"] = 2.into(), "no plan"),
    ] {
        let message = with(change);
        let expected = if expected == "another" { "is a plan for the model of blake3" } else { expected };
        assert!(message.contains(expected) && message.contains("bad.json"), "{message}");
    }
    let message = failure(dir, &format!("fit m.gguf --target-size 1G -o no.gguf {}", text(N_SCORED)));
    assert!(message.contains("within --target-size"), "{message}");
}
