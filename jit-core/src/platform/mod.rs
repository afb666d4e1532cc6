//! What JIT'd code needs of the process it runs in: everything that is registered with it, as
//! pairs of action and undo.

pub(crate) mod initializers;
#[cfg(target_os = "linux")]
pub mod thread_local;
#[cfg(feature = "cranelift")]
pub(crate) mod tls;
pub mod unwind;
