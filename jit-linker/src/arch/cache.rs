//! Makes written code visible to instruction fetch.
//!
//! x86-64 keeps instruction fetch coherent with stores; only a thread that may hold instructions
//! it fetched earlier from the same addresses must be made to fetch again (Intel SDM volume 3,
//! 11.1.3, "cross-modifying code"). AArch64 keeps nothing coherent by itself (Arm ARM, B2.4.4,
//! "Concurrent modification and execution of instructions").

#[cfg(target_os = "linux")]
use std::sync::OnceLock;

/// What was at the addresses of some code before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum History {
    /// No thread has executed anything there.
    Fresh,
    /// Other code, which threads may have executed.
    Reused,
}

/// Makes `size` bytes, written through `working`, the instructions that every thread of the
/// process executes at `executable` from now on. The two may be equal.
///
/// Linux's `membarrier` makes the other threads fetch again, if the C library has made any. Where the
/// system has no such call, that relies on a thread synchronising its fetches on its way to the new
/// code, as it does when the system schedules or interrupts it.
///
/// # Safety
///
/// Both ranges are mapped and readable, and show the same memory. No thread executes what is
/// being replaced.
pub unsafe fn publish(working: *const u8, executable: *const u8, size: usize, history: History) {
    #[cfg(target_arch = "aarch64")]
    // SAFETY: the caller's contract is the function's.
    unsafe {
        aarch64::clean_and_invalidate(working, executable, size);
    }
    #[cfg(not(target_arch = "aarch64"))]
    let _ = (working, executable, size);
    // On AArch64 a thread may have fetched from fresh memory too, beyond the end of other code.
    if cfg!(target_arch = "aarch64") || history == History::Reused {
        if is_only_thread() {
            #[cfg(target_arch = "x86_64")]
            x86_64::serialize();
        } else {
            synchronize_threads();
        }
    }
}

/// Whether this process has no other thread than this, as far as the C library knows: then there will be none before this
/// one goes on.
#[cfg(target_os = "linux")]
fn is_only_thread() -> bool {
    static IS_SINGLE_THREADED: OnceLock<usize> = OnceLock::new();
    let flag = *IS_SINGLE_THREADED.get_or_init(|| {
        // SAFETY: the name ends with a zero. Others than glibc have no such symbol.
        unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"__libc_single_threaded".as_ptr()) }.expose_provenance()
    });
    let flag = std::ptr::with_exposed_provenance::<libc::c_char>(flag);
    // SAFETY: if it is there, it is a `char` that lives as long as the C library. Only a process that has one thread sets
    // it, and only that thread, when it starts another, clears it.
    !flag.is_null() && unsafe { flag.read() } != 0
}

#[cfg(not(target_os = "linux"))]
fn is_only_thread() -> bool {
    false
}

/// Every thread of the process fetches its next instruction anew.
#[cfg(target_os = "linux")]
fn synchronize_threads() {
    let membarrier = |command: libc::c_int| {
        // SAFETY: the call takes numbers, and touches no memory of ours.
        unsafe { libc::syscall(libc::SYS_membarrier, command, 0, 0) }
    };
    let synchronize = || membarrier(libc::MEMBARRIER_CMD_PRIVATE_EXPEDITED_SYNC_CORE as libc::c_int);
    if synchronize() == 0 {
        return;
    }
    // A process registers before its first use. Asking the system each time spares us from
    // knowing what became of the registration in a fork.
    if membarrier(libc::MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED_SYNC_CORE as libc::c_int) == 0 && synchronize() == 0 {
        return;
    }
    // Before Linux 4.16: waits until every thread has passed through the scheduler.
    membarrier(libc::MEMBARRIER_CMD_GLOBAL as libc::c_int);
}

#[cfg(not(target_os = "linux"))]
fn synchronize_threads() {}

#[cfg(target_arch = "x86_64")]
mod x86_64 {
    use std::arch::naked_asm;

    /// This thread fetches its next instruction anew: a return from no interrupt, since what else serializes (Intel SDM
    /// volume 3, 9.3) is privileged, rare, or, as `cpuid`, emulated at a hundred times the price in a virtual machine.
    #[unsafe(naked)]
    pub(super) extern "C" fn serialize() {
        naked_asm!(
            "mov rax, rsp",
            "mov ecx, ss",
            "push rcx",
            "push rax",
            "pushfq",
            "mov ecx, cs",
            "push rcx",
            "lea rcx, [rip + 2f]",
            "push rcx",
            "iretq",
            "2:",
            "ret",
        )
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn a_thread_that_serializes_goes_on_where_it_was() {
            let numbers: Vec<_> = (0..100).inspect(|_| serialize()).collect();
            assert_eq!(numbers.iter().sum::<u32>(), 4950);
        }
    }
}

#[cfg(target_arch = "aarch64")]
mod aarch64 {
    use std::arch::naked_asm;

    /// Cleans data caches to the point of unification through one address, and invalidates
    /// instruction caches at another.
    ///
    /// CTR_EL0 gives the line sizes as logarithms of words (DminLine, bits 16 to 19; IminLine,
    /// bits 0 to 3), and says which half the machine does by itself (IDC, bit 28; DIC, bit 29).
    ///
    /// # Safety
    ///
    /// `size` bytes are mapped and readable at both addresses.
    #[unsafe(naked)]
    pub(super) unsafe extern "C" fn clean_and_invalidate(working: *const u8, executable: *const u8, size: usize) {
        naked_asm!(
            "mrs x3, ctr_el0",
            "mov x4, #4",
            // Data, by lines of the writable address.
            "tbnz x3, #28, 3f",
            "ubfx x5, x3, #16, #4",
            "lsl x5, x4, x5",
            "sub x6, x5, #1",
            "add x7, x0, x2",
            "bic x6, x0, x6",
            "2:",
            "cmp x6, x7",
            "b.hs 3f",
            "dc cvau, x6",
            "add x6, x6, x5",
            "b 2b",
            "3:",
            "dsb ish",
            // Instructions, by lines of the executable address.
            "tbnz x3, #29, 5f",
            "ubfx x5, x3, #0, #4",
            "lsl x5, x4, x5",
            "sub x6, x5, #1",
            "add x7, x1, x2",
            "bic x6, x1, x6",
            "4:",
            "cmp x6, x7",
            "b.hs 5f",
            "ic ivau, x6",
            "add x6, x6, x5",
            "b 4b",
            "5:",
            "dsb ish",
            "isb",
            "ret",
        )
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        const RET: u32 = 0xd65f_03c0;

        /// The function's instructions, up to its `ret`.
        fn words() -> Vec<u32> {
            let start = clean_and_invalidate as *const u32;
            // SAFETY: the function's own instructions, which end with the first `ret`.
            (0..).map(|index| unsafe { *start.add(index) }).take_while(|&word| word != RET).collect()
        }

        /// Emulators show no stale cache, so what is checked is the sequence itself.
        #[test]
        fn the_sequence_is_the_architectures() {
            let maintenance: Vec<_> = words()
                .into_iter()
                .filter_map(|word| match word & !0x1f {
                    0xd50b_7b20 => Some(("dc cvau", word & 0x1f)),
                    0xd50b_7520 => Some(("ic ivau", word & 0x1f)),
                    _ if word == 0xd503_3b9f => Some(("dsb ish", 0)),
                    _ if word == 0xd503_3fdf => Some(("isb", 0)),
                    0xd53b_0020 => Some(("mrs ctr_el0", word & 0x1f)),
                    // Any other system instruction would be one that nobody asked for.
                    system if system >> 22 == 0x354 => Some(("other", word)),
                    _ => None,
                })
                .collect();
            assert_eq!(
                maintenance,
                [("mrs ctr_el0", 3), ("dc cvau", 6), ("dsb ish", 0), ("ic ivau", 6), ("dsb ish", 0), ("isb", 0)]
            );
        }

        /// Each loop starts at its own address, rounded down to a line.
        #[test]
        fn data_is_cleaned_at_the_writable_address_and_instructions_at_the_executable_one() {
            // bic x6, xN, x6
            let starts =
                words().into_iter().filter(|word| word & 0xffff_fc1f == 0x8a26_0006).map(|word| word >> 5 & 31);
            assert_eq!(starts.collect::<Vec<_>>(), [0, 1]);
        }

        #[test]
        fn the_machine_is_left_what_it_does_by_itself() {
            // tbnz x3, #bit, label
            let bits = words().into_iter().filter(|word| word & 0x7f00_001f == 0x3700_0003).map(|word| word >> 19 & 31);
            assert_eq!(bits.collect::<Vec<_>>(), [28, 29]);
        }
    }
}
