//! Parses arguments, runs one command, prints one error, chooses the exit status.

use std::ffi::OsString;
use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::error::ErrorKind;
use gguf_shorten::cli::args::{Cli, Command};
use gguf_shorten::cli::colour::Kind;
use gguf_shorten::cli::options::{Compare, Eval, Fit, Score, Shorten, Verify};
use gguf_shorten::cli::usage::Fault;
use gguf_shorten::cli::{batch, commands};
use gguf_shorten::error;
use gguf_shorten::files::staged as commit;
use gguf_shorten::model::stores;

fn main() -> ExitCode {
    let words: Vec<OsString> = std::env::args_os().collect();
    let cli = match Cli::parsed(&words) {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    ggml::limits::report_file_size_limit();
    ggml::fault::install("gguf-shorten: ");
    // An interrupt ends the process; all that there is to undo is a file that is half written.
    let handler = ctrlc::set_handler(|| {
        // A batch stops its children, and ends by itself.
        if batch::child::stop_all() {
            return;
        }
        let output = commit::interrupt();
        // Off the line of a progress bar.
        let line = if std::io::stderr().is_terminal() { "\n" } else { "" };
        say(&format!("{line}gguf-shorten: interrupted; {output}"));
        ggml::fault::exit(130);
    });
    ggml::fault::install_interrupts();
    batch::child::watch_parent();
    match handler.map_err(Into::into).and_then(|()| run(&cli)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failed(&failure),
    }
}

/// Says what failed.
fn failed(failure: &anyhow::Error) -> ExitCode {
    say_fault(&error::message(failure), error::hint(failure).as_deref());
    ExitCode::from(match () {
        () if failure.is::<error::Usage>() => 2,
        () if failure.is::<error::Interrupted>() => 130,
        () => 1,
    })
}

fn run(cli: &Cli) -> anyhow::Result<()> {
    if cli.version {
        return commands::generate::version();
    }
    match &cli.command {
        None => commands::shorten::run(&Shorten::new(&cli.shorten)?),
        Some(Command::Shorten(args)) => commands::shorten::run(&Shorten::new(args)?),
        Some(Command::Score(args)) => commands::score::run(&Score::new(args)?),
        Some(Command::Show(args)) => commands::show::run(args),
        Some(Command::Verify(args)) => commands::verify::run(&Verify::new(args)?),
        Some(Command::Eval(args)) => commands::eval::run(&Eval::new(args)?),
        Some(Command::Compare(args)) => commands::compare::run(&Compare::new(args)?),
        Some(Command::Fit(args)) => commands::fit::run(&Fit::new(args)?),
        Some(Command::Batch(args)) => commands::batch::run(args),
        Some(Command::Report(args)) => commands::report::run(args),
        Some(Command::List(common)) => commands::list::run(common),
        Some(Command::Cache { command }) => commands::cache::run(command),
        Some(Command::Completions { shell }) => commands::generate::completions(*shell),
        Some(Command::Man) => commands::generate::man(),
        Some(Command::Help { words }) => commands::help::run(words),
    }
}

/// Prints help to stdout, or one line on wrong arguments.
fn usage(error: &clap::Error) -> ExitCode {
    if !error.use_stderr() {
        return match error.print() {
            Err(failure) if failure.kind() != std::io::ErrorKind::BrokenPipe => {
                failed(&anyhow::Error::new(failure).context("stdout"))
            }
            _ => ExitCode::SUCCESS,
        };
    }
    if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        // Nothing was asked for: here the help is the message.
        let _ = error.print();
        return ExitCode::from(2);
    }
    let words: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    if let ([model], ErrorKind::MissingRequiredArgument) = (&words[..], error.kind())
        && (model.exists() || stores::is_named(model))
        && let Err(failure) = commands::overview::run(model)
    {
        return failed(&failure);
    }
    let fault = Fault::new(error, &words);
    say_fault(&fault.message, Some(&fault.hint));
    ExitCode::from(2)
}

/// Says a fault and perhaps a remedy, a line for each.
fn say_fault(message: &str, hint: Option<&str>) {
    say(&format!("{} {message}", Kind::Error.paint("gguf-shorten:")));
    if let Some(hint) = hint {
        say(&format!("{} {hint}", Kind::Hint.paint("hint:")));
    }
}

/// Says a line on stderr. That nobody may read it any more changes nothing of what is done.
fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}
