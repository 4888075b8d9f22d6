//! Calibrates window by window when told: one line of standard input starts a window, one line of output says how many
//! seconds it took. `tests/bench/speed.sh` lets it take turns with stock llama.cpp, so that a busy machine is as busy
//! for both.
//!
//! ```text
//! cargo run --release --example paced -- MODEL WINDOW THREADS
//! ```

use std::cell::Cell;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use ggml::{ContextOptions, ModelOptions};
use gguf_shorten::engine::llama::{LlamaHiddenStates, StreamGraph};
use gguf_shorten::engine::load::load_for_scores;
use gguf_shorten::engine::text::{CalibrationSet, Cut, Source, Texts};
use gguf_shorten::measure::importance::Importance;
use gguf_shorten::model::arch::Architecture;
use gguf_shorten::model::input::Input;

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [path, window, threads] = &args[..] else {
        bail!("usage: paced MODEL WINDOW THREADS");
    };
    let path = Path::new(path);
    let input = Input::open(path)?;
    let parent = gguf_shorten::model::Model::new(input.parse()?)?;
    let rules = Architecture::find(parent.architecture()).context("a known architecture")?;
    let model = load_for_scores(&parent, path, ModelOptions::default())?;
    let options = ContextOptions {
        window: window.parse().context("WINDOW is a number")?,
        threads: threads.parse().context("THREADS is a number")?,
    };
    let cut = Cut { window: options.window, tokens: usize::MAX, bos: model.bos() };
    let set = CalibrationSet::new(&Texts::read(Source::BuiltIn)?, Vec::new(), cut, &|text| {
        Ok(model.tokenize(text)?)
    })?;
    let graph = StreamGraph::of(&parent, &model, rules.stream)?;
    let mut states = LlamaHiddenStates::new(&model, options, graph)?;
    let start = Cell::new(Instant::now());
    let windows: Vec<_> = set.windows().collect();
    let paced = windows.iter().copied().cycle().map_while(|window| {
        let n_bytes = std::io::stdin().read_line(&mut String::new());
        start.set(Instant::now());
        (n_bytes.ok()? > 0).then_some(window)
    });
    Importance::measure(&mut states, paced, &mut |_| {
        println!("{}", start.get().elapsed().as_secs_f64());
    })?;
    Ok(())
}
