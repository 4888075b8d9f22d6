//! An output in parts. Llama.cpp loads it by its first part, and computes what it computes with the single file.

use std::path::PathBuf;

use ggml::Backend;
use gguf_shorten::model::input::Input;
use gguf_shorten::model::{BlockId, Model};
use gguf_shorten::output::Parent;
use gguf_shorten::output::save::{Others, Target, Written};
use gguf_shorten::plan::{Constraints, Cut, Plan, Splitting};

use crate::random_model::Spec;
use crate::support::{n_different, outputs, shorten};

/// Removes blocks 1 and 2 of the model at `path`.
fn shorten_split(path: &std::path::Path, out: &std::path::Path, splitting: Splitting) -> Vec<Written> {
    let input = Input::open(path).unwrap();
    let model = Model::new(input.parse().unwrap()).unwrap();
    let constraints = Constraints::of(&model).unwrap();
    let removed = [1, 2].map(BlockId::new);
    let plan =
        |parent_blake3| Plan::new(&model, &constraints, &Cut::new(removed.into(), "blocks"), parent_blake3);
    let parent = Parent { input: &input, model: &model, constraints: &constraints };
    let target = Target::split(out, splitting, &input, false).unwrap();
    let (_, written) = target.save_with(parent, &plan, Others::default(), &mut |_| {}).unwrap();
    written
}

#[test]
fn a_split_output_computes_what_the_single_file_computes() {
    let dir = tempfile::tempdir().unwrap();
    for architecture in ["llama", "gemma3", "qwen3next"] {
        let path = |name: &str| -> PathBuf { dir.path().join(format!("{architecture}-{name}")) };
        Spec::new(architecture, 12).save(Backend::init(), &path("parent")).unwrap();
        shorten(&path("parent"), &[1, 2], &path("whole")).unwrap();
        let expected = outputs(&path("whole")).unwrap();
        let max = Splitting::MaxBytes(3 << 20);
        let parts = shorten_split(&path("parent"), &path("parts"), max);
        assert!(parts.len() > 2, "{architecture}: {} parts", parts.len());
        assert_eq!(n_different(&expected, &outputs(&parts[0].path).unwrap()), 0);
        for part in &parts[1..] {
            // Only the first part can be loaded. So llama.cpp sees them as parts.
            assert!(outputs(&part.path).is_err());
        }

        // The same from a split parent, in the parent's parts.
        let parent = {
            let none = Splitting::MaxBytes(2 << 20);
            let input = Input::open(&path("parent")).unwrap();
            let model = Model::new(input.parse().unwrap()).unwrap();
            let constraints = Constraints::new(&model, true).unwrap();
            let last = [BlockId::new(model.n_blocks() - 1)];
            let plan = |parent_blake3| {
                Plan::new(&model, &constraints, &Cut::new(last.into(), "blocks"), parent_blake3)
            };
            let parent = Parent { input: &input, model: &model, constraints: &constraints };
            let target = Target::split(&path("shorter"), none, &input, false).unwrap();
            let saved = target.save_with(parent, &plan, Others::default(), &mut |_| {});
            saved.unwrap().1
        };
        shorten(&parent[0].path, &[1, 2], &path("again")).unwrap();
        let expected = outputs(&path("again")).unwrap();
        let parts = shorten_split(&parent[1].path, &path("kept"), Splitting::AsInput);
        assert!(parts.len() > 2 && parts.len() <= parent.len());
        assert_eq!(n_different(&expected, &outputs(&parts[0].path).unwrap()), 0);
    }
}
