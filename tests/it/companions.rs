//! Files that belong to a model and are none. They are refused as a model by name, and a note says where they no longer fit.

use gguf_shorten::gguf::ValueOut;

use crate::make::{F32, I8, Make};
use crate::util::Said;

fn typed(kind: &str, architecture: &str) -> Make {
    Make::empty()
        .set("general.type", ValueOut::string(kind))
        .set("general.architecture", ValueOut::string(architecture))
}

fn of_architecture(architecture: &str) -> Make {
    Make::empty().set("general.architecture", ValueOut::string(architecture))
}

/// As `convert_lora_to_gguf.py` writes it.
fn lora(architecture: &str) -> Make {
    typed("adapter", architecture)
        .set("adapter.type", ValueOut::string("lora"))
        .set("adapter.lora.alpha", ValueOut::f32(16.0))
        .tensor("blk.0.attn_q.weight.lora_a", &[32, 4], F32)
        .tensor("blk.0.attn_q.weight.lora_b", &[4, 32], F32)
}

/// As `llama-cvector-generator` writes it.
fn control_vector(model: &str) -> Make {
    of_architecture("controlvector")
        .set("controlvector.model_hint", ValueOut::string(model))
        .set("controlvector.layer_count", ValueOut::i32(2))
        .tensor("direction.1", &[32], F32)
        .tensor("direction.2", &[32], F32)
}

/// As `convert_hf_to_gguf.py --mmproj` writes it.
fn projector(deepstack: bool) -> Make {
    typed("mmproj", "clip")
        .set("clip.has_vision_encoder", ValueOut::bool(true))
        .set("clip.vision.block_count", ValueOut::u32(2))
        .set("clip.vision.is_deepstack_layers", ValueOut::bools(&[false, deepstack]))
        .tensor("v.blk.0.attn_q.weight", &[32, 3], F32)
}

fn imatrix() -> Make {
    Make::empty()
        .set("general.type", ValueOut::string("imatrix"))
        .set("imatrix.chunk_count", ValueOut::u32(5))
        .tensor("blk.2.attn_q.weight.in_sum2", &[32, 1], F32)
        .tensor("blk.2.attn_q.weight.counts", &[1, 1], F32)
}

fn draft_head(architecture: &str) -> Make {
    let make =
        Make::new(architecture, 1).set(&format!("{architecture}.target_layers"), ValueOut::u32s(&[1, 2, 3]));
    // All of its blocks are for prediction.
    make.set(&format!("{architecture}.nextn_predict_layers"), ValueOut::u32(1))
}

#[test]
fn each_is_refused_as_a_model_by_name() {
    let mut said = Said::default();
    let with =
        |architecture: &str, name: &str, dims: &[u64]| of_architecture(architecture).tensor(name, dims, F32);
    for (title, make) in [
        ("an adapter", lora("llama")),
        ("a control vector", control_vector("llama")),
        ("a projector", projector(false)),
        ("a projector of older converters", typed("clip-vision", "clip")),
        ("a projector of the oldest", of_architecture("clip")),
        ("an importance matrix", imatrix()),
        ("a draft head", draft_head("eagle3")),
        ("another draft head", draft_head("dflash")),
        ("a draft head by its architecture", draft_head("gemma4-assistant")),
        ("a type that is not known", typed("other", "llama")),
        // As ComfyUI-GGUF writes them.
        ("an image model", with("flux", "double_blocks.0.img_attn.qkv.weight", &[32, 96])),
        ("a video model", with("wan", "blocks.0.self_attn.q.weight", &[32, 32])),
        ("another image model", with("sd3", "joint_blocks.0.x_block.mlp.fc1.weight", &[32, 32])),
        // As by stable-diffusion.cpp, and of a model not known by name.
        (
            "an image model without a name",
            Make::empty().tensor("model.diffusion_model.input_blocks.0.0.weight", &[32, 3], F32),
        ),
        ("an image model by its tensors", with("new", "transformer_blocks.0.attn.to_q.weight", &[32, 32])),
        ("a model of speech", with("whisper", "encoder.blocks.0.attn.query.weight", &[32, 32])),
    ] {
        let dir = make.dir();
        let error = dir.run("score m.gguf").refused().error().to_owned();
        for arguments in ["m.gguf --blocks 0 -o out.gguf", "m.gguf --blocks 0 -o out.gguf --trust-any-cut"] {
            dir.run(arguments).fails(1, &error);
        }
        said.refused(title, dir.run("score m.gguf"), 1);
        let error = error.strip_prefix("m.gguf: ").unwrap();
        let shown = dir.run("show m.gguf").succeeds().stdout;
        assert!(shown.contains(&format!("no model: {error}")), "{shown}");
    }
    said.compare("companions.txt");
}

#[test]
fn prediction_blocks_alone_are_no_model() {
    let dir = of_architecture("glm4moe")
        .set("glm4moe.block_count", ValueOut::u32(3))
        .set("glm4moe.nextn_predict_layers", ValueOut::u32(1))
        .tensor("token_embd.weight", &[32, 4], F32)
        .tensor("blk.2.nextn.eh_proj.weight", &[64, 4], I8)
        .dir();
    for arguments in ["m.gguf --blocks 0 -o out.gguf", "score m.gguf"] {
        dir.run(arguments)
            .fails(1, "m.gguf: has tensors of prediction blocks (MTP) alone: a draft head, not a model");
    }
}

#[test]
fn what_lies_beside_a_model_and_no_longer_fits_is_noted() {
    let dir = Make::new("llama", 4).dir();
    let note = |arguments: &str| dir.run(arguments).succeeds().stderr;
    let shorten = "m.gguf --blocks 1 -o out.gguf --force";
    // None of these goes by the model's block numbers.
    Make::new("llama", 9).write(&dir, "another.gguf");
    projector(false).write(&dir, "mmproj-flat.gguf");
    lora("qwen3").write(&dir, "lora-qwen3.gguf");
    control_vector("qwen3").write(&dir, "vector-qwen3.gguf");
    dir.write("broken.gguf", b"GGUF\x03\0\0\0");
    dir.write("text.dat", b"Dear reader, this is a letter.");
    dir.write("empty.gguf", b"");
    std::fs::create_dir(dir.path("folder.gguf")).unwrap();
    assert_eq!(note(shorten), "");

    control_vector("llama").write(&dir, "calm.gguf");
    draft_head("eagle3").write(&dir, "draft.gguf");
    lora("llama").write(&dir, "lora.gguf");
    projector(true).write(&dir, "mmproj.gguf");
    let files = "'calm.gguf' (control vector), 'draft.gguf' (draft head (eagle3)), 'lora.gguf' (LoRA adapter), \
                 'mmproj.gguf' (projector for images or sound)";
    let text =
        "gguf-shorten: note: files beside the model that go by block number do not fit the shortened one: ";
    assert_eq!(note(shorten), format!("{text}{files}\n"));
    assert_eq!(note(&format!("{shorten} --quiet")), "");
    assert_eq!(note("score --help"), "");

    for name in ["calm.gguf", "draft.gguf", "lora.gguf", "mmproj.gguf"] {
        std::fs::remove_file(dir.path(name)).unwrap();
    }
    let make = imatrix().tensor("blk.3.attn_q.weight.in_sum2", &[32, 1], F32);
    make.write(&dir, "weights.gguf");
    let mut old = 1i32.to_le_bytes().to_vec();
    old.extend(19i32.to_le_bytes());
    old.extend(b"blk.3.attn_q.weight");
    old.extend([1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    dir.write("imatrix.dat", &old);
    let expected = "'imatrix.dat' (importance matrix), 'weights.gguf' (importance matrix); --imatrix IN OUT renumbers an \
                    importance matrix\n";
    assert_eq!(note(shorten), format!("{text}{expected}"));
    // Of that which is renumbered nothing is said.
    let stderr = note(&format!("{shorten} --imatrix weights.gguf new.dat"));
    assert_eq!(stderr, format!("{text}'imatrix.dat' (importance matrix)\n"));
}
