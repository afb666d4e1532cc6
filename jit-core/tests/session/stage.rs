//! A session whose units the test plays: what is materialized waits until the test takes it.

use std::sync::{Arc, Mutex};

use jit_core::{
    AbsoluteSymbol, Cause, Error, ExecutionSession, FoundSymbol, InPlaceDispatcher, InProcess, JitDylib, LookupSet,
    MaterializationResponsibility, MaterializationUnit, ResourceTracker, SearchOrder, SymbolDeclaration, SymbolDef,
    SymbolFlags, SymbolLookup, SymbolName, SymbolState, TaskDispatcher, UnitDefinition,
};

pub(crate) type Running = Arc<Mutex<Vec<(String, MaterializationResponsibility)>>>;
pub(crate) type Log = Arc<Mutex<Vec<String>>>;
pub(crate) type Answer = Arc<Mutex<Option<Result<Vec<String>, String>>>>;

/// Hands its responsibility to the test.
pub(crate) struct Recorded {
    name: String,
    running: Running,
    log: Log,
    initializer: Option<SymbolName>,
}

impl MaterializationUnit for Recorded {
    fn materialize(self: Box<Self>, responsibility: MaterializationResponsibility) {
        self.running.lock().unwrap().push((self.name.clone(), responsibility));
    }

    fn discard(&mut self, name: &SymbolName) {
        self.log.lock().unwrap().push(format!("{} without {name}", self.name));
    }

    fn initializer(&self) -> Option<SymbolName> {
        self.initializer.clone()
    }
}

impl Drop for Recorded {
    fn drop(&mut self) {
        self.log.lock().unwrap().push(format!("{} dropped", self.name));
    }
}

/// A unit that does what a closure says.
pub(crate) struct Custom<F>(pub(crate) F);

impl<F: FnOnce(MaterializationResponsibility) + Send> MaterializationUnit for Custom<F> {
    fn materialize(self: Box<Self>, responsibility: MaterializationResponsibility) {
        (self.0)(responsibility);
    }

    fn discard(&mut self, _: &SymbolName) {}
}

pub(crate) struct Stage {
    pub(crate) session: ExecutionSession,
    pub(crate) dylib: JitDylib,
    pub(crate) running: Running,
    pub(crate) log: Log,
}

pub(crate) fn session(dispatcher: Box<dyn TaskDispatcher>) -> (ExecutionSession, JitDylib) {
    let architecture = jit_linker::arch::Architecture::host().unwrap();
    let memory = Arc::new(jit_linker::memory::PageManager::new());
    let session = ExecutionSession::new(Box::new(InProcess::new(architecture, memory)), dispatcher, None);
    let dylib = session.create_dylib("main").unwrap();
    (session, dylib)
}

pub(crate) fn declare(session: &ExecutionSession, name: &str, flags: SymbolFlags) -> SymbolDeclaration {
    SymbolDeclaration { name: session.intern(name), flags, signature: None }
}

pub(crate) const SIDE_EFFECTS: SymbolFlags = SymbolFlags { side_effects_only: true, ..SymbolFlags::EXPORTED };
pub(crate) const COMMON: SymbolFlags = SymbolFlags { common: true, ..SymbolFlags::EXPORTED };

impl Stage {
    pub(crate) fn new() -> Self {
        Self::with(Box::new(InPlaceDispatcher::new()))
    }

    pub(crate) fn with(dispatcher: Box<dyn TaskDispatcher>) -> Self {
        let (session, dylib) = session(dispatcher);
        Self { session, dylib, running: Arc::default(), log: Arc::default() }
    }

    pub(crate) fn name(&self, name: &str) -> SymbolName {
        self.session.intern(name)
    }

    pub(crate) fn names(&self, names: &[&str]) -> Vec<SymbolName> {
        names.iter().map(|name| self.name(name)).collect()
    }

    pub(crate) fn order(&self) -> SearchOrder {
        self.dylib.link_order()
    }

    /// A unit of several symbols, called by its first.
    pub(crate) fn unit(&self, symbols: &[(&str, SymbolFlags)]) -> UnitDefinition {
        let unit = Recorded {
            name: symbols[0].0.to_owned(),
            running: Arc::clone(&self.running),
            log: Arc::clone(&self.log),
            initializer: None,
        };
        self.definition(symbols, unit)
    }

    pub(crate) fn unit_with_initializer(&self, symbols: &[(&str, SymbolFlags)], initializer: &str) -> UnitDefinition {
        let unit = Recorded {
            name: symbols[0].0.to_owned(),
            running: Arc::clone(&self.running),
            log: Arc::clone(&self.log),
            initializer: Some(self.name(initializer)),
        };
        self.definition(symbols, unit)
    }

    pub(crate) fn definition(
        &self,
        symbols: &[(&str, SymbolFlags)],
        unit: impl MaterializationUnit + 'static,
    ) -> UnitDefinition {
        let name = format!("unit of {}", symbols[0].0);
        let symbols = symbols.iter().map(|(name, flags)| declare(&self.session, name, *flags)).collect();
        UnitDefinition { symbols, unit: Box::new(unit), name: Arc::from(name) }
    }

    pub(crate) fn define_unit(&self, symbols: &[(&str, SymbolFlags)]) -> Result<(), Error> {
        self.dylib.default_tracker().unwrap().define(vec![self.unit(symbols)])
    }

    /// An exported symbol with a unit of its own.
    pub(crate) fn define(&self, name: &str) {
        self.define_unit(&[(name, SymbolFlags::EXPORTED)]).unwrap();
    }

    pub(crate) fn define_in(&self, tracker: &ResourceTracker, name: &str, flags: SymbolFlags) {
        tracker.define(vec![self.unit(&[(name, flags)])]).unwrap();
    }

    pub(crate) fn absolute(&self, name: &str, address: u64, flags: SymbolFlags) -> AbsoluteSymbol {
        AbsoluteSymbol { name: self.name(name), definition: SymbolDef::at(address), flags, signature: None }
    }

    pub(crate) fn define_absolute(&self, name: &str, address: u64) {
        self.dylib.define_absolute(vec![self.absolute(name, address, SymbolFlags::EXPORTED)]).unwrap();
    }

    /// Starts a lookup, and gives what becomes of it.
    pub(crate) fn lookup(&self, names: &[&str], required: SymbolState) -> Answer {
        self.lookup_in(&self.order(), self.names(names), required)
    }

    /// As `lookup`, of names that need not be there.
    pub(crate) fn lookup_weakly(&self, names: &[&str], required: SymbolState) -> Answer {
        let set: LookupSet = self.names(names).into_iter().map(|name| (name, SymbolLookup::WeaklyReferenced)).collect();
        self.lookup_in(&self.order(), set, required)
    }

    pub(crate) fn lookup_in(&self, order: &SearchOrder, set: impl Into<LookupSet>, required: SymbolState) -> Answer {
        let answer = Answer::default();
        let to = Arc::clone(&answer);
        self.session.lookup_async(order, set, required, move |result| {
            let names = |found: Vec<FoundSymbol>| found.iter().map(|symbol| symbol.name.to_string()).collect();
            let old = to.lock().unwrap().replace(result.map(names).map_err(|error| error.to_string()));
            assert!(old.is_none(), "answered twice");
        });
        answer
    }

    /// What a lookup says that has to be over at once.
    pub(crate) fn address(&self, name: &str) -> Result<u64, String> {
        let found = self.session.lookup(&self.order(), vec![self.name(name)]);
        found.map(|found| found[0].definition.address).map_err(|error| error.to_string())
    }

    pub(crate) fn take(&self, name: &str) -> MaterializationResponsibility {
        let mut running = self.running.lock().unwrap();
        let position = running.iter().position(|(running, _)| running == name);
        running.remove(position.unwrap_or_else(|| panic!("{name} does not run"))).1
    }

    pub(crate) fn is_running(&self, name: &str) -> bool {
        self.running.lock().unwrap().iter().any(|(running, _)| running == name)
    }

    /// Gives all symbols addresses: 0x1000, and so on.
    pub(crate) fn resolve(&self, responsibility: &MaterializationResponsibility) {
        let symbols = responsibility.symbols();
        let definitions: Vec<_> =
            symbols.iter().zip(1..).map(|(own, index)| (own.name.clone(), SymbolDef::at(0x1000 * index))).collect();
        responsibility.resolve(&definitions).unwrap();
    }

    /// Has the unit of `name` define everything.
    pub(crate) fn finish(&self, name: &str) {
        let responsibility = self.take(name);
        self.resolve(&responsibility);
        responsibility.emit(&[]).unwrap();
    }

    pub(crate) fn found(&self, name: &str) -> FoundSymbol {
        let order = self.order();
        self.session.lookup_in_state(&order, vec![self.name(name)], SymbolState::Resolved).unwrap().remove(0)
    }

    pub(crate) fn emit(&self, responsibility: MaterializationResponsibility, needs: &[&str]) -> Result<(), Error> {
        let own = responsibility.symbols()[0].name.clone();
        let dependences: Vec<_> = needs.iter().map(|name| (own.clone(), self.found(name))).collect();
        responsibility.emit(&dependences)
    }

    pub(crate) fn state(&self, name: &str) -> Option<SymbolState> {
        Some(self.session.symbol_state(&self.dylib, &self.name(name))?.0)
    }

    /// Defines `name`, looks it up, and makes it ready with the needs it has.
    pub(crate) fn ready(&self, name: &str, needs: &[&str]) {
        self.ready_in(&self.dylib.default_tracker().unwrap(), name, needs);
    }

    pub(crate) fn ready_in(&self, tracker: &ResourceTracker, name: &str, needs: &[&str]) {
        self.define_in(tracker, name, SymbolFlags::EXPORTED);
        let answer = self.lookup(&[name], SymbolState::Ready);
        let unit = self.take(name);
        self.resolve(&unit);
        self.emit(unit, needs).unwrap();
        assert_eq!(answered(&answer), Some(Ok(vec![name.to_owned()])));
    }
}

pub(crate) fn answered(answer: &Answer) -> Option<Result<Vec<String>, String>> {
    answer.lock().unwrap().clone()
}

pub(crate) fn ok(names: &[&str]) -> Option<Result<Vec<String>, String>> {
    Some(Ok(names.iter().map(|name| (*name).to_owned()).collect()))
}

pub(crate) fn failed(message: &str) -> Option<Result<Vec<String>, String>> {
    Some(Err(message.to_owned()))
}

pub(crate) fn because(message: &str) -> Cause {
    Cause::Other(message.into())
}

/// What was logged since.
pub(crate) fn logged(log: &Log) -> Vec<String> {
    std::mem::take(&mut log.lock().unwrap())
}
