//! Data that is not a tensor's as it is. Parts of a tensor, and bytes that the plan made. Written, then verified.

use std::collections::BTreeSet;

use gguf_shorten::gguf::{EntryOut, File, TensorOut, TensorType, ValueOut};
use gguf_shorten::model::Model;
use gguf_shorten::model::input::Input;
use gguf_shorten::output::Parent;
use gguf_shorten::output::save::Target;
use gguf_shorten::output::verify::{Claim, Verification, compare};
use gguf_shorten::plan::{ChangeKind, Constraints, Plan, Provenance, Runs, TensorData, Tensors};

use crate::make::{F32, I8, Make, Q4_1, data};

/// Parts of each sliced tensor, and which of them stay.
const N_PARTS: usize = 4;
const KEPT: [usize; 3] = [0, 2, 3];

/// Name, shape and type of the sliced tensors, and the sliced dimension.
const SLICED: [(&str, &[u64], u32, usize); 6] = [
    ("rows", &[128, 3], Q4_1, 0),
    ("two blocks each", &[256, 2], Q4_1, 0),
    ("columns", &[5, 8], F32, 1),
    ("between", &[3, 4, 5], I8, 1),
    ("last", &[3, 2, 4], F32, 2),
    // Longer than what is compared at once.
    ("large", &[64, 20_000], F32, 0),
];

fn parent() -> Make {
    let make = Make::new("llama", 4);
    let make = SLICED.iter().fold(make, |make, (name, dims, id, _)| make.tensor(name, dims, *id));
    make.tensor("unused", &[7], F32).tensor("empty", &[0, 4], F32)
}

/// Every kind of data in one plan.
fn plan<'a>(model: &Model<'a>, parent_blake3: blake3::Hash) -> anyhow::Result<Plan<'a>> {
    let provenance = Provenance { parent_blake3, method: "blocks".to_owned(), heal: "none".to_owned() };
    let mut tensors = Tensors::default();
    for (source, tensor) in model.tensors().iter().enumerate() {
        let info = &tensor.info;
        let name = info.name();
        if name == "unused" {
            tensors.left_out.push((source, "nothing reads it".to_owned()));
        } else if let Some((_, _, _, dim)) = SLICED.iter().find(|(sliced, ..)| *sliced == name) {
            let (runs, dims) = Runs::of_parts(info, *dim, N_PARTS, KEPT)?;
            let out = TensorOut::new(name, &dims[..info.n_dims()], info.tensor_type())?;
            let why = "only these parts".to_owned();
            let data = TensorData::Sliced { source, runs, why };
            tensors.planned.push((out, data));
        } else if name == "output_norm.weight" {
            let data = TensorData::Made {
                source: Some(source),
                bytes: data("made", info.n_bytes()).into(),
                why: "other bytes".to_owned(),
            };
            tensors.planned.push((TensorOut::keep(info), data));
            let scale = TensorOut::new("new.scale", &[1], TensorType::F32)?;
            let data = TensorData::Made {
                source: None,
                bytes: (&[1, 2, 3, 4][..]).into(),
                why: "a new one".to_owned(),
            };
            tensors.planned.push((scale, data));
        } else {
            let data = TensorData::Whole { source };
            tensors.planned.push((TensorOut::keep(info), data));
        }
    }
    let entries = model.metadata().iter().map(EntryOut::keep);
    let own = EntryOut::new("gguf_shorten.blocks", ValueOut::i32s(&[0, 1, 2, 3]));
    let entries = entries.chain([own]).collect();
    Plan::of(model, BTreeSet::new(), entries, tensors, &provenance)
}

fn check(parent: &[u8], out: &[u8]) -> Verification {
    let parent = Model::new(vec![File::parse(parent).unwrap()]).unwrap();
    let out = File::parse(out).unwrap();
    let plan = plan(&parent, blake3::hash(b"")).unwrap();
    let claim = Claim::of(out.metadata()).unwrap();
    compare(&parent, &plan, claim, std::slice::from_ref(&out), &|_| {}).unwrap()
}

/// The parent's bytes and what is written.
fn written() -> (Vec<u8>, Vec<u8>) {
    let dir = parent().dir();
    let input = Input::open(&dir.path("m.gguf")).unwrap();
    let model = Model::new(input.parse().unwrap()).unwrap();
    let target = Target::new(&dir.path("out.gguf"), &input, false).unwrap();
    let mut n_written = 0;
    let plan = |hash| plan(&model, hash);
    let constraints = Constraints::of(&model).unwrap();
    let parent = Parent { input: &input, model: &model, constraints: &constraints };
    let saved = target.save(parent, &plan, &mut |n_bytes| n_written += n_bytes).unwrap();
    assert_eq!(n_written, saved.layout.file_len());
    (dir.read("m.gguf"), dir.read("out.gguf"))
}

/// Bytes of the kept parts, by element (by block in block types).
fn sliced(tensor: &gguf_shorten::gguf::TensorInfo<'_>, dim: usize) -> Vec<u8> {
    let block_bytes = tensor.tensor_type().block_bytes() as usize;
    let mut dims = tensor.dims().map(|dim| dim as usize);
    dims[0] /= tensor.tensor_type().block_size() as usize;
    let mut bytes = Vec::new();
    for at in 0..dims.iter().product() {
        let index = [at % dims[0], at / dims[0] % dims[1], at / dims[0] / dims[1] % dims[2]];
        let part = index[dim] / (dims[dim] / N_PARTS);
        if KEPT.contains(&part) {
            bytes.extend(&tensor.bytes()[at * block_bytes..(at + 1) * block_bytes]);
        }
    }
    bytes
}

#[test]
fn every_kind_of_data_is_written_as_planned() {
    let (parent, out) = written();
    let [parent_file, out_file] = [&parent, &out].map(|bytes| File::parse(bytes).unwrap());
    for (name, dims, _, dim) in SLICED {
        let tensor = out_file.tensors().get(name).unwrap();
        let mut expected = dims.to_vec();
        expected[dim] = expected[dim] / 4 * 3;
        assert_eq!(tensor.dims()[..tensor.n_dims()], expected, "{name}");
        let of_parent = parent_file.tensors().get(name).unwrap();
        assert!(tensor.bytes() == sliced(of_parent, dim), "{name}");
    }
    let bytes = |name| out_file.tensors().get(name).unwrap().bytes();
    assert_eq!(bytes("output_norm.weight"), data("made", 128));
    assert_eq!(bytes("new.scale"), [1, 2, 3, 4]);
    assert_eq!(bytes("blk.1.attn_q.weight"), data("blk.1.attn_q.weight", 60));
    assert!(out_file.tensors().get("unused").is_none());

    let verification = check(&parent, &out);
    assert_eq!(verification.differences.first(), []);
    assert_eq!(verification.n_tensors, out_file.tensors().len());
    assert_eq!(verification.parent_blake3, blake3::hash(&parent));
    let count = |kind| {
        let changes = verification.changes.iter();
        changes.filter(|change| change.change == kind).count()
    };
    use ChangeKind::{Changed, LeftOut, New, Sliced};
    assert_eq!([Sliced, Changed, New, LeftOut].map(count), [6, 1, 1, 1]);
}

#[test]
fn a_flipped_byte_of_every_kind_of_data_is_found() {
    let (parent, out) = written();
    let mut flipped = out.clone();
    let file = File::parse(&out).unwrap();
    for tensor in file.tensors() {
        let (name, n_bytes) = (tensor.name(), tensor.bytes().len());
        let whose = match name {
            "output_norm.weight" | "new.scale" => "the plan's",
            _ if SLICED.iter().any(|(sliced, ..)| *sliced == name) => "the kept parts of the parent's",
            _ => "the parent's",
        };
        // In long tensors, bytes around first cuts of rows, pieces, chunks.
        let around = |at: usize| [at.saturating_sub(1), at];
        let bytes: BTreeSet<usize> = match n_bytes {
            0..200 => (0..n_bytes).step_by(7).collect(),
            _ => [0, 192, 256 << 10, 3 << 20, n_bytes - 1]
                .into_iter()
                .flat_map(around)
                .filter(|&byte| byte < n_bytes)
                .collect(),
        };
        for byte in bytes {
            let at = tensor.position().0 as usize + byte;
            flipped[at] ^= 0x10;
            let differences = check(&parent, &flipped).differences;
            flipped[at] ^= 0x10;
            assert_eq!(differences.len(), 1, "{name}, byte {byte}");
            assert_eq!(
                differences.first()[0].to_string(),
                format!("tensor '{name}' differs from {whose} at byte {byte} of {n_bytes}")
            );
        }
    }
}

#[test]
fn parts_that_are_not_whole_are_refused() {
    let bytes = Make::empty().tensor("a", &[96, 10], Q4_1).bytes();
    let file = File::parse(&bytes).unwrap();
    let tensor = file.tensors().get("a").unwrap();
    let of = |dim, n_parts| {
        let runs = Runs::of_parts(tensor, dim, n_parts, [0]);
        runs.map(|(_, dims)| dims).map_err(|error| error.to_string())
    };
    assert_eq!(of(0, 3), Ok([32, 10, 1, 1]));
    assert_eq!(of(1, 5), Ok([96, 2, 1, 1]));
    assert_eq!(
        of(0, 2),
        Err(
            "tensor 'a' has 48 elements per row for each block, which are not whole quantisation blocks of Q4_1 (32)"
                .to_owned()
        )
    );
    for (dim, n_parts) in [(0, 5), (1, 3), (1, 11), (1, 0)] {
        assert!(of(dim, n_parts).unwrap_err().contains("the same number for each"));
    }
}
