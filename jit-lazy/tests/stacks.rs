//! First calls from threads and stacks of all kinds.

mod common;

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::thread;

use common::{at, call, constant, jit, redefine, this_program};

/// Adds the numbers up to its argument, calling itself; the innermost call makes a first call.
const DEEP: &str = "
    function %deep(i64) -> i64 system_v {
        sig0 = (i64) -> i64 system_v
        sig1 = () -> i64 system_v
        fn0 = %deep sig0
        fn1 = %bottom sig1
    block0(v0: i64):
        brif v0, block1, block2
    block1:
        v5 = iconst.i64 -1
        v1 = iadd v0, v5
        v2 = call fn0(v1)
        v3 = iadd v2, v0
        return v3
    block2:
        v4 = call fn1()
        return v4
    }";

#[test]
fn lazy_04_from_deep_recursion() {
    let jit = jit();
    redefine(&jit, DEEP).unwrap();
    redefine(&jit, &constant("bottom", 7)).unwrap();
    let deep = jit.lookup::<unsafe extern "C" fn(i64) -> i64>("deep").unwrap();
    // 60,000 frames of at least 24 bytes leave less than Cranelift needs.
    let thread = thread::Builder::new().stack_size(60_000 * 32 + (64 << 10));
    // SAFETY: the functions only compute, and the stack is large enough for them.
    let sum = thread.spawn(move || unsafe { deep.call(60_000) }).unwrap().join().unwrap();
    assert_eq!(sum, 60_000 * 60_001 / 2 + 7);
}

#[test]
fn lazy_04_from_a_thread_with_a_small_stack() {
    let jit = jit();
    redefine(&jit, &constant("f", 5)).unwrap();
    let address = jit.lookup_address("f").unwrap();
    let small = thread::Builder::new().stack_size(64 << 10);
    // SAFETY: the function only computes.
    assert_eq!(small.spawn(move || unsafe { at(address)() }).unwrap().join().unwrap(), 5);
    assert_eq!(jit.stats().compile.functions, 1);
}

extern "C" fn foreign(address: *mut libc::c_void) -> *mut libc::c_void {
    // SAFETY: a function that only computes.
    std::ptr::without_provenance_mut(unsafe { at(address as u64)() } as usize)
}

#[test]
fn lazy_04_from_a_thread_that_the_session_never_saw() {
    let jit = jit();
    redefine(&jit, &constant("f", 6)).unwrap();
    let address = std::ptr::without_provenance_mut(jit.lookup_address("f").unwrap() as usize);
    let mut result = std::ptr::null_mut();
    // SAFETY: a thread that calls `foreign`, whose result is waited for.
    unsafe {
        let mut thread = std::mem::zeroed();
        assert_eq!(libc::pthread_create(&raw mut thread, std::ptr::null(), foreign, address), 0);
        assert_eq!(libc::pthread_join(thread, &raw mut result), 0);
    }
    assert_eq!(result as usize, 6);
}

/// What the signal handler calls.
static CALLEE: AtomicU64 = AtomicU64::new(0);
/// What that gave.
static RESULT: AtomicI64 = AtomicI64::new(0);

#[unsafe(no_mangle)]
extern "C" fn a_signal_handler(_: libc::c_int) {
    // SAFETY: a function that only computes.
    RESULT.store(unsafe { at(CALLEE.load(Ordering::Relaxed))() }, Ordering::Relaxed);
}

fn raise(address: u64) -> i64 {
    CALLEE.store(address, Ordering::Relaxed);
    // SAFETY: the handler is a function of the type that is asked for.
    unsafe {
        libc::signal(libc::SIGUSR1, a_signal_handler as *const () as libc::sighandler_t);
        libc::raise(libc::SIGUSR1);
    }
    RESULT.load(Ordering::Relaxed)
}

#[test]
fn a_signal_handler_can_call_what_is_compiled() {
    let jit = jit();
    redefine(&jit, &constant("f", 5)).unwrap();
    call(&jit, "f");
    assert_eq!(raise(jit.lookup_address("f").unwrap()), 5);
    // Looked up by name, it is ready as well.
    redefine(&jit, &constant("g", 6)).unwrap();
    jit.lookup::<common::Nullary>("g").unwrap();
    assert_eq!(raise(jit.lookup_address("g").unwrap()), 6);
}

#[test]
fn a_first_call_in_a_signal_handler_ends_the_process_with_the_handlers_name() {
    const CHILD: &str = "ORCANE_TEST_SIGNAL";
    if let Ok(blocks_another) = std::env::var(CHILD) {
        let jit = jit();
        redefine(&jit, &format!("{}{}", constant("before", 4), constant("callee", 5))).unwrap();
        let callee = jit.lookup_address("callee").unwrap();
        if blocks_another == "yes" {
            // SAFETY: blocks a signal that nobody sends.
            unsafe {
                let mut set = std::mem::zeroed();
                libc::sigemptyset(&raw mut set);
                libc::sigaddset(&raw mut set, libc::SIGUSR2);
                libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
            }
            assert_eq!(call(&jit, "before"), 4);
        }
        raise(callee);
        return;
    }
    for blocks_another in ["no", "yes"] {
        let name = "a_first_call_in_a_signal_handler_ends_the_process_with_the_handlers_name";
        let output = this_program().args(["--exact", "--nocapture", name]).env(CHILD, blocks_another).output().unwrap();
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{told}");
        assert!(told.contains("'callee' was first called in the signal handler "), "{told}");
        // By name where the program exports it, by place in its file otherwise.
        assert!(told.contains("a_signal_handler") || told.contains("at 0x") && told.contains("stacks"), "{told}");
    }
}

#[test]
fn blocked_signals_do_not_make_a_signal_handler() {
    let jit = jit();
    redefine(&jit, &constant("f", 5)).unwrap();
    let address = jit.lookup_address("f").unwrap();
    let result = thread::spawn(move || {
        // SAFETY: blocks a signal for this thread, which ends; the function only computes.
        unsafe {
            let mut set = std::mem::zeroed();
            libc::sigemptyset(&raw mut set);
            libc::sigaddset(&raw mut set, libc::SIGUSR2);
            libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
            at(address)()
        }
    });
    assert_eq!(result.join().unwrap(), 5);
}
