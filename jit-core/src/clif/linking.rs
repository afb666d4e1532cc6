//! Links what was compiled together: addresses, externals, fixups, and what the process is told.

use std::ops::Range;
use std::sync::atomic::Ordering;
use std::time::Instant;

use jit_linker::graph::{Definition, LinkGraph, Linkage, SymbolId as GraphSymbol};
use jit_linker::link::{Allocated, Loaded, Prepared};
use jit_linker::memory::{FinalizedAllocation, SegmentKind};
use jit_linker::{LinkError, SymbolName, link};
use rustc_hash::FxHashMap;
use smallvec::SmallVec;

use super::module::{DATA, FUNCTION};
use super::units::ModuleUnits;
use crate::error::{Cause, SymbolFailure};
use crate::object::{Watched, dependency};
use crate::platform::code::{Details, LinkedCode, LinkedFunction};
use crate::platform::tls;
use crate::platform::unwind::{self, Frames};
use crate::redirect::FirstTierBody;
use crate::session::{ExecutionSession, FoundSymbol, MaterializationResponsibility, SymbolDef, SymbolId, name_of};
use crate::sync::Arc;

/// Items of a module that were compiled, in one graph.
pub(super) struct Compiled {
    pub(super) session: ExecutionSession,
    pub(super) module: Arc<ModuleUnits>,
    pub(super) graph: LinkGraph,
    /// What each external refers to, in the order of their tags.
    pub(super) externals: Vec<External>,
    pub(super) own: Vec<Own>,
    /// Of functions, if there is to be any.
    pub(super) frames: Option<Frames>,
}

/// A symbol the batch defines, and who has to answer for it.
pub(super) struct Own {
    /// `None` once it has failed.
    pub(super) responsibility: Option<MaterializationResponsibility>,
    pub(super) symbol: SymbolId,
    pub(super) graph_symbol: GraphSymbol,
    pub(super) told: Told,
    pub(super) extra: Extra,
}

/// What an item is beside a function or a data object.
pub(super) enum Extra {
    None,
    /// A thread-local variable whose descriptor the symbol is, and its initial value.
    Variable(Box<tls::Variable>, GraphSymbol),
    /// A function of the first tier.
    FirstTier(Box<dyn FirstTierBody>),
}

/// What is told of a function.
#[derive(Default)]
pub(super) struct Told {
    /// Its index in the unwind information.
    pub(super) frame: Option<usize>,
    /// If anyone wants to know more.
    pub(super) code: Option<Box<(u32, Details)>>,
}

/// What an external symbol of the graph refers to.
pub(super) struct External {
    pub(super) symbol: GraphSymbol,
    pub(super) name: SymbolName,
    pub(super) namespace: u32,
    pub(super) index: u32,
}

impl Compiled {
    /// Links it, as soon as what it refers to has its addresses.
    pub(super) fn link(self) {
        if self.own.is_empty() {
            return;
        }
        let dylib = || self.own.iter().find_map(|own| own.responsibility.as_ref()?.dylib().ok());
        let mut watched = self.module.layer.hooks.begin(dylib, &self.graph);
        let passes = watched.as_mut().map(Watched::take_passes);
        let Self { session, module, graph, mut externals, own, frames } = self;
        let mut linking = Linking { session, module, own, frames, watched };
        let module = Arc::clone(&linking.module);
        let _span = tracing::debug_span!("link", module = &*module.name, symbols = linking.own.len()).entered();
        let prepared = match passes {
            None => link::prepare(graph),
            Some(passes) => link::load(graph, passes).and_then(Loaded::prepare),
        };
        let prepared = match prepared {
            Ok(prepared) => prepared,
            Err(error) => return linking.fail_all(error),
        };
        if let Err(cause) = linking.charge(&prepared) {
            return linking.fail_all_with(&cause);
        }
        let allocated = match prepared.allocate(linking.session.executor().memory()) {
            Ok(allocated) => allocated,
            Err(error) => return linking.fail_all(error),
        };
        if let Some(watched) = &linking.watched {
            watched.loaded(allocated.graph());
        }
        let address = |own: &Own| match &own.extra {
            Extra::FirstTier(body) => body.entry(allocated.address(own.graph_symbol)),
            _ => allocated.address(own.graph_symbol),
        };
        let definitions = linking.own.iter().map(|own| (own.symbol, SymbolDef::at(address(own))));
        let definitions: SmallVec<[_; 1]> = definitions.collect();
        linking.publish(&definitions);
        externals.retain(|external| allocated.is_external(external.symbol));
        if externals.is_empty() {
            return linking.finish(allocated, &[], None);
        }
        let mut responsibilities = linking.own.iter().filter_map(|own| own.responsibility.as_ref());
        let Some(first) = responsibilities.next() else { return };
        let others = responsibilities.map(MaterializationResponsibility::unit).collect();
        let names: Vec<_> = externals.iter().map(|external| external.name.clone()).collect();
        let (session, order, owner) = (linking.session.clone(), first.link_order(), first.owner());
        session.lookup_owned_by_all(&order, names.into(), Some(owner), others, move |answers| {
            linking.externals_known(allocated, externals, answers);
        });
    }
}

/// A batch whose graph is on its way through the linker.
struct Linking {
    session: ExecutionSession,
    module: Arc<ModuleUnits>,
    own: Vec<Own>,
    frames: Option<Frames>,
    watched: Option<Watched>,
}

impl Linking {
    fn fail_all(self, error: LinkError) {
        self.fail_all_with(&Arc::new(Cause::Link(error)));
    }

    fn fail_all_with(self, cause: &Arc<Cause>) {
        if let Some(watched) = self.watched {
            watched.failed(cause);
        }
        for responsibility in self.own.into_iter().filter_map(|own| own.responsibility) {
            responsibility.fail_with(cause);
        }
    }

    fn charge(&self, prepared: &Prepared) -> Result<(), Arc<Cause>> {
        let sizes = prepared.request().map(|segment| segment.size as u64);
        let first = self.own.iter().find_map(|own| own.responsibility.as_ref());
        first.map_or(Ok(()), |first| first.charge(sizes.iter().sum())).map_err(|error| Arc::new(error.into()))
    }

    /// Publishes the addresses, of each symbol alone if not of all: one may have been removed.
    fn publish(&mut self, definitions: &[(SymbolId, SymbolDef)]) {
        if self.session.resolve(definitions).is_ok() {
            return;
        }
        for (own, definition) in self.own.iter_mut().zip(definitions) {
            if let Err(error) = self.session.resolve(std::slice::from_ref(definition))
                && let Some(responsibility) = own.responsibility.take()
            {
                responsibility.fail(error.into());
            }
        }
    }

    fn externals_known(
        mut self,
        mut allocated: Allocated,
        externals: Vec<External>,
        answers: Vec<Result<FoundSymbol, SymbolFailure>>,
    ) {
        let start = Instant::now();
        let module = Arc::clone(&self.module);
        let mut found = Vec::with_capacity(answers.len());
        let mut slots = Vec::new();
        for (external, answer) in externals.iter().zip(answers) {
            if let Err(failure) = &answer
                && failure.is_missing()
                && allocated.graph().symbol(external.symbol).linkage == Linkage::Weak
            {
                allocated.resolve(external.symbol, 0, None);
                continue;
            }
            match self.check(external, answer) {
                Ok(symbol) => {
                    let slot = symbol.definition.slot.filter(|_| external.namespace == FUNCTION);
                    allocated.resolve(external.symbol, symbol.definition.address, slot);
                    slots.extend(symbol.definition.slot);
                    found.push((external.symbol, symbol));
                }
                Err(cause) => self.exclude(&mut allocated, external.symbol, &cause),
            }
        }
        let slots = self.session.keep_slots(slots);
        self.finish(allocated, &found, slots);
        module.layer.counters.link_nanoseconds.fetch_add(start.elapsed().as_nanos() as u64, Ordering::Relaxed);
    }

    /// Whether what was found is what the module declared.
    fn check(
        &self,
        external: &External,
        answer: Result<FoundSymbol, SymbolFailure>,
    ) -> Result<FoundSymbol, Arc<Cause>> {
        let found = answer.map_err(dependency)?;
        let declared = match external.namespace {
            DATA => None,
            _ => self.module.functions[external.index as usize].signature.as_ref(),
        };
        match (declared, &found.signature) {
            (Some(declared), Some(defined)) if declared != defined => {
                let (declared, defined) = (declared.clone(), defined.clone());
                let cause = Cause::Signature { user: self.module.name.to_string(), declared, defined };
                let (name, dylib) = (external.name.clone(), self.session.dylib_name_of(found.id));
                Err(Arc::new(Cause::Dependency { name, dylib, cause: Arc::new(cause) }))
            }
            _ => Ok(found),
        }
    }

    /// Fails what needs a symbol that can't be had, and keeps the rest.
    fn exclude(&mut self, allocated: &mut Allocated, symbol: GraphSymbol, cause: &Arc<Cause>) {
        for lost in allocated.exclude(&[symbol]) {
            self.fail(allocated.graph().tag(lost), cause);
        }
    }

    /// The graph's symbols for what the batch defines. Those of an address that is taken have one of their own.
    fn own_symbols<'a>(&'a self, graph: &'a LinkGraph) -> impl Iterator<Item = (GraphSymbol, SymbolId)> + 'a {
        let block_of = |definition| match definition {
            Definition::Block { block, .. } => Some(block),
            _ => None,
        };
        graph.symbols().filter_map(move |(id, symbol)| {
            let block = block_of(symbol.definition)?;
            let own = self.own.get(graph.tag(id) as usize)?;
            // Symbols of plugins have any tag.
            let is_own = block_of(graph.symbol(own.graph_symbol).definition) == Some(block);
            is_own.then_some((id, own.symbol))
        })
    }

    /// Whether everything has failed.
    fn has_failed(&self) -> bool {
        self.own.iter().all(|own| own.responsibility.is_none())
    }

    /// Fails what the batch defines with this tag.
    fn fail(&mut self, tag: u32, cause: &Arc<Cause>) {
        if let Some(responsibility) = self.own.get_mut(tag as usize).and_then(|own| own.responsibility.take()) {
            if let Some(other) = self.own.iter().find_map(|own| own.responsibility.as_ref()) {
                responsibility.hand_charge_to(other);
            }
            responsibility.fail_with(cause);
        }
    }

    /// Gives the unwind information the addresses of what has not failed.
    fn place_frames(&mut self, graph: &LinkGraph, stubs: &[Range<u64>]) {
        let Some(frames) = &mut self.frames else { return };
        for own in self.own.iter().filter(|own| own.responsibility.is_some()) {
            if let Some(index) = own.told.frame {
                frames.place(index, graph.symbol(own.graph_symbol).address());
            }
        }
        frames.add_stubs(graph.architecture(), stubs);
    }

    /// What is told of the functions, if anyone wants to know.
    fn linked_functions(&mut self, graph: &LinkGraph) -> Vec<LinkedFunction> {
        let mut functions = Vec::new();
        for own in self.own.iter_mut().filter(|own| own.responsibility.is_some()) {
            let Some((size, details)) = own.told.code.take().map(|told| *told) else { continue };
            let symbol = graph.symbol(own.graph_symbol);
            let Some(name) = graph.symbol_name(own.graph_symbol).cloned() else { continue };
            functions.push(LinkedFunction { name, start: symbol.address(), size, details });
        }
        functions.sort_unstable_by_key(|function| function.start);
        functions
    }

    /// Tells the process of the code, until its memory goes back.
    fn register(&mut self, code: &mut FinalizedAllocation, functions: Vec<LinkedFunction>) {
        let services = &self.module.layer.services;
        if !functions.is_empty() {
            code.attach(services.register(LinkedCode {
                architecture: self.session.executor().architecture(),
                module: Arc::clone(&self.module.name),
                range: code.range(SegmentKind::Code),
                functions,
                source: self.module.source.clone(),
                frames: self.frames.clone(),
                notes: Vec::new(),
            }));
        }
        if let Some(frames) = self.frames.as_mut().filter(|_| services.unwinding) {
            code.attach(Box::new(unwind::register_placed(frames)));
        }
    }

    /// Which of its symbols need which of its own and of what was found.
    fn dependences(&self, allocated: &Allocated, found: &[(GraphSymbol, FoundSymbol)]) -> Vec<(SymbolId, SymbolId)> {
        if self.own.len() + found.len() < 2 {
            return Vec::new();
        }
        let needed = found.iter().map(|(symbol, found)| (*symbol, found.id));
        let ids: FxHashMap<GraphSymbol, SymbolId> = needed.chain(self.own_symbols(allocated.graph())).collect();
        let pairs = allocated.dependences(|symbol| ids.contains_key(&symbol)).into_iter();
        let pairs = pairs.filter_map(|(from, to)| Some((*ids.get(&from)?, *ids.get(&to)?)));
        pairs.filter(|(from, to)| from != to).collect()
    }

    /// `slots` keeps those of what was found.
    fn finish(
        mut self,
        allocated: Allocated,
        found: &[(GraphSymbol, FoundSymbol)],
        slots: Option<Box<dyn Send + Sync>>,
    ) {
        let module = Arc::clone(&self.module);
        let _span = tracing::debug_span!("finalize", module = &*module.name).entered();
        if self.has_failed() {
            return self.fail_all_with(&Arc::new(Cause::Abandoned { unit: module.name.to_string() }));
        }
        let dependences = self.dependences(&allocated, found);
        // What code uses lives as long as that: a handle may keep it longer than its symbol is there.
        let mut used: Vec<Box<dyn Send + Sync>> = Vec::new();
        used.extend(module.used.clone().map(|used| Box::new(used) as _));
        for own in self.own.iter_mut().filter(|own| own.responsibility.is_some()) {
            match std::mem::replace(&mut own.extra, Extra::None) {
                Extra::None => {}
                Extra::Variable(variable, image) => {
                    variable.set_image(allocated.address(image));
                    used.push(variable);
                }
                Extra::FirstTier(body) => used.push(Box::new(body)),
            }
        }
        let stubs = allocated.stub_ranges();
        let (fixed, failed) = match allocated.fix_up_what_fits() {
            Ok(fixed) => fixed,
            Err(error) => return self.fail_all(error),
        };
        for (block, error) in failed {
            let cause = Arc::new(Cause::Link(error));
            let is_there = |definition| matches!(definition, Definition::Block { block: there, .. } if there == block);
            for (id, _) in fixed.graph().symbols().filter(|(_, symbol)| is_there(symbol.definition)) {
                self.fail(fixed.graph().tag(id), &cause);
            }
            if self.has_failed() {
                return self.fail_all_with(&cause);
            }
        }
        self.place_frames(fixed.graph(), &stubs);
        let functions = self.linked_functions(fixed.graph());
        let mut code = match fixed.finalize() {
            Ok(code) => code,
            Err(error) => return self.fail_all(error),
        };
        match self.watched.take().map(Watched::emitted) {
            None => {}
            Some(Ok(emitted)) => {
                code.attach(emitted);
            }
            Some(Err(cause)) => return self.fail_all_with(&cause),
        }
        self.register(&mut code, functions);
        used.into_iter().chain(slots).for_each(|used| code.attach(used));
        let code = Arc::new(code);
        let responsibilities = self.own.into_iter().filter_map(|own| own.responsibility);
        // What failed with a dependence has told whoever waited for it.
        let names = |id| name_of(found.iter().map(|(_, found)| found), id);
        _ = self.session.emit(responsibilities, Some(&code), &dependences, &names);
    }
}
