//! Traps of functions that are compiled when they are called, and compiled again when they are called often.

#![cfg(target_os = "linux")]

mod common;

use std::time::{Duration, Instant};

use common::redefine;
use jit_core::{CallError, Jit, OptLevel, Trap, TrapKind};
use jit_lazy::{LazyJit, LazyJitBuilder, Tiering};

type Function = extern "C-unwind" fn(i64) -> i64;

const DIVIDE: &str = "
    function %divide(i64) -> i64 system_v {
    block0(v0: i64):
        v1 = iconst.i64 100
        v2 = sdiv v1, v0
        return v2
    }";

/// A function that adds its argument to what another makes of it.
fn adding(name: &str, callee: &str) -> String {
    format!(
        "function %{name}(i64) -> i64 system_v {{
            sig0 = (i64) -> i64 system_v
            fn0 = %{callee} sig0
        block0(v0: i64):
            v1 = call fn0(v0)
            v2 = iadd v1, v0
            return v2
        }}"
    )
}

/// Adds two functions that trap, and two that call them and are not lazy.
fn add_functions(jit: &LazyJit) {
    redefine(jit, &format!("{DIVIDE}{}", adding("recurse", "recurse"))).unwrap();
    common::add(jit, &format!("{}{}", adding("caller", "divide"), adding("deep", "recurse")));
}

fn builder() -> LazyJitBuilder {
    LazyJitBuilder::new(Jit::builder().opt_level(OptLevel::Speed).verifier(true).traps(true))
}

fn call(jit: &LazyJit, name: &str, argument: i64) -> Result<i64, Trap> {
    let function = jit.lookup::<Function>(name).unwrap();
    // SAFETY: the functions call only each other.
    unsafe { function.try_call(argument) }.map_err(|error| match error {
        CallError::Trap(trap) => trap,
        other => panic!("{other}"),
    })
}

/// The kind of a call's trap and the function it is in, without the number of its body.
fn trap_of(jit: &LazyJit, name: &str, argument: i64) -> (TrapKind, String) {
    let trap = call(jit, name, argument).unwrap_err();
    let function = trap.function.unwrap_or_default();
    (trap.kind, function.split('$').next().unwrap().to_owned())
}

#[test]
fn a_first_call_traps_as_later_ones_do() {
    let jit = builder().build().unwrap();
    add_functions(&jit);
    for _ in 0..3 {
        assert_eq!(trap_of(&jit, "caller", 0), (TrapKind::DivisionByZero, "divide".to_owned()));
        assert_eq!(trap_of(&jit, "deep", 0), (TrapKind::StackOverflow, "recurse".to_owned()));
        assert_eq!(call(&jit, "caller", 5).unwrap(), 25);
    }
    // Another body is compiled after the old one has trapped.
    let other = "function %divide(i64) -> i64 system_v { block0(v0: i64): trapz v0, user3 return v0 }";
    redefine(&jit, other).unwrap();
    for _ in 0..2 {
        assert_eq!(trap_of(&jit, "caller", 0), (TrapKind::User(3), "divide".to_owned()));
    }
}

#[test]
fn both_tiers_trap() {
    let jit = builder().tiers(Tiering::default().threshold(50)).build().unwrap();
    add_functions(&jit);
    let trapped = (TrapKind::DivisionByZero, "divide".to_owned());
    let start = Instant::now();
    while !jit.tier_statistics().promotions.iter().any(|promotion| promotion.function.as_str() == "divide") {
        assert_eq!(trap_of(&jit, "caller", 0), trapped, "in the first tier");
        assert_eq!(call(&jit, "caller", 5).unwrap(), 25);
        assert!(start.elapsed() < Duration::from_secs(60), "it is not promoted");
    }
    assert_eq!(trap_of(&jit, "caller", 0), trapped, "in the second tier");
    assert_eq!(call(&jit, "caller", 5).unwrap(), 25);
    // On its way down it is promoted: counted entries and both bodies are on this stack.
    for _ in 0..3 {
        assert_eq!(trap_of(&jit, "deep", 0), (TrapKind::StackOverflow, "recurse".to_owned()));
    }
}
