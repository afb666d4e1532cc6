//! What is compiled with a function that is called, and what ahead of its call.

mod common;

use std::sync::mpsc::RecvTimeoutError;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common::{builder, call, caller, constant, redefine};
use jit_core::Jit;
use jit_core::cranelift::codegen::ir;
use jit_lazy::{LazyJit, LazyJitBuilder, whole_module};

/// Waits until so many functions are compiled, and no more after that.
fn compiled(jit: &LazyJit, count: u64) {
    let start = Instant::now();
    while jit.stats().compile.functions < count {
        assert!(start.elapsed() < Duration::from_secs(60), "{:?}", jit.stats().compile);
        std::thread::yield_now();
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
    let (begin, begun) = std::sync::mpsc::channel();
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
