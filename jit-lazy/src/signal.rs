//! First calls inside signal handlers, which can't be: compiling takes locks and allocates, and
//! what the signal interrupted may be in the middle of either.

use std::cell::Cell;
use std::ffi::{CStr, c_int, c_void};

use jit_core::SymbolName;
use jit_core::seam::InUnwinder;

use crate::{sigreturn, stack};

/// Frames that are looked at: a handler that goes deeper before it calls is not recognized.
const DEPTH: u32 = 256;

thread_local! {
    /// Signals that were blocked when the thread was last found to be in no handler. Most threads block none; some do
    /// for good, and would have their frames looked at by every first call.
    static USUAL: Cell<u64> = const { Cell::new(0) };
}

/// A signal handler that the calling thread is in.
pub(crate) enum Handler {
    /// An address in it.
    At(usize),
    /// It has too little stack left, one for signals, to tell: what it returns to is at this place there.
    OnSignalStack(Option<usize>),
    /// It has interrupted the unwinder, which could tell.
    InUnwinder,
}

/// The signal handler that the calling thread is in. Takes no lock but the unwinder's, where this thread does not hold that.
pub(crate) fn handler() -> Option<Handler> {
    // Every first call asks: the system only for what can't be known without.
    let blocked = blocked_signals();
    let signal_stack = if stack::is_known_as_own() { None } else { left_on_signal_stack() };
    let returns = sigreturn::on_stack(stack::here());
    // Only a handler makes calls there. A walk would wait for the unwinder's lock, which this thread may hold.
    if InUnwinder::is_here() {
        return Some(signal_stack.map_or(Handler::InUnwinder, |_| Handler::OnSignalStack(returns)));
    }
    // The signal that is being handled is blocked by default, and was not: it would not have been delivered.
    if blocked == USUAL.get() && signal_stack.is_none() && returns.is_none() {
        return None;
    }
    if signal_stack.is_some_and(|left| left < WALK) {
        return Some(Handler::OnSignalStack(returns));
    }
    let handler = handler_on_stack();
    if handler.is_none() {
        USUAL.set(blocked);
    }
    handler.map(Handler::At)
}

/// Bytes of stack that a walk may take.
const WALK: usize = 8 << 10;

/// How much is left of the thread's stack for signals, if it is on that.
fn left_on_signal_stack() -> Option<usize> {
    let mut stack = libc::stack_t { ss_sp: std::ptr::null_mut(), ss_flags: 0, ss_size: 0 };
    // SAFETY: only asks, and fills in what it is given.
    unsafe { libc::sigaltstack(std::ptr::null(), &raw mut stack) };
    (stack.ss_flags & libc::SS_ONSTACK != 0).then(|| stack::here() - stack.ss_sp as usize)
}

/// Which of the first 64 are, from the lowest bit on: no system has more.
fn blocked_signals() -> u64 {
    let mut blocked = std::mem::MaybeUninit::<libc::sigset_t>::zeroed();
    let mut bits = [0; size_of::<u64>()];
    let known = bits.len().min(size_of_val(&blocked));
    // SAFETY: only asks, and fills in what it is given. A set of signals is words of bits, from that
    // of signal 1 on, and these machines are little-endian.
    unsafe {
        libc::pthread_sigmask(libc::SIG_BLOCK, std::ptr::null(), blocked.as_mut_ptr());
        std::ptr::copy_nonoverlapping(blocked.as_ptr().cast::<u8>(), bits.as_mut_ptr(), known);
    }
    u64::from_le_bytes(bits)
}

/// Which of the last two frames is the handler's when the unwinder comes to one that says it was
/// interrupted: for libgcc that is the one the system's returns to, for Apple's the system's.
const HANDLER: usize = if cfg!(target_vendor = "apple") { 1 } else { 0 };

/// What the unwinder calls a frame.
#[repr(C)]
struct Context {
    _opaque: [u8; 0],
}

// The Itanium C++ ABI's unwinder, which the standard library links, and an extension of it that
// every implementation has.
unsafe extern "C-unwind" {
    fn _Unwind_Backtrace(visit: extern "C" fn(*mut Context, *mut c_void) -> c_int, state: *mut c_void) -> c_int;
    fn _Unwind_GetIPInfo(frame: *mut Context, interrupted: *mut c_int) -> usize;
}

#[derive(Default)]
struct Walk {
    depth: u32,
    /// Where the two frames before this one are.
    before: [usize; 2],
    handler: Option<usize>,
}

/// An address in the signal handler that the thread is in: the frame that called it is the
/// system's, which returns to a frame that was interrupted rather than one that called.
fn handler_on_stack() -> Option<usize> {
    extern "C" fn visit(frame: *mut Context, walk: *mut c_void) -> c_int {
        const GO_ON: c_int = 0;
        const STOP: c_int = 4;
        // SAFETY: `walk` is what `_Unwind_Backtrace` was given below, and nobody else uses it.
        let walk = unsafe { &mut *walk.cast::<Walk>() };
        let mut interrupted = 0;
        // SAFETY: a frame that the unwinder shows.
        let place = unsafe { _Unwind_GetIPInfo(frame, &raw mut interrupted) };
        if interrupted != 0 && walk.depth > 1 {
            walk.handler = Some(walk.before[HANDLER]);
            return STOP;
        }
        walk.before = [walk.before[1], place];
        walk.depth += 1;
        if walk.depth < DEPTH { GO_ON } else { STOP }
    }
    let mut walk = Walk::default();
    let _inside = InUnwinder::enter();
    // SAFETY: `visit` takes what it is given here.
    unsafe { _Unwind_Backtrace(visit, (&raw mut walk).cast()) };
    walk.handler
}

/// Says in which handler a function was called, by its name if that is known, with nothing that a signal handler may
/// not do, and aborts.
pub(crate) fn refuse(function: Option<&SymbolName>, handler: &Handler) -> ! {
    let mut message = Message::default();
    message.text(b"orcane: ");
    match function {
        Some(function) => {
            message.text(b"'");
            message.text(function.as_bytes());
            message.text(b"'");
        }
        None => message.text(b"a lazy function"),
    }
    message.text(b" was first called in ");
    match *handler {
        Handler::At(address) => {
            message.text(b"the signal handler ");
            name(&mut message, address);
        }
        Handler::OnSignalStack(returns) => {
            let mut is_first = true;
            sigreturn::each_on_signal_stack(returns, |address| {
                message.text(if is_first { b"the signal handler " } else { b" or " });
                is_first = false;
                match address {
                    Some(address) => name(&mut message, address),
                    None => message.text(b"that was to be called once"),
                }
            });
            if is_first {
                message.text(b"a signal handler");
            }
        }
        Handler::InUnwinder => message.text(b"a signal handler"),
    }
    message.text(b", where it can't be compiled: have it compiled before\n");
    message.write();
    std::process::abort()
}

/// The function that an address is in, or the file and the place in it if its name is not known.
fn name(message: &mut Message, address: usize) {
    let mut info = libc::Dl_info {
        dli_fname: std::ptr::null(),
        dli_fbase: std::ptr::null_mut(),
        dli_sname: std::ptr::null(),
        dli_saddr: std::ptr::null_mut(),
    };
    // SAFETY: looks an address up in the tables of loaded objects; what it gives are strings of
    // those, which stay loaded as long as a function of theirs is running.
    let (symbol, file) = unsafe {
        libc::dladdr(std::ptr::without_provenance(address), &raw mut info);
        let text = |text: *const libc::c_char| (!text.is_null()).then(|| CStr::from_ptr(text).to_bytes());
        (text(info.dli_sname), text(info.dli_fname))
    };
    match (symbol, file) {
        (Some(symbol), _) => message.text(symbol),
        (None, file) => {
            message.text(b"at ");
            message.number(address - info.dli_fbase as usize);
            message.text(b" in ");
            message.text(file.unwrap_or(b"compiled code"));
        }
    }
}

/// What is written on standard error, a buffer at a time: stacks for signals are small.
#[derive(Default)]
struct Message {
    bytes: [u8; 32],
    length: usize,
}

impl Message {
    fn text(&mut self, text: &[u8]) {
        for byte in text {
            if self.length == self.bytes.len() {
                self.write();
            }
            self.bytes[self.length] = *byte;
            self.length += 1;
        }
    }

    fn number(&mut self, number: usize) {
        self.text(b"0x");
        let digits = (usize::BITS - number.leading_zeros()).div_ceil(4).max(1);
        for digit in (0..digits).rev() {
            self.text(&[b"0123456789abcdef"[number >> (digit * 4) & 0xf]]);
        }
    }

    fn write(&mut self) {
        // SAFETY: writes what is there, which may fail: there is nobody else to tell.
        unsafe { libc::write(libc::STDERR_FILENO, self.bytes.as_ptr().cast(), self.length) };
        self.length = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_has_numbers_in_it() {
        let mut message = Message::default();
        message.number(0);
        message.number(0x10ab);
        assert_eq!(&message.bytes[..message.length], b"0x00x10ab");
    }

    #[test]
    fn blocked_signals_are_seen_once() {
        let mut signals = vec![libc::SIGHUP, libc::SIGUSR1, libc::SIGSYS];
        #[cfg(target_os = "linux")]
        signals.extend([libc::SIGRTMIN(), libc::SIGRTMIN() + 7]);
        // Other machines may be emulated, and the last signals the emulator's own.
        #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
        signals.push(libc::SIGRTMAX());
        for signal in signals {
            let mut set = std::mem::MaybeUninit::<libc::sigset_t>::zeroed();
            assert_eq!(blocked_signals(), 0);
            // SAFETY: a set that is made empty first; the signal is blocked for this thread and freed again.
            unsafe {
                libc::sigemptyset(set.as_mut_ptr());
                libc::sigaddset(set.as_mut_ptr(), signal);
                libc::pthread_sigmask(libc::SIG_BLOCK, set.as_ptr(), std::ptr::null_mut());
            }
            let blocked = blocked_signals();
            assert_ne!(blocked, USUAL.get());
            assert!(handler().is_none());
            assert_eq!(blocked, USUAL.get());
            // SAFETY: as above.
            unsafe { libc::pthread_sigmask(libc::SIG_UNBLOCK, set.as_ptr(), std::ptr::null_mut()) };
            assert_eq!(blocked.count_ones(), 1, "{signal}");
            assert!(handler().is_none());
            assert_eq!(USUAL.get(), 0);
        }
    }

    #[test]
    fn there_is_no_handler_outside_of_one() {
        assert_eq!(handler_on_stack(), None);
    }
}
