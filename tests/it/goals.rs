//! Goals in place of a number of blocks. Sizes to the byte, and what does not fit together.

use gguf_shorten::gguf::ValueOut;
use serde_json::{Value, json};

use crate::make::{F32, Make};
use crate::util::{Dir, Said};

/// Sizes of outputs in bytes, by number of removed blocks.
fn sizes(dir: &Dir, n_blocks: usize, arguments: &str) -> Vec<(usize, u64)> {
    (1..n_blocks)
        .filter_map(|n| {
            let output = dir.run(&format!("m.gguf --drop {n} {arguments} --dry-run --json -")).output();
            let json: Value = serde_json::from_str(&output.stdout).ok()?;
            let removed = json["removed"].as_array().unwrap().len();
            assert_eq!((removed, &json["goal"]), (n, &Value::Null));
            Some((n, json["output"]["bytes"].as_u64().unwrap()))
        })
        .collect()
}

#[test]
fn as_few_blocks_go_as_bring_the_file_to_the_size_to_the_byte() {
    // Blocks of several sizes: the first ones and the last ones are not the same.
    let mut uneven = Make::new("llama", 6);
    for block in 0..6 {
        uneven =
            uneven.tensor(&format!("blk.{block}.attn_k.weight"), &[40 + 400 * ((block * 5) % 6), 3], F32);
    }
    let periods = Make::new("smollm3", 9);
    for (make, n_blocks) in [(uneven, 6), (periods, 9)] {
        let dir = make.dir();
        for arguments in [
            "--method sequential",
            "--method reverse",
            "--method sequential --keep 4",
            "--method reverse --split-max-size 1000",
        ] {
            let sizes = sizes(&dir, n_blocks, arguments);
            assert!(sizes.len() > 1, "{arguments}");
            for &(_, size) in &sizes {
                for target in [size, size - 1, size + 1] {
                    let expected = sizes.iter().find(|(_, size)| *size <= target);
                    let command = format!("m.gguf --target-size {target} {arguments} -o out.gguf --force");
                    // Parts have more metadata than the input's one file. That may be small enough.
                    let whole = dir.read("m.gguf").len() as u64;
                    let Some(&(n, bytes)) = expected.filter(|_| target < whole) else {
                        dir.run(&command).refused();
                        continue;
                    };
                    let output = dir.run(&format!("{command} --json -")).succeeds();
                    let json: Value = serde_json::from_str(&output.stdout).unwrap();
                    let removed = json["removed"].as_array().unwrap().len();
                    assert_eq!(removed, n, "{arguments}: {target} bytes");
                    assert_eq!(json["output"]["bytes"], bytes);
                    let parts = json["output"]["parts"].as_array().unwrap();
                    let on_disk = parts.iter().map(|part| {
                        let name = part["path"].as_str().unwrap();
                        dir.read(name).len() as u64
                    });
                    assert_eq!(on_disk.sum::<u64>(), bytes);
                    let goal = &json["goal"];
                    assert_eq!(goal["goal"], "target-size");
                    assert_eq!(goal["limit"], target);
                    assert_eq!(goal["value"], bytes);
                    let steps = goal["steps"].as_array().unwrap();
                    let last = steps.last().unwrap();
                    assert_eq!(last["removed"], json["removed"]);
                    assert_eq!((&last["value"], &last["holds"]), (&json!(bytes), &json!(true)));
                    assert_eq!(last["perplexity"], Value::Null);
                }
            }
        }
    }
}

#[test]
fn a_size_out_of_reach_names_the_smallest() {
    let dir = Make::new("llama", 4).dir();
    let reach = |method: &str| {
        let command = format!("m.gguf --target-size 100 --method {method} -o out.gguf");
        let output = dir.run(&command).refused();
        output.check(output.status.code() == Some(1), "status 1");
        output.error().to_owned()
    };
    let start = "m.gguf: --target-size of 100 bytes cannot be reached: the smallest output has ";
    for method in ["sequential", "reverse"] {
        dir.run(&format!("m.gguf --drop 3 --method {method} -o {method}.gguf")).succeeds();
        let smallest = dir.read(&format!("{method}.gguf")).len();
        let expected = format!("{start}{smallest} bytes, without blocks 1-3");
        assert_eq!(reach(method), expected);
    }
    // Methods that measure say it before they do: no llama.cpp could load this model.
    for method in ["bi", "search", "run", "ablate"] {
        let error = reach(method);
        assert!(error.starts_with(start), "{error}");
    }
    let whole = dir.read("m.gguf").len();
    dir.run(&format!("m.gguf --target-size {whole} --method reverse -o out.gguf")).fails(
        1,
        &format!("m.gguf: has {whole} bytes, which is within --target-size, so no block has to go"),
    );
    dir.run("m.gguf --target-size 100 --method reverse --keep 0-3 -o out.gguf")
        .fails(1, "m.gguf: --target-size of 100 bytes cannot be reached: no set of blocks may be removed");
}

#[test]
fn prediction_blocks_that_go_anyway_may_be_enough() {
    let dir = Make::new("glm4", 6)
        .set("glm4.nextn_predict_layers", ValueOut::u32(2))
        .tensor("blk.4.nextn.eh_proj.weight", &[3, 2], F32)
        .tensor("blk.5.nextn.eh_proj.weight", &[3, 2], F32)
        .dir();
    dir.run("m.gguf --drop-mtp -o without.gguf").succeeds();
    let size = dir.read("without.gguf").len();
    for (target, n) in [(size, 2), (size - 1, 3)] {
        let output = dir
            .run(&format!("m.gguf --drop-mtp --target-size {target} --method reverse --dry-run --json -"))
            .succeeds();
        let json: Value = serde_json::from_str(&output.stdout).unwrap();
        assert_eq!(json["removed"].as_array().unwrap().len(), n, "{json:#}");
        assert!(json["goal"]["value"].as_u64().unwrap() <= target as u64);
    }
}

#[test]
fn the_table_says_what_was_asked_for() {
    let dir = Make::new("llama", 4).dir();
    let output = dir.run("m.gguf --target-size 3kB --method reverse --dry-run").succeeds();
    let line = output.stdout.lines().find(|line| line.starts_with("goal "));
    let line = line.unwrap_or_else(|| panic!("{}", output.stdout));
    assert!(line.starts_with("goal     at most 3,000 bytes: 2,"), "{line}");
}

#[test]
fn goals_and_numbers_exclude_one_another() {
    let dir = Make::new("llama", 4).dir();
    let goals = ["--target-size 1M", "--max-ppl +10%", "--max-kl 0.1"];
    for goal in goals {
        for other in ["--drop 1", "--blocks 1", "--drop-attention 1", "--attention-blocks 1"] {
            let output = dir.run(&format!("m.gguf {goal} {other} -o out.gguf")).refused();
            assert_eq!(output.status.code(), Some(2), "{goal} {other}");
        }
        for other in goals.iter().filter(|other| **other != goal) {
            let output = dir.run(&format!("m.gguf {goal} {other} -o out.gguf")).refused();
            assert_eq!(output.status.code(), Some(2), "{goal} {other}");
        }
        let flag = goal.split(' ').next().unwrap();
        dir.run(&format!("m.gguf {goal} --objective draft -o out.gguf"))
            .fails(2, &format!("so {flag} has no place beside it"));
    }
    let mut said = Said::default();
    for arguments in [
        "--max-kl 0.1 --objective draft",
        "--objective kl",
        "--objective draft --drop-attention 1",
        "--drop 1 --method search --objective task",
        "--drop 1 --method search --task-file t",
        "--drop 1 --objective task --task-file t",
        "--drop 1 --method search --objective task --task-file t --tasks 0",
    ] {
        said.refused(arguments, dir.run(&format!("m.gguf {arguments} -o out.gguf")), 2);
    }
    said.compare("objectives.txt");
    for arguments in [
        "--blocks 1 --objective draft",
        "--blocks 1 --objective kl",
        "--drop 1 --tasks 3",
        "--max-ppl 10%",
        "--max-ppl +10",
        "--max-ppl +-10%",
        "--max-ppl +nan%",
        "--max-ppl 0.5",
        "--max-ppl inf",
        "--max-ppl 1e2",
        "--max-kl=-1",
        "--max-kl nan",
        "--max-kl 5%",
        "--target-size 0",
        "--target-size big",
    ] {
        let output = dir.run(&format!("m.gguf {arguments} -o out.gguf")).refused();
        assert_eq!(output.status.code(), Some(2), "{arguments}");
    }
}

#[test]
fn a_malformed_task_file_is_named_by_line_before_anything_is_measured() {
    let dir = Make::new("llama", 4).dir();
    let run = |dir: &Dir, message: &str| {
        dir.run("m.gguf --drop 1 --method search --objective task --task-file t -o out.gguf")
            .fails(1, message);
    };
    run(&dir, "t: No such file or directory (os error 2)");
    dir.write("t", b"");
    run(&dir, "t: has no task");
    dir.write("t", b"A man. He\n4\na\nb\nc\nd\n");
    run(&dir, "t: line 2 is '4', expected the number of the right ending, 0 to 3");
    dir.write("t", b"{\"question\": \"Why?\", \"choices\": [\"a\", \"b\"], \"answer\": 1}\n{}\n");
    run(&dir, "t: line 2: has no text 'question'");
}
