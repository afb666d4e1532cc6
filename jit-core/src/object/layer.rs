//! `ObjectLinkingLayer`: link graphs and objects as materialization units.

use jit_linker::format::{self, ParseOptions};
use jit_linker::graph::{Definition, Linkage, ObjectBytes, Scope, Symbol, SymbolId, SymbolKind};
use jit_linker::{LinkGraph, SymbolName};
use smallvec::SmallVec;

use super::linking;
use super::plugin::{GraphTransform, Hooks, LinkPlugin};
use crate::error::Error;
use crate::platform::Services;
use crate::session::{
    ExecutionSession, MaterializationResponsibility, MaterializationUnit, ResourceTracker, SymbolDeclaration,
    SymbolFlags, UnitDefinition,
};
use crate::sync::Arc;

/// Takes objects and link graphs, and links them when one of their symbols is looked up.
///
/// [`ObjectLinkingLayer`] is the one at the bottom. Layers are handles: clones are the same layer.
pub trait ObjectLayer: Clone + Send + Sync + 'static {
    /// Links a graph for a unit that has begun. Blocks nobody: the responsibility ends when the
    /// addresses of the external symbols are known.
    fn emit(&self, responsibility: MaterializationResponsibility, graph: LinkGraph);

    /// Reads an object. `name` appears in errors.
    ///
    /// # Errors
    ///
    /// When it can't be read.
    fn read(&self, session: &ExecutionSession, name: &str, object: ObjectBytes) -> Result<LinkGraph, Error>;

    /// Every step between this layer and the linker, and the plugins.
    #[doc(hidden)]
    fn hooks(&self) -> LayerHooks;

    /// Defines what an object defines, all or nothing. Nothing is linked yet.
    ///
    /// # Errors
    ///
    /// When it can't be read, or defines a symbol that the dylib has.
    fn add(&self, tracker: &ResourceTracker, name: &str, object: ObjectBytes) -> Result<(), Error> {
        self.add_graph(tracker, self.read(tracker.session(), name, object)?)
    }

    /// Defines the symbols of a graph that other graphs see, all or nothing.
    ///
    /// # Errors
    ///
    /// When the dylib has one of them, or the graph is of another architecture.
    fn add_graph(&self, tracker: &ResourceTracker, graph: LinkGraph) -> Result<(), Error> {
        let symbols = interface(&graph);
        self.add_graph_as(tracker, graph, symbols)
    }

    /// As [`add_graph`](Self::add_graph), with the symbols said: the graph may define more, or
    /// with other flags, as the layer's [options](ObjectOptions) allow.
    ///
    /// # Errors
    ///
    /// As [`add_graph`](Self::add_graph).
    fn add_graph_as(
        &self,
        tracker: &ResourceTracker,
        graph: LinkGraph,
        symbols: Vec<SymbolDeclaration>,
    ) -> Result<(), Error> {
        check_architecture(tracker.session(), &graph)?;
        tracker.define(vec![GraphUnit { layer: self.clone(), graph }.definition(symbols)])
    }

    /// The unit that links a graph, with the symbols that other graphs see: for whoever defines it together with
    /// others.
    fn unit(&self, graph: LinkGraph) -> UnitDefinition {
        let symbols = interface(&graph);
        GraphUnit { layer: self.clone(), graph }.definition(symbols)
    }
}

/// What [`ObjectLayer::hooks`] gives: nothing to look at.
#[doc(hidden)]
pub struct LayerHooks(pub(crate) Hooks);

/// How much of what a unit promised its graph may do otherwise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ObjectOptions {
    /// The flags that the unit declared stand where the graph has others. Without it, that is an
    /// error.
    pub override_flags: bool,
    /// Strong definitions that the unit did not declare are added to what it defines. Without it,
    /// they are an error; weak ones are always added.
    pub auto_claim: bool,
    /// Sections that a program takes no memory for, debugging information above all, are in memory too.
    pub all_sections: bool,
}

impl ObjectOptions {
    /// Sets [`override_flags`](Self::override_flags).
    #[must_use]
    pub fn override_flags(mut self, enable: bool) -> Self {
        self.override_flags = enable;
        self
    }

    /// Sets [`all_sections`](Self::all_sections).
    #[must_use]
    pub fn all_sections(mut self, enable: bool) -> Self {
        self.all_sections = enable;
        self
    }

    /// Sets [`auto_claim`](Self::auto_claim).
    #[must_use]
    pub fn auto_claim(mut self, enable: bool) -> Self {
        self.auto_claim = enable;
        self
    }
}

/// Links graphs with the linker of `jit-linker`, in the memory of the session's executor.
///
/// ```
/// use jit_core::{Jit, ObjectLayer};
/// use jit_linker::LinkGraph;
/// use jit_linker::memory::SegmentKind;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let jit = Jit::new()?;
/// let session = jit.session();
/// let mut graph = LinkGraph::new("table", session.executor().architecture());
/// let block = graph.add_block(SegmentKind::ReadOnly, &42u64.to_le_bytes(), 8)?;
/// graph.define(Some(session.intern("answer")), block, 0, 8);
/// jit.object_layer().add_graph(&jit.main().create_tracker()?, graph)?;
///
/// let address = std::ptr::with_exposed_provenance::<u64>(jit.lookup_address("answer")? as usize);
/// // SAFETY: a constant of the graph's, which is not removed.
/// assert_eq!(unsafe { *address }, 42);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Default)]
pub struct ObjectLinkingLayer {
    hooks: Hooks,
    options: ObjectOptions,
    services: Services,
}

impl ObjectLinkingLayer {
    /// A layer without plugins, of whose code no debugger or profiler is told: a
    /// [`Jit`](crate::Jit::object_layer)'s tells those that the JIT was built for.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A layer without plugins that tells of its code.
    #[cfg(feature = "cranelift")]
    pub(crate) fn telling(services: Services) -> Self {
        Self { services, ..Self::default() }
    }

    /// The same layer with other options.
    #[must_use]
    pub fn with_options(&self, options: ObjectOptions) -> Self {
        Self { options, ..self.clone() }
    }

    /// Has a plugin take part in every link that begins from now on.
    pub fn add_plugin(&self, plugin: Arc<dyn LinkPlugin>) {
        self.hooks.plugins.add(plugin);
    }

    /// Has a plugin take part in no more links; those that have begun keep it until they end, and
    /// what they emitted until it is removed. Whether it was there.
    pub fn remove_plugin(&self, plugin: &Arc<dyn LinkPlugin>) -> bool {
        self.hooks.plugins.remove(plugin)
    }
}

impl ObjectLayer for ObjectLinkingLayer {
    fn emit(&self, responsibility: MaterializationResponsibility, graph: LinkGraph) {
        linking::begin(responsibility, graph, &self.hooks, self.options, &self.services);
    }

    fn read(&self, session: &ExecutionSession, name: &str, object: ObjectBytes) -> Result<LinkGraph, Error> {
        let all_sections = self.options.all_sections || self.services.want_notes();
        let options = ParseOptions::default().all_sections(all_sections);
        let graph = format::parse_with(name, object, session.names(), options)?;
        check_architecture(session, &graph)?;
        Ok(graph)
    }

    fn hooks(&self) -> LayerHooks {
        LayerHooks(self.hooks.clone())
    }
}

impl LayerHooks {
    /// With a transform before all others.
    pub(crate) fn before(mut self, transform: GraphTransform) -> Self {
        self.0.transforms.insert(0, transform);
        self
    }
}

/// Refuses a graph of another architecture than the session's.
pub(crate) fn check_architecture(session: &ExecutionSession, graph: &LinkGraph) -> Result<(), Error> {
    let (theirs, ours) = (graph.architecture(), session.executor().architecture());
    if theirs == ours {
        return Ok(());
    }
    Err(Error::Target(format!("{} is for {theirs}, the session for {ours}", graph.name())))
}

/// The flags that a graph gives a symbol.
pub(crate) fn flags(symbol: &Symbol) -> SymbolFlags {
    SymbolFlags {
        weak: symbol.linkage == Linkage::Weak,
        common: symbol.linkage == Linkage::Common,
        exported: matches!(symbol.scope, Scope::Default | Scope::Protected),
        callable: matches!(symbol.kind, SymbolKind::Function | SymbolKind::Resolver),
        absolute: symbol.definition == Definition::Absolute,
        side_effects_only: false,
    }
}

/// The symbols of a graph that other graphs see.
pub(crate) fn definitions(graph: &LinkGraph) -> impl Iterator<Item = (SymbolId, &SymbolName, SymbolFlags)> {
    graph.symbols().filter_map(|(id, symbol)| {
        let is_defined = symbol.definition != Definition::External && symbol.scope != Scope::Local;
        graph.symbol_name(id).filter(|_| is_defined).map(|name| (id, name, flags(symbol)))
    })
}

fn interface(graph: &LinkGraph) -> Vec<SymbolDeclaration> {
    let declaration = |(_, name, flags): (SymbolId, &SymbolName, SymbolFlags)| SymbolDeclaration {
        name: name.clone(),
        flags,
        signature: None,
    };
    definitions(graph).map(declaration).collect()
}

/// A graph that waits to be linked.
struct GraphUnit<L> {
    layer: L,
    graph: LinkGraph,
}

impl<L: ObjectLayer> GraphUnit<L> {
    fn definition(self, symbols: Vec<SymbolDeclaration>) -> UnitDefinition {
        let name = Arc::from(self.graph.name());
        UnitDefinition { symbols: SmallVec::from_vec(symbols), name, unit: Box::new(self) }
    }
}

impl<L: ObjectLayer> MaterializationUnit for GraphUnit<L> {
    fn materialize(self: Box<Self>, responsibility: MaterializationResponsibility) {
        self.layer.emit(responsibility, self.graph);
    }

    fn discard(&mut self, name: &SymbolName) {
        let found = definitions(&self.graph).find(|(_, other, _)| *other == name).map(|(id, ..)| id);
        if let Some(symbol) = found {
            // Those in the graph who mean it get the definition that won.
            self.graph.make_external(symbol);
        }
    }
}
