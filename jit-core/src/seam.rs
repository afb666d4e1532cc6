//! What laziness is made of, for the crate that makes it, `jit-lazy`: the hooks that a `Jit` calls, and what code that is
//! written by hand needs besides.
//!
//! It is no part of `orcane`, and changes with `jit-lazy`. To have functions compiled at their first call, use that.

pub use crate::fork::{Crew, Worker, register as register_crew};
pub use crate::platform::unwind::{Frames, InUnwinder, Registration, register};
pub use crate::session::ThreadContext;
#[cfg(feature = "cranelift")]
pub use crate::{
    clif::may_loop,
    first_call::{CallThrough, FirstCall, LazyFunction, LazyFunctions},
    redirect::{FirstTier, FirstTierBody, Promoter},
};

/// What a JIT would compile for, at another level.
///
/// # Errors
///
/// When the target is not supported.
#[cfg(feature = "cranelift")]
pub fn isa_at(
    builder: &crate::JitBuilder,
    level: crate::OptLevel,
) -> Result<cranelift_codegen::isa::OwnedTargetIsa, crate::Error> {
    builder.isa(level)
}
