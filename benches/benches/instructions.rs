//! The gate: instructions that workloads take, counted by Callgrind, against those that are written here.
//!
//! ```sh
//! scripts/bench instructions
//! ```
//!
//! Instructions are the same on a busy machine as on an idle one. What differs by machine is held: the target is the
//! architecture's baseline and not the host's, the C library uses no extension, and the environment is empty. Only the
//! work is counted, not what prepares it.
#![allow(missing_docs, reason = "the macros write public items")]

use gungraun::{Callgrind, EventKind, LibraryBenchmarkConfig, library_benchmark, library_benchmark_group, main};
use workloads::workload::{WORKLOADS, Work};

/// So that functions of the C library are the same ones everywhere.
const TUNABLES: &str = "glibc.cpu.hwcaps=-AVX2,-AVX512F,-AVX512VL,-AVX512BW,-ERMS,-FSRM,-BMI2,-RTM";

/// Fails when a workload takes 5 % more than `instructions`, which it took in the build of the tests, by rustc 1.95 for
/// x86-64. Where that is worth it, or it takes less, the new figure is to be written here.
fn checked_in(instructions: u64) -> LibraryBenchmarkConfig {
    // Code is written through one mapping and run through another, which Valgrind sees only if it checks all code for
    // changes.
    let mut callgrind = Callgrind::with_args(["--smc-check=all"]);
    callgrind.hard_limits([(EventKind::Ir, instructions + instructions / 20)]);
    LibraryBenchmarkConfig::default().tool(callgrind).env("GLIBC_TUNABLES", TUNABLES).clone()
}

fn prepare(name: &str) -> Work {
    let known = WORKLOADS.iter().find(|(known, _)| *known == name);
    let (_, prepare) = known.expect("it is one of the workloads");
    prepare().expect("a workload can be prepared")
}

#[library_benchmark(setup = prepare)]
#[bench::compile_none(args = ("compile-none"), config = checked_in(344_054_176))]
#[bench::compile_speed(args = ("compile-speed"), config = checked_in(492_843_383))]
#[bench::link_object(args = ("link-object"), config = checked_in(12_807_190))]
#[bench::lazy(args = ("lazy"), config = checked_in(9_859_892))]
#[bench::first_jit(args = ("first-jit"), config = checked_in(18_177))]
#[bench::define(args = ("define"), config = checked_in(6_949_177))]
#[bench::lookup(args = ("lookup"), config = checked_in(2_025_521))]
#[bench::cycle(args = ("cycle"), config = checked_in(7_611_106))]
#[bench::code_cycle(args = ("code-cycle"), config = checked_in(4_101_676))]
fn whole(work: Work) {
    work().expect("a workload works");
}

library_benchmark_group!(name = workloads_whole, benchmarks = whole);
main!(library_benchmark_groups = workloads_whole);
