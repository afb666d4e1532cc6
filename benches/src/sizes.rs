//! Eager compilation at several sizes, and what the program `lazy` measures.

use std::process::Command;

use orcane::OptLevel;
use workloads::llvm::{LlvmLevel, LlvmSubject};
use workloads::{median, ratio};

use crate::Result;
use crate::bars::Bar;
use crate::measure::{Run, in_turns};
use crate::subject::Subject;

const SIZES: [usize; 3] = [1_000, 5_000, 50_000];
/// The most rounds, and the functions that a subject compiles in all of them: at the greatest size, rounds are fewer.
const ROUNDS: usize = 15;
const FUNCTIONS: usize = 300_000;
/// LLVM takes milliseconds for one.
const OPTIMISED_FUNCTIONS: usize = 15_000;

fn rounds(subject: Subject, size: usize, scale: usize) -> usize {
    let is_slow = matches!(subject, Subject::Llvm(llvm) if llvm.level == LlvmLevel::O2);
    let functions = if is_slow { OPTIMISED_FUNCTIONS } else { FUNCTIONS };
    functions.div_ceil(size * scale).min(ROUNDS)
}

const fn llvm(level: LlvmLevel, threads: u32) -> Subject {
    // It compiles modules at a time, not functions.
    Subject::Llvm(LlvmSubject { level, module_a_function: threads > 0, threads })
}

const SUBJECTS: [(&str, Subject, OptLevel); 9] = [
    ("Orcane, none", Subject::Orcane(0), OptLevel::None),
    ("Orcane, none, two threads", Subject::Orcane(2), OptLevel::None),
    ("Orcane, speed", Subject::Orcane(0), OptLevel::Speed),
    ("Orcane, speed, two threads", Subject::Orcane(2), OptLevel::Speed),
    ("cranelift-jit, none", Subject::CraneliftJit, OptLevel::None),
    ("cranelift-jit, speed", Subject::CraneliftJit, OptLevel::Speed),
    ("LLVM O0", llvm(LlvmLevel::O0, 0), OptLevel::None),
    ("LLVM O0, two threads", llvm(LlvmLevel::O0, 2), OptLevel::None),
    ("LLVM O2", llvm(LlvmLevel::O2, 0), OptLevel::None),
];

/// Modules that LLVM takes at a time: of 50,000, it fails to materialize some.
const MOST_MODULES: usize = 5_000;

/// Whose time and memory are divided by whose, and what is promised of the memory.
const RATIOS: [(&str, &str, Option<f64>); 5] = [
    ("Orcane, none", "LLVM O0", Some(0.5)),
    ("Orcane, none, two threads", "LLVM O0, two threads", None),
    ("Orcane, none", "cranelift-jit, none", None),
    ("Orcane, speed", "cranelift-jit, speed", None),
    ("Orcane, speed", "LLVM O2", Some(0.5)),
];

/// Microseconds a function from nothing to addresses, the building of its IR included, and peak memory; sizes are divided
/// by `scale`.
pub(crate) fn eager(scale: usize) -> Result<Vec<Bar>> {
    let mut bars = Vec::new();
    let nothing =
        |subject| -> Result<f64> { Ok(Run { subject, level: OptLevel::None, count: 0 }.peak_memory()? as f64 / 1e6) };
    let (nothing, llvm_nothing) = (nothing(Subject::Nothing)?, nothing(Subject::LlvmNothing)?);
    for size in SIZES.map(|size| size / scale) {
        let is_measured =
            |subject| size <= MOST_MODULES || !matches!(subject, Subject::Llvm(llvm) if llvm.module_a_function);
        let subjects: Vec<_> = SUBJECTS.into_iter().filter(|(_, subject, _)| is_measured(*subject)).collect();
        let run = |subject, level| Run { subject, level, count: size };
        let measurements = subjects.iter().map(|&(_, subject, level)| {
            let measure = move || Ok(run(subject, level).times()?.total.as_secs_f64() * 1e6 / size as f64);
            (rounds(subject, size, scale), measure)
        });
        let times = in_turns(&measurements.collect::<Vec<_>>())?;
        let mut figures = Vec::new();
        for ((who, subject, level), times) in subjects.into_iter().zip(times) {
            let process = if matches!(subject, Subject::Llvm(_)) { llvm_nothing } else { nothing };
            let memory = run(subject, level).peak_memory()? as f64 / 1e6 - process;
            let time = median(times.iter().copied());
            bars.push(Bar::reported(format!("{size} functions, {who}: us a function"), time));
            bars.push(Bar::reported(format!("{size} functions, {who}: peak MB above an empty process"), memory));
            figures.push((who, times, memory));
        }
        let of = |who| figures.iter().find(|(name, ..)| *name == who);
        for (ours, theirs, promised) in RATIOS {
            let (Some((_, times, memory)), Some((_, their_times, their_memory))) = (of(ours), of(theirs)) else {
                continue;
            };
            let what = format!("{size} functions, {ours} / {theirs}");
            bars.push(Bar::reported(format!("{what}: time"), ratio(times, their_times)));
            let (what, memory) = (format!("{what}: peak memory"), memory / their_memory);
            bars.push(match promised {
                Some(promised) => Bar::at_most(promised, what, memory),
                None => Bar::reported(what, memory),
            });
        }
    }
    Ok(bars)
}

/// What `lazy` measures: a program of which little is called, first and later calls, memory, and tiers.
pub(crate) fn lazy() -> Result<Vec<Bar>> {
    let output = Command::new(std::env::current_exe()?.with_file_name("lazy")).arg("figures").output()?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into());
    }
    let bar = |line: &str| {
        let mut fields = line.split('\t');
        let (Some(what), Some(measured), promised) = (fields.next(), fields.next(), fields.next()) else {
            return Err(format!("no figure: {line}").into());
        };
        let measured = measured.parse()?;
        Ok(match promised {
            Some(promised) => Bar::at_most(promised.parse()?, what, measured),
            None => Bar::reported(what, measured),
        })
    };
    String::from_utf8(output.stdout)?.lines().map(bar).collect()
}
