//! Calls a program's entry as the C library's start code does: the unwinder sees no frame beyond it. What nobody in the
//! program catches ends it as it says itself (`std::terminate`), and is not searched for in ours.

use std::arch::naked_asm;
use std::ffi::c_char;

/// What a program begins with.
pub(super) type Main = unsafe extern "C" fn(i32, *const *const c_char, *const *const c_char) -> i32;

/// Calls `entry` with the arguments before it.
///
/// Its return address counts as undefined, which ends the stack (DWARF 5, 6.4.4).
///
/// # Safety
///
/// `entry` can be called with them.
#[unsafe(naked)]
pub(super) unsafe extern "C" fn call(
    count: i32,
    arguments: *const *const c_char,
    environment: *const *const c_char,
    entry: Main,
) -> i32 {
    #[cfg(target_arch = "x86_64")]
    naked_asm!(
        ".cfi_startproc",
        ".cfi_undefined rip",
        "endbr64",
        "push rbp",
        "mov rbp, rsp",
        "call rcx",
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
        "blr x3",
        "ldp x29, x30, [sp], #16",
        "ret",
        ".cfi_endproc",
    );
}
