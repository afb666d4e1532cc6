//! Eager compilation at several sizes, and what the program `lazy` measures.

use std::process::Command;

use orcane::OptLevel;
use workloads::llvm::{LlvmLevel, LlvmSubject};
use workloads::median;

use crate::Result;
use crate::bars::Bar;
use crate::measure::Run;
use crate::subject::Subject;

const SIZES: [usize; 3] = [1_000, 5_000, 50_000];
/// Functions that are compiled for one figure at least, in rounds.
const FUNCTIONS: usize = 15_000;

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
        let mut figures = Vec::new();
        for (who, subject, level) in SUBJECTS {
            if matches!(subject, Subject::Llvm(llvm) if llvm.module_a_function) && size > MOST_MODULES {
                continue;
            }
            let run = Run { subject, level, count: size };
            let times = (0..FUNCTIONS.div_ceil(size * scale).min(5))
                .map(|_| Ok(run.times()?.total.as_secs_f64() * 1e6 / size as f64));
            let time = median(times.collect::<Result<Vec<_>>>()?);
            let process = if matches!(subject, Subject::Llvm(_)) { llvm_nothing } else { nothing };
            let memory = run.peak_memory()? as f64 / 1e6 - process;
            bars.push(Bar::reported(format!("{size} functions, {who}: us a function"), time));
            bars.push(Bar::reported(format!("{size} functions, {who}: peak MB above an empty process"), memory));
            figures.push((who, time, memory));
        }
        let of = |who| figures.iter().find(|(name, ..)| *name == who);
        for (ours, theirs, promised) in RATIOS {
            let (Some((_, time, memory)), Some((_, their_time, their_memory))) = (of(ours), of(theirs)) else {
                continue;
            };
            let what = format!("{size} functions, {ours} / {theirs}");
            bars.push(Bar::reported(format!("{what}: time"), time / their_time));
            let (what, ratio) = (format!("{what}: peak memory"), memory / their_memory);
            bars.push(match promised {
                Some(promised) => Bar::at_most(promised, what, ratio),
                None => Bar::reported(what, ratio),
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
