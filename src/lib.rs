#![doc = include_str!("../README.md")]
//! # Features
//!
//! - `cranelift` (default): compile CLIF, and all that is lazy. Without it there are sessions, and objects are linked.
//! - `cli`: the command `orcane`, which runs, links and inspects objects and CLIF files.
//! - `programs`: tests that need C and C++ compilers.

#[cfg(doctest)]
mod guide;

pub use jit_core::*;

/// The linker: link graphs, memory managers, the bytes of stubs.
pub use jit_linker as linker;

#[cfg(feature = "cranelift")]
/// Laziness: code that is compiled when it is first called.
pub use jit_lazy as lazy;
