#![doc = include_str!("../README.md")]
//! # Features
//!
//! - `cranelift` (default): compile CLIF, and all that is lazy. Without it there are sessions, and objects are linked.
//! - `cli`: the command `orcane`, which runs, links and inspects objects and CLIF files.
//! - `programs`: tests that need C and C++ compilers.

#[cfg(doctest)]
mod guide;

#[doc(inline)]
pub use jit_core::{
    AbsoluteSymbol, Alias, Cause, DefinitionGenerator, DuplicateDefinition, DylibDump, DylibLookup,
    DynamicLibrarySymbols, Error, ErrorReporter, ExecutionScope, ExecutionSession, ExecutorProcessControl, FoundSymbol,
    GeneratorError, InPlaceDispatcher, InProcess, JitDylib, LibraryHandle, Link, LinkPlugin, LookupDump, LookupError,
    LookupFuture, LookupHandle, LookupKind, LookupSet, LookupState, Mangling, MaterializationResponsibility,
    MaterializationUnit, NonOwningSymbolName, ObjectLayer, ObjectLinkingLayer, ObjectOptions, ObjectTransformLayer,
    OwnSymbol, Platform, PlatformError, Priority, ProcessSymbols, Progress, ReExports, RemovalPolicy, ResourceKey,
    ResourceManager, ResourceTracker, SearchOrder, SessionDump, SessionStatistics, SymbolDeclaration, SymbolDef,
    SymbolDependenceGroup, SymbolDump, SymbolFailure, SymbolFilter, SymbolFlags, SymbolLookup, SymbolName, SymbolPlace,
    SymbolState, SymbolStringPool, Task, TaskDispatcher, ThreadPoolDispatcher, UnitDefinition, UnitDump, Use,
};
#[cfg(target_os = "linux")]
#[doc(inline)]
pub use jit_core::{ArchiveScope, Program, ProgramOptions, WeakDefinitions};
#[cfg(feature = "cranelift")]
#[doc(inline)]
pub use jit_core::{
    BodyMaker, CallError, ClifLayer, ClifModule, ClifTransform, ClifTransformLayer, CompileAt, CompileStatistics,
    Debugger, DumpDirectory, DumpSink, FnPointer, Form, FunctionTransform, HostClosure, InMemoryCache,
    InlineSmallFunctions, Jit, JitBuilder, JitFn, JitStatistics, LazyBody, LazyObjects, ModuleLayer, ObjectCache,
    OptLevel, ProcessAccess, Profiler, RedirectableFunction, Scalar, SourceLocation, SourceText, TransformError, Trap,
    TrapKind, VariableKind, cranelift, exception,
};

/// The linker: link graphs, memory managers, the bytes of stubs.
pub use jit_linker as linker;

#[cfg(feature = "cranelift")]
/// Laziness: code that is compiled when it is first called.
pub use jit_lazy as lazy;
