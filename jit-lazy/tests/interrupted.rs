//! Signals that come in the middle of a change, to handlers that make first calls.

#![cfg(unix)]

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use common::{at, builder, ready};
use jit_core::RedirectableFunction;
use jit_lazy::LazyJit;

/// Sends the thread a signal at its allocations, those for single small things excepted: they are many, and a copy of
/// the process is made at each signal.
struct Interrupting;

/// The least that a table takes.
const TABLE: usize = 64;

thread_local! {
    static ARMED: Cell<bool> = const { Cell::new(false) };
}

// SAFETY: passes everything on to the system's allocator.
unsafe impl GlobalAlloc for Interrupting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if layout.size() >= TABLE && ARMED.replace(false) {
            // SAFETY: its handler is below.
            unsafe { libc::raise(libc::SIGUSR1) };
            ARMED.set(true);
        }
        // SAFETY: as the caller says.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: as the caller says.
        unsafe { System.dealloc(block, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Interrupting = Interrupting;

/// What the handler calls.
static CALLEE: AtomicU64 = AtomicU64::new(0);
/// How often the call was refused, and how often something else became of it.
static REFUSED: AtomicUsize = AtomicUsize::new(0);
static LOST: AtomicUsize = AtomicUsize::new(0);

/// Has a copy of the process make the first call, in which the thread is where this one is.
extern "C" fn handle(_: libc::c_int) {
    // SAFETY: what a signal handler may do; the copy does nothing else than what is looked at here.
    unsafe {
        let copy = libc::fork();
        if copy == 0 {
            let nowhere = libc::open(c"/dev/null".as_ptr(), libc::O_WRONLY);
            libc::dup2(nowhere, libc::STDERR_FILENO);
            libc::alarm(20);
            at(CALLEE.load(Ordering::Relaxed))();
            libc::_exit(0);
        }
        let mut status = 0;
        libc::waitpid(copy, &raw mut status, 0);
        let refused = copy > 0 && libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGABRT;
        if refused { &REFUSED } else { &LOST }.fetch_add(1, Ordering::Relaxed);
    }
}

fn functions(jit: &LazyJit, range: std::ops::Range<usize>) -> Vec<RedirectableFunction> {
    range.map(|number| ready(jit, &format!("f{number}"))).collect()
}

#[test]
fn a_first_call_in_a_handler_that_interrupts_a_definition_is_refused_and_does_not_hang() {
    let jit = builder().build().unwrap();
    jit.redefine_with(functions(&jit, 0..1)).unwrap();
    CALLEE.store(jit.lookup_address("f0").unwrap(), Ordering::Relaxed);
    // SAFETY: the handler is a function of the type that is asked for; copies that abort leave no core.
    unsafe {
        libc::setrlimit(libc::RLIMIT_CORE, &libc::rlimit { rlim_cur: 0, rlim_max: 0 });
        libc::signal(libc::SIGUSR1, handle as *const () as libc::sighandler_t);
    }
    // New blocks of trampolines, more of them than there is room for; then new bodies for all.
    for _ in 0..2 {
        let functions = functions(&jit, 0..1500);
        ARMED.set(true);
        let result = jit.redefine_with(functions);
        ARMED.set(false);
        result.unwrap();
    }
    let (refused, lost) = (REFUSED.load(Ordering::Relaxed), LOST.load(Ordering::Relaxed));
    assert_eq!(lost, 0, "{refused} others were refused");
    assert!(refused > 50, "{refused}");
    // SAFETY: the call ends up in `answer`.
    assert_eq!(unsafe { at(CALLEE.load(Ordering::Relaxed))() }, 42);
}
