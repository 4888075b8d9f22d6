//! Pages of help and the README, held against the program's own flags.

use std::collections::{BTreeMap, BTreeSet};

use clap::{Arg, CommandFactory};
use gguf_shorten::cli::args::Cli;
use gguf_shorten::cli::help::{PAGES, Page};

use crate::make::Make;
use crate::util::Dir;

const README: &str = include_str!("../../README.md");

/// The pages whose tables together have every flag of a command.
const TABLES: &[(&str, &[&str])] = &[
    ("shorten", &["choosing", "healing"]),
    ("score", &["sureness", "choosing"]),
    ("eval", &["eval"]),
    ("compare", &["compare"]),
    ("fit", &["fit"]),
    ("batch", &["batch", "choosing", "healing"]),
];

/// Flags of other programs that the pages name.
const FOREIGN: &[&str] =
    &["release", "no-deps", "open", "doc", "features", "array", "cpus-per-task", "host", "port", "chunks"];

/// The flags of each command, by their long names.
fn commands() -> BTreeMap<String, BTreeMap<String, Arg>> {
    let mut program = Cli::command();
    program.build();
    let flags = |command: &clap::Command| {
        let named = command.get_arguments().filter_map(|arg| Some((arg.get_long()?.to_owned(), arg.clone())));
        named.collect()
    };
    let with_own = |command: &clap::Command| {
        let inner = command.get_subcommands().map(|inner| (inner.get_name().to_owned(), flags(inner)));
        inner.chain([(command.get_name().to_owned(), flags(command))]).collect::<Vec<_>>()
    };
    program.get_subcommands().flat_map(with_own).chain([(String::new(), flags(&program))]).collect()
}

/// The long flags that a text names, in order.
fn flags_in(text: &str) -> Vec<String> {
    let is_of_name = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let starts = text.match_indices("--").filter(|(at, _)| {
        let before = text[..*at].chars().next_back();
        before.is_none_or(|c| !c.is_alphanumeric() && c != '-')
            && text[at + 2..].starts_with(|c: char| c.is_ascii_lowercase())
    });
    let name = |at: usize| text[at + 2..].split(|c| !is_of_name(c)).next().unwrap_or_default();
    starts.map(|(at, _)| name(at).trim_end_matches('-').to_owned()).collect()
}

/// The rows of the tables of flags of a page.
fn rows(topic: &str) -> impl Iterator<Item = &'static str> {
    let mut lines = Page::find(topic).unwrap().text.lines().peekable();
    let mut in_table = false;
    std::iter::from_fn(move || {
        loop {
            let line = lines.next()?;
            in_table = line == "| flag | meaning |" || in_table && line.starts_with('|');
            if in_table && line.starts_with("| `") {
                return Some(line);
            }
        }
    })
}

#[test]
fn every_flag_that_a_page_names_is_known() {
    let commands = commands();
    let known: BTreeSet<&str> = commands.values().flat_map(BTreeMap::keys).map(String::as_str).collect();
    let texts = PAGES.iter().map(|page| (page.topic, page.text)).chain([("README", README)]);
    let (mut unknown, mut foreign) = (Vec::new(), BTreeSet::new());
    for (topic, text) in texts {
        for flag in flags_in(text).into_iter().filter(|flag| !known.contains(flag.as_str())) {
            match FOREIGN.contains(&flag.as_str()) {
                true => drop(foreign.insert(flag)),
                false => unknown.push(format!("{topic}: --{flag}")),
            }
        }
    }
    assert!(unknown.is_empty(), "{unknown:?}");
    assert_eq!(foreign, FOREIGN.iter().map(|flag| (*flag).to_owned()).collect());
}

#[test]
fn every_flag_of_a_command_is_in_the_tables_of_its_pages() {
    let commands = commands();
    let mut missing = Vec::new();
    for (command, topics) in TABLES {
        let shown: BTreeSet<_> = topics.iter().flat_map(|topic| rows(topic)).flat_map(flags_in).collect();
        let flags = commands[*command].keys().filter(|flag| *flag != "help" && !shown.contains(*flag));
        missing.extend(flags.map(|flag| format!("{command} --{flag}")));
    }
    assert!(missing.is_empty(), "{missing:?}");
    let without_table = PAGES.iter().filter(|page| commands.contains_key(page.topic));
    for page in without_table.filter(|page| !TABLES.iter().any(|(command, _)| *command == page.topic)) {
        assert_eq!(rows(page.topic).count(), 0, "{}", page.topic);
    }
}

/// The defaults in the help of a flag: numbers and words.
fn defaults(arg: &Arg) -> Vec<String> {
    let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
    let in_help = help.split_once("[default: ").map(|(_, rest)| rest.trim_end_matches(']').to_owned());
    let words = in_help.iter().flat_map(|text| text.split([',', ';', ' ']));
    let words = words.map(str::to_owned).filter(|word| !word.is_empty());
    words.chain(arg.get_default_values().iter().map(|value| value.to_str().unwrap().to_owned())).collect()
}

#[test]
fn defaults_in_tables_are_those_of_the_program() {
    let commands = commands();
    let mut n_checked = 0;
    for (command, topics) in TABLES {
        for row in topics.iter().flat_map(|topic| rows(topic)) {
            let (head, meaning) = row.split_once(" | ").unwrap();
            let args = flags_in(head).into_iter().filter_map(|flag| commands[*command].get(&flag));
            let args: Vec<_> = args.collect();
            if args.is_empty() {
                continue;
            }
            let expected: Vec<String> = args.into_iter().flat_map(defaults).collect();
            // `--method bi | ... (the default)`, `(8,192)`, `(`kl`; ...)`, `default: ..., 8,192 tokens`.
            let mut given: Vec<String> = Vec::new();
            if meaning.contains("the default)") && !meaning.contains("(the default)`,") {
                given.extend(
                    head.split('`').nth(1).and_then(|flag| flag.split(' ').nth(1)).map(str::to_owned),
                );
            }
            let bracketed = meaning.split('(').skip(1).filter_map(|rest| rest.split([')', ';']).next());
            let number = |text: &str| text.replace(',', "").parse::<u64>().ok().map(|n| n.to_string());
            given.extend(bracketed.clone().filter_map(number));
            given.extend(bracketed.filter_map(|text| {
                let word = text.strip_prefix('`')?.strip_suffix('`')?;
                word.chars().all(|c| c.is_ascii_lowercase()).then(|| word.to_owned())
            }));
            for value in given.into_iter().filter(|value| value != "TYPE") {
                assert!(expected.contains(&value), "{command}: {row}: {value} of {expected:?}");
                n_checked += 1;
            }
        }
    }
    assert!(n_checked >= 12, "{n_checked}");
}

#[test]
fn help_lists_every_command_and_every_topic() {
    let dir = Dir::new();
    let output = dir.run("help").succeeds();
    let lines: Vec<_> = output.stdout.lines().map(str::trim).collect();
    let is_listed = |name: &str, about: &str| {
        lines.iter().any(|line| line.strip_prefix(name).is_some_and(|rest| rest.trim().starts_with(about)))
    };
    for page in PAGES {
        output.check(is_listed(page.topic, page.title()), page.topic);
    }
    for command in Cli::command().get_subcommands() {
        output.check(is_listed(command.get_name(), ""), command.get_name());
    }
}

#[test]
fn what_was_probably_meant_is_said() {
    let dir = Make::new("llama", 3).dir();
    for (arguments, message, hint) in [
        ("scroe m.gguf", "'scroe' is neither a command nor a file", "did you mean 'gguf-shorten score'?"),
        (
            "verfy m.gguf --parent m.gguf",
            "'verfy' is neither a command nor a file",
            "did you mean 'gguf-shorten verify'?",
        ),
        ("score m.gguf --tokns 3", "unexpected argument '--tokns' found", "did you mean '--tokens'?"),
        ("m.gguf --dropp 1 -o out", "unexpected argument '--dropp' found", "did you mean '--drop'?"),
        ("m.gguf --zzz", "unexpected argument '--zzz' found", "gguf-shorten --help lists the arguments"),
        (
            "fit m.gguf --zzz",
            "unexpected argument '--zzz' found",
            "gguf-shorten fit --help lists the arguments",
        ),
    ] {
        let output = dir.run(arguments).fails(2, message);
        assert_eq!(output.hint(), Some(hint), "{arguments}");
    }
    // A file may have any name.
    std::fs::copy(dir.path("m.gguf"), dir.path("scroe")).unwrap();
    let output = dir.run("scroe").output();
    assert_eq!(output.status.code(), Some(2));
    assert!(
        output.stderr.starts_with("model    scroe: llama") && output.stderr.contains("--drop"),
        "{}",
        output.stderr
    );
    dir.run("scroe --blocks 1 --dry-run").succeeds();
}
