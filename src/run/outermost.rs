//! Work that the unwinder sees no frame beyond, as beyond the C library's start code. What nobody in a program catches ends
//! it as it says itself (`std::terminate`), and is not searched for in frames of ours.

use std::arch::naked_asm;
use std::ffi::c_void;

struct Task<W, R> {
    work: Option<W>,
    result: Option<R>,
}

/// Does the work in such a frame. A panic ends the process.
pub(super) fn call<R, W: FnOnce() -> R>(work: W) -> R {
    /// # Safety
    ///
    /// `task` is one of these types, and nobody else's.
    unsafe extern "C-unwind" fn perform<R, W: FnOnce() -> R>(task: *mut c_void) {
        // SAFETY: as the caller says.
        let task = unsafe { &mut *task.cast::<Task<W, R>>() };
        task.result = task.work.take().map(|work| work());
    }
    let mut task = Task { work: Some(work), result: None };
    // SAFETY: the task is of the function's types, and not used meanwhile.
    unsafe { enter((&raw mut task).cast(), perform::<R, W>) };
    task.result.expect("there was work, which has returned")
}

/// Calls `function` with `task`.
///
/// Its return address counts as undefined, which ends the stack (DWARF 5, 6.4.4).
///
/// # Safety
///
/// `function` can be called with it.
#[unsafe(naked)]
unsafe extern "C" fn enter(task: *mut c_void, function: unsafe extern "C-unwind" fn(*mut c_void)) {
    #[cfg(target_arch = "x86_64")]
    naked_asm!(
        ".cfi_startproc",
        ".cfi_undefined rip",
        "endbr64",
        "push rbp",
        "mov rbp, rsp",
        "call rsi",
        "pop rbp",
        "ret",
        ".cfi_endproc",
    );
    #[cfg(target_arch = "aarch64")]
    naked_asm!(
        ".cfi_startproc",
        ".cfi_undefined x30",
        // bti c
        "hint #34",
        "stp x29, x30, [sp, #-16]!",
        "mov x29, sp",
        "blr x1",
        "ldp x29, x30, [sp], #16",
        "ret",
        ".cfi_endproc",
    );
}
