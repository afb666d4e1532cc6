//! Sixteen threads call lazy functions that call each other, while another one redefines and removes.
//!
//! `ORCANE_SEED` says which functions call which and what is done to them; the seed is printed.

mod common;

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use common::{redefine, scaled};
use jit_core::cranelift::codegen::ir::{self, InstructionData};
use jit_core::{FnPointer, Jit, OptLevel, ResourceTracker, TransformError};
use jit_lazy::{LazyJit, LazyJitBuilder};

type Function = unsafe extern "C" fn(i64) -> i64;

const THREADS: usize = 16;
const ROUNDS: usize = 5;
/// One function in so many is removed and defined again. Only compiled code calls it.
const REMOVED: usize = 40;
/// Bodies are numbered from here: no other constant is as large.
const FIRST_BODY: i64 = 1 << 32;

/// Numbers from a seed, the same at every run.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % limit
    }
}

/// A body that calls another function with one less, if it was given more than zero, and adds one: it gives what it was
/// given. For less than zero it gives its number.
fn body(index: usize, callee: usize, number: i64) -> String {
    format!(
        "function %f{index}(i64) -> i64 system_v {{
            sig0 = (i64) -> i64 system_v
            fn0 = %f{callee} sig0
        block0(v0: i64):
            v1 = iconst.i64 {number}
            v2 = iconst.i64 0
            v3 = icmp slt v0, v2
            brif v3, block1, block2
        block1:
            return v1
        block2:
            brif v0, block3, block4
        block3:
            v4 = iconst.i64 1
            v5 = isub v0, v4
            v6 = call fn0(v5)
            v7 = iadd v6, v4
            return v7
        block4:
            return v0
        }}"
    )
}

/// Stands in for a function that was removed.
extern "C" fn same(value: i64) -> i64 {
    value
}

/// The numbers of the bodies that were compiled.
#[derive(Clone, Default)]
struct Compiled(Arc<Mutex<HashSet<i64>>>);

impl Compiled {
    fn note(&self, func: &ir::Function) -> Result<(), TransformError> {
        let instructions = func.layout.blocks().flat_map(|block| func.layout.block_insts(block));
        let number = instructions
            .filter_map(|instruction| match func.dfg.insts[instruction] {
                InstructionData::UnaryImm { imm, .. } if imm.bits() >= FIRST_BODY => Some(imm.bits()),
                _ => None,
            })
            .next()
            .ok_or("no number")?;
        if self.0.lock().unwrap().insert(number) { Ok(()) } else { Err(format!("{number} twice").into()) }
    }
}

/// What the functions are now.
struct Program {
    jit: LazyJit,
    random: Random,
    /// The numbers of the newest bodies, and what they call.
    newest: Vec<i64>,
    callees: Vec<usize>,
    /// Of functions that come and go.
    trackers: Vec<Option<ResourceTracker>>,
    next: i64,
}

impl Program {
    fn define(&mut self, index: usize) {
        let callee = self.random.below(self.newest.len());
        self.next += 1;
        (self.newest[index], self.callees[index]) = (self.next, callee);
        let tracker = redefine(&self.jit, &body(index, callee, self.next)).unwrap();
        if index.is_multiple_of(REMOVED) && self.trackers[index / REMOVED].is_none() {
            self.trackers[index / REMOVED] = Some(tracker);
        }
    }

    fn function(&self, index: usize) -> Function {
        let address = self.jit.lookup_address(&format!("f{index}")).unwrap();
        // SAFETY: the address of a function of this type, which only computes.
        unsafe { std::mem::transmute::<usize, Function>(address as usize) }
    }

    /// Whether a call goes to the newest body. That can't be had if what it calls was removed: then a call goes to what
    /// stands in for it.
    fn goes_to_newest(&self, index: usize) -> bool {
        // SAFETY: the function only computes, and nobody removes it meanwhile.
        let number = unsafe { self.function(index)(-1) };
        if number == -1 && self.callees[index].is_multiple_of(REMOVED) {
            return false;
        }
        assert_eq!(number, self.newest[index], "f{index}");
        true
    }

    /// Redefines one function, and removes another or defines it again.
    fn change(&mut self) {
        let index = self.random.below(self.newest.len());
        if !index.is_multiple_of(REMOVED) {
            self.define(index);
            self.goes_to_newest(index);
        }
        let index = self.random.below(self.trackers.len());
        match self.trackers[index].take() {
            Some(tracker) => {
                tracker.remove().unwrap();
                assert!(self.jit.lookup_address(&format!("f{}", index * REMOVED)).is_err());
            }
            None => {
                self.define(index * REMOVED);
                self.goes_to_newest(index * REMOVED);
            }
        }
    }

    /// Gives a function another body, which can be had when all functions are there.
    fn renew(&mut self, index: usize) {
        self.define(index);
        assert!(self.goes_to_newest(index), "f{index}");
    }

    /// Bytes of code and slots, and symbols, when all functions are there and compiled.
    fn size(&mut self) -> (usize, usize) {
        for index in 0..self.trackers.len() {
            if self.trackers[index].is_none() {
                self.define(index * REMOVED);
            }
        }
        for index in 0..self.newest.len() {
            if !self.goes_to_newest(index) {
                self.renew(index);
            }
        }
        // What was removed goes once nobody can be inside of it.
        (0..4).for_each(|_| drop(self.jit.session().enter()));
        (self.jit.memory_statistics().bytes.iter().sum(), self.jit.session().statistics().symbols)
    }
}

#[test]
fn first_calls_redefinitions_and_removals_at_once() {
    let seed = std::env::var("ORCANE_SEED").map_or(7, |seed| seed.parse().unwrap());
    println!("ORCANE_SEED={seed}");
    let functions = scaled(20_000, 500);
    let operations = scaled(500_000, 5_000);
    let compiled = Compiled::default();
    let noting = compiled.clone();
    let setup =
        Jit::builder().opt_level(OptLevel::None).clif_transform(move |_, func: &mut ir::Function| noting.note(func));
    let jit = LazyJitBuilder::new(setup)
        .failure_handler(|name, error| {
            let text = error.to_string();
            assert!(text.ends_with("removed") || text.ends_with("not found"), "{name}: {text}");
            (same as extern "C" fn(i64) -> i64).address()
        })
        .build()
        .unwrap();
    let mut random = Random(seed);
    let (mut trackers, mut callees) = (Vec::new(), Vec::new());
    let mut module = String::new();
    for index in 0..functions {
        callees.push(random.below(functions));
        let body = body(index, callees[index], FIRST_BODY + index as i64);
        if index.is_multiple_of(REMOVED) {
            trackers.push(Some(redefine(&jit, &body).unwrap()));
        } else {
            module += &body;
        }
        if index % 1000 == 999 || index == functions - 1 {
            redefine(&jit, &std::mem::take(&mut module)).unwrap();
        }
    }
    let newest: Vec<_> = (0..functions as i64).map(|index| FIRST_BODY + index).collect();
    let mut program = Program { jit, random, newest, callees, trackers, next: FIRST_BODY + functions as i64 };
    let stay: Vec<_> = (0..functions).filter(|index| !index.is_multiple_of(REMOVED)).collect();
    let addresses: Vec<_> = stay.iter().map(|index| program.function(*index)).collect();
    assert_eq!(program.jit.stats().compile.functions, 0);
    let (calls, mut changes) = (AtomicU64::new(0), 0_u64);
    let mut sizes = Vec::new();
    for round in 0..ROUNDS {
        let session = program.jit.session().clone();
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let callers: Vec<_> = (0..THREADS)
                .map(|thread| {
                    let (session, addresses, calls) = (&session, &addresses, &calls);
                    scope.spawn(move || {
                        let mut random = Random(seed + (round * THREADS + thread) as u64);
                        for _ in 0..operations / ROUNDS / THREADS {
                            // What was redefined or removed meanwhile stays until the call has left it.
                            let _scope = session.enter();
                            let function = addresses[random.below(addresses.len())];
                            let depth = random.below(4) as i64;
                            // SAFETY: the function only computes, and stays.
                            assert_eq!(unsafe { function(depth) }, depth);
                            calls.fetch_add(1, Ordering::Relaxed);
                        }
                    })
                })
                .collect();
            let changer = scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    program.change();
                    changes += 1;
                }
            });
            let results: Vec<_> = callers.into_iter().map(|caller| caller.join()).collect();
            done.store(true, Ordering::Relaxed);
            changer.join().unwrap();
            results.into_iter().for_each(|result| result.unwrap());
        });
        sizes.push(program.size());
    }
    assert_eq!(calls.into_inner() as usize, operations / ROUNDS / THREADS * THREADS * ROUNDS);
    assert!(changes as usize >= ROUNDS);
    // A body that was to be compiled twice failed, and its call ended in the handler.
    let numbers = compiled.0.lock().unwrap();
    assert_eq!(program.jit.stats().compile.functions as usize, numbers.len());
    assert!(program.newest.iter().all(|number| numbers.contains(number)));
    let ((first, symbols), (last, last_symbols)) = (sizes[0], sizes[ROUNDS - 1]);
    assert!(last <= first + first / 50, "after {changes} changes: {sizes:?}");
    assert_eq!(last_symbols, symbols, "{sizes:?}");
    println!("{changes} changes, {sizes:?}");
}
