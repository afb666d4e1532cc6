//! The command `kaleidoscope`.

use std::process::ExitCode;

use clap::Parser;
use toy_lang::{command, options::Options};

fn main() -> ExitCode {
    command::run(&Options::parse())
}
