//! Random models: every known architecture, odd alignments, both versions, nested arrays, empty tensors.

use gguf_shorten::gguf::{File, ValueOut, ValueType};
use gguf_shorten::model::Model;
use gguf_shorten::model::arch::{Architecture, Recurrent};
use gguf_shorten::plan::Constraints;

use crate::make::{F32, I8, Make, Q4_1, Random, array};

/// A random model that can be shortened.
pub fn model(random: &mut Random) -> Make {
    loop {
        let make = any_model(random);
        let bytes = make.bytes();
        let model = Model::new(vec![File::parse(&bytes).unwrap()]).unwrap();
        // Some architectures want keys that are not made here.
        if Constraints::of(&model).is_ok() {
            return make;
        }
    }
}

fn any_model(random: &mut Random) -> Make {
    let all = Architecture::all();
    let rules = &all[random.below(all.len())];
    let n_blocks = 1 + random.below(9);
    let mut make = Make::new(rules.name, n_blocks as u32);
    make = with_block_keys(make, rules, n_blocks, random);
    make = with_other_keys(make, random);
    make = with_tensors(make, n_blocks, random);
    if random.below(4) == 0 {
        make = make.version(2);
    }
    if random.below(2) == 0 {
        make = make.alignment(1 << random.below(9));
    }
    if random.below(3) == 0 {
        make = make.without_end_padding();
    }
    make
}

/// Keys that say something of every block, or count blocks.
fn with_block_keys(mut make: Make, rules: &Architecture, n_blocks: usize, random: &mut Random) -> Make {
    let key = |name: &str| format!("{}.{name}", rules.name);
    let mut n_trunk = n_blocks;
    if random.below(6) == 0 && n_blocks > 1 {
        n_trunk -= 1;
        make = make.set(&key("nextn_predict_layers"), ValueOut::u32(1));
        if random.below(2) == 0 {
            let name = format!("{}{n_trunk}.nextn.eh_proj.weight", rules.block_prefix());
            make = make.tensor(&name, &[3, 2], F32);
        }
    }
    // Such arrays cover all blocks or those of the trunk.
    let n = [n_blocks, n_trunk][random.below(2)];
    let mut flags = || -> Vec<bool> { (0..n).map(|_| random.below(2) == 0).collect() };
    let (windows, recurrent) = (flags(), flags());
    if rules.window().is_some() {
        make = make.set(&key("attention.sliding_window"), ValueOut::u32(8));
        make = match random.below(3) {
            0 => make,
            1 => make.set(&key("attention.sliding_window_pattern"), ValueOut::u32(random.below(7) as u32)),
            _ => make.set(&key("attention.sliding_window_pattern"), ValueOut::bools(&windows)),
        };
    }
    let heads = |flags: &[bool]| -> Vec<u32> { flags.iter().map(|&r| u32::from(!r)).collect() };
    match rules.recurrent() {
        Some(Recurrent::WithoutKvHeads) => {
            make = make.set(&key("attention.head_count_kv"), ValueOut::u32s(&heads(&recurrent)));
        }
        Some(Recurrent::Interval { .. }) if random.below(2) == 0 => {
            make = make.set(&key("attention.recurrent_layers"), ValueOut::bools(&recurrent));
        }
        _ => {}
    }
    if random.below(3) == 0 {
        let sizes: Vec<u32> = (0..n).map(|i| 64 + i as u32).collect();
        make = make.set(&key("feed_forward_length"), ValueOut::u32s(&sizes));
    }
    for leading in rules.leading() {
        make = make.set(&key(leading), ValueOut::u32(random.below(4) as u32));
    }
    for array in rules.arrays() {
        let name = array.strip_prefix('.').map_or(key(array), str::to_owned);
        let values: Vec<f32> = (0..n).map(|i| i as f32).collect();
        make = make.set(&name, ValueOut::f32s(&values));
    }
    make
}

/// Keys that no plan touches.
fn with_other_keys(mut make: Make, random: &mut Random) -> Make {
    for i in 0..random.below(6) {
        let key = format!("other.{i}");
        let value = match random.below(8) {
            0 => ValueOut::integer(ValueType::I8, 7).unwrap(),
            1 => ValueOut::integer(ValueType::U64, random.next()).unwrap(),
            2 => ValueOut::string(["", "text", "ein\nzeiler"][random.below(3)]),
            3 => ValueOut::strings(&[&b"\xff\xfe"[..], b""]),
            4 => ValueOut::array(&key, ValueType::Bool, 3, &[1, 0, 1]).unwrap(),
            5 => ValueOut::array(&key, ValueType::String, 0, &[]).unwrap(),
            _ => nested(&key, random),
        };
        make = make.set(&key, value);
    }
    if random.below(4) == 0 {
        make = make.unset("general.name");
    }
    make
}

/// An array of arrays, up to seven deep.
fn nested(key: &str, random: &mut Random) -> ValueOut {
    let mut element = array(random.below(2) as u32, 3, &[1, 2, 3]);
    for _ in 0..random.below(6) {
        element = array(9, 2, &[element.clone(), array(8, 0, &[])].concat());
    }
    ValueOut::array(key, ValueType::Array, 1, &element).unwrap()
}

/// Tensors of blocks, in any order among those of none. Some without elements.
fn with_tensors(mut make: Make, n_blocks: usize, random: &mut Random) -> Make {
    for i in 0..random.below(12) {
        let rows = random.below(4) as u64;
        let (dims, type_id) = match random.below(4) {
            0 => (vec![32, rows], Q4_1),
            1 => (vec![random.below(40) as u64], I8),
            2 => (vec![3, 1, rows, 2], F32),
            _ => (vec![], F32),
        };
        let name = match random.below(3) {
            0 => format!("other.{i}"),
            1 => format!("v.blk.{}.{i}", random.below(n_blocks)),
            _ => format!("blk.{}.other.{i}.weight", random.below(n_blocks)),
        };
        make = make.tensor(&name, &dims, type_id);
    }
    make
}
