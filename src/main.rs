//! Parses arguments, runs one command, prints one error, chooses the exit status.

use std::process::ExitCode;

use clap::Parser;
use gguf_shorten::cli::{Cli, Command};
use gguf_shorten::options::Shorten;
use gguf_shorten::{commands, error, save};

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    // An interrupt ends the process; all that there is to undo is a file that is half written.
    let handler = ctrlc::set_handler(|| {
        save::remove_unfinished();
        eprintln!("\ngguf-shorten: interrupted; nothing was written");
        std::process::exit(130);
    });
    match handler.map_err(Into::into).and_then(|()| run(&cli)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("gguf-shorten: {}", error::message(&failure));
            if let Some(hint) = error::hint(&failure) {
                eprintln!("hint: {hint}");
            }
            ExitCode::from(if failure.is::<error::Usage>() { 2 } else { 1 })
        }
    }
}

fn run(cli: &Cli) -> anyhow::Result<()> {
    if cli.version {
        return commands::generate::version();
    }
    match &cli.command {
        None => commands::shorten::run(&Shorten::new(&cli.shorten)?),
        Some(Command::Shorten(args)) => commands::shorten::run(&Shorten::new(args)?),
        Some(Command::Score(args)) => commands::score::run(args),
        Some(Command::Show(args)) => commands::show::run(args),
        Some(Command::Completions { shell }) => commands::generate::completions(*shell),
        Some(Command::Man) => commands::generate::man(),
    }
}

/// Prints help to stdout, or what is wrong with the arguments on one line.
fn usage(error: &clap::Error) -> ExitCode {
    if !error.use_stderr() {
        // Help goes to a pipe that may be closed already.
        let _ = error.print();
        return ExitCode::SUCCESS;
    }
    let text = error.render().to_string();
    let message: Vec<&str> = text
        .lines()
        .take_while(|line| !line.is_empty())
        .map(str::trim)
        .collect();
    let message = message.join(" ");
    eprintln!(
        "gguf-shorten: {}",
        message.strip_prefix("error: ").unwrap_or(&message)
    );
    eprintln!("hint: gguf-shorten --help lists the arguments");
    ExitCode::from(2)
}
