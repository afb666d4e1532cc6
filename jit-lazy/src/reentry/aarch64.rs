//! AArch64, AAPCS64.
//!
//! Saved are x0 to x7 (arguments), x8 (where the result goes), x9 to x15 (which some languages
//! pass a static chain or an asynchronous context in), x29, x30, the floating-point control and status, and q0 to
//! q7. What a callee has to preserve, `resolve` does. Where there are scalable vectors, z0 to z23 and all predicates
//! are saved at the length the machine has: z0 to z7 and p0 to p3 are arguments, and a function that
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
    // Below the frame: x0 to x15, control and status, and then the vectors, which are reached from sp.
    "sub sp, sp, #144",
    "stp x0, x1, [x29, #-128]",
    "stp x2, x3, [x29, #-112]",
    "stp x4, x5, [x29, #-96]",
    "stp x6, x7, [x29, #-80]",
    "stp x8, x9, [x29, #-64]",
    "stp x10, x11, [x29, #-48]",
    "stp x12, x13, [x29, #-32]",
    "stp x14, x15, [x29, #-16]",
    "mov x0, x17",
    "mrs x16, fpcr",
    "mrs x17, fpsr",
    "stp x16, x17, [x29, #-144]",
    "msr fpcr, xzr",
    "adrp x16, {scalable}",
    "ldr w16, [x16, :lo12:{scalable}]",
    "cbnz w16, 2f",
    "sub sp, sp, #128",
    "stp q0, q1, [sp, #0]",
    "stp q2, q3, [sp, #32]",
    "stp q4, q5, [sp, #64]",
    "stp q6, q7, [sp, #96]",
    "bl {resolve}",
    "mov x16, x0",
    "ldp q0, q1, [sp, #0]",
    "ldp q2, q3, [sp, #32]",
    "ldp q4, q5, [sp, #64]",
    "ldp q6, q7, [sp, #96]",
    "b 3f",
    "2:",
    ".arch_extension sve",
    // Sixteen predicates, in the room of two vectors, and above them 24 vectors. The highest is written first: with
    // long ones, all of it is more than a page, and is not to step over a guard page.
    "addvl sp, sp, #-26",
    ".irp i, 23,22,21,20,19,18,17,16,15,14,13,12,11,10,9,8,7,6,5,4,3,2,1,0",
    "str z\\i, [sp, #(2 + \\i), mul vl]",
    ".endr",
    ".irp i, 15,14,13,12,11,10,9,8,7,6,5,4,3,2,1,0",
    "str p\\i, [sp, #\\i, mul vl]",
    ".endr",
    "bl {resolve}",
    "mov x16, x0",
    ".irp i, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15",
    "ldr p\\i, [sp, #\\i, mul vl]",
    ".endr",
    ".irp i, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23",
    "ldr z\\i, [sp, #(2 + \\i), mul vl]",
    ".endr",
    "3:",
    "ldr x17, [x29, #-144]",
    "msr fpcr, x17",
    "ldr x17, [x29, #-136]",
    "msr fpsr, x17",
    "ldp x14, x15, [x29, #-16]",
    "ldp x12, x13, [x29, #-32]",
    "ldp x10, x11, [x29, #-48]",
    "ldp x8, x9, [x29, #-64]",
    "ldp x6, x7, [x29, #-80]",
    "ldp x4, x5, [x29, #-96]",
    "ldp x2, x3, [x29, #-112]",
    "ldp x0, x1, [x29, #-128]",
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

#[cfg(test)]
pub(super) use tests::*;

/// What tests do with the machine.
#[cfg(test)]
mod tests {
    use std::arch::asm;
    use std::sync::Mutex;

    use super::*;

    /// Has `test` run without scalable vectors, and with them if there are any, where `address` was asked for.
    pub(crate) fn in_each_way(test: impl Fn()) {
        static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
        let _alone = ONE_AT_A_TIME.lock();
        let usual = SCALABLE.load(Ordering::Relaxed);
        for scalable in [0, usual] {
            SCALABLE.store(scalable, Ordering::Relaxed);
            test();
        }
    }

    /// The floating-point control.
    pub(crate) type Environment = u64;

    /// Rounding up.
    pub(crate) const UNUSUAL: Environment = 1 << 22;

    pub(crate) fn environment() -> Environment {
        let found;
        // SAFETY: reads a register.
        unsafe { asm!("mrs {}, fpcr", out(reg) found, options(nomem, nostack, preserves_flags)) };
        found
    }

    /// What a call leaves that is made in an environment.
    ///
    /// # Safety
    ///
    /// A function without arguments and results is at the address.
    pub(crate) unsafe fn environment_after(function: u64, environment: Environment) -> Environment {
        let mut after = environment;
        // SAFETY: as the caller says. The environment is as before in the end.
        unsafe {
            asm!(
                "mrs x22, fpcr",
                "msr fpcr, x20",
                "blr x21",
                "mrs x20, fpcr",
                "msr fpcr, x22",
                inout("x20") after,
                in("x21") function,
                out("x22") _,
                clobber_abi("C"),
            );
        }
        after
    }
}
