//! The signal handler: it decides whether a fault is a trap of compiled code that somebody waits
//! for, and if so lets the thread go on there. Everything else is for the handler that was
//! installed before.
//!
//! It takes no lock, allocates nothing, and reads no memory but its own, the stack between the
//! fault and the scope, and the instruction that faulted.

use std::ffi::{c_int, c_void};
use std::io;
use std::ptr;
use std::sync::OnceLock;

use super::places::PLACES;
use super::{Fault, enter, innermost};

const SIGNALS: [c_int; 4] = [libc::SIGILL, libc::SIGFPE, libc::SIGSEGV, libc::SIGBUS];

/// Frames of compiled code that are looked at: more than any stack has room for.
const MAX_FRAMES: usize = 1 << 24;

static PREVIOUS: OnceLock<[libc::sigaction; SIGNALS.len()]> = OnceLock::new();

/// Installs the handler, once for the process. It stays: another handler may have been put on top
/// of it.
pub(super) fn install() -> io::Result<()> {
    static INSTALLED: std::sync::Mutex<bool> = std::sync::Mutex::new(false);
    let mut installed = crate::sync::lock(&INSTALLED);
    if *installed {
        return Ok(());
    }
    // SAFETY: zeros are a valid `sigaction`: no handler, no flags, no mask.
    let mut previous: [libc::sigaction; SIGNALS.len()] = unsafe { std::mem::zeroed() };
    // Known before the first signal can be ours.
    for (signal, previous) in SIGNALS.iter().zip(&mut previous) {
        // SAFETY: asks for the present action only.
        check(unsafe { libc::sigaction(*signal, ptr::null(), previous) })?;
    }
    _ = PREVIOUS.set(previous);
    for signal in SIGNALS {
        // SAFETY: as above.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = handle as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        // SAFETY: the handler has the signature of `SA_SIGINFO`, and keeps to what one may do.
        check(unsafe { libc::sigaction(signal, &action, ptr::null_mut()) })?;
    }
    *installed = true;
    Ok(())
}

fn check(result: c_int) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

unsafe extern "C" fn handle(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel passes a context and what it knows of the signal.
    let caught = unsafe { catch(signal, &*info, &mut *context.cast::<libc::ucontext_t>()) };
    if !caught {
        // SAFETY: passed on as they came.
        unsafe { pass_on(signal, info, context) };
    }
}

/// Lets the thread go on where the innermost scope waits, if it was in compiled code which that
/// scope has entered.
fn catch(signal: c_int, info: &libc::siginfo_t, context: &mut libc::ucontext_t) -> bool {
    let Some(scope) = innermost() else { return false };
    let mut machine = Machine::of(context);
    let pc = machine.pc();
    // Not sent by a process, and in our code.
    if info.si_code <= 0 || !PLACES.contain(pc) {
        return false;
    }
    // SAFETY: the scope is on this thread's stack, above what runs; nobody else refers to it while
    // the function that it has entered runs.
    let scope = unsafe { &mut *scope };
    let mut frame = machine.frame();
    for _ in 0..MAX_FRAMES {
        let Some((return_address, caller)) = frame else { return false };
        if return_address == enter::return_address() && caller == scope.frame {
            // SAFETY: the field is valid for the signals that are handled.
            let address = unsafe { info.si_addr() } as u64;
            scope.fault = Fault { signal, pc, address };
            machine.go_on(enter::landing(), scope.frame);
            return true;
        }
        // A frame of the host's: it is not to be skipped.
        if !PLACES.contain(return_address.wrapping_sub(1)) {
            return false;
        }
        frame = saved(caller, machine.stack_pointer(), scope.frame);
    }
    false
}

/// The return address and the caller's frame pointer that a frame holds, if it is in its stack.
fn saved(frame: u64, low: u64, high: u64) -> Option<(u64, u64)> {
    if frame < low || frame >= high || !frame.is_multiple_of(8) {
        return None;
    }
    let words = ptr::with_exposed_provenance::<u64>(frame as usize);
    // SAFETY: between the stack pointer and a frame that is still there, the stack is mapped; the
    // frame at `high` begins with two words.
    Some(unsafe { (words.add(1).read(), words.read()) })
}

/// The registers of the thread that was interrupted.
struct Machine<'a>(&'a mut libc::ucontext_t);

#[cfg(target_arch = "x86_64")]
impl<'a> Machine<'a> {
    fn of(context: &'a mut libc::ucontext_t) -> Self {
        Self(context)
    }

    fn register(&self, register: c_int) -> u64 {
        self.0.uc_mcontext.gregs[register as usize].cast_unsigned()
    }

    fn pc(&self) -> u64 {
        self.register(libc::REG_RIP)
    }

    fn stack_pointer(&self) -> u64 {
        self.register(libc::REG_RSP)
    }

    /// The return address and the caller's frame pointer.
    fn frame(&self) -> Option<(u64, u64)> {
        const PUSH_RBP: u8 = 0x55;
        let instruction = ptr::with_exposed_provenance::<u8>(self.pc() as usize);
        // SAFETY: there is code.
        if unsafe { instruction.read() } != PUSH_RBP {
            return saved(self.register(libc::REG_RBP), self.stack_pointer(), u64::MAX);
        }
        let top = ptr::with_exposed_provenance::<u64>(self.stack_pointer() as usize);
        // SAFETY: the function has just been called, so the return address is there.
        Some((unsafe { top.read_unaligned() }, self.register(libc::REG_RBP)))
    }

    fn go_on(&mut self, pc: u64, frame: u64) {
        let registers = &mut self.0.uc_mcontext.gregs;
        registers[libc::REG_RIP as usize] = pc.cast_signed();
        registers[libc::REG_RBP as usize] = frame.cast_signed();
        // The routine takes it from the frame; a signal on its first instruction must not write
        // over what it has saved.
        registers[libc::REG_RSP as usize] = (frame - 64).cast_signed();
    }
}

#[cfg(target_arch = "aarch64")]
impl<'a> Machine<'a> {
    fn of(context: &'a mut libc::ucontext_t) -> Self {
        Self(context)
    }

    fn pc(&self) -> u64 {
        self.0.uc_mcontext.pc
    }

    fn stack_pointer(&self) -> u64 {
        self.0.uc_mcontext.sp
    }

    /// The return address and the caller's frame pointer.
    fn frame(&self) -> Option<(u64, u64)> {
        /// `stp x29, x30, [sp, #-16]!`
        const PUSH_FRAME: u32 = 0xa9bf_7bfd;
        let instruction = ptr::with_exposed_provenance::<u32>(self.pc() as usize);
        let registers = &self.0.uc_mcontext.regs;
        // SAFETY: there is code, and instructions are aligned.
        if unsafe { instruction.read() } != PUSH_FRAME {
            return saved(registers[29], self.stack_pointer(), u64::MAX);
        }
        Some((registers[30], registers[29]))
    }

    fn go_on(&mut self, pc: u64, frame: u64) {
        let machine = &mut self.0.uc_mcontext;
        machine.pc = pc;
        machine.regs[29] = frame;
        machine.sp = frame - 16;
    }
}

/// Does what would have been done without us.
///
/// # Safety
///
/// The arguments are those of a signal handler that is being run.
unsafe fn pass_on(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    let index = SIGNALS.iter().position(|handled| *handled == signal);
    let Some(previous) = index.and_then(|index| PREVIOUS.get()?.get(index)) else { return };
    // SAFETY: as the caller says.
    let was_sent = unsafe { (*info).si_code } <= 0;
    match previous.sa_sigaction {
        libc::SIG_IGN if was_sent => {}
        // SAFETY: an action that the process had before.
        libc::SIG_DFL if was_sent => unsafe { repeat(signal, previous) },
        // Returning repeats the fault, which then ends the process.
        libc::SIG_DFL | libc::SIG_IGN => {
            // SAFETY: an action that the process had before.
            unsafe { libc::sigaction(signal, previous, ptr::null_mut()) };
        }
        handler if previous.sa_flags & libc::SA_SIGINFO != 0 => {
            type Handler = unsafe extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void);
            // SAFETY: the flag says that the handler has this signature.
            unsafe { std::mem::transmute::<usize, Handler>(handler)(signal, info, context) };
        }
        handler => {
            // SAFETY: without the flag it has this signature.
            unsafe { std::mem::transmute::<usize, unsafe extern "C" fn(c_int)>(handler)(signal) };
        }
    }
}

/// Repeats a signal that was sent, under the default action that the process had: it ends here.
///
/// # Safety
///
/// The action is a valid one for the signal.
unsafe fn repeat(signal: c_int, previous: &libc::sigaction) {
    // SAFETY: as the caller says; what is asked for is filled in before it is used, and of this thread.
    unsafe {
        let (mut present, mut only, mut mask) = (std::mem::zeroed(), std::mem::zeroed(), std::mem::zeroed());
        libc::sigaction(signal, previous, &raw mut present);
        libc::raise(signal);
        libc::sigemptyset(&raw mut only);
        libc::sigaddset(&raw mut only, signal);
        libc::pthread_sigmask(libc::SIG_UNBLOCK, &raw const only, &raw mut mask);
        // The system spares its first process (of a container, too), which still catches traps.
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const mask, ptr::null_mut());
        libc::sigaction(signal, &raw const present, ptr::null_mut());
    }
}
