//! LLVM 22 as Orcane's judge in tests and its peer in benchmarks: its JITs ([`Llvm`]) and its bare session
//! ([`session::Session`]), through its C API and a shim over what that lacks.
//!
//! Every function of LLVM that can fail gives an [`Error`] with LLVM's own words.

mod error;
pub mod jit;
pub mod link;
pub mod reexports;
pub mod session;

pub use error::Error;
pub use jit::{Level, Llvm, Module, Options};
