//! Units of materialization, and the responsibility that comes with running one.

use std::any::Any;
use std::cell::RefCell;

use jit_linker::SymbolName;
use jit_linker::memory::FinalizedAllocation;
use smallvec::SmallVec;

use super::arena::Id;
use super::lookup::{LookupHandle, LookupSet};
use super::query::Owner;
use super::readiness::NamesOf;
use super::state::{Effects, Unit, UnitDefinition};
use super::symbol::{SymbolDeclaration, SymbolDef, SymbolId, SymbolState};
use super::{ExecutionSession, FoundSymbol, JitDylib, SearchOrder};
use crate::error::{Cause, Error, LookupError, SymbolFailure};
use crate::sync::{self, Arc};

/// Makes the definitions of some symbols, once, when the first of them is looked up.
///
/// Any program representation can be a unit. It is run on a thread that the dispatcher chooses
/// and ends by consuming its responsibility: [`resolve`](MaterializationResponsibility::resolve)
/// and [`emit`](MaterializationResponsibility::emit), or
/// [`fail`](MaterializationResponsibility::fail).
///
/// # Example
///
/// A unit that makes the value of an expression, whatever the expression refers to: the constants
/// of the others are looked up before its own can be known.
///
/// ```
/// use std::sync::Arc;
///
/// use jit_core::{
///     Cause, ExecutionSession, InPlaceDispatcher, InProcess, JitDylib, MaterializationResponsibility,
///     MaterializationUnit, SymbolDeclaration, SymbolDef, SymbolFlags, SymbolName, SymbolState, UnitDefinition,
/// };
///
/// enum Expr {
///     Number(u64),
///     Name(&'static str),
///     Add(Box<Expr>, Box<Expr>),
/// }
///
/// impl Expr {
///     fn names(&self, names: &mut Vec<&'static str>) {
///         match self {
///             Expr::Number(_) => {}
///             Expr::Name(name) => names.push(name),
///             Expr::Add(left, right) => [left, right].iter().for_each(|side| side.names(names)),
///         }
///     }
///
///     fn value(&self, of: &dyn Fn(&str) -> u64) -> u64 {
///         match self {
///             Expr::Number(number) => *number,
///             Expr::Name(name) => of(name),
///             Expr::Add(left, right) => left.value(of) + right.value(of),
///         }
///     }
/// }
///
/// /// `name = expression`. The "address" of the symbol is its value, as in a linker script.
/// struct Definition {
///     name: SymbolName,
///     expr: Expr,
/// }
///
/// impl MaterializationUnit for Definition {
///     fn materialize(self: Box<Self>, responsibility: MaterializationResponsibility) {
///         let mut names = Vec::new();
///         self.expr.names(&mut names);
///         let wanted: Vec<_> = names.iter().map(|name| responsibility.session().intern(name)).collect();
///         let order = responsibility.link_order();
///         // Nobody waits here: what is left to do runs when the others are known. If one of them
///         // is made of this one, that is an error, which names both.
///         responsibility.lookup_then(&order, wanted, SymbolState::Ready, move |responsibility, found| {
///             let found = match found {
///                 Ok(found) => found,
///                 Err(error) => return responsibility.fail(Cause::Other(error.into())),
///             };
///             let of = |name: &str| {
///                 let found = found.iter().find(|symbol| &*symbol.name == name);
///                 found.map_or(0, |symbol| symbol.definition.address)
///             };
///             let value = self.expr.value(&of);
///             if responsibility.resolve(&[(self.name.clone(), SymbolDef::at(value))]).is_ok() {
///                 let needs: Vec<_> = found.into_iter().map(|symbol| (self.name.clone(), symbol)).collect();
///                 _ = responsibility.emit(&needs);
///             }
///         });
///     }
///
///     fn discard(&mut self, _: &SymbolName) {
///         // It has one definition; without it, the unit is dropped.
///     }
/// }
///
/// fn define(dylib: &JitDylib, name: &str, expr: Expr) -> Result<(), jit_core::Error> {
///     let name = dylib.session().intern(name);
///     let symbol = SymbolDeclaration { name: name.clone(), flags: SymbolFlags::EXPORTED, signature: None };
///     dylib.default_tracker()?.define(vec![UnitDefinition {
///         symbols: [symbol].into_iter().collect(),
///         unit: Box::new(Definition { name, expr }),
///         name: Arc::from("definition"),
///     }])
/// }
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let Some(architecture) = jit_linker::arch::Architecture::host() else { return Ok(()) };
/// let memory = Arc::new(jit_linker::memory::PageManager::new());
/// let executor = Box::new(InProcess::new(architecture, memory));
/// let session = ExecutionSession::new(executor, Box::new(InPlaceDispatcher::new()), None);
/// let main = session.create_dylib("main")?;
/// define(&main, "a", Expr::Add(Box::new(Expr::Name("b")), Box::new(Expr::Number(1))))?;
/// define(&main, "b", Expr::Number(41))?;
/// let found = session.lookup(&main.link_order(), vec![session.intern("a")])?;
/// assert_eq!(found[0].definition.address, 42);
/// // Neither can be known before the other.
/// define(&main, "c", Expr::Name("d"))?;
/// define(&main, "d", Expr::Name("c"))?;
/// let error = session.lookup(&main.link_order(), vec![session.intern("c")]).unwrap_err();
/// assert!(error.to_string().contains("a cycle of waits: 'c' -> 'd' -> 'c'"), "{error}");
/// # Ok(())
/// # }
/// ```
pub trait MaterializationUnit: Send {
    /// Makes the definitions.
    fn materialize(self: Box<Self>, responsibility: MaterializationResponsibility);

    /// Another definition has taken the place of `name`, or it was removed: this unit need not
    /// define it any more. No lock is held; the unit is not run before this has returned.
    fn discard(&mut self, name: &SymbolName);

    /// The symbol, one of the unit's, that stands for running its initializers.
    fn initializer(&self) -> Option<SymbolName> {
        None
    }
}

/// Symbols of a unit, and what all of them need.
#[derive(Clone, Debug, Default)]
pub struct SymbolDependenceGroup {
    /// Symbols of the unit.
    pub symbols: Vec<SymbolName>,
    /// What they need.
    pub dependences: Vec<FoundSymbol>,
}

/// The obligation to define the symbols of one unit.
///
/// It is linear: dropped without a word, it fails its symbols, and every query that waits for
/// them gets an error that says so.
///
/// ```
/// use jit_core::{Cause, MaterializationResponsibility, MaterializationUnit, SymbolDef, SymbolName};
///
/// /// All its symbols are at one address.
/// struct At(u64);
///
/// impl MaterializationUnit for At {
///     fn materialize(self: Box<Self>, responsibility: MaterializationResponsibility) {
///         let symbols = responsibility.symbols();
///         let definitions: Vec<_> =
///             symbols.iter().map(|symbol| (symbol.name.clone(), SymbolDef::at(self.0))).collect();
///         // Who waits for the symbols hears why there are none.
///         match responsibility.resolve(&definitions) {
///             Ok(()) => _ = responsibility.emit(&[]),
///             Err(error) => responsibility.fail(Cause::Other(error.into())),
///         }
///     }
///
///     fn discard(&mut self, _: &SymbolName) {}
/// }
/// ```
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
    pub(crate) fn new(session: ExecutionSession, unit: Id<Unit>, name: Arc<str>) -> Self {
        Self { session, unit, name, settled: false }
    }

    /// The unit as what waits for something.
    pub(crate) fn owner(&self) -> Owner {
        Owner::Continuation(self.unit)
    }

    pub(crate) fn unit(&self) -> Id<Unit> {
        self.unit
    }

    /// The session.
    #[must_use]
    pub fn session(&self) -> &ExecutionSession {
        &self.session
    }

    /// The symbols to define. None once their tracker was removed.
    #[must_use]
    pub fn symbols(&self) -> SmallVec<[OwnSymbol; 1]> {
        let state = self.session.state();
        let Ok(symbols) = state.responsibility(self.unit) else { return SmallVec::new() };
        symbols.iter().filter_map(|id| Some(OwnSymbol { name: state.symbols.get(*id)?.name(), id: *id })).collect()
    }

    /// The names that somebody waits for.
    #[must_use]
    pub fn requested_symbols(&self) -> Vec<SymbolName> {
        self.session.state().requested(self.unit)
    }

    /// The symbol that stands for the initializers, if it is this unit's to define.
    #[must_use]
    pub fn initializer(&self) -> Option<SymbolName> {
        let state = self.session.state();
        Some(state.symbols.get(*state.initializers.get(&self.unit)?)?.name())
    }

    /// The dylib that the symbols belong to.
    ///
    /// # Errors
    ///
    /// When the tracker or the dylib was removed.
    pub fn dylib(&self) -> Result<JitDylib, Error> {
        let state = self.session.state();
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
        names: impl Into<LookupSet>,
        complete: impl FnOnce(Vec<Result<FoundSymbol, SymbolFailure>>) + Send + 'static,
    ) {
        self.session.lookup_owned(&self.link_order(), names.into(), Some(self.owner()), complete);
    }

    /// Looks names up for the unit, which can't go on before they have come to a state: the responsibility goes with the
    /// lookup, and `complete` gets it back with the answer. Blocks nobody.
    ///
    /// As the session knows by it who waits for whom, a unit that would wait for itself is told so, with
    /// [the units on the way](Cause::WaitCycle), where [`ExecutionSession::lookup_async`] would never be answered. As long as
    /// it waits, what somebody waits for in it comes before what nobody does.
    ///
    /// ```
    /// use jit_core::{Cause, MaterializationResponsibility, MaterializationUnit, SymbolDef, SymbolName, SymbolState};
    ///
    /// /// The symbol is 16 bytes after another one.
    /// struct Behind(SymbolName);
    ///
    /// impl MaterializationUnit for Behind {
    ///     fn materialize(self: Box<Self>, responsibility: MaterializationResponsibility) {
    ///         let order = responsibility.link_order();
    ///         responsibility.lookup_then(&order, vec![self.0], SymbolState::Resolved, |responsibility, found| {
    ///             let found = match found {
    ///                 Ok(found) => found,
    ///                 Err(error) => return responsibility.fail(Cause::Other(error.into())),
    ///             };
    ///             let Some(own) = responsibility.symbols().pop() else { return };
    ///             let definition = SymbolDef::at(found[0].definition.address + 16);
    ///             if responsibility.resolve(&[(own.name.clone(), definition)]).is_ok() {
    ///                 _ = responsibility.emit(&[(own.name, found[0].clone())]);
    ///             }
    ///         });
    ///     }
    ///
    ///     fn discard(&mut self, _: &SymbolName) {}
    /// }
    /// ```
    pub fn lookup_then(
        self,
        order: &SearchOrder,
        names: impl Into<LookupSet>,
        required: SymbolState,
        complete: impl FnOnce(Self, Result<Vec<FoundSymbol>, LookupError>) + Send + 'static,
    ) -> LookupHandle {
        let (session, unit) = (self.session.clone(), self.unit);
        session.lookup_holding(order, names.into(), required, unit, move |found| complete(self, found))
    }

    /// Counts `bytes` against the memory limit of the tracker.
    ///
    /// # Errors
    ///
    /// When the limit would be exceeded, or the tracker was removed.
    pub fn charge(&self, bytes: u64) -> Result<(), Error> {
        self.session.state().charge(self.unit, bytes)
    }

    /// Makes what was charged to this unit another one's, of the same tracker.
    #[cfg(feature = "cranelift")]
    pub(crate) fn hand_charge_to(&self, other: &Self) {
        self.session.state().move_charge(self.unit, other.unit);
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
                let unexpected = || match self.dylib() {
                    Ok(_) => Error::UnexpectedDefinition(name.clone()),
                    Err(gone) => gone,
                };
                Ok((symbol.ok_or_else(unexpected)?.id, definition.clone()))
            })
            .collect::<Result<Vec<_>, Error>>()?;
        self.session.resolve(&definitions)
    }

    /// Marks all symbols emitted. Each pair of `dependences` says that the first, one of this
    /// unit's, needs the second.
    ///
    /// # Errors
    ///
    /// When a symbol has no address, or one that it needs has failed, was removed, or is another session's: it has failed
    /// with it then.
    pub fn emit(self, dependences: &[(SymbolName, FoundSymbol)]) -> Result<(), Error> {
        if !dependences.is_empty() && self.session.is_foreign(dependences.iter().map(|(_, needed)| needed)) {
            self.fail(Error::ForeignDylib.into());
            return Err(Error::ForeignDylib);
        }
        let own = self.symbols();
        let pairs: Vec<_> = dependences
            .iter()
            .filter_map(|(name, needed)| Some((own.iter().find(|symbol| symbol.name == *name)?.id, needed.id)))
            .collect();
        let session = self.session.clone();
        session.emit([self], None, &pairs, &|id| name_of(dependences.iter().map(|(_, needed)| needed), id))
    }

    /// As [`emit`](Self::emit), with what is needed said of several symbols at once. Symbols in no
    /// group need nothing.
    ///
    /// # Errors
    ///
    /// As [`emit`](Self::emit).
    pub fn emit_groups(self, groups: &[SymbolDependenceGroup]) -> Result<(), Error> {
        let pairs: Vec<_> = groups
            .iter()
            .flat_map(|group| {
                let needs = move |name: &SymbolName| {
                    let name = name.clone();
                    group.dependences.iter().map(move |needed| (name.clone(), needed.clone()))
                };
                group.symbols.iter().flat_map(needs)
            })
            .collect();
        self.emit(&pairs)
    }

    /// Adds definitions that turned up while the unit ran. They belong to this responsibility and
    /// to its tracker. A weak one that is defined already is left out: what is given are the names
    /// that were accepted.
    ///
    /// # Errors
    ///
    /// When a strong definition meets another one, or the tracker was removed: nothing is added.
    pub fn define_materializing(&self, symbols: Vec<SymbolDeclaration>) -> Result<Vec<SymbolName>, Error> {
        let mut effects = Effects::default();
        let result = self.session.state().define_materializing(self.unit, symbols, &mut effects);
        self.session.perform(effects);
        result
    }

    /// Gives back symbols that have no address yet: another unit will define them, when one of
    /// them is next looked up, or now if somebody waits for it.
    ///
    /// # Errors
    ///
    /// When a symbol is not this unit's or has an address, or the tracker was removed: the
    /// responsibility is as before.
    pub fn replace(&self, definition: UnitDefinition) -> Result<(), Error> {
        let mut effects = Effects::default();
        let result = self.session.state().replace(self.unit, definition, &mut effects);
        self.session.perform(effects);
        result
    }

    /// Splits off the responsibility for some symbols that have no address yet.
    ///
    /// # Errors
    ///
    /// As [`replace`](Self::replace).
    pub fn delegate(&self, names: &[SymbolName]) -> Result<Self, Error> {
        let unit = self.session.state().split(self.unit, names, Arc::clone(&self.name))?;
        Ok(Self::new(self.session.clone(), unit, Arc::clone(&self.name)))
    }

    /// Keeps something as long as the unit's code lives: dropping it undoes what it stands for.
    ///
    /// # Errors
    ///
    /// When the tracker was removed: the resource has been dropped.
    pub fn hold(&self, resource: Box<dyn Send>) -> Result<(), Error> {
        let mut state = self.session.state();
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

sync::thread_local! {
    /// Responsibilities dropped by a panic that `catching_panics` is about to see. `None` outside
    /// of it.
    static ABANDONED: RefCell<Option<Vec<AbandonedUnit>>> = const { RefCell::new(None) };
}

fn abandon(session: &ExecutionSession, unit: Id<Unit>, name: &Arc<str>) -> bool {
    ABANDONED.with(|abandoned| match &mut *abandoned.borrow_mut() {
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
    let outer = ABANDONED.with(|abandoned| abandoned.replace(Some(Vec::new())));
    // What the closure leaves behind is dropped or belongs to a unit that has failed.
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
    fail_abandoned(result.err().map(|payload| panic_message(&*payload)).as_deref());
    ABANDONED.with(|abandoned| abandoned.replace(outer));
}

/// Fails the responsibilities that a panic on this thread has dropped: with what it said, if it got as far as here; else
/// somebody has caught it.
pub(crate) fn fail_abandoned(message: Option<&str>) {
    let units = ABANDONED.with(|abandoned| match &mut *abandoned.borrow_mut() {
        Some(units) if !units.is_empty() => std::mem::take(units),
        _ => Vec::new(),
    });
    // Nearly always.
    if units.is_empty() {
        return;
    }
    for (session, unit, name) in units {
        let name = name.to_string();
        let cause = match message {
            Some(message) => Cause::Panicked { unit: name, message: message.to_owned() },
            None => Cause::Abandoned { unit: name },
        };
        session.fail_unit(unit, &Arc::new(cause));
    }
}

/// Runs user code that must not keep what comes after it from being done: its panic has been told by the hook, and goes no
/// further.
pub(crate) fn contain(work: impl FnOnce()) {
    if let Err(payload) = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)) {
        tracing::error!(message = panic_message(&*payload), "a panic was contained");
    }
}

/// What a panic said.
pub(crate) fn panic_message(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().copied();
    text.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message").to_owned()
}

/// What a symbol was found as.
pub(crate) fn name_of<'a>(mut found: impl Iterator<Item = &'a FoundSymbol>, id: SymbolId) -> Option<SymbolName> {
    Some(found.find(|found| found.id == id)?.name.clone())
}

impl ExecutionSession {
    /// Whether a symbol was found by another session. Names are one's own.
    fn is_foreign<'a>(&self, mut found: impl Iterator<Item = &'a FoundSymbol>) -> bool {
        let state = self.state();
        found.any(|found| state.symbols.get(found.id).is_some_and(|symbol| symbol.name() != found.name))
    }

    /// Emits the symbols of several responsibilities at once. Their code is `code`, shared.
    pub(crate) fn emit(
        &self,
        responsibilities: impl IntoIterator<Item = MaterializationResponsibility>,
        code: Option<&Arc<FinalizedAllocation>>,
        dependences: &[(SymbolId, SymbolId)],
        names: NamesOf<'_>,
    ) -> Result<(), Error> {
        let units = responsibilities.into_iter().map(MaterializationResponsibility::settle);
        let units: SmallVec<[Id<Unit>; 4]> = units.collect();
        let mut effects = Effects::default();
        let result = {
            let mut state = self.state();
            let mut symbols = SmallVec::<[SymbolId; 4]>::with_capacity(units.len());
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
            state.emit(&symbols, dependences, names, &mut effects).and(gone)
        };
        self.perform(effects);
        result
    }

    /// The first symbol of each, or none if its tracker was removed.
    #[cfg(feature = "cranelift")]
    pub(crate) fn first_symbols<'a>(
        &self,
        responsibilities: impl Iterator<Item = &'a MaterializationResponsibility>,
    ) -> SmallVec<[Option<SymbolId>; 4]> {
        let state = self.state();
        responsibilities.map(|own| state.responsibility(own.unit).ok()?.first().copied()).collect()
    }

    pub(crate) fn resolve(&self, definitions: &[(SymbolId, SymbolDef)]) -> Result<(), Error> {
        let mut effects = Effects::default();
        let result = self.state().resolve(definitions, &mut effects);
        self.perform(effects);
        result
    }

    fn fail_unit(&self, unit: Id<Unit>, cause: &Arc<Cause>) {
        let mut effects = Effects::default();
        let mut state = self.state();
        let symbols: SmallVec<[SymbolId; 2]> = state.responsibility(unit).map(SmallVec::from_slice).unwrap_or_default();
        let names: Vec<_> = symbols.iter().filter_map(|id| Some(state.symbols.get(*id)?.name())).collect();
        state.fail(symbols, cause, &mut effects);
        state.uncharge(unit);
        drop(state);
        for name in names {
            contain(|| self.report(&name, cause));
        }
        self.perform(effects);
    }
}
