//! AArch64, AAPCS64.
//!
//! Saved are x0 to x7 (arguments), x8 (where the result goes), x9 to x15 (which some languages
//! pass a static chain or an asynchronous context in), x29, x30, and q0 to q7. What a callee has to
//! preserve, `resolve` does. Scalable vectors as arguments are not covered: Cranelift has none.

use std::arch::global_asm;

use crate::registry::resolve;

pub(super) fn address() -> u64 {
    orcane_reentry as *const () as u64
}

unsafe extern "C" {
    /// Entered by a jump, with an index in w17: not to be called.
    fn orcane_reentry();
}

// x16 and x17 are the linker's to change between a call and its callee.
global_asm!(
    ".pushsection .text.orcane_reentry, \"ax\", @progbits",
    ".p2align 4",
    ".hidden orcane_reentry",
    ".globl orcane_reentry",
    ".type orcane_reentry, @function",
    "orcane_reentry:",
    ".cfi_startproc",
    // bti c
    "hint #34",
    "stp x29, x30, [sp, #-16]!",
    ".cfi_def_cfa_offset 16",
    ".cfi_offset x29, -16",
    ".cfi_offset x30, -8",
    "mov x29, sp",
    ".cfi_def_cfa_register x29",
    "sub sp, sp, #256",
    "stp x0, x1, [sp]",
    "stp x2, x3, [sp, #16]",
    "stp x4, x5, [sp, #32]",
    "stp x6, x7, [sp, #48]",
    "stp x8, x9, [sp, #64]",
    "stp x10, x11, [sp, #80]",
    "stp x12, x13, [sp, #96]",
    "stp x14, x15, [sp, #112]",
    "stp q0, q1, [sp, #128]",
    "stp q2, q3, [sp, #160]",
    "stp q4, q5, [sp, #192]",
    "stp q6, q7, [sp, #224]",
    "mov w0, w17",
    "bl {resolve}",
    "mov x16, x0",
    "ldp q6, q7, [sp, #224]",
    "ldp q4, q5, [sp, #192]",
    "ldp q2, q3, [sp, #160]",
    "ldp q0, q1, [sp, #128]",
    "ldp x14, x15, [sp, #112]",
    "ldp x12, x13, [sp, #96]",
    "ldp x10, x11, [sp, #80]",
    "ldp x8, x9, [sp, #64]",
    "ldp x6, x7, [sp, #48]",
    "ldp x4, x5, [sp, #32]",
    "ldp x2, x3, [sp, #16]",
    "ldp x0, x1, [sp]",
    "mov sp, x29",
    ".cfi_def_cfa_register sp",
    "ldp x29, x30, [sp], #16",
    ".cfi_def_cfa_offset 0",
    ".cfi_restore x29",
    ".cfi_restore x30",
    "br x16",
    ".cfi_endproc",
    ".size orcane_reentry, . - orcane_reentry",
    ".popsection",
    resolve = sym resolve,
);
