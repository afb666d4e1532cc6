//! Measures Orcane beside cranelift-jit and LLVM's ORC.
//!
//! ```sh
//! scripts/bench            # everything; takes some minutes
//! scripts/bench exact      # instructions and memory, which don't depend on what else the machine does
//! scripts/bench report     # everything, written to benches/REPORT.md; takes half an hour of a quiet machine
//! scripts/bench report link lazy   # only these sections anew, the others as they were measured last
//! scripts/bench report --small FOLDER   # the same at small sizes, to see that it works
//! scripts/bench run-time   # what the compiled code takes, beside cranelift-jit and LLVM 22
//! scripts/bench link       # linking, beside LLVM 22's JITLink
//! scripts/bench instructions   # of workloads, against benches/benches/instructions.rs
//! scripts/bench llvm       # beside LLVM 22, which is linked as a shared library
//! ```
//!
//! Each measurement is a process of its own. What is compared is measured in turns, in one run.
//! The exit status tells whether instructions and memory keep within their bars; times are
//! reported only.

mod bars;
mod beside_llvm;
mod linking;
mod measure;
mod report;
mod run_time;
mod sizes;
mod subject;

use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use bars::Bar;
use measure::Run;
use report::{Report, Saved};
use workloads::Result;
use workloads::child::is_child;
use workloads::link;
use workloads::quality::QUALITY;

const COUNT: usize = 10_000;
/// What sizes are divided by to see that a report can be written.
const SMALL: usize = 100;

fn main() -> Result<ExitCode> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [mode, ..] if is_child(mode) => {
            println!("{}", Run::from_arguments(&arguments[1..])?.report(mode)?);
            Ok(ExitCode::SUCCESS)
        }
        [beside_llvm::TABLE, count] => {
            println!("{}", beside_llvm::report_table(count.parse()?)?);
            Ok(ExitCode::SUCCESS)
        }
        _ if link::is_link(&arguments) => {
            println!("{}", linking::child(&arguments)?);
            Ok(ExitCode::SUCCESS)
        }
        [QUALITY, program, generator] => {
            println!("{}", run_time::run(program, generator)?);
            Ok(ExitCode::SUCCESS)
        }
        [] => {
            let exact = exact()?;
            print(&bars::timed(COUNT)?);
            beside_llvm()?;
            print(&linking::measure()?);
            Ok(exact)
        }
        ["exact"] => exact(),
        ["link"] => {
            print(&linking::measure()?);
            Ok(ExitCode::SUCCESS)
        }
        ["llvm"] => {
            beside_llvm()?;
            Ok(ExitCode::SUCCESS)
        }
        ["report", "--small", folder] => report(SMALL, Path::new(folder), &[]),
        ["report", ref sections @ ..] => report(1, Path::new(env!("CARGO_MANIFEST_DIR")), sections),
        ["run-time"] => {
            print(&run_time::bars(&run_time::all()?));
            Ok(ExitCode::SUCCESS)
        }
        _ => Err(format!("unknown arguments {arguments:?}").into()),
    }
}

/// A part of the report: its name on the command line, its title, and how it is measured.
type Section<'a> = (&'static str, &'static str, &'a dyn Fn() -> Result<Vec<Bar>>);

/// Measures the sections of these names, or all, at sizes divided by `scale`, and writes the report: with what was
/// measured before, where a section is not measured now.
fn report(scale: usize, folder: &Path, names: &[&str]) -> Result<ExitCode> {
    const RUN_TIME: &str = "run-time";
    let count = COUNT / scale;
    let measured: [Section<'_>; 9] = [
        ("exact", "Instructions and memory", &|| bars::exact(count)),
        ("graphs", "Units that need each other", &beside_llvm::graphs),
        ("cranelift-jit", "Beside cranelift-jit, and cold start", &|| bars::timed(count)),
        ("compilation", report::COMPILATION, &|| beside_llvm::compilation(scale)),
        ("sizes", report::SIZES, &|| sizes::eager(scale)),
        ("lazy", report::LAZY, &sizes::lazy),
        ("held", "Memory of what is linked", &beside_llvm::held),
        ("link", report::LINKING, &linking::measure),
        ("symbols", report::SYMBOLS, &beside_llvm::symbols),
    ];
    let known = |name: &&str| *name == RUN_TIME || measured.iter().any(|(known, ..)| known == name);
    if let Some(unknown) = names.iter().find(|name| !known(name)) {
        return Err(format!("the report has no section {unknown}").into());
    }
    let asked = |name| names.is_empty() || names.contains(&name);
    let saved = Saved::beside(std::env::current_exe()?, scale)?;
    for (name, title, measure) in measured.iter().filter(|(name, ..)| asked(name)) {
        let start = Instant::now();
        let bars = measure()?;
        eprintln!("{title}: measured in {} s", start.elapsed().as_secs());
        print(&bars);
        saved.write(name, bars.iter().map(Bar::to_line))?;
    }
    if asked(RUN_TIME) {
        let rows = run_time::all()?;
        print(&run_time::bars(&rows));
        saved.write(RUN_TIME, rows.iter().map(run_time::Row::to_line))?;
    }
    let measured_on = |name, title, bars| Ok(report::Section { title, date: saved.date(name)?, bars });
    let sections = measured.iter().map(|(name, title, _)| measured_on(name, *title, saved.read(name, Bar::from_line)?));
    let mut sections = sections.collect::<Result<Vec<_>>>()?;
    let run_times = saved.read(RUN_TIME, run_time::Row::from_line)?;
    sections.push(measured_on(RUN_TIME, "Run time of compiled code", run_time::bars(&run_times))?);
    Report { sections, run_times }.write(folder)?;
    Ok(ExitCode::SUCCESS)
}

fn exact() -> Result<ExitCode> {
    let mut all_met = true;
    for measure in [|| bars::exact(COUNT), beside_llvm::graphs] {
        let bars = measure()?;
        print(&bars);
        all_met &= bars.iter().all(Bar::is_met);
    }
    Ok(if all_met { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn beside_llvm() -> Result<()> {
    print(&beside_llvm::compilation(1)?);
    print(&beside_llvm::symbols()?);
    print(&run_time::bars(&run_time::all()?));
    Ok(())
}

fn print(bars: &[Bar]) {
    for bar in bars {
        println!("{bar}");
    }
}
