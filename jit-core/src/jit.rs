//! `Jit`: a session, a layer that compiles CLIF, and the dylibs a program starts with.

use std::fmt;

use cranelift_codegen::ir::{self, InstBuilder};
use cranelift_codegen::isa::{self, CallConv, OwnedTargetIsa};
use cranelift_codegen::settings::{self, Configurable, SetError};
use cranelift_frontend::{FunctionBuilder, FunctionBuilderContext};
use cranelift_module::{Linkage, Module};
use jit_linker::SymbolName;
use jit_linker::arch::Architecture;
use jit_linker::graph::ObjectBytes;
use jit_linker::memory::{MemoryManager, MemoryStatistics, PageManager};
use target_lexicon::Triple;

use crate::clif::{
    ClifLayer, ClifModule, ClifOptions, ClifTransform, CompileAt, CompileStatistics, ObjectCache, describe,
};
use crate::dump::{DumpSink, GraphDumps};
use crate::error::{Cause, Error};
use crate::first_call::FirstCall;
use crate::function::{FnPointer, HostClosure, JitFn};
use crate::object::{ObjectLayer, ObjectLinkingLayer};
use crate::platform::debug::Debugger;
use crate::platform::perf::Profiler;
use crate::platform::{Services, trap};
use crate::redirect::{self, Body, FirstTier, FunctionTable, LazyObjects, RedirectableFunction, Redirections};
use crate::session::{
    AbsoluteSymbol, Alias, DylibLookup, ErrorReporter, ExecutionSession, InPlaceDispatcher, InProcess, JitDylib,
    ProcessSymbols, Progress, ResourceTracker, SearchOrder, SessionStatistics, SymbolDef, SymbolFilter, SymbolFlags,
    SymbolPlace, TaskDispatcher, ThreadPoolDispatcher,
};
use crate::sync::Arc;

/// How hard Cranelift tries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum OptLevel {
    /// Compile fast.
    None,
    /// Generate fast code; compiling takes about a third longer.
    #[default]
    Speed,
}

/// Which symbols of the process compiled code can refer to.
#[derive(Clone, Default)]
pub enum ProcessAccess {
    /// All that the dynamic loader would find.
    #[default]
    All,
    /// Those whose name passes.
    Filtered(SymbolFilter),
    /// None.
    None,
}

/// Sets up a [`Jit`].
///
/// ```
/// use jit_core::{Jit, OptLevel, ProcessAccess};
///
/// // On two threads, optimized, and without access to what the process has.
/// let jit = Jit::builder()
///     .opt_level(OptLevel::Speed)
///     .compile_threads(2)
///     .process_symbols(ProcessAccess::None)
///     .build()?;
/// assert!(jit.lookup_address("malloc").is_err());
/// # Ok::<(), jit_core::Error>(())
/// ```
#[derive(Default)]
#[must_use]
pub struct JitBuilder {
    target: Option<Triple>,
    opt_level: OptLevel,
    verifier: Option<bool>,
    settings: Vec<(String, String)>,
    compile_threads: usize,
    dispatcher: Option<Box<dyn TaskDispatcher>>,
    memory: Option<Arc<dyn MemoryManager>>,
    process: ProcessAccess,
    reporter: Option<ErrorReporter>,
    first_call: Option<Arc<dyn FirstCall>>,
    first_tier: Option<Arc<dyn FirstTier>>,
    object_cache: Option<Arc<dyn ObjectCache>>,
    transforms: Vec<Arc<dyn ClifTransform>>,
    failure_address: Option<u64>,
    services: Services,
    profiler: Profiler,
}

impl JitBuilder {
    /// Compiles for a target, with the instructions that all its processors have. By default the
    /// host's, with every extension that it has. Another one has to be called as the host's is.
    pub fn target(mut self, target: Triple) -> Self {
        self.target = Some(target);
        self
    }

    /// How hard Cranelift tries; [`OptLevel::Speed`] by default.
    pub fn opt_level(mut self, level: OptLevel) -> Self {
        self.opt_level = level;
        self
    }

    /// Whether CLIF is verified before it is compiled: by default in debug builds. What does not
    /// verify and is compiled all the same may panic Cranelift, which fails the function, or be
    /// miscompiled.
    pub fn verifier(mut self, verify: bool) -> Self {
        self.verifier = Some(verify);
        self
    }

    /// Changes a setting of Cranelift's, a general one or one of the instruction set. Those that Orcane relies on, such
    /// as `is_pic`, stay as they are.
    pub fn setting(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.settings.push((name.into(), value.into()));
        self
    }

    /// Compiles on a pool of threads; with 0, the default, on the thread that looks up.
    pub fn compile_threads(mut self, threads: usize) -> Self {
        self.compile_threads = threads;
        self
    }

    /// Has a dispatcher decide where and when is compiled, in place of [`compile_threads`](Self::compile_threads).
    pub fn dispatcher(mut self, dispatcher: Box<dyn TaskDispatcher>) -> Self {
        self.dispatcher = Some(dispatcher);
        self
    }

    /// Where code and data go: by default a slab manager of the session's own.
    pub fn memory_manager(mut self, memory: Arc<dyn MemoryManager>) -> Self {
        self.memory = Some(memory);
        self
    }

    /// Which symbols of the process compiled code can refer to.
    pub fn process_symbols(mut self, access: ProcessAccess) -> Self {
        self.process = access;
        self
    }

    /// Is told of each symbol that fails, with the cause. Whoever looks it up is told as well.
    pub fn error_reporter(mut self, report: impl Fn(&SymbolName, &Cause) + Send + Sync + 'static) -> Self {
        self.reporter = Some(Box::new(report));
        self
    }

    /// Makes redirectable functions lazy: their bodies are compiled when they are first called.
    /// Without it, when they are first referred to.
    pub fn first_call(mut self, first_call: Arc<dyn FirstCall>) -> Self {
        self.first_call = Some(first_call);
        self
    }

    /// Whether panics, C++ exceptions and backtraces get through frames of compiled code, as they
    /// do by default. It takes about 40 bytes a function. Without it, a panic that would leave a
    /// host function into compiled code aborts the process.
    pub fn unwinding(mut self, unwinding: bool) -> Self {
        self.services.unwinding = unwinding;
        self
    }

    /// Whether traps of compiled code can be caught, by [`JitFn::try_call`]; by default not.
    /// Handlers for signals of faults are installed then, once for the process: they pass on what
    /// is not a trap of a call that catches it.
    pub fn traps(mut self, traps: bool) -> Self {
        self.services.traps = traps;
        self
    }

    /// Whether debuggers are told of code: its functions, and their lines where modules have a
    /// [source](ClifModule::source) or objects say where they come from. Each batch of functions has pages of its own then,
    /// unless another memory manager is set: only in private memory can breakpoints be set.
    pub fn debugger(mut self, debugger: Debugger) -> Self {
        self.services.debugger = debugger.is_wanted();
        self
    }

    /// What is written for Linux's `perf`; by default what the environment asks for.
    pub fn profiler(mut self, profiler: Profiler) -> Self {
        self.profiler = profiler;
        self
    }

    /// Where calls of redirectable functions go whose body, or something it depends on, was
    /// removed: the address of a C function that lives as long as the process, and should not
    /// return. By default the process is aborted. Functions that are [lazy](Self::first_call) have
    /// a failure handler instead.
    pub fn failure_address(mut self, address: u64) -> Self {
        self.failure_address = Some(address);
        self
    }

    /// Gives redirectable functions a first tier. Without it, they are compiled as everything else.
    pub fn first_tier(mut self, first_tier: Arc<dyn FirstTier>) -> Self {
        self.first_tier = Some(first_tier);
        self
    }

    /// Asks a cache for every function before it is compiled.
    pub fn object_cache(mut self, cache: Arc<dyn ObjectCache>) -> Self {
        self.object_cache = Some(cache);
        self
    }

    /// Changes every function before it is compiled, after what was asked for earlier:
    /// [`InlineSmallFunctions`](crate::InlineSmallFunctions), or anything else.
    pub fn clif_transform(mut self, transform: impl ClifTransform + 'static) -> Self {
        self.transforms.push(Arc::new(transform));
        self
    }

    /// Shows what becomes of symbols on their way into memory: CLIF, assembly, link graphs, objects.
    /// Of functions that were compiled when they were defined, only the last two.
    ///
    /// ```
    /// # use std::sync::Arc;
    /// # use jit_core::{DumpDirectory, Form, Jit};
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let directory = std::env::temp_dir().join(format!("dumps-{}", std::process::id()));
    /// let dumps = DumpDirectory::new(&directory)?.forms(&[Form::Clif, Form::Assembly]);
    /// let jit = Jit::builder().dumps(Arc::new(dumps)).build()?;
    /// # drop(jit);
    /// # std::fs::remove_dir(directory)?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn dumps(mut self, sink: Arc<dyn DumpSink>) -> Self {
        self.services.dumps = Some(sink);
        self
    }

    /// Builds it.
    ///
    /// # Errors
    ///
    /// When the target is not supported or not the host's, or the system refuses threads or
    /// address space.
    pub fn build(mut self) -> Result<Jit, Error> {
        let isa = self.isa(self.opt_level)?;
        let architecture = architecture(&isa)?;
        self.services.profiler = self.profiler.open().map_err(|error| Error::Profiler(Arc::new(error)))?;
        if self.services.traps {
            trap::enable().map_err(|error| Error::Signals(Arc::new(error)))?;
        }
        let memory = match self.memory {
            Some(memory) => memory,
            // A debugger can't set breakpoints in memory that is mapped twice.
            None if self.services.debugger => Arc::new(PageManager::new()),
            None => default_memory()?,
        };
        let dispatcher: Box<dyn TaskDispatcher> = match (self.dispatcher, self.compile_threads) {
            (Some(dispatcher), _) => dispatcher,
            (None, 0) => Box::new(InPlaceDispatcher::new()),
            (None, threads) => Box::new(ThreadPoolDispatcher::new(threads)?),
        };
        let executor = Box::new(InProcess::new(architecture, Arc::clone(&memory)));
        let session = ExecutionSession::new(executor, dispatcher, self.reporter);
        let main = session.create_dylib("main")?;
        let process = session.create_dylib("process")?;
        main.add_to_link_order(&process, DylibLookup::Exported)?;
        match self.process {
            ProcessAccess::All => process.add_generator(Arc::new(ProcessSymbols::new(None)))?,
            ProcessAccess::Filtered(filter) => process.add_generator(Arc::new(ProcessSymbols::new(Some(filter))))?,
            ProcessAccess::None => {}
        }
        let objects = ObjectLinkingLayer::telling(self.services.for_objects());
        if let Some(sink) = &self.services.dumps {
            objects.add_plugin(Arc::new(GraphDumps(Arc::clone(sink))));
        }
        let options = ClifOptions { cache: self.object_cache, transforms: self.transforms };
        let layer = ClifLayer::with_options(isa, &objects, options, self.services.clone())?;
        let table = FunctionTable::new(
            Arc::clone(&memory),
            architecture,
            self.services.unwinding,
            self.first_call,
            self.failure_address,
        );
        let redirections = Redirections::new(table, self.first_tier, &session)?;
        Ok(Jit { layer, objects, main, redirections, memory, session })
    }

    pub(crate) fn isa(&self, level: OptLevel) -> Result<OwnedTargetIsa, Error> {
        let unsupported = |error: &dyn fmt::Display| Error::Target(error.to_string());
        let mut builder = match &self.target {
            None => cranelift_native::builder().map_err(|error| unsupported(&error))?,
            Some(triple) => {
                check_calls(triple)?;
                isa::lookup(triple.clone()).map_err(|error| unsupported(&error))?
            }
        };
        let mut flags = settings::builder();
        for (name, value) in &self.settings {
            let result = match flags.set(name, value) {
                Err(SetError::BadName(_)) => builder.set(name, value),
                result => result,
            };
            result.map_err(|error| unsupported(&error))?;
        }
        let flags = self.flags(level, flags).map_err(|error| unsupported(&error))?;
        check_exponents(&flags)?;
        builder.finish(flags).map_err(|error| unsupported(&error))
    }

    /// Adds the settings that Orcane relies on, and those with a method of their own.
    fn flags(&self, level: OptLevel, mut flags: settings::Builder) -> Result<settings::Flags, SetError> {
        let verifier = self.verifier.unwrap_or(cfg!(debug_assertions));
        for (name, value) in [
            ("opt_level", if level == OptLevel::None { "none" } else { "speed" }),
            ("enable_verifier", if verifier { "true" } else { "false" }),
            // No absolute address in code: what a unit refers to is in tables that we own.
            ("is_pic", "true"),
            ("use_colocated_libcalls", "false"),
            // Tail calls on x86-64 and cheap backtraces need them.
            ("preserve_frame_pointers", "true"),
            ("unwind_info", "true"),
            ("tls_model", "elf_gd"),
            ("enable_probestack", "true"),
            // The only strategy that both architectures have.
            ("probestack_strategy", "inline"),
        ] {
            flags.set(name, value)?;
        }
        Ok(settings::Flags::new(flags))
    }
}

/// Refuses settings that are powers of two beyond what a function can have: Cranelift takes any.
fn check_exponents(flags: &settings::Flags) -> Result<(), Error> {
    for (name, value, most) in [
        // Beyond that, what is allocated for a function is mostly nothing.
        ("log2_min_function_alignment", flags.log2_min_function_alignment(), 16),
        ("bb_padding_log2_minus_one", flags.bb_padding_log2_minus_one(), 16),
        // A probe further from the last than the smallest page may step over the guard of a stack.
        ("probestack_size_log2", flags.probestack_size_log2(), 12),
    ] {
        if value > most {
            return Err(Error::Target(format!("{name} is {value}, and may be {most} at most")));
        }
    }
    Ok(())
}

/// Refuses targets whose functions are not called as the process's are: handles and host functions are.
fn check_calls(target: &Triple) -> Result<(), Error> {
    let host = Triple::host();
    let is_called_alike = CallConv::triple_default(target) == CallConv::triple_default(&host);
    if is_called_alike && target.endianness() == host.endianness() {
        return Ok(());
    }
    Err(Error::Target(format!("{target} code does not run in this process")))
}

fn architecture(isa: &OwnedTargetIsa) -> Result<Architecture, Error> {
    let wanted = match isa.triple().architecture {
        target_lexicon::Architecture::X86_64 => Architecture::X86_64,
        target_lexicon::Architecture::Aarch64(_) => Architecture::Aarch64,
        other => return Err(Error::Target(other.to_string())),
    };
    match Architecture::host() {
        Some(host) if host == wanted => Ok(host),
        _ => Err(Error::Target(format!("{wanted} code does not run in this process"))),
    }
}

#[cfg(target_os = "linux")]
fn default_memory() -> Result<Arc<dyn MemoryManager>, Error> {
    Ok(Arc::new(jit_linker::memory::SlabManager::new()?))
}

#[cfg(target_vendor = "apple")]
fn default_memory() -> Result<Arc<dyn MemoryManager>, Error> {
    Ok(Arc::new(jit_linker::memory::AppleMemory::new()))
}

#[cfg(not(any(target_os = "linux", target_vendor = "apple")))]
fn default_memory() -> Result<Arc<dyn MemoryManager>, Error> {
    Ok(Arc::new(jit_linker::memory::PageManager::new()))
}

/// A JIT: add modules, look functions up, call them.
///
/// It starts with two dylibs: `main`, where modules go by default, and after it in its link order
/// `process`, which has the symbols of the process.
///
/// ```
/// use jit_core::Jit;
///
/// let jit = Jit::new()?;
/// jit.define_closure("double", |n: i64| 2 * n)?;
/// let double = jit.lookup::<unsafe extern "C" fn(i64) -> i64>("double")?;
/// // SAFETY: the session has compared the types, and the closure may be called with any number.
/// assert_eq!(unsafe { double.call(21) }, 42);
/// # Ok::<(), jit_core::Error>(())
/// ```
pub struct Jit {
    layer: ClifLayer,
    objects: ObjectLinkingLayer,
    main: JitDylib,
    redirections: Redirections,
    memory: Arc<dyn MemoryManager>,
    session: ExecutionSession,
}

impl Jit {
    /// A JIT for the host, with everything at its default.
    ///
    /// # Errors
    ///
    /// As [`JitBuilder::build`].
    pub fn new() -> Result<Self, Error> {
        Self::builder().build()
    }

    /// Sets one up.
    pub fn builder() -> JitBuilder {
        JitBuilder::default()
    }

    /// The session.
    #[must_use]
    pub fn session(&self) -> &ExecutionSession {
        &self.session
    }

    /// The dylib that modules go to by default.
    #[must_use]
    pub fn main(&self) -> &JitDylib {
        &self.main
    }

    /// The layer that compiles CLIF, to add modules to other dylibs or trackers.
    #[must_use]
    pub fn clif_layer(&self) -> &ClifLayer {
        &self.layer
    }

    /// The layer that links objects and what was compiled: plugins are added here.
    #[must_use]
    pub fn object_layer(&self) -> &ObjectLinkingLayer {
        &self.objects
    }

    /// The instruction set that is compiled for.
    #[must_use]
    pub fn isa(&self) -> &OwnedTargetIsa {
        self.layer.isa()
    }

    /// An empty module whose functions are compiled when they are looked up.
    #[must_use]
    pub fn module(&self, name: &str) -> ClifModule {
        ClifModule::new(name, Arc::clone(self.isa()), CompileAt::Lookup)
    }

    /// Adds a module to `main`. Nothing is compiled yet. The tracker removes it.
    ///
    /// # Errors
    ///
    /// When the module is for another target, declares something that it should define and does
    /// not, defines a symbol again, or is redirectable: see [`redefine`](Self::redefine).
    pub fn add_module(&self, module: ClifModule) -> Result<ResourceTracker, Error> {
        if module.redirectable {
            return Err(Error::Module(format!("{} is redirectable: it is added by `redefine`", module.name)));
        }
        let tracker = self.main.create_tracker()?;
        self.layer.add(&tracker, module)?;
        Ok(tracker)
    }

    /// Adds a [redirectable](ClifModule::redirectable) module to `main`. An exported function that
    /// an earlier such module defined gets a new body, for all its callers at once: the new one is
    /// compiled first if the old one was, or at its first call if functions are
    /// [lazy](JitBuilder::first_call). The old body goes when no thread is inside it.
    ///
    /// A call enters the old body of its function or the new one, and the new one when this has returned. While the
    /// functions of a module are redirected, one after the other, a thread may see the new body of one and then the old
    /// body of another: what has to change together is best one function, or an exported one with helpers that only
    /// its module knows.
    ///
    /// The tracker removes the functions that are defined for the first time: what still calls them
    /// then ends up where calls of functions do that can't be compiled. It counts the memory of their bodies, and of all
    /// else that the module defines. Where all functions were defined before, the tracker counts it that counts the
    /// body which the first of them had: a limit that was set for functions holds for all of their bodies.
    ///
    /// # Errors
    ///
    /// When the module can't be added, a function has another signature than before, or a new
    /// body can't be compiled: then everything stays as it was.
    pub fn redefine(&self, module: ClifModule) -> Result<ResourceTracker, Error> {
        if !module.redirectable {
            return Err(Error::Module(format!("{} is not redirectable", module.name)));
        }
        self.redirections.define(&self.layer, &self.main, module)
    }

    /// As [`redefine`](Self::redefine), for functions whose bodies are made by units of the user's:
    /// from whatever represents them, when they are needed.
    ///
    /// # Errors
    ///
    /// As [`redefine`](Self::redefine).
    pub fn redefine_with(&self, functions: Vec<RedirectableFunction>) -> Result<ResourceTracker, Error> {
        self.redirections.define_with(&self.main, functions)
    }

    /// Defines redirectable functions of a dylib that stand for others. Where functions are
    /// [lazy](JitBuilder::first_call), what a function stands for is looked up in `order` when it is first called, and
    /// later calls go there directly; otherwise when it is looked up. If that is removed, the next call looks up again.
    ///
    /// Such a function has an address of its own: [`JitDylib::define_aliases`] gives another name to the same one. The
    /// tracker removes it.
    ///
    /// # Errors
    ///
    /// When a function meets another definition, a dylib was removed or is another session's, or functions that are in use
    /// would stand for one another ([`Cause::AliasCycle`]; others are refused when they are needed). A function of the dylib
    /// that was redirectable stands for another from now on.
    pub fn lazy_re_exports(
        &self,
        dylib: &JitDylib,
        order: &SearchOrder,
        aliases: Vec<Alias>,
    ) -> Result<ResourceTracker, Error> {
        self.session.check_own(dylib)?;
        order.check(&self.session)?;
        self.redirections.re_export(dylib, order, aliases)
    }

    /// Adds an object (ELF, Mach-O) to `main`; `name` appears in errors. It is linked when one of its symbols is
    /// looked up. Where functions are [lazy](JitBuilder::first_call) it is linked at the first call of one of its
    /// functions, or when something else of it is looked up: calls inside the object go to its own functions as in
    /// every link, and all others can be [redefined](Self::redefine). The tracker removes it.
    ///
    /// # Errors
    ///
    /// When it can't be read, or defines a symbol that the dylib has.
    pub fn add_object(&self, name: &str, object: ObjectBytes) -> Result<ResourceTracker, Error> {
        self.add_object_to(&self.main, name, object)
    }

    /// As [`add_object`](Self::add_object), to another dylib.
    ///
    /// # Errors
    ///
    /// As [`add_object`](Self::add_object), and when the dylib was removed or is another session's.
    pub fn add_object_to(&self, dylib: &JitDylib, name: &str, object: ObjectBytes) -> Result<ResourceTracker, Error> {
        self.session.check_own(dylib)?;
        let mut graph = self.objects.read(&self.session, name, object)?;
        let mut units = match self.lazy_objects() {
            Some(objects) => objects.divide(dylib, &mut graph)?,
            None => Vec::new(),
        };
        units.push(self.objects.unit(graph));
        let tracker = dylib.create_tracker()?;
        tracker.define(units)?;
        Ok(tracker)
    }

    /// Makes functions of objects lazy that go another way into the session; `None` where functions are not
    /// [lazy](JitBuilder::first_call).
    #[must_use]
    pub fn lazy_objects(&self) -> Option<LazyObjects> {
        self.redirections.lazy_objects()
    }

    /// Looks a function up from `main`, compiles what it needs, and gives a handle to it.
    ///
    /// A redirectable function's handle is to the body it has now.
    ///
    /// # Errors
    ///
    /// When it can't be had, or its signature is known and is not `F`'s.
    pub fn lookup<F: FnPointer>(&self, name: &str) -> Result<JitFn<F>, Error> {
        self.lookup_in(&self.main, name)
    }

    /// As [`lookup`](Self::lookup), from another dylib.
    ///
    /// # Errors
    ///
    /// As [`lookup`](Self::lookup), and when the dylib was removed or is another session's.
    pub fn lookup_in<F: FnPointer>(&self, dylib: &JitDylib, name: &str) -> Result<JitFn<F>, Error> {
        self.session.check_own(dylib)?;
        let mut order = dylib.link_order();
        let wanted = describe(&F::signature(self.convention()));
        let mut symbol = self.session.intern(name);
        // Each is another function by another name, but for the last.
        let mut bodies: Vec<Body> = Vec::new();
        loop {
            let found = match self.session.lookup(&order, vec![symbol.clone()]) {
                // A newer body took its place meanwhile, and it was removed.
                Err(_) if bodies.last().is_some_and(|body| !self.redirections.is_newest(body)) => {
                    bodies.clear();
                    (symbol, order) = (self.session.intern(name), dylib.link_order());
                    continue;
                }
                // A dylib that is gone looks nowhere.
                Err(error) => return dylib.name().and(Err(redirect::of_functions(&self.session, error).into())),
                Ok(found) => found,
            };
            let Some(found) = found.into_iter().next() else { continue };
            if let Some(defined) = &found.signature
                && **defined != *wanted
            {
                let defined = defined.to_string();
                return Err(Error::Signature { symbol: name.to_owned(), defined, wanted });
            }
            if let Some(newest) = self.redirections.body_of(&found) {
                let (newest, name) = newest?;
                if let Some(first) = bodies.iter().position(|body| body.is_same(&newest)) {
                    let members = bodies[first..].iter().map(|body| body.function().clone()).collect();
                    return Err(redirect::ring(members, dylib).into());
                }
                order = newest.source.order().cloned().unwrap_or_default();
                symbol = name;
                bodies.push(newest);
                continue;
            }
            if let Some(body) = bodies.last() {
                // Calls need not find out for themselves that it is there.
                self.redirections.publish(&self.session, body, &found);
            }
            // Gone already if it was removed since: then the lookup says so, or finds a newer body.
            if let Some(code) = self.session.code_of(found.id) {
                let traps = self.layer.shared.services.traps;
                return Ok(JitFn::new(found.definition.address, self.session.clone(), code, traps));
            }
        }
    }

    /// Looks up the address of any symbol from `main`. It stays valid until the symbol is
    /// removed, which is the caller's to know.
    ///
    /// # Errors
    ///
    /// When it can't be had.
    pub fn lookup_address(&self, name: &str) -> Result<u64, Error> {
        let found = self.session.lookup(&self.main.link_order(), self.session.intern(name))?;
        Ok(found.first().map(|symbol| symbol.definition.address).unwrap_or_default())
    }

    /// The symbol that an address belongs to: see [`ExecutionSession::symbol_at`].
    #[must_use]
    pub fn symbol_at(&self, address: u64) -> Option<SymbolPlace> {
        self.session.symbol_at(address)
    }

    /// Compiles functions that will be needed soon, with what they need, and tells how far it is
    /// after every few of them, on this thread. Of functions that are [lazy](JitBuilder::first_call)
    /// no bodies are compiled.
    ///
    /// # Errors
    ///
    /// When one of the first that were not reported can't be had.
    pub fn prepare(&self, names: &[impl AsRef<str>], progress: impl FnMut(Progress)) -> Result<(), Error> {
        let names: Vec<_> = names.iter().map(|name| self.session.intern(name.as_ref())).collect();
        Ok(self.session.lookup_with_progress(&self.main.link_order(), &names, progress)?)
    }

    /// Makes a host function known in `main` by a name. Modules that declare it have to declare
    /// its signature.
    ///
    /// # Errors
    ///
    /// When the name is taken.
    pub fn define_function<F: FnPointer>(&self, name: &str, function: F) -> Result<(), Error> {
        let signature = self.session.intern(&describe(&F::signature(self.convention())));
        self.main.define_absolute(vec![AbsoluteSymbol {
            name: self.session.intern(name),
            definition: SymbolDef::at(function.address()),
            flags: SymbolFlags::FUNCTION,
            signature: Some(signature),
        }])
    }

    /// As [`define_function`](Self::define_function), for a closure, which lives until the
    /// tracker is removed and the last handle to it is gone. A panic that leaves the closure aborts
    /// the process.
    ///
    /// # Errors
    ///
    /// When the name is taken.
    pub fn define_closure<Args, F: HostClosure<Args>>(&self, name: &str, closure: F) -> Result<ResourceTracker, Error> {
        let closure = Arc::new(closure);
        let address = Arc::as_ptr(&closure) as i64;
        let signature = F::signature(self.convention());
        let mut module = self.closure_entry(name, &signature, address, F::entry() as i64)?;
        module.used = Some(closure);
        self.add_module(module)
    }

    /// A function that calls `entry` with `context` before its own arguments.
    fn closure_entry(
        &self,
        name: &str,
        signature: &ir::Signature,
        context: i64,
        entry: i64,
    ) -> Result<ClifModule, Error> {
        let mut module = ClifModule::new(name, Arc::clone(self.isa()), CompileAt::Lookup);
        let refused = |error: cranelift_module::ModuleError| Error::Module(error.to_string());
        let id = module.declare_function(name, Linkage::Export, signature).map_err(refused)?;
        let mut compiler = module.make_context();
        compiler.func.signature = signature.clone();
        let mut frontend = FunctionBuilderContext::new();
        let mut builder = FunctionBuilder::new(&mut compiler.func, &mut frontend);
        let block = builder.create_block();
        builder.append_block_params_for_function_params(block);
        builder.switch_to_block(block);
        builder.seal_block(block);
        let pointer = self.isa().pointer_type();
        let mut callee = signature.clone();
        callee.params.insert(0, ir::AbiParam::new(pointer));
        let callee = builder.import_signature(callee);
        let entry = builder.ins().iconst(pointer, entry);
        let mut arguments = vec![builder.ins().iconst(pointer, context)];
        arguments.extend_from_slice(builder.block_params(block));
        let call = builder.ins().call_indirect(callee, entry, &arguments);
        let results = builder.inst_results(call).to_vec();
        builder.ins().return_(&results);
        builder.finalize(module.target_config());
        module.define_function(id, &mut compiler).map_err(refused)?;
        Ok(module)
    }

    fn convention(&self) -> CallConv {
        CallConv::triple_default(self.isa().triple())
    }

    /// What memory is held now.
    #[must_use]
    pub fn memory_statistics(&self) -> MemoryStatistics {
        self.memory.statistics()
    }

    /// All of what is counted.
    #[must_use]
    pub fn stats(&self) -> JitStatistics {
        JitStatistics {
            compile: self.layer.statistics(),
            memory: self.memory_statistics(),
            session: self.session.statistics(),
        }
    }

    /// Where `main` looks for names.
    #[must_use]
    pub fn search_order(&self) -> SearchOrder {
        self.main.link_order()
    }
}

/// What a [`Jit`] has done and holds. It prints as a table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct JitStatistics {
    /// What was compiled.
    pub compile: CompileStatistics,
    /// What memory is held.
    pub memory: MemoryStatistics,
    /// What the session holds.
    pub session: SessionStatistics,
}

impl fmt::Display for JitStatistics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { compile, memory, session } = self;
        let counts = [
            ("functions compiled", compile.functions),
            ("bytes of their code", compile.code_bytes),
            ("bytes of data and tables", compile.data_bytes),
            ("allocations", memory.allocations as u64),
            ("bytes of memory", memory.bytes.iter().sum::<usize>() as u64),
            ("dylibs", session.dylibs as u64),
            ("symbols", session.symbols as u64),
            ("units", session.units as u64),
            ("lookups that wait", session.lookups as u64),
        ];
        for (what, count) in counts {
            writeln!(f, "{what:<25} {count:>12}")?;
        }
        for (what, time) in [("time in the compiler", compile.compile_time), ("time in the linker", compile.link_time)]
        {
            writeln!(f, "{what:<25} {:>12.3} ms", time.as_secs_f64() * 1e3)?;
        }
        Ok(())
    }
}

impl fmt::Debug for Jit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Jit").field("target", self.isa().triple()).finish_non_exhaustive()
    }
}
