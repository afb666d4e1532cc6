//! Signals that come while the unwinder is told of code, when it holds the lock that walks take, to handlers that make
//! first calls.
#![cfg(all(target_arch = "x86_64", target_os = "linux", target_env = "gnu"))]

mod common;

use std::arch::asm;
use std::ffi::{c_int, c_void};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use common::{at, constant, jit, redefine};
use jit_core::seam::{Frames, register};
use jit_linker::arch::Architecture;

unsafe extern "C" {
    fn __register_frame(begin: *const c_void);
}

/// The processor's flag that has it trap after each instruction.
const TRAP: i64 = 0x100;

/// What the handler calls.
static CALLEE: AtomicU64 = AtomicU64::new(0);
/// Where the code of the unwinder begins.
static UNWINDER: AtomicU64 = AtomicU64::new(0);
/// Which of its instructions were interrupted: no unwinder is larger.
static SEEN: [AtomicBool; 1 << 20] = [const { AtomicBool::new(false) }; 1 << 20];
/// How often the call was refused, and how often something else became of it.
static REFUSED: AtomicUsize = AtomicUsize::new(0);
static LOST: AtomicUsize = AtomicUsize::new(0);

/// At each instruction of the unwinder, has a copy of the process make the first call.
extern "C" fn step(_: c_int, _: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: the system hands a handler the state that it interrupted.
    let registers = unsafe { &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs };
    let offset = (registers[libc::REG_RIP as usize] as u64).wrapping_sub(UNWINDER.load(Ordering::Relaxed));
    if SEEN.get(offset as usize).is_none_or(|seen| seen.swap(true, Ordering::Relaxed)) {
        return;
    }
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
        if copy > 0 && libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGABRT {
            REFUSED.fetch_add(1, Ordering::Relaxed);
        } else {
            LOST.fetch_add(1, Ordering::Relaxed);
            // One tells enough.
            registers[libc::REG_EFL as usize] &= !TRAP;
        }
    }
}

/// Where the code of the file is mapped that has the unwinder.
fn unwinder() -> std::ops::Range<u64> {
    let within = __register_frame as *const () as u64;
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let hex = |text| u64::from_str_radix(text, 16).unwrap();
    let ranges = maps.lines().map(|line| line.split(' ').next().unwrap().split_once('-').unwrap());
    ranges.map(|(start, end)| hex(start)..hex(end)).find(|range| range.contains(&within)).unwrap()
}

#[test]
fn a_first_call_in_a_handler_that_interrupts_the_unwinder_is_refused_and_does_not_hang() {
    /// No code: only its address counts.
    static PLACE: [u8; 256] = [0; 256];
    let jit = jit();
    redefine(&jit, &constant("f", 5)).unwrap();
    CALLEE.store(jit.lookup_address("f").unwrap(), Ordering::Relaxed);
    let unwinder = unwinder();
    assert!((unwinder.end - unwinder.start) as usize <= SEEN.len());
    UNWINDER.store(unwinder.start, Ordering::Relaxed);
    // SAFETY: the handler is of the type that is asked for, and stays; copies that abort leave no core.
    unsafe {
        libc::setrlimit(libc::RLIMIT_CORE, &libc::rlimit { rlim_cur: 0, rlim_max: 0 });
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = step as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO;
        assert_eq!(libc::sigaction(libc::SIGTRAP, &raw const action, std::ptr::null_mut()), 0);
    }
    let place = PLACE.as_ptr() as u64;
    let frames = Frames::of_counted_entries(Architecture::X86_64, place..place + PLACE.len() as u64, 1);
    // SAFETY: sets the flag, and clears it; the red zone is left alone.
    unsafe { asm!("sub rsp, 128", "pushfq", "or qword ptr [rsp], {TRAP}", "popfq", "add rsp, 128", TRAP = const TRAP) };
    drop(register(frames));
    // SAFETY: as above.
    unsafe { asm!("sub rsp, 128", "pushfq", "and qword ptr [rsp], {}", "popfq", "add rsp, 128", const !TRAP) };
    let (refused, lost) = (REFUSED.load(Ordering::Relaxed), LOST.load(Ordering::Relaxed));
    assert_eq!(lost, 0, "{refused} others were refused");
    assert!(refused > 20, "{refused}");
    // SAFETY: the function only computes.
    assert_eq!(unsafe { at(CALLEE.load(Ordering::Relaxed))() }, 5);
}
