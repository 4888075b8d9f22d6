//! The short help, which fits a screen: the flags that most need, without lists of values.

use clap::Command;

/// Flags that only the long help shows, by their identifiers.
const RARE: &[&str] = &[
    "against_calibration",
    "ablate",
    "attention_blocks",
    "choose_on",
    "choose_tokens",
    "closest_within",
    "color",
    "confidence",
    "config",
    "convert",
    "drop_attention",
    "drop_experts",
    "drop_mtp",
    "experts",
    "experts_by",
    "gpu_layers",
    "hellaswag",
    "imatrix_out",
    "keep",
    "keep_experts",
    "keep_split",
    "heal_type",
    "max_memory",
    "max_ppl",
    "memory",
    "min_free",
    "mixed",
    "multiple_choice",
    "no_cache",
    "objective",
    "ollama",
    "pairs",
    "plan",
    "plan_only",
    "portable",
    "redo",
    "results",
    "rpc",
    "scratch",
    "seed",
    "split_max_size",
    "sub_blocks",
    "suffix",
    "task",
    "task_file",
    "tasks",
    "trust_any_cut",
    "verbose",
    "window",
];

/// Those that it shows of other commands than the main job, which has too many.
const RARE_IN_MAIN: &[&str] = &["effort", "tokens", "threads", "card", "imatrix", "force", "quiet"];

/// Flags whose help is too long for one line, and what is said in its place.
const IN_SHORT: &[(&str, &str)] = &[
    ("max_kl", "As many as keep the KL divergence within this"),
    ("requantize", "Also round what stays, such as to Q4_K_M"),
    ("target_size", "As few as bring the output to this size"),
];

/// Commands that only the long help shows.
const RARE_COMMANDS: &[&str] = &["cache", "completions", "man"];

/// What stands under the short help.
const MORE: &str = "All flags: --help. Pages on topics: gguf-shorten help";

/// The command with the help that `-h` shows, and so are its subcommands.
#[must_use]
pub fn short(command: Command) -> Command {
    let is_main = command.get_arguments().any(|arg| arg.get_id() == "layers");
    let command = command.mut_args(|arg| {
        let id = arg.get_id().as_str();
        let rare = RARE.contains(&id) || (is_main && RARE_IN_MAIN.contains(&id));
        // A line for each, all in one list: not what the values are, and no second sentence.
        let in_short =
            IN_SHORT.iter().find(|(long, _)| is_main && *long == id).map(|(_, help)| (*help).to_owned());
        let help = in_short.or_else(|| arg.get_help().map(|help| one_line(&help.to_string())));
        let arg = arg
            .hide_short_help(rare)
            .hide_possible_values(true)
            .hide_default_value(true)
            .help_heading(None::<&str>);
        match help {
            Some(help) => arg.help(help),
            None => arg,
        }
    });
    let about = command.get_about().map(|about| one_line(&about.to_string()));
    let is_rare = RARE_COMMANDS.contains(&command.get_name());
    let command = command.mut_subcommands(short).hide(is_rare).after_help(MORE);
    match about {
        Some(about) => command.about(about),
        None => command,
    }
}

/// Where a help text goes on beside the point.
const ENDS: &[&str] = &[
    " [default",
    ": ",
    "; ",
    ", such as",
    " such as ",
    ", of a",
    ", or a",
    ", or of",
    ", how far",
    ", and whether",
    ", repeatable",
    ", that of",
    ", both ends",
    " that can",
    " without the removed",
    " (",
];

/// The beginning of a help text, up to what is said beside it.
fn one_line(help: &str) -> String {
    let end = ENDS.iter().filter_map(|mark| help.find(mark)).min();
    help[..end.unwrap_or(help.len())].to_owned()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use clap::CommandFactory;

    use super::*;
    use crate::cli::args::Cli;

    #[test]
    fn help_fits_a_screen_of_40_lines() {
        let mut program = short(Cli::command()).term_width(80);
        program.build();
        let lines = |command: &mut Command| command.render_help().to_string().lines().count();
        assert!(lines(&mut program) <= 40, "{}", program.render_help());
        for command in program.get_subcommands_mut() {
            assert!(lines(command) <= 40, "{}", command.render_help());
        }
    }

    #[test]
    fn every_rare_flag_is_one() {
        let program = Cli::command();
        let ids = |command: &Command| {
            command.get_arguments().map(|arg| arg.get_id().to_string()).collect::<BTreeSet<_>>()
        };
        let known: BTreeSet<String> = program.get_subcommands().flat_map(ids).collect();
        for id in RARE {
            assert!(known.contains(*id), "{id}");
        }
    }
}
