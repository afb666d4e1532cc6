//! Eager compilation at several sizes, lazy compilation, and calls.

use std::process::Command;
use std::time::Instant;

use cranelift_module::Module;
use orcane::lazy::LazyJitBuilder;
use orcane::{Jit, OptLevel};
use workloads::functions::{expected, generate, name};
use workloads::llvm::{LlvmLevel, LlvmSubject};

use crate::Result;
use crate::bars::Bar;
use crate::measure::{Run, median, nanoseconds};
use crate::subject::Subject;

const SIZES: [usize; 3] = [1_000, 5_000, 50_000];
/// The first argument of a process that compiles functions lazily, calls some, and prints the nanoseconds.
pub(crate) const LAZY: &str = "lazy";
const LAZY_FUNCTIONS: usize = 10_000;
const ROUNDS: usize = 3;

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
            let times = (0..ROUNDS).map(|_| Ok(run.times()?.total.as_secs_f64() * 1e6 / size as f64));
            let time = median(times.collect::<Result<Vec<_>>>()?);
            bars.push(Bar::reported(format!("{size} functions, {who}: us a function"), time));
            bars.push(Bar::reported(format!("{size} functions, {who}: peak MB"), run.peak_memory()? as f64 / 1e6));
        }
    }
    Ok(bars)
}

/// Functions of which one in a hundred is called, and what `lazy` measures: first and later calls.
pub(crate) fn lazy(scale: usize) -> Result<Vec<Bar>> {
    let count = LAZY_FUNCTIONS / scale;
    let (mut ours, mut llvm) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        ours.push(nanoseconds("benches", &[LAZY, &count.to_string()])? / 1e6);
        llvm.push(nanoseconds("llvm-peer", &[LAZY, &count.to_string()])? / 1e6);
    }
    let ratio = median(ours.iter().zip(&llvm).map(|(ours, llvm)| ours / llvm));
    let what = format!("{count} lazy functions, 1 % called");
    let mut bars = vec![
        Bar::reported(format!("{what}: Orcane, ms"), median(ours)),
        Bar::reported(format!("{what}: LLVM O0, ms"), median(llvm)),
        Bar::reported(format!("{what}: time / LLVM's"), ratio),
    ];
    let output = Command::new(std::env::current_exe()?.with_file_name("lazy")).output()?;
    for line in String::from_utf8(output.stdout)?.lines() {
        let mut words = line.rsplitn(3, char::is_whitespace);
        if let (Some(unit), Some(figure), Some(what)) = (words.next(), words.next(), words.next()) {
            bars.push(Bar::reported(format!("{}, {unit}", what.trim()), figure.parse()?));
        }
    }
    Ok(bars)
}

/// Makes functions lazy and calls one in a hundred, each of which calls the one before.
pub(crate) fn run_lazy(count: usize) -> Result<u128> {
    let start = Instant::now();
    let jit = LazyJitBuilder::new(Jit::builder().opt_level(OptLevel::None).verifier(false)).build()?;
    let mut module = jit.module("chain").redirectable();
    generate(&mut module, count, |module, id, context| Ok(module.define_function(id, context)?))?;
    jit.redefine(module)?;
    let called = (count / 100).max(1);
    let function = jit.lookup::<unsafe extern "C" fn(i64) -> i64>(&name(called - 1))?;
    // SAFETY: `generate` gave it this signature.
    let result = unsafe { function.call(7) };
    let elapsed = start.elapsed().as_nanos();
    if result != expected(called, 7) {
        return Err(format!("{result} is wrong").into());
    }
    std::mem::forget(jit);
    Ok(elapsed)
}
