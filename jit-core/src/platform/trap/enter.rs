//! The way into compiled code that a trap can be left through, one routine an architecture.
//!
//! `orcane_enter` loads the argument registers, calls the function, and stores the results. Where
//! it left its frame is noted in the [`Scope`]; a trap goes on at `orcane_enter_trapped` with that
//! frame, which restores what a callee has to preserve and returns 1 instead of 0. No frame of
//! Rust is between it and the function.

use std::arch::global_asm;

use super::Scope;

/// Registers that carry arguments and results.
#[derive(Debug, Default)]
#[repr(C, align(16))]
pub(crate) struct Registers {
    integer: [u64; 8],
    float: [u64; 8],
    stack: [u64; 2],
    counts: Counts,
}

#[derive(Debug, Default)]
#[repr(C)]
struct Counts {
    integer: usize,
    float: usize,
    stack: usize,
}

/// Integer arguments in registers.
const INTEGERS: usize = if cfg!(target_arch = "x86_64") { 6 } else { 8 };

impl Registers {
    /// The next argument. Up to eight are passed on.
    pub(crate) fn push(&mut self, bits: u64, is_float: bool) {
        let counts = &mut self.counts;
        let (place, count) = if is_float && counts.float < self.float.len() {
            (&mut self.float[..], &mut counts.float)
        } else if !is_float && counts.integer < INTEGERS {
            (&mut self.integer[..], &mut counts.integer)
        } else {
            (&mut self.stack[..], &mut counts.stack)
        };
        if let Some(place) = place.get_mut(*count) {
            *place = bits;
            *count += 1;
        }
    }

    /// The result of a call.
    pub(crate) fn result(&self, is_float: bool) -> u64 {
        if is_float { self.float[0] } else { self.integer[0] }
    }
}

unsafe extern "C-unwind" {
    /// Calls `function` with `registers`, and stores its results there; 1 if it trapped.
    pub(super) fn orcane_enter(registers: *mut Registers, function: u64, scope: *mut Scope) -> u32;
}

unsafe extern "C" {
    /// Where a trap goes on. Not to be called.
    fn orcane_enter_trapped();
    /// Where the function returns to. Not to be called.
    fn orcane_enter_return();
}

/// Where a trap goes on.
pub(super) fn landing() -> u64 {
    orcane_enter_trapped as *const () as u64
}

/// Where the function returns to.
pub(super) fn return_address() -> u64 {
    orcane_enter_return as *const () as u64
}

#[cfg(target_arch = "x86_64")]
global_asm!(
    ".pushsection .text.orcane_enter, \"ax\", @progbits",
    ".p2align 4",
    ".hidden orcane_enter",
    ".globl orcane_enter",
    ".type orcane_enter, @function",
    "orcane_enter:",
    ".cfi_startproc",
    "endbr64",
    "push rbp",
    ".cfi_def_cfa_offset 16",
    ".cfi_offset rbp, -16",
    "mov rbp, rsp",
    ".cfi_def_cfa_register rbp",
    "push rbx",
    "push r12",
    "push r13",
    "push r14",
    "push r15",
    "push rdi",
    ".cfi_offset rbx, -24",
    ".cfi_offset r12, -32",
    ".cfi_offset r13, -40",
    ".cfi_offset r14, -48",
    ".cfi_offset r15, -56",
    "push [rdi + 136]",
    "push [rdi + 128]",
    "mov [rdx], rbp",
    "mov r11, rsi",
    "mov r10, rdi",
    "movsd xmm0, [r10 + 64]",
    "movsd xmm1, [r10 + 72]",
    "movsd xmm2, [r10 + 80]",
    "movsd xmm3, [r10 + 88]",
    "movsd xmm4, [r10 + 96]",
    "movsd xmm5, [r10 + 104]",
    "movsd xmm6, [r10 + 112]",
    "movsd xmm7, [r10 + 120]",
    "mov rdi, [r10]",
    "mov rsi, [r10 + 8]",
    "mov rdx, [r10 + 16]",
    "mov rcx, [r10 + 24]",
    "mov r8, [r10 + 32]",
    "mov r9, [r10 + 40]",
    "call r11",
    ".hidden orcane_enter_return",
    ".globl orcane_enter_return",
    "orcane_enter_return:",
    "mov r10, [rbp - 48]",
    "mov [r10], rax",
    "movsd [r10 + 64], xmm0",
    "xor eax, eax",
    "2:",
    "lea rsp, [rbp - 40]",
    "pop r15",
    "pop r14",
    "pop r13",
    "pop r12",
    "pop rbx",
    "pop rbp",
    ".cfi_remember_state",
    ".cfi_def_cfa rsp, 8",
    "ret",
    ".cfi_restore_state",
    ".hidden orcane_enter_trapped",
    ".globl orcane_enter_trapped",
    "orcane_enter_trapped:",
    "cld",
    "mov eax, 1",
    "jmp 2b",
    ".cfi_endproc",
    ".size orcane_enter, . - orcane_enter",
    ".popsection",
);

#[cfg(target_arch = "aarch64")]
global_asm!(
    ".pushsection .text.orcane_enter, \"ax\", @progbits",
    ".p2align 4",
    ".hidden orcane_enter",
    ".globl orcane_enter",
    ".type orcane_enter, @function",
    "orcane_enter:",
    ".cfi_startproc",
    // bti c
    "hint #34",
    "stp x29, x30, [sp, #-176]!",
    ".cfi_def_cfa_offset 176",
    ".cfi_offset x29, -176",
    ".cfi_offset x30, -168",
    "mov x29, sp",
    ".cfi_def_cfa_register x29",
    "stp x19, x20, [x29, #16]",
    "stp x21, x22, [x29, #32]",
    "stp x23, x24, [x29, #48]",
    "stp x25, x26, [x29, #64]",
    "stp x27, x28, [x29, #80]",
    "stp d8, d9, [x29, #96]",
    "stp d10, d11, [x29, #112]",
    "stp d12, d13, [x29, #128]",
    "stp d14, d15, [x29, #144]",
    "str x0, [x29, #160]",
    ".cfi_offset x19, -160",
    ".cfi_offset x20, -152",
    ".cfi_offset x21, -144",
    ".cfi_offset x22, -136",
    ".cfi_offset x23, -128",
    ".cfi_offset x24, -120",
    ".cfi_offset x25, -112",
    ".cfi_offset x26, -104",
    ".cfi_offset x27, -96",
    ".cfi_offset x28, -88",
    ".cfi_offset d8, -80",
    ".cfi_offset d9, -72",
    ".cfi_offset d10, -64",
    ".cfi_offset d11, -56",
    ".cfi_offset d12, -48",
    ".cfi_offset d13, -40",
    ".cfi_offset d14, -32",
    ".cfi_offset d15, -24",
    "ldp x9, x10, [x0, #128]",
    "stp x9, x10, [sp, #-16]!",
    "str x29, [x2]",
    "mov x17, x1",
    "mov x16, x0",
    "ldp d0, d1, [x16, #64]",
    "ldp d2, d3, [x16, #80]",
    "ldp d4, d5, [x16, #96]",
    "ldp d6, d7, [x16, #112]",
    "ldp x0, x1, [x16]",
    "ldp x2, x3, [x16, #16]",
    "ldp x4, x5, [x16, #32]",
    "ldp x6, x7, [x16, #48]",
    "blr x17",
    ".hidden orcane_enter_return",
    ".globl orcane_enter_return",
    "orcane_enter_return:",
    "ldr x16, [x29, #160]",
    "str x0, [x16]",
    "str d0, [x16, #64]",
    "mov w0, #0",
    "2:",
    "ldp d14, d15, [x29, #144]",
    "ldp d12, d13, [x29, #128]",
    "ldp d10, d11, [x29, #112]",
    "ldp d8, d9, [x29, #96]",
    "ldp x27, x28, [x29, #80]",
    "ldp x25, x26, [x29, #64]",
    "ldp x23, x24, [x29, #48]",
    "ldp x21, x22, [x29, #32]",
    "ldp x19, x20, [x29, #16]",
    "mov sp, x29",
    ".cfi_remember_state",
    ".cfi_def_cfa sp, 176",
    "ldp x29, x30, [sp], #176",
    ".cfi_def_cfa_offset 0",
    "ret",
    ".cfi_restore_state",
    ".hidden orcane_enter_trapped",
    ".globl orcane_enter_trapped",
    "orcane_enter_trapped:",
    "mov w0, #1",
    "b 2b",
    ".cfi_endproc",
    ".size orcane_enter, . - orcane_enter",
    ".popsection",
);
