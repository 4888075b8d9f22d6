//! Writes tiny random models, one per periodic architecture, for `tests/stock/lists.sh`. Prints a line for each: its name, and
//! the period.
//!
//! ```text
//! cargo run --release --example random_models -- FOLDER
//! ```

use std::path::Path;

use anyhow::{Result, anyhow, bail};
use ggml::Backend;
use gguf_shorten::gguf::ValueOut;
use gguf_shorten::model::arch::{Architecture, Recurrent};

#[path = "../engine/random_model.rs"]
#[allow(
    dead_code,
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "of the tests' generator only a part is used here; sizes of tiny models fit any type"
)]
mod random_model;

/// Two periods of plamo3, the longest, and more.
const N_BLOCKS: u32 = 18;

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [folder] = &args[..] else {
        bail!("usage: random_models FOLDER");
    };
    for architecture in Architecture::all() {
        let window = architecture.window().and_then(|pattern| pattern.period);
        let period = match (window, architecture.recurrent()) {
            (Some(period), _) => period,
            (None, Some(Recurrent::Interval { default, .. })) => default,
            _ => continue,
        };
        let mut spec = random_model::Spec::new(architecture.name, N_BLOCKS);
        // Any release knows a model without a vocabulary.
        spec.extra.push(("tokenizer.ggml.model", ValueOut::string("no_vocab")));
        let path = Path::new(folder).join(format!("{}.gguf", architecture.name));
        spec.save(Backend::init(), &path).map_err(|error| anyhow!("{}: {error}", architecture.name))?;
        println!("{} {period}", architecture.name);
    }
    Ok(())
}
