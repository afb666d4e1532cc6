//! The command line.

use std::path::PathBuf;

use clap::{Parser, ValueEnum};

/// Runs Kaleidoscope programs, or compiles them ahead of time. Without a program, reads one line by line.
#[derive(Debug, Parser)]
#[command(name = "kaleidoscope", version)]
pub struct Options {
    /// Programs to run, one after the other; `-` is standard input.
    pub files: Vec<PathBuf>,

    /// A program in an argument, run after the files.
    #[arg(short = 'e', long = "eval", value_name = "EXPR", allow_hyphen_values = true)]
    pub expressions: Vec<String>,

    /// Write the compiled program instead of running it.
    #[arg(long, value_enum)]
    pub emit: Option<Emit>,

    /// Where to write it; `-` is standard output, the default for text. The default for an object is `NAME.o`.
    #[arg(short = 'o', long, value_name = "PATH", requires = "emit")]
    pub output: Option<PathBuf>,

    /// How hard the code generator tries: `speed` by default, and `none` for debuggers.
    #[arg(short = 'O', long = "optimise", value_enum, value_name = "LEVEL")]
    pub optimise: Option<Optimise>,

    /// Compile a function when it is first called.
    #[arg(long, conflicts_with = "eager")]
    pub lazy: bool,

    /// Compile a function quickly when it is first called, and again when it was called often.
    #[arg(long, conflicts_with_all = ["lazy", "eager"])]
    pub tiered: bool,

    /// Compile a function when it is defined: the default.
    #[arg(long)]
    pub eager: bool,

    /// Compile on so many threads of their own.
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u16).range(..=1024))]
    pub threads: u16,

    /// Tell debuggers of functions, lines and variables.
    #[arg(short = 'g', long)]
    pub debug: bool,

    /// Say on standard error what was compiled, and how long it took.
    #[arg(long)]
    pub stats: bool,
}

impl Options {
    /// How hard the code generator is to try.
    pub fn optimise(&self) -> Optimise {
        self.optimise.unwrap_or(if self.debug { Optimise::None } else { Optimise::Speed })
    }
}

/// What a program is compiled to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Emit {
    /// Cranelift's intermediate representation.
    Clif,
    /// LLVM's.
    LlvmIr,
    /// An object file.
    Obj,
}

/// How hard the code generator tries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Optimise {
    /// Compile fast.
    None,
    /// Generate fast code.
    Speed,
}

impl Optimise {
    /// Cranelift's word for it.
    pub fn flag(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Speed => "speed",
        }
    }
}
