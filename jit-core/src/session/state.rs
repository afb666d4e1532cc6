//! The session's tables and their transitions: an event in, effects out.
//!
//! A transition is committed under the session's lock and runs no user code. What has to happen
//! because of it (units to dispatch, queries to answer, things to drop) is collected in
//! [`Effects`] and done when the lock is gone.

use jit_linker::SymbolName;
use jit_linker::memory::FinalizedAllocation;
use rustc_hash::FxHashSet;
use smallvec::SmallVec;

use super::arena::{Arena, Id};
use super::edges::{self, Edges};
use super::generator::DefinitionGenerator;
use super::lookup::DylibLookup;
use super::query::{Outcome, Query, Waiter, failure};
use super::symbol::{Symbol, SymbolDeclaration, SymbolDef, SymbolFlags, SymbolId, SymbolState};
use super::table::SymbolTable;
use super::unit::MaterializationUnit;
use crate::error::{Cause, DuplicateDefinition, Error};
use crate::sync::Arc;

/// A table of symbols, and where it looks for those it does not define.
pub(crate) struct Dylib {
    pub(crate) name: String,
    pub(crate) symbols: SymbolTable,
    pub(crate) link_order: Vec<(Id<Dylib>, DylibLookup)>,
    pub(crate) generators: Vec<Arc<dyn DefinitionGenerator>>,
    pub(crate) default_tracker: Id<Tracker>,
}

/// What is removed together.
pub(crate) struct Tracker {
    pub(crate) dylib: Id<Dylib>,
    pub(crate) units: Vec<Id<Unit>>,
    pub(crate) memory_limit: Option<u64>,
    pub(crate) memory_used: u64,
    pub(crate) resources: Vec<Box<dyn Send>>,
}

/// A unit: waiting, being materialized, or done and holding what it made.
pub(crate) struct Unit {
    pub(crate) name: Arc<str>,
    pub(crate) tracker: Id<Tracker>,
    /// Its place in the tracker's list.
    pub(crate) position: u32,
    pub(crate) stage: Stage,
    pub(crate) symbols: SmallVec<[SymbolId; 1]>,
    pub(crate) memory_used: u64,
    pub(crate) resources: Option<Box<Resources>>,
}

/// How far a unit has come.
pub(crate) enum Stage {
    /// Nobody has asked for it.
    Waiting(Box<dyn MaterializationUnit>),
    /// It has been dispatched, and has made no code.
    Dispatched,
    /// It has emitted code, which goes with it.
    #[cfg_attr(not(feature = "cranelift"), expect(dead_code, reason = "only handles to functions look at it"))]
    Emitted(Arc<FinalizedAllocation>),
}

/// What a unit holds beside its code; few units hold anything.
#[derive(Default)]
pub(crate) struct Resources(pub(crate) Vec<Box<dyn Send>>);

/// A unit to be defined.
pub struct UnitDefinition {
    /// What it defines.
    pub symbols: SmallVec<[SymbolDeclaration; 1]>,
    /// What makes the definitions.
    pub unit: Box<dyn MaterializationUnit>,
    /// What it is called in errors.
    pub name: Arc<str>,
}

/// Units to be defined. A large module's, listed, would be as large as the tables they go into.
pub(crate) trait UnitSource {
    /// How many units there are.
    fn len(&self) -> usize;

    /// Each name that they define, how, and what its unit is called.
    fn names(&self) -> impl Iterator<Item = (SymbolName, SymbolFlags, &str)>;

    /// The units, in the same order.
    fn into_definitions(self) -> impl Iterator<Item = UnitDefinition>;
}

impl UnitSource for Vec<UnitDefinition> {
    fn len(&self) -> usize {
        self.len()
    }

    fn names(&self) -> impl Iterator<Item = (SymbolName, SymbolFlags, &str)> {
        self.iter().flat_map(|unit| unit.symbols.iter().map(|symbol| (symbol.name.clone(), symbol.flags, &*unit.name)))
    }

    fn into_definitions(self) -> impl Iterator<Item = UnitDefinition> {
        self.into_iter()
    }
}

/// What a transition asks to be done once the lock is gone.
#[derive(Default)]
pub(crate) struct Effects {
    pub(crate) dispatch: Vec<(Box<dyn MaterializationUnit>, Id<Unit>)>,
    pub(crate) answers: Vec<Query>,
    pub(crate) discards: Vec<Box<dyn MaterializationUnit>>,
    pub(crate) garbage: Vec<Unit>,
    pub(crate) resources: Vec<Box<dyn Send>>,
}

#[derive(Default)]
pub(crate) struct State {
    pub(crate) dylibs: Arena<Dylib>,
    pub(crate) symbols: Arena<Symbol>,
    pub(crate) units: Arena<Unit>,
    pub(crate) trackers: Arena<Tracker>,
    pub(crate) queries: Arena<Query>,
    pub(crate) edges: Edges,
    pub(crate) ended: bool,
}

impl State {
    pub(crate) fn create_dylib(&mut self, name: &str) -> Result<Id<Dylib>, Error> {
        if self.dylibs.iter().any(|(_, dylib)| dylib.name == name) {
            return Err(Error::DylibExists(name.to_owned()));
        }
        let id = self.dylibs.next_id();
        let default_tracker = self.trackers.insert(Tracker::new(id));
        Ok(self.dylibs.insert(Dylib {
            name: name.to_owned(),
            symbols: SymbolTable::default(),
            link_order: vec![(id, DylibLookup::All)],
            generators: Vec::new(),
            default_tracker,
        }))
    }

    /// Defines units, all or none. A weak definition that another one makes pointless is told so
    /// to its unit, and not defined.
    pub(crate) fn define(
        &mut self,
        tracker: Id<Tracker>,
        units: impl UnitSource,
        effects: &mut Effects,
    ) -> Result<(), Error> {
        let dylib = self.trackers.get(tracker).ok_or(Error::DefunctTracker)?.dylib;
        let count = units.len();
        self.check_duplicates(dylib, &units)?;
        if let Some(dylib) = self.dylibs.get_mut(dylib) {
            dylib.symbols.reserve(&self.symbols, count);
        }
        if let Some(tracker) = self.trackers.get_mut(tracker) {
            tracker.units.reserve(count);
        }
        for definition in units.into_definitions() {
            self.install(dylib, tracker, definition, effects);
        }
        Ok(())
    }

    fn check_duplicates(&self, dylib: Id<Dylib>, units: &impl UnitSource) -> Result<(), Error> {
        let table = self.dylibs.get(dylib).ok_or(Error::DylibGone)?;
        let mut strong_here: FxHashSet<SymbolName> = FxHashSet::default();
        strong_here.reserve(units.len());
        let mut duplicates = Vec::new();
        for (name, _, unit) in units.names().filter(|(_, flags, _)| !flags.weak) {
            let existing = table.symbols.get(&self.symbols, &name).and_then(|existing| self.symbols.get(existing));
            let earlier = if !strong_here.insert(name.clone()) {
                units.names().find(|(other, ..)| *other == name).map(|(.., unit)| unit.to_string())
            } else {
                existing.and_then(|existing| {
                    let replaceable = existing.flags.weak && existing.state == SymbolState::NeverSearched;
                    (!replaceable).then(|| self.unit_name(existing.unit))
                })
            };
            if let Some(first) = earlier {
                let (dylib, second) = (table.name.clone(), unit.to_string());
                duplicates.push(DuplicateDefinition { name, dylib, first, second });
            }
        }
        if duplicates.is_empty() { Ok(()) } else { Err(Error::DuplicateDefinitions(duplicates)) }
    }

    fn unit_name(&self, unit: Id<Unit>) -> String {
        self.units.get(unit).map(|unit| unit.name.to_string()).unwrap_or_default()
    }

    fn install(&mut self, dylib: Id<Dylib>, tracker: Id<Tracker>, definition: UnitDefinition, effects: &mut Effects) {
        let UnitDefinition { symbols, mut unit, name } = definition;
        let id = self.units.next_id();
        let mut ids = SmallVec::new();
        for declaration in symbols {
            match self.place(dylib, id, declaration, effects) {
                Ok(symbol) => ids.push(symbol),
                Err(name) => unit.discard(&name),
            }
        }
        if ids.is_empty() {
            effects.discards.push(unit);
            return;
        }
        let Some(owner) = self.trackers.get_mut(tracker) else { return };
        let position = owner.units.len() as u32;
        owner.units.push(id);
        self.units.insert(Unit {
            name,
            tracker,
            position,
            stage: Stage::Waiting(unit),
            symbols: ids,
            memory_used: 0,
            resources: None,
        });
    }

    /// Enters a symbol into its dylib's table, or gives its name back if it lost to another.
    fn place(
        &mut self,
        dylib: Id<Dylib>,
        unit: Id<Unit>,
        declaration: SymbolDeclaration,
        effects: &mut Effects,
    ) -> Result<SymbolId, SymbolName> {
        let SymbolDeclaration { name, flags, signature } = declaration;
        let Some(table) = self.dylibs.get(dylib) else { return Err(name) };
        if let Some(existing) = table.symbols.get(&self.symbols, &name) {
            if flags.weak {
                return Err(name);
            }
            self.discard(existing, effects);
        }
        let id = self.symbols.insert(Symbol {
            name: name.clone(),
            signature,
            dylib: dylib.index() as u32,
            unit,
            address: 0,
            slot: 0,
            flags,
            state: SymbolState::NeverSearched,
            needs: edges::NONE,
            needed_by: edges::NONE,
            pending: None,
        });
        if let Some(table) = self.dylibs.get_mut(dylib) {
            table.symbols.insert(&self.symbols, &name, id);
        }
        Ok(id)
    }

    /// Takes a symbol that was never searched for away from its unit.
    fn discard(&mut self, id: SymbolId, effects: &mut Effects) {
        let Some(symbol) = self.symbols.remove(id) else { return };
        if let Some(dylib) = self.dylibs.at_mut(symbol.dylib) {
            dylib.symbols.remove(&symbol.name, id);
        }
        let Some(unit) = self.units.get_mut(symbol.unit) else { return };
        unit.symbols.retain(|other| *other != id);
        if let Stage::Waiting(materializer) = &mut unit.stage {
            materializer.discard(&symbol.name);
        }
        if unit.symbols.is_empty() {
            let unit = symbol.unit;
            effects.garbage.extend(self.take_unit(unit));
        }
    }

    /// Removes a unit from the tables, its symbols aside.
    fn take_unit(&mut self, id: Id<Unit>) -> Option<Unit> {
        let unit = self.units.remove(id)?;
        if let Some(tracker) = self.trackers.get_mut(unit.tracker) {
            tracker.memory_used -= unit.memory_used;
            let position = unit.position as usize;
            if tracker.units.get(position) == Some(&id) {
                tracker.units.swap_remove(position);
                if let Some(moved) = tracker.units.get(position).and_then(|moved| self.units.get_mut(*moved)) {
                    moved.position = unit.position;
                }
            }
        }
        Some(unit)
    }

    /// The definition of `name` that a search in `order` ends at.
    pub(crate) fn find(&self, order: &[(Id<Dylib>, DylibLookup)], name: &SymbolName) -> Option<SymbolId> {
        order.iter().find_map(|(dylib, visibility)| {
            let id = self.dylibs.get(*dylib)?.symbols.get(&self.symbols, name)?;
            let symbol = self.symbols.get(id)?;
            (*visibility == DylibLookup::All || symbol.flags.exported).then_some(id)
        })
    }

    /// The dylib that a symbol belongs to.
    pub(crate) fn dylib_of(&self, symbol: &Symbol) -> Option<&Dylib> {
        self.dylibs.at(symbol.dylib).map(|(_, dylib)| dylib)
    }

    /// Starts a query: what is there is found, what is not is waited for, and the units that
    /// define it are dispatched.
    pub(crate) fn start_query(
        &mut self,
        order: &[(Id<Dylib>, DylibLookup)],
        names: Vec<SymbolName>,
        mut query: Query,
        effects: &mut Effects,
    ) {
        let id = self.queries.next_id();
        let mut waiting = Vec::new();
        for (position, name) in names.into_iter().enumerate() {
            let outcome = match self.find(order, &name) {
                None => {
                    let dylib = order.first().and_then(|(dylib, _)| self.dylibs.get(*dylib));
                    let cause = if self.ended { Cause::SessionEnded } else { Cause::NotFound };
                    Outcome::Failed(failure(name, dylib, Arc::new(cause)))
                }
                Some(symbol) => self.outcome(symbol, query.required),
            };
            if let Outcome::Waiting(symbol) = outcome {
                waiting.push((symbol, Waiter { query: id, position: position as u32, required: query.required }));
            }
            query.push(outcome);
        }
        if query.is_settled() {
            effects.answers.push(query);
            return;
        }
        self.queries.insert(query);
        for (symbol, waiter) in waiting {
            if let Some(symbol) = self.symbols.get_mut(symbol) {
                symbol.pending().waiters.push(waiter);
            }
            self.demand(symbol, effects);
        }
    }

    /// What a query that wants `required` of a symbol gets now.
    fn outcome(&self, id: SymbolId, required: SymbolState) -> Outcome {
        let Some(symbol) = self.symbols.get(id) else { return Outcome::Waiting(id) };
        match symbol.failure() {
            Some(cause) => Outcome::Failed(failure(symbol.name.clone(), self.dylib_of(symbol), Arc::clone(cause))),
            None if symbol.state >= required => Outcome::Found(symbol.found(id)),
            None => Outcome::Waiting(id),
        }
    }

    /// Dispatches the unit of a symbol that was never searched for.
    pub(crate) fn demand(&mut self, id: SymbolId, effects: &mut Effects) {
        let Some(symbol) = self.symbols.get(id) else { return };
        if symbol.state != SymbolState::NeverSearched {
            return;
        }
        let unit_id = symbol.unit;
        let Some(unit) = self.units.get_mut(unit_id) else { return };
        let Some(materializer) = unit.dispatch() else { return };
        for symbol in &unit.symbols {
            if let Some(symbol) = self.symbols.get_mut(*symbol) {
                symbol.state = SymbolState::Materializing;
            }
        }
        effects.dispatch.push((materializer, unit_id));
    }

    /// The symbols that a responsibility for `unit` covers.
    pub(crate) fn responsibility(&self, unit: Id<Unit>) -> Result<&[SymbolId], Error> {
        Ok(&self.units.get(unit).ok_or(Error::DefunctTracker)?.symbols)
    }

    /// Publishes addresses. Nothing is published if one of the symbols is not the units' own.
    pub(crate) fn resolve(
        &mut self,
        definitions: &[(SymbolId, SymbolDef)],
        effects: &mut Effects,
    ) -> Result<(), Error> {
        for (id, _) in definitions {
            let symbol = self.symbols.get(*id).ok_or(Error::DefunctTracker)?;
            if symbol.state != SymbolState::Materializing {
                return Err(Error::UnexpectedDefinition(symbol.name.clone()));
            }
        }
        for (id, definition) in definitions {
            if let Some(symbol) = self.symbols.get_mut(*id)
                && symbol.failure().is_none()
            {
                symbol.address = definition.address;
                symbol.slot = definition.slot.unwrap_or(0);
                symbol.state = SymbolState::Resolved;
                symbol.flags.weak = false;
            }
            self.notify(*id, effects);
        }
        Ok(())
    }

    /// Answers the queries that wait for no more of a symbol than it has reached.
    pub(crate) fn notify(&mut self, id: SymbolId, effects: &mut Effects) {
        let Some(symbol) = self.symbols.get_mut(id) else { return };
        let state = symbol.state;
        let Some(pending) = &mut symbol.pending else { return };
        if pending.waiters.is_empty() {
            return;
        }
        let waiters: SmallVec<[Waiter; 1]> = if pending.failure.is_some() {
            pending.waiters.drain(..).collect()
        } else {
            let (ready, waiting) = pending.waiters.drain(..).partition(|waiter| waiter.required <= state);
            pending.waiters = waiting;
            ready
        };
        for waiter in waiters {
            let outcome = self.outcome(id, waiter.required);
            let Some(query) = self.queries.get_mut(waiter.query) else { continue };
            query.settle(waiter.position, outcome);
            if query.is_settled() {
                effects.answers.extend(self.queries.remove(waiter.query));
            }
        }
    }

    /// Fails symbols, and whatever depends on them and is not ready.
    pub(crate) fn fail(
        &mut self,
        symbols: impl IntoIterator<Item = SymbolId>,
        cause: &Arc<Cause>,
        effects: &mut Effects,
    ) {
        let mut work: Vec<(SymbolId, Arc<Cause>)> =
            symbols.into_iter().map(|symbol| (symbol, Arc::clone(cause))).collect();
        while let Some((id, cause)) = work.pop() {
            let Some(symbol) = self.symbols.get_mut(id) else { continue };
            if symbol.failure().is_some() || symbol.state == SymbolState::Ready {
                continue;
            }
            symbol.pending().failure = Some(Arc::clone(&cause));
            let dependants = symbol.needed_by;
            let cause = self.dependency_cause(id, &cause);
            work.extend(
                self.edges
                    .dependants(dependants)
                    .filter_map(|index| Some((self.symbols.at(index)?.0, Arc::clone(&cause)))),
            );
            self.notify(id, effects);
        }
    }

    /// The cause for what depends on a symbol that failed because of `cause`: always the root, so
    /// that it stays one line however long the chain of dependences.
    pub(crate) fn dependency_cause(&self, id: SymbolId, cause: &Arc<Cause>) -> Arc<Cause> {
        match (&**cause, self.symbols.get(id)) {
            (Cause::Dependency { .. }, _) | (_, None) => Arc::clone(cause),
            (_, Some(symbol)) => Arc::new(Cause::Dependency {
                name: symbol.name.clone(),
                dylib: self.dylib_of(symbol).map(|dylib| dylib.name.clone()).unwrap_or_default(),
                cause: Arc::clone(cause),
            }),
        }
    }

    /// Removes a tracker's units with their symbols; what still waits for one of them fails.
    pub(crate) fn remove_units(&mut self, tracker: Id<Tracker>, effects: &mut Effects) -> Result<(), Error> {
        let tracker = self.trackers.get_mut(tracker).ok_or(Error::DefunctTracker)?;
        let units = std::mem::take(&mut tracker.units);
        effects.resources.append(&mut tracker.resources);
        tracker.memory_used = 0;
        let cause = Arc::new(if self.ended { Cause::SessionEnded } else { Cause::Removed });
        for id in units {
            let Some(unit) = self.units.remove(id) else { continue };
            self.fail(unit.symbols.iter().copied(), &cause, effects);
            for symbol in &unit.symbols {
                self.remove_symbol(*symbol, effects);
            }
            effects.garbage.push(unit);
        }
        Ok(())
    }

    fn remove_symbol(&mut self, id: SymbolId, effects: &mut Effects) {
        let Some(mut symbol) = self.symbols.remove(id) else { return };
        if let Some(dylib) = self.dylibs.at_mut(symbol.dylib) {
            dylib.symbols.remove(&symbol.name, id);
        }
        let symbols = &mut self.symbols;
        self.edges.remove_needs(symbol.needs, |to, head| {
            if let Some(symbol) = symbols.at_mut(to) {
                symbol.needed_by = head;
            }
        });
        self.edges.orphan(symbol.needed_by);
        // A ring's watchers fail or become ready with what they watch; none is left to wake.
        symbol.pending = None;
        _ = effects;
    }

    /// Counts `bytes` against the limit of a unit's tracker.
    pub(crate) fn charge(&mut self, unit: Id<Unit>, bytes: u64) -> Result<(), Error> {
        let unit = self.units.get_mut(unit).ok_or(Error::DefunctTracker)?;
        let tracker = self.trackers.get_mut(unit.tracker).ok_or(Error::DefunctTracker)?;
        let used = tracker.memory_used.saturating_add(bytes);
        if let Some(limit) = tracker.memory_limit
            && used > limit
        {
            return Err(Error::MemoryLimit { needed: bytes, limit });
        }
        tracker.memory_used = used;
        unit.memory_used += bytes;
        Ok(())
    }
}

impl Unit {
    /// Takes out what makes the definitions, the first time.
    fn dispatch(&mut self) -> Option<Box<dyn MaterializationUnit>> {
        if !matches!(self.stage, Stage::Waiting(_)) {
            return None;
        }
        match std::mem::replace(&mut self.stage, Stage::Dispatched) {
            Stage::Waiting(unit) => Some(unit),
            Stage::Dispatched | Stage::Emitted(_) => None,
        }
    }

    /// The memory that it was emitted into.
    #[cfg(feature = "cranelift")]
    pub(crate) fn code(&self) -> Option<&Arc<FinalizedAllocation>> {
        if let Stage::Emitted(code) = &self.stage { Some(code) } else { None }
    }

    pub(crate) fn set_code(&mut self, code: Option<Arc<FinalizedAllocation>>) {
        self.stage = code.map_or(Stage::Dispatched, Stage::Emitted);
    }
}

impl Tracker {
    pub(crate) fn new(dylib: Id<Dylib>) -> Self {
        Self { dylib, units: Vec::new(), memory_limit: None, memory_used: 0, resources: Vec::new() }
    }
}
