//! The session: who defines what, who needs what, and how far it has come.

mod alias;
mod arena;
mod claim;
mod context;
mod definition;
mod dispatch;
mod dump;
mod dylib;
mod edges;
mod executor;
mod generator;
mod grown;
mod index;
mod locate;
mod lookup;
mod manager;
mod platform;
mod progress;
mod published;
mod query;
mod readiness;
#[cfg(feature = "cranelift")]
mod ready;
mod removal;
mod scope;
mod search;
mod slots;
mod state;
mod statistics;
mod symbol;
mod symbols;
mod tracker;
mod unit;
mod waits;
mod watch;
mod weak;

use std::fmt;
use std::ops::{Deref, DerefMut};

use jit_linker::{SymbolName, SymbolStringPool};

use crate::error::{Cause, Error};
use crate::sync::{Arc, Mutex, MutexGuard, lock};
use dispatch::TaskKind;
use manager::Managers;
use published::Published;
#[cfg(feature = "cranelift")]
pub(crate) use ready::{ReadyUnit, ReadyUnits};
use scope::ExecutionScopes;
use slots::KeepSlots;
use state::{Discard, Effects, Garbage, RareEffects, State};
pub(crate) use symbol::SymbolId;
pub(crate) use unit::{contain, name_of};
#[cfg(feature = "cranelift")]
pub(crate) use watch::Watch;

pub use alias::{Alias, ReExports};
pub use context::ThreadContext;
pub use dispatch::{InPlaceDispatcher, Priority, Task, TaskDispatcher, ThreadPoolDispatcher};
pub use dump::{DylibDump, LookupDump, SessionDump, SymbolDump, UnitDump};
pub use dylib::{AbsoluteSymbol, JitDylib};
pub use executor::{ExecutorProcessControl, InProcess, LibraryHandle};
pub use generator::{
    DefinitionGenerator, DynamicLibrarySymbols, GeneratorError, Mangling, ProcessSymbols, SymbolFilter,
};
pub use locate::SymbolPlace;
pub use lookup::{DylibLookup, LookupFuture, LookupHandle, LookupKind, LookupSet, SearchOrder, SymbolLookup};
pub use manager::{ResourceKey, ResourceManager};
pub use platform::{Platform, PlatformError};
pub use progress::Progress;
pub use query::FoundSymbol;
pub use removal::RemovalPolicy;
pub use scope::ExecutionScope;
pub use search::LookupState;
pub use state::UnitDefinition;
pub(crate) use state::UnitSource;
#[cfg(feature = "cranelift")]
pub(crate) use state::{Materializer, Parts, UnitEntry};
pub use statistics::SessionStatistics;
pub use symbol::{SymbolDeclaration, SymbolDef, SymbolFlags, SymbolState};
pub use tracker::ResourceTracker;
pub use unit::{MaterializationResponsibility, MaterializationUnit, OwnSymbol, SymbolDependenceGroup};
pub(crate) use weak::WeakDylib;
#[cfg(feature = "cranelift")]
pub(crate) use weak::WeakTracker;

/// Told of each symbol whose unit failed, with the cause.
pub type ErrorReporter = Box<dyn Fn(&SymbolName, &Cause) + Send + Sync>;

/// A program that runs while it is being compiled: its dylibs, and everything in them.
///
/// A handle: clones are the same session, which [ends](Self::end) when the last one is gone.
///
/// ```
/// use std::sync::Arc;
///
/// use jit_core::{AbsoluteSymbol, ExecutionSession, InPlaceDispatcher, InProcess, SymbolDef, SymbolFlags};
/// use jit_linker::arch::Architecture;
/// use jit_linker::memory::PageManager;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let architecture = Architecture::host().ok_or("no code is made for this machine")?;
/// let executor = InProcess::new(architecture, Arc::new(PageManager::new()));
/// let session = ExecutionSession::new(Box::new(executor), Box::new(InPlaceDispatcher::new()), None);
/// let main = session.create_dylib("main")?;
/// main.define_absolute(vec![AbsoluteSymbol {
///     name: session.intern("answer"),
///     definition: SymbolDef::at(0x1000),
///     flags: SymbolFlags::EXPORTED,
///     signature: None,
/// }])?;
/// let found = session.lookup(&main.link_order(), vec![session.intern("answer")])?;
/// assert_eq!(found[0].definition.address, 0x1000);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct ExecutionSession {
    shared: Arc<Shared>,
}

struct Shared {
    /// No other session of the process has or had it.
    number: u64,
    names: SymbolStringPool,
    /// Nothing of the user's is called while it is held.
    state: Mutex<State>,
    /// What lookups read of it without the lock.
    published: Arc<Published>,
    dispatcher: Box<dyn TaskDispatcher>,
    executor: Box<dyn ExecutorProcessControl>,
    reporter: Option<ErrorReporter>,
    platform: Mutex<Option<Arc<dyn Platform>>>,
    managers: Managers,
    scopes: ExecutionScopes,
    slots: Mutex<Option<KeepSlots>>,
}

/// The next session's number.
static NUMBER: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(1);

impl ExecutionSession {
    /// A session without dylibs.
    #[must_use]
    pub fn new(
        executor: Box<dyn ExecutorProcessControl>,
        dispatcher: Box<dyn TaskDispatcher>,
        reporter: Option<ErrorReporter>,
    ) -> Self {
        let state = State::default();
        let published = Arc::clone(state.symbols.published());
        let shared = Shared {
            number: NUMBER.fetch_add(1, std::sync::atomic::Ordering::Relaxed),
            names: SymbolStringPool::new(),
            state: Mutex::new(state),
            published,
            dispatcher,
            executor,
            reporter,
            platform: Mutex::new(None),
            managers: Managers::default(),
            scopes: ExecutionScopes::default(),
            slots: Mutex::new(None),
        };
        Self { shared: Arc::new(shared) }
    }

    /// The handle of a name.
    #[must_use]
    pub fn intern(&self, name: &str) -> SymbolName {
        self.shared.names.intern(name)
    }

    /// The names that the session uses.
    #[must_use]
    pub fn names(&self) -> &SymbolStringPool {
        &self.shared.names
    }

    /// The process that runs the code.
    #[must_use]
    pub fn executor(&self) -> &dyn ExecutorProcessControl {
        &*self.shared.executor
    }

    /// Locks the tables.
    fn state(&self) -> StateGuard<'_> {
        StateGuard(lock(&self.shared.state))
    }

    /// Creates a dylib that searches itself.
    ///
    /// # Errors
    ///
    /// When there is one of that name, the session has ended, or the platform refuses it.
    pub fn create_dylib(&self, name: &str) -> Result<JitDylib, Error> {
        let id = self.state().create_dylib(name)?;
        let dylib = JitDylib { session: self.clone(), id };
        if let Some(platform) = self.platform()
            && let Err(error) = platform.setup_dylib(&dylib)
        {
            _ = dylib.remove();
            return Err(Error::Platform(Arc::from(error)));
        }
        Ok(dylib)
    }

    /// The dylib of that name.
    #[must_use]
    pub fn dylib(&self, name: &str) -> Option<JitDylib> {
        let id = *self.state().dylib_names.get(name)?;
        Some(JitDylib { session: self.clone(), id })
    }

    /// Ends the session: removes all dylibs, the newest first, and tells everybody who waits for
    /// something that [it has ended](Cause::SessionEnded). Code that threads are inside of stays
    /// in memory until they have left. Nothing can be created afterwards.
    ///
    /// The platform is told of each dylib before the first is removed. It hears nothing of a session that only goes with its
    /// last handle: there is none left to show it the dylibs by.
    pub fn end(&self) {
        let dylibs = self.state().begin_end();
        if let Some(platform) = self.platform() {
            let dylibs = dylibs.into_iter().map(|id| JitDylib { session: self.clone(), id });
            for dylib in dylibs.filter(|dylib| dylib.name().is_ok()) {
                // Whoever waits is told all the same.
                unit::contain(|| platform.teardown_dylib(&dylib));
            }
        }
        let mut effects = Effects::default();
        self.state().end(&mut effects);
        self.perform(effects);
    }

    /// Hands a piece of work to the dispatcher.
    pub fn run(&self, work: Box<dyn FnOnce() + Send>) {
        let task = TaskKind::Run(work).with_priority(dispatch::current_priority());
        self.shared.dispatcher.dispatch(vec![task]);
    }

    /// Has parts made that wait to be made together.
    #[cfg(feature = "cranelift")]
    pub(crate) fn make_waiting(&self, parts: Arc<dyn Parts>) {
        let task = TaskKind::Batch(self.clone(), parts).with_priority(dispatch::current_priority());
        self.shared.dispatcher.dispatch(vec![task]);
    }

    /// Drops what takes long to free: on a thread of the dispatcher, if it has several.
    #[cfg(feature = "cranelift")]
    pub(crate) fn free(&self, unused: impl Send + 'static) {
        if self.shared.dispatcher.concurrency() > 1 {
            self.run(Box::new(move || drop(unused)));
        }
    }

    /// The memory that the definition of a symbol lies in, as long as it is ready.
    #[cfg(feature = "cranelift")]
    pub(crate) fn code_of(&self, symbol: SymbolId) -> Option<Option<Arc<jit_linker::memory::FinalizedAllocation>>> {
        let state = self.state();
        let symbol = state.symbols.get(symbol)?;
        let usable = symbol.state() == SymbolState::Ready && symbol.failure().is_none();
        usable.then(|| state.units.get(symbol.unit).and_then(|unit| unit.code().cloned()))
    }

    /// The name of the dylib that a symbol belongs to; empty if it is gone.
    #[cfg(feature = "cranelift")]
    pub(crate) fn dylib_name_of(&self, symbol: SymbolId) -> String {
        self.state().dylib_name(symbol)
    }

    /// How far a symbol of a dylib has come, and why it failed if it did. Nothing is materialized.
    #[must_use]
    pub fn symbol_state(&self, dylib: &JitDylib, name: &SymbolName) -> Option<(SymbolState, Option<Arc<Cause>>)> {
        if dylib.session != *self {
            return None;
        }
        let state = self.state();
        let symbol = state.symbols.get(state.symbols.find(dylib.id, name)?)?;
        Some((symbol.state(), symbol.failure().cloned()))
    }

    /// Fails if a dylib belongs to another session.
    pub(crate) fn check_own(&self, dylib: &JitDylib) -> Result<(), Error> {
        if dylib.session == *self { Ok(()) } else { Err(Error::ForeignDylib) }
    }

    fn report(&self, symbol: &SymbolName, cause: &Cause) {
        tracing::debug!(symbol = symbol.as_str(), %cause, "failed to materialize");
        if let Some(reporter) = &self.shared.reporter {
            reporter(symbol, cause);
        }
    }

    /// Does what a transition asked for. No lock is held.
    fn perform(&self, effects: Effects) {
        if effects.is_empty() && !self.shared.managers.are_there() {
            return;
        }
        let Effects { dispatch, answers, garbage, resources, mut rare } = effects;
        if let Some(rare) = &mut rare {
            rare.unusable.drain(..).for_each(|watch| watch.unusable());
        }
        if garbage.len() + resources.0.len() > 0 {
            // Code before what it uses: tuples drop in order.
            self.shared.scopes.retire((Garbage(garbage), resources));
        }
        if self.shared.managers.are_there() {
            self.notify_managers();
        }
        if let Some(rare) = rare {
            let RareEffects { discards, dropped, generators, unusable: _ } = *rare;
            discards.into_iter().for_each(|discard| self.tell_discarded(discard));
            dropped.into_iter().for_each(|unit| unit::contain(|| drop(unit)));
            generators.iter().for_each(|slot| self.close_generator(slot, || Cause::GeneratorRemoved));
        }
        let mut tasks = Vec::with_capacity(dispatch.len());
        for (id, priority) in dispatch {
            tasks.push(TaskKind::Materialize(self.clone(), id).with_priority(priority));
        }
        for query in answers {
            if query.control.is_threads {
                query.answer();
                continue;
            }
            let priority = query.priority;
            tasks.push(TaskKind::Answer(query).with_priority(priority));
        }
        if !tasks.is_empty() {
            self.shared.dispatcher.dispatch(tasks);
        }
    }

    /// Tells a unit which of its definitions are not wanted, and gives it back.
    fn tell_discarded(&self, discard: Discard) {
        let mut next = Some(discard);
        while let Some(Discard { unit, mut materializer, names }) = next.take() {
            let mut told = None;
            let mut message = None;
            unit::catching_panics(|| {
                dispatch::as_unit(self, unit, || {
                    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                        names.iter().for_each(|name| materializer.discard(name));
                        materializer
                    }));
                    match result {
                        Ok(materializer) => told = Some(materializer),
                        Err(payload) => message = Some(unit::panic_message(&*payload)),
                    }
                });
            });
            let mut effects = Effects::default();
            {
                let mut state = self.state();
                match message {
                    None => next = state.told(unit, told, &mut effects),
                    Some(message) => {
                        let name = state.units.get(unit).map(|unit| unit.name.to_string()).unwrap_or_default();
                        let cause = Cause::Panicked { unit: name, message };
                        state.lose(unit, &Arc::new(cause), &mut effects);
                    }
                }
            }
            self.perform(effects);
        }
    }

    /// Opens a scope: what is removed until it is dropped stays in memory as long as that.
    pub fn enter(&self) -> ExecutionScope<'_> {
        self.shared.scopes.enter()
    }

    /// Whether somebody sees every definition.
    #[cfg(feature = "cranelift")]
    pub(crate) fn has_platform(&self) -> bool {
        lock(&self.shared.platform).is_some()
    }

    fn platform(&self) -> Option<Arc<dyn Platform>> {
        lock(&self.shared.platform).clone()
    }
}

/// The lock on a session's tables. What was changed is published just before it goes.
struct StateGuard<'a>(MutexGuard<'a, State>);

impl Deref for StateGuard<'_> {
    type Target = State;

    fn deref(&self) -> &State {
        &self.0
    }
}

impl DerefMut for StateGuard<'_> {
    fn deref_mut(&mut self) -> &mut State {
        &mut self.0
    }
}

impl Drop for StateGuard<'_> {
    fn drop(&mut self) {
        self.0.symbols.published().complete();
    }
}

impl fmt::Debug for ExecutionSession {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ExecutionSession").finish_non_exhaustive()
    }
}

impl PartialEq for ExecutionSession {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.shared, &other.shared)
    }
}

impl Eq for ExecutionSession {}
