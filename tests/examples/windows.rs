//! Prints the calibration windows as token ids, one per line. They are the input of `tests/stock/block_influence.py`.
//!
//! ```text
//! cargo run --release --example windows -- MODEL TEXT_FILE N_TOKENS WINDOW
//! ```

use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result, bail};
use ggml::{Backend, Model, ModelOptions};
use gguf_shorten::engine::text::{CalibrationSet, Cut, Source, Texts};

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [path, text, n_tokens, window] = &args[..] else {
        bail!("usage: windows MODEL TEXT_FILE N_TOKENS WINDOW");
    };
    let options = ModelOptions { vocab_only: true, ..ModelOptions::default() };
    let model = Model::load(Backend::init(), Path::new(path), options)?;
    let cut = Cut {
        window: window.parse().context("WINDOW is a number")?,
        tokens: n_tokens.parse().context("N_TOKENS is a number")?,
        bos: model.bos(),
    };
    let texts = Texts::read(Source::Files(vec![text.into()]))?;
    let set = CalibrationSet::new(&texts, Vec::new(), cut, &|text| Ok(model.tokenize(text)?))?;
    let mut stdout = std::io::stdout().lock();
    for window in set.windows() {
        let ids: Vec<_> = window.iter().map(ToString::to_string).collect();
        writeln!(stdout, "{}", ids.join(" "))?;
    }
    Ok(())
}
