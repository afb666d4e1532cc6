//! AArch64, AAPCS64.
//!
//! Saved are x0 to x7 (arguments), x8 (where the result goes), x9 to x15 (which some languages
//! pass a static chain or an asynchronous context in), x29, x30, and q0 to q7. What a callee has to
//! preserve, `resolve` does. Where there are scalable vectors, z0 to z23 and all predicates are
//! saved at the length the machine has: z0 to z7 and p0 to p3 are arguments, and a function that
//! takes such preserves the others, which `resolve` does not.

use std::arch::global_asm;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::registry::resolve;

/// Whether there are scalable vectors. Code that can reach the routine is published with release
/// ordering later than this.
static SCALABLE: AtomicU32 = AtomicU32::new(0);

pub(super) fn address() -> u64 {
    SCALABLE.store(u32::from(std::arch::is_aarch64_feature_detected!("sve")), Ordering::Relaxed);
    orcane_reentry as *const () as u64
}

/// Has `test` run without scalable vectors, and with them if there are any, where `address` was asked for.
#[cfg(test)]
pub(super) fn in_each_way(test: impl Fn()) {
    let usual = SCALABLE.load(Ordering::Relaxed);
    for scalable in [0, usual] {
        SCALABLE.store(scalable, Ordering::Relaxed);
        test();
    }
}

unsafe extern "C" {
    /// Entered by a jump, with a word in x17: not to be called.
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
    "mov x0, x17",
    "adrp x16, {scalable}",
    "ldr w16, [x16, :lo12:{scalable}]",
    "cbnz w16, 2f",
    "stp q0, q1, [sp, #128]",
    "stp q2, q3, [sp, #160]",
    "stp q4, q5, [sp, #192]",
    "stp q6, q7, [sp, #224]",
    "bl {resolve}",
    "mov x16, x0",
    "ldp q6, q7, [sp, #224]",
    "ldp q4, q5, [sp, #192]",
    "ldp q2, q3, [sp, #160]",
    "ldp q0, q1, [sp, #128]",
    "b 3f",
    "2:",
    ".arch_extension sve",
    // Sixteen predicates are as long as two vectors.
    "addvl sp, sp, #-26",
    "str z0, [sp, #0, mul vl]",
    "str z1, [sp, #1, mul vl]",
    "str z2, [sp, #2, mul vl]",
    "str z3, [sp, #3, mul vl]",
    "str z4, [sp, #4, mul vl]",
    "str z5, [sp, #5, mul vl]",
    "str z6, [sp, #6, mul vl]",
    "str z7, [sp, #7, mul vl]",
    "str z8, [sp, #8, mul vl]",
    "str z9, [sp, #9, mul vl]",
    "str z10, [sp, #10, mul vl]",
    "str z11, [sp, #11, mul vl]",
    "str z12, [sp, #12, mul vl]",
    "str z13, [sp, #13, mul vl]",
    "str z14, [sp, #14, mul vl]",
    "str z15, [sp, #15, mul vl]",
    "str z16, [sp, #16, mul vl]",
    "str z17, [sp, #17, mul vl]",
    "str z18, [sp, #18, mul vl]",
    "str z19, [sp, #19, mul vl]",
    "str z20, [sp, #20, mul vl]",
    "str z21, [sp, #21, mul vl]",
    "str z22, [sp, #22, mul vl]",
    "str z23, [sp, #23, mul vl]",
    "str p0, [sp, #192, mul vl]",
    "str p1, [sp, #193, mul vl]",
    "str p2, [sp, #194, mul vl]",
    "str p3, [sp, #195, mul vl]",
    "str p4, [sp, #196, mul vl]",
    "str p5, [sp, #197, mul vl]",
    "str p6, [sp, #198, mul vl]",
    "str p7, [sp, #199, mul vl]",
    "str p8, [sp, #200, mul vl]",
    "str p9, [sp, #201, mul vl]",
    "str p10, [sp, #202, mul vl]",
    "str p11, [sp, #203, mul vl]",
    "str p12, [sp, #204, mul vl]",
    "str p13, [sp, #205, mul vl]",
    "str p14, [sp, #206, mul vl]",
    "str p15, [sp, #207, mul vl]",
    "bl {resolve}",
    "mov x16, x0",
    "ldr z0, [sp, #0, mul vl]",
    "ldr z1, [sp, #1, mul vl]",
    "ldr z2, [sp, #2, mul vl]",
    "ldr z3, [sp, #3, mul vl]",
    "ldr z4, [sp, #4, mul vl]",
    "ldr z5, [sp, #5, mul vl]",
    "ldr z6, [sp, #6, mul vl]",
    "ldr z7, [sp, #7, mul vl]",
    "ldr z8, [sp, #8, mul vl]",
    "ldr z9, [sp, #9, mul vl]",
    "ldr z10, [sp, #10, mul vl]",
    "ldr z11, [sp, #11, mul vl]",
    "ldr z12, [sp, #12, mul vl]",
    "ldr z13, [sp, #13, mul vl]",
    "ldr z14, [sp, #14, mul vl]",
    "ldr z15, [sp, #15, mul vl]",
    "ldr z16, [sp, #16, mul vl]",
    "ldr z17, [sp, #17, mul vl]",
    "ldr z18, [sp, #18, mul vl]",
    "ldr z19, [sp, #19, mul vl]",
    "ldr z20, [sp, #20, mul vl]",
    "ldr z21, [sp, #21, mul vl]",
    "ldr z22, [sp, #22, mul vl]",
    "ldr z23, [sp, #23, mul vl]",
    "ldr p0, [sp, #192, mul vl]",
    "ldr p1, [sp, #193, mul vl]",
    "ldr p2, [sp, #194, mul vl]",
    "ldr p3, [sp, #195, mul vl]",
    "ldr p4, [sp, #196, mul vl]",
    "ldr p5, [sp, #197, mul vl]",
    "ldr p6, [sp, #198, mul vl]",
    "ldr p7, [sp, #199, mul vl]",
    "ldr p8, [sp, #200, mul vl]",
    "ldr p9, [sp, #201, mul vl]",
    "ldr p10, [sp, #202, mul vl]",
    "ldr p11, [sp, #203, mul vl]",
    "ldr p12, [sp, #204, mul vl]",
    "ldr p13, [sp, #205, mul vl]",
    "ldr p14, [sp, #206, mul vl]",
    "ldr p15, [sp, #207, mul vl]",
    "addvl sp, sp, #26",
    "3:",
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
    scalable = sym SCALABLE,
);
