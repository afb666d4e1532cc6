//! CLIF's `try_call` catches what compiled code throws.

#![cfg(target_os = "linux")]

mod common;

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use jit_core::exception::{self, Exception};
use jit_core::{ClifModule, CompileAt, Jit, OptLevel};

type Function = extern "C-unwind" fn(i64) -> i64;

thread_local! {
    static NOTED: RefCell<Vec<i64>> = const { RefCell::new(Vec::new()) };
}

struct Guard(i64);

impl Drop for Guard {
    fn drop(&mut self) {
        NOTED.with_borrow_mut(|noted| noted.push(self.0));
    }
}

extern "C" fn note(value: i64) {
    NOTED.with_borrow_mut(|noted| noted.push(value));
}

/// A host frame with something to drop below the handler.
extern "C-unwind" fn throw_from_host(tag: i64, payload: i64) {
    let _guard = Guard(1000 + payload);
    if tag == 99 {
        resume_unwind(Box::new(payload));
    }
    exception::throw(tag as u32, payload as u64);
}

fn jit(level: OptLevel) -> Jit {
    let jit = Jit::builder().opt_level(level).verifier(true).build().unwrap();
    jit.define_function("throw", throw_from_host as extern "C-unwind" fn(i64, i64)).unwrap();
    jit.define_function("note", note as extern "C" fn(i64)).unwrap();
    jit.define_function("payload", exception::payload as unsafe extern "C" fn(*const Exception) -> u64).unwrap();
    jit.define_function("delete", exception::delete as unsafe extern "C" fn(*mut Exception)).unwrap();
    let resume = exception::resume as unsafe extern "C-unwind" fn(*mut Exception, u64);
    jit.define_function("resume", resume).unwrap();
    jit
}

/// `attempt(x)` throws tag x with payload 10x from two frames down. Tag 1 gives the payload and a
/// value that lives in a register across the call; other exceptions are noted and passed on.
const PROGRAM: &str = "
    function %thrower(i64) -> i64 system_v {
        fn0 = %throw(i64, i64) system_v
    block0(v0: i64):
        v1 = iconst.i64 10
        v2 = imul v0, v1
        v3 = iconst.i64 0
        v4 = icmp slt v0, v3
        brif v4, block1, block2
    block1:
        return v0
    block2:
        call fn0(v0, v2)
        return v0
    }
    function %attempt(i64) -> i64 system_v {
        sig0 = (i64) -> i64 system_v
        fn0 = %thrower(i64) -> i64 system_v
        fn1 = %payload(i64) -> i64 system_v
        fn2 = %delete(i64) system_v
        fn3 = %resume(i64, i64) system_v
        fn4 = %note(i64) system_v
    block0(v0: i64):
        v1 = iconst.i64 7
        v2 = iadd v0, v1
        v9 = imul v2, v2
        try_call fn0(v0), sig0, block1(ret0), [ tag1: block2(exn0, exn1), default: block3(exn0, exn1) ]
    block1(v3: i64):
        v10 = iadd v3, v9
        return v10
    block2(v4: i64, v5: i64):
        v6 = call fn1(v4)
        call fn2(v4)
        v7 = iadd v6, v9
        return v7
    block3(v11: i64, v12: i64):
        call fn4(v12)
        call fn3(v11, v12)
        trap user1
    }
    function %outer(i64) -> i64 system_v {
        sig0 = (i64) -> i64 system_v
        fn0 = %attempt(i64) -> i64 system_v
        fn1 = %delete(i64) system_v
    block0(v0: i64):
        try_call fn0(v0), sig0, block1(ret0), [ tag2: block2(exn0, exn1) ]
    block1(v3: i64):
        return v3
    block2(v4: i64, v5: i64):
        call fn1(v4)
        v6 = iconst.i64 -2
        return v6
    }";

fn call(jit: &Jit, name: &str, argument: i64) -> i64 {
    let function = jit.lookup::<Function>(name).unwrap();
    // SAFETY: the functions call each other and the host's.
    unsafe { function.call(argument) }
}

fn noted() -> Vec<i64> {
    NOTED.with_borrow_mut(std::mem::take)
}

fn each(test: impl Fn(&Jit)) {
    for level in [OptLevel::None, OptLevel::Speed] {
        for at in [CompileAt::Lookup, CompileAt::Definition] {
            let jit = jit(level);
            let mut module = ClifModule::new("exceptions", jit.isa().clone(), at);
            common::define(&mut module, PROGRAM);
            let tracker = jit.add_module(module).unwrap();
            test(&jit);
            tracker.remove().unwrap();
        }
    }
}

#[test]
fn a_handler_gets_the_exception_of_its_tag() {
    each(|jit| {
        assert_eq!(call(jit, "attempt", -1), -1 + 36);
        assert_eq!(noted(), []);
        for _ in 0..3 {
            assert_eq!(call(jit, "attempt", 1), 10 + 64);
            assert_eq!(noted(), [1010]);
        }
    });
}

#[test]
fn what_a_default_handler_passes_on_is_caught_further_out() {
    each(|jit| {
        assert_eq!(call(jit, "outer", 2), -2);
        // The host's frame, and then the default handler, which had caught it.
        assert_eq!(noted(), [1020, 1]);
    });
}

#[test]
fn a_panic_passes_a_default_handler_which_cleans_up() {
    each(|jit| {
        let result = catch_unwind(AssertUnwindSafe(|| call(jit, "outer", 99)));
        assert_eq!(*result.unwrap_err().downcast::<i64>().unwrap(), 990);
        assert_eq!(noted(), [1990, 0]);
    });
}
