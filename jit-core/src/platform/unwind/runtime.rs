//! The process's unwinder.
//!
//! Three are about, and their registration functions have the same name:
//! - libgcc before 13 takes a table and keeps a list of them; see [`region`](super::region);
//! - libgcc from 13 on takes a table and keeps a search tree of the address ranges that tables
//!   span, which must therefore not overlap, nor begin at the same address;
//! - LLVM's libunwind takes one function's entry at a time.

use std::cell::Cell;
use std::ffi::c_void;
use std::marker::PhantomData;
use std::sync::OnceLock;
use std::sync::atomic::{Ordering, compiler_fence};

use super::{Cie, Frames};
use jit_linker::arch::Architecture;

unsafe extern "C" {
    fn __register_frame(begin: *const c_void);
    fn __deregister_frame(begin: *const c_void);
}

#[cfg(target_env = "gnu")]
unsafe extern "C" {
    // Of libgcc alone.
    fn __register_frame_table(begins: *const c_void);
}

#[cfg(not(target_env = "gnu"))]
unsafe fn __register_frame_table(_: *const c_void) {
    unreachable!("no other unwinder has lists of tables");
}

thread_local! {
    /// How many [`InUnwinder`]s the thread has.
    static INSIDE: Cell<u32> = const { Cell::new(0) };
}

/// Says that the calling thread is in the unwinder, until it is dropped: the unwinder may hold a lock that it takes again
/// for a walk, so a signal handler is not to begin one.
///
/// ```
/// use jit_core::seam::InUnwinder;
///
/// let inside = InUnwinder::enter();
/// assert!(InUnwinder::is_here());
/// drop(inside);
/// assert!(!InUnwinder::is_here());
/// ```
pub struct InUnwinder {
    /// Of one thread.
    _thread: PhantomData<*const ()>,
}

impl InUnwinder {
    /// From here on.
    #[must_use]
    pub fn enter() -> Self {
        INSIDE.set(INSIDE.get() + 1);
        // A handler on this thread sees it before the lock is taken.
        compiler_fence(Ordering::SeqCst);
        Self { _thread: PhantomData }
    }

    /// Whether the calling thread is, or what its signal handler has interrupted. For signal handlers.
    #[must_use]
    pub fn is_here() -> bool {
        INSIDE.get() > 0
    }
}

impl Drop for InUnwinder {
    fn drop(&mut self) {
        compiler_fence(Ordering::SeqCst);
        INSIDE.set(INSIDE.get() - 1);
    }
}

/// How the unwinder wants its tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tables {
    /// As many as one likes, of ranges that do not overlap.
    Disjoint,
    /// Few.
    Listed,
}

/// Whose registration functions the process has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unwinder {
    Libgcc,
    Libunwind,
}

impl Unwinder {
    pub(super) fn host() -> Self {
        static HOST: OnceLock<Unwinder> = OnceLock::new();
        *HOST.get_or_init(|| {
            // SAFETY: the name is a C string.
            let libunwind = unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"__unw_add_dynamic_fde".as_ptr()) };
            let static_libunwind = cfg!(not(target_env = "gnu"));
            if static_libunwind || !libunwind.is_null() { Self::Libunwind } else { Self::Libgcc }
        })
    }
}

/// How the process's unwinder wants its tables.
pub(super) fn tables() -> Tables {
    static TABLES: OnceLock<Tables> = OnceLock::new();
    *TABLES.get_or_init(|| match Unwinder::host() {
        Unwinder::Libunwind => Tables::Disjoint,
        Unwinder::Libgcc if finds_between_tables() => Tables::Listed,
        Unwinder::Libgcc => Tables::Disjoint,
    })
}

/// Whether libgcc finds a function in one table although another lies between it and the table's
/// beginning. With a search tree it does not; nor does the list, but for what it has never looked
/// at before.
#[cfg(target_env = "gnu")]
fn finds_between_tables() -> bool {
    // No code: only its addresses count.
    static PLACE: [u8; 128] = [0; 128];
    let start = PLACE.as_ptr() as u64;
    let architecture = Architecture::host().unwrap_or(Architecture::X86_64);
    let table = |starts: &[u64]| {
        let mut frames = Frames::default();
        let cie = frames.add_cie(Cie::of_calls(architecture));
        for start in starts {
            frames.add(cie, *start, 16, 0, &[]);
        }
        Table::register(frames.encode(&frames.frames), Unwinder::Libgcc)
    };
    let _around = table(&[start, start + 64]);
    let _between = table(&[start + 32]);
    finds(start + 64)
}

/// Whether libgcc finds an entry for an address.
#[cfg(target_env = "gnu")]
pub(super) fn finds(address: u64) -> bool {
    !entry_at(address).is_null()
}

/// The entry that libgcc finds for an address, or null.
#[cfg(target_env = "gnu")]
pub(super) fn entry_at(address: u64) -> *const c_void {
    /// `struct dwarf_eh_bases` of `unwind-dw2-fde.h`.
    #[repr(C)]
    struct Bases([*mut c_void; 3]);

    unsafe extern "C" {
        fn _Unwind_Find_FDE(pc: *mut c_void, bases: *mut Bases) -> *const c_void;
    }

    let mut bases = Bases([std::ptr::null_mut(); 3]);
    let pc = std::ptr::with_exposed_provenance_mut(address as usize);
    let _inside = InUnwinder::enter();
    // SAFETY: the function only looks tables up, all of which are whole; `bases` is written.
    unsafe { _Unwind_Find_FDE(pc, &mut bases) }
}

#[cfg(not(target_env = "gnu"))]
fn finds_between_tables() -> bool {
    false
}

/// A table that the unwinder knows. Dropped, it is withdrawn.
#[derive(Debug)]
pub(super) struct Table {
    /// Entries and terminator.
    bytes: Box<[u8]>,
    unwinder: Unwinder,
}

impl Table {
    /// A length of zero ends a table.
    pub(super) const TERMINATOR: usize = 4;

    /// Registers entries.
    pub(super) fn register(mut entries: Vec<u8>, unwinder: Unwinder) -> Self {
        entries.extend_from_slice(&[0; Self::TERMINATOR]);
        let table = Self { bytes: entries.into_boxed_slice(), unwinder };
        let _inside = InUnwinder::enter();
        // SAFETY: the entries are whole, end with the terminator, and stay where they are until
        // they are deregistered.
        table.each(|begin| unsafe { __register_frame(begin.cast()) });
        table
    }

    /// The entries.
    fn bytes(&self) -> &[u8] {
        &self.bytes[..self.bytes.len() - Self::TERMINATOR]
    }

    /// What the unwinder is to be told of: the table, or each function in it.
    fn each(&self, mut tell: impl FnMut(*const u8)) {
        if self.unwinder == Unwinder::Libgcc {
            return tell(self.bytes.as_ptr());
        }
        let mut rest = self.bytes();
        while let Some((length, id)) = rest.first_chunk::<8>().map(|head| {
            let (length, id) = head.split_at(4);
            (u32::from_le_bytes([length[0], length[1], length[2], length[3]]), id != [0; 4])
        }) {
            // A common entry has the id 0.
            if id {
                tell(rest.as_ptr());
            }
            rest = &rest[length as usize + 4..];
        }
    }
}

impl Drop for Table {
    fn drop(&mut self) {
        let _inside = InUnwinder::enter();
        // SAFETY: registered with the same addresses, once, and the bytes are there until after
        // this.
        self.each(|begin| unsafe { __deregister_frame(begin.cast()) });
    }
}

/// Tables that libgcc knows as one. Dropped, they are withdrawn.
#[derive(Debug)]
pub(super) struct TableList {
    /// Where they begin, and a zero.
    begins: Box<[usize]>,
}

impl TableList {
    /// What each ends with.
    pub(super) const TERMINATOR: usize = Table::TERMINATOR;

    /// Registers tables: at least one.
    ///
    /// # Safety
    ///
    /// Their entries are whole, end with the terminator, and stay where they are until this is dropped.
    pub(super) unsafe fn register<'a>(tables: impl Iterator<Item = &'a [u8]>) -> Self {
        let begins = tables.map(|table| table.as_ptr().expose_provenance()).chain([0]).collect();
        let list = Self { begins };
        let _inside = InUnwinder::enter();
        // SAFETY: as the caller says; the list stays where it is, too.
        unsafe { __register_frame_table(list.begins.as_ptr().cast()) };
        list
    }
}

impl Drop for TableList {
    fn drop(&mut self) {
        let _inside = InUnwinder::enter();
        // SAFETY: registered with this address, once.
        unsafe { __deregister_frame(self.begins.as_ptr().cast()) };
    }
}
