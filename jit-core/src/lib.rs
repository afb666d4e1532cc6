//! The session of an on-request-compilation JIT: who defines which symbol, who needs it, and who
//! compiles it when.
//!
//! An [`ExecutionSession`] holds [`JitDylib`]s, tables of symbols. A
//! [`MaterializationUnit`] stands behind each symbol and makes its definition when the symbol is
//! first looked up. Units wait for each other as continuations, never as blocked threads.
//!
//! The session knows no language and no intermediate representation. Cranelift comes in with the
//! feature `cranelift` (on by default): [`ClifModule`] and [`ClifLayer`] turn CLIF into units,
//! and [`Jit`] puts everything together.

mod error;
pub mod platform;
mod session;
mod sync;

#[cfg(feature = "cranelift")]
mod clif;
#[cfg(feature = "cranelift")]
mod first_call;
#[cfg(feature = "cranelift")]
mod function;
#[cfg(feature = "cranelift")]
mod jit;
#[cfg(feature = "cranelift")]
mod redirect;

pub use error::{Cause, DuplicateDefinition, Error, LookupError, SymbolFailure};
pub use jit_linker::{SymbolName, SymbolStringPool};
pub use session::{
    AbsoluteSymbol, DefinitionGenerator, DylibLookup, ErrorReporter, ExecutionScope, ExecutionSession,
    ExecutorProcessControl, FoundSymbol, InPlaceDispatcher, InProcess, JitDylib, MaterializationResponsibility,
    MaterializationUnit, OwnSymbol, ProcessSymbols, ResourceTracker, SearchOrder, SymbolDeclaration, SymbolDef,
    SymbolFilter, SymbolFlags, SymbolState, Task, TaskDispatcher, ThreadPoolDispatcher, UnitDefinition,
};

#[cfg(feature = "cranelift")]
pub use clif::{ClifLayer, ClifModule, CompileAt, CompileStatistics};
#[cfg(feature = "cranelift")]
pub use first_call::{CallThrough, FirstCall, LazyBody};
#[cfg(feature = "cranelift")]
pub use function::{FnPointer, HostClosure, JitFn, Scalar};
#[cfg(feature = "cranelift")]
pub use jit::{Jit, JitBuilder, OptLevel, ProcessAccess};
#[cfg(feature = "cranelift")]
pub use platform::code::{SourceText, VariableKind};
#[cfg(feature = "cranelift")]
pub use platform::debug::Debugger;
#[cfg(feature = "cranelift")]
pub use platform::exception;
#[cfg(feature = "cranelift")]
pub use platform::perf::Profiler;
#[cfg(feature = "cranelift")]
pub use platform::trap::{CallError, SourceLocation, Trap, TrapKind};

/// Cranelift, in the version whose types this crate speaks.
#[cfg(feature = "cranelift")]
pub mod cranelift {
    pub use cranelift_codegen as codegen;
    pub use cranelift_frontend as frontend;
    pub use cranelift_module as module;
}
