//! The session: who defines what, who needs what, and how far it has come.

mod arena;
mod dispatch;
mod edges;
mod executor;
mod generator;
mod lookup;
mod query;
mod readiness;
mod scope;
mod state;
mod symbol;
mod table;
mod unit;
#[cfg(feature = "cranelift")]
mod weak;

use std::fmt;

use jit_linker::{SymbolName, SymbolStringPool};
use smallvec::{SmallVec, smallvec};

use crate::error::{Cause, Error, LookupError, SymbolFailure};
use crate::sync::{Arc, Mutex, lock};
use arena::Id;
use dispatch::TaskKind;
pub(crate) use query::{Completion, Outcome};
use scope::ExecutionScopes;
use state::{Dylib, Effects, State, Tracker};
#[cfg(feature = "cranelift")]
pub(crate) use symbol::SymbolId;

pub use dispatch::{InPlaceDispatcher, Task, TaskDispatcher, ThreadPoolDispatcher};
pub use executor::{ExecutorProcessControl, InProcess};
pub use generator::{DefinitionGenerator, ProcessSymbols, SymbolFilter};
pub use lookup::{DylibLookup, SearchOrder};
pub use query::FoundSymbol;
pub use scope::ExecutionScope;
pub use state::UnitDefinition;
pub(crate) use state::UnitSource;
pub use symbol::{SymbolDeclaration, SymbolDef, SymbolFlags, SymbolState};
pub use unit::{MaterializationResponsibility, MaterializationUnit, OwnSymbol};
#[cfg(feature = "cranelift")]
pub(crate) use weak::{WeakDylib, WeakTracker};

/// Told of each symbol whose unit failed, with the cause.
pub type ErrorReporter = Box<dyn Fn(&SymbolName, &Cause) + Send + Sync>;

/// A program that runs while it is being compiled: its dylibs, and everything in them.
///
/// A handle: clones are the same session, which ends when the last one is gone.
#[derive(Clone)]
pub struct ExecutionSession {
    shared: Arc<Shared>,
}

struct Shared {
    names: SymbolStringPool,
    state: Mutex<State>,
    dispatcher: Box<dyn TaskDispatcher>,
    executor: Box<dyn ExecutorProcessControl>,
    reporter: Option<ErrorReporter>,
    scopes: ExecutionScopes,
}

impl ExecutionSession {
    /// A session without dylibs.
    #[must_use]
    pub fn new(
        executor: Box<dyn ExecutorProcessControl>,
        dispatcher: Box<dyn TaskDispatcher>,
        reporter: Option<ErrorReporter>,
    ) -> Self {
        let shared = Shared {
            names: SymbolStringPool::new(),
            state: Mutex::default(),
            dispatcher,
            executor,
            reporter,
            scopes: ExecutionScopes::default(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// The handle of a name.
    #[must_use]
    pub fn intern(&self, name: &str) -> SymbolName {
        self.shared.names.intern(name)
    }

    /// The pool of the session's names.
    #[must_use]
    pub fn names(&self) -> &SymbolStringPool {
        &self.shared.names
    }

    /// The process that runs the code.
    #[must_use]
    pub fn executor(&self) -> &dyn ExecutorProcessControl {
        &*self.shared.executor
    }

    /// Creates a dylib that searches itself.
    ///
    /// # Errors
    ///
    /// When there is one of that name.
    pub fn create_dylib(&self, name: &str) -> Result<JitDylib, Error> {
        let id = lock(&self.shared.state).create_dylib(name)?;
        Ok(JitDylib { session: self.clone(), id })
    }

    /// Looks names up, makes them ready, and waits for them.
    ///
    /// # Errors
    ///
    /// For each symbol that can't be had, the root cause.
    pub fn lookup(&self, order: &SearchOrder, names: Vec<SymbolName>) -> Result<Vec<FoundSymbol>, LookupError> {
        self.lookup_in_state(order, names, SymbolState::Ready)
    }

    /// As [`lookup`](Self::lookup), up to a state: resolved symbols have an address that must not
    /// be used yet.
    ///
    /// # Errors
    ///
    /// As [`lookup`](Self::lookup).
    pub fn lookup_in_state(
        &self,
        order: &SearchOrder,
        names: Vec<SymbolName>,
        required: SymbolState,
    ) -> Result<Vec<FoundSymbol>, LookupError> {
        let answer = Arc::new(Mutex::new(None));
        let (to, session) = (Arc::clone(&answer), self.clone());
        let complete = move |result| {
            *lock(&to) = Some(result);
            session.shared.dispatcher.wake();
        };
        self.lookup_with(order, names, required, Completion::All(Box::new(complete)));
        self.shared.dispatcher.wait(&|| lock(&answer).is_some());
        let result = lock(&answer).take();
        // `wait` returned, so the answer is there.
        result.unwrap_or(Ok(Vec::new()))
    }

    /// As [`lookup`](Self::lookup), without waiting: `complete` is called by whichever thread
    /// ends the last unit.
    pub fn lookup_async(
        &self,
        order: &SearchOrder,
        names: Vec<SymbolName>,
        required: SymbolState,
        complete: impl FnOnce(Result<Vec<FoundSymbol>, LookupError>) + Send + 'static,
    ) {
        self.lookup_with(order, names, required, Completion::All(Box::new(complete)));
    }

    /// Looks names up for a linker: `complete` is called once each has an address or has failed,
    /// in their order.
    pub(crate) fn lookup_resolved(
        &self,
        order: &SearchOrder,
        names: Vec<SymbolName>,
        complete: impl FnOnce(Vec<Result<FoundSymbol, SymbolFailure>>) + Send + 'static,
    ) {
        self.lookup_with(order, names, SymbolState::Resolved, Completion::Each(Box::new(complete)));
    }

    /// Hands a piece of work to the dispatcher.
    pub fn run(&self, work: Box<dyn FnOnce() + Send>) {
        self.shared.dispatcher.dispatch(vec![TaskKind::Run(work).into()]);
    }

    /// The memory that the definition of a symbol lies in, as long as it is ready.
    #[cfg(feature = "cranelift")]
    pub(crate) fn code_of(&self, symbol: SymbolId) -> Option<Option<Arc<jit_linker::memory::FinalizedAllocation>>> {
        let state = lock(&self.shared.state);
        let symbol = state.symbols.get(symbol)?;
        (symbol.state == SymbolState::Ready).then(|| state.units.get(symbol.unit).and_then(|unit| unit.code().cloned()))
    }

    /// The name of the dylib that a symbol belongs to; empty if it is gone.
    #[cfg(feature = "cranelift")]
    pub(crate) fn dylib_name_of(&self, symbol: SymbolId) -> String {
        let state = lock(&self.shared.state);
        let dylib = state.symbols.get(symbol).and_then(|symbol| state.dylib_of(symbol));
        dylib.map(|dylib| dylib.name.clone()).unwrap_or_default()
    }

    /// How far a symbol of a dylib has come, and why it failed if it did. Nothing is materialized.
    #[must_use]
    pub fn symbol_state(&self, dylib: &JitDylib, name: &SymbolName) -> Option<(SymbolState, Option<Arc<Cause>>)> {
        let state = lock(&self.shared.state);
        let symbol = state.symbols.get(state.dylibs.get(dylib.id)?.symbols.get(&state.symbols, name)?)?;
        Some((symbol.state, symbol.failure().cloned()))
    }

    fn report(&self, symbol: &SymbolName, cause: &Cause) {
        tracing::debug!(symbol = symbol.as_str(), %cause, "failed to materialize");
        if let Some(reporter) = &self.shared.reporter {
            reporter(symbol, cause);
        }
    }

    /// Does what a transition asked for. No lock is held.
    fn perform(&self, effects: Effects) {
        let Effects { dispatch, answers, discards, garbage, resources } = effects;
        if dispatch.len() + answers.len() > 0 {
            let units = dispatch.into_iter().map(|(unit, id)| TaskKind::Materialize(self.clone(), unit, id));
            let answers = answers.into_iter().map(TaskKind::Answer);
            self.shared.dispatcher.dispatch(units.chain(answers).map(Task::from).collect());
        }
        drop(discards);
        if garbage.len() + resources.len() > 0 {
            // Code before what it uses: tuples drop in order.
            self.shared.scopes.retire(Box::new((garbage, resources)));
        }
    }

    /// Opens a scope: what is removed until it is dropped stays in memory as long as that.
    pub fn enter(&self) -> ExecutionScope<'_> {
        self.shared.scopes.enter()
    }
}

impl fmt::Debug for ExecutionSession {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ExecutionSession").finish_non_exhaustive()
    }
}

/// A table of symbols with a link order: where those it does not define are searched.
#[derive(Clone, Debug)]
pub struct JitDylib {
    session: ExecutionSession,
    id: Id<Dylib>,
}

/// A symbol whose address is known.
#[derive(Clone, Debug)]
pub struct AbsoluteSymbol {
    /// Its name.
    pub name: SymbolName,
    /// Where it is.
    pub definition: SymbolDef,
    /// How it is defined.
    pub flags: SymbolFlags,
    /// The text of its calling signature, if it is to be checked.
    pub signature: Option<SymbolName>,
}

impl JitDylib {
    /// The session it belongs to.
    #[must_use]
    pub fn session(&self) -> &ExecutionSession {
        &self.session
    }

    /// Its name.
    ///
    /// # Errors
    ///
    /// When it was removed.
    pub fn name(&self) -> Result<String, Error> {
        let state = lock(&self.session.shared.state);
        Ok(state.dylibs.get(self.id).ok_or(Error::DylibGone)?.name.clone())
    }

    /// The order in which it looks for what its units need.
    #[must_use]
    pub fn link_order(&self) -> SearchOrder {
        let state = lock(&self.session.shared.state);
        SearchOrder(state.dylibs.get(self.id).map(|dylib| dylib.link_order.clone()).unwrap_or_default())
    }

    /// The dylibs in the link order.
    pub(crate) fn linked(&self) -> Vec<Self> {
        let order = self.link_order();
        order.0.into_iter().map(|(id, _)| Self { session: self.session.clone(), id }).collect()
    }

    /// Only this dylib, with all that it has.
    pub(crate) fn own_symbols(&self) -> SearchOrder {
        SearchOrder::new().then(self, DylibLookup::All)
    }

    /// Appends a dylib to the link order, if it is not there already.
    ///
    /// # Errors
    ///
    /// When the dylib was removed.
    pub fn add_to_link_order(&self, other: &Self, visibility: DylibLookup) -> Result<(), Error> {
        let mut state = lock(&self.session.shared.state);
        let dylib = state.dylibs.get_mut(self.id).ok_or(Error::DylibGone)?;
        let entry = (other.id, visibility);
        if !dylib.link_order.contains(&entry) {
            dylib.link_order.push(entry);
        }
        Ok(())
    }

    /// Appends a generator.
    ///
    /// # Errors
    ///
    /// When the dylib was removed.
    pub fn add_generator(&self, generator: Arc<dyn DefinitionGenerator>) -> Result<(), Error> {
        let mut state = lock(&self.session.shared.state);
        state.dylibs.get_mut(self.id).ok_or(Error::DylibGone)?.generators.push(generator);
        Ok(())
    }

    /// The tracker of what is defined without one.
    ///
    /// # Errors
    ///
    /// When the dylib was removed.
    pub fn default_tracker(&self) -> Result<ResourceTracker, Error> {
        let id = lock(&self.session.shared.state).dylibs.get(self.id).ok_or(Error::DylibGone)?.default_tracker;
        Ok(ResourceTracker { session: self.session.clone(), id })
    }

    /// A new tracker: what is defined with it can be removed with it.
    ///
    /// # Errors
    ///
    /// When the dylib was removed.
    pub fn create_tracker(&self) -> Result<ResourceTracker, Error> {
        let mut state = lock(&self.session.shared.state);
        if state.dylibs.get(self.id).is_none() {
            return Err(Error::DylibGone);
        }
        let id = state.trackers.insert(Tracker::new(self.id));
        Ok(ResourceTracker { session: self.session.clone(), id })
    }

    /// Starts the units behind those of the names that this dylib has, and waits for none.
    pub fn demand(&self, names: &[SymbolName]) {
        let mut effects = Effects::default();
        let mut state = lock(&self.session.shared.state);
        for name in names {
            if let Some(symbol) = state.find(&[(self.id, DylibLookup::All)], name) {
                state.demand(symbol, &mut effects);
            }
        }
        drop(state);
        self.session.perform(effects);
    }

    /// Defines symbols whose addresses are known. They are ready at once.
    ///
    /// # Errors
    ///
    /// When one is defined already; none is defined then.
    pub fn define_absolute(&self, symbols: Vec<AbsoluteSymbol>) -> Result<(), Error> {
        self.default_tracker()?.define_absolute(symbols)
    }
}

/// What is removed together: units and everything they have made.
#[derive(Clone, Debug)]
pub struct ResourceTracker {
    session: ExecutionSession,
    id: Id<Tracker>,
}

impl ResourceTracker {
    /// The session it belongs to.
    #[must_use]
    pub fn session(&self) -> &ExecutionSession {
        &self.session
    }

    /// Defines units, all or none.
    ///
    /// # Errors
    ///
    /// When a strong definition meets another one in the dylib, or the tracker was removed.
    pub fn define(&self, units: Vec<UnitDefinition>) -> Result<(), Error> {
        self.define_each(units)
    }

    /// As [`define`](Self::define), with units that are made one at a time.
    pub(crate) fn define_each(&self, units: impl UnitSource) -> Result<(), Error> {
        let mut effects = Effects::default();
        let result = lock(&self.session.shared.state).define(self.id, units, &mut effects);
        self.session.perform(effects);
        result
    }

    /// As [`JitDylib::define_absolute`], removable with this tracker.
    ///
    /// # Errors
    ///
    /// As [`JitDylib::define_absolute`].
    pub fn define_absolute(&self, symbols: Vec<AbsoluteSymbol>) -> Result<(), Error> {
        let name: Arc<str> = Arc::from("absolute symbols");
        let units = symbols
            .into_iter()
            .map(|symbol| {
                let AbsoluteSymbol { name: symbol, definition, flags, signature } = symbol;
                let declaration = SymbolDeclaration { name: symbol.clone(), flags, signature };
                let symbols: SmallVec<_> = smallvec![declaration];
                UnitDefinition { symbols, unit: Box::new(Absolute { symbol, definition }), name: Arc::clone(&name) }
            })
            .collect();
        self.define(units)
    }

    /// Removes everything defined with it: symbols, code, and what was registered for it. What
    /// waits for one of the symbols fails. The tracker stays usable.
    ///
    /// # Errors
    ///
    /// When the dylib was removed.
    pub fn remove(&self) -> Result<(), Error> {
        let mut effects = Effects::default();
        let result = lock(&self.session.shared.state).remove_units(self.id, &mut effects);
        self.session.perform(effects);
        result
    }

    /// Keeps something until the tracker is removed.
    ///
    /// # Errors
    ///
    /// When the dylib was removed: the resource has been dropped.
    pub fn hold(&self, resource: Box<dyn Send>) -> Result<(), Error> {
        let mut state = lock(&self.session.shared.state);
        if let Some(tracker) = state.trackers.get_mut(self.id) {
            tracker.resources.push(resource);
            return Ok(());
        }
        drop(state);
        drop(resource);
        Err(Error::DefunctTracker)
    }

    /// Limits the bytes of code and data that may be held with this tracker. What is there
    /// already stays.
    ///
    /// # Errors
    ///
    /// When the dylib was removed.
    pub fn set_memory_limit(&self, bytes: Option<u64>) -> Result<(), Error> {
        let mut state = lock(&self.session.shared.state);
        state.trackers.get_mut(self.id).ok_or(Error::DefunctTracker)?.memory_limit = bytes;
        Ok(())
    }

    /// The bytes of code and data held with this tracker.
    ///
    /// # Errors
    ///
    /// When the dylib was removed.
    pub fn memory_used(&self) -> Result<u64, Error> {
        Ok(lock(&self.session.shared.state).trackers.get(self.id).ok_or(Error::DefunctTracker)?.memory_used)
    }
}

/// A symbol at a fixed address.
struct Absolute {
    symbol: SymbolName,
    definition: SymbolDef,
}

impl MaterializationUnit for Absolute {
    fn materialize(self: Box<Self>, responsibility: MaterializationResponsibility) {
        // An error means that the symbol was removed meanwhile: whoever waited has been told.
        if responsibility.resolve(&[(self.symbol, self.definition)]).is_ok() {
            _ = responsibility.emit(&[]);
        }
    }

    fn discard(&mut self, _: &SymbolName) {}
}
