//! Manners: help that fits a screen, tables that fit a narrow one, colour where it is wanted, a model alone on the command line,
//! completions that a shell takes.

use std::process::Command;

use crate::make::Make;
use crate::util::Dir;

#[test]
fn short_help_fits_a_screen_and_long_help_has_all_in_groups() {
    let dir = Dir::new();
    for command in ["", "shorten", "score", "show", "verify", "eval", "compare", "fit", "batch", "report"] {
        let short = dir.run(&format!("{command} -h")).succeeds();
        short.check(short.stdout.lines().count() <= 40, "at most 40 lines");
        short.check(short.stdout.contains("All flags: --help"), "where all are");
    }
    let long = dir.run("--help").succeeds();
    let short = dir.run("-h").succeeds();
    for group in [
        "What is removed:",
        "How it is chosen:",
        "Healing:",
        "Safety:",
        "Files:",
        "Goals and search:",
        "Calibration:",
        "Output:",
    ] {
        assert!(long.stdout.contains(&format!("\n{group}\n")), "{group}");
    }
    for flag in ["--drop", "--blocks", "--layers", "--output", "--heal", "--json"] {
        assert!(short.stdout.contains(flag), "{flag}");
    }
    assert!(!short.stdout.contains("--experts-by") && long.stdout.contains("--experts-by"));
    // Without a word: the short one, as a fault.
    let none = dir.run("").output();
    assert_eq!(none.status.code(), Some(2));
    assert!(none.stderr.lines().count() <= 40, "{}", none.stderr);
}

#[test]
fn a_model_alone_is_shown_with_what_to_try_and_fails() {
    let dir = Make::new("llama", 16).dir();
    let output = dir.run("m.gguf").output();
    output
        .check(output.status.code() == Some(2) && output.stdout.is_empty(), "status 2 and nothing on stdout");
    output.check_untouched();
    let last = output.stderr.lines().last().unwrap();
    assert_eq!(last, "gguf-shorten: nothing is removed: --drop says how many blocks go, --blocks which");
    for line in [
        "model    m.gguf: llama, 16 blocks, ",
        "  16 of 16 blocks may be removed\n",
        "  gguf-shorten score m.gguf\n",
        "  gguf-shorten m.gguf --drop 2 -o m-drop2.gguf\n",
        "  gguf-shorten compare m.gguf --drop 1..2 --requantize Q6_K,Q4_K_M\n",
    ] {
        output.check(output.stderr.contains(line), line);
    }
    // What it proposes is a command.
    dir.run("m.gguf --blocks 3 -o m-drop1.gguf").succeeds();
    // Where some must stay, it says why; where none may go, it proposes something else.
    std::fs::rename(dir.path("m.gguf"), dir.path("my m.gguf")).unwrap();
    let output = dir.run_with(["my m.gguf"]).output();
    assert!(output.stderr.contains("gguf-shorten score 'my m.gguf'\n"), "{}", output.stderr);
    let dir = Make::new("unheard-of", 4).dir();
    let output = dir.run("m.gguf").output();
    assert_eq!(output.status.code(), Some(2));
    assert!(output.stderr.contains("  gguf-shorten help architectures\n"), "{}", output.stderr);
    // What is no model is said.
    dir.write("x.gguf", b"GGUX");
    dir.run("x.gguf").fails(1, "x.gguf: ");
    dir.run("none.gguf").fails(2, "--drop");
}

#[test]
fn colour_is_where_it_is_wanted() {
    let dir = Make::new("llama", 4).dir();
    let plain = dir.run("m.gguf --zzz").output();
    assert!(!plain.stderr.contains('\u{1b}'), "{}", plain.stderr);
    let always = dir.run("score m.gguf --zzz --color always").output();
    assert!(always.stderr.contains("\u{1b}["), "{:?}", always.stderr);
    let never = dir.run("score m.gguf --zzz --color=never").output();
    assert!(!never.stderr.contains('\u{1b}'));
    let help = dir.run("score --color always --help").succeeds();
    assert!(help.stdout.contains("\u{1b}["));
    dir.run("score m.gguf --color sometimes").fails(2, "invalid value 'sometimes'");
}

#[test]
fn a_terminal_without_colours_gets_none() {
    let has_script =
        Command::new("script").arg("--version").output().is_ok_and(|output| output.status.success());
    if !has_script {
        return;
    }
    let dir = Dir::new();
    let of = |term: &str| {
        let line = "script -qc \"$PROGRAM score none.gguf\" /dev/null </dev/null";
        dir.sh(line).env("TERM", std::path::Path::new(term)).output().stdout
    };
    let [shown, plain] = ["xterm", "dumb"].map(of);
    assert!(shown.contains("none.gguf: ") && shown.contains("\u{1b}["), "{shown:?}");
    assert!(plain.contains("none.gguf: ") && !plain.contains('\u{1b}'), "{plain:?}");
}

/// What bash proposes for a line that ends with the word to complete; `None` without bash.
fn bash(dir: &Dir, words: &[&str]) -> Option<Vec<String>> {
    let has_bash = Command::new("bash").arg("--version").output().is_ok_and(|output| output.status.success());
    if !has_bash {
        return None;
    }
    let quoted: Vec<String> = words.iter().map(|word| format!("'{word}'")).collect();
    let line = format!(
        "source <($PROGRAM completions bash) && COMP_WORDS=({}) && COMP_CWORD={} && _gguf__shorten gguf-shorten '{}' '{}' 2>/dev/null && \
         printf '%s\\n' \"${{COMPREPLY[@]}}\"",
        quoted.join(" "),
        words.len() - 1,
        words[words.len() - 1],
        words[words.len() - 2],
    );
    let output = dir.sh("bash -c \"$LINE\"").env("LINE", std::path::Path::new(&line)).succeeds();
    let mut found: Vec<String> =
        output.stdout.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect();
    found.sort();
    Some(found)
}

#[test]
fn bash_completes_models_by_their_ending_and_no_files_for_numbers() {
    let dir = Make::new("llama", 2).dir();
    dir.write("text.txt", b"");
    std::fs::create_dir(dir.path("models")).unwrap();
    let of = |words: &[&str]| bash(&dir, words);
    let Some(models) = of(&["gguf-shorten", "score", ""]) else {
        return;
    };
    assert_eq!(models, ["m.gguf", "models"]);
    assert_eq!(of(&["gguf-shorten", "verify", "m.gguf", "--parent", ""]).unwrap(), ["m.gguf", "models"]);
    assert_eq!(
        of(&["gguf-shorten", "score", "m.gguf", "--calibration", ""]).unwrap(),
        ["m.gguf", "models", "text.txt"]
    );
    assert_eq!(of(&["gguf-shorten", "score", "m.gguf", "--drop", ""]).unwrap(), [""; 0]);
    let flags = of(&["gguf-shorten", "score", "--dro"]).unwrap();
    assert_eq!(flags, ["--drop"]);
    assert!(of(&["gguf-shorten", "score", "m.gguf", "--method", "b"]).unwrap().contains(&"bi".to_owned()));
}

#[test]
fn other_shells_know_the_ending_of_models_too() {
    let dir = Dir::new();
    let zsh = dir.run("completions zsh").succeeds();
    let of_models = zsh.stdout.lines().filter(|line| line.contains(":_files -g \"*.gguf\"'")).count();
    // The main job twice, six other commands with a model each, and the parents of three.
    zsh.check(of_models >= 11, "models by their ending");
    zsh.check(!zsh.stdout.contains(":_default"), "no file for a number");
    zsh.check(!zsh.stdout.contains("$line[2]"), "a command is the first word");
    zsh.check(!zsh.stdout.contains("\n':model -- "), "no model before a command");
    zsh.check(zsh.stdout.contains("\":: :_gguf-shorten_first\""), "a command or a model first");
    zsh.check(zsh.stdout.matches("_gguf-shorten_first() {").count() == 1, "what is proposed first");
    zsh.check(zsh.stdout.contains("case $command in\n            (shorten)"), "the words of a command");
    zsh.check(!zsh.stdout.contains("'*::"), "flags after a model");
    let fish = dir.run("completions fish").succeeds();
    fish.check(fish.stdout.contains("__fish_complete_suffix .gguf"), "models by their ending");
}
