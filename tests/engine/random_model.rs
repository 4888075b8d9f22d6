//! Tiny models with random weights, of any architecture. Llama.cpp says which tensors it would read, the project's
//! writer writes them.

#[path = "random_model/keys.rs"]
mod keys;

use std::path::Path;

use ggml::Backend;
use ggml::testing::{TensorShape, tensor_shapes};
use gguf_shorten::gguf::{EntryOut, Layout, TensorOut, TensorType, ValueOut, write};

use keys::{adapters, common, decision_head, experts, latent_attention, sub_blocks};

/// Tokens of the usual vocabulary.
pub const N_VOCAB: usize = 256;

/// Entries of qwen3tts's output head, whatever the vocabulary (`qwen3vl.cpp`).
const N_CODEC_VOCAB: usize = 3072;

/// Width of the stream.
pub const N_EMBD: u32 = 256;

/// Heads.
const N_HEAD: u32 = 4;

/// Architectures whose blocks have experts.
const MIXTURES: &[&str] = &[
    "arctic",
    "bailingmoe",
    "dbrx",
    "grok",
    "grovemoe",
    "hunyuan-moe",
    "hy_v3",
    "llada-moe",
    "minimax-m2",
    "olmoe",
    "phimoe",
    "qwen2moe",
    "qwen3moe",
    "qwen3vlmoe",
    "rnd1",
    "granitemoe",
    "gpt-oss",
    "cohere2moe",
    "exaone-moe",
    "laguna",
    "mellum",
    "mimo2",
    "step35",
    "maple",
    "deepseek",
    "deepseek2",
    "deepseek2-ocr",
    "deepseek32",
    "mistral4",
    "dots1",
    "glm4moe",
    "bailingmoe2",
    "bailingmoe3",
    "minimax-m3",
    "ernie4_5-moe",
    "jamba",
    "lfm2moe",
    "kimi-linear",
    "qwen3next",
    "qwen35moe",
    "afmoe",
    "llama4",
    "smallthinker",
    "nomic-bert-moe",
    "granitehybrid",
    "kimi-k3",
    "dots3note",
    "deepseek4",
];

/// Architectures whose sliding windows the file says block by block.
const FLAGGED: &[&str] = &["mimo2", "step35", "spark2_5", "maple", "granite_swa", "dots3note"];

/// Architectures whose blocks without KV heads are recurrent.
const HYBRIDS: &[&str] =
    &["jamba", "granitehybrid", "lfm2", "lfm2moe", "kimi-linear", "bailingmoe3", "plamo2"];

/// Architectures whose prediction blocks llama.cpp never loads.
const NEVER_LOADED: &[&str] = &["bailingmoe2", "exaone4", "exaone-moe", "glm4"];

/// A model to be made.
pub struct Spec<'s> {
    /// `general.architecture`.
    pub architecture: &'s str,
    /// Number of blocks.
    pub n_blocks: u32,
    /// Entries in place of the usual ones, or on top. A key without the architecture's prefix where it begins with a dot.
    pub extra: Vec<(&'static str, ValueOut)>,
    /// Keys of the usual entries that are left out, below the prefix.
    pub without: &'s [&'s str],
    /// How many of the blocks, the last, are for multi-token prediction.
    pub n_prediction: u32,
    /// Which optional tensors are left out, by name.
    pub omitted: fn(&str) -> bool,
    /// Queries, keys and values in one tensor, where llama.cpp takes either.
    pub fused_qkv: bool,
    /// Tensors of blocks that are left out, though llama.cpp would read them. After `blk.<i>.`.
    pub left_out: &'s [&'s str],
}

impl<'s> Spec<'s> {
    /// The usual model of an architecture.
    pub fn new(architecture: &'s str, n_blocks: u32) -> Self {
        let n = n_blocks as usize;
        let mut extra = Vec::new();
        if MIXTURES.contains(&architecture) {
            extra.extend(experts());
        }
        if FLAGGED.contains(&architecture) {
            let flags: Vec<bool> = (0..n).map(|i| i % 3 != 1).collect();
            extra.push((".attention.sliding_window_pattern", ValueOut::bools(&flags)));
        }
        if HYBRIDS.contains(&architecture) {
            let heads: Vec<u32> = (0..n).map(|i| if i % 3 == 1 { N_HEAD } else { 0 }).collect();
            extra.push((".attention.head_count_kv", ValueOut::u32s(&heads)));
        }
        extra.extend(match architecture {
            "graniteswitch" => adapters(),
            "gemma4" => {
                let flags: Vec<bool> = (0..n).map(|i| i % 3 != 2).collect();
                let heads: Vec<u32> = (0..n).map(|i| if i % 3 == 2 { 1 } else { 2 }).collect();
                let widths: Vec<u32> = (0..n).map(|i| 256 + 64 * (i as u32 % 3)).collect();
                vec![
                    (".attention.sliding_window_pattern", ValueOut::bools(&flags)),
                    (".attention.head_count_kv", ValueOut::u32s(&heads)),
                    (".feed_forward_length", ValueOut::u32s(&widths)),
                    // The two before them have a window and none.
                    (".attention.shared_kv_layers", ValueOut::u32(n_blocks - 9)),
                    (".embedding_length_per_layer_input", ValueOut::u32(64)),
                    (".attention.key_length", ValueOut::u32(96)),
                    (".attention.value_length", ValueOut::u32(96)),
                    (".attention.key_length_swa", ValueOut::u32(64)),
                    (".attention.value_length_swa", ValueOut::u32(64)),
                    (".rope.dimension_count", ValueOut::u32(96)),
                    (".rope.dimension_count_swa", ValueOut::u32(64)),
                ]
            }
            "plm" => vec![
                (".attention.key_length", ValueOut::u32(96)),
                (".attention.value_length", ValueOut::u32(64)),
                (".rope.dimension_count", ValueOut::u32(32)),
            ],
            "deepseek2" | "mistral4" | "deepseek32" => {
                let mut entries = latent_attention();
                entries.push((".attention.head_count_kv", ValueOut::u32(1)));
                entries
            }
            "kimi-linear" | "bailingmoe3" | "kimi-k3" => {
                let heads: Vec<u32> = (0..n).map(|i| u32::from(i % 3 == 1)).collect();
                let mut entries = latent_attention();
                entries.push((".attention.head_count_kv", ValueOut::u32s(&heads)));
                entries
            }
            "nemotron_h" | "nemotron_h_moe" => sub_blocks(architecture, n),
            "qwen3next" | "qwen35" | "qwen35moe" => vec![(".ssm.inner_size", ValueOut::u32(128))],
            "plamo2" => vec![
                (".attention.key_length", ValueOut::u32(64)),
                (".attention.value_length", ValueOut::u32(64)),
                (".ssm.group_count", ValueOut::u32(0)),
            ],
            "deepseek4" => {
                // All three kinds, several of each.
                let ratios: Vec<u32> = (0..n).map(|i| [0, 4, 128][i * 2 % 5 % 3]).collect();
                let clamps: Vec<f32> = (0..n).map(|i| 5.0 + i as f32).collect();
                vec![
                    (".attention.head_count_kv", ValueOut::u32(1)),
                    // Not the indexer's, else llama.cpp divides by zero for an empty cache.
                    (".attention.key_length", ValueOut::u32(128)),
                    (".attention.value_length", ValueOut::u32(128)),
                    (".rope.dimension_count", ValueOut::u32(32)),
                    (".attention.compress_ratios", ValueOut::u32s(&ratios)),
                    (".swiglu_clamp_exp", ValueOut::f32s(&clamps)),
                    (".expert_gating_func", ValueOut::u32(4)),
                    (".expert_weights_norm", ValueOut::bool(true)),
                    (".attention.output_group_count", ValueOut::u32(2)),
                    (".attention.output_lora_rank", ValueOut::u32(64)),
                    (".attention.compress_rope_freq_base", ValueOut::f32(20000.0)),
                    (".hyper_connection.count", ValueOut::u32(4)),
                    (".hyper_connection.sinkhorn_iterations", ValueOut::u32(5)),
                    // With it a mixing of no streams would not be exact.
                    (".hyper_connection.epsilon", ValueOut::f32(0.0)),
                    (".hash_layer_count", ValueOut::u32(3)),
                ]
            }
            "dots3note" => {
                let mut entries = latent_attention();
                let types: Vec<bool> = (0..n).map(|i| i % 3 == 1).collect();
                let heads: Vec<u32> = (0..n).map(|i| if i % 3 == 1 { 4 } else { 2 }).collect();
                entries.extend([
                    (".attention.head_count", ValueOut::u32s(&heads)),
                    (".attention.head_count_kv", ValueOut::u32(1)),
                    (".attention.indexer.types", ValueOut::bools(&types)),
                    (".attention.kv_lora_rank_swa", ValueOut::u32(32)),
                    (".attention.key_length_swa", ValueOut::u32(64)),
                    (".attention.value_length_swa", ValueOut::u32(32)),
                    (".attention.key_length_mla_swa", ValueOut::u32(64)),
                    (".attention.value_length_mla_swa", ValueOut::u32(32)),
                    (".rope.freq_base_swa", ValueOut::f32(5000.0)),
                ]);
                entries
            }
            "rwkv6" => vec![(".token_shift_count", ValueOut::u32(2))],
            "rwkv7" => vec![(".token_shift_count", ValueOut::u32(2))],
            "maple" => vec![(".swiglu_clamp_exp", ValueOut::f32s(&vec![7.0; n]))],
            "nanbeige" => vec![(".num_loops", ValueOut::u32(2))],
            "granite_swa" => {
                let flags: Vec<bool> = (0..n).map(|i| i % 5 != 2).collect();
                vec![(".attention.rope_pattern", ValueOut::bools(&flags))]
            }
            "apertus" => ["xielu.alpha_n", "xielu.alpha_p", "xielu.beta", "xielu.eps"]
                .into_iter()
                .enumerate()
                .map(|(k, key)| {
                    let values: Vec<f32> = (0..n).map(|i| 0.3 + 0.1 * (i + k) as f32).collect();
                    (key, ValueOut::f32s(&values))
                })
                .collect(),
            _ => Vec::new(),
        });
        Self {
            architecture,
            n_blocks,
            extra,
            without: &[],
            n_prediction: 0,
            omitted: |_| false,
            fused_qkv: false,
            left_out: &[],
        }
    }

    /// The usual model with experts, `n_experts` in each block that has some.
    pub fn with_experts(architecture: &'s str, n_blocks: u32, n_experts: u32) -> Self {
        let mut spec = Self::new(architecture, n_blocks);
        if !MIXTURES.contains(&architecture) && architecture != "nemotron_h_moe" {
            spec.extra.extend(experts());
        }
        spec.extra.push((".expert_count", ValueOut::u32(n_experts)));
        spec
    }

    /// The usual model, with `n_prediction` of its blocks for multi-token prediction.
    pub fn with_prediction(architecture: &'s str, n_blocks: u32, n_prediction: u32) -> Self {
        let mut spec = Self::new(architecture, n_blocks);
        let count = ValueOut::u32(n_prediction);
        spec.extra.push((".nextn_predict_layers", count));
        spec.n_prediction = n_prediction;
        spec
    }

    /// The tensors that llama.cpp asks for.
    fn shapes(&self, backend: &Backend, path: &Path) -> Result<Vec<TensorShape>, String> {
        let ask = |entries: Vec<EntryOut<'static>>| {
            let head = Layout::new(3, 32, entries, Vec::new(), true).unwrap();
            let mut file = std::fs::File::create(path).unwrap();
            write(&head, &mut file, |_, _| Ok(())).unwrap();
            tensor_shapes(backend, path).map_err(|error| error.to_string())
        };
        if self.n_prediction == 0 || !NEVER_LOADED.contains(&self.architecture) {
            return ask(self.entries());
        }
        // What is never loaded is not asked for: the blocks are made like others, and get what makes them predict.
        let mut entries = self.entries();
        entries.retain(|entry| !entry.key().ends_with(".nextn_predict_layers"));
        let mut shapes = ask(entries)?;
        for block in self.n_blocks - self.n_prediction..self.n_blocks {
            let prefix = format!("blk.{block}.");
            if self.architecture == "exaone-moe" {
                // Its prediction blocks are dense, as its first is.
                let mut dense: Vec<_> = shapes.clone();
                dense.retain(|shape| shape.name.starts_with("blk.0."));
                for shape in &mut dense {
                    shape.name = shape.name.replacen("blk.0.", &prefix, 1);
                }
                shapes.retain(|shape| !shape.name.starts_with(&prefix));
                shapes.extend(dense);
            }
            let n = u64::from(N_EMBD);
            let mut more = vec![
                ("nextn.eh_proj", [2 * n, n, 1, 1]),
                ("nextn.enorm", [n, 1, 1, 1]),
                ("nextn.hnorm", [n, 1, 1, 1]),
            ];
            if self.architecture == "bailingmoe2" {
                more.push(("layer_output_norm", [n, 1, 1, 1]));
            }
            shapes.extend(
                more.into_iter().map(|(name, ne)| TensorShape { name: format!("{prefix}{name}.weight"), ne }),
            );
        }
        Ok(shapes)
    }

    /// The models by which an architecture is tested. The usual one, and those that take other paths in llama.cpp.
    pub fn variants(architecture: &'s str, n_blocks: u32) -> Vec<Self> {
        let with = |extra: Vec<(&'static str, ValueOut)>| {
            let mut spec = Self::new(architecture, n_blocks);
            spec.extra.extend(extra);
            spec
        };
        let mut variants = vec![Self::new(architecture, n_blocks)];
        variants.extend(match architecture {
            "plamo2" => {
                // Without heads in block 0 ggml_rope would never end (ops.cpp). Nothing would be rotated there.
                let heads = |i| if i % 3 == 0 { N_HEAD } else { 0 };
                let heads = ValueOut::u32s(&(0..n_blocks).map(heads).collect::<Vec<_>>());
                vec![with(vec![
                    (".attention.head_count", heads.clone()),
                    (".attention.head_count_kv", heads),
                ])]
            }
            "modern-bert" => vec![with(decision_head(n_blocks))],
            "rwkv6" => vec![with(vec![(".rescale_every_n_layers", ValueOut::u32(7))])],
            "kimi-k3" => vec![with(vec![(".attn_res.block_size", ValueOut::u32(5))])],
            _ => Vec::new(),
        });
        variants
    }

    fn n_vocab(&self) -> usize {
        match self.architecture {
            "qwen3tts" => N_CODEC_VOCAB + N_VOCAB,
            // Its graph silences the image tokens 4 to 8195 (`chameleon.cpp`).
            "chameleon" => 8196 + N_VOCAB,
            _ => N_VOCAB,
        }
    }

    fn entries(&self) -> Vec<EntryOut<'static>> {
        let mut entries: Vec<(String, ValueOut)> = vec![
            ("general.architecture".into(), ValueOut::string(self.architecture)),
            ("general.name".into(), ValueOut::string("Random")),
        ];
        for (key, value) in common(self.n_blocks, self.n_vocab()) {
            if !self.without.contains(&key) {
                entries.push((format!("{}.{key}", self.architecture), value));
            }
        }
        let tokens: Vec<String> = (0..self.n_vocab()).map(|i| format!("t{i}")).collect();
        entries.extend([
            ("tokenizer.ggml.model".into(), ValueOut::string("test")),
            ("tokenizer.ggml.tokens".into(), ValueOut::strings(&tokens)),
            ("tokenizer.ggml.token_type_count".into(), ValueOut::u32(2)),
            ("tokenizer.ggml.add_bos_token".into(), ValueOut::bool(false)),
        ]);
        for (key, value) in &self.extra {
            let key = match key.strip_prefix('.') {
                Some(key) => format!("{}.{key}", self.architecture),
                None => (*key).to_owned(),
            };
            entries.retain(|(other, _)| *other != key);
            entries.push((key, value.clone()));
        }
        entries.into_iter().map(|(key, value)| EntryOut::new(key, value)).collect()
    }

    /// Writes the model to `path`: all weights F32, all tables I32.
    pub fn save(&self, backend: &Backend, path: &Path) -> Result<(), String> {
        let entries = self.entries();
        let shapes = self.shapes(backend, path)?;
        // A tensor that blocks share is made once and asked for again.
        let mut tensors: Vec<TensorShape> = Vec::new();
        for shape in shapes {
            // A looped model asks for more blocks than are stored.
            if block_number(&shape.name).is_some_and(|block| block >= self.n_blocks) {
                continue;
            }
            // Counted again for each prediction block, the factors prevent loading.
            if self.architecture == "exaone-moe" && self.n_prediction > 0 && shape.name == "rope_freqs.weight"
            {
                continue;
            }
            let is_new = tensors.iter().all(|other| other.name != shape.name);
            let rest = shape.name.splitn(3, '.').nth(2).unwrap_or_default();
            if self.left_out.contains(&rest) {
                continue;
            }
            // Of what is not loaded no scales are asked for.
            let is_read = block_number(&shape.name)
                .is_none_or(|number| number < self.n_blocks - self.n_prediction)
                || !shape.name.ends_with("scale");
            let has_experts = self.extra.iter().any(|(key, _)| *key == ".expert_count");
            let is_wanted =
                !(self.omitted)(&shape.name) && !excluded(self.architecture, has_experts, &shape.name);
            if is_new && is_read && is_wanted {
                tensors.push(shape);
            }
        }
        if self.fused_qkv {
            fuse_qkv(&mut tensors);
        }
        let outs = tensors
            .iter()
            .map(|tensor| {
                let n_dims = (1..=4).rev().find(|&n| tensor.ne[n - 1] != 1).unwrap_or(1);
                let kind =
                    if is_table(&tensor.name) { TensorType::from_id(26).unwrap() } else { TensorType::F32 };
                TensorOut::new(tensor.name.clone(), &tensor.ne[..n_dims], kind).unwrap()
            })
            .collect();
        let layout = Layout::new(3, 32, entries, outs, true).unwrap();
        let mut file = std::io::BufWriter::new(std::fs::File::create(path).unwrap());
        write(&layout, &mut file, |i, writer| {
            let tensor = &tensors[i];
            let mut bytes = if is_table(&tensor.name) { table(tensor) } else { weights(tensor) };
            if self.architecture == "gemma3n" && tensor.name == "token_embd.weight" {
                // Element 0 of rows exceeds what blocks add, and stays positive.
                for row in bytes.chunks_exact_mut(4 * tensor.ne[0] as usize) {
                    row[..4].copy_from_slice(&16f32.to_le_bytes());
                }
            }
            writer.write_all(&bytes)
        })
        .unwrap();
        Ok(())
    }
}

/// Puts the queries, keys and values of every block into one tensor.
fn fuse_qkv(tensors: &mut Vec<TensorShape>) {
    let all = tensors.clone();
    tensors.retain(|tensor| !tensor.name.contains(".attn_k.") && !tensor.name.contains(".attn_v."));
    for tensor in tensors {
        if !tensor.name.contains(".attn_q.") {
            continue;
        }
        let rows = usize::from(tensor.name.ends_with(".weight"));
        for other in [".attn_k.", ".attn_v."] {
            let name = tensor.name.replace(".attn_q.", other);
            let other = all.iter().find(|tensor| tensor.name == name).unwrap();
            tensor.ne[rows] += other.ne[rows];
        }
        tensor.name = tensor.name.replace(".attn_q.", ".attn_qkv.");
    }
}

/// The number in `blk.<number>.`.
fn block_number(name: &str) -> Option<u32> {
    name.strip_prefix("blk.")?.split_once('.')?.0.parse().ok()
}

/// Optional tensors of the architecture that a real model lacks. llama.cpp knows them; some exclude others.
fn excluded(architecture: &str, has_experts: bool, tensor: &str) -> bool {
    let mixture = ["ffn_gate_inp", "_exps", "norm_1", "norm_2", "pre_ffw_norm_2"];
    match architecture {
        "rwkv6qwen2" => tensor.contains("time_mix_first"),
        // The norm of the embeddings is that of the first block.
        "modern-bert" => tensor == "blk.0.attn_norm.weight",
        // A head for classes, which older releases do not know.
        "qwen35" => tensor.starts_with("cls."),
        "t5encoder" => tensor.contains("attn_rel_b") && !tensor.starts_with("enc.blk.0."),
        "gemma4" => !has_experts && mixture.iter().any(|part| tensor.contains(part)),
        _ => false,
    }
}

/// Whether the tensor says for each token which experts it uses.
fn is_table(tensor: &str) -> bool {
    tensor.contains("tid2eid")
}

/// Experts of each token, `[n_used, n_tokens]`: of four, different ones, and other ones in other blocks.
fn table(tensor: &TensorShape) -> Vec<u8> {
    let block = block_number(&tensor.name).unwrap_or(0);
    (0..tensor.ne[1] as u32)
        .flat_map(|token| (0..tensor.ne[0] as u32).map(move |k| (token * 3 + block + k) % 4))
        .flat_map(u32::to_le_bytes)
        .collect()
}

/// Weights that keep the stream in range, and differ between tensors.
fn weights(tensor: &TensorShape) -> Vec<u8> {
    let n: u64 = tensor.ne.iter().product();
    let seed = tensor
        .name
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
    let is_norm = (tensor.name.contains("norm") && tensor.name.ends_with(".weight"))
        || tensor.name.starts_with("rope_freqs");
    // Decays of a recurrent state are negative.
    let is_decay = tensor.name.ends_with("ssm_a");
    let scale = match tensor.name.as_str() {
        "token_embd.weight" => 1.0,
        _ if tensor.ne[1] > 1 => 1.0 / (tensor.ne[0] as f32).sqrt(),
        _ => 0.1,
    };
    let mut state = seed;
    let mut bytes = Vec::with_capacity(n as usize * 4);
    for _ in 0..n {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let uniform = (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0;
        let value = if is_norm {
            1.0 + 0.2 * uniform
        } else if is_decay {
            -1.0 - 0.5 * uniform
        } else {
            scale * uniform
        };
        bytes.extend_from_slice(&value.to_le_bytes());
    }
    bytes
}
