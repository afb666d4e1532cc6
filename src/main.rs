//! The command `orcane`: links objects and CLIF files, and runs them.

mod run;

use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

/// What a shell says when a program can't be run.
const NOT_RUN: u8 = 127;

/// Orcane, an on-request-compilation JIT.
#[derive(Parser)]
#[command(version)]
struct Options {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Run(run::Run),
}

fn main() -> ExitCode {
    let matches = Options::command().get_matches();
    let options = Options::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    // There is one, or the command line would have been refused.
    let subcommand = matches.subcommand().map(|(_, matches)| matches).unwrap_or(&matches);
    let error = match options.command {
        Command::Run(options) => run::run(&options, subcommand),
    };
    eprintln!("orcane: {error}");
    ExitCode::from(NOT_RUN)
}
