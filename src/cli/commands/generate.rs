//! `completions` and `man`: made from the definitions of the command line.

use anyhow::Result;
use clap::{CommandFactory, ValueHint};

use super::{devices, to_stdout};
use crate::cli::args::Cli;

/// Commands whose words are models.
const OF_MODELS: [&str; 8] = ["shorten", "score", "show", "verify", "eval", "compare", "fit", "batch"];

/// What bash proposes for a model: folders, and files by their ending.
const BASH_MODELS: &str = r#"
_gguf_shorten_models() {
    compopt -o filenames 2>/dev/null
    local IFS=$'\n'
    COMPREPLY=( $(compgen -d -- "$1") $(compgen -f -X '!*.gguf' -- "$1") )
}
"#;

/// Prints a completion script.
///
/// # Errors
/// Those of stdout.
pub fn completions(shell: clap_complete::Shell) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut hinted(Cli::command()), "gguf-shorten", &mut script);
    let script = String::from_utf8(script)?;
    to_stdout(&match shell {
        clap_complete::Shell::Bash => bash(&script),
        clap_complete::Shell::Zsh => zsh(&script),
        clap_complete::Shell::Fish => fish(&script),
        _ => script,
    })
}

/// The command, whose values that are no paths are said not to be: numbers, sizes, lists of blocks.
fn hinted(command: clap::Command) -> clap::Command {
    let command = command.mut_args(|arg| match arg.get_value_hint() {
        ValueHint::Unknown => arg.value_hint(ValueHint::Other),
        _ => arg,
    });
    command.mut_subcommands(hinted)
}

/// The script for bash, with models by their ending.
fn bash(script: &str) -> String {
    // Else nothing is completed after a command (https://github.com/clap-rs/clap/issues/6421).
    let script = script.replace("gguf__subcmd__shorten", "gguf__shorten");
    let script = script.replace(
        "--parent)\n                    COMPREPLY=($(compgen -f \"${cur}\"))",
        "--parent)\n                    _gguf_shorten_models \"${cur}\"",
    );
    const WORDS: &str = "esac\n            COMPREPLY=( $(compgen -W \"${opts}\" -- \"${cur}\") )";
    // After a command flags are proposed alone, though a model may follow.
    const FIRST: &str = " || ${COMP_CWORD} -eq 2 ]]";
    const MODELS: &str = "esac\n            _gguf_shorten_models \"${cur}\"";
    let is_of_models = |label: &str| {
        label == "gguf__shorten"
            || OF_MODELS.iter().any(|command| label == format!("gguf__shorten__subcmd__{command}"))
    };
    // A case for each command, which begins with its label.
    let mut text = String::new();
    for (i, case) in script.split("\n        gguf__").enumerate() {
        let label = case.split_once(')').map_or("", |(label, _)| label);
        match i {
            0 => text += case,
            _ if is_of_models(&format!("gguf__{label}")) => {
                text +=
                    &format!("\n        gguf__{}", case.replacen(WORDS, MODELS, 1).replacen(FIRST, " ]]", 1))
            }
            _ => text += &format!("\n        gguf__{case}"),
        }
    }
    format!("{}{text}", BASH_MODELS.trim_start())
}

/// What zsh proposes first: a command, or a model for the main job.
const ZSH_FIRST: &str = r#"(( $+functions[_gguf-shorten_first] )) ||
_gguf-shorten_first() {
    _alternative 'commands: :_gguf-shorten_commands' 'models:model:_files -g "*.gguf"'
}
"#;

/// What zsh takes the first word for: what is no command is a model, after which come the words of the main job.
const ZSH_COMMAND: &str = r#"        local command=$line[1]
        (( $+functions[_gguf-shorten__subcmd__${command}_commands] )) || command=shorten
        case $command in
"#;

/// The script for zsh, with models by their ending.
fn zsh(script: &str) -> String {
    const MODELS: [&str; 5] =
        ["'*:model ", "'*:models ", "'*:output -- The shortened", "'*:paths ", "'--parent=["];
    let line = |line: &str| {
        // With two colons zsh takes all that follows for more of the same, values of flags too.
        let line = line.replacen("'*::", "'*:", usize::from(line.starts_with("'*::")));
        match MODELS.iter().any(|start| line.starts_with(start)) {
            true => line.replacen(":_files'", ":_files -g \"*.gguf\"'", 1),
            false => line,
        }
    };
    // As it is made, the first word is a model and the second a command, so that nothing is completed after a command.
    let lines = script.lines().filter(|line| !line.starts_with("':model -- "));
    let script: String = lines.map(|text| line(text) + "\n").collect();
    script
        .replacen("\":: :_gguf-shorten_commands\"", "\":: :_gguf-shorten_first\"", 1)
        .replace("$line[2]", "$line[1]")
        .replacen("        case $line[1] in\n", ZSH_COMMAND, 1)
        .replacen(
            "(( $+functions[_gguf-shorten_commands] ))",
            &format!("{ZSH_FIRST}(( $+functions[_gguf-shorten_commands] ))"),
            1,
        )
}

/// The script for fish, with models by their ending.
fn fish(script: &str) -> String {
    const MODELS: &str = "-k -xa \"(__fish_complete_suffix .gguf)\"";
    let line = |line: &str| match line.contains(" -l parent ") {
        true => line.replacen(" -r -F", &format!(" {MODELS}"), 1),
        false => line.to_owned(),
    };
    let mut text: String = script.lines().map(|text| line(text) + "\n").collect();
    let commands = OF_MODELS.join(" ");
    text += &format!("complete -c gguf-shorten -n \"__fish_seen_subcommand_from {commands}\" {MODELS}\n");
    text
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
