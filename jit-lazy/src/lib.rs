//! Functions that are compiled when they are first called.
//!
//! ```text
//! caller -> slot -> trampoline -> re-entry routine -> lookup of the body -> body     first call
//! caller -> slot -> body                                                             later calls
//! ```
//!
//! [`LazyJit`] is a [`Jit`](jit_core::Jit) that does so. [`LazyCallThrough`] is the part of it that
//! makes the trampolines, for whoever puts a `Jit` together otherwise: it goes to
//! [`JitBuilder::first_call`](jit_core::JitBuilder::first_call).
//!
//! This crate is policy: a first call is a lookup, and the session does all waiting. A thread with
//! little stack left has another one compile for it. A first call takes locks and allocates, so in
//! a signal handler it ends the process, with the handler's name.
//!
//! It has no features: it needs `jit-core` with `cranelift`.

mod ahead;
mod block;
mod call_through;
mod errno;
mod lazy_jit;
mod reentry;
mod registry;
mod signal;
mod sigreturn;
mod stack;
mod tier;
mod trampoline;

pub use call_through::{FailureHandler, LazyCallThrough, Partition, abort_on_failure, one_function, whole_module};
pub use lazy_jit::{LazyJit, LazyJitBuilder};
pub use tier::{Counting, CountingTransform, Promotion, PromotionCause, TierStatistics, Tiering, count_loops};
