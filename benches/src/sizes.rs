//! Eager compilation at several sizes, and what the program `lazy` measures.

use std::process::Command;

use orcane::OptLevel;
use workloads::llvm::{LlvmLevel, LlvmSubject};

use crate::Result;
use crate::bars::Bar;
use crate::measure::{Run, median};
use crate::subject::Subject;

const SIZES: [usize; 3] = [1_000, 5_000, 50_000];
/// Functions that are compiled for one figure at least, in rounds.
const FUNCTIONS: usize = 15_000;

const fn llvm(level: LlvmLevel) -> Subject {
    Subject::Llvm(LlvmSubject { level, module_a_function: false, threads: 0 })
}

const SUBJECTS: [(&str, Subject, OptLevel); 8] = [
    ("Orcane, none", Subject::Orcane(0), OptLevel::None),
    ("Orcane, none, two threads", Subject::Orcane(2), OptLevel::None),
    ("Orcane, speed", Subject::Orcane(0), OptLevel::Speed),
    ("Orcane, speed, two threads", Subject::Orcane(2), OptLevel::Speed),
    ("cranelift-jit, none", Subject::CraneliftJit, OptLevel::None),
    ("cranelift-jit, speed", Subject::CraneliftJit, OptLevel::Speed),
    ("LLVM O0", llvm(LlvmLevel::O0), OptLevel::None),
    ("LLVM O2", llvm(LlvmLevel::O2), OptLevel::None),
];

/// Microseconds a function from nothing to addresses, and peak memory; sizes are divided by `scale`.
pub(crate) fn eager(scale: usize) -> Result<Vec<Bar>> {
    let mut bars = Vec::new();
    for size in SIZES.map(|size| size / scale) {
        for (who, subject, level) in SUBJECTS {
            let run = Run { subject, level, count: size };
            let times = (0..FUNCTIONS.div_ceil(size * scale).min(5))
                .map(|_| Ok(run.times()?.total.as_secs_f64() * 1e6 / size as f64));
            let time = median(times.collect::<Result<Vec<_>>>()?);
            bars.push(Bar::reported(format!("{size} functions, {who}: us a function"), time));
            bars.push(Bar::reported(format!("{size} functions, {who}: peak MB"), run.peak_memory()? as f64 / 1e6));
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
