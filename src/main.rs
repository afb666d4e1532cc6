//! The command `orcane`: links objects and CLIF files, and runs them.

mod clif_module;
mod clif_test;
mod link_command;
mod run;

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use clif_test::Outcome;

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
    /// Prints the link graphs of object files
    Inspect {
        /// The objects
        #[arg(required = true)]
        files: Vec<PathBuf>,
    },
    /// Links objects at an address without running them
    Link(link_command::LinkOptions),
    /// Runs files that are written as Cranelift's own tests: `test run`, functions, `; run:` and `; print:` lines
    ///
    /// Each is run eagerly and lazily, with each of its targets that this host is. Files without `test run` and files
    /// for other targets are skipped.
    ClifTest {
        /// The files
        #[arg(required = true)]
        files: Vec<PathBuf>,
    },
}

/// What a command may fail with.
pub(crate) type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> ExitCode {
    let matches = Options::command().get_matches();
    let options = Options::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    // There is one, or the command line would have been refused.
    let subcommand = matches.subcommand().map_or(&matches, |(_, matches)| matches);
    let (result, failure) = match options.command {
        Command::Run(options) => (Err(run::run(&options, subcommand)), ExitCode::from(NOT_RUN)),
        Command::Inspect { files } => (link_command::inspect(&files), ExitCode::FAILURE),
        Command::Link(options) => (link_command::link(&options), ExitCode::from(NOT_RUN)),
        Command::ClifTest { files } => (clif_test(&files), ExitCode::FAILURE),
    };
    result.unwrap_or_else(|error| {
        eprintln!("orcane: {error}");
        failure
    })
}

/// Runs all files, also after one has failed.
fn clif_test(files: &[PathBuf]) -> Result<ExitCode> {
    let mut failed = 0;
    for file in files {
        match clif_test::run(file) {
            Ok(Outcome::Passed(commands)) => println!("{}: passed, {commands} commands", file.display()),
            Ok(Outcome::Skipped(reason)) => println!("{}: skipped, {reason}", file.display()),
            Err(error) => {
                failed += 1;
                println!("{}: FAILED: {error}", file.display());
            }
        }
    }
    if failed == 0 { Ok(ExitCode::SUCCESS) } else { Err(format!("{failed} of {} files failed", files.len()).into()) }
}
