//! Tensors that are not simply kept with their block. They have a part for each block, or are read by some blocks alone, or by
//! those that have none of their own.

use gguf_shorten::gguf::ValueOut;

use crate::make::{F32, I8, Make};
use crate::rules::flags;
use crate::shorten::{removes, value};

/// The per-layer tensors of gemma3n and gemma4, `width` elements per block.
fn with_parts(make: Make, n_blocks: u64, width: u64, type_id: u32) -> Make {
    make.tensor("per_layer_token_embd.weight", &[width * n_blocks, 4], type_id)
        .tensor("per_layer_model_proj.weight", &[8, width * n_blocks], F32)
        .tensor("rope_freqs.weight", &[8], F32)
}

fn gemma4(n_blocks: u32, n_sharing: u32) -> Make {
    let windows: Vec<bool> = (0..n_blocks).map(|i| i % 3 != 2).collect();
    Make::new("gemma4", n_blocks)
        .set("gemma4.attention.sliding_window_pattern", ValueOut::bools(&windows))
        .set("gemma4.attention.shared_kv_layers", ValueOut::u32(n_sharing))
}

#[test]
fn parts_of_removed_blocks_are_cut_out_of_gemma4() {
    let dir = with_parts(gemma4(7, 1), 7, 32, crate::make::Q4_1).dir();
    let output = dir.run("m.gguf --blocks 0,2,6 -o out.gguf").succeeds();
    let line = "sliced   'per_layer_token_embd.weight', 'per_layer_model_proj.weight': without the parts of removed blocks\n";
    output.check(output.stdout.contains(line), line);
    let (parent, out) = (dir.read("m.gguf"), dir.read("out.gguf"));
    assert_eq!(value(&out, "gemma4.attention.shared_kv_layers"), "u32 0");
    let [parent, out] = [&parent, &out].map(|bytes| gguf_shorten::gguf::File::parse(bytes).unwrap());
    let bytes =
        |file: &gguf_shorten::gguf::File<'_>, name| file.tensors().get(name).unwrap().bytes().to_vec();
    // One quantisation block of 20 bytes for each block in each row.
    let name = "per_layer_token_embd.weight";
    let expected: Vec<u8> = bytes(&parent, name)
        .chunks(7 * 20)
        .flat_map(|row| [1, 3, 4, 5].map(|block| row[block * 20..(block + 1) * 20].to_vec()))
        .flatten()
        .collect();
    assert_eq!(bytes(&out, name), expected);
    assert_eq!(out.tensors().get(name).unwrap().dims(), [4 * 32, 4, 1, 1]);
    // 32 rows of 32 bytes for each block.
    let name = "per_layer_model_proj.weight";
    let all = bytes(&parent, name);
    let expected: Vec<u8> =
        [1, 3, 4, 5].into_iter().flat_map(|block| all[block * 1024..(block + 1) * 1024].to_vec()).collect();
    assert_eq!(bytes(&out, name), expected);
    assert_eq!(out.tensors().get(name).unwrap().dims(), [8, 4 * 32, 1, 1]);
    let verified = dir.run("verify out.gguf --parent m.gguf").succeeds();
    let line = "identical, 2 sliced, 0 changed, 0 new, 0 left out\n";
    verified.check(verified.stdout.contains(line), line);
}

#[test]
fn parts_that_cannot_be_cut_are_refused_before_anything_else() {
    let dir = with_parts(gemma4(6, 0), 6, 16, crate::make::Q4_1).dir();
    dir.run("m.gguf --drop 1 -o out.gguf")
        .fails(1, "m.gguf: tensor 'per_layer_token_embd.weight' has 16 elements per row for each block");
    gemma4(6, 0).tensor("per_layer_model_proj.weight", &[8, 32], F32).write(&dir, "m.gguf");
    dir.run("m.gguf --blocks 0 -o out.gguf")
        .fails(1, "m.gguf: tensor 'per_layer_model_proj.weight' has 32 elements in dimension 1");
}

#[test]
fn a_tensor_that_no_block_of_gemma4_is_left_to_read_goes() {
    let dir = with_parts(gemma4(4, 0), 4, 32, F32).dir();
    let output = dir.run("m.gguf --blocks 2 -o out.gguf").succeeds();
    let line =
        "left out 'rope_freqs.weight': only blocks without a sliding window read it, and none is left\n";
    output.check(output.stdout.contains(line), line);
    let out = dir.read("out.gguf");
    let file = gguf_shorten::gguf::File::parse(&out).unwrap();
    assert!(file.tensors().get("rope_freqs.weight").is_none());
    let verified = dir.run("verify out.gguf --parent m.gguf").succeeds();
    let line = "0 new, 1 left out\n";
    verified.check(verified.stdout.contains(line), line);
}

#[test]
fn blocks_whose_keys_and_values_others_read_stay() {
    let dir = gemma4(8, 3).dir();
    for block in [3, 4] {
        dir.run(&format!("m.gguf --blocks {block} -o out.gguf"))
            .fails(1, &format!("m.gguf: cannot remove block {block}: it holds the keys and values"));
    }
    let out = removes(
        &gemma4(8, 3),
        &[0, 6],
        &["gemma4.attention.sliding_window_pattern", "gemma4.attention.shared_kv_layers"],
    );
    assert_eq!(value(&out, "gemma4.attention.shared_kv_layers"), "u32 2");
    for n_sharing in [7, 8, 9] {
        gemma4(8, n_sharing).write(&dir, "m.gguf");
        dir.run("m.gguf --blocks 0 -o out.gguf").fails(
            1,
            &format!(
                "m.gguf: metadata 'gemma4.attention.shared_kv_layers' is {n_sharing}, but of 8 blocks two"
            ),
        );
    }
}

#[test]
fn the_first_twenty_blocks_of_gemma3n_stay() {
    let dir = Make::new("gemma3n", 22).dir();
    dir.run("m.gguf --blocks 19 -o out.gguf")
        .fails(1, "m.gguf: cannot remove block 19: it is one of the first 20");
    dir.run("m.gguf --drop 3 --method reverse -o out.gguf")
        .fails(1, "m.gguf: cannot remove 3 blocks: 20 of 22 must stay");
    let pattern = "gemma3n.attention.sliding_window_pattern";
    let out = removes(&Make::new("gemma3n", 27), &[24, 26], &[pattern]);
    assert_eq!(flags(&out, pattern), "1111011110111101111011111");
}

/// Two blocks with the tensors of an encoder. Those listed have a table of positions of their own.
fn t5encoder(n_blocks: u32, own: &[u32]) -> Make {
    let make = Make::empty()
        .set("general.architecture", ValueOut::string("t5encoder"))
        .set("t5encoder.block_count", ValueOut::u32(n_blocks));
    (0..n_blocks).fold(make, |make, block| {
        let make = make.tensor(&format!("enc.blk.{block}.attn_q.weight"), &[5], I8);
        if own.contains(&block) {
            make.tensor(&format!("enc.blk.{block}.attn_rel_b.weight"), &[4], I8)
        } else {
            make
        }
    })
}

#[test]
fn the_positions_of_t5encoder_move_to_the_new_first_block() {
    for (own, removed, expected) in [
        (&[0][..], "0", &[(0, 0)][..]),
        (&[0], "0,1,2", &[(0, 0)]),
        (&[0], "1", &[(0, 0)]),
        // All have their own.
        (&[0, 1, 2, 3, 4], "0,2", &[(0, 1), (1, 3), (2, 4)]),
        // The new first block has its own, two others have not.
        (&[0, 1], "0,3", &[(0, 1), (1, 0), (2, 0)]),
        (&[0, 3], "0", &[(0, 0), (2, 3)]),
    ] {
        let dir = t5encoder(5, own).dir();
        dir.run(&format!("m.gguf --blocks {removed} -o out.gguf")).succeeds();
        dir.run("verify out.gguf --parent m.gguf").succeeds();
        let out = dir.read("out.gguf");
        let file = gguf_shorten::gguf::File::parse(&out).unwrap();
        let mut found = Vec::new();
        for block in 0..5 {
            if let Some(tensor) = file.tensors().get(&format!("enc.blk.{block}.attn_rel_b.weight")) {
                let is_of = |old: &u32| {
                    crate::make::data(&format!("enc.blk.{old}.attn_rel_b.weight"), 4) == tensor.bytes()
                };
                found.push((block, (0..5).find(is_of).unwrap()));
            }
        }
        assert_eq!(found, expected, "{own:?} without {removed}");
    }
    let dir = Make::new("t5", 4).dir();
    dir.run("m.gguf --blocks 0 -o out.gguf")
        .fails(1, "m.gguf: blocks of architecture 't5' cannot be removed");
}
