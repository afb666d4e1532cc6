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

/// The first place on the caller's stack, from one in it up and no further than so many bytes, where a word is one that is
/// looked for. Sees the thread's own stack to its end; another, whose end nobody knows, as far as there is memory. For signal
/// handlers, too.
pub(crate) fn find(from: usize, bytes: usize, is_it: impl Fn(usize) -> bool) -> Option<usize> {
    let start = from.next_multiple_of(WORD);
    if let Some((_, end)) = BOUNDS.get()
        && is_known_as_own()
    {
        return find_in_own(start..end.min(start + bytes) / WORD * WORD, is_it);
    }
    let copier = Copier::new()?;
    let (mut place, end) = (start, start + bytes / WORD * WORD);
    while place < end {
        let mut words = [0; Copier::AT_ONCE];
        // Of one page: there may be no next one.
        let count = words.len().min((end - place) / WORD).min((PAGE - place % PAGE) / WORD);
        let words = &mut words[..count];
        copier.copy(place, words)?;
        if let Some(index) = words.iter().position(|word| is_it(*word)) {
            return Some(place + index * WORD);
        }
        place += count * WORD;
    }
    None
}

/// The word at a place on the caller's stack, if there is memory; as [`find`].
#[cfg(any(test, target_arch = "x86_64"))]
pub(crate) fn word(place: usize) -> Option<usize> {
    let found = Cell::new(None);
    find(place, WORD, |word| {
        found.set(Some(word));
        true
    })?;
    found.get()
}

const WORD: usize = size_of::<usize>();

/// No system has smaller ones, and larger ones are multiples.
const PAGE: usize = 4 << 10;

/// `places` are words of the thread's own stack that its caller's frames are in.
fn find_in_own(mut places: Range<usize>, is_it: impl Fn(usize) -> bool) -> Option<usize> {
    /// Every first call looks: more words at a time than one.
    const AT_ONCE: usize = 8;
    // SAFETY: an aligned word of the thread's own. Whatever is there, it is only looked at.
    let is_at = |place: usize| is_it(unsafe { std::ptr::with_exposed_provenance::<usize>(place).read_volatile() });
    while places.len() >= AT_ONCE * WORD {
        if (0..AT_ONCE).fold(false, |any, word| any | is_at(places.start + word * WORD)) {
            break;
        }
        places.start += AT_ONCE * WORD;
    }
    places.step_by(WORD).find(|place| is_at(*place))
}

/// Has the system copy memory that may go at any time: another thread's, behind a stack whose end is not known. A pipe takes
/// it, and gives it back.
#[cfg(target_os = "linux")]
struct Copier([libc::c_int; 2]);

#[cfg(target_os = "linux")]
impl Copier {
    /// Words: a stack for signals is small.
    const AT_ONCE: usize = 64;

    fn new() -> Option<Self> {
        let mut ends = [0; 2];
        // SAFETY: fills in what it is given.
        let made = unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC | libc::O_NONBLOCK) };
        (made == 0).then_some(Self(ends))
    }

    fn copy(&self, place: usize, words: &mut [usize]) -> Option<()> {
        let [reader, writer] = self.0;
        let size = size_of_val(words);
        // SAFETY: the system reads at `place`, and says if it can't; then it writes to `words`, which are so many bytes.
        unsafe {
            let written = libc::write(writer, std::ptr::without_provenance(place), size);
            (written == size as isize).then_some(())?;
            (libc::read(reader, words.as_mut_ptr().cast(), size) == size as isize).then_some(())
        }
    }
}

#[cfg(target_os = "linux")]
impl Drop for Copier {
    fn drop(&mut self) {
        for end in self.0 {
            // SAFETY: it is this one's, and not used again.
            unsafe { libc::close(end) };
        }
    }
}

#[cfg(not(target_os = "linux"))]
struct Copier;

#[cfg(not(target_os = "linux"))]
impl Copier {
    const AT_ONCE: usize = 1;

    fn new() -> Option<Self> {
        None
    }

    fn copy(&self, _: usize, _: &mut [usize]) -> Option<()> {
        None
    }
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

    /// Three pages, of which the last is nobody's, on a thread that does not know its stack.
    #[cfg(target_os = "linux")]
    fn beside_a_stack(test: impl FnOnce(usize, &mut [usize]) + Send + 'static) {
        let test = || {
            let page = region::page::size();
            let mut stack = region::alloc(3 * page, region::Protection::READ_WRITE).unwrap();
            let start = stack.as_mut_ptr::<u8>();
            // SAFETY: the last page is within; the others are read and written, and nobody else's.
            let words = unsafe {
                region::protect(start.add(2 * page), page, region::Protection::NONE).unwrap();
                std::slice::from_raw_parts_mut(start.cast(), 2 * page / WORD)
            };
            start.expose_provenance();
            test(page, words);
        };
        thread::spawn(test).join().unwrap();
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_stack_that_is_not_known_is_read_to_its_end_and_no_further() {
        const MARK: usize = 0x1234_5678;
        beside_a_stack(|page, words| {
            let start = words.as_ptr().addr();
            let find = |bytes| find(start + 3, bytes, |word| word == MARK);
            assert_eq!([find(64), find(2 * page), find(16 * page)], [None; 3]);
            words[2 * page / WORD - 1] = MARK;
            assert_eq!([find(64), find(2 * page - 16)], [None; 2]);
            assert_eq!(find(16 * page), Some(start + 2 * page - WORD));
            assert_eq!(word(start + 2 * page - WORD), Some(MARK));
            assert_eq!(word(start + 2 * page), None);
        });
    }

    /// What is behind a stack is another thread's, and may go while it is read.
    #[cfg(target_os = "linux")]
    #[test]
    fn what_is_behind_a_stack_may_go_meanwhile() {
        use std::sync::atomic::{AtomicBool, Ordering};
        const ROUNDS: usize = if cfg!(target_arch = "aarch64") { 50 } else { 2_000 };
        beside_a_stack(|page, words| {
            let (start, done) = (words.as_ptr().addr(), AtomicBool::new(false));
            thread::scope(|scope| {
                scope.spawn(|| {
                    let behind = std::ptr::without_provenance::<u8>(start + page);
                    while !done.load(Ordering::Relaxed) {
                        for protection in [region::Protection::NONE, region::Protection::READ] {
                            // SAFETY: a page of the test's, which only the system reads.
                            unsafe { region::protect(behind, page, protection).unwrap() };
                        }
                    }
                });
                for _ in 0..ROUNDS {
                    assert_eq!(find(start, 4 * page, |word| word != 0), None);
                }
                done.store(true, Ordering::Relaxed);
            });
        });
    }

    #[test]
    fn a_panic_comes_back_from_the_other_thread() {
        on_a_stack_of(64 << 10, || {
            let caught = std::panic::catch_unwind(|| with_enough(|| panic!("as expected")));
            assert_eq!(caught.unwrap_err().downcast_ref::<&str>(), Some(&"as expected"));
        });
    }
}
