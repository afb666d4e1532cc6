//! Resolvers of TLS descriptors: a descriptor is two words, of which the first is a routine that takes the descriptor's
//! address and answers with a variable's offset from the thread pointer. Compilers count on it to keep every other
//! register, of vectors too ("Thread-Local Storage Descriptors for IA32 and AMD64/EM64T"; ELF for the Arm 64-bit
//! Architecture, "TLS descriptors").

/// Defines the routine `$name`, whose descriptors' second word is what `$address`, an `extern "C"` function, takes: it
/// returns the address of the calling thread's copy.
#[cfg(target_arch = "aarch64")]
macro_rules! resolver {
    ($name:literal, $address:path) => {
        std::arch::global_asm!(
            ".text",
            ".p2align 2",
            concat!(".globl ", $name),
            concat!(".hidden ", $name),
            concat!(".type ", $name, ", %function"),
            concat!($name, ":"),
            ".cfi_startproc",
            "bti c",
            "sub sp, sp, #672",
            ".cfi_def_cfa_offset 672",
            "stp x29, x30, [sp]",
            ".cfi_offset x29, -672",
            ".cfi_offset x30, -664",
            "mov x29, sp",
            "stp x1, x2, [sp, #16]",
            "stp x3, x4, [sp, #32]",
            "stp x5, x6, [sp, #48]",
            "stp x7, x8, [sp, #64]",
            "stp x9, x10, [sp, #80]",
            "stp x11, x12, [sp, #96]",
            "stp x13, x14, [sp, #112]",
            "stp x15, x16, [sp, #128]",
            "stp x17, x18, [sp, #144]",
            "stp q0, q1, [sp, #160]",
            "stp q2, q3, [sp, #192]",
            "stp q4, q5, [sp, #224]",
            "stp q6, q7, [sp, #256]",
            "stp q8, q9, [sp, #288]",
            "stp q10, q11, [sp, #320]",
            "stp q12, q13, [sp, #352]",
            "stp q14, q15, [sp, #384]",
            "stp q16, q17, [sp, #416]",
            "stp q18, q19, [sp, #448]",
            "stp q20, q21, [sp, #480]",
            "stp q22, q23, [sp, #512]",
            "stp q24, q25, [sp, #544]",
            "stp q26, q27, [sp, #576]",
            "stp q28, q29, [sp, #608]",
            "stp q30, q31, [sp, #640]",
            "ldr x0, [x0, #8]",
            "bl {address}",
            "mrs x1, tpidr_el0",
            "sub x0, x0, x1",
            "ldp q30, q31, [sp, #640]",
            "ldp q28, q29, [sp, #608]",
            "ldp q26, q27, [sp, #576]",
            "ldp q24, q25, [sp, #544]",
            "ldp q22, q23, [sp, #512]",
            "ldp q20, q21, [sp, #480]",
            "ldp q18, q19, [sp, #448]",
            "ldp q16, q17, [sp, #416]",
            "ldp q14, q15, [sp, #384]",
            "ldp q12, q13, [sp, #352]",
            "ldp q10, q11, [sp, #320]",
            "ldp q8, q9, [sp, #288]",
            "ldp q6, q7, [sp, #256]",
            "ldp q4, q5, [sp, #224]",
            "ldp q2, q3, [sp, #192]",
            "ldp q0, q1, [sp, #160]",
            "ldp x17, x18, [sp, #144]",
            "ldp x15, x16, [sp, #128]",
            "ldp x13, x14, [sp, #112]",
            "ldp x11, x12, [sp, #96]",
            "ldp x9, x10, [sp, #80]",
            "ldp x7, x8, [sp, #64]",
            "ldp x5, x6, [sp, #48]",
            "ldp x3, x4, [sp, #32]",
            "ldp x1, x2, [sp, #16]",
            "ldp x29, x30, [sp]",
            "add sp, sp, #672",
            ".cfi_def_cfa_offset 0",
            ".cfi_restore x29",
            ".cfi_restore x30",
            "ret",
            ".cfi_endproc",
            concat!(".size ", $name, ", . - ", $name),
            address = sym $address,
        );
    };
}

// On the stack, downwards from rbp: the result, the registers that a callee may change, and the vector state, aligned to
// 64 bytes. `xrstor` demands zeros in the header of that, of which `xsave` writes the first eight bytes only.
#[cfg(target_arch = "x86_64")]
macro_rules! resolver {
    ($name:literal, $address:path) => {
        std::arch::global_asm!(
            ".text",
            ".p2align 4",
            concat!(".globl ", $name),
            concat!(".hidden ", $name),
            concat!(".type ", $name, ", @function"),
            concat!($name, ":"),
            ".cfi_startproc",
            "endbr64",
            "push rbp",
            ".cfi_def_cfa_offset 16",
            ".cfi_offset rbp, -16",
            "mov rbp, rsp",
            ".cfi_def_cfa_register rbp",
            "push rdi",
            "push rsi",
            "push rdx",
            "push rcx",
            "push r8",
            "push r9",
            "push r10",
            "push r11",
            "push rax",
            "sub rsp, qword ptr [rip + {area}]",
            "and rsp, -64",
            "mov rdi, qword ptr [rax + 8]",
            "mov eax, dword ptr [rip + {components}]",
            "xor edx, edx",
            "test eax, eax",
            "jz 2f",
            "mov qword ptr [rsp + 512], rdx",
            "mov qword ptr [rsp + 520], rdx",
            "mov qword ptr [rsp + 528], rdx",
            "mov qword ptr [rsp + 536], rdx",
            "mov qword ptr [rsp + 544], rdx",
            "mov qword ptr [rsp + 552], rdx",
            "mov qword ptr [rsp + 560], rdx",
            "mov qword ptr [rsp + 568], rdx",
            "xsave64 [rsp]",
            "jmp 3f",
            "2:",
            "fxsave64 [rsp]",
            "3:",
            "call {address}",
            "sub rax, qword ptr fs:[0]",
            "mov qword ptr [rbp - 72], rax",
            "mov eax, dword ptr [rip + {components}]",
            "xor edx, edx",
            "test eax, eax",
            "jz 4f",
            "xrstor64 [rsp]",
            "jmp 5f",
            "4:",
            "fxrstor64 [rsp]",
            "5:",
            "lea rsp, [rbp - 72]",
            "pop rax",
            "pop r11",
            "pop r10",
            "pop r9",
            "pop r8",
            "pop rcx",
            "pop rdx",
            "pop rsi",
            "pop rdi",
            "pop rbp",
            ".cfi_def_cfa rsp, 8",
            ".cfi_restore rbp",
            "ret",
            ".cfi_endproc",
            concat!(".size ", $name, ", . - ", $name),
            area = sym $crate::platform::tlsdesc::AREA,
            components = sym $crate::platform::tlsdesc::COMPONENTS,
            address = sym $address,
        );
    };
}

pub(crate) use resolver;

#[cfg(target_arch = "x86_64")]
pub(crate) use x86_64::{AREA, COMPONENTS};

/// To be called before the address of a routine is given away.
pub(crate) fn prepare() {
    #[cfg(target_arch = "x86_64")]
    x86_64::prepare();
}

/// What there is of vector state.
#[cfg(target_arch = "x86_64")]
mod x86_64 {
    use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

    use jit_linker::arch::VectorState;

    /// Bytes of the save area. Zero until the processor was asked.
    pub(crate) static AREA: AtomicU64 = AtomicU64::new(0);

    /// The state components to save by `xsave`; 0 for `fxsave`.
    pub(crate) static COMPONENTS: AtomicU32 = AtomicU32::new(0);

    pub(super) fn prepare() {
        if AREA.load(Ordering::Acquire) == 0 {
            let VectorState { components, area, .. } = VectorState::of_host();
            COMPONENTS.store(components, Ordering::Relaxed);
            // Code that can reach a routine is published later, by this thread or one that saw this.
            AREA.store(area, Ordering::Release);
        }
    }
}
