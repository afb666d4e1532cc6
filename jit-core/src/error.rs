//! What can go wrong, with the place it went wrong in.

use std::fmt;

use jit_linker::format::ParseError;
use jit_linker::memory::MemoryError;
use jit_linker::{LinkError, SymbolName};

use crate::sync::Arc;

/// An error of the session or of what was added to it.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A lookup found no usable definition for some of its symbols.
    #[error(transparent)]
    Lookup(#[from] LookupError),
    /// Symbols were defined that have a definition already.
    #[error("duplicate definition of {}", list(.0))]
    DuplicateDefinitions(Vec<DuplicateDefinition>),
    /// The dylib was removed.
    #[error("the dylib is gone")]
    DylibGone,
    /// The dylib belongs to another session.
    #[error("the dylib belongs to another session")]
    ForeignDylib,
    /// The session has ended.
    #[error("the session has ended")]
    SessionEnded,
    /// The platform refused a dylib or a definition.
    #[error("refused by the platform: {0}")]
    Platform(Arc<dyn std::error::Error + Send + Sync>),
    /// Symbols can't be removed: they are not defined.
    #[error("not defined: {}", quoted(.0))]
    SymbolsNotFound(Vec<SymbolName>),
    /// Symbols can't be removed: they are being materialized.
    #[error("being materialized: {}", quoted(.0))]
    SymbolsBusy(Vec<SymbolName>),
    /// Symbols can't be removed: others depend on them.
    #[error("in use: {}", list(.0))]
    InUse(Vec<Use>),
    /// Two trackers are not of the same dylib.
    #[error("the trackers belong to different dylibs")]
    ForeignTracker,
    /// A dynamic library can't be loaded.
    #[error("cannot load {path}: {message}")]
    Library {
        /// Where it was sought.
        path: String,
        /// What the loader said.
        message: String,
    },
    /// The tracker was removed, or its contents were transferred.
    #[error("the resource tracker is defunct")]
    DefunctTracker,
    /// A name of a dylib is taken.
    #[error("a dylib named '{0}' exists already")]
    DylibExists(String),
    /// The session has as many dylibs as it can number: two million.
    #[error("there are too many dylibs")]
    TooManyDylibs,
    /// A responsibility reported a symbol that is not its own.
    #[error("'{0}' is not among the symbols of this responsibility")]
    UnexpectedDefinition(SymbolName),
    /// A responsibility reported its symbols emitted before all of them were resolved.
    #[error("'{0}' was emitted without an address")]
    Unresolved(SymbolName),
    /// Something that was to be published depends on something that failed.
    #[error("'{symbol}' depends on '{dependency}', which failed: {cause}")]
    UnsatisfiedDependency {
        /// What was to be published.
        symbol: SymbolName,
        /// What it depends on.
        dependency: SymbolName,
        /// Why that failed.
        cause: Arc<Cause>,
    },
    /// The symbol has another signature than the caller asked for.
    #[error("'{symbol}' has the signature {defined}, not {wanted}")]
    Signature {
        /// The symbol.
        symbol: String,
        /// As it is defined.
        defined: String,
        /// As it was asked for.
        wanted: String,
    },
    /// The tracker's memory limit is reached.
    #[error("{needed} more bytes would exceed the tracker's limit of {limit} bytes")]
    MemoryLimit {
        /// Bytes asked for.
        needed: u64,
        /// The limit in bytes.
        limit: u64,
    },
    /// An object or archive can't be read.
    #[error(transparent)]
    Object(#[from] ParseError),
    /// There is no memory.
    #[error(transparent)]
    Memory(Arc<MemoryError>),
    /// This machine, or the target asked for, is not supported.
    #[error("unsupported target: {0}")]
    Target(String),
    /// A module was made for another target than the session's.
    #[error("the module is for {module}, the session for {session}")]
    ForeignModule {
        /// The module's target and settings.
        module: String,
        /// The session's.
        session: String,
    },
    /// The system refused a thread.
    #[error("cannot start a compile thread: {0}")]
    Thread(Arc<std::io::Error>),
    /// A file for the profiler can't be written.
    #[error("cannot write for the profiler: {0}")]
    Profiler(Arc<std::io::Error>),
    /// The system refused handlers for signals.
    #[error("cannot handle signals: {0}")]
    Signals(Arc<std::io::Error>),
    /// A transform layer's function refused what was added.
    #[error("{subject}: {source}")]
    Transform {
        /// The object or module.
        subject: String,
        /// Its reason.
        source: Arc<dyn std::error::Error + Send + Sync>,
    },
    /// The module declares something it does not define, or can't be added for another reason.
    #[error("module: {0}")]
    Module(String),
}

impl From<MemoryError> for Error {
    fn from(error: MemoryError) -> Self {
        Self::Memory(Arc::new(error))
    }
}

fn place(dylib: &str) -> String {
    if dylib.is_empty() { String::new() } else { format!(" in dylib '{dylib}'") }
}

fn list<T: fmt::Display>(items: &[T]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// Names in quotes.
fn quoted(names: &[SymbolName]) -> String {
    list(&names.iter().map(|name| format!("'{name}'")).collect::<Vec<_>>())
}

fn chain(names: &[SymbolName]) -> String {
    let names = names.iter().chain(names.first());
    names.map(|name| format!("'{name}'")).collect::<Vec<_>>().join(" -> ")
}

/// A symbol that was to be removed, and one that needs it.
#[derive(Clone, Debug)]
pub struct Use {
    /// The symbol.
    pub name: SymbolName,
    /// What depends on it.
    pub user: SymbolName,
}

impl fmt::Display for Use {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "'{}' by '{}'", self.name, self.user)
    }
}

/// A name with two definitions in one dylib.
#[derive(Clone, Debug)]
pub struct DuplicateDefinition {
    /// The name.
    pub name: SymbolName,
    /// The dylib.
    pub dylib: String,
    /// The unit that defined it first.
    pub first: String,
    /// The unit that was to define it again.
    pub second: String,
}

impl fmt::Display for DuplicateDefinition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, dylib, first, second } = self;
        write!(f, "'{name}' in dylib '{dylib}' (first in {first}, again in {second})")
    }
}

/// Why a lookup failed, symbol by symbol.
#[derive(Clone, Debug)]
pub struct LookupError {
    /// The symbols that could not be had. Never empty.
    pub failures: Vec<SymbolFailure>,
}

impl fmt::Display for LookupError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&list(&self.failures))
    }
}

impl std::error::Error for LookupError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.failures.first().map(|failure| &*failure.cause as _)
    }
}

/// A symbol that could not be had.
#[derive(Clone, Debug)]
pub struct SymbolFailure {
    /// Its name.
    pub name: SymbolName,
    /// The dylib that defines it; the first one searched if none does. Empty if that is gone.
    pub dylib: String,
    /// The root cause.
    pub cause: Arc<Cause>,
}

impl fmt::Display for SymbolFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "symbol '{}'{}: {}", self.name, place(&self.dylib), self.cause)
    }
}

/// Why a symbol can't be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Cause {
    /// No dylib searched defines it.
    #[error("not found")]
    NotFound,
    /// It was removed while it was wanted.
    #[error("removed")]
    Removed,
    /// The session ended.
    #[error("the session has ended")]
    SessionEnded,
    /// It has no address, and was required to have one.
    #[error("it has side effects only, and no address")]
    SideEffectsOnly,
    /// Whoever looked it up has lost interest.
    #[error("the lookup was cancelled")]
    Cancelled,
    /// It was not there in time.
    #[error("the deadline is over")]
    DeadlineExceeded,
    /// The generator that was to define it was removed meanwhile.
    #[error("its generator was removed")]
    GeneratorRemoved,
    /// It is an alias of itself, in so many steps.
    #[error("a cycle of aliases: {}", chain(.0))]
    AliasCycle(Vec<SymbolName>),
    /// Who looks it up would wait for itself.
    #[error("a cycle of waits: {}", chain(.0))]
    WaitCycle(Vec<SymbolName>),
    /// Its unit gave up its responsibility without a word.
    #[error("{unit} was dropped before it was materialized")]
    Abandoned {
        /// The unit.
        unit: String,
    },
    /// Its unit panicked.
    #[error("{unit} panicked: {message}")]
    Panicked {
        /// The unit.
        unit: String,
        /// What the panic said.
        message: String,
    },
    /// Something it depends on failed.
    #[error("depends on '{name}'{}: {cause}", place(.dylib))]
    Dependency {
        /// What it depends on.
        name: SymbolName,
        /// Where that is.
        dylib: String,
        /// Why that failed.
        cause: Arc<Cause>,
    },
    /// Its CLIF does not verify, or Cranelift can't compile it.
    #[error("compilation failed: {message}")]
    Compilation {
        /// What Cranelift said.
        message: String,
    },
    /// It is declared with one signature and defined with another.
    #[error("'{user}' declares it as {declared}, it is defined as {defined}")]
    Signature {
        /// Who refers to it.
        user: String,
        /// As declared there.
        declared: SymbolName,
        /// As defined.
        defined: SymbolName,
    },
    /// A graph does not define what its unit declared.
    #[error("in {graph}: '{symbol}' {what}")]
    Interface {
        /// The graph.
        graph: String,
        /// The symbol.
        symbol: SymbolName,
        /// What is wrong with it.
        what: &'static str,
    },
    /// It can't be linked.
    #[error("link failed: {0}")]
    Link(#[from] LinkError),
    /// The session refused a step.
    #[error("{0}")]
    Session(Error),
    /// A generator failed.
    #[error("generator failed: {0}")]
    Generator(Box<dyn std::error::Error + Send + Sync>),
    /// A unit's own reason.
    #[error("{0}")]
    Other(Box<dyn std::error::Error + Send + Sync>),
}

impl From<Error> for Cause {
    fn from(error: Error) -> Self {
        Self::Session(error)
    }
}
