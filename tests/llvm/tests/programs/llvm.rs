//! A program through LLVM's JITs.

use llvm_tests::{Level, Llvm, Module, Options};
use toy_lang::llvm_ir;

use crate::generate::Parsed;
use crate::{Outcome, host};

const fn way(level: Level, lazy: bool) -> Options {
    Options { level, lazy, threads: 0 }
}

/// Eager and lazy, each without and with optimisation.
pub(crate) const WAYS: [Options; 4] =
    [way(Level::O0, false), way(Level::O2, false), way(Level::O0, true), way(Level::O2, true)];

pub(crate) fn run(parsed: &Parsed, way: Options) -> Result<Outcome, String> {
    let told = |error: llvm_tests::Error| format!("LLVM, {way:?}: {error}");
    let jit = Llvm::new(way).map_err(told)?;
    for (name, _, address) in host::functions() {
        jit.define(name, address).map_err(told)?;
    }
    for items in &parsed.modules {
        jit.add(Module::parse(&llvm_ir::emit(items)).map_err(told)?).map_err(told)?;
    }
    (0..parsed.entries)
        .map(|entry| {
            let address = jit.lookup(&format!("entry{entry}")).map_err(told)?;
            // SAFETY: an entry takes nothing and gives a double, and its JIT is alive.
            let entry = unsafe { std::mem::transmute::<u64, extern "C" fn() -> f64>(address) };
            Ok(host::record(|| entry()))
        })
        .collect()
}
