//! TLS descriptors of variables outside the static block, and what stands for any variable in Mach-O code.

use jit_linker::link::TlsLocation;

use super::__tls_get_addr;
use crate::platform::tlsdesc;

/// Bits of an argument that hold the offset; above them is the number of the module.
const OFFSET_BITS: u32 = 40;

/// Is added to the offset, which may be one before the module's storage when an addend is negative.
const BIAS: u64 = 1 << (OFFSET_BITS - 1);

unsafe extern "C" {
    fn orcane_tlsdesc_of_module();
    fn orcane_tlv_of_module();
}

/// A descriptor, whose second word grows with the offset.
pub(super) fn new(module: u64, offset: u64) -> [u64; 2] {
    tlsdesc::prepare();
    [orcane_tlsdesc_of_module as *const () as u64, (module << OFFSET_BITS) + BIAS + offset]
}

/// # Safety
///
/// `argument` is of a descriptor that [`new`] made, with an offset added, and its module is loaded.
unsafe extern "C" fn address(argument: u64) -> *mut u8 {
    let offset = (argument & ((1 << OFFSET_BITS) - 1)).wrapping_sub(BIAS);
    // SAFETY: as the caller says.
    unsafe { __tls_get_addr(&[argument >> OFFSET_BITS, offset]) }
}

tlsdesc::resolver!("orcane_tlsdesc_of_module", address);

/// The descriptor by which Mach-O code finds a variable: a function that takes the descriptor's address and returns that
/// of the calling thread's copy, and two words for it.
pub(crate) fn of_mach_o(location: TlsLocation) -> [u64; 3] {
    let [_, argument] = new(location.module, location.offset);
    [orcane_tlv_of_module as *const () as u64, argument, 0]
}

// The descriptor's second word is where the other kind has it. Compilers count on more registers to be kept than of an
// ordinary function: all but the result's are.
#[cfg(target_arch = "x86_64")]
std::arch::global_asm!(
    ".text",
    ".p2align 4",
    ".globl orcane_tlv_of_module",
    ".hidden orcane_tlv_of_module",
    ".type orcane_tlv_of_module, @function",
    "orcane_tlv_of_module:",
    ".cfi_startproc",
    "endbr64",
    "mov rax, rdi",
    "call {resolver}",
    "add rax, qword ptr fs:[0]",
    "ret",
    ".cfi_endproc",
    ".size orcane_tlv_of_module, . - orcane_tlv_of_module",
    resolver = sym orcane_tlsdesc_of_module,
);

#[cfg(target_arch = "aarch64")]
std::arch::global_asm!(
    ".text",
    ".p2align 2",
    ".globl orcane_tlv_of_module",
    ".hidden orcane_tlv_of_module",
    ".type orcane_tlv_of_module, %function",
    "orcane_tlv_of_module:",
    ".cfi_startproc",
    "bti c",
    "stp x29, x30, [sp, #-16]!",
    ".cfi_def_cfa_offset 16",
    ".cfi_offset x29, -16",
    ".cfi_offset x30, -8",
    "mov x29, sp",
    "bl {resolver}",
    "mrs x30, tpidr_el0",
    "add x0, x0, x30",
    "ldp x29, x30, [sp], #16",
    ".cfi_def_cfa_offset 0",
    ".cfi_restore x29",
    ".cfi_restore x30",
    "ret",
    ".cfi_endproc",
    ".size orcane_tlv_of_module, . - orcane_tlv_of_module",
    resolver = sym orcane_tlsdesc_of_module,
);

#[cfg(test)]
mod tests {
    use super::super::ThreadLocalStorage;
    use super::super::tests::{copy_of_this_thread, host, image, thread_pointer};

    /// What the routine of a descriptor returns, and what it leaves of vector registers that held `values`.
    fn resolve(descriptor: &[u64; 2], values: [[u64; 2]; 2]) -> (u64, [[u64; 2]; 2]) {
        let [mut low, mut high] = values;
        let mut result = descriptor.as_ptr() as u64;
        // SAFETY: it is called as compilers do, and changes what it may change only; the vectors are two words each.
        #[cfg(target_arch = "x86_64")]
        unsafe {
            std::arch::asm!(
                "movups xmm3, [{low}]", "movups xmm15, [{high}]", "call [rax]",
                "movups [{low}], xmm3", "movups [{high}], xmm15",
                low = in(reg) &mut low, high = in(reg) &mut high, inout("rax") result, out("xmm3") _, out("xmm15") _,
            );
        }
        // SAFETY: as above.
        #[cfg(target_arch = "aarch64")]
        unsafe {
            std::arch::asm!(
                "ldr q3, [{low}]", "ldr q31, [{high}]", "ldr x16, [x0]", "blr x16",
                "str q3, [{low}]", "str q31, [{high}]",
                low = in(reg) &mut low, high = in(reg) &mut high, inout("x0") result, out("v3") _, out("v31") _,
                out("x16") _, out("x30") _,
            );
        }
        (result, [low, high])
    }

    #[test]
    fn elf_36_a_descriptor_leads_to_each_threads_copy_and_keeps_the_registers() {
        let storage = ThreadLocalStorage::new(host(), &image([3, 4], 1 << 20, 16)).unwrap();
        let location = storage.location();
        assert_eq!(location.thread_pointer_offset, None);
        let check = move || {
            let values = [[1, u64::MAX], [2, 3]];
            for offset in [0, 8, (1 << 20) - 1] {
                // The first call of a thread allocates its copy.
                let (distance, kept) = resolve(&location.at(offset).descriptor.unwrap(), values);
                assert_eq!(kept, values);
                let address = copy_of_this_thread(location) as u64 + offset;
                assert_eq!(thread_pointer().wrapping_add(distance), address);
            }
        };
        std::thread::spawn(check).join().unwrap();
        check();
    }
}
