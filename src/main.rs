//! The command `orcane`: runs CLIF files.

mod clif_file;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};
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
}

#[derive(Clone, Copy, ValueEnum)]
enum Level {
    None,
    Speed,
}

fn main() -> ExitCode {
    let Options { command: Command::Run { file, entry, opt_level, threads, arguments } } = Options::parse();
    let level = match opt_level {
        Level::None => OptLevel::None,
        Level::Speed => OptLevel::Speed,
    };
    let jit = Jit::builder().opt_level(level).verifier(true).compile_threads(threads).build();
    let results = jit.map_err(Into::into).and_then(|jit| clif_file::run(&jit, &file, &entry, &arguments));
    match results {
        Ok(results) => {
            results.iter().for_each(|result| println!("{result}"));
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("orcane: {error}");
            ExitCode::FAILURE
        }
    }
}
