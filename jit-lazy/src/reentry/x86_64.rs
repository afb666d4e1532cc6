//! x86-64, System V.
//!
//! Saved are rax (the number of vector arguments), rdi, rsi, rdx, rcx, r8, r9 (arguments), r10
//! (static chain), r11, and the x87, SSE, AVX and AVX-512 state, as far as the system lets
//! programs use it. What a callee has to preserve, `resolve` does. AMX tiles carry no arguments
//! and take 8 KiB.

use std::arch::global_asm;
use std::arch::x86_64::{__cpuid, __cpuid_count};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::registry::resolve;

/// Bytes of the save area. Zero until the processor was asked.
static AREA: AtomicU64 = AtomicU64::new(0);

/// The state components to save by `xsave`; 0 for `fxsave`.
static COMPONENTS: AtomicU32 = AtomicU32::new(0);

/// 1 where `xsavec` saves them, which leaves out those that are not in use: mostly the 2 KiB of AVX-512.
static COMPACT: AtomicU32 = AtomicU32::new(0);

/// Bytes of an `fxsave` area, and of the header that follows it in an `xsave` area.
const LEGACY_AREA: u64 = 512;
const HEADER: u64 = 64;

/// The leaf of `cpuid` that tells of state components.
const STATE_LEAF: u32 = 0xd;

/// State components, by bit of XCR0.
const X87: u32 = 1 << 0;
const SSE: u32 = 1 << 1;
const AVX: u32 = 1 << 2;
const AVX_512: u32 = 0b111 << 5;

pub(super) fn address() -> u64 {
    if AREA.load(Ordering::Relaxed) == 0 {
        let components = usable_components();
        COMPONENTS.store(components, Ordering::Relaxed);
        COMPACT.store(u32::from(components != 0 && has_xsavec()), Ordering::Relaxed);
        // Code that can reach the routine is published with release ordering later than this.
        AREA.store(area_size(components), Ordering::Relaxed);
    }
    orcane_reentry as *const () as u64
}

/// The components among those that can carry arguments which the system has enabled; 0 without
/// `xsave`.
fn usable_components() -> u32 {
    const OSXSAVE: u32 = 1 << 27;
    if __cpuid(1).ecx & OSXSAVE == 0 {
        return 0;
    }
    let enabled: u32;
    // SAFETY: OSXSAVE says that `xgetbv` can be executed; it writes eax and edx only.
    unsafe {
        std::arch::asm!("xgetbv", in("ecx") 0, out("eax") enabled, out("edx") _, options(nomem, nostack, preserves_flags));
    }
    enabled & (X87 | SSE | AVX | AVX_512)
}

fn has_xsavec() -> bool {
    const XSAVEC: u32 = 1 << 1;
    __cpuid_count(STATE_LEAF, 1).eax & XSAVEC != 0
}

/// Bytes of the standard format, which the compacted one does not exceed: leaf 0xD gives each component's size and offset.
fn area_size(components: u32) -> u64 {
    if components == 0 {
        return LEGACY_AREA;
    }
    (2..u32::BITS)
        .filter(|component| components & (1 << component) != 0)
        .map(|component| {
            let leaf = __cpuid_count(STATE_LEAF, component);
            u64::from(leaf.eax) + u64::from(leaf.ebx)
        })
        .fold(LEGACY_AREA + HEADER, u64::max)
}

unsafe extern "C" {
    /// Entered by a jump, with an index on the stack above which is the return address: not to be
    /// called.
    fn orcane_reentry();
}

// On the stack, upwards from rbp: the caller's rbp, the index, the return address. Downwards: nine
// general registers, then the vector state, aligned to 64 bytes.
//
// `xrstor` demands zeros in the header, of which `xsave` writes the first eight bytes only, and
// those by merging; `xsavec` writes sixteen. The area is smaller than a page, so that it can't step over a guard page.
//
// At the end the address takes the index's place. The jump reads it from the 128 bytes below the
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
    "mov edi, dword ptr [rbp + 8]",
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
    resolve = sym resolve,
);

#[cfg(test)]
mod tests {
    use jit_core::{MaterializationResponsibility, MaterializationUnit, RedirectableFunction, SymbolName};

    use super::*;
    use crate::LazyJit;

    #[test]
    fn the_area_holds_what_the_processor_has_and_stays_within_a_page() {
        assert_eq!(area_size(0), 512);
        assert_eq!(area_size(X87 | SSE), 576);
        let components = usable_components();
        if std::is_x86_feature_detected!("avx") {
            assert_eq!(components & AVX, AVX);
            // The upper halves of sixteen registers.
            assert!(area_size(X87 | SSE | AVX) >= 576 + 256);
        }
        assert!(area_size(components) < 4096);
    }
    #[test]
    fn arguments_are_restored_from_either_format() {
        type Function = extern "C" fn(f64, f64, f64, f64, f64, f64, f64, f64, i64) -> f64;
        extern "C" fn host(a: f64, b: f64, c: f64, d: f64, e: f64, f: f64, g: f64, h: f64, i: i64) -> f64 {
            [a, b, c, d, e, f, g, h, i as f64].iter().fold(0.0, |sum, value| sum * 10.0 + value)
        }
        /// Can't be had: each call comes through the routine, and goes on at `host`.
        struct Missing;
        impl MaterializationUnit for Missing {
            fn materialize(self: Box<Self>, responsibility: MaterializationResponsibility) {
                drop(responsibility);
            }

            fn discard(&mut self, _: &SymbolName) {}
        }
        let jit = LazyJit::builder().failure_handler(|_, _| host as *const () as u64).build().unwrap();
        let name = jit.session().intern("f");
        let body = Box::new(|_: &SymbolName| Box::new(Missing) as Box<dyn MaterializationUnit>);
        jit.redefine_with(vec![RedirectableFunction { name, signature: None, body }]).unwrap();
        let address = jit.lookup_address("f").unwrap() as usize;
        // SAFETY: calls go on at a function of this type.
        let function = unsafe { std::mem::transmute::<usize, Function>(address) };
        let usual = COMPACT.load(Ordering::Relaxed);
        for compact in [0, usual] {
            COMPACT.store(compact, Ordering::Relaxed);
            assert_eq!(function(1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9), 123_456_789.0);
        }
    }
}
