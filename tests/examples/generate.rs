//! Goes on with a text, always with the likeliest token: shows what llama.cpp says with a model.
//!
//! ```text
//! cargo run --release --example generate -- MODEL TEXT N_TOKENS
//! ```
//!
//! Every token evaluates the whole text again, which is slow and short.

use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use ggml::{Backend, ContextOptions, Model, ModelOptions, Token};

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [path, text, n_tokens] = &args[..] else {
        bail!("usage: generate MODEL TEXT N_TOKENS");
    };
    let n_tokens: usize = n_tokens.parse().context("N_TOKENS is a number")?;
    let model = Model::load(Backend::init(), Path::new(path), ModelOptions::default())?;
    let mut tokens = model.tokenize(text)?;
    ensure!(!tokens.is_empty(), "the text has no tokens");
    let mut context = ggml::Context::new(
        &model,
        ContextOptions { window: tokens.len() + n_tokens, threads: num_cpus::get_physical() },
    )?;
    print!("{text}");
    for _ in 0..n_tokens {
        let logits = context.logits(&tokens)?;
        let next = likeliest(&logits[logits.len() - model.n_vocab()..])?;
        print!("{}", model.token_text(next));
        std::io::stdout().flush()?;
        tokens.push(next);
    }
    println!();
    Ok(())
}

/// The token with the highest logit of one row.
fn likeliest(logits: &[f32]) -> Result<Token> {
    let (best, _) = logits
        .iter()
        .enumerate()
        .max_by(|(_, a), (_, b)| a.total_cmp(b))
        .context("the vocabulary is empty")?;
    Ok(Token::try_from(best)?)
}
