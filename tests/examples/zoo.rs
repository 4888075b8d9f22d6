//! Writes 20 tiny models of 20 architectures, for `tests/bench/batch.sh` and `tests/slurm/test.sh`. Each has random weights and
//! a tokenizer.
//!
//! ```text
//! cargo run --release --example zoo -- FOLDER
//! ```

use std::path::Path;

use anyhow::{Result, anyhow, bail};
use ggml::Backend;

#[path = "../engine/random_model.rs"]
#[allow(
    dead_code,
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "of the tests' generator only a part is used here; sizes of tiny models fit any type"
)]
mod random_model;

const ARCHITECTURES: [&str; 20] = [
    "llama",
    "qwen2",
    "qwen3",
    "gemma",
    "gemma2",
    "gemma3",
    "phi2",
    "phi3",
    "olmo",
    "olmo2",
    "stablelm",
    "internlm2",
    "gpt2",
    "falcon",
    "mamba",
    "command-r",
    "granite",
    "exaone",
    "smollm3",
    "nemotron",
];

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [folder] = &args[..] else {
        bail!("usage: zoo FOLDER");
    };
    for architecture in ARCHITECTURES {
        let path = Path::new(folder).join(format!("{architecture}.gguf"));
        random_model::Spec::new(architecture, 12)
            .save(Backend::init(), &path)
            .map_err(|error| anyhow!("{architecture}: {error}"))?;
    }
    Ok(())
}
