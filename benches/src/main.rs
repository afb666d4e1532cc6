//! Measures Orcane beside cranelift-jit and LLVM's ORC.
//!
//! ```sh
//! scripts/bench            # everything; takes some minutes
//! scripts/bench exact      # instructions and memory, which don't depend on what else the machine does
//! ```
//!
//! Each measurement is a process of its own. What is compared is measured in turns, in one run.
//! The exit status tells whether instructions and memory keep within their bars; times are
//! reported only.

mod bars;
mod functions;
mod measure;
mod subject;

use std::error::Error;
use std::process::ExitCode;

use bars::Bar;
use measure::{CHILD, CHILD_WITH_MEMORY, Run};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const COUNT: usize = 10_000;

fn main() -> Result<ExitCode> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let exact_only = match arguments.first().map(String::as_str) {
        Some(mode @ (CHILD | CHILD_WITH_MEMORY)) => {
            println!("{}", Run::from_arguments(&arguments[1..])?.report(mode)?);
            return Ok(ExitCode::SUCCESS);
        }
        Some("exact") => true,
        None => false,
        Some(other) => return Err(format!("unknown argument {other}").into()),
    };
    let exact = bars::exact(COUNT)?;
    print(&exact);
    if !exact_only {
        print(&bars::timed(COUNT)?);
    }
    Ok(if exact.iter().all(Bar::is_met) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn print(bars: &[Bar]) {
    for bar in bars {
        println!("{bar}");
    }
}
