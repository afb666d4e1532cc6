//! Where signal handlers return to: an address that is on the stack while one runs.
//!
//! All of this is done in signal handlers: it takes no lock and allocates nothing.

use std::ffi::c_int;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::stack;

/// Bytes of the stack that are looked at: a handler that goes deeper before it calls is not seen.
const WINDOW: usize = 64 << 10;

/// A place on the stack where the address is, from one in the frame of a caller up, and not far from there: in the frame of
/// a handler that runs, or where one ran.
// In a frame of its own, which is below: it may have the address in it.
#[inline(never)]
pub(crate) fn on_stack(from: usize) -> Option<usize> {
    let address = address()?;
    stack::find(from, WINDOW, |word| (word ^ address) & ADDRESS == 0)
}

/// Visits each handler that may be the one that runs where the address is at this place on the stack for signals, as far as
/// can be told without a walk; `None` for those that were to be called once.
pub(crate) fn each_on_signal_stack(place: Option<usize>, visit: impl FnMut(Option<usize>)) {
    system::each_on_signal_stack(place.and_then(signal), visit);
}

/// The signal that the kernel has told of behind the address, if it was to. Something else may be left there.
#[cfg(target_arch = "x86_64")]
fn signal(place: usize) -> Option<c_int> {
    /// What is between: the interrupted context.
    const CONTEXT: usize = 304;
    stack::word(place + size_of::<usize>() + CONTEXT).map(|word| word as c_int)
}

/// The address is in the frame of the handler, and not in what the kernel has put there.
#[cfg(not(target_arch = "x86_64"))]
fn signal(_: usize) -> Option<c_int> {
    None
}

/// The bits of a return address that are one. Others sign it, on AArch64.
const ADDRESS: usize = if cfg!(target_arch = "aarch64") { (1 << 48) - 1 } else { usize::MAX };

fn address() -> Option<usize> {
    /// Zero until it is known. It is one and the same for all handlers that the C library installs.
    static KNOWN: AtomicUsize = AtomicUsize::new(0);
    match KNOWN.load(Ordering::Relaxed) {
        0 => {
            let address = system::address()?;
            KNOWN.store(address, Ordering::Relaxed);
            Some(address)
        }
        known => Some(known),
    }
}

#[cfg(target_os = "linux")]
mod system {
    use std::ffi::{c_int, c_ulong};
    use std::ptr;

    /// No kernel has more signals.
    const SIGNALS: c_int = 64;

    /// That an action says where its handler returns to.
    const SA_RESTORER: c_ulong = 0x0400_0000;

    /// An action as the kernel keeps it: the C library's own does not show the restorer.
    #[repr(C)]
    #[derive(Default)]
    struct Action {
        handler: usize,
        flags: c_ulong,
        restorer: usize,
        mask: u64,
    }

    /// `None` as long as no handler was ever installed.
    pub(super) fn address() -> Option<usize> {
        let restorer = (1..=SIGNALS).find_map(|signal| {
            let action = action(signal)?;
            (action.flags & SA_RESTORER != 0).then_some(action.restorer)
        });
        restorer.or_else(kernels_own)
    }

    /// Each that was installed to run on the stack for signals, once; of those that want to be told of the signal, that of
    /// the one that was told of, if it is known.
    pub(super) fn each_on_signal_stack(told: Option<c_int>, mut visit: impl FnMut(Option<usize>)) {
        const HOW: c_int = libc::SA_ONSTACK | libc::SA_SIGINFO;
        let handler = |signal| {
            let action = action(signal)?;
            let flags = action.flags as c_int;
            let is_possible = match flags & HOW {
                libc::SA_ONSTACK => true,
                HOW => told.is_none_or(|told| told == signal),
                _ => false,
            };
            let can_run = match action.handler {
                libc::SIG_IGN => false,
                libc::SIG_DFL => flags & libc::SA_RESETHAND != 0,
                _ => true,
            };
            (is_possible && can_run).then_some(action.handler)
        };
        for signal in 1..=SIGNALS {
            let Some(address) = handler(signal) else { continue };
            if !(1..signal).any(|earlier| handler(earlier) == Some(address)) {
                visit(Some(address).filter(|address| *address != libc::SIG_DFL));
            }
        }
    }

    fn action(signal: c_int) -> Option<Action> {
        let mut action = Action::default();
        let (new, size) = (ptr::null::<Action>(), size_of_val(&action.mask));
        // SAFETY: only asks, and fills in what it is given.
        let asked = unsafe { libc::syscall(libc::SYS_rt_sigaction, signal, new, &raw mut action, size) };
        (asked == 0).then_some(action)
    }

    /// x86-64's kernel has none.
    #[cfg(target_arch = "x86_64")]
    fn kernels_own() -> Option<usize> {
        None
    }

    /// In the code that the kernel maps into every process: where it calls `rt_sigreturn`.
    #[cfg(target_arch = "aarch64")]
    fn kernels_own() -> Option<usize> {
        /// `mov x8, #139` and `svc #0`.
        const CALL: [u32; 2] = [0xd280_1168, 0xd400_0001];
        // SAFETY: what it gives is null or the image of an ELF file, loaded from its beginning on, for the whole life of
        // the process.
        let image: &[u32] = unsafe {
            let header =
                ptr::with_exposed_provenance::<libc::Elf64_Ehdr>(libc::getauxval(libc::AT_SYSINFO_EHDR) as usize);
            let file = header.as_ref()?;
            let segments = header.cast::<u8>().add(file.e_phoff as usize).cast::<libc::Elf64_Phdr>();
            let segments = std::slice::from_raw_parts(segments, file.e_phnum.into());
            let loaded = segments.iter().find(|segment| segment.p_type == libc::PT_LOAD && segment.p_offset == 0)?;
            std::slice::from_raw_parts(header.cast(), loaded.p_filesz as usize / size_of::<u32>())
        };
        let at = image.windows(CALL.len()).position(|words| words == CALL)?;
        Some(image[at..].as_ptr().expose_provenance())
    }
}

#[cfg(not(target_os = "linux"))]
mod system {
    use std::ffi::c_int;

    pub(super) fn address() -> Option<usize> {
        None
    }

    pub(super) fn each_on_signal_stack(_: Option<c_int>, _: impl FnMut(Option<usize>)) {}
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn it_is_known_and_on_no_stack_outside_of_handlers() {
        // The standard library has installed handlers.
        assert!(address().is_some());
        // A stack that nothing ran on before.
        assert!(std::thread::spawn(|| on_stack(stack::here()).is_none()).join().unwrap());
    }

    #[test]
    fn it_is_seen_as_far_as_is_looked() {
        #[inline(never)]
        fn put_address(word: &mut usize) {
            *word = address().unwrap();
        }
        fn is_seen_after(bytes: usize) -> bool {
            let mut stack = [0_usize; 2 * WINDOW / size_of::<usize>()];
            put_address(&mut stack[bytes / size_of::<usize>()]);
            let seen = on_stack(stack.as_ptr().expose_provenance()).is_some();
            std::hint::black_box(&stack);
            seen
        }
        for knows_its_stack in [false, true] {
            let is_seen_after = move |bytes| {
                let thread = move || {
                    if knows_its_stack {
                        stack::with_enough(|| ()).unwrap();
                    }
                    is_seen_after(bytes)
                };
                std::thread::spawn(thread).join().unwrap()
            };
            assert!(is_seen_after(0) && is_seen_after(WINDOW - 8), "{knows_its_stack}");
            assert!(!is_seen_after(WINDOW), "{knows_its_stack}");
        }
    }
}
