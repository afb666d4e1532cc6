//! Functions that choose which function is called in their place.

use crate::link::Resolver;

impl Resolver {
    /// Calls the function, and stores what it returns in the slot: from here on the symbol leads
    /// there. On AArch64 it is told the processor's features, as the dynamic loader tells it.
    ///
    /// # Safety
    ///
    /// The graph's memory is final and mapped in this process, and everything that the function
    /// refers to can be used.
    pub unsafe fn settle(self) {
        let function = std::ptr::with_exposed_provenance::<()>(self.function as usize);
        // SAFETY: the caller's: the code is there, and its object says that it is a resolver.
        let chosen = unsafe { call(function) };
        let slot = std::ptr::with_exposed_provenance_mut::<u64>(self.slot as usize);
        // SAFETY: an entry of the graph's GOT, which is data, aligned to 8, and written by nobody else.
        unsafe { slot.write_volatile(chosen) };
    }
}

#[cfg(not(all(target_arch = "aarch64", target_os = "linux")))]
unsafe fn call(function: *const ()) -> u64 {
    // SAFETY: the caller's.
    unsafe { std::mem::transmute::<*const (), extern "C" fn() -> u64>(function)() }
}

#[cfg(all(target_arch = "aarch64", target_os = "linux"))]
unsafe fn call(function: *const ()) -> u64 {
    /// `__ifunc_arg_t`.
    #[repr(C)]
    struct Features {
        size: u64,
        hwcap: u64,
        hwcap2: u64,
    }
    /// `_IFUNC_ARG_HWCAP`: there is a second argument.
    const HAS_SECOND: u64 = 1 << 62;
    // SAFETY: reads what the kernel said at the process's start.
    let (hwcap, hwcap2) = unsafe { (libc::getauxval(libc::AT_HWCAP), libc::getauxval(libc::AT_HWCAP2)) };
    let features = Features { size: size_of::<Features>() as u64, hwcap, hwcap2 };
    // SAFETY: the caller's.
    unsafe {
        std::mem::transmute::<*const (), extern "C" fn(u64, *const Features) -> u64>(function)(
            hwcap | HAS_SECOND,
            &raw const features,
        )
    }
}
