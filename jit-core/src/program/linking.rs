//! One object on its way into memory, and what the process has to be told of it.

use std::ops::Range;

use jit_linker::SymbolName;
use jit_linker::graph::{Definition, LinkGraph, Linkage, SectionId, SectionRole, SymbolId as GraphSymbol, SymbolKind};
use jit_linker::link::{self, Allocated, TlsLocation};
use jit_linker::memory::{FinalizedAllocation, SegmentKind};
use rustc_hash::FxHashMap;

use super::components::Groups;
use super::gathered::Share;
use super::initial_values::Values;
use super::unit::ObjectUnit;
use crate::error::{Cause, SymbolFailure};
use crate::platform::ObjectCode;
use crate::platform::initializers::Functions;
use crate::platform::thread_local::{self, ThreadLocalError, ThreadLocalStorage};
use crate::session::{ExecutionSession, FoundSymbol, MaterializationResponsibility, SymbolDef, SymbolId, name_of};
use crate::sync::{Arc, lock};

/// The name by which the code of a component knows it (Itanium C++ ABI, "DSO object destruction
/// API").
pub(super) const COMPONENT_HANDLE: &str = "__dso_handle";

pub(super) struct Linking {
    session: ExecutionSession,
    responsibility: MaterializationResponsibility,
    registered: Registered,
    defined: FxHashMap<SymbolName, GraphSymbol>,
    /// The symbol that stands for the object.
    whole: SymbolName,
    storage: Option<ThreadLocalStorage>,
    /// What it has of sections that several objects share.
    shares: Vec<Share>,
    /// The thread-local variables that it defines.
    thread_locals: Vec<(SymbolId, GraphSymbol)>,
    /// What it needs, as far as that was found, and what keeps the slots of it and the descriptors made for it.
    found: Vec<(GraphSymbol, FoundSymbol)>,
    kept: Vec<Box<dyn Send + Sync>>,
}

/// What the program knows of a linked object. Dropped, it knows nothing more.
struct Registered {
    groups: Groups,
    number: u64,
    code: Range<u64>,
    /// Addresses by which others know the object's thread-local variables.
    variables: Vec<u64>,
    /// The commons that it has for the component.
    commons: Vec<SymbolName>,
}

impl Drop for Registered {
    fn drop(&mut self) {
        let program = self.groups.program();
        program.initializers.forget(self.groups.component(), self.number, &self.code);
        lock(&program.awaited).end(self.number);
        program.forget_variables(&self.variables);
        program.forget_commons(self.groups.component(), &self.commons);
    }
}

impl Linking {
    pub(super) fn start(unit: ObjectUnit, responsibility: MaterializationResponsibility) {
        let ObjectUnit { mut graph, groups, number, defined, whole } = unit;
        // From here on it looks them up itself.
        lock(&groups.program().needs).remove(&number);
        let commons = groups.program().settle_commons(groups.component(), &mut graph);
        let registered = Registered { groups, number, code: 0..0, variables: Vec::new(), commons };
        let session = responsibility.session().clone();
        let mut this = Self {
            session,
            responsibility,
            registered,
            defined,
            whole,
            storage: None,
            shares: Vec::new(),
            thread_locals: Vec::new(),
            found: Vec::new(),
            kept: Vec::new(),
        };
        // What thread-local variables begin with has to be known when threads are given them.
        let allocated = this.allocate(graph).and_then(|allocated| {
            let externals = externals_of_image(allocated.graph());
            this.await_values(allocated.graph(), &externals)?;
            Ok((allocated, externals))
        });
        match allocated {
            Ok((allocated, externals)) => {
                let known = externals.clone();
                this.look_up(allocated, externals, move |this, allocated| this.give_to_threads(allocated, &known));
            }
            Err(cause) => this.responsibility.fail(cause),
        }
    }

    /// Refuses to wait for addresses that wait for this object's variables.
    fn await_values(&self, graph: &LinkGraph, externals: &[GraphSymbol]) -> Result<(), Cause> {
        let name = |symbol: &GraphSymbol| graph.symbol_name(*symbol).cloned();
        let values = Values {
            variables: self.thread_locals.iter().filter_map(|(_, symbol)| name(symbol)).collect(),
            addresses: externals.iter().filter_map(name).collect(),
        };
        if values.variables.is_empty() || values.addresses.is_empty() {
            return Ok(());
        }
        let Registered { groups, number, .. } = &self.registered;
        lock(&groups.program().awaited).wait(*number, values).map_err(|name| {
            let graph = graph.name();
            Cause::Other(format!("{graph}: the initial value of '{name}' depends on where it is itself").into())
        })
    }

    /// Settles the addresses of what the object defines, and publishes them but for those of thread-local variables.
    fn allocate(&mut self, mut graph: LinkGraph) -> Result<Allocated, Cause> {
        let _span = tracing::debug_span!("link", object = graph.name()).entered();
        self.share_sections(&mut graph)?;
        let prepared = link::prepare(graph)?;
        self.responsibility.charge(prepared.request().iter().map(|segment| segment.size as u64).sum())?;
        let mut allocated = prepared.allocate(self.session.executor().memory())?;
        for share in &self.shares {
            share.parts().for_each(|(section, address)| allocated.place_section(section, address, share.whole()));
            for (symbol, address) in
                share.bounds().filter(|(symbol, _)| allocated.is_external(*symbol)).collect::<Vec<_>>()
            {
                allocated.resolve(symbol, address, None);
            }
        }
        let graph = allocated.graph();
        let mut definitions = Vec::with_capacity(self.defined.len());
        for own in self.responsibility.symbols() {
            match self.defined.get(&own.name) {
                Some(symbol) if is_thread_local(graph.symbol(*symbol).kind) => {
                    self.thread_locals.push((own.id, *symbol));
                }
                Some(symbol) => definitions.push((own.id, SymbolDef::at(allocated.address(*symbol)))),
                // The symbol that stands for the object is nowhere.
                None => definitions.push((own.id, SymbolDef::at(0))),
            }
        }
        self.registered.groups.program().options.services.show(graph);
        self.session.resolve(&definitions)?;
        if let Some(handle) = self.defined.get(&self.session.intern(COMPONENT_HANDLE)) {
            let handle = allocated.address(*handle);
            let groups = &self.registered.groups;
            groups.program().initializers.bind(groups.component(), handle);
        }
        Ok(allocated)
    }

    /// Settles which sections the object shares with others. The objects that have the rest of those are needed.
    fn share_sections(&mut self, graph: &mut LinkGraph) -> Result<(), Cause> {
        let Registered { groups, number, .. } = &self.registered;
        self.shares = groups.program().settle_sections(groups.component(), graph, *number)?;
        for share in &mut self.shares {
            share.open(graph, self.session.executor().memory())?;
            for whole in share.needed.drain(..) {
                graph.external(whole, 0);
            }
        }
        Ok(())
    }

    /// Gives every thread the object's thread-local variables, and publishes where they are; `known` are externals that
    /// have an address. Then looks the others up.
    fn give_to_threads(mut self, mut allocated: Allocated, known: &[GraphSymbol]) {
        let Registered { groups, number, .. } = &self.registered;
        lock(&groups.program().awaited).end(*number);
        if let Err(cause) = self.place_variables(&mut allocated) {
            return self.responsibility.fail(cause);
        }
        let symbols = allocated.graph().symbols();
        let externals = symbols.filter(|(_, symbol)| symbol.definition == Definition::External).map(|(id, _)| id);
        let is_bound = |id: &GraphSymbol| self.shares.iter().any(|share| share.bounds().any(|(bound, _)| bound == *id));
        let externals = externals.filter(|id| !known.contains(id) && !is_bound(id)).collect();
        self.look_up(allocated, externals, Self::finish);
    }

    fn place_variables(&mut self, allocated: &mut Allocated) -> Result<(), Cause> {
        if let Some(image) = allocated.thread_local_image()? {
            let architecture = self.session.executor().architecture();
            let storage = ThreadLocalStorage::new(architecture, &image).map_err(|error| Cause::Other(error.into()))?;
            allocated.set_thread_local_storage(storage.location());
            self.storage = Some(storage);
        }
        let variables = std::mem::take(&mut self.thread_locals);
        let definition = |(id, symbol)| (id, SymbolDef::at(self.variable_address(allocated, symbol)));
        let definitions: Vec<_> = variables.into_iter().map(definition).collect();
        if !definitions.is_empty() {
            self.session.resolve(&definitions)?;
        }
        Ok(())
    }

    /// What the session knows as the address of a thread-local variable: its descriptor's if it has one, else where the
    /// pair is that `__tls_get_addr` takes.
    fn variable_address(&mut self, allocated: &Allocated, symbol: GraphSymbol) -> u64 {
        let address = allocated.address(symbol);
        let (Some(storage), Some(offset)) = (&self.storage, allocated.thread_local_offset(symbol)) else {
            return address;
        };
        let location = storage.location().at(offset);
        let program = self.registered.groups.program();
        let address = match allocated.graph().symbol(symbol).kind {
            SymbolKind::ThreadLocalDescriptor => {
                program.add_described(address, location);
                address
            }
            _ => program.add_variable(location),
        };
        self.registered.variables.push(address);
        address
    }

    /// Finds symbols, and goes on when each has an address.
    fn look_up(
        self,
        mut allocated: Allocated,
        symbols: Vec<GraphSymbol>,
        go_on: impl FnOnce(Self, Allocated) + Send + 'static,
    ) {
        let graph = allocated.graph();
        let name = |symbol: GraphSymbol| Some((symbol, graph.symbol_name(symbol).cloned()?));
        let mut externals: Vec<_> = symbols.into_iter().filter_map(name).collect();
        let order = self.responsibility.link_order();
        let weak = externals.iter().filter(|(id, _)| graph.symbol(*id).linkage == Linkage::Weak);
        let weak = weak.map(|(_, name)| name.clone());
        let absent = self.registered.groups.program().absent(&self.session, &order, weak);
        for (symbol, _) in externals.extract_if(.., |(_, name)| absent.contains(name)) {
            allocated.resolve(symbol, 0, None);
        }
        if externals.is_empty() {
            return go_on(self, allocated);
        }
        let names: Vec<_> = externals.iter().map(|(_, name)| name.clone()).collect();
        let (session, owner) = (self.session.clone(), self.responsibility.owner());
        session.lookup_owned(&order, names.into(), Some(owner), move |answers| {
            if let Some((this, allocated)) = self.externals_known(allocated, &externals, answers) {
                go_on(this, allocated);
            }
        });
    }

    /// Nothing is left if one can't be had.
    fn externals_known(
        mut self,
        mut allocated: Allocated,
        externals: &[(GraphSymbol, SymbolName)],
        answers: Vec<Result<FoundSymbol, SymbolFailure>>,
    ) -> Option<(Self, Allocated)> {
        let mut slots = Vec::new();
        for ((symbol, name), answer) in externals.iter().zip(answers) {
            let linkage = allocated.graph().symbol(*symbol).linkage;
            match answer {
                Ok(answer) => {
                    if let Err(cause) = self.resolve(&mut allocated, *symbol, name, &answer) {
                        self.responsibility.fail(cause);
                        return None;
                    }
                    slots.extend(answer.definition.slot);
                    self.found.push((*symbol, answer));
                }
                // What need not be there is at address 0.
                Err(failure) if linkage == Linkage::Weak && matches!(*failure.cause, Cause::NotFound) => {
                    allocated.resolve(*symbol, 0, None);
                }
                Err(SymbolFailure { name, dylib, cause }) => {
                    match &*cause {
                        Cause::Dependency { .. } => self.responsibility.fail_with(&cause),
                        _ => self.responsibility.fail(Cause::Dependency { name, dylib, cause }),
                    }
                    return None;
                }
            }
        }
        self.kept.extend(self.session.keep_slots(slots));
        Some((self, allocated))
    }

    fn resolve(
        &mut self,
        allocated: &mut Allocated,
        symbol: GraphSymbol,
        name: &SymbolName,
        found: &FoundSymbol,
    ) -> Result<(), Cause> {
        let address = found.definition.address;
        match allocated.graph().symbol(symbol).kind {
            SymbolKind::ThreadLocal => {
                let location = self.variable(name, address).map_err(|error| self.no_variable(&error))?;
                allocated.resolve_thread_local(symbol, location);
            }
            SymbolKind::ThreadLocalDescriptor => {
                let descriptor = self.descriptor(name, address).map_err(|error| self.no_variable(&error))?;
                allocated.resolve(symbol, descriptor, None);
            }
            // Code that was compiled elsewhere may do anything with an address: no slot stands for it.
            _ => {
                let program = self.registered.groups.program();
                let services = &program.options.services;
                let address = lock(&program.low).address(&self.session, services, name, address)?;
                allocated.resolve(symbol, address, None);
            }
        }
        Ok(())
    }

    fn no_variable(&self, error: &ThreadLocalError) -> Cause {
        Cause::Other(format!("{}: {error}", self.responsibility.unit_name()).into())
    }

    /// Where the thread-local variable is that was found at `address`: the program's, or one of the process.
    fn variable(&self, name: &SymbolName, address: u64) -> Result<TlsLocation, ThreadLocalError> {
        if let Some((location, _)) = self.registered.groups.program().variable(address) {
            return Ok(location);
        }
        let executor = self.session.executor();
        // Libraries are elsewhere.
        if executor.memory().range().is_some_and(|memory| memory.contains(&address)) {
            return Err(ThreadLocalError::OfNoObject { name: name.as_str().to_owned() });
        }
        thread_local::variable_of_process(executor.architecture(), name, self.address_here(name))
    }

    /// What Mach-O code takes for the descriptor of the variable that was found at `address`.
    fn descriptor(&mut self, name: &SymbolName, address: u64) -> Result<u64, ThreadLocalError> {
        if let Some((_, true)) = self.registered.groups.program().variable(address) {
            return Ok(address);
        }
        let location = self.variable(name, address)?;
        let descriptor = Box::new(thread_local::of_mach_o(location));
        let address = std::ptr::from_ref(&*descriptor).expose_provenance() as u64;
        self.kept.push(descriptor);
        Ok(address)
    }

    /// The address that a name of the process or of a library has for this thread.
    fn address_here(&self, name: &SymbolName) -> Option<u64> {
        let dylib = self.responsibility.dylib().ok()?;
        let executor = self.session.executor();
        dylib.generators_in_order().iter().find_map(|generator| generator.address_outside(executor, name))
    }

    fn finish(mut self, allocated: Allocated) {
        let _span = tracing::debug_span!("finalize", object = allocated.graph().name()).entered();
        let dependences = self.dependences();
        let mut code = match self.publish(allocated) {
            Ok(code) => code,
            Err(cause) => return self.responsibility.fail(cause),
        };
        self.kept.drain(..).for_each(|kept| code.attach(kept));
        let code = Arc::new(code);
        if let Err(error) = self.responsibility.hold(Box::new((self.registered, self.storage, self.shares))) {
            return self.responsibility.fail(error.into());
        }
        // What failed with a dependence has told whoever waited for it.
        let names = |id| name_of(self.found.iter().map(|(_, found)| found), id);
        _ = self.session.emit(vec![self.responsibility], Some(&code), &dependences, &names);
    }

    /// Who needs whom. An object is linked as a whole, so each of its symbols needs the one that stands
    /// for the object, and that one what the object needs.
    fn dependences(&self) -> Vec<(SymbolId, SymbolId)> {
        let own = self.responsibility.symbols();
        let Some(whole) = own.iter().find(|own| own.name == self.whole).map(|own| own.id) else { return Vec::new() };
        let parts = own.iter().map(|own| own.id).filter(|id| *id != whole).map(|part| (part, whole));
        parts.chain(self.found.iter().map(|(_, needed)| (whole, needed.id))).collect()
    }

    /// Makes the object's memory final, and tells the process what is in it.
    fn publish(&mut self, allocated: Allocated) -> Result<FinalizedAllocation, Cause> {
        let graph = allocated.graph();
        let lists = |sections: Vec<SectionId>| -> Vec<_> {
            sections.into_iter().map(|id| (graph.section(id).role, allocated.section_range(id))).collect()
        };
        let (initializers, finalizers) = (lists(graph.initializers()), lists(graph.finalizers()));
        let resolvers = allocated.resolvers();
        let services = &self.registered.groups.program().options.services;
        let told = ObjectCode::of(services, &self.session, &allocated);

        let mut fixed = allocated.fix_up()?;
        self.shares.iter().for_each(|share| share.write(&mut fixed));
        let mut code = fixed.finalize()?;
        self.registered.code = code.range(SegmentKind::Code);
        let malformed = |error| Cause::Other(format!("{}: {error}", self.responsibility.unit_name()).into());
        told.register(services, &mut code).map_err(malformed)?;
        for resolver in resolvers {
            // SAFETY: the memory is final; the object says that the function can be called to
            // choose another before anything else of it runs.
            unsafe { resolver.settle() };
        }
        // SAFETY: as above, for each of the sections.
        let functions =
            unsafe { Functions { initializers: pointers(&initializers), finalizers: pointers(&finalizers) } };
        if !functions.initializers.is_empty() || !functions.finalizers.is_empty() {
            let Registered { groups, number, .. } = &self.registered;
            groups.program().initializers.linked(groups.component(), *number, functions);
        }
        Ok(code)
    }
}

fn is_thread_local(kind: SymbolKind) -> bool {
    matches!(kind, SymbolKind::ThreadLocal | SymbolKind::ThreadLocalDescriptor)
}

/// The externals whose addresses are in the initial values of thread-local variables.
fn externals_of_image(graph: &LinkGraph) -> Vec<GraphSymbol> {
    let Some(section) = graph.section_with(SectionRole::ThreadLocal) else { return Vec::new() };
    // A thread-local variable has no address that could be in one.
    let is_external = |symbol: &GraphSymbol| {
        let symbol = graph.symbol(*symbol);
        symbol.definition == Definition::External && symbol.kind != SymbolKind::ThreadLocal
    };
    let edges = graph.edges().iter().filter(|edge| graph.block(edge.block).section == Some(section));
    let mut externals: Vec<_> = edges.map(|edge| edge.target).filter(is_external).collect();
    externals.sort_unstable();
    externals.dedup();
    externals
}

/// The functions that sections of initializers or finalizers list, with their priorities, in the
/// order in which they are called.
///
/// # Safety
///
/// The ranges are sections of an object whose memory is final and stays.
unsafe fn pointers(sections: &[(SectionRole, Range<u64>)]) -> Vec<(u32, u64)> {
    let mut pointers = Vec::new();
    for (role, range) in sections {
        let (SectionRole::Initializers { priority, reversed } | SectionRole::Finalizers { priority, reversed }) = *role
        else {
            continue;
        };
        // SAFETY: as the caller says.
        let words = unsafe { bytes(range) }.as_chunks().0.iter().map(|word| u64::from_le_bytes(*word));
        // Lists of older compilers have 0 and -1 at their ends.
        let start = pointers.len();
        pointers.extend(words.filter(|word| !matches!(*word, 0 | u64::MAX)).map(|word| (priority, word)));
        if reversed {
            pointers[start..].reverse();
        }
    }
    pointers
}

/// # Safety
///
/// The range is readable memory that nobody writes, and stays as long as the slice is used.
unsafe fn bytes<'a>(range: &Range<u64>) -> &'a [u8] {
    let start = std::ptr::with_exposed_provenance(range.start as usize);
    // SAFETY: as the caller says.
    unsafe { std::slice::from_raw_parts(start, (range.end - range.start) as usize) }
}
