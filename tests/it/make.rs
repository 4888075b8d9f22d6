//! Tiny models, built in code.
//!
//! [`Make`] goes through the project's own layout and writer; [`Raw`] puts bytes together on its own, so that the two can be
//! compared, and can build what the writer refuses. The bytes of tensors are pseudo-random and depend on the name alone.

use gguf_shorten::gguf::{EntryOut, File, Layout, TensorOut, TensorType, ValueOut, write, write_head};

use crate::util::Dir;

pub const F32: u32 = 0;
pub const Q4_1: u32 = 3;
pub const Q4_K: u32 = 12;
pub const I8: u32 = 24;

/// A model to be.
#[derive(Clone)]
pub struct Make {
    version: u32,
    alignment: u64,
    entries: Vec<(String, ValueOut)>,
    tensors: Vec<(String, Vec<u64>, u32)>,
    pad_end: bool,
}

impl Make {
    /// A file without entries and tensors.
    pub fn empty() -> Self {
        Self { version: 3, alignment: 32, entries: Vec::new(), tensors: Vec::new(), pad_end: true }
    }

    /// A model of tensors in several types, with a converter's keys.
    pub fn new(architecture: &str, n_blocks: u32) -> Self {
        let key = |name: &str| format!("{architecture}.{name}");
        let mut make = Self::empty()
            .set("general.architecture", ValueOut::string(architecture))
            .set("general.type", ValueOut::string("model"))
            .set("general.name", ValueOut::string("Tiny"))
            .set("general.license", ValueOut::string("cc0-1.0"))
            .set(&key("context_length"), ValueOut::u32(128))
            .set(&key("block_count"), ValueOut::u32(n_blocks))
            .set(&key("embedding_length"), ValueOut::u32(32))
            .set(&key("feed_forward_length"), ValueOut::u32(64))
            .set(&key("attention.head_count"), ValueOut::u32(4))
            .set(&key("attention.layer_norm_rms_epsilon"), ValueOut::f32(1e-5))
            .set("tokenizer.ggml.model", ValueOut::string("gpt2"))
            .set("tokenizer.ggml.tokens", ValueOut::strings(&[&b"<s>"[..], b"a", b"\xff", b"d\n"]))
            .set("tokenizer.ggml.scores", ValueOut::f32s(&[0.0, -1.0, -2.5, 4.0]))
            .set("tokenizer.ggml.add_bos_token", ValueOut::bool(true))
            .tensor("token_embd.weight", &[256, 4], Q4_K);
        for block in 0..n_blocks {
            make = make
                .tensor(&format!("blk.{block}.attn_norm.weight"), &[32], F32)
                .tensor(&format!("blk.{block}.attn_q.weight"), &[32, 3], Q4_1)
                .tensor(&format!("blk.{block}.ffn_down.weight"), &[5, 3], I8);
        }
        make.tensor("output_norm.weight", &[32], F32)
    }

    /// Sets an entry in its place, or at the end.
    pub fn set(mut self, key: &str, value: ValueOut) -> Self {
        match self.entries.iter_mut().find(|(k, _)| k == key) {
            Some((_, old)) => *old = value,
            None => self.entries.push((key.to_owned(), value)),
        }
        self
    }

    pub fn unset(mut self, key: &str) -> Self {
        let n = self.entries.len();
        self.entries.retain(|(k, _)| k != key);
        assert_eq!(self.entries.len(), n - 1, "{key}");
        self
    }

    pub fn tensor(mut self, name: &str, dims: &[u64], type_id: u32) -> Self {
        self.tensors.push((name.to_owned(), dims.to_vec(), type_id));
        self
    }

    /// These blocks, the last of the model, are for multi-token prediction.
    pub fn predicting(self, architecture: &str, blocks: std::ops::Range<u32>) -> Self {
        let count = format!("{architecture}.nextn_predict_layers");
        let make = self.set(&count, ValueOut::u32(blocks.end - blocks.start));
        blocks
            .fold(make, |make, block| make.tensor(&format!("blk.{block}.nextn.eh_proj.weight"), &[3, 2], F32))
    }

    pub fn without_tensors(mut self) -> Self {
        self.tensors.clear();
        self
    }

    pub fn version(mut self, version: u32) -> Self {
        self.version = version;
        self
    }

    pub fn alignment(mut self, alignment: u32) -> Self {
        self.alignment = alignment.into();
        self.set("general.alignment", ValueOut::u32(alignment))
    }

    pub fn without_end_padding(mut self) -> Self {
        self.pad_end = false;
        self
    }

    fn layout(&self) -> Layout<'_> {
        let entries =
            self.entries.iter().map(|(key, value)| EntryOut::new(key.as_str(), value.clone())).collect();
        let tensors = self
            .tensors
            .iter()
            .map(|(name, dims, id)| {
                TensorOut::new(name.as_str(), dims, TensorType::from_id(*id).unwrap()).unwrap()
            })
            .collect();
        Layout::new(self.version, self.alignment, entries, tensors, self.pad_end).unwrap()
    }

    pub fn bytes(&self) -> Vec<u8> {
        let layout = self.layout();
        let mut bytes = Vec::new();
        write(&layout, &mut bytes, |i, out| {
            let tensor = layout.tensors()[i].tensor();
            out.write_all(&data(tensor.name(), tensor.n_bytes()))
        })
        .unwrap();
        bytes
    }

    /// A folder with the model as `m.gguf`.
    pub fn dir(&self) -> Dir {
        let dir = Dir::new();
        self.write(&dir, "m.gguf");
        dir
    }

    /// Writes the file `name`.
    pub fn write(&self, dir: &Dir, name: &str) {
        dir.write(name, &self.bytes());
    }

    /// Writes the head of file `name`, with sparse zeros for tensors. They take no room on disk.
    pub fn write_sparse(&self, dir: &Dir, name: &str) {
        let layout = self.layout();
        let mut file = std::fs::File::create(dir.path(name)).unwrap();
        write_head(&layout, &mut file).unwrap();
        file.set_len(layout.file_len()).unwrap();
    }

    /// The model in parts, as llama-gguf-split writes it: all metadata in the first.
    pub fn split(&self, n_parts: usize) -> Vec<Self> {
        let per_part = self.tensors.len().div_ceil(n_parts);
        (0..n_parts)
            .map(|part| {
                let tensors = self.tensors.iter().skip(part * per_part).take(per_part).cloned().collect();
                let first = self.clone();
                let alignment = |(key, _): &(String, ValueOut)| key == "general.alignment";
                let own = Self {
                    tensors,
                    entries: match part {
                        0 => first.entries,
                        _ => first.entries.into_iter().filter(alignment).collect(),
                    },
                    ..*self
                };
                let integer = |n: usize| ValueOut::integer(U16, n as u64).unwrap();
                own.set("split.no", integer(part))
                    .set("split.count", integer(n_parts))
                    .set("split.tensors.count", ValueOut::i32(self.tensors.len() as i32))
            })
            .collect()
    }
}

const U16: gguf_shorten::gguf::ValueType = gguf_shorten::gguf::ValueType::U16;

/// Writes `model` as `m-00001-of-0000N.gguf` and so on.
pub fn write_parts(dir: &Dir, parts: &[Make]) {
    for (i, part) in parts.iter().enumerate() {
        part.write(dir, &part_name(i, parts.len()));
    }
}

pub fn part_name(i: usize, n_parts: usize) -> String {
    format!("m-{:05}-of-{n_parts:05}.gguf", i + 1)
}

/// The bytes of the tensor of that name.
pub fn data(name: &str, n_bytes: u64) -> Vec<u8> {
    // FNV-1a, so that each name has its own bytes.
    let seed = name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let mut random = Random::new(seed);
    (0..n_bytes).map(|_| random.next() as u8).collect()
}

/// A small deterministic pseudorandom generator (xorshift64*).
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }

    /// A number below `n`.
    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
}

/// A file put together byte by byte, right or wrong.
#[derive(Clone)]
pub struct Raw {
    pub version: u32,
    /// What the header says, where it does not say the truth.
    pub n_tensors: Option<u64>,
    pub n_entries: Option<u64>,
    pub alignment: usize,
    entries: Vec<Vec<u8>>,
    infos: Vec<Vec<u8>>,
    data: Vec<u8>,
}

impl Raw {
    pub fn new() -> Self {
        Self {
            version: 3,
            n_tensors: None,
            n_entries: None,
            alignment: 32,
            entries: Vec::new(),
            infos: Vec::new(),
            data: Vec::new(),
        }
    }

    /// A `llama` model of two blocks with one tensor each.
    pub fn model() -> Self {
        Self::new()
            .string("general.architecture", b"llama")
            .u32("llama.block_count", 2)
            .tensor("blk.0.ffn_down.weight", &[32], I8, &[1; 32])
            .tensor("blk.1.ffn_down.weight", &[32], I8, &[2; 32])
    }

    pub fn entry(mut self, key: &[u8], type_id: u32, value: &[u8]) -> Self {
        let mut entry = string(key);
        entry.extend(type_id.to_le_bytes());
        entry.extend(value);
        self.entries.push(entry);
        self
    }

    pub fn string(self, key: &str, value: &[u8]) -> Self {
        self.entry(key.as_bytes(), 8, &string(value))
    }

    pub fn u32(self, key: &str, value: u32) -> Self {
        self.entry(key.as_bytes(), 4, &value.to_le_bytes())
    }

    /// A tensor after the one before.
    pub fn tensor(mut self, name: &str, dims: &[u64], type_id: u32, bytes: &[u8]) -> Self {
        self.pad_data();
        let offset = self.data.len() as u64;
        self.data.extend(bytes);
        self.info(name.as_bytes(), dims.len() as u32, dims, type_id, offset)
    }

    /// A tensor info that need not be true.
    pub fn info(mut self, name: &[u8], n_dims: u32, dims: &[u64], type_id: u32, offset: u64) -> Self {
        let mut info = string(name);
        info.extend(n_dims.to_le_bytes());
        dims.iter().for_each(|dim| info.extend(dim.to_le_bytes()));
        info.extend(type_id.to_le_bytes());
        info.extend(offset.to_le_bytes());
        self.infos.push(info);
        self
    }

    pub fn bytes(mut self) -> Vec<u8> {
        let count = |says: Option<u64>, is: usize| says.unwrap_or(is as u64).to_le_bytes();
        let mut bytes = b"GGUF".to_vec();
        bytes.extend(self.version.to_le_bytes());
        bytes.extend(count(self.n_tensors, self.infos.len()));
        bytes.extend(count(self.n_entries, self.entries.len()));
        bytes.extend(self.entries.concat());
        bytes.extend(self.infos.concat());
        bytes.resize(bytes.len().next_multiple_of(self.alignment), 0);
        self.pad_data();
        bytes.extend(self.data);
        bytes
    }

    fn pad_data(&mut self) {
        let n = self.data.len().next_multiple_of(self.alignment);
        self.data.resize(n, 0);
    }
}

/// A string as files store it.
pub fn string(bytes: &[u8]) -> Vec<u8> {
    let mut raw = (bytes.len() as u64).to_le_bytes().to_vec();
    raw.extend(bytes);
    raw
}

/// An array as files store it.
pub fn array(type_id: u32, len: u64, elements: &[u8]) -> Vec<u8> {
    let mut raw = type_id.to_le_bytes().to_vec();
    raw.extend(len.to_le_bytes());
    raw.extend(elements);
    raw
}

#[test]
fn both_builders_write_the_same_bytes() {
    for alignment in [8, 32, 64] {
        let make = Make::empty()
            .set("general.architecture", ValueOut::string("llama"))
            .alignment(alignment)
            .set("llama.block_count", ValueOut::u32(2))
            .set("list", ValueOut::i32s(&[1, -2]))
            .tensor("blk.0.ffn_down.weight", &[5, 2], I8)
            .tensor("blk.1.ffn_down.weight", &[3], F32);
        let mut raw = Raw::new();
        raw.alignment = alignment as usize;
        let list = [1i32.to_le_bytes(), (-2i32).to_le_bytes()].concat();
        let raw = raw
            .string("general.architecture", b"llama")
            .u32("general.alignment", alignment)
            .u32("llama.block_count", 2)
            .entry(b"list", 9, &array(5, 2, &list))
            .tensor("blk.0.ffn_down.weight", &[5, 2], I8, &data("blk.0.ffn_down.weight", 10))
            .tensor("blk.1.ffn_down.weight", &[3], F32, &data("blk.1.ffn_down.weight", 12));
        let bytes = raw.bytes();
        assert_eq!(make.bytes(), bytes);
        assert_eq!(File::parse(&bytes).unwrap().tensors().len(), 2);
    }
}
