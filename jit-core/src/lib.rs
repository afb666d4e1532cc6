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
//!
//! # Features
//!
//! - `cranelift` (default): everything that has to do with CLIF, and [`Jit`]. Without it there are sessions, and objects are
//!   linked.

mod error;
mod fork;
mod object;
mod platform;
#[cfg(target_os = "linux")]
mod program;
pub mod seam;
mod session;
mod sync;

#[cfg(feature = "cranelift")]
mod clif;
#[cfg(feature = "cranelift")]
mod dump;
#[cfg(feature = "cranelift")]
mod first_call;
#[cfg(feature = "cranelift")]
mod function;
#[cfg(feature = "cranelift")]
mod jit;
#[cfg(feature = "cranelift")]
mod redirect;

pub use error::{Cause, DuplicateDefinition, Error, LookupError, SymbolFailure, Use};
pub use jit_linker::{NonOwningSymbolName, SymbolName, SymbolStringPool};
pub use object::{Link, LinkPlugin, ObjectLayer, ObjectLinkingLayer, ObjectOptions, ObjectTransformLayer};
#[cfg(target_os = "linux")]
pub use program::{ArchiveScope, Program, ProgramOptions, WeakDefinitions};
pub use session::{
    AbsoluteSymbol, Alias, DefinitionGenerator, DylibDump, DylibLookup, DynamicLibrarySymbols, ErrorReporter,
    ExecutionScope, ExecutionSession, ExecutorProcessControl, FoundSymbol, GeneratorError, InPlaceDispatcher,
    InProcess, JitDylib, LibraryHandle, LookupDump, LookupFuture, LookupHandle, LookupKind, LookupSet, LookupState,
    Mangling, MaterializationResponsibility, MaterializationUnit, OwnSymbol, Platform, PlatformError, Priority,
    ProcessSymbols, Progress, ReExports, RemovalPolicy, ResourceKey, ResourceManager, ResourceTracker, SearchOrder,
    SessionDump, SessionStatistics, SymbolDeclaration, SymbolDef, SymbolDependenceGroup, SymbolDump, SymbolFilter,
    SymbolFlags, SymbolLookup, SymbolPlace, SymbolState, Task, TaskDispatcher, ThreadPoolDispatcher, UnitDefinition,
    UnitDump,
};

#[cfg(feature = "cranelift")]
pub use clif::{
    ClifLayer, ClifModule, ClifTransform, ClifTransformLayer, CompileAt, CompileStatistics, FunctionTransform,
    InMemoryCache, InlineSmallFunctions, ModuleLayer, ObjectCache, TransformError,
};
#[cfg(feature = "cranelift")]
pub use dump::{DumpDirectory, DumpSink, Form};
#[cfg(feature = "cranelift")]
pub use first_call::LazyBody;
#[cfg(feature = "cranelift")]
pub use function::{FnPointer, HostClosure, JitFn, Scalar};
#[cfg(feature = "cranelift")]
pub use jit::{Jit, JitBuilder, JitStatistics, OptLevel, ProcessAccess};
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
#[cfg(feature = "cranelift")]
pub use redirect::{BodyMaker, LazyObjects, RedirectableFunction};

/// Cranelift, in the version whose types this crate speaks.
#[cfg(feature = "cranelift")]
pub mod cranelift {
    pub use cranelift_codegen as codegen;
    pub use cranelift_frontend as frontend;
    pub use cranelift_module as module;
}
