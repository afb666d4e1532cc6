//! The re-entry routine: from compiled code into the compiler and on, as if nothing had happened.
//!
//! A trampoline jumps to it with the trampoline's index, and an entry whose counter has run out with the
//! counter. It saves every register that can carry an argument, calls
//! [`resolve`](crate::registry::resolve), restores them, and jumps to the address that gave. It is
//! entered and left by jumps, so that the processor's return stack, and a shadow stack, match the calls
//! that were made. It knows nothing of sessions.

#[cfg(all(target_arch = "aarch64", target_endian = "little"))]
#[path = "aarch64.rs"]
mod machine;
#[cfg(all(target_arch = "x86_64", target_pointer_width = "64"))]
#[path = "x86_64.rs"]
mod machine;

/// The routine's address; `None` on a machine that it was not written for.
#[cfg(any(
    all(target_arch = "x86_64", target_pointer_width = "64"),
    all(target_arch = "aarch64", target_endian = "little")
))]
pub(crate) fn address() -> Option<u64> {
    Some(machine::address())
}

/// The routine's address; `None` on a machine that it was not written for.
#[cfg(not(any(
    all(target_arch = "x86_64", target_pointer_width = "64"),
    all(target_arch = "aarch64", target_endian = "little")
)))]
pub(crate) fn address() -> Option<u64> {
    None
}
