//! A program of objects: linked as a static linker would, a dylib a component.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::hash::{BuildHasher, RandomState};
use std::path::Path;
use std::sync::LazyLock;

use jit_linker::SymbolName;
use jit_linker::arch::{Architecture, add_at_exit};
use jit_linker::format::{self, ParseOptions};
use jit_linker::graph::{Comdat, Definition, Edge, EdgeKind, LinkGraph, Linkage, ObjectBytes, Scope, Symbol, SymbolId};
use jit_linker::link::TlsLocation;
use jit_linker::memory::SegmentKind;
use rustc_hash::{FxHashMap, FxHashSet};

use super::archive::{ArchiveMembers, ArchiveScope};
use super::commons::Commons;
use super::gathered::{Gathered, Share};
use super::initial_values::Awaited;
use super::linking::COMPONENT_HANDLE;
use super::low::Low;
use super::needs::Needs;
use super::unit::ObjectUnit;
use super::weak::{self, WeakDefinitions};
#[cfg(feature = "cranelift")]
use crate::dump::DumpSink;
use crate::error::{Cause, Error};
use crate::object::check_architecture;
use crate::platform::Services;
use crate::platform::initializers::{self, Initializers};
use crate::platform::thread_local;
#[cfg(feature = "cranelift")]
use crate::platform::{debug::Debugger, perf::Profiler};
#[cfg(feature = "cranelift")]
use crate::redirect::LazyObjects;
use crate::session::{
    AbsoluteSymbol, Alias, DylibLookup, ExecutionSession, JitDylib, ResourceTracker, SearchOrder, SymbolDef,
    SymbolFlags, UnitDefinition,
};
use crate::sync::{Arc, Mutex, Weak, lock};

/// Objects, archives and libraries that are linked as one program, in dylibs of a session.
///
/// What is added is linked when a lookup needs it. An object that has initializers is linked and
/// initialized before the first lookup in its dylib answers, and the dylibs in its link order
/// before it. When the program is dropped, or the process exits, what was initialized is finalized.
///
/// ```
/// use jit_core::{Jit, Program};
/// use jit_linker::graph::ObjectBytes;
///
/// # use jit_core::cranelift::codegen::ir::{AbiParam, InstBuilder, types};
/// # use jit_core::cranelift::frontend::{FunctionBuilder, FunctionBuilderContext};
/// # use jit_core::cranelift::module::{Linkage, Module, default_libcall_names};
/// # /// `int plugin_main(int n) { return n + n; }`, as a compiler would have written it.
/// # fn plugin(jit: &Jit) -> Result<Vec<u8>, Box<dyn std::error::Error>> {
/// #     let builder = cranelift_object::ObjectBuilder::new(jit.isa().clone(), "plugin", default_libcall_names())?;
/// #     let mut module = cranelift_object::ObjectModule::new(builder);
/// #     let mut context = module.make_context();
/// #     context.func.signature.params.push(AbiParam::new(types::I32));
/// #     context.func.signature.returns.push(AbiParam::new(types::I32));
/// #     let id = module.declare_function("plugin_main", Linkage::Export, &context.func.signature)?;
/// #     let mut frontend = FunctionBuilderContext::new();
/// #     let mut builder = FunctionBuilder::new(&mut context.func, &mut frontend);
/// #     let block = builder.create_block();
/// #     builder.append_block_params_for_function_params(block);
/// #     builder.switch_to_block(block);
/// #     builder.seal_block(block);
/// #     let argument = builder.block_params(block)[0];
/// #     let sum = builder.ins().iadd(argument, argument);
/// #     builder.ins().return_(&[sum]);
/// #     builder.finalize(module.target_config());
/// #     module.define_function(id, &mut context)?;
/// #     Ok(module.finish().emit()?)
/// # }
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let jit = Jit::new()?;
/// # let bytes = plugin(&jit)?;
/// // The content of `plugin.o`: `std::fs::read("plugin.o")?`.
/// let object = ObjectBytes::from(bytes);
/// let program = Program::new(jit.session().clone());
/// program.add_object(jit.main(), "plugin.o", object)?;
/// // Linked and initialized now, with what it needs.
/// program.lookup(jit.main(), "plugin_main")?;
/// let main = jit.lookup::<unsafe extern "C" fn(i32) -> i32>("plugin_main")?;
/// // SAFETY: the plugin is trusted, and its function of this type: an object does not say.
/// assert_eq!(unsafe { main.call(21) }, 42);
/// # Ok(())
/// # }
/// ```
pub struct Program {
    session: ExecutionSession,
    shared: Arc<Shared>,
}

/// How a program treats its objects.
#[derive(Clone, Debug, Default)]
#[must_use]
pub struct ProgramOptions {
    weak_definitions: WeakDefinitions,
    /// Makes the objects' functions lazy, if they are to be.
    #[cfg(feature = "cranelift")]
    lazy: Option<LazyObjects>,
    pub(super) services: Services,
}

impl ProgramOptions {
    /// Whose definition of a weak symbol is taken if the process has one, too: by default the process's of what is the same
    /// wherever it is defined, and else the program's own.
    pub fn weak_definitions(mut self, weak_definitions: WeakDefinitions) -> Self {
        self.weak_definitions = weak_definitions;
        self
    }

    /// Has an object linked when one of its functions is first called, or when something else of it is looked up.
    #[cfg(feature = "cranelift")]
    pub fn lazy(mut self, objects: LazyObjects) -> Self {
        self.lazy = Some(objects);
        self
    }

    /// Whether debuggers are told of the objects' code, with the information that compilers wrote for them: by default
    /// they are not. For breakpoints, the session's memory must not be mapped twice: that of a
    /// [`Jit`](crate::JitBuilder::debugger) which is built for debuggers is not.
    #[cfg(feature = "cranelift")]
    pub fn debugger(mut self, debugger: Debugger) -> Self {
        self.services.debugger = debugger.is_wanted();
        self
    }

    /// What profilers are told of the objects' functions: by default nothing.
    ///
    /// # Errors
    ///
    /// When the file can't be written.
    #[cfg(feature = "cranelift")]
    pub fn profiler(mut self, profiler: &Profiler) -> Result<Self, Error> {
        self.services.profiler = profiler.open().map_err(|error| Error::Profiler(Arc::new(error)))?;
        Ok(self)
    }

    /// Shows what becomes of the objects' symbols: link graphs and linked code.
    #[cfg(feature = "cranelift")]
    pub fn dumps(mut self, sink: Arc<dyn DumpSink>) -> Self {
        self.services.dumps = Some(sink);
        self
    }

    /// What of an object is needed.
    fn parsing(&self) -> ParseOptions {
        ParseOptions::default().all_sections(self.services.want_notes())
    }
}

/// What the objects of a program share.
#[derive(Debug, Default)]
pub(super) struct Shared {
    pub(super) initializers: Arc<Initializers>,
    /// Thread-local variables by the addresses that the session knows.
    variables: Mutex<FxHashMap<u64, Variable>>,
    components: Mutex<FxHashMap<String, Component>>,
    /// The archives, each with the component that its members belong to.
    archives: Mutex<Vec<(String, Weak<ArchiveMembers>)>>,
    /// What stands for functions of the process that code takes to be near address 0.
    pub(super) low: Mutex<Low>,
    /// What objects need that are not linked yet, by their numbers.
    pub(super) needs: Mutex<BTreeMap<u64, Needs>>,
    pub(super) awaited: Mutex<Awaited>,
    pub(super) options: ProgramOptions,
}

/// A thread-local variable of the program's.
#[derive(Clone, Debug)]
struct Variable {
    location: TlsLocation,
    /// The words that its address leads to, unless that is a descriptor of the object's own.
    words: Option<Box<[u64; 2]>>,
}

#[derive(Debug, Default)]
struct Component {
    /// Signatures of the COMDAT groups that an object has defined.
    groups: FxHashSet<SymbolName>,
    commons: Commons,
    gathered: Gathered,
}

/// The COMDAT groups that one object defines for its component. Dropped, others may.
#[derive(Debug)]
pub(super) struct Groups {
    program: Arc<Shared>,
    component: String,
    signatures: Vec<SymbolName>,
    /// The object's place among the program's.
    number: u64,
}

impl Groups {
    pub(super) fn program(&self) -> &Arc<Shared> {
        &self.program
    }

    pub(super) fn component(&self) -> &str {
        &self.component
    }
}

impl Drop for Groups {
    fn drop(&mut self) {
        lock(&self.program.needs).remove(&self.number);
        if let Some(component) = lock(&self.program.components).get_mut(&self.component) {
            self.signatures.iter().for_each(|signature| _ = component.groups.remove(signature));
            component.gathered.forget(self.number);
        }
    }
}

impl Program {
    /// A program without objects, which takes the process's weak definitions.
    #[must_use]
    pub fn new(session: ExecutionSession) -> Self {
        Self::with_options(session, ProgramOptions::default())
    }

    /// A program without objects.
    #[must_use]
    pub fn with_options(session: ExecutionSession, options: ProgramOptions) -> Self {
        let shared = Arc::new(Shared { options, ..Shared::default() });
        initializers::finalize_at_exit(&shared.initializers);
        Self { session, shared }
    }

    /// The arguments that initializers get, as `main` gets them.
    pub fn set_arguments(&self, arguments: Vec<CString>) {
        self.shared.initializers.set_arguments(arguments);
    }

    /// Adds an object to a dylib. `name` appears in errors. The tracker removes it. Of its weak definitions those are left
    /// out that generators in the dylib's link order know from the process, if the program [wants](WeakDefinitions) that:
    /// libraries are added before.
    ///
    /// # Errors
    ///
    /// When it can't be read, is for another architecture, or defines a symbol again; when the dylib is another session's.
    pub fn add_object(&self, dylib: &JitDylib, name: &str, object: ObjectBytes) -> Result<ResourceTracker, Error> {
        self.session.check_own(dylib)?;
        self.shared.add_object(dylib, name, object, ArchiveScope::AsDefined)
    }

    /// Has the members of an archive (`ar`, thin ones and those in universal files too) linked as they are needed.
    ///
    /// # Errors
    ///
    /// When it can't be read; when the dylib was removed or is another session's.
    pub fn add_archive(&self, dylib: &JitDylib, path: &Path, scope: ArchiveScope) -> Result<(), Error> {
        self.session.check_own(dylib)?;
        let architecture = self.session.executor().architecture();
        let members = Arc::new(ArchiveMembers::open(path, scope, Arc::clone(&self.shared), architecture)?);
        lock(&self.shared.archives).push((dylib.name()?, Arc::downgrade(&members)));
        dylib.add_generator(members)
    }

    /// Links what has initializers in the dylibs that a dylib searches, the dylib included, and
    /// runs those that have not run, the dylib's own last.
    ///
    /// # Errors
    ///
    /// When an object can't be linked: nothing has run then that depends on it. When the dylib is another session's.
    pub fn initialize(&self, dylib: &JitDylib) -> Result<(), Error> {
        self.session.check_own(dylib)?;
        self.link_initializers(dylib)?;
        self.searched_first(dylib).iter().try_for_each(|dylib| self.initialize_alone(dylib))
    }

    /// A dylib after those that it searches, as far as there is no cycle.
    fn searched_first(&self, dylib: &JitDylib) -> Vec<JitDylib> {
        fn visit(dylib: &JitDylib, visited: &mut Vec<JitDylib>, order: &mut Vec<JitDylib>) {
            if visited.contains(dylib) {
                return;
            }
            visited.push(dylib.clone());
            for (id, _) in dylib.link_order().dylibs.iter().copied() {
                visit(&JitDylib { session: dylib.session().clone(), id }, visited, order);
            }
            order.push(dylib.clone());
        }
        let mut order = Vec::new();
        visit(dylib, &mut Vec::new(), &mut order);
        order
    }

    /// Links what has initializers in a dylib and those that it searches, with the members of archives that are needed.
    /// None of them runs before: one that is linked last may have to run first.
    fn link_initializers(&self, dylib: &JitDylib) -> Result<(), Error> {
        let dylibs = self.searched_first(dylib);
        let mut is_done = false;
        while !is_done {
            self.shared.add_members(&self.session)?;
            is_done = true;
            for dylib in &dylibs {
                is_done &= !self.link_expected(dylib)?;
            }
        }
        Ok(())
    }

    /// Links the objects of a dylib that have initializers, and says whether there were any.
    fn link_expected(&self, dylib: &JitDylib) -> Result<bool, Error> {
        let expected = self.shared.initializers.take_expected(&dylib.name()?);
        if expected.is_empty() {
            return Ok(false);
        }
        self.session.lookup(&SearchOrder::new().then(dylib, DylibLookup::All), expected)?;
        Ok(true)
    }

    fn initialize_alone(&self, dylib: &JitDylib) -> Result<(), Error> {
        let name = dylib.name()?;
        let initializers = &self.shared.initializers;
        // Initializers may add objects, and linking them may bring in members of archives.
        while initializers.is_due(&name) {
            if !self.link_expected(dylib)? && !initializers.run(&name) {
                break;
            }
        }
        Ok(())
    }

    /// Looks a symbol up in a dylib's link order, once the initializers of what is linked for it
    /// have run.
    ///
    /// # Errors
    ///
    /// When it, or an object with initializers, can't be had; when the dylib is another session's.
    pub fn lookup(&self, dylib: &JitDylib, name: &str) -> Result<u64, Error> {
        self.session.check_own(dylib)?;
        let name = self.session.intern(name);
        self.shared.add_member_with(dylib, &name)?;
        self.link_initializers(dylib)?;
        let found = self.session.lookup(&dylib.link_order(), name)?;
        self.initialize(dylib)?;
        Ok(found.first().map(|symbol| symbol.definition.address).unwrap_or_default())
    }

    /// Calls what a dylib's code has registered for exit, and its finalizers.
    ///
    /// # Errors
    ///
    /// When the dylib was removed or is another session's.
    pub fn finalize(&self, dylib: &JitDylib) -> Result<(), Error> {
        self.session.check_own(dylib)?;
        self.shared.initializers.finalize(Some(&dylib.name()?));
        Ok(())
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.shared.initializers.finalize(None);
    }
}

impl std::fmt::Debug for Program {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Program").finish_non_exhaustive()
    }
}

impl Shared {
    pub(super) fn add_object(
        self: &Arc<Self>,
        dylib: &JitDylib,
        name: &str,
        object: ObjectBytes,
        scope: ArchiveScope,
    ) -> Result<ResourceTracker, Error> {
        let session = dylib.session();
        let architecture = session.executor().architecture();
        let object = format::macho::slice(name, &object, architecture)?;
        let mut graph = format::parse_with(name, object, session.names(), self.options.parsing())?;
        if scope == ArchiveScope::Hidden {
            hide(&mut graph);
        }
        check_architecture(session, &graph)?;
        let component = self.component(dylib)?;
        if graph.needs_executable_stack() {
            let refused = |error| Error::Module(format!("{name}: {NO_EXECUTABLE_STACK}: {error}"));
            thread_local::make_stacks_executable(architecture).map_err(refused)?;
        }
        if self.options.weak_definitions == WeakDefinitions::OfProcess {
            weak::take_from_process(&mut graph, dylib);
        }
        let groups = self.claim_groups(&component, &mut graph);
        self.claim_commons(dylib, &component, &graph)?;
        let tracker = dylib.create_tracker()?;
        let aliases: Vec<_> = graph
            .aliases()
            .iter()
            .map(|(name, aliasee)| Alias { name: name.clone(), aliasee: aliasee.clone(), flags: SymbolFlags::EXPORTED })
            .collect();
        let added =
            tracker.define_aliases(&dylib.link_order(), aliases).and_then(|()| self.add_graph(&tracker, groups, graph));
        if let Err(error) = added {
            // All or nothing.
            tracker.remove()?;
            return Err(error);
        }
        Ok(tracker)
    }

    /// Leaves out the groups that the component has already, or that the process has.
    fn claim_groups(self: &Arc<Self>, component: &str, graph: &mut LinkGraph) -> Groups {
        let taken: FxHashSet<_> =
            graph.comdats().iter().filter(|comdat| weak::is_taken(graph, comdat)).map(signature).collect();
        let mut groups =
            Groups { program: Arc::clone(self), component: component.to_owned(), signatures: Vec::new(), number: 0 };
        if let Some(entry) = lock(&self.components).get_mut(component) {
            graph.retain_comdats(|comdat| {
                let signature = signature(comdat);
                let is_ours = !taken.contains(&signature) && entry.groups.insert(signature.clone());
                groups.signatures.extend(is_ours.then_some(signature));
                is_ours
            });
        }
        groups
    }

    /// Takes note of the commons of an object, and the places of weak variables for them.
    fn claim_commons(&self, dylib: &JitDylib, component: &str, graph: &LinkGraph) -> Result<(), Error> {
        let replaced = match lock(&self.components).get_mut(component) {
            Some(component) => component.commons.add(graph),
            None => Ok(Vec::new()),
        };
        let too_late = |name| Error::Module(format!("{}: {TOO_LATE} '{name}'", graph.name()));
        for name in replaced.map_err(too_late)? {
            // What is strong takes the place of what is weak, unless that is in use, and leaves it free.
            let tracker = dylib.create_tracker()?;
            let (definition, flags) = (SymbolDef::at(0), SymbolFlags::HIDDEN);
            _ = tracker.define_absolute(vec![AbsoluteSymbol { name, definition, flags, signature: None }]);
            tracker.remove()?;
        }
        Ok(())
    }

    /// Gives the commons of an object that is linked now the room that all objects need, and their names.
    pub(super) fn settle_commons(&self, component: &str, graph: &mut LinkGraph) -> Vec<SymbolName> {
        let mut components = lock(&self.components);
        components.get_mut(component).map(|component| component.commons.settle(graph)).unwrap_or_default()
    }

    /// What an object that is linked now shares of its sections with others.
    ///
    /// # Errors
    ///
    /// When that can't be.
    pub(super) fn settle_sections(&self, component: &str, graph: &LinkGraph, number: u64) -> Result<Vec<Share>, Cause> {
        let mut components = lock(&self.components);
        let Some(component) = components.get_mut(component) else { return Ok(Vec::new()) };
        let stays = |what| Cause::Other(format!("{}: {what}", graph.name()).into());
        component.gathered.settle(graph, number).map_err(stays)
    }

    pub(super) fn forget_commons(&self, component: &str, linked: &[SymbolName]) {
        if let Some(component) = lock(&self.components).get_mut(component) {
            component.commons.forget(linked);
        }
    }

    fn add_graph(
        self: &Arc<Self>,
        tracker: &ResourceTracker,
        mut groups: Groups,
        mut graph: LinkGraph,
    ) -> Result<(), Error> {
        let needs = Needs::of(&groups.component, &graph);
        let mut units = self.lazy_units(tracker, &mut graph)?;
        let number = self.initializers.number();
        let has_functions = !graph.initializers().is_empty() || !graph.finalizers().is_empty();
        let whole = tracker.session().intern(&format!("{}#{number}", graph.name()));
        let component = groups.component.clone();
        groups.number = number;
        if let Some(entry) = lock(&self.components).get_mut(&component) {
            let too_late = |section| Error::Module(format!("{}: {GATHERED} '{section}'", graph.name()));
            entry.gathered.add(&graph, number, &whole).map_err(too_late)?;
        }
        lock(&self.low).add(tracker.session(), &graph);
        // Before the object can be linked, or nobody would take it away.
        lock(&self.needs).insert(number, needs);
        units.push(ObjectUnit::new(graph, groups, number, whole.clone()).definition());
        tracker.define(units)?;
        if has_functions {
            self.initializers.expect(&component, whole);
        }
        Ok(())
    }

    #[cfg(feature = "cranelift")]
    fn lazy_units(&self, tracker: &ResourceTracker, graph: &mut LinkGraph) -> Result<Vec<UnitDefinition>, Error> {
        self.options.lazy.as_ref().map_or(Ok(Vec::new()), |objects| objects.divide(&tracker.dylib()?, graph))
    }

    #[cfg(not(feature = "cranelift"))]
    fn lazy_units(&self, _: &ResourceTracker, _: &mut LinkGraph) -> Result<Vec<UnitDefinition>, Error> {
        Ok(Vec::new())
    }

    /// The component of a dylib: its name, once it has what the C library gives each component.
    fn component(self: &Arc<Self>, dylib: &JitDylib) -> Result<String, Error> {
        let name = dylib.name()?;
        if lock(&self.components).contains_key(&name) {
            return Ok(name);
        }
        let session = dylib.session();
        let tracker = dylib.default_tracker()?;
        let register = session.intern("__cxa_atexit");
        let function = |name, address| AbsoluteSymbol {
            name,
            definition: SymbolDef::at(address),
            flags: SymbolFlags { weak: true, callable: true, ..SymbolFlags::HIDDEN },
            signature: None,
        };
        let mut functions = vec![function(register.clone(), initializers::register_at_exit as *const () as u64)];
        // What compilers for macOS take for granted: the function that registers destructors of thread-local variables,
        // which other C libraries have by another name, and the word that tells whether a stack was overrun.
        let executor = session.executor();
        if let Some(address) = executor.find_symbol(c"__cxa_thread_atexit_impl") {
            functions.push(function(session.intern("_tlv_atexit"), address));
        }
        if executor.find_symbol(c"__stack_chk_guard").is_none() {
            functions.push(function(session.intern("__stack_chk_guard"), &raw const **STACK_GUARD as u64));
        }
        tracker.define_absolute(functions)?;
        let graph = support(session, register).map_err(|error| Error::Module(error.to_string()))?;
        let groups = Groups { program: Arc::clone(self), component: name.clone(), signatures: Vec::new(), number: 0 };
        self.add_graph(&tracker, groups, graph)?;
        lock(&self.components).entry(name.clone()).or_default();
        Ok(name)
    }

    pub(super) fn has_archives(&self) -> bool {
        !lock(&self.archives).is_empty()
    }

    /// The archives of a component, or of all.
    pub(super) fn archives_of(&self, component: Option<&str>) -> Vec<Arc<ArchiveMembers>> {
        let archives = lock(&self.archives);
        let those = archives.iter().filter(|(name, _)| component.is_none_or(|component| component == name));
        those.filter_map(|(_, archive)| archive.upgrade()).collect()
    }

    /// Says where a thread-local variable is, and gives the address that stands for it.
    pub(super) fn add_variable(&self, location: TlsLocation) -> u64 {
        let words = Box::new([location.module, location.offset]);
        let address = std::ptr::from_ref(&*words) as u64;
        lock(&self.variables).insert(address, Variable { location, words: Some(words) });
        address
    }

    /// Says where the thread-local variable is that a descriptor of Mach-O's stands for.
    pub(super) fn add_described(&self, descriptor: u64, location: TlsLocation) {
        lock(&self.variables).insert(descriptor, Variable { location, words: None });
    }

    pub(super) fn forget_variables(&self, addresses: &[u64]) {
        let mut variables = lock(&self.variables);
        for address in addresses {
            variables.remove(address);
        }
    }

    /// Where the thread-local variable of the program's is that the session has at `address`, and whether that is the
    /// address of a descriptor of Mach-O's.
    pub(super) fn variable(&self, address: u64) -> Option<(TlsLocation, bool)> {
        lock(&self.variables).get(&address).map(|variable| (variable.location, variable.words.is_none()))
    }
}

/// Nobody can guess it, and no text goes past the zero that it has in memory first.
static STACK_GUARD: LazyLock<Box<u64>> = LazyLock::new(|| Box::new(RandomState::new().hash_one(0) << 8));

/// What an object can't have that is added when the program has begun.
const TOO_LATE: &str = "the program is in memory with a smaller or less aligned";

const GATHERED: &str = "the program is in memory, and asks for the bounds of its section";

const NO_EXECUTABLE_STACK: &str = "it needs an executable stack, as for GCC's nested functions whose addresses are taken \
     (-ftrampoline-impl=heap does without)";

fn signature(comdat: &Comdat) -> SymbolName {
    comdat.signature.clone()
}

/// Hides what an object defines from other dylibs.
fn hide(graph: &mut LinkGraph) {
    let visible = |(id, symbol): (SymbolId, &Symbol)| {
        let is_seen = symbol.scope != Scope::Local && symbol.definition != Definition::External;
        is_seen.then_some((id, symbol.linkage))
    };
    for (symbol, linkage) in graph.symbols().filter_map(visible).collect::<Vec<_>>() {
        graph.set_binding(symbol, linkage, Scope::Hidden);
    }
}

/// What each component has of its own: the handle that its code is known by, and `atexit`.
fn support(session: &ExecutionSession, register: SymbolName) -> Result<LinkGraph, jit_linker::graph::GraphError> {
    use jit_linker::arch::{aarch64, x86_64};
    let architecture = session.executor().architecture();
    let mut graph = LinkGraph::new("component", architecture);
    let block = graph.add_block(SegmentKind::Data, &[0; 8], 8)?;
    let handle = graph.define(Some(session.intern(COMPONENT_HANDLE)), block, 0, 0);
    let kind = match architecture {
        Architecture::Aarch64 => EdgeKind::Aarch64(aarch64::EdgeKind::Pointer64),
        _ => EdgeKind::X86_64(x86_64::EdgeKind::Pointer64),
    };
    graph.add_edge(Edge { block, offset: 0, kind, target: handle, addend: 0 })?;
    let register = graph.external(register, 0);
    let code = add_at_exit(&mut graph, handle, register)?;
    let at_exit = graph.define(Some(session.intern("atexit")), code, 0, 0);
    for symbol in [handle, at_exit] {
        graph.set_binding(symbol, Linkage::Weak, Scope::Hidden);
    }
    Ok(graph)
}
