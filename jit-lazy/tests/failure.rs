//! Calls of functions that can't be compiled.

mod common;

use std::backtrace::Backtrace;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use common::{at, builder, call, caller, constant, redefine, this_program};
use jit_core::LazyBody;

extern "C" fn substitute() -> i64 {
    -1
}

#[test]
fn lazy_05_a_call_whose_body_fails_goes_where_the_handler_says() {
    let told = Arc::new(Mutex::new(Vec::new()));
    let tell = Arc::clone(&told);
    let handler = move |function: &jit_core::SymbolName, error: &jit_core::LookupError| {
        tell.lock().unwrap().push((function.to_string(), error.to_string()));
        substitute as *const () as u64
    };
    let jit = builder().failure_handler(handler).build().unwrap();
    redefine(&jit, &format!("{}{}", caller("outer", "broken"), caller("broken", "missing"))).unwrap();
    redefine(&jit, &constant("sound", 3)).unwrap();
    for calls in 1..3 {
        assert_eq!(call(&jit, "outer"), 99);
        let told = told.lock().unwrap();
        assert_eq!(told.len(), calls);
        let (function, error) = &told[calls - 1];
        assert_eq!(function, "broken");
        assert!(error.contains("missing") && error.contains("not found"), "{error}");
    }
    assert_eq!(call(&jit, "sound"), 3);

    // A later definition repairs it, for those too who have its address.
    redefine(&jit, &constant("broken", 1)).unwrap();
    assert_eq!(call(&jit, "outer"), 101);
    assert_eq!(told.lock().unwrap().len(), 2);
}

#[test]
fn lazy_07_a_panic_in_the_handler_passes_through_the_first_call_to_its_caller() {
    let jit = builder().failure_handler(|function, _| panic!("no {function}")).build().unwrap();
    redefine(&jit, &caller("broken", "missing")).unwrap();
    let address = jit.lookup_address("broken").unwrap() as usize;
    // SAFETY: a function of this type, but for the panic, is there.
    let function = unsafe { std::mem::transmute::<usize, unsafe extern "C-unwind" fn() -> i64>(address) };
    for _ in 0..2 {
        // SAFETY: the function has no arguments, and panics.
        let panic = std::panic::catch_unwind(|| unsafe { function() }).unwrap_err();
        assert_eq!(panic.downcast_ref::<String>().map(String::as_str), Some("no broken"));
    }
}

#[test]
fn lazy_07_so_does_a_panic_of_who_says_what_is_compiled_together() {
    let panics = AtomicBool::new(true);
    let partition = move |body: &LazyBody| {
        assert!(!panics.swap(false, Ordering::Relaxed), "not {}", body.function());
        Vec::new()
    };
    let jit = builder().partition(partition).build().unwrap();
    redefine(&jit, &constant("f", 5)).unwrap();
    let address = jit.lookup_address("f").unwrap() as usize;
    // SAFETY: a function of this type, but for the panic, is there.
    let function = unsafe { std::mem::transmute::<usize, unsafe extern "C-unwind" fn() -> i64>(address) };
    // SAFETY: the function has no arguments, and panics.
    let panic = std::panic::catch_unwind(|| unsafe { function() }).unwrap_err();
    assert_eq!(panic.downcast_ref::<String>().map(String::as_str), Some("not f"));
    // Nothing is left behind: the next call compiles it.
    assert_eq!(call(&jit, "f"), 5);
}

#[test]
fn lazy_07_a_panic_in_a_body_reached_by_its_first_call_passes_to_the_caller() {
    extern "C-unwind" fn fall() -> i64 {
        panic!("in the body")
    }
    let jit = builder().failure_handler(|_, _| fall as *const () as u64).build().unwrap();
    redefine(&jit, &caller("f", "missing")).unwrap();
    let address = jit.lookup_address("f").unwrap() as usize;
    // SAFETY: the first call goes on at a function of this type.
    let function = unsafe { std::mem::transmute::<usize, unsafe extern "C-unwind" fn() -> i64>(address) };
    // SAFETY: the function has no arguments, and panics.
    let panic = std::panic::catch_unwind(|| unsafe { function() }).unwrap_err();
    assert_eq!(panic.downcast_ref::<&str>(), Some(&"in the body"));
}

#[inline(never)]
fn a_named_caller(address: u64) -> i64 {
    // SAFETY: the functions only compute.
    std::hint::black_box(unsafe { at(address)() })
}

#[test]
fn a_backtrace_leads_through_the_first_call_to_its_caller() {
    let seen = Arc::new(Mutex::new(String::new()));
    let trace = Arc::clone(&seen);
    let handler = move |_: &jit_core::SymbolName, _: &jit_core::LookupError| {
        *trace.lock().unwrap() = Backtrace::force_capture().to_string();
        substitute as *const () as u64
    };
    let jit = builder().failure_handler(handler).build().unwrap();
    redefine(&jit, &caller("broken", "missing")).unwrap();
    assert_eq!(a_named_caller(jit.lookup_address("broken").unwrap()), -1);
    let trace = seen.lock().unwrap();
    let (routine, caller) = (trace.find("orcane_reentry"), trace.find("a_named_caller"));
    assert!(routine.is_some() && routine < caller, "{trace}");
}

#[test]
fn by_default_the_process_is_aborted_with_the_name_and_the_cause() {
    const CHILD: &str = "ORCANE_TEST_ABORT";
    if std::env::var_os(CHILD).is_some() {
        let jit = builder().build().unwrap();
        redefine(&jit, &caller("broken", "missing")).unwrap();
        call(&jit, "broken");
        return;
    }
    let output = this_program()
        .args(["--exact", "--nocapture", "by_default_the_process_is_aborted_with_the_name_and_the_cause"])
        .env(CHILD, "1")
        .output()
        .unwrap();
    assert!(!output.status.success());
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(told.contains("'broken' was called and can't be compiled") && told.contains("'missing'"), "{told}");
}
