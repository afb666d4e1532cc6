//! One graph's way through the linker, for the unit that promised its symbols.

use jit_linker::graph::{Linkage, SymbolId as GraphSymbol};
use jit_linker::link::{self, Allocated, Loaded};
use jit_linker::plugin::Passes;
use jit_linker::{LinkError, LinkGraph, SymbolName};
use rustc_hash::FxHashMap;

use super::layer::{ObjectOptions, check_architecture, definitions};
use super::plugin::{Hooks, Watched};
use crate::error::{Cause, SymbolFailure};
use crate::platform::{ObjectCode, Services};
use crate::session::{
    FoundSymbol, MaterializationResponsibility, SymbolDeclaration, SymbolDef, SymbolFlags, SymbolId, name_of,
};
use crate::sync::Arc;

/// Links a graph. Goes on when the addresses of the external symbols are known.
pub(crate) fn begin(
    responsibility: MaterializationResponsibility,
    graph: LinkGraph,
    hooks: &Hooks,
    options: ObjectOptions,
    services: &Services,
) {
    if let Err(error) = check_architecture(responsibility.session(), &graph) {
        return responsibility.fail(error.into());
    }
    let mut watched = hooks.begin(|| responsibility.dylib().ok(), &graph);
    let passes = watched.as_mut().map(Watched::take_passes).unwrap_or_default();
    let mut linking = Linking { responsibility, watched, services: services.clone(), own: Vec::new() };
    match linking.allocate(graph, passes, options) {
        Ok(allocated) => linking.look_up(allocated),
        Err(cause) => linking.fail(&cause),
    }
}

/// A graph on its way, and who answers for it.
struct Linking {
    responsibility: MaterializationResponsibility,
    watched: Option<Watched>,
    services: Services,
    /// The graph's symbols and the session's, of what the unit defines.
    own: Vec<(GraphSymbol, SymbolId)>,
}

fn link_failure(error: LinkError) -> Arc<Cause> {
    Arc::new(Cause::Link(error))
}

/// Why something that needs what could not be had fails.
pub(crate) fn dependency(failure: SymbolFailure) -> Arc<Cause> {
    let SymbolFailure { name, dylib, cause } = failure;
    match &*cause {
        Cause::Dependency { .. } => cause,
        _ => Arc::new(Cause::Dependency { name, dylib, cause }),
    }
}

impl Linking {
    fn fail(self, cause: &Arc<Cause>) {
        if let Some(watched) = self.watched {
            watched.failed(cause);
        }
        self.responsibility.fail_with(cause);
    }

    fn allocate(&mut self, graph: LinkGraph, passes: Passes, options: ObjectOptions) -> Result<Allocated, Arc<Cause>> {
        let _span = tracing::debug_span!("link", graph = graph.name()).entered();
        let mut loaded = link::load(graph, passes).map_err(link_failure)?;
        self.claim(&mut loaded, options)?;
        let wanted: Vec<_> = self.own.iter().map(|(symbol, _)| *symbol).collect();
        loaded.prune(&wanted);
        let prepared = loaded.prepare().map_err(link_failure)?;
        let size = prepared.request().iter().map(|segment| segment.size as u64).sum();
        self.responsibility.charge(size).map_err(|error| Arc::new(error.into()))?;
        let session = self.responsibility.session();
        let allocated = prepared.allocate(session.executor().memory()).map_err(link_failure)?;
        if let Some(watched) = &self.watched {
            watched.loaded(allocated.graph());
        }
        let address = |symbol| SymbolDef::at(allocated.address(symbol));
        let definitions: Vec<_> = self.own.iter().map(|(symbol, id)| (*id, address(*symbol))).collect();
        session.resolve(&definitions).map_err(|error| Arc::new(error.into()))?;
        Ok(allocated)
    }

    /// Brings together what the unit promised and what the graph defines.
    fn claim(&mut self, loaded: &mut Loaded, options: ObjectOptions) -> Result<(), Arc<Cause>> {
        let mismatch = |symbol: &SymbolName, what| {
            let (graph, symbol) = (loaded.graph().name().to_owned(), symbol.clone());
            Arc::new(Cause::Interface { graph, symbol, what })
        };
        let declared = self.responsibility.declared();
        let mut missing: FxHashMap<_, _> = declared.iter().map(|symbol| (&symbol.name, symbol)).collect();
        let mut late = Vec::new();
        for (symbol, name, flags) in definitions(loaded.graph()) {
            if let Some(promised) = missing.remove(name) {
                if !options.override_flags && !is_compatible(promised.flags, flags) {
                    return Err(mismatch(name, "is declared with other flags than the graph's"));
                }
                self.own.push((symbol, promised.id));
            } else if !flags.is_strong() || options.auto_claim {
                late.push((symbol, SymbolDeclaration { name: name.clone(), flags, signature: None }));
            } else {
                return Err(mismatch(name, "is defined and its unit does not declare it"));
            }
        }
        if let Some((name, _)) = missing.into_iter().next() {
            return Err(mismatch(name, "is declared and not defined"));
        }
        if late.is_empty() { Ok(()) } else { self.claim_late(loaded, late) }
    }

    /// Takes on definitions that nobody declared. Weak ones that came too late refer to the
    /// definitions that were there.
    fn claim_late(
        &mut self,
        loaded: &mut Loaded,
        late: Vec<(GraphSymbol, SymbolDeclaration)>,
    ) -> Result<(), Arc<Cause>> {
        let names: FxHashMap<_, _> = late.iter().map(|(symbol, late)| (late.name.clone(), *symbol)).collect();
        let declarations = late.into_iter().map(|(_, declaration)| declaration).collect();
        self.responsibility.define_materializing(declarations).map_err(|error| Arc::new(error.into()))?;
        let mut known: FxHashMap<_, _> =
            self.responsibility.declared().into_iter().map(|symbol| (symbol.name, symbol.id)).collect();
        for (name, symbol) in names {
            match known.remove(&name) {
                Some(id) => self.own.push((symbol, id)),
                None => loaded.graph_mut().make_external(symbol),
            }
        }
        Ok(())
    }

    fn look_up(self, allocated: Allocated) {
        let externals = allocated.externals();
        let mut named = Vec::with_capacity(externals.len());
        let mut names = Vec::with_capacity(externals.len());
        for external in externals {
            if let Some(name) = allocated.graph().symbol_name(external) {
                names.push(name.clone());
                named.push(external);
            }
        }
        if named.is_empty() {
            return self.finish(allocated, &[], None);
        }
        let (session, order) = (self.responsibility.session().clone(), self.responsibility.link_order());
        let owner = self.responsibility.owner();
        session.lookup_owned(&order, names.into(), Some(owner), move |answers| {
            self.externals_known(allocated, named, answers);
        });
    }

    fn externals_known(
        self,
        mut allocated: Allocated,
        externals: Vec<GraphSymbol>,
        answers: Vec<Result<FoundSymbol, SymbolFailure>>,
    ) {
        let mut found = Vec::with_capacity(answers.len());
        let mut slots = Vec::new();
        for (external, answer) in externals.into_iter().zip(answers) {
            match answer {
                Ok(symbol) => {
                    // Code that was compiled elsewhere may do anything with an address: no slot stands for it.
                    allocated.resolve(external, symbol.definition.address, None);
                    slots.extend(symbol.definition.slot);
                    found.push((external, symbol));
                }
                Err(failure) if failure.is_missing() && is_optional(&allocated, external) => {
                    allocated.resolve(external, 0, None);
                }
                Err(failure) => return self.fail(&dependency(failure)),
            }
        }
        let slots = self.responsibility.session().keep_slots(slots);
        self.finish(allocated, &found, slots);
    }

    fn finish(
        mut self,
        allocated: Allocated,
        found: &[(GraphSymbol, FoundSymbol)],
        slots: Option<Box<dyn Send + Sync>>,
    ) {
        let _span = tracing::debug_span!("finalize", graph = allocated.graph().name()).entered();
        let needed = found.iter().map(|(symbol, found)| (*symbol, found.id));
        let ids: FxHashMap<GraphSymbol, SymbolId> = needed.chain(self.own.iter().copied()).collect();
        let dependences: Vec<_> = allocated
            .dependences(|symbol| ids.contains_key(&symbol))
            .into_iter()
            .filter_map(|(from, to)| Some((*ids.get(&from)?, *ids.get(&to)?)))
            .collect();
        let resolvers = allocated.resolvers();
        let told = ObjectCode::of(&self.services, self.responsibility.session(), &allocated);
        let mut code = match allocated.fix_up().and_then(link::Fixed::finalize) {
            Ok(code) => code,
            Err(error) => return self.fail(&link_failure(error)),
        };
        if let Err(error) = told.register(&self.services, &mut code) {
            let message = format!("{}: {error}", self.responsibility.unit_name());
            return self.fail(&Arc::new(Cause::Other(message.into())));
        }
        if let Some(slots) = slots {
            code.attach(slots);
        }
        for resolver in resolvers {
            // SAFETY: the memory is final and mapped here. What the resolver refers to has an
            // address; as in every dynamic loader, it must need no more of it than its own object.
            unsafe { resolver.settle() };
        }
        match self.watched.take().map(Watched::emitted) {
            None => {}
            Some(Ok(emitted)) => code.attach(emitted),
            Some(Err(cause)) => return self.fail(&cause),
        }
        let session = self.responsibility.session().clone();
        // What failed with a dependence has told whoever waited for it.
        let names = |id| name_of(found.iter().map(|(_, found)| found), id);
        _ = session.emit(vec![self.responsibility], Some(&Arc::new(code)), &dependences, &names);
    }
}

/// Whether an external symbol need not be found.
fn is_optional(allocated: &Allocated, symbol: GraphSymbol) -> bool {
    allocated.graph().symbol(symbol).linkage == Linkage::Weak
}

/// Whether a definition can be had as it was declared. Whether it is weak was settled with the
/// declaration.
fn is_compatible(declared: SymbolFlags, defined: SymbolFlags) -> bool {
    declared.exported == defined.exported && (defined.callable || !declared.callable)
}

impl SymbolFailure {
    /// Whether nobody defines the symbol.
    pub(crate) fn is_missing(&self) -> bool {
        matches!(&*self.cause, Cause::NotFound)
    }
}
