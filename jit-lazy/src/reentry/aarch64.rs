//! AArch64, AAPCS64.
//!
//! Saved are x0 to x7 (arguments), x8 (where the result goes), x9 to x15 (which some languages
//! pass a static chain or an asynchronous context in), x29, x30, the floating-point control and status, and
//! q0 to q31: there are conventions by which a callee preserves all of them, of vectors (AAPCS64) and
//! Cranelift's `preserve_all`. Where there are scalable vectors, z0 to z31, all predicates and the
//! first-fault register are saved at the length the machine has. The other general registers, `resolve`
//! preserves.

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
    "sub sp, sp, #512",
    "stp q0, q1, [sp, #0]",
    "stp q2, q3, [sp, #32]",
    "stp q4, q5, [sp, #64]",
    "stp q6, q7, [sp, #96]",
    "stp q8, q9, [sp, #128]",
    "stp q10, q11, [sp, #160]",
    "stp q12, q13, [sp, #192]",
    "stp q14, q15, [sp, #224]",
    "stp q16, q17, [sp, #256]",
    "stp q18, q19, [sp, #288]",
    "stp q20, q21, [sp, #320]",
    "stp q22, q23, [sp, #352]",
    "stp q24, q25, [sp, #384]",
    "stp q26, q27, [sp, #416]",
    "stp q28, q29, [sp, #448]",
    "stp q30, q31, [sp, #480]",
    "bl {resolve}",
    "mov x16, x0",
    "ldp q0, q1, [sp, #0]",
    "ldp q2, q3, [sp, #32]",
    "ldp q4, q5, [sp, #64]",
    "ldp q6, q7, [sp, #96]",
    "ldp q8, q9, [sp, #128]",
    "ldp q10, q11, [sp, #160]",
    "ldp q12, q13, [sp, #192]",
    "ldp q14, q15, [sp, #224]",
    "ldp q16, q17, [sp, #256]",
    "ldp q18, q19, [sp, #288]",
    "ldp q20, q21, [sp, #320]",
    "ldp q22, q23, [sp, #352]",
    "ldp q24, q25, [sp, #384]",
    "ldp q26, q27, [sp, #416]",
    "ldp q28, q29, [sp, #448]",
    "ldp q30, q31, [sp, #480]",
    "b 3f",
    "2:",
    ".arch_extension sve",
    // Seventeen predicates, in the room of three vectors, and above them 32 vectors. The highest is written first: with
    // long ones, all of it is more than a page, and is not to step over a guard page.
    "addvl sp, sp, #-32",
    "addvl sp, sp, #-3",
    ".irp i, 31,30,29,28,27,26,25,24,23,22,21,20,19,18,17,16,15,14,13,12,11,10,9,8,7,6,5,4,3,2,1,0",
    "str z\\i, [sp, #(3 + \\i), mul vl]",
    ".endr",
    ".irp i, 15,14,13,12,11,10,9,8,7,6,5,4,3,2,1,0",
    "str p\\i, [sp, #\\i, mul vl]",
    ".endr",
    "rdffr p0.b",
    "str p0, [sp, #16, mul vl]",
    "bl {resolve}",
    "mov x16, x0",
    "ldr p0, [sp, #16, mul vl]",
    "wrffr p0.b",
    ".irp i, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15",
    "ldr p\\i, [sp, #\\i, mul vl]",
    ".endr",
    ".irp i, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
    "ldr z\\i, [sp, #(3 + \\i), mul vl]",
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

    pub(crate) fn clear_vectors() {
        // SAFETY: changes what a call may change.
        unsafe {
            asm!(
                ".irp i, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
                "movi v\\i\\().2d, #0",
                ".endr",
                options(nomem, nostack),
                clobber_abi("C"),
            );
        }
    }

    /// The vector registers that a call changes; the predicates are counted on from 32.
    ///
    /// # Safety
    ///
    /// A function without arguments and results is at the address.
    pub(crate) unsafe fn vectors_lost_by(function: u64) -> Vec<usize> {
        // SAFETY: as the caller says.
        if SCALABLE.load(Ordering::Relaxed) == 0 {
            unsafe { lost(function) }
        } else {
            unsafe { lost_scalable(function) }
        }
    }

    unsafe fn lost(function: u64) -> Vec<usize> {
        let before: [[u64; 2]; 32] = std::array::from_fn(|register| [register as u64 + 1, !(register as u64)]);
        let mut after = before;
        // SAFETY: as the caller says; the list is as long as is read and written.
        unsafe {
            asm!(
                ".irp i, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
                "ldr q\\i, [x20, #(16 * \\i)]",
                ".endr",
                "blr x21",
                ".irp i, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
                "str q\\i, [x20, #(16 * \\i)]",
                ".endr",
                in("x20") &raw mut after,
                in("x21") function,
                clobber_abi("C"),
            );
        }
        (0..before.len()).filter(|register| before[*register] != after[*register]).collect()
    }

    unsafe fn lost_scalable(function: u64) -> Vec<usize> {
        /// Bytes of the longest vector. A predicate is an eighth of one.
        const LONGEST: usize = 256;
        let before: [[u8; 32 * LONGEST]; 2] =
            [5, 7].map(|factor| std::array::from_fn(|at| (at * factor + at / 251) as u8));
        let mut after = before;
        let [vectors, predicates] = &mut after;
        let length: usize;
        // SAFETY: as the caller says; the lists are at least as long as is read and written.
        unsafe {
            asm!(
                ".arch_extension sve",
                ".irp i, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
                "ldr z\\i, [x20, #\\i, mul vl]",
                ".endr",
                ".irp i, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15",
                "ldr p\\i, [x22, #\\i, mul vl]",
                ".endr",
                "blr x21",
                ".irp i, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
                "str z\\i, [x20, #\\i, mul vl]",
                ".endr",
                ".irp i, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15",
                "str p\\i, [x22, #\\i, mul vl]",
                ".endr",
                "cntb x21",
                ".arch_extension nosve",
                in("x20") vectors,
                inout("x21") function => length,
                in("x22") predicates,
                clobber_abi("C"),
            );
        }
        let is_lost = |list: usize, at: usize, size: usize| {
            let bytes = at * size..(at + 1) * size;
            before[list][bytes.clone()] != after[list][bytes]
        };
        let vectors = (0..32).filter(|register| is_lost(0, *register, length));
        let predicates = (0..16).filter(|register| is_lost(1, *register, length / 8)).map(|register| register + 32);
        vectors.chain(predicates).collect()
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
