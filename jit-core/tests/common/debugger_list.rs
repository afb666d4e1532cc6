//! The files of the GDB JIT interface, as a debugger finds them in the process.

use std::sync::{Mutex, MutexGuard, PoisonError};

#[repr(C)]
struct Entry {
    next: *const Entry,
    previous: *const Entry,
    file: *const u8,
    size: u64,
}

#[repr(C)]
struct Descriptor {
    version: u32,
    action: u32,
    relevant: *const Entry,
    first: *const Entry,
}

unsafe extern "C" {
    static mut __jit_debug_descriptor: Descriptor;
}

/// The list is the process's: tests that look at it take turns.
static TURN: Mutex<()> = Mutex::new(());

/// The files that a debugger would see now.
pub(crate) fn files() -> Vec<Vec<u8>> {
    let mut files = Vec::new();
    // SAFETY: no other test of this program changes the list meanwhile, and it is whole.
    unsafe {
        let descriptor = &raw const __jit_debug_descriptor;
        assert_eq!((*descriptor).version, 1);
        let (mut entry, mut previous) = ((*descriptor).first, std::ptr::null());
        while let Some(this) = entry.as_ref() {
            assert_eq!(this.previous, previous);
            files.push(std::slice::from_raw_parts(this.file, this.size as usize).to_vec());
            (previous, entry) = (entry, this.next);
        }
    }
    files
}

pub(crate) fn turn() -> MutexGuard<'static, ()> {
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}
