//! Functions that are called often get a faster body.

mod common;

use std::time::{Duration, Instant};

use common::{Nullary, at, call, constant, redefine};
use jit_core::{InlineSmallFunctions, Jit, OptLevel};
use jit_lazy::{LazyJit, LazyJitBuilder, PromotionCause, Tiering};

const FIB: &str = "
    function %fib(i64) -> i64 system_v {
        sig0 = (i64) -> i64 system_v
        fn0 = %fib sig0
    block0(v0: i64):
        v1 = iconst.i64 2
        v2 = icmp slt v0, v1
        brif v2, block2, block1
    block1:
        v3 = iconst.i64 1
        v4 = isub v0, v3
        v5 = call fn0(v4)
        v6 = isub v0, v1
        v7 = call fn0(v6)
        v8 = iadd v5, v7
        return v8
    block2:
        return v0
    }";

/// Counts down from its argument.
const LOOP: &str = "
    function %turn(i64) -> i64 system_v {
    block0(v0: i64):
        v9 = iconst.i64 0
        jump block1(v0, v9)
    block1(v1: i64, v2: i64):
        v3 = iconst.i64 1
        v4 = iadd v2, v3
        v5 = isub v1, v3
        brif v5, block1(v5, v4), block2(v4)
    block2(v6: i64):
        return v6
    }";

fn tiered(tiering: Tiering) -> LazyJit {
    let jit = Jit::builder().opt_level(OptLevel::Speed).verifier(true);
    LazyJitBuilder::new(jit).tiers(tiering).build().unwrap()
}

fn unary(jit: &LazyJit, name: &str) -> unsafe extern "C" fn(i64) -> i64 {
    // SAFETY: the address of a function of this type.
    unsafe { std::mem::transmute::<usize, _>(jit.lookup_address(name).unwrap() as usize) }
}

/// Waits until this many functions were promoted.
fn promoted(jit: &LazyJit, count: usize) -> Vec<String> {
    let start = Instant::now();
    loop {
        let names: Vec<_> = jit.tier_statistics().promotions.iter().map(|one| one.function.to_string()).collect();
        if names.len() >= count {
            return names;
        }
        assert!(start.elapsed() < Duration::from_secs(60), "only {names:?} were promoted");
        std::thread::yield_now();
    }
}

#[test]
fn a_function_that_is_called_often_is_promoted_and_gives_the_same() {
    let jit = tiered(Tiering::default().threshold(100));
    redefine(&jit, FIB).unwrap();
    redefine(&jit, &constant("cold", 1)).unwrap();
    let fib = unary(&jit, "fib");
    call(&jit, "cold");
    // SAFETY: the functions only compute.
    assert_eq!(unsafe { fib(5) }, 5);
    assert!(jit.tier_statistics().promotions.is_empty());
    // SAFETY: as above.
    assert_eq!(unsafe { fib(20) }, 6765);
    assert_eq!(promoted(&jit, 1), ["fib"]);
    // SAFETY: as above.
    assert_eq!(unsafe { fib(20) }, 6765);
    let statistics = jit.tier_statistics();
    let promotion = &statistics.promotions[0];
    assert_eq!((statistics.first_tier, promotion.count, promotion.cause), (2, 100, PromotionCause::Call));
    // The first tier's two, and the second's one.
    assert_eq!(jit.stats().compile.functions, 3);
    assert_eq!(jit.lookup_address("fib").unwrap(), fib as usize as u64);
}

#[test]
fn the_first_tier_is_compiled_without_optimization_and_the_second_with() {
    const STEPS: usize = 100;
    // Of each step, nothing is left at `speed`.
    let steps: String = (1..=STEPS).map(|step| format!("v{step} = imul v{}, v1000\n", step - 1)).collect();
    let text = format!(
        "function %f(i64) -> i64 system_v {{
        block0(v0: i64):
            v1000 = iconst.i64 1
            {steps}
            return v{STEPS}
        }}"
    );
    let jit = tiered(Tiering::default().threshold(5));
    redefine(&jit, &text).unwrap();
    let f = unary(&jit, "f");
    // SAFETY: the function only computes.
    assert_eq!(unsafe { f(7) }, 7);
    let first = jit.stats().compile.code_bytes;
    // SAFETY: as above.
    (0..5).for_each(|_| assert_eq!(unsafe { f(7) }, 7));
    promoted(&jit, 1);
    let second = jit.stats().compile.code_bytes - first;
    // A multiplication has three bytes at least.
    assert!(first > 3 * STEPS as u64 && second < STEPS as u64, "{first} bytes, then {second}");
}

#[test]
fn a_loop_that_runs_long_counts() {
    let jit = tiered(Tiering::default().threshold(1000));
    redefine(&jit, LOOP).unwrap();
    let turn = unary(&jit, "turn");
    // SAFETY: the functions only compute.
    assert_eq!(unsafe { turn(100_000) }, 100_000);
    assert_eq!(promoted(&jit, 1), ["turn"]);
    assert_eq!(jit.tier_statistics().promotions[0].cause, PromotionCause::Loop);
    // SAFETY: as above.
    assert_eq!(unsafe { turn(77) }, 77);
}

#[test]
fn the_call_that_runs_the_counter_out_keeps_its_arguments() {
    const SUM: &str = "
        function %sum(i64, i64, i64, i64, i64, i64, i64, f64, f64, f64, f64, f64, f64, f64, f64) -> i64 system_v {
        block0(v0: i64, v1: i64, v2: i64, v3: i64, v4: i64, v5: i64, v6: i64,
               v10: f64, v11: f64, v12: f64, v13: f64, v14: f64, v15: f64, v16: f64, v17: f64):
            v20 = fadd v10, v11
            v21 = fadd v12, v13
            v22 = fadd v14, v15
            v23 = fadd v16, v17
            v24 = fadd v20, v21
            v25 = fadd v22, v23
            v26 = fadd v24, v25
            v27 = fcvt_to_sint.i64 v26
            v28 = iadd v0, v1
            v29 = iadd v2, v3
            v30 = iadd v4, v5
            v31 = iadd v28, v29
            v32 = iadd v30, v6
            v33 = iadd v31, v32
            v34 = iadd v33, v27
            return v34
        }";
    type Sum = unsafe extern "C" fn(i64, i64, i64, i64, i64, i64, i64, f64, f64, f64, f64, f64, f64, f64, f64) -> i64;
    let jit = tiered(Tiering::default().threshold(3));
    redefine(&jit, SUM).unwrap();
    // SAFETY: the address of a function of this type.
    let sum = unsafe { std::mem::transmute::<usize, Sum>(jit.lookup_address("sum").unwrap() as usize) };
    for _ in 0..5 {
        // SAFETY: it only computes.
        let given =
            unsafe { sum(1, 2, 4, 8, 16, 32, 64, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16384.0) };
        assert_eq!(given, 0x7fff);
    }
    promoted(&jit, 1);
}

#[test]
fn a_handle_keeps_its_body_and_what_counts_its_calls() {
    let jit = tiered(Tiering::default().threshold(10));
    redefine(&jit, &constant("f", 0)).unwrap();
    let old = jit.lookup::<Nullary>("f").unwrap();
    for round in 1..100 {
        redefine(&jit, &constant("f", round)).unwrap();
        assert_eq!(call(&jit, "f"), round);
        // SAFETY: it only computes.
        assert_eq!(unsafe { old.call() }, 0);
    }
}

#[test]
fn entries_that_count_are_used_again() {
    let jit = tiered(Tiering::default().threshold(2));
    let mut held = Vec::new();
    for round in 0..200 {
        redefine(&jit, &constant("f", round)).unwrap();
        let f = at(jit.lookup_address("f").unwrap());
        // SAFETY: it only computes.
        (0..3).for_each(|_| assert_eq!(unsafe { f() }, round));
        promoted(&jit, round as usize + 1);
        let memory = jit.memory_statistics();
        held.push((memory.allocations, memory.mappings));
    }
    assert_eq!(held[100], held[199]);
}

#[test]
fn a_new_body_begins_at_the_first_tier() {
    let jit = tiered(Tiering::default().threshold(10));
    redefine(&jit, &constant("f", 1)).unwrap();
    let f = at(jit.lookup_address("f").unwrap());
    // SAFETY: the functions only compute.
    (0..20).for_each(|_| assert_eq!(unsafe { f() }, 1));
    promoted(&jit, 1);
    redefine(&jit, &constant("f", 2)).unwrap();
    // SAFETY: as above.
    (0..20).for_each(|_| assert_eq!(unsafe { f() }, 2));
    promoted(&jit, 2);
    // SAFETY: as above.
    assert_eq!(unsafe { f() }, 2);
    assert_eq!(call(&jit, "f"), 2);
    // SAFETY: as above.
    assert_eq!(unsafe { jit.lookup::<Nullary>("f").unwrap().call() }, 2);
}

/// Adds a constant that a function of the module's own gives, and one that an exported function gives.
const CALLER: &str = "
    function %add(i64) -> i64 system_v {
        sig0 = () -> i64 system_v
        fn0 = %own_twenty sig0
        fn1 = %open sig0
    block0(v0: i64):
        v1 = call fn0()
        v2 = call fn1()
        v3 = iadd v0, v1
        v4 = iadd v3, v2
        return v4
    }
    function %open() -> i64 system_v { block0: v0 = iconst.i64 1000 return v0 }
    function %own_twenty() -> i64 system_v { block0: v0 = iconst.i64 20 return v0 }";

/// A JIT in which that was promoted, and where its body is.
fn promote_caller(inlining: Option<InlineSmallFunctions>) -> (LazyJit, u64) {
    let jit = tiered(Tiering::default().threshold(10).inlining(inlining));
    redefine(&jit, CALLER).unwrap();
    let add = unary(&jit, "add");
    // SAFETY: the functions only compute.
    (0..11).for_each(|_| assert_eq!(unsafe { add(1) }, 1021));
    promoted(&jit, 2);
    let body = jit.lookup::<unsafe extern "C" fn(i64) -> i64>("add").unwrap();
    // SAFETY: as above.
    assert_eq!(unsafe { body.call(1) }, 1021);
    let address = body.address();
    (jit, address)
}

#[test]
fn a_function_that_is_promoted_takes_in_small_callees_that_nobody_can_redefine() {
    for (inlining, calls) in [(None, 2), (Some(InlineSmallFunctions::default()), 1)] {
        let (jit, body) = promote_caller(inlining);
        assert_eq!(calls_in(body), calls, "{inlining:?}");
        // What is called through a slot is not taken in, and so not out of date.
        redefine(&jit, &constant("open", 3000)).unwrap();
        let add = unary(&jit, "add");
        // SAFETY: the functions only compute.
        assert_eq!(unsafe { add(1) }, 3021);
    }
}

/// The call instructions of the function at an address, which ends at its first return.
#[cfg(target_arch = "x86_64")]
fn calls_in(function: u64) -> usize {
    use iced_x86::{Decoder, DecoderOptions, Mnemonic};
    // SAFETY: the function is at most as long; it is in memory that goes on for a page at least.
    let bytes = unsafe { std::slice::from_raw_parts(std::ptr::with_exposed_provenance(function as usize), 64) };
    let instructions =
        Decoder::with_ip(64, bytes, function, DecoderOptions::NONE).into_iter().map(|one| one.mnemonic());
    let own = instructions.take_while(|mnemonic| *mnemonic != Mnemonic::Ret);
    own.filter(|mnemonic| *mnemonic == Mnemonic::Call).count()
}

/// As on x86-64: `bl` and `blr` up to `ret`.
#[cfg(target_arch = "aarch64")]
fn calls_in(function: u64) -> usize {
    // SAFETY: the function is at most as long; it is in memory that goes on for a page at least.
    let words = unsafe { std::slice::from_raw_parts(std::ptr::with_exposed_provenance::<u32>(function as usize), 32) };
    let own = words.iter().take_while(|word| **word & 0xffff_fc1f != 0xd65f_0000);
    own.filter(|word| **word >> 26 == 0b10_0101 || **word & 0xffff_fc1f == 0xd63f_0000).count()
}

#[test]
fn the_transform_is_the_users_and_its_error_is_the_functions() {
    let jit = Jit::builder().verifier(true);
    let tiering = Tiering::default().transform(|_, _| Err("not countable".to_owned()));
    let jit = LazyJitBuilder::new(jit).tiers(tiering).build().unwrap();
    redefine(&jit, &constant("f", 1)).unwrap();
    let error = jit.lookup::<Nullary>("f").unwrap_err().to_string();
    assert!(error.ends_with("not countable"), "{error}");
}

#[test]
fn threads_that_run_a_function_while_it_is_promoted_notice_nothing() {
    let jit = tiered(Tiering::default().threshold(200));
    redefine(&jit, FIB).unwrap();
    let fib = unary(&jit, "fib");
    std::thread::scope(|scope| {
        for _ in 0..8 {
            // SAFETY: the functions only compute.
            scope.spawn(|| (0..50).for_each(|_| assert_eq!(unsafe { fib(12) }, 144)));
        }
    });
    promoted(&jit, 1);
    assert_eq!(jit.stats().compile.functions, 2);
}
