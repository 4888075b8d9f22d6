//! A renumbered importance matrix means the same as the parent's did. Quantizing with it and shortening give the same bytes in
//! either order.

use std::collections::BTreeMap;
use std::path::Path;

use ggml::Backend;
use ggml::testing::quantize_with_imatrix;
use gguf_shorten::gguf::{EntryOut, File, Layout, TensorOut, TensorType, ValueOut, write};
use gguf_shorten::model::block::BlockSet;
use gguf_shorten::model::renumbering::Renumbering;
use gguf_shorten::model::{BlockId, Model};
use gguf_shorten::plan::imatrix::Imatrix;

use crate::random_model::Spec;
use crate::support::shorten;

/// `LLAMA_FTYPE_MOSTLY_Q4_K_S` of llama.h.
const Q4_K_S: u32 = 14;

/// An importance matrix of the model at `path`, as of `llama-imatrix`. Every weight has its own values.
pub fn imatrix_of(path: &Path) -> Vec<u8> {
    let model = std::fs::read(path).unwrap();
    let model = File::parse(&model).unwrap();
    let f32 = |name: String, n: u64| TensorOut::new(name, &[n, 1], TensorType::F32).unwrap();
    let weights = model.tensors().iter().filter(|tensor| tensor.n_dims() == 2);
    let tensors = weights.flat_map(|tensor| {
        let name = tensor.name();
        [f32(format!("{name}.in_sum2"), tensor.dims()[0]), f32(format!("{name}.counts"), 1)]
    });
    let entries = vec![EntryOut::new("general.type", ValueOut::string("imatrix"))];
    let layout = Layout::new(3, 32, entries, tensors.collect(), true).unwrap();
    let mut bytes = Vec::new();
    write(&layout, &mut bytes, |i, out| {
        let tensor = layout.tensors()[i].tensor();
        for j in 0..tensor.n_bytes() / 4 {
            // Some inputs matter much more than others, in every weight others.
            let value = match tensor.name().ends_with(".counts") {
                true => 4.0,
                false => 0.01 + ((i as u64 * 7919 + j * j * 31) % 997) as f32,
            };
            out.write_all(&f32::to_le_bytes(value))?;
        }
        Ok(())
    })
    .unwrap();
    bytes
}

/// What `llama-quantize` makes of an importance matrix (`quantize.cpp: load_imatrix`): sums over counts.
pub fn values(imatrix: &[u8]) -> Vec<(String, Vec<f32>)> {
    let file = File::parse(imatrix).unwrap();
    let floats = |name: &str| -> Vec<f32> {
        let bytes = file.tensors().get(name).unwrap().bytes();
        bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
    };
    let names = file.tensors().iter().filter_map(|t| t.name().strip_suffix(".in_sum2"));
    names
        .map(|name| {
            let count = floats(&format!("{name}.counts"))[0];
            let sums = floats(&format!("{name}.in_sum2"));
            (name.to_owned(), sums.into_iter().map(|sum| sum / count).collect())
        })
        .collect()
}

fn tensors(path: &Path) -> BTreeMap<String, (u32, Vec<u8>)> {
    let bytes = std::fs::read(path).unwrap();
    let file = File::parse(&bytes).unwrap();
    file.tensors().iter().map(|t| (t.name().to_owned(), (t.tensor_type().id(), t.bytes().to_vec()))).collect()
}

#[test]
fn shortening_and_quantizing_with_an_importance_matrix_commute() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let backend = Backend::init();
    Spec::new("llama", 5).save(backend, &path("parent")).unwrap();
    let imatrix = imatrix_of(&path("parent"));
    let removed: BlockSet = [1, 3].map(BlockId::new).into();
    let renumbered = {
        let bytes = std::fs::read(path("parent")).unwrap();
        let parent = Model::new(vec![File::parse(&bytes).unwrap()]).unwrap();
        let imatrix = Imatrix::parse(&imatrix).unwrap();
        imatrix.check(&parent).unwrap();
        let planned = imatrix.plan(&Renumbering::new(5, &removed)).unwrap();
        let mut bytes = Vec::new();
        planned.write(&mut bytes).unwrap();
        bytes
    };
    let quantized = |from: &str, to: &str, imatrix: &[u8]| {
        quantize_with_imatrix(backend, &path(from), &path(to), Q4_K_S, &values(imatrix), true).unwrap();
    };
    quantized("parent", "parent-q", &imatrix);
    shorten(&path("parent-q"), &[1, 3], &path("q-then-short")).unwrap();
    shorten(&path("parent"), &[1, 3], &path("short")).unwrap();
    quantized("short", "short-then-q", &renumbered);
    let expected = tensors(&path("q-then-short"));
    assert!(expected.values().any(|(tensor_type, _)| *tensor_type == 12), "some are Q4_K");
    assert!(tensors(&path("short-then-q")) == expected);
    // With the parent's numbers bytes differ, so the comparison can fail.
    quantized("short", "wrong", &imatrix);
    assert!(tensors(&path("wrong")) != expected);
}
