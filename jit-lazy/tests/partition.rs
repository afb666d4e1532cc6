//! What is compiled with a function that is called, and what ahead of its call.

mod common;

use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use common::{at, builder, call, caller, constant, redefine};
use jit_core::cranelift::codegen::ir;
use jit_core::{Jit, LazyBody};
use jit_lazy::{LazyJit, LazyJitBuilder, whole_module};

/// Waits until so many functions are compiled, and no more after that.
fn compiled(jit: &LazyJit, count: u64) {
    let start = Instant::now();
    while jit.stats().compile.functions < count {
        assert!(start.elapsed() < Duration::from_secs(60), "{:?}", jit.stats().compile);
        thread::yield_now();
    }
    assert_eq!(jit.stats().compile.functions, count);
}

#[test]
fn e2e_15_a_whole_module_is_compiled_at_the_first_call_of_one_of_its_functions() {
    let jit = builder().partition(whole_module).build().unwrap();
    redefine(&jit, &(0..5).map(|index| constant(&format!("f{index}"), index)).collect::<String>()).unwrap();
    redefine(&jit, &constant("another", 9)).unwrap();
    assert_eq!(call(&jit, "f3"), 3);
    compiled(&jit, 5);
    (0..5).for_each(|index| assert_eq!(call(&jit, &format!("f{index}")), index));
    compiled(&jit, 5);
    assert_eq!(call(&jit, "another"), 9);
    compiled(&jit, 6);
}

#[test]
fn a_closure_says_what_is_compiled_together() {
    let jit = builder()
        .partition(|called| {
            let partner = called.module().into_iter().find(|other| other.function().ends_with("partner"));
            partner.into_iter().collect()
        })
        .build()
        .unwrap();
    redefine(&jit, &format!("{}{}{}", constant("f", 1), constant("partner", 2), constant("other", 3))).unwrap();
    assert_eq!(call(&jit, "f"), 1);
    compiled(&jit, 2);
    assert_eq!(call(&jit, "partner"), 2);
    compiled(&jit, 2);
}

#[test]
fn a_partner_that_fails_does_no_harm() {
    let jit = builder().partition(whole_module).build().unwrap();
    redefine(&jit, &format!("{}{}", constant("f", 1), caller("broken", "missing"))).unwrap();
    assert_eq!(call(&jit, "f"), 1);
}

/// A function that calls others unless it is given 0.
fn branching(jit: &LazyJit) -> unsafe extern "C" fn(i64) -> i64 {
    let f = "
        function %f(i64) -> i64 system_v {
            sig0 = () -> i64 system_v
            fn0 = %callee sig0
        block0(v0: i64):
            brif v0, block1, block2
        block1:
            v1 = call fn0()
            return v1
        block2:
            return v0
        }";
    redefine(jit, &format!("{f}{}{}", caller("callee", "leaf"), constant("leaf", 1))).unwrap();
    // SAFETY: the address of a function of this type.
    unsafe { std::mem::transmute(jit.lookup_address("f").unwrap() as usize) }
}

#[test]
fn nothing_is_begun_ahead_while_a_first_call_waits() {
    let (begin, begun) = mpsc::channel();
    let begun = Arc::new(Mutex::new(begun));
    let jit = Jit::builder().clif_transform(move |_, func: &mut ir::Function| {
        if func.signature.params.is_empty() {
            begin.send(())?;
            return Ok(());
        }
        // The call of this one waits, and what it calls is known.
        match begun.lock().unwrap().recv_timeout(Duration::from_millis(200)) {
            Err(RecvTimeoutError::Timeout) => Ok(()),
            other => Err(format!("{other:?}").into()),
        }
    });
    let jit = LazyJitBuilder::new(jit).ahead_threads(2).build().unwrap();
    let f = branching(&jit);
    // SAFETY: the functions only compute.
    assert_eq!(unsafe { f(0) }, 0);
    // Then it is.
    compiled(&jit, 3);
}

#[test]
fn callees_are_compiled_ahead_of_their_calls() {
    for threads in [0, 2] {
        let jit = LazyJitBuilder::new(Jit::builder().compile_threads(threads)).ahead_threads(2).build().unwrap();
        let f = branching(&jit);
        redefine(&jit, &constant("unrelated", 5)).unwrap();
        // It is called so that it calls nothing: only what is done ahead compiles the others.
        // SAFETY: the functions only compute.
        assert_eq!(unsafe { f(0) }, 0);
        compiled(&jit, 3);
        // SAFETY: as above.
        assert_eq!(unsafe { f(1) }, 101);
        compiled(&jit, 3);
    }
}

/// A pool of one thread that compiles the first function only when it is told to, and what tells it. Functions give
/// numbers, by which they are known: those that it has begun come in the order in which it does.
struct Gated {
    jit: LazyJit,
    open: Option<mpsc::Sender<()>>,
    begun: mpsc::Receiver<i64>,
}

impl Gated {
    fn new(set_up: impl FnOnce(LazyJitBuilder) -> LazyJitBuilder) -> Self {
        let (open, opened) = mpsc::channel();
        let (begin, begun) = mpsc::channel();
        let opened = Arc::new(Mutex::new(opened));
        let jit = Jit::builder().compile_threads(1).clif_transform(move |_, func: &mut ir::Function| {
            let entry = func.layout.entry_block().and_then(|block| func.layout.first_inst(block));
            let Some(ir::InstructionData::UnaryImm { imm, .. }) = entry.map(|first| func.dfg.insts[first]) else {
                return Ok(());
            };
            begin.send(imm.bits())?;
            // Once it is open, nobody sends.
            _ = opened.lock().unwrap().recv();
            Ok(())
        });
        Self { jit: set_up(LazyJitBuilder::new(jit)).build().unwrap(), open: Some(open), begun }
    }

    /// Waits until so many lookups wait.
    fn wait_for_lookups(&self, count: usize) {
        let start = Instant::now();
        while self.jit.session().statistics().lookups != count {
            assert!(start.elapsed() < Duration::from_secs(60), "{:?}", self.jit.session().statistics());
            thread::yield_now();
        }
    }

    /// Each in a module of its own: functions of one are compiled in one batch.
    fn define(&self, numbers: std::ops::Range<i64>) {
        numbers.for_each(|number| _ = redefine(&self.jit, &constant(&format!("f{number}"), number)).unwrap());
    }

    fn address(&self, number: i64) -> u64 {
        self.jit.lookup_address(&format!("f{number}")).unwrap()
    }

    /// What is begun first.
    fn first(&self) -> i64 {
        self.begun.recv_timeout(Duration::from_secs(60)).unwrap()
    }

    /// Calls functions, of each of which so many lookups come, when so many wait already; and then lets the pool go on.
    /// Gives what that has begun since.
    fn call_and_open(&mut self, calls: &[(i64, usize)], mut waiting: usize, all: u64) -> Vec<i64> {
        thread::scope(|scope| {
            // Whatever happens, nobody waits for it after this.
            let gate = self.open.take();
            for &(number, lookups) in calls {
                let address = self.address(number);
                // SAFETY: the function only computes.
                scope.spawn(move || assert_eq!(unsafe { at(address)() }, number));
                waiting += lookups;
                self.wait_for_lookups(waiting);
            }
            drop(gate);
            compiled(&self.jit, all);
        });
        self.begun.try_iter().collect()
    }
}

#[test]
fn a_call_that_waits_comes_before_what_is_compiled_ahead_in_the_queue_too() {
    let mut gated = Gated::new(|jit| jit.ahead_threads(4));
    gated.define(0..5);
    // Calls the first four of them unless it is given 0.
    let calls: String = (0..4).map(|number| format!("v1{number} = call fn{number}()\n")).collect();
    let callees: String = (0..4).map(|number| format!("fn{number} = %f{number} sig0\n")).collect();
    let text = format!(
        "function %calls(i64) -> i64 system_v {{
            sig0 = () -> i64 system_v
            {callees}
        block0(v0: i64):
            brif v0, block1, block2
        block1:
            {calls}
            return v0
        block2:
            return v0
        }}"
    );
    redefine(&gated.jit, &text).unwrap();
    // SAFETY: the address of a function of this type.
    let calls: unsafe extern "C" fn(i64) -> i64 =
        unsafe { std::mem::transmute(gated.jit.lookup_address("calls").unwrap() as usize) };
    // SAFETY: the functions only compute.
    assert_eq!(unsafe { calls(0) }, 0);
    // One of the four is being compiled, and the pool has the others in its queue.
    let first = gated.first();
    gated.wait_for_lookups(4);
    let mut order = gated.call_and_open(&[(4, 1)], 4, 6);
    assert_eq!(order.remove(0), 4, "before the other three, after {first}");
    order.push(first);
    order.sort_unstable();
    assert_eq!(order, [0, 1, 2, 3]);
}

#[test]
fn a_call_brings_forward_what_is_compiled_ahead_when_it_comes_to_wait_for_that() {
    let partition = |called: &LazyBody| {
        let others = (0..5).map(|number| format!("f{number}"));
        let session = called.session().unwrap();
        others.filter_map(|other| called.named(&session.intern(&other))).collect()
    };
    let mut gated = Gated::new(|jit| {
        jit.partition(move |called| match called.function().as_str() {
            "f5" => partition(called),
            _ => Vec::new(),
        })
    });
    gated.define(0..7);
    let address = gated.address(6);
    let order = thread::scope(|scope| {
        // SAFETY: the function only computes.
        scope.spawn(move || assert_eq!(unsafe { at(address)() }, 6));
        let first = gated.first();
        // The call of 5 has 0 to 4 compiled as well.
        let order = gated.call_and_open(&[(5, 6), (4, 1)], 1, 7);
        assert_eq!(first, 6);
        order
    });
    assert_eq!(order, [5, 4, 0, 1, 2, 3]);
}
