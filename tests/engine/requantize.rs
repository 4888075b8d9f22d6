//! `--requantize`: a cut in smaller types is what llama.cpp's own quantizer makes of the cut, and is verified.

use std::fs;
use std::path::Path;

use ggml::testing::{quantize, quantize_with_imatrix};
use ggml::{Backend, FileType};
use gguf_shorten::gguf::File;
use serde_json::Value;

use crate::eval::byte_model;
use crate::imatrix::values;
use crate::program::{failure, json, program};

/// A model of many blocks, of which mixtures treat the first and the last otherwise, in a folder.
fn folder(architecture: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    byte_model(architecture, 9).save(Backend::init(), &dir.path().join("m.gguf")).unwrap();
    fs::write(dir.path().join("text"), "a text of some letters, again and again; ".repeat(20)).unwrap();
    dir
}

/// Checks that both files have the same tensors. Returns how many are of another type than in `before`.
#[track_caller]
fn check_same(dir: &Path, ours: &str, theirs: &str, before: &str) -> usize {
    let [ours, theirs, before] = [ours, theirs, before].map(|name| fs::read(dir.join(name)).unwrap());
    let [ours, theirs, before] = [&ours, &theirs, &before].map(|bytes| File::parse(bytes).unwrap());
    assert_eq!(ours.tensors().len(), theirs.tensors().len());
    let mut n = 0;
    for a in ours.tensors() {
        // llama.cpp puts them in another order.
        let b = theirs.tensors().get(a.name()).unwrap();
        assert_eq!((a.tensor_type(), a.dims()), (b.tensor_type(), b.dims()), "{}", a.name());
        assert!(a.bytes() == b.bytes(), "{}", a.name());
        n += usize::from(before.tensors().get(a.name()).unwrap().tensor_type() != a.tensor_type());
    }
    n
}

#[test]
fn it_is_what_llama_cpp_makes_of_the_cut() {
    let folder = folder("llama");
    let dir = folder.path();
    json(dir, "m.gguf --blocks 2,5-6 -o cut.gguf");
    for file_type in ["Q4_K_M", "Q3_K_L", "Q8_0", "F16"] {
        let result =
            json(dir, &format!("m.gguf --blocks 2,5-6 --requantize {file_type} -o ours.gguf --force"));
        let number = file_type.parse::<FileType>().unwrap().number();
        quantize(Backend::init(), &dir.join("cut.gguf"), &dir.join("theirs.gguf"), number).unwrap();
        let n = check_same(dir, "ours.gguf", "theirs.gguf", "cut.gguf");
        assert!(n > 20, "{file_type}: {n}");
        assert_eq!(result["requantize"]["type"], file_type);
        assert_eq!(result["requantize"]["tensors"], n);
        assert_eq!(result["requantize"]["imatrix_blake3"], Value::Null);
        assert_eq!(result["method"], "blocks");
        let verified = json(dir, "verify ours.gguf --parent m.gguf");
        assert_eq!((&verified["verified"], &verified["rounded"]["recomputed"]), (&true.into(), &n.into()));
        json(dir, "verify ours.gguf --parent m.gguf --weights");
    }
    // A bit of a rounded tensor is found.
    let mut bytes = fs::read(dir.join("ours.gguf")).unwrap();
    let file = File::parse(&bytes).unwrap();
    let at = file.tensors().get("blk.1.ffn_down.weight").unwrap().position().0 as usize;
    bytes[at] ^= 1;
    fs::write(dir.join("ours.gguf"), &bytes).unwrap();
    for weights in ["", "--weights"] {
        let output = program(dir, &format!("verify ours.gguf --parent m.gguf {weights}"));
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(said.contains("gguf_shorten.fit.blake3"), "{said}");
    }
}

#[test]
fn an_importance_matrix_rounds_and_chooses_types() {
    let folder = folder("llama");
    let dir = folder.path();
    let said = failure(dir, "m.gguf --blocks 3 --requantize IQ2_XS -o none.gguf");
    assert!(said.contains("IQ2_XS needs an importance matrix"), "{said}");
    assert!(!dir.join("none.gguf").exists());
    json(dir, "score m.gguf --calibration text --tokens 256 --window 64 --imatrix-out matrix.gguf");
    json(dir, "m.gguf --blocks 3 -o cut.gguf --imatrix matrix.gguf cut-matrix.gguf");
    let matrix = values(&fs::read(dir.join("cut-matrix.gguf")).unwrap());
    for file_type in ["IQ3_S", "Q2_K"] {
        let line = format!(
            "m.gguf --blocks 3 --requantize {file_type} -o ours.gguf --imatrix matrix.gguf other.gguf --force"
        );
        let result = json(dir, &line);
        let hash = blake3::hash(&fs::read(dir.join("matrix.gguf")).unwrap()).to_hex().to_string();
        assert_eq!(result["requantize"]["imatrix_blake3"], hash);
        let number = file_type.parse::<FileType>().unwrap().number();
        let [cut, theirs] = ["cut.gguf", "theirs.gguf"].map(|name| dir.join(name));
        quantize_with_imatrix(Backend::init(), &cut, &theirs, number, &matrix, false).unwrap();
        assert!(check_same(dir, "ours.gguf", "theirs.gguf", "cut.gguf") > 20);
        let verified = json(dir, "verify ours.gguf --parent m.gguf --imatrix matrix.gguf");
        assert_eq!(verified["rounded"]["by_hash"], 0);
    }
    // Measured in the same run.
    let text = "--calibration text --tokens 256 --window 64 --method bi";
    let line = format!(
        "m.gguf --drop 2 {text} --requantize Q4_K_M --imatrix-out measured.gguf -o measured-cut.gguf"
    );
    assert_ne!(json(dir, &line)["requantize"]["imatrix_blake3"], Value::Null);
    let verified = json(dir, "verify measured-cut.gguf --parent m.gguf --imatrix measured.gguf");
    assert_eq!((&verified["verified"], &verified["rounded"]["by_hash"]), (&true.into(), &0.into()));
}

#[test]
fn what_does_not_go_with_it_is_refused() {
    let folder = folder("llama");
    let dir = folder.path();
    for (flags, why) in [
        ("--drop 2 --heal linear", "cannot be used with"),
        ("--max-kl 0.1", "--max-kl is measured of the input's own types"),
        ("--drop 2 --effort thorough", "nothing is healed beside it"),
    ] {
        let output = program(dir, &format!("m.gguf {flags} --requantize Q4_K_M -o out.gguf"));
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(said.contains(why), "{flags}: {said}");
    }
}
