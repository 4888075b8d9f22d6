//! Files in Ollama's layouts compute what stock twins do, bit for bit. That is so whole and without some blocks.
//!
//! A twin is a random model of the stock architecture. From it the file of Ollama's is made as `convert_<layout>.go` and
//! `llama-ollama-compat.cpp` have it. It has other names, misses entries, and has the tensors of a vision tower and a projector
//! among those of the model.

use std::path::Path;

use ggml::Backend;
use gguf_shorten::gguf::{EntryOut, File, Layout, TensorOut, TensorType, ValueOut, write};
use gguf_shorten::measure::oracle::{self, ZeroedBlocks};
use gguf_shorten::model::Model;
use gguf_shorten::model::input::Input;
use gguf_shorten::plan::ChangedTensors;

use crate::random_model::Spec;
use crate::support::{load, n_different, outputs, shorten};

/// How a layout differs from its stock twin. Keys that begin with a dot lie below the architecture's prefix.
#[derive(Default)]
struct Twin {
    own: &'static str,
    stock: &'static str,
    n_blocks: u32,
    /// What the twin says, beside the usual.
    extra: Vec<(&'static str, ValueOut)>,
    /// Keys of the twin, and what they are called.
    keys: &'static [(&'static str, &'static str)],
    /// Keys of the twin that are missing.
    missing: &'static [&'static str],
    /// What the file says instead, or beside.
    says: Vec<(&'static str, ValueOut)>,
    /// What the names of the twin's tensors have, and what these have.
    tensors: &'static [(&'static str, &'static str)],
    /// Whether there are a vision tower and a projector.
    has_vision: bool,
    /// What is removed.
    blocks: &'static [usize],
}

fn twin(own: &'static str, stock: &'static str) -> Twin {
    Twin { own, stock, n_blocks: 8, blocks: &[1, 4], ..Twin::default() }
}

fn twins() -> Vec<Twin> {
    let u32 = ValueOut::u32;
    let f32 = ValueOut::f32;
    let sections = |sections: &[i32]| ValueOut::i32s(sections);
    let qwen35 = |name| Twin {
        tensors: &[(".ssm_dt.bias", ".ssm_dt")],
        says: vec![
            (".ssm.v_head_reordered", ValueOut::bool(true)),
            (".rope.dimension_sections", sections(&[8, 12, 12])),
            (".attention.head_count_kv", ValueOut::u32s(&[0, 0, 0, 4, 0, 0, 0, 4])),
            (".vision.block_count", u32(2)),
        ],
        has_vision: true,
        // Whole periods, and beside.
        blocks: &[1, 2],
        ..twin(name, name)
    };
    let qwen3vl = |name| Twin {
        extra: vec![
            (".attention.key_length", u32(128)),
            (".attention.value_length", u32(128)),
            (".rope.dimension_count", u32(128)),
            (".rope.dimension_sections", sections(&[24, 20, 20, 0])),
            (".n_deepstack_layers", u32(0)),
        ],
        missing: &[".rope.dimension_sections", ".n_deepstack_layers"],
        has_vision: true,
        ..twin(name, name)
    };
    vec![
        Twin {
            extra: vec![
                (".rope.freq_base", f32(50_000.0)),
                (".rope.freq_base_swa", f32(20_000.0)),
                (".attention.layer_norm_rms_epsilon", f32(1e-6)),
            ],
            keys: &[
                (".rope.freq_base", ".rope.global.freq_base"),
                (".rope.freq_base_swa", ".rope.local.freq_base"),
            ],
            missing: &[".attention.layer_norm_rms_epsilon"],
            has_vision: true,
            ..twin("gemma3", "gemma3")
        },
        Twin {
            extra: vec![
                (".rope.scaling.type", ValueOut::string("yarn")),
                (".rope.scaling.factor", f32(4.0)),
                (".rope.scaling.original_context_length", u32(32)),
            ],
            missing: &[".expert_feed_forward_length", ".rope.scaling.type"],
            tensors: &[
                (".attn_output.", ".attn_out."),
                (".attn_sinks.weight", ".attn_sinks"),
                (".post_attention_norm.", ".ffn_norm."),
            ],
            ..twin("gptoss", "gpt-oss")
        },
        Twin {
            missing: &[".rope.dimension_sections"],
            says: vec![
                (".rope.mrope_section", sections(&[8, 12, 12])),
                (".vision.fullatt_block_indexes", ValueOut::i32s(&[1; 8])),
            ],
            has_vision: true,
            ..twin("qwen25vl", "qwen2vl")
        },
        qwen3vl("qwen3vl"),
        qwen3vl("qwen3vlmoe"),
        qwen35("qwen35"),
        qwen35("qwen35moe"),
        Twin {
            tensors: &[(".ssm_dt.bias", ".ssm_dt")],
            says: vec![(".attention.head_count_kv", ValueOut::u32s(&[0, 0, 0, 4, 0, 0, 0, 4]))],
            blocks: &[1, 2],
            ..twin("qwen3next", "qwen3next")
        },
        twin("olmo3", "olmo2"),
        Twin {
            extra: vec![
                (".rope.scaling.type", ValueOut::string("yarn")),
                (".rope.scaling.factor", f32(4.0)),
                (".rope.scaling.original_context_length", u32(32)),
                (".rope.scaling.yarn_beta_fast", f32(24.0)),
                (".rope.scaling.yarn_beta_slow", f32(2.0)),
                (".rope.scaling.yarn_log_multiplier", f32(0.5)),
                (".attention.temperature_scale", f32(0.25)),
            ],
            keys: &[
                (".rope.scaling.yarn_beta_fast", ".rope.scaling.beta_fast"),
                (".rope.scaling.yarn_beta_slow", ".rope.scaling.beta_slow"),
                (".rope.scaling.yarn_log_multiplier", ".rope.scaling.mscale_all_dim"),
                (".attention.temperature_scale", ".rope.scaling_beta"),
            ],
            has_vision: true,
            ..twin("mistral3", "mistral3")
        },
        Twin {
            has_vision: true,
            // A whole period of blocks without rotary embedding.
            blocks: &[0, 1, 2, 3],
            ..twin("llama4", "llama4")
        },
        Twin {
            extra: vec![
                (".attention.value_length_mla", u32(96)),
                (".expert_group_count", u32(1)),
                (".expert_group_used_count", u32(1)),
            ],
            missing: &[".expert_group_count", ".expert_group_used_count"],
            says: vec![
                (".attention.head_count_kv", u32(4)),
                (".attention.key_length", u32(96)),
                (".attention.value_length", u32(96)),
                (".attention.key_length_mla", u32(96)),
                (".attention.value_length_mla", u32(64)),
            ],
            ..twin("glm4moelite", "deepseek2")
        },
        Twin {
            missing: &[".expert_feed_forward_length", ".expert_shared_count"],
            says: vec![(".sam.global_attention_indexes", ValueOut::i32s(&[1; 8]))],
            has_vision: true,
            ..twin("deepseekocr", "deepseek2-ocr")
        },
        Twin {
            tensors: &[("token_embd_norm.", "output_norm.")],
            says: vec![(".feed_forward_length", u32(768))],
            ..twin("lfm2", "lfm2")
        },
        Twin {
            extra: vec![(".rope.dimension_count_swa", u32(32)), (".rope.freq_base_swa", f32(5000.0))],
            keys: &[
                (".rope.dimension_count_swa", ".rope.swa.dimension_count"),
                (".rope.freq_base_swa", ".rope.swa.freq_base"),
            ],
            tensors: &[(".attn_gate.", ".attn_g.")],
            ..twin("laguna", "laguna")
        },
        Twin {
            extra: vec![(".moe_latent_size", u32(128))],
            missing: &[".moe_latent_size"],
            tensors: &[(".ffn_latent_down.", ".ffn_latent_in."), (".ffn_latent_up.", ".ffn_latent_out.")],
            ..twin("nemotron_h_moe", "nemotron_h_moe")
        },
        Twin { has_vision: true, ..twin("nemotron_h_omni", "nemotron_h_moe") },
        Twin { has_vision: true, ..twin("nemotron_h_omni", "nemotron_h") },
        Twin { n_blocks: 16, has_vision: true, ..twin("gemma4", "gemma4") },
        Twin {
            extra: vec![
                (".rope.freq_base_swa", f32(10_000.0)),
                (".dense_2_feat_in", u32(256)),
                (".dense_2_feat_out", u32(512)),
                (".dense_3_feat_in", u32(512)),
                (".dense_3_feat_out", u32(256)),
            ],
            missing: &[
                ".rope.freq_base_swa",
                ".dense_2_feat_in",
                ".dense_2_feat_out",
                ".dense_3_feat_in",
                ".dense_3_feat_out",
            ],
            says: vec![(".attention.causal", ValueOut::bool(false))],
            tensors: &[("dense_2.", "dense.0."), ("dense_3.", "dense.1."), ("output_norm.", "norm.")],
            ..twin("gemma3", "gemma-embedding")
        },
    ]
}

impl Twin {
    /// A stock key below its architecture's prefix, with the dot.
    fn of_stock<'k>(&self, key: &'k str) -> Option<&'k str> {
        let rest = key.strip_prefix(self.stock)?;
        rest.starts_with('.').then_some(rest)
    }

    fn name(&self) -> String {
        format!("{} as {}", self.own, self.stock)
    }

    /// Writes the stock twin to `stock`, and Ollama's file to `own`.
    fn save(&self, stock: &Path, own: &Path) -> Result<(), String> {
        let mut spec = Spec::new(self.stock, self.n_blocks);
        spec.extra.extend(self.extra.iter().cloned());
        // Weights of Ollama's files have no scales but the renamed ones.
        spec.omitted = |name| {
            name.ends_with("scale")
                && !name.ends_with("ffn_down_exps.scale")
                && !name.contains("layer_output_scale")
                || name.contains("nextn")
        };
        spec.save(Backend::init(), stock)?;
        let bytes = std::fs::read(stock).unwrap();
        let file = File::parse(&bytes).unwrap();
        let key = |name: &str| format!("{}{name}", self.own);
        let mut entries = Vec::new();
        for entry in file.metadata() {
            let kept = EntryOut::keep(entry);
            let entry = match self.of_stock(entry.key()) {
                None if entry.key() == "general.architecture" => EntryOut::string(entry.key(), self.own),
                None => kept,
                Some(name) if self.missing.contains(&name) => continue,
                Some(name) if self.says.iter().any(|(said, _)| *said == name) => continue,
                Some(name) => {
                    let other = self.keys.iter().find(|(of_twin, _)| *of_twin == name);
                    kept.renamed(key(other.map_or(name, |(_, name)| name)))
                }
            };
            entries.push(entry);
        }
        for (name, value) in &self.says {
            entries.push(EntryOut::new(key(name), value.clone()));
        }
        let mut tensors = Vec::new();
        let mut data: Vec<Vec<u8>> = Vec::new();
        let mut n_renamed = 0;
        for (i, tensor) in file.tensors().iter().enumerate() {
            if self.has_vision && i % 5 == 0 {
                let name = format!("v.blk.{}.attn_q.weight", i / 5);
                tensors.push(TensorOut::new(name, &[7, 3], TensorType::F32).unwrap());
                data.push(vec![i as u8; 84]);
            }
            let renamed = self.tensors.iter().find(|(of_twin, _)| tensor.name().contains(of_twin));
            n_renamed += usize::from(renamed.is_some());
            let name = match renamed {
                Some((of_twin, name)) => tensor.name().replacen(of_twin, name, 1),
                None => tensor.name().to_owned(),
            };
            tensors.push(TensorOut::rename(tensor, name));
            data.push(tensor.bytes().to_vec());
        }
        if self.has_vision {
            tensors.push(TensorOut::new("mm.0.weight", &[5], TensorType::F32).unwrap());
            data.push(vec![3; 20]);
        }
        if n_renamed == 0 && !self.tensors.is_empty() {
            return Err("has nothing to rename".to_owned());
        }
        let layout = Layout::new(3, 32, entries, tensors, true).unwrap();
        let mut out = std::io::BufWriter::new(std::fs::File::create(own).unwrap());
        write(&layout, &mut out, |i, out| out.write_all(&data[i])).unwrap();
        Ok(())
    }
}

#[test]
fn files_of_ollamas_layouts_compute_what_their_stock_twins_do() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let [stock, own, stock_out, own_out] = ["stock", "own", "stock-out", "own-out"].map(path);
    let wanted = std::env::var("ARCHITECTURE").ok();
    let mut failures = Vec::new();
    for twin in twins() {
        if wanted.as_ref().is_some_and(|wanted| wanted != twin.own && wanted != twin.stock) {
            continue;
        }
        let result = check(&twin, &stock, &own, &stock_out, &own_out);
        failures.extend(result.err().map(|error| format!("{}: {error}", twin.name())));
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

fn check(twin: &Twin, stock: &Path, own: &Path, stock_out: &Path, own_out: &Path) -> Result<(), String> {
    let wants = |holds: bool, what: &str| holds.then_some(()).ok_or_else(|| what.to_owned());
    twin.save(stock, own)?;
    let input = Input::open(own).map_err(|error| format!("{error:#}"))?;
    let converted = input.converted().ok_or("is not recognised")?;
    wants((converted.found, converted.stock) == (twin.own, twin.stock), "is taken for another")?;
    let mut left_out = converted.left_out.iter();
    wants(left_out.all(|(name, _)| name.starts_with("v.") || name.starts_with("mm.")), "more is left out")?;
    wants(converted.left_out.is_empty() != twin.has_vision, "less is left out")?;
    let expected = outputs(stock)?;
    let path = input.for_llama().map_err(|error| format!("{error:#}"))?;
    wants(n_different(&outputs(path)?, &expected) == 0, "computes something else")?;
    shorten(stock, twin.blocks, stock_out)?;
    shorten(own, twin.blocks, own_out)?;
    let expected = outputs(stock_out)?;
    wants(n_different(&outputs(own_out)?, &expected) == 0, "computes something else when shortened")
}

#[test]
fn llama_cpp_does_not_read_ollamas_layouts_as_they_are() {
    let dir = tempfile::tempdir().unwrap();
    let [stock, own] = ["stock", "own"].map(|name| dir.path().join(name));
    for twin in twins() {
        // A renamed key alone goes unnoticed.
        if !matches!(twin.own, "gptoss" | "qwen25vl" | "olmo3" | "glm4moelite" | "deepseekocr" | "gemma3") {
            continue;
        }
        twin.save(&stock, &own).unwrap();
        assert!(load(&stock).is_ok(), "{}", twin.name());
        assert!(load(&own).is_err(), "{}", twin.name());
    }
}

#[test]
fn the_zeroed_parent_of_such_a_file_is_its_text_part() {
    let dir = tempfile::tempdir().unwrap();
    let [stock, own, out] = ["stock", "own", "out"].map(|name| dir.path().join(name));
    for twin in twins() {
        if !matches!(twin.own, "gptoss" | "qwen25vl") {
            continue;
        }
        twin.save(&stock, &own).unwrap();
        shorten(&own, twin.blocks, &out).unwrap();
        let input = Input::open(&own).unwrap();
        let model = Model::new(input.parse().unwrap()).unwrap();
        let run = |blocks: &[usize]| {
            let blocks = blocks.iter().map(|&block| gguf_shorten::model::BlockId::new(block));
            let zeroed =
                ZeroedBlocks::with_attention(&model, &blocks.collect(), &Default::default()).unwrap();
            oracle::run(&zeroed, &model, &input, &ChangedTensors::new(), &out, 1).unwrap().floats_different
        };
        assert_eq!(run(twin.blocks), 0, "{}", twin.name());
        assert!(run(&[2, 3]) > 0, "{}", twin.name());
    }
}
