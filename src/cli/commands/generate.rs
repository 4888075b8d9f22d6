//! `completions` and `man`: made from the definitions of the command line.

use anyhow::Result;
use clap::CommandFactory;

use super::{devices, to_stdout};
use crate::cli::args::Cli;

/// Prints a completion script.
///
/// # Errors
/// Those of stdout.
pub fn completions(shell: clap_complete::Shell) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "gguf-shorten", &mut script);
    let mut script = String::from_utf8(script)?;
    if shell == clap_complete::Shell::Bash {
        // Else nothing is completed after a command (https://github.com/clap-rs/clap/issues/6421).
        script = script.replace("gguf__subcmd__shorten", "gguf__shorten");
    }
    to_stdout(&script)
}

/// Prints the manual page.
///
/// # Errors
/// Those of stdout.
pub fn man() -> Result<()> {
    let mut page = Vec::new();
    clap_mangen::Man::new(Cli::command().version(env!("GGUF_SHORTEN_VERSION"))).render(&mut page)?;
    to_stdout(&String::from_utf8(page)?)
}

/// Prints this program's version, the bundled llama.cpp's, and its devices.
///
/// # Errors
/// Those of stdout.
pub fn version() -> Result<()> {
    to_stdout(&format!(
        "gguf-shorten {}, with llama.cpp {}\n{}",
        env!("GGUF_SHORTEN_VERSION"),
        ggml::backend::llama_cpp_version(),
        devices::lines()
    ))
}
