//! The command `orcane`: runs CLIF files.

mod clif_file;
mod clif_module;
mod clif_test;

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};
use clif_test::Outcome;
use orcane::{Jit, OptLevel};

/// Orcane, an on-request-compilation JIT.
#[derive(Parser)]
#[command(version)]
struct Options {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Compiles the functions of a CLIF file that one of them needs, calls it, and prints what it returns
    Run {
        /// A file of CLIF functions named `%name`; they may call each other and the functions of the C library
        file: PathBuf,
        /// The function to call
        #[arg(long, default_value = "main")]
        entry: String,
        /// How hard Cranelift tries
        #[arg(short = 'O', long, default_value = "speed")]
        opt_level: Level,
        /// Threads that compile; 0 compiles on the thread that needs the code
        #[arg(long, default_value_t = 0)]
        threads: usize,
        /// The function's arguments: integers, or numbers with a point for floats
        #[arg(allow_negative_numbers = true)]
        arguments: Vec<String>,
    },
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

#[derive(Clone, Copy, ValueEnum)]
enum Level {
    None,
    Speed,
}

/// What a command may fail with.
pub(crate) type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> ExitCode {
    let result = match Options::parse().command {
        Command::Run { file, entry, opt_level, threads, arguments } => {
            run(&file, &entry, opt_level, threads, &arguments)
        }
        Command::ClifTest { files } => clif_test(&files),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("orcane: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(file: &Path, entry: &str, opt_level: Level, threads: usize, arguments: &[String]) -> Result<ExitCode> {
    let level = match opt_level {
        Level::None => OptLevel::None,
        Level::Speed => OptLevel::Speed,
    };
    let jit = Jit::builder().opt_level(level).verifier(true).compile_threads(threads).build()?;
    clif_file::run(&jit, file, entry, arguments)?.iter().for_each(|result| println!("{result}"));
    Ok(ExitCode::SUCCESS)
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
