//! Units of materialization, and the responsibility that comes with running one.

use std::any::Any;
use std::cell::RefCell;

use jit_linker::SymbolName;
use jit_linker::memory::FinalizedAllocation;
use smallvec::SmallVec;

use super::arena::Id;
use super::state::{Effects, Unit};
use super::symbol::{SymbolDef, SymbolId};
use super::{ExecutionSession, FoundSymbol, JitDylib, SearchOrder};
use crate::error::{Cause, Error, SymbolFailure};
use crate::sync::{Arc, lock};

/// Makes the definitions of some symbols, once, when the first of them is looked up.
///
/// Any program representation can be a unit. It is run on a thread that the dispatcher chooses
/// and ends by consuming its responsibility: [`resolve`](MaterializationResponsibility::resolve)
/// and [`emit`](MaterializationResponsibility::emit), or
/// [`fail`](MaterializationResponsibility::fail).
pub trait MaterializationUnit: Send {
    /// Makes the definitions.
    fn materialize(self: Box<Self>, responsibility: MaterializationResponsibility);

    /// Another definition has taken the place of `name`, which this unit need not define any
    /// more. Called with the session locked: it must not call into it.
    fn discard(&mut self, name: &SymbolName);
}

/// The obligation to define the symbols of one unit.
///
/// It is linear: dropped without a word, it fails its symbols, and every query that waits for
/// them gets an error that says so.
#[must_use = "dropped, it fails its symbols"]
pub struct MaterializationResponsibility {
    session: ExecutionSession,
    unit: Id<Unit>,
    name: Arc<str>,
    settled: bool,
}

/// A symbol of a responsibility.
#[derive(Clone, Debug)]
pub struct OwnSymbol {
    /// Its name.
    pub name: SymbolName,
    pub(crate) id: SymbolId,
}

impl MaterializationResponsibility {
    pub(crate) fn new(session: ExecutionSession, unit: Id<Unit>) -> Option<Self> {
        let name = Arc::clone(&lock(&session.shared.state).units.get(unit)?.name);
        Some(Self { session, unit, name, settled: false })
    }

    /// The session.
    #[must_use]
    pub fn session(&self) -> &ExecutionSession {
        &self.session
    }

    /// The symbols to define. None once their tracker was removed.
    #[must_use]
    pub fn symbols(&self) -> SmallVec<[OwnSymbol; 1]> {
        let state = lock(&self.session.shared.state);
        let Ok(symbols) = state.responsibility(self.unit) else { return SmallVec::new() };
        symbols
            .iter()
            .filter_map(|id| Some(OwnSymbol { name: state.symbols.get(*id)?.name.clone(), id: *id }))
            .collect()
    }

    /// The dylib that the symbols belong to.
    ///
    /// # Errors
    ///
    /// When the tracker or the dylib was removed.
    pub fn dylib(&self) -> Result<JitDylib, Error> {
        let state = lock(&self.session.shared.state);
        let unit = state.units.get(self.unit).ok_or(Error::DefunctTracker)?;
        let tracker = state.trackers.get(unit.tracker).ok_or(Error::DefunctTracker)?;
        Ok(JitDylib { session: self.session.clone(), id: tracker.dylib })
    }

    /// Where the unit's dylib looks for what it does not define. Empty once it was removed.
    #[must_use]
    pub fn link_order(&self) -> SearchOrder {
        self.dylib().map(|dylib| dylib.link_order()).unwrap_or_default()
    }

    /// Looks up names in the link order of the unit's dylib, and calls `complete` once each has
    /// an address or has failed, in the order of the names. Blocks nobody.
    pub fn lookup_externals(
        &self,
        names: Vec<SymbolName>,
        complete: impl FnOnce(Vec<Result<FoundSymbol, SymbolFailure>>) + Send + 'static,
    ) {
        self.session.lookup_resolved(&self.link_order(), names, complete);
    }

    /// Counts `bytes` against the memory limit of the tracker.
    ///
    /// # Errors
    ///
    /// When the limit would be exceeded, or the tracker was removed.
    pub fn charge(&self, bytes: u64) -> Result<(), Error> {
        lock(&self.session.shared.state).charge(self.unit, bytes)
    }

    /// Publishes addresses of some of the symbols.
    ///
    /// # Errors
    ///
    /// When a name is not this unit's, has an address already, or the tracker was removed.
    /// Nothing is published then.
    pub fn resolve(&self, definitions: &[(SymbolName, SymbolDef)]) -> Result<(), Error> {
        let own = self.symbols();
        let definitions = definitions
            .iter()
            .map(|(name, definition)| {
                let symbol = own.iter().find(|symbol| symbol.name == *name);
                let symbol = symbol.ok_or_else(|| Error::UnexpectedDefinition(name.clone()))?;
                Ok((symbol.id, definition.clone()))
            })
            .collect::<Result<Vec<_>, Error>>()?;
        self.session.resolve(&definitions)
    }

    /// Marks all symbols emitted. Each pair of `dependences` says that the first, one of this
    /// unit's, needs the second.
    ///
    /// # Errors
    ///
    /// When a symbol has no address, or one that it needs has failed: it has failed with it then.
    pub fn emit(self, dependences: &[(SymbolName, FoundSymbol)]) -> Result<(), Error> {
        let own = self.symbols();
        let dependences: Vec<_> = dependences
            .iter()
            .filter_map(|(name, needed)| Some((own.iter().find(|symbol| symbol.name == *name)?.id, needed.id)))
            .collect();
        let session = self.session.clone();
        session.emit(vec![self], None, &dependences)
    }

    /// Keeps something as long as the unit's code lives: dropping it undoes what it stands for.
    ///
    /// # Errors
    ///
    /// When the tracker was removed: the resource has been dropped.
    pub fn hold(&self, resource: Box<dyn Send>) -> Result<(), Error> {
        let mut state = lock(&self.session.shared.state);
        match state.units.get_mut(self.unit) {
            Some(unit) => {
                unit.resources.get_or_insert_default().0.push(resource);
                Ok(())
            }
            None => {
                drop(state);
                drop(resource);
                Err(Error::DefunctTracker)
            }
        }
    }

    /// Fails all symbols, and whatever depends on them.
    pub fn fail(self, cause: Cause) {
        self.fail_with(&Arc::new(cause));
    }

    pub(crate) fn fail_with(mut self, cause: &Arc<Cause>) {
        self.settled = true;
        self.session.fail_unit(self.unit, cause);
    }

    pub(crate) fn settle(mut self) -> Id<Unit> {
        self.settled = true;
        self.unit
    }

    /// What the unit is called in errors.
    #[must_use]
    pub fn unit_name(&self) -> &str {
        &self.name
    }
}

impl Drop for MaterializationResponsibility {
    fn drop(&mut self) {
        if self.settled {
            return;
        }
        if std::thread::panicking() && abandon(&self.session, self.unit, &self.name) {
            return;
        }
        let cause = Cause::Abandoned { unit: self.name.to_string() };
        self.session.fail_unit(self.unit, &Arc::new(cause));
    }
}

type AbandonedUnit = (ExecutionSession, Id<Unit>, Arc<str>);

thread_local! {
    /// Responsibilities dropped by a panic that `catching_panics` is about to see. `None` outside
    /// of it.
    static ABANDONED: RefCell<Option<Vec<AbandonedUnit>>> = const { RefCell::new(None) };
}

fn abandon(session: &ExecutionSession, unit: Id<Unit>, name: &Arc<str>) -> bool {
    ABANDONED.with_borrow_mut(|abandoned| match abandoned {
        Some(units) => {
            units.push((session.clone(), unit, Arc::clone(name)));
            true
        }
        None => false,
    })
}

/// Runs user code. A panic fails the responsibilities it dropped, with what it said, and goes no
/// further.
pub(crate) fn catching_panics(work: impl FnOnce()) {
    let outer = ABANDONED.replace(Some(Vec::new()));
    // What the closure leaves behind is dropped or belongs to a unit that has failed.
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
    let abandoned = ABANDONED.replace(outer);
    let Err(payload) = result else { return };
    let message = message(&*payload);
    for (session, unit, name) in abandoned.into_iter().flatten() {
        let cause = Cause::Panicked { unit: name.to_string(), message: message.clone() };
        session.fail_unit(unit, &Arc::new(cause));
    }
}

fn message(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().copied();
    text.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message").to_owned()
}

impl ExecutionSession {
    /// Emits the symbols of several responsibilities at once. Their code is `code`, shared.
    pub(crate) fn emit(
        &self,
        responsibilities: Vec<MaterializationResponsibility>,
        code: Option<&Arc<FinalizedAllocation>>,
        dependences: &[(SymbolId, SymbolId)],
    ) -> Result<(), Error> {
        let units: Vec<_> = responsibilities.into_iter().map(MaterializationResponsibility::settle).collect();
        let mut effects = Effects::default();
        let result = {
            let mut state = lock(&self.shared.state);
            let mut symbols = Vec::with_capacity(units.len());
            let mut gone = Ok(());
            for unit in units {
                match state.units.get_mut(unit) {
                    Some(unit) => {
                        unit.set_code(code.cloned());
                        symbols.extend_from_slice(&unit.symbols);
                    }
                    None => gone = Err(Error::DefunctTracker),
                }
            }
            state.emit(&symbols, dependences, &mut effects).and(gone)
        };
        self.perform(effects);
        result
    }

    pub(crate) fn resolve(&self, definitions: &[(SymbolId, SymbolDef)]) -> Result<(), Error> {
        let mut effects = Effects::default();
        let result = lock(&self.shared.state).resolve(definitions, &mut effects);
        self.perform(effects);
        result
    }

    fn fail_unit(&self, unit: Id<Unit>, cause: &Arc<Cause>) {
        let mut effects = Effects::default();
        let mut state = lock(&self.shared.state);
        let symbols: SmallVec<[SymbolId; 2]> = state.responsibility(unit).map(SmallVec::from_slice).unwrap_or_default();
        let names: Vec<_> = symbols.iter().filter_map(|id| Some(state.symbols.get(*id)?.name.clone())).collect();
        state.fail(symbols, cause, &mut effects);
        drop(state);
        for name in names {
            self.report(&name, cause);
        }
        self.perform(effects);
    }
}
