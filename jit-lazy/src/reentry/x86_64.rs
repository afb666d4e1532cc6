//! x86-64, System V.
//!
//! Saved are rax (the number of vector arguments), rdi, rsi, rdx, rcx, r8, r9 (arguments), r10
//! (static chain), r11, and the x87, SSE, AVX and AVX-512 state, as far as the system lets
//! programs use it, which includes the control words of both floating-point units. What a callee has to
//! preserve, `resolve` does. AMX tiles carry no arguments and take 8 KiB.

use std::arch::global_asm;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use jit_linker::arch::VectorState;

use crate::registry::resolve;

/// Bytes of the save area. Zero until the processor was asked.
static AREA: AtomicU64 = AtomicU64::new(0);

/// The state components to save by `xsave`; 0 for `fxsave`.
static COMPONENTS: AtomicU32 = AtomicU32::new(0);

/// What a thread begins with: all exceptions masked, rounding to the nearest.
static USUAL_MXCSR: u32 = 0x1f80;

/// 1 where `xsavec` saves them, which leaves out those that are not in use: mostly the 2 KiB of AVX-512.
static COMPACT: AtomicU32 = AtomicU32::new(0);

pub(super) fn address() -> u64 {
    if AREA.load(Ordering::Acquire) == 0 {
        let VectorState { components, area, has_xsavec, .. } = VectorState::of_host();
        COMPONENTS.store(components, Ordering::Relaxed);
        COMPACT.store(has_xsavec.into(), Ordering::Relaxed);
        // Code that can reach the routine is published later, by this thread or one that saw this.
        AREA.store(area, Ordering::Release);
    }
    orcane_reentry as *const () as u64
}

unsafe extern "C" {
    /// Entered by a jump, with a word on the stack above which is the return address: not to be
    /// called.
    fn orcane_reentry();
}

// On the stack, upwards from rbp: the caller's rbp, the word, the return address. Downwards: nine
// general registers, then the vector state, aligned to 64 bytes.
//
// `xrstor` demands zeros in the header, of which `xsave` writes the first eight bytes only, and
// those by merging; `xsavec` writes sixteen. The area is smaller than a page, so that it can't step over a guard page.
//
// At the end the address takes the word's place. The jump reads it from the 128 bytes below the
// stack pointer that signal handlers leave alone: no register is free to hold it.
global_asm!(
    ".pushsection .text.orcane_reentry, \"ax\", @progbits",
    ".p2align 4",
    ".hidden orcane_reentry",
    ".globl orcane_reentry",
    ".type orcane_reentry, @function",
    "orcane_reentry:",
    ".cfi_startproc",
    ".cfi_def_cfa_offset 16",
    "endbr64",
    "push rbp",
    ".cfi_def_cfa_offset 24",
    ".cfi_offset rbp, -24",
    "mov rbp, rsp",
    ".cfi_def_cfa_register rbp",
    "push rax",
    "push rdi",
    "push rsi",
    "push rdx",
    "push rcx",
    "push r8",
    "push r9",
    "push r10",
    "push r11",
    "sub rsp, qword ptr [rip + {area}]",
    "and rsp, -64",
    "mov eax, dword ptr [rip + {components}]",
    "test eax, eax",
    "jz 2f",
    "xor edx, edx",
    "mov qword ptr [rsp + 512], rdx",
    "mov qword ptr [rsp + 520], rdx",
    "mov qword ptr [rsp + 528], rdx",
    "mov qword ptr [rsp + 536], rdx",
    "mov qword ptr [rsp + 544], rdx",
    "mov qword ptr [rsp + 552], rdx",
    "mov qword ptr [rsp + 560], rdx",
    "mov qword ptr [rsp + 568], rdx",
    "cmp dword ptr [rip + {compact}], 0",
    "jne 6f",
    "xsave64 [rsp]",
    "jmp 3f",
    "6:",
    "xsavec64 [rsp]",
    "jmp 3f",
    "2:",
    "fxsave64 [rsp]",
    "3:",
    "cld",
    "fninit",
    "ldmxcsr [rip + {usual_mxcsr}]",
    "mov rdi, qword ptr [rbp + 8]",
    "call {resolve}",
    "mov qword ptr [rbp + 8], rax",
    "mov eax, dword ptr [rip + {components}]",
    "test eax, eax",
    "jz 4f",
    "xor edx, edx",
    "xrstor64 [rsp]",
    "jmp 5f",
    "4:",
    "fxrstor64 [rsp]",
    "5:",
    "lea rsp, [rbp - 72]",
    "pop r11",
    "pop r10",
    "pop r9",
    "pop r8",
    "pop rcx",
    "pop rdx",
    "pop rsi",
    "pop rdi",
    "pop rax",
    "pop rbp",
    ".cfi_def_cfa rsp, 16",
    ".cfi_restore rbp",
    "lea rsp, [rsp + 8]",
    ".cfi_def_cfa_offset 8",
    "jmp qword ptr [rsp - 8]",
    ".cfi_endproc",
    ".size orcane_reentry, . - orcane_reentry",
    ".popsection",
    area = sym AREA,
    components = sym COMPONENTS,
    compact = sym COMPACT,
    usual_mxcsr = sym USUAL_MXCSR,
    resolve = sym resolve,
);

#[cfg(test)]
pub(super) use tests::*;

/// What tests do with the machine.
#[cfg(test)]
mod tests {
    use std::arch::asm;
    use std::sync::Mutex;

    use super::*;

    /// Has `test` run with each way of saving vectors, where `address` was asked for. Only such tests make first calls: what
    /// one way has saved is not for another to restore.
    pub(crate) fn in_each_way(test: impl Fn()) {
        static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
        let _alone = ONE_AT_A_TIME.lock();
        let usual = (COMPONENTS.load(Ordering::Relaxed), COMPACT.load(Ordering::Relaxed));
        for (components, compact) in [(0, 0), (usual.0, 0), usual] {
            COMPONENTS.store(components, Ordering::Relaxed);
            COMPACT.store(compact, Ordering::Relaxed);
            test();
        }
    }

    pub(crate) fn clear_vectors() {
        // SAFETY: changes what a call may change.
        unsafe {
            asm!(
                ".irp i, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15",
                "pxor xmm\\i, xmm\\i",
                ".endr",
                options(nomem, nostack),
                clobber_abi("C"),
            );
        }
    }

    /// The vector registers that a call changes.
    ///
    /// # Safety
    ///
    /// A function without arguments and results is at the address.
    pub(crate) unsafe fn vectors_lost_by(function: u64) -> Vec<usize> {
        let before: [[u64; 2]; 16] = std::array::from_fn(|register| [register as u64 + 1, !(register as u64)]);
        let mut after = before;
        // SAFETY: as the caller says. The red zone is left alone; the list is as long as is read and written.
        unsafe {
            asm!(
                "sub rsp, 128",
                ".irp i, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15",
                "movups xmm\\i, [r12 + 16 * \\i]",
                ".endr",
                "call r13",
                ".irp i, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15",
                "movups [r12 + 16 * \\i], xmm\\i",
                ".endr",
                "add rsp, 128",
                in("r12") &raw mut after,
                in("r13") function,
                clobber_abi("C"),
            );
        }
        (0..before.len()).filter(|register| before[*register] != after[*register]).collect()
    }

    /// The control words of SSE and of x87.
    #[derive(Clone, Copy, Debug, PartialEq)]
    #[repr(C)]
    pub(crate) struct Environment {
        mxcsr: u32,
        x87: u32,
    }

    /// Rounding up, and nothing masked but what every sum of different magnitudes would raise.
    pub(crate) const UNUSUAL: Environment = Environment { mxcsr: 0x5000, x87: 0x0b60 };

    /// Exceptions that were raised are not a part of it.
    const CONTROL: u32 = !0x3f;

    pub(crate) fn environment() -> Environment {
        let mut found = Environment { mxcsr: 0, x87: 0 };
        // SAFETY: stores the control words.
        unsafe { asm!("stmxcsr [{0}]", "fnstcw [{0} + 4]", in(reg) &raw mut found, options(nostack)) };
        Environment { mxcsr: found.mxcsr & CONTROL, ..found }
    }

    /// What a call leaves that is made in an environment.
    ///
    /// # Safety
    ///
    /// A function without arguments and results is at the address.
    pub(crate) unsafe fn environment_after(function: u64, environment: Environment) -> Environment {
        let mut after = environment;
        // SAFETY: as the caller says. The red zone is left alone, and the environment is as before in the end.
        unsafe {
            asm!(
                "sub rsp, 144",
                "stmxcsr [rsp]",
                "fnstcw [rsp + 4]",
                "ldmxcsr [r12]",
                "fldcw [r12 + 4]",
                "call r13",
                "stmxcsr [r12]",
                "fnstcw [r12 + 4]",
                "ldmxcsr [rsp]",
                "fldcw [rsp + 4]",
                "add rsp, 144",
                in("r12") &raw mut after,
                in("r13") function,
                clobber_abi("C"),
            );
        }
        Environment { mxcsr: after.mxcsr & CONTROL, ..after }
    }
}
