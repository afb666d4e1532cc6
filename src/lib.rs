#![doc = include_str!("../README.md")]

#[cfg(doctest)]
mod guide;

pub use jit_core::*;

/// The linker: link graphs, memory managers, the bytes of stubs.
pub use jit_linker as linker;

/// Laziness: code that is compiled when it is first called.
pub use jit_lazy as lazy;
