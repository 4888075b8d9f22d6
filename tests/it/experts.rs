//! Fewer experts: bytes of those that stay are the parent's, or the request is refused with the reason.

use gguf_shorten::gguf::{File, ValueOut};
use serde_json::{Value, json};

use crate::make::{F32, Make, Q4_1, data, part_name, write_parts};
use crate::util::Dir;

const N_EXPERTS: usize = 6;

/// Per-expert tensors of a block: other dimensions, type, and bytes of an entry.
const TENSORS: [(&str, &[u64], u32, usize); 8] = [
    ("ffn_gate_inp.weight", &[32], F32, 128),
    ("exp_probs_b.bias", &[], F32, 4),
    ("ffn_gate_exps.weight", &[32, 3], Q4_1, 60),
    ("ffn_up_exps.weight", &[32, 3], Q4_1, 60),
    ("ffn_up_exps.bias", &[3], F32, 12),
    ("ffn_up_exps.scale", &[], F32, 4),
    ("ffn_down_exps.weight", &[32, 5], F32, 640),
    ("ffn_down_exps.input_scale", &[], F32, 4),
];

/// A mixture whose first block is dense.
fn mixture(n_blocks: u32) -> Make {
    mixture_from(1, n_blocks)
}

/// One whose blocks before `first` are dense.
fn mixture_from(first: u32, n_blocks: u32) -> Make {
    let u32 = ValueOut::u32;
    let mut make = Make::new("dots1", n_blocks)
        .set("dots1.expert_count", u32(N_EXPERTS as u32))
        .set("dots1.expert_used_count", u32(2))
        .set("dots1.leading_dense_block_count", u32(1))
        .set("general.size_label", ValueOut::string("6x1K"));
    for block in first..n_blocks {
        for (rest, dims, kind, _) in TENSORS {
            let dims = [dims, &[N_EXPERTS as u64]].concat();
            make = make.tensor(&format!("blk.{block}.{rest}"), &dims, kind);
        }
        make = make.tensor(&format!("blk.{block}.ffn_up_shexp.weight"), &[32, 2], Q4_1);
    }
    make
}

/// Checks that the output's block `new` has block `old`'s experts `kept`.
fn check_block(parent: &File<'_>, out: &File<'_>, [old, new]: [usize; 2], kept: &[usize]) {
    for (rest, dims, _, n_bytes) in TENSORS {
        let tensor = out.tensors().get(&format!("blk.{new}.{rest}")).unwrap();
        let expected = [dims, &[kept.len() as u64]].concat();
        assert_eq!(&tensor.dims()[..tensor.n_dims()], expected, "{rest}");
        let parent = parent.tensors().get(&format!("blk.{old}.{rest}")).unwrap().bytes();
        assert_eq!(parent.len(), n_bytes * N_EXPERTS);
        let bytes: Vec<u8> =
            kept.iter().flat_map(|&k| &parent[k * n_bytes..(k + 1) * n_bytes]).copied().collect();
        assert!(tensor.bytes() == bytes, "{rest}");
    }
    let shared = |file: &File<'_>, block: usize| {
        file.tensors().get(&format!("blk.{block}.ffn_up_shexp.weight")).unwrap().bytes().to_vec()
    };
    assert_eq!(shared(parent, old), shared(out, new));
}

fn text<'f>(file: &'f File<'_>, key: &str) -> &'f str {
    file.metadata().get(key).unwrap().value().as_str().unwrap()
}

fn numbers(file: &File<'_>, key: &str) -> Vec<i64> {
    let numbers = file.metadata().get(key).unwrap().value().as_array().unwrap().i64s();
    numbers.map(Result::unwrap).collect()
}

#[test]
fn experts_that_stay_are_the_parents_byte_for_byte() {
    let dir = mixture(4).dir();
    let output = dir.run("m.gguf --keep-experts 0,2-3,5 -o out.gguf").succeeds();
    let line = "experts  4 of 6 stay in each of 3 blocks (by list)\n";
    assert!(output.stdout.contains(line), "{}", output.stdout);
    assert!(output.stdout.contains("removed  no whole block\n"), "{}", output.stdout);
    let sliced = "sliced   'blk.1.ffn_gate_inp.weight' and 23 more: of 4 of 6 experts\n";
    assert!(output.stdout.contains(sliced), "{}", output.stdout);
    let (parent, out) = (dir.read("m.gguf"), dir.read("out.gguf"));
    let (parent, out) = (File::parse(&parent).unwrap(), File::parse(&out).unwrap());
    for block in 1..4 {
        check_block(&parent, &out, [block, block], &[0, 2, 3, 5]);
    }
    assert_eq!(out.metadata().get("dots1.expert_count").unwrap().value().as_u64().unwrap(), 4);
    assert_eq!(text(&out, "general.name"), "Tiny (4 of 4 blocks, 4 of 6 experts)");
    assert!(text(&out, "general.size_label").starts_with("4x"));
    assert_eq!(text(&out, "gguf_shorten.method"), "none");
    assert_eq!(text(&out, "gguf_shorten.experts_method"), "list");
    assert_eq!(numbers(&out, "gguf_shorten.experts"), [0, 2, 3, 5].repeat(3));
    assert_eq!(numbers(&out, "gguf_shorten.blocks"), [0, 1, 2, 3]);
    let changed = ["general.name", "general.size_label", "dots1.expert_count"];
    for entry in parent.metadata().iter().filter(|entry| !changed.contains(&entry.key())) {
        assert_eq!(out.metadata().get(entry.key()).unwrap().raw(), entry.raw());
    }
}

#[test]
fn lists_may_differ_from_block_to_block_beside_removed_blocks_and_in_parts() {
    let dir = Dir::new();
    let whole = mixture(5);
    write_parts(&dir, &whole.split(3));
    whole.write(&dir, "whole.gguf");
    // Block 2 goes, whatever is said of it.
    dir.write("experts.json", br#"{"1": [5, 0, 1], "2": [1], "3": [2, 3, 4], "4": [0, 4, 5]}"#);
    let from = part_name(0, 3);
    let arguments = format!("{from} --blocks 2 --experts experts.json -o out.gguf --keep-split --json -");
    let output = dir.run(&arguments).succeeds();
    let report: Value = serde_json::from_str(&output.stdout).unwrap();
    let kept = json!({"1": [0, 1, 5], "3": [2, 3, 4], "4": [0, 4, 5]});
    assert_eq!(report["experts"], json!({"method": "list", "kept_count": 3, "count": 6, "kept": kept}));
    assert_eq!(report["removed"], json!([2]));
    assert_eq!(report["method"], "blocks");
    let found = dir.run(&format!("verify out-00001-of-00003.gguf --parent {from} --json -")).succeeds();
    let found: Value = serde_json::from_str(&found.stdout).unwrap();
    assert_eq!((&found["verified"], &found["experts"]), (&json!(true), &report["experts"]));

    dir.run("whole.gguf --blocks 2 --experts experts.json -o out.gguf").succeeds();
    let (parent, out) = (dir.read("whole.gguf"), dir.read("out.gguf"));
    let (parent, out) = (File::parse(&parent).unwrap(), File::parse(&out).unwrap());
    check_block(&parent, &out, [1, 1], &[0, 1, 5]);
    check_block(&parent, &out, [3, 2], &[2, 3, 4]);
    check_block(&parent, &out, [4, 3], &[0, 4, 5]);
    assert_eq!(numbers(&out, "gguf_shorten.experts"), [0, 1, 5, 2, 3, 4, 0, 4, 5]);
    assert_eq!(text(&out, "general.name"), "Tiny (4 of 5 blocks, 3 of 6 experts)");
    let verified = dir.run("verify out.gguf --parent whole.gguf").succeeds();
    let line = "experts  3 of 6 stay in each of 3 blocks (by 'list')\n";
    assert!(verified.stdout.contains(line), "{}", verified.stdout);
    let refused = dir.run("verify out.gguf --parent whole.gguf --run").refused();
    assert!(refused.error().contains("the router still chooses it"), "{}", refused.error());
}

#[test]
fn verify_finds_what_is_not_so() {
    let dir = mixture(3).dir();
    dir.run("m.gguf --keep-experts 1-3 -o out.gguf").succeeds();
    let out = dir.read("out.gguf");
    let position = |needle: &[u8]| {
        let mut windows = out.windows(needle.len());
        windows.position(|window| window == needle).unwrap() + needle.len()
    };
    let change = |at: usize, byte: u8, message: &str| {
        let mut wrong = out.clone();
        wrong[at] = byte;
        dir.write("wrong.gguf", &wrong);
        let found = dir.run("verify wrong.gguf --parent m.gguf").output();
        assert_eq!(found.status.code(), Some(1));
        assert!(found.stderr.contains(message), "{}", found.stderr);
    };
    // After the key stand type, type of elements and their number: 4 + 4 + 8 bytes.
    let list = position(b"gguf_shorten.experts") + 16;
    change(list, 0, "is not what gguf-shorten makes of m.gguf");
    change(list, 9, "are not in rising order");
    change(list + 8, 9, "cannot keep expert 9 of block 1: it has 6, 0 to 5");
    change(list + 3, 0x80, "gguf_shorten.experts");
    change(position(b"gguf_shorten.experts_method") + 12, b'x', "gguf_shorten.experts_method");
    change(position(b"dots1.expert_count") + 4, 4, "dots1.expert_count");
    // A parent with experts in another number of blocks.
    mixture_from(0, 3).write(&dir, "other.gguf");
    dir.run("m.gguf --keep-experts 0-3 -o four.gguf").succeeds();
    let output = dir.run("verify four.gguf --parent other.gguf").refused();
    let why = "8 kept experts are not as many for each of 3 blocks";
    assert_eq!(output.error(), format!("four.gguf: names a cut that is refused: {why}"));
    let file = File::parse(&out).unwrap();
    for (rest, ..) in TENSORS {
        let name = format!("blk.2.{rest}");
        let at = file.tensors().get(&name).unwrap().position().0 as usize;
        change(at, out[at] ^ 1, &name);
    }
}

#[test]
fn importance_matrices_lose_the_entries_of_experts_that_go() {
    let dir = mixture(3).dir();
    let weights = ["ffn_gate_inp.weight", "ffn_up_exps.weight", "ffn_down_exps.weight"];
    let mut make = Make::empty().set("general.type", ValueOut::string("imatrix"));
    let int = |n: usize| (n as i32).to_le_bytes();
    let mut dat = int(4).to_vec();
    for block in [1, 2] {
        for weight in weights {
            let n = if weight.contains("exps") { N_EXPERTS as u64 } else { 1 };
            make = make.tensor(&format!("blk.{block}.{weight}.in_sum2"), &[32, n], F32).tensor(
                &format!("blk.{block}.{weight}.counts"),
                &[1, n],
                F32,
            );
            if weight != "ffn_up_exps.weight" {
                let name = format!("blk.{block}.{weight}");
                dat.extend(int(name.len()));
                dat.extend(name.bytes());
                dat.extend(int(7));
                dat.extend(int(32 * n as usize));
                dat.extend(data(&name, 4 * 32 * n));
            }
        }
    }
    make.write(&dir, "imatrix.gguf");
    dir.write("imatrix.dat", &dat);
    dir.write("experts.json", br#"{"1": [1, 4], "2": [0, 5]}"#);
    for form in ["gguf", "dat"] {
        let arguments =
            format!("m.gguf --experts experts.json -o out.gguf --force --imatrix imatrix.{form} new.{form}");
        dir.run(&arguments).succeeds();
        // It is of the shortened model.
        dir.run(&format!("out.gguf --blocks 1 --dry-run --imatrix new.{form} other")).succeeds();
    }
    let (before, after) = (dir.read("imatrix.gguf"), dir.read("new.gguf"));
    let (before, after) = (File::parse(&before).unwrap(), File::parse(&after).unwrap());
    assert_eq!(before.tensors().len(), after.tensors().len());
    let kept = |block: usize| [[1, 4], [0, 5]][block - 1];
    for tensor in before.tensors() {
        let found = after.tensors().get(tensor.name()).unwrap();
        if !tensor.name().contains("exps") {
            assert_eq!((found.dims(), found.bytes()), (tensor.dims(), tensor.bytes()));
            continue;
        }
        let n_bytes = 4 * tensor.dims()[0] as usize;
        let block = tensor.name()[4..5].parse().unwrap();
        let row = |k: usize| &tensor.bytes()[k * n_bytes..(k + 1) * n_bytes];
        assert_eq!(found.bytes(), kept(block).map(row).concat(), "{}", tensor.name());
        assert_eq!(found.dims()[..2], [tensor.dims()[0], 2]);
    }
    let mut expected = int(4).to_vec();
    for block in [1, 2] {
        for weight in ["ffn_gate_inp.weight", "ffn_down_exps.weight"] {
            let name = format!("blk.{block}.{weight}");
            let is_mixture = weight.contains("exps");
            let values = data(&name, 4 * 32 * if is_mixture { 6 } else { 1 });
            let values = match is_mixture {
                true => kept(block).iter().flat_map(|k| values[k * 128..(k + 1) * 128].to_vec()).collect(),
                false => values,
            };
            expected.extend(int(name.len()));
            expected.extend(name.bytes());
            expected.extend(int(7));
            expected.extend(int(values.len() / 4));
            expected.extend(values);
        }
    }
    assert!(dir.read("new.dat") == expected);
}

#[test]
fn show_says_how_many_may_go() {
    let dir = mixture(3).dir();
    let shown = dir.run("show m.gguf").succeeds().stdout;
    let line = "  4 of 6 experts may be removed from each of 2 blocks: 2 are used at once\n";
    assert!(shown.contains(line), "{shown}");
    let grouped = mixture(3)
        .set("dots1.expert_group_count", ValueOut::u32(2))
        .set("dots1.expert_group_used_count", ValueOut::u32(1));
    let dir = grouped.dir();
    let shown = dir.run("show m.gguf --json -").succeeds().stdout;
    let shown: Value = serde_json::from_str(&shown).unwrap();
    let expected = json!({"count": 6, "used": 2, "groups": 2, "groups_used": 1, "blocks": 2, "may_go": 2});
    assert_eq!((&shown["experts"], &shown["experts_refused"]), (&expected, &Value::Null));
    let dir = Make::new("grovemoe", 2).set("grovemoe.expert_count", ValueOut::u32(8)).dir();
    let shown = dir.run("show m.gguf").succeeds().stdout;
    assert!(
        shown.contains("  no expert: experts of architecture 'grovemoe' cannot be removed: llama.cpp"),
        "{shown}"
    );
    let dir = Make::new("llama", 2).dir();
    let dense = dir.run("show m.gguf --json -").succeeds().stdout;
    let dense: Value = serde_json::from_str(&dense).unwrap();
    assert_eq!((&dense["experts"], &dense["experts_refused"]), (&Value::Null, &Value::Null));
}

#[test]
fn a_softmax_that_is_not_normalised_is_noted() {
    let note = "the weights of experts are a softmax over all of a block: those that stay weigh more than in the input";
    let noted = |make: Make| {
        let dir = make.dir();
        let output = dir.run("m.gguf --keep-experts 0-3 --dry-run --json -").succeeds();
        let report: Value = serde_json::from_str(&output.stdout).unwrap();
        report["output"]["notes"].as_array().unwrap().iter().any(|found| found == note)
    };
    let gating = |function: u32| mixture(3).set("dots1.expert_gating_func", ValueOut::u32(function));
    assert!(noted(gating(1)));
    assert!(!noted(gating(1).set("dots1.expert_weights_norm", ValueOut::bool(true))));
    assert!(!noted(gating(2)));
    assert!(!noted(mixture(3)));
}

#[test]
fn what_cannot_be_is_refused_with_the_reason() {
    let refused = |make: &Make, arguments: &str, message: &str| {
        let dir = make.dir();
        dir.write("experts.json", b"{\"1\": [0, 1, 2], \"2\": [0, 1]}");
        let output = dir.run(&format!("m.gguf {arguments} -o out.gguf")).refused();
        assert_eq!(output.error(), format!("m.gguf: {message}"));
        assert!(!dir.exists("out.gguf"));
    };
    let make = mixture(3);
    refused(
        &Make::new("llama", 3),
        "--keep-experts 0",
        "has no experts to remove: 'llama.expert_count' is 0",
    );
    refused(&make, "--keep-experts 0,6", "cannot keep expert 6: each block has 6, 0 to 5");
    refused(&make, "--keep-experts 0", "cannot keep 1 of 6 experts: 2 are used at once");
    refused(&make, "--keep-experts 0-5", "cannot keep 6 experts: that is all of them, so none is removed");
    let lengths = "block 2 would keep 2 experts, but block 1 3: llama.cpp counts them once for all blocks";
    refused(&make, "--experts experts.json", lengths);
    refused(
        &mixture(4),
        "--experts experts.json --blocks 2",
        "block 3 has experts, but which are kept is not said",
    );
    refused(&make, "--blocks 1-2 --keep-experts 0-2", "cannot remove experts: no block that stays has any");

    let grouped = make
        .clone()
        .set("dots1.expert_group_count", ValueOut::u32(2))
        .set("dots1.expert_group_used_count", ValueOut::u32(1));
    refused(
        &grouped,
        "--keep-experts 0-2",
        "cannot keep 3 of 6 experts: 2 are used at once, of 1 of 2 groups, so 4 must stay",
    );
    refused(
        &grouped,
        "--keep-experts 0-4",
        "cannot keep 5 of 6 experts: they are in 2 groups, which must stay of one size",
    );
    refused(
        &grouped,
        "--keep-experts 0-3",
        "block 1 would keep 3 experts of group 0, expected 2 of each of 2 groups",
    );
    let unequal = make.clone().set("dots1.expert_group_count", ValueOut::u32(4));
    refused(&unequal, "--keep-experts 0-3", "6 experts are not 4 equal groups of which 0 can be used");
    let fewer = make.clone().set("dots1.expert_count", ValueOut::u32(5));
    refused(
        &fewer,
        "--keep-experts 0-3",
        "tensor 'blk.1.ffn_gate_inp.weight' has 6 entries in dimension 1, expected one for each of 5 experts, in its last \
         dimension",
    );
    let more = make.clone().tensor("blk.1.ffn_other_exps.weight", &[2, 2, 6], F32);
    refused(
        &more,
        "--keep-experts 0-3",
        "cannot remove experts: how to cut tensor 'blk.1.ffn_other_exps.weight' is not known",
    );
    let routed = make.clone().tensor("blk.0.ffn_gate_inp.weight", &[32, 6], F32);
    refused(
        &routed,
        "--keep-experts 0-3",
        "cannot remove experts: block 0 has only one of 'ffn_gate_inp.weight' and 'ffn_down_exps.weight'",
    );
    let hashed = make.clone().tensor("blk.1.ffn_gate_tid2eid.weight", &[2, 4], F32);
    refused(
        &hashed,
        "--keep-experts 0-3",
        "cannot remove experts: block 1 has a table of the experts of each token, 'blk.1.ffn_gate_tid2eid.weight'",
    );
    let unknown = Make::new("minicpm", 3).set("minicpm.expert_count", ValueOut::u32(6));
    refused(
        &unknown,
        "--keep-experts 0-3",
        "how a block chooses among experts is not known for architecture 'minicpm', so none can be removed",
    );
    let predicting = mixture(4).predicting("dots1", 3..4);
    refused(
        &predicting,
        "--keep-experts 0-3",
        "cannot remove experts: block 3 has as many and is for multi-token prediction, which is not evaluated",
    );
    let dir = predicting.dir();
    dir.run("m.gguf --keep-experts 0-3 --drop-mtp -o out.gguf").succeeds();
    dir.run("verify out.gguf --parent m.gguf").succeeds();
}

#[test]
fn the_number_that_selects_another_graph_is_refused() {
    let llama4 = |n: u64| {
        let make = Make::new("llama4", 4)
            .set("llama4.expert_count", ValueOut::u32(n as u32))
            .set("llama4.expert_used_count", ValueOut::u32(1))
            .set("llama4.interleave_moe_layer_step", ValueOut::u32(1))
            .set("llama4.attention.sliding_window", ValueOut::u32(8));
        (0..4).fold(make, |make, block| {
            let name = |rest: &str| format!("blk.{block}.{rest}");
            make.tensor(&name("ffn_gate_inp.weight"), &[32, n], F32).tensor(
                &name("ffn_down_exps.weight"),
                &[32, 2, n],
                F32,
            )
        })
    };
    for (n, kept) in [(128, 100), (200, 128)] {
        let dir = llama4(n).dir();
        let output = dir.run(&format!("m.gguf --keep-experts 0-{} -o out.gguf", kept - 1)).refused();
        let why = "llama.cpp does without norms of queries and keys (llama4.cpp) if there are exactly 128";
        assert_eq!(output.error(), format!("m.gguf: cannot keep {kept} of {n} experts: {why}"));
    }
    let dir = llama4(16).dir();
    dir.run("m.gguf --keep-experts 0,15 -o out.gguf").succeeds();
    dir.run("verify out.gguf --parent m.gguf").succeeds();
}

#[test]
fn a_file_of_lists_is_named_with_its_fault() {
    let dir = mixture(3).dir();
    for (content, fault) in [
        (
            "{\"1\": [0, 1, 1], \"2\": [0, 1, 2]}",
            "m.gguf: the kept experts of block 1 are not in rising order, each once",
        ),
        (
            "{\"0\": [0, 1], \"1\": [0, 1], \"2\": [0, 1]}",
            "m.gguf: cannot remove experts of block 0: it has none",
        ),
        ("{\"1\": [0, 7], \"2\": [0, 1]}", "m.gguf: cannot keep expert 7 of block 1: it has 6, 0 to 5"),
        ("{\"one\": [0]}", "m.gguf: experts.json: 'one' is not a block number"),
    ] {
        dir.write("experts.json", content.as_bytes());
        let output = dir.run("m.gguf --experts experts.json -o out.gguf").refused();
        assert_eq!(output.error(), fault);
    }
    dir.write("experts.json", b"[[0, 1]]");
    let output = dir.run("m.gguf --experts experts.json -o out.gguf").refused();
    let expected = "expected a JSON object that has for each block the list of its kept experts";
    let found = "invalid type: sequence, expected an object at line 1 column 0";
    assert_eq!(output.error(), format!("m.gguf: experts.json: {expected}: {found}"));
    dir.write("experts.json", br#"{"1": [0, 1], "2": [0, 1], "1": [2, 3]}"#);
    let output = dir.run("m.gguf --experts experts.json -o out.gguf").refused();
    output.check(output.error().contains("'1' stands twice at line 1 column "), "the block is named");
    dir.write("experts.json", br#"{"1": [0, 1], "2": [0, 1]}"#);
    dir.run("m.gguf --experts experts.json --experts-by reap -o out.gguf").refused();
    dir.run("m.gguf --experts /dev/zero -o out.gguf").refused();
    dir.run("m.gguf --experts missing.json -o out.gguf").refused();
    dir.run("m.gguf --keep-experts 0-3 --experts experts.json -o out.gguf").refused();
    let heal = "--heal fits weights to blocks that have all experts, so none can be removed beside it";
    dir.run("m.gguf --keep-experts 0-3 --blocks 1 --heal scale -o out.gguf").fails(2, heal);
    let goal = "--max-kl is measured with all experts, so none can be removed beside it; --drop or --blocks can be given";
    dir.run("m.gguf --keep-experts 0-3 --max-kl 0.1 -o out.gguf").fails(2, goal);
}
