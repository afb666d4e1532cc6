//! LLVM as a linker of objects.

use std::time::Instant;

use llvm_tests::{Level, Llvm, Options};
use workloads::Result;

/// Nanoseconds from an object's file to the address of a symbol.
pub(crate) fn run(path: &str, symbol: &str) -> Result<u128> {
    let start = Instant::now();
    let jit = Llvm::new(Options { level: Level::O0, lazy: false, threads: 0 })?;
    jit.add_object(&std::fs::read(path)?)?;
    jit.lookup(symbol)?;
    let elapsed = start.elapsed().as_nanos();
    std::mem::forget(jit);
    Ok(elapsed)
}
