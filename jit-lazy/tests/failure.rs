//! Calls of functions that can't be compiled.

mod common;

use std::backtrace::Backtrace;
use std::process::Command;
use std::sync::{Arc, Mutex};

use common::{at, builder, call, caller, constant, redefine};

extern "C" fn substitute() -> i64 {
    -1
}

#[test]
fn a_call_whose_body_fails_goes_where_the_handler_says() {
    let told = Arc::new(Mutex::new(Vec::new()));
    let tell = Arc::clone(&told);
    let handler = move |function: &jit_core::SymbolName, error: &jit_core::LookupError| {
        tell.lock().unwrap().push((function.to_string(), error.to_string()));
        substitute as *const () as u64
    };
    let jit = builder().failure_handler(handler).build().unwrap();
    redefine(&jit, &format!("{}{}", caller("outer", "broken"), caller("broken", "missing"))).unwrap();
    assert_eq!(call(&jit, "outer"), 99);
    {
        let told = told.lock().unwrap();
        let [(function, error)] = &told[..] else { panic!("one failure, not {told:?}") };
        assert_eq!(function, "broken");
        assert!(error.contains("missing") && error.contains("not found"), "{error}");
    }

    // A later definition repairs it, for those too who have its address.
    redefine(&jit, &constant("broken", 1)).unwrap();
    assert_eq!(call(&jit, "outer"), 101);
    assert_eq!(told.lock().unwrap().len(), 1);
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

/// A command that runs these tests, through the emulator if they are emulated.
fn this_program() -> Command {
    let program = std::env::current_exe().unwrap();
    let runner = if cfg!(target_arch = "aarch64") { "CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER" } else { "" };
    let Ok(runner) = std::env::var(runner) else { return Command::new(program) };
    let mut words = runner.split_whitespace();
    let mut command = Command::new(words.next().unwrap());
    command.args(words).arg(program);
    command
}
