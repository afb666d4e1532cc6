//! Where a first call compiles: on the thread that makes it, or on one of its own because that one
//! has little stack left.

use std::cell::Cell;
use std::io;
use std::ops::Range;
use std::thread;

use jit_core::seam::ThreadContext;

/// Bytes that compiling one function may take: several times what Cranelift was seen to use.
const NEEDED: usize = 512 << 10;

/// The stack of a thread that compiles for another.
const LENT: usize = 4 << 20;

thread_local! {
    /// The thread's stack; empty where that can't be told. `None` until it was asked for, which
    /// takes longer than a first call otherwise does.
    static BOUNDS: Cell<Option<(usize, usize)>> = const { Cell::new(None) };
}

/// Does `work` where there is stack enough for a compiler, as a part of what the caller does. Its panic is the caller's.
///
/// # Errors
///
/// When that is on another thread, which the system refuses.
pub(crate) fn with_enough<T: Send>(work: impl FnOnce() -> T + Send) -> io::Result<T> {
    if remaining() >= NEEDED {
        return Ok(work());
    }
    let context = ThreadContext::current();
    thread::scope(|scope| {
        let worker = thread::Builder::new().name("orcane-first-call".to_owned()).stack_size(LENT);
        match worker.spawn_scoped(scope, || context.enter(work))?.join() {
            Ok(result) => Ok(result),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

/// Whether the caller is known to run on the stack that the system knows its thread by. Asks nobody.
pub(crate) fn is_known_as_own() -> bool {
    BOUNDS.get().is_some_and(|(start, end)| (start..end).contains(&here()))
}

/// Where the words of the caller's stack are from a place in it up, as many bytes as are asked for and can be read: to the
/// end of the thread's own stack, or of what is mapped. For signal handlers, too.
pub(crate) fn above(from: usize, bytes: usize) -> Range<usize> {
    let start = from.next_multiple_of(size_of::<usize>());
    let wanted = start + bytes;
    match BOUNDS.get() {
        Some((_, end)) if is_known_as_own() => start..end.min(wanted),
        // It may not be asked for in a handler, or it is not this one.
        _ => start..mapped(start, wanted),
    }
}

/// How far memory can be read that can be where it begins.
fn mapped(start: usize, wanted: usize) -> usize {
    /// Where nothing is: in case that the system does not look, as an emulator may not.
    const NOWHERE: usize = size_of::<u64>();
    // SAFETY: only asks.
    let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) } as usize;
    let mut end = (start + 1).next_multiple_of(page);
    let is_told = end < wanted && !is_readable(NOWHERE);
    while is_told && end < wanted && is_readable(end) {
        end += page;
    }
    end.min(wanted)
}

/// Whether there is memory at an address, as the system finds when it is to read a set of signals there.
#[cfg(target_os = "linux")]
fn is_readable(address: usize) -> bool {
    const NO_SUCH_CHANGE: libc::c_int = -1;
    let (new, old) = (std::ptr::without_provenance::<u64>(address), std::ptr::null_mut::<u64>());
    // SAFETY: changes nothing. The set is read before what is to be done with it is looked at.
    let asked = unsafe { libc::syscall(libc::SYS_rt_sigprocmask, NO_SUCH_CHANGE, new, old, size_of::<u64>()) };
    asked == 0 || std::io::Error::last_os_error().raw_os_error() != Some(libc::EFAULT)
}

#[cfg(not(target_os = "linux"))]
fn is_readable(_: usize) -> bool {
    false
}

/// Bytes below the stack pointer. None if that is not in the thread's own stack: a coroutine's
/// stack, whose size nobody knows, or one for signals, which is small.
fn remaining() -> usize {
    let here = here();
    let (start, end) = BOUNDS.get().unwrap_or_else(|| {
        let bounds = bounds().map_or((0, 0), |bounds| (bounds.start, bounds.end));
        BOUNDS.set(Some(bounds));
        bounds
    });
    if (start..end).contains(&here) { here - start } else { 0 }
}

/// A place in the caller's frame.
#[inline(always)]
pub(crate) fn here() -> usize {
    let mark = 0_u8;
    std::hint::black_box(std::ptr::from_ref(&mark)).expose_provenance()
}

#[cfg(target_os = "linux")]
fn bounds() -> Option<Range<usize>> {
    let mut attributes = std::mem::MaybeUninit::<libc::pthread_attr_t>::uninit();
    let (mut start, mut size) = (std::ptr::null_mut(), 0);
    // SAFETY: asks for the calling thread; `attributes` is initialized if that succeeds, read only
    // then, and destroyed once.
    let known = unsafe {
        libc::pthread_getattr_np(libc::pthread_self(), attributes.as_mut_ptr()) == 0 && {
            let known = libc::pthread_attr_getstack(attributes.as_ptr(), &raw mut start, &raw mut size) == 0;
            libc::pthread_attr_destroy(attributes.as_mut_ptr());
            known
        }
    };
    known.then(|| start as usize..start as usize + size)
}

#[cfg(target_vendor = "apple")]
fn bounds() -> Option<Range<usize>> {
    // SAFETY: both ask for the calling thread.
    let (end, size) = unsafe {
        let thread = libc::pthread_self();
        (libc::pthread_get_stackaddr_np(thread) as usize, libc::pthread_get_stacksize_np(thread))
    };
    Some(end - size..end)
}

#[cfg(not(any(target_os = "linux", target_vendor = "apple")))]
fn bounds() -> Option<Range<usize>> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn on_a_stack_of(bytes: usize, test: impl FnOnce() + Send + 'static) {
        thread::Builder::new().stack_size(bytes).spawn(test).unwrap().join().unwrap();
    }

    #[test]
    fn a_thread_knows_how_much_stack_it_has_left() {
        on_a_stack_of(1 << 20, || {
            let left = remaining();
            // The C library may have given it the stack of a thread that has ended, if that is no more than four times
            // as large.
            assert!((1 << 19..(4 << 20) + (1 << 16)).contains(&left), "{left}");
        });
    }

    #[test]
    fn work_moves_to_another_thread_where_stack_is_short_and_only_there() {
        let moved = || {
            let here = thread::current().id();
            with_enough(|| thread::current().id() != here).unwrap()
        };
        on_a_stack_of(2 << 20, move || assert!(!moved()));
        on_a_stack_of(64 << 10, move || assert!(moved()));
    }

    #[test]
    fn a_stack_that_is_not_known_is_read_to_its_end_and_no_further() {
        let page = region::page::size();
        let mut stack = region::alloc(3 * page, region::Protection::READ_WRITE).unwrap();
        let start = stack.as_mut_ptr::<u8>().addr();
        // SAFETY: the last page is nobody's.
        unsafe { region::protect(stack.as_ptr::<u8>().add(2 * page), page, region::Protection::NONE).unwrap() };
        assert_eq!(mapped(start + 8, start + 64), start + 64);
        assert_eq!(mapped(start + 8, start + 2 * page), start + 2 * page);
        assert_eq!(mapped(start + 8, start + 16 * page), start + 2 * page);
    }

    #[test]
    fn a_panic_comes_back_from_the_other_thread() {
        on_a_stack_of(64 << 10, || {
            let caught = std::panic::catch_unwind(|| with_enough(|| panic!("as expected")));
            assert_eq!(caught.unwrap_err().downcast_ref::<&str>(), Some(&"as expected"));
        });
    }
}
