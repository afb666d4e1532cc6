//! Times of what runs in this process: the workloads of the instruction gate, and single operations.
//!
//! ```sh
//! cargo bench -p benches             # all; reports and plots are in target/criterion
//! cargo bench -p benches -- lookup   # those whose name has it
//! ```
#![allow(missing_docs, reason = "criterion's macro writes a public function")]

use std::error::Error;
use std::hint::black_box;

use cranelift_module::Module;
use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use orcane::lazy::LazyJit;
use orcane::{Jit, OptLevel};
use workloads::functions::{generate, name};
use workloads::session::Table;
use workloads::table::SymbolTable;
use workloads::workload::WORKLOADS;

type Function = unsafe extern "C" fn(i64) -> i64;

/// Each as a whole. Its preparation is not part of the time.
fn whole(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("whole");
    group.sample_size(10);
    for (name, prepare) in WORKLOADS {
        let prepare = || prepare().expect("a workload can be prepared");
        group.bench_function(name, |bencher| {
            bencher.iter_batched(prepare, |work| work().expect("a workload works"), BatchSize::PerIteration);
        });
    }
}

/// Calls of a small function that is compiled: through its address, and through the slot of a lazy one.
fn calls(criterion: &mut Criterion) {
    let run = |criterion: &mut Criterion| -> Result<(), Box<dyn Error>> {
        let eager = Jit::builder().opt_level(OptLevel::Speed).build()?;
        let mut module = eager.module("one");
        generate(&mut module, 1, |module, id, context| Ok(module.define_function(id, context)?))?;
        eager.add_module(module)?;
        let lazy = LazyJit::new()?;
        let mut module = lazy.module("one").redirectable();
        generate(&mut module, 1, |module, id, context| Ok(module.define_function(id, context)?))?;
        lazy.redefine(module)?;
        for (way, jit) in [("call/ready", &eager), ("call/lazy, after the first", &*lazy)] {
            let function = jit.lookup::<Function>(&name(0))?;
            // SAFETY: `generate` gave it this signature.
            criterion.bench_function(way, |bencher| bencher.iter(|| unsafe { function.call(black_box(7)) }));
        }
        Ok(())
    };
    run(criterion).expect("functions can be compiled");
}

/// Lookups of symbols that are ready, each time the next of ten thousand.
fn lookups(criterion: &mut Criterion) {
    const SYMBOLS: usize = 10_000;
    let mut table = Table::new().expect("there is memory");
    table.reserve(SYMBOLS);
    let names: Vec<_> = (0..SYMBOLS).map(name).collect();
    names.iter().for_each(|name| table.intern(name));
    table.define_all(1).expect("the names are new");
    let mut index = 0;
    let mut next = || {
        index = (index + 1) % SYMBOLS;
        index
    };
    // Of a name that is not found, a lookup gives 0.
    assert!(
        names
            .iter()
            .enumerate()
            .all(|(index, name)| [table.lookup(index), table.lookup_text(name)] == [1 + index as u64; 2])
    );
    criterion.bench_function("lookup/ready, interned", |bencher| bencher.iter(|| table.lookup(next())));
    criterion.bench_function("lookup/ready, by text", |bencher| bencher.iter(|| table.lookup_text(&names[next()])));
    criterion.bench_function("cycle of one symbol", |bencher| {
        bencher.iter(|| table.cycle("cycle").expect("it is gone each time"));
    });
}

criterion_group!(benches, whole, calls, lookups);
criterion_main!(benches);
