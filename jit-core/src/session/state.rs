//! The session's tables and their transitions: an event in, effects out.
//!
//! A transition is committed under the session's lock and runs no user code. What has to happen
//! because of it (units to dispatch, queries to answer, things to drop) is collected in
//! [`Effects`] and done when the lock is gone.

use jit_linker::SymbolName;
use jit_linker::memory::FinalizedAllocation;
use rustc_hash::{FxHashMap, FxHashSet};
use smallvec::SmallVec;

use super::ExecutionSession;
use super::arena::{Arena, Id};
use super::dispatch::Priority;
use super::edges::{self, Edges};
use super::lookup::{DylibLookup, LinkOrder, SymbolLookup};
use super::manager::Notification;
use super::published::MAX_DYLIBS;
use super::query::{self, Control, Outcome, Query, Waiter, failure};
use super::search::GeneratorSlot;
use super::symbol::{SymbolDeclaration, SymbolDef, SymbolFlags, SymbolId, SymbolState};
use super::symbols::{SymbolRef, Symbols};
use super::unit::{self, MaterializationResponsibility, MaterializationUnit};
use super::watch::Watches;
use crate::error::{Cause, Error, SymbolFailure};
use crate::sync::Arc;

/// A table of symbols, and where it looks for those it does not define.
pub(crate) struct Dylib {
    pub(crate) name: String,
    pub(crate) link_order: LinkOrder,
    pub(crate) generators: Vec<Arc<GeneratorSlot>>,
    pub(crate) default_tracker: Id<Tracker>,
    /// All of them, the default one included.
    pub(crate) trackers: FxHashSet<Id<Tracker>>,
}

/// Units of a tracker: often it is one.
pub(crate) type UnitList = SmallVec<[Id<Unit>; 2]>;

/// What is removed together.
pub(crate) struct Tracker {
    pub(crate) dylib: Id<Dylib>,
    pub(crate) units: UnitList,
    pub(crate) memory_limit: Option<u64>,
    /// What its units hold, and those trackers' that it counts.
    pub(crate) memory_used: u64,
    /// The tracker whose limit is for what this one holds as well.
    pub(crate) counted_by: Option<Id<Tracker>>,
    /// The trackers that are counted by this one.
    pub(crate) counted: FxHashSet<Id<Tracker>>,
    pub(crate) resources: Resources,
}

impl Tracker {
    /// Whether nothing would be lost with it.
    pub(crate) fn has_nothing(&self) -> bool {
        let Self { dylib: _, units, memory_limit: _, memory_used, counted_by, counted, resources } = self;
        let counts = counted_by.is_some() || !counted.is_empty();
        units.is_empty() && *memory_used == 0 && !counts && resources.0.is_empty()
    }
}

/// A unit: waiting, being materialized, or done and holding what it made.
pub(crate) struct Unit {
    pub(crate) name: Arc<str>,
    pub(crate) tracker: Id<Tracker>,
    /// Its place in the tracker's list.
    pub(crate) position: u32,
    pub(crate) stage: Stage,
    /// Somebody waits for it, or for what waits for it.
    pub(crate) awaited: bool,
    pub(crate) content: Content,
    pub(crate) symbols: SmallVec<[SymbolId; 1]>,
    pub(crate) memory_used: u64,
    pub(crate) resources: Option<Box<Resources>>,
}

/// How far a unit has come.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Nobody needs it.
    Waiting,
    /// There is a task that will run it.
    Queued,
    /// There is a task that will run it, and somebody waits for it.
    Awaited,
    /// It has been run.
    Running,
}

/// What a unit is made of.
pub(crate) enum Content {
    /// What makes the definitions has been run, or is being told what was discarded.
    Nothing,
    /// What makes the definitions.
    Materializer(Materializer),
    /// The code that was emitted, which goes with it.
    Code(Arc<FinalizedAllocation>),
}

/// What makes a unit's definitions.
pub(crate) enum Materializer {
    Unit(Box<dyn MaterializationUnit>),
    /// One of several, by its number. It has nothing of its own on the heap, which one thread would take and another give
    /// back for each unit of a module.
    #[cfg_attr(not(feature = "cranelift"), expect(dead_code, reason = "modules are what has parts"))]
    Part(Arc<dyn Parts>, u32),
}

/// What makes the definitions of many units.
pub(crate) trait Parts: Send + Sync {
    /// As [`MaterializationUnit::materialize`].
    fn materialize(self: Arc<Self>, part: u32, responsibility: MaterializationResponsibility);

    /// As [`MaterializationUnit::discard`].
    fn discard(&self, part: u32);

    /// Makes some that wait for others to be made with them.
    fn make_waiting(self: Arc<Self>, session: &ExecutionSession);
}

impl Materializer {
    pub(crate) fn materialize(self, responsibility: MaterializationResponsibility) {
        match self {
            Self::Unit(unit) => unit.materialize(responsibility),
            Self::Part(parts, part) => parts.materialize(part, responsibility),
        }
    }

    pub(crate) fn discard(&mut self, name: &SymbolName) {
        match self {
            Self::Unit(unit) => unit.discard(name),
            Self::Part(parts, part) => parts.discard(*part),
        }
    }
}

/// What is held beside code; few units hold anything. What the users' panic with when they are dropped goes no further.
#[derive(Default)]
pub(crate) struct Resources(pub(crate) Vec<Box<dyn Send>>);

impl Resources {
    pub(crate) fn append(&mut self, other: &mut Self) {
        self.0.append(&mut other.0);
    }
}

impl Drop for Resources {
    fn drop(&mut self) {
        self.0.drain(..).for_each(|resource| unit::contain(|| drop(resource)));
    }
}

/// Units that were removed, to be dropped when nobody is inside their code.
pub(crate) struct Garbage(pub(crate) SmallVec<[Unit; 1]>);

impl Drop for Garbage {
    fn drop(&mut self) {
        for materializer in self.0.iter_mut().filter_map(Unit::take_materializer) {
            unit::contain(|| drop(materializer));
        }
    }
}

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

    /// The units that have an initializer, by their position, ascending. User code may run.
    fn initializers(&self) -> Vec<(usize, SymbolName)> {
        Vec::new()
    }

    /// The units, in the same order.
    fn into_definitions(self) -> impl Iterator<Item = UnitDefinition>;

    /// The same, as they are entered.
    fn into_entries(self) -> impl Iterator<Item = UnitEntry>
    where
        Self: Sized,
    {
        self.into_definitions().map(UnitEntry::from)
    }
}

/// A unit to be entered.
pub(crate) struct UnitEntry {
    pub(crate) symbols: SmallVec<[SymbolDeclaration; 1]>,
    pub(crate) materializer: Materializer,
    pub(crate) name: Arc<str>,
}

impl From<UnitDefinition> for UnitEntry {
    fn from(UnitDefinition { symbols, unit, name }: UnitDefinition) -> Self {
        Self { symbols, materializer: Materializer::Unit(unit), name }
    }
}

impl UnitSource for Vec<UnitDefinition> {
    fn len(&self) -> usize {
        self.len()
    }

    fn names(&self) -> impl Iterator<Item = (SymbolName, SymbolFlags, &str)> {
        self.iter().flat_map(|unit| unit.symbols.iter().map(|symbol| (symbol.name.clone(), symbol.flags, &*unit.name)))
    }

    fn initializers(&self) -> Vec<(usize, SymbolName)> {
        self.iter().enumerate().filter_map(|(index, unit)| Some((index, unit.unit.initializer()?))).collect()
    }

    fn into_definitions(self) -> impl Iterator<Item = UnitDefinition> {
        self.into_iter()
    }
}

/// A unit that has to be told which of its definitions are not wanted.
pub(crate) struct Discard {
    pub(crate) unit: Id<Unit>,
    pub(crate) materializer: Materializer,
    pub(crate) names: SmallVec<[SymbolName; 1]>,
}

/// A unit that is being told what was discarded, outside the lock.
#[derive(Default)]
pub(crate) struct Telling {
    /// What was discarded since.
    pub(crate) names: SmallVec<[SymbolName; 1]>,
    /// A task came to run it.
    pub(crate) missed: Option<Priority>,
}

/// What a transition asks to be done once the lock is gone.
#[derive(Default)]
pub(crate) struct Effects {
    pub(crate) dispatch: SmallVec<[(Id<Unit>, Priority); 1]>,
    pub(crate) answers: SmallVec<[Query; 1]>,
    pub(crate) garbage: SmallVec<[Unit; 1]>,
    /// What was held, and the errors of removed symbols, which are the user's too.
    pub(crate) resources: Resources,
    /// Apart, because the effects of every transition are moved, looked at and dropped.
    pub(crate) rare: Option<Box<RareEffects>>,
}

/// What few transitions ask for.
#[derive(Default)]
pub(crate) struct RareEffects {
    pub(crate) discards: Vec<Discard>,
    pub(crate) dropped: Vec<Materializer>,
    /// Watches of code that must not be called any more.
    pub(crate) unusable: Watches,
    pub(crate) generators: Vec<Arc<GeneratorSlot>>,
}

impl Effects {
    /// Whether there is nothing to do.
    pub(crate) fn is_empty(&self) -> bool {
        let Self { dispatch, answers, garbage, resources, rare } = self;
        dispatch.len() + answers.len() + garbage.len() + resources.0.len() == 0 && rare.is_none()
    }

    pub(crate) fn rare(&mut self) -> &mut RareEffects {
        self.rare.get_or_insert_default()
    }
}

#[derive(Default)]
pub(crate) struct State {
    pub(crate) dylibs: Arena<Dylib>,
    pub(crate) dylib_names: FxHashMap<String, Id<Dylib>>,
    pub(crate) symbols: Symbols,
    pub(crate) units: Arena<Unit>,
    pub(crate) trackers: Arena<Tracker>,
    pub(crate) queries: Arena<Query>,
    pub(crate) edges: Edges,
    pub(crate) telling: FxHashMap<Id<Unit>, Telling>,
    /// The symbol that stands for the initializers of a unit.
    pub(crate) initializers: FxHashMap<Id<Unit>, SymbolId>,
    /// What each alias that is not resolved waits for, and one further along that way.
    pub(crate) aliases: FxHashMap<SymbolId, (SymbolId, SymbolId)>,
    /// The queries that a unit waits for, and others that its code has started.
    pub(crate) waits: FxHashMap<Id<Unit>, SmallVec<[Id<Query>; 1]>>,
    /// Queries before whose answer a unit does nothing.
    pub(crate) blocked: usize,
    /// Those of them that no thread waits for, for what is to be ready.
    pub(crate) held: usize,
    /// Queries that generators wait for.
    pub(crate) inside: usize,
    pub(crate) watches: FxHashMap<SymbolId, Watches>,
    pub(crate) managed: bool,
    pub(crate) notifications: Vec<Notification>,
    /// No dylib is created any more.
    pub(crate) ending: bool,
    pub(crate) ended: bool,
}

impl State {
    pub(crate) fn create_dylib(&mut self, name: &str) -> Result<Id<Dylib>, Error> {
        if self.ending {
            return Err(Error::SessionEnded);
        }
        if self.dylib_names.contains_key(name) {
            return Err(Error::DylibExists(name.to_owned()));
        }
        let id = self.dylibs.next_id();
        if id.index() >= MAX_DYLIBS {
            return Err(Error::TooManyDylibs);
        }
        let default_tracker = self.trackers.insert(Tracker::new(id));
        self.symbols.published().add_dylib(id);
        self.dylib_names.insert(name.to_owned(), id);
        Ok(self.dylibs.insert(Dylib {
            name: name.to_owned(),
            link_order: LinkOrder::from([(id, DylibLookup::All)]),
            generators: Vec::new(),
            default_tracker,
            trackers: FxHashSet::from_iter([default_tracker]),
        }))
    }

    pub(crate) fn create_tracker(&mut self, dylib: Id<Dylib>) -> Result<Id<Tracker>, Error> {
        let entry = self.dylibs.get_mut(dylib).ok_or(Error::DylibGone)?;
        let id = self.trackers.insert(Tracker::new(dylib));
        entry.trackers.insert(id);
        Ok(id)
    }

    pub(crate) fn dylib_name(&self, symbol: SymbolId) -> String {
        let dylib = self.symbols.get(symbol).and_then(|symbol| self.dylib_of(symbol));
        dylib.map(|dylib| dylib.name.clone()).unwrap_or_default()
    }

    /// The definition of `name` that a search in `order` ends at.
    pub(crate) fn find(&self, order: &[(Id<Dylib>, DylibLookup)], name: &SymbolName) -> Option<SymbolId> {
        order.iter().find_map(|(dylib, visibility)| {
            let id = self.symbols.find(*dylib, name)?;
            let symbol = self.symbols.get(id)?;
            (*visibility == DylibLookup::All || symbol.flags().exported).then_some(id)
        })
    }

    /// The dylib that a symbol belongs to.
    pub(crate) fn dylib_of(&self, symbol: SymbolRef<'_>) -> Option<&Dylib> {
        self.dylibs.at(symbol.dylib()).map(|(_, dylib)| dylib)
    }

    /// Starts a query: what is there is found, what is not is waited for, and the units that
    /// define it are dispatched.
    pub(crate) fn start_query(
        &mut self,
        order: &[(Id<Dylib>, DylibLookup)],
        control: &Arc<Control>,
        search_failure: Option<&Arc<Cause>>,
        effects: &mut Effects,
    ) {
        let id = self.queries.next_id();
        let mut query = Query::new(Arc::clone(control));
        let priority = query.priority.max(self.priority_of(control));
        query.priority = priority;
        let required = control.request.required;
        for (name, lookup) in control.request.names.iter() {
            let outcome = match self.find(order, name) {
                None => {
                    let mut dylibs = order.iter().map(|(dylib, _)| self.dylibs.get(*dylib));
                    let dylib = dylibs.next().flatten();
                    let absence = |cause| query::failure(name.clone(), dylib, cause);
                    let is_gone = !order.is_empty() && dylib.is_none() && dylibs.all(|dylib| dylib.is_none());
                    match search_failure {
                        Some(cause) => Outcome::Failed(absence(Arc::clone(cause))),
                        None if self.ended => absent(absence(Arc::new(Cause::SessionEnded)), lookup),
                        None if is_gone => absent(absence(Arc::new(Cause::Session(Error::DylibGone))), lookup),
                        None => absent(absence(Arc::new(Cause::NotFound)), lookup),
                    }
                }
                Some(symbol) => self.outcome(symbol, required, lookup),
            };
            query.push(outcome);
        }
        if let Some(cause) = search_failure
            && !query.has_failed()
        {
            // Nothing is missing, and the error is not lost for it.
            query = Query::failed(Arc::clone(control), None, cause);
        }
        if let Some(cause) = self.cycle(&query) {
            let cause = Arc::new(cause);
            query.fail_rest(&cause, |symbol| self.dylib_name(symbol));
        }
        if query.is_settled() {
            effects.answers.push(query);
            return;
        }
        control.entered(id);
        let waiting: SmallVec<[(u32, SymbolId); 8]> = query.outstanding().collect();
        self.enter_wait(control, id);
        self.queries.insert(query);
        for &(position, symbol) in &waiting {
            if let Some(mut symbol) = self.symbols.get_mut(symbol) {
                let waiters = &mut symbol.pending().waiters;
                if waiters.len() == waiters.capacity() {
                    // Lookups that were cancelled.
                    waiters.retain(|waiter| self.queries.get(waiter.query).is_some());
                }
                waiters.push(Waiter { query: id, position, required });
            }
        }
        // Now that all wait: absolute symbols are settled on the spot, with all of their unit.
        for (_, symbol) in waiting {
            self.demand(symbol, priority, effects);
        }
        if self.queries.get(id).is_some_and(Query::is_settled) {
            effects.answers.extend(self.take_query(id));
        }
    }

    /// Whether somebody waits for a symbol.
    pub(crate) fn is_awaited(&self, symbol: SymbolRef<'_>) -> bool {
        let mut waiters = symbol.pending.iter().flat_map(|pending| &pending.waiters);
        waiters.any(|waiter| self.queries.get(waiter.query).is_some())
    }

    /// Removes a query that is over.
    pub(crate) fn take_query(&mut self, id: Id<Query>) -> Option<Query> {
        let query = self.queries.remove(id)?;
        self.leave_wait(&query.control, id);
        Some(query)
    }

    /// What a query that wants `required` of a symbol gets now.
    fn outcome(&self, id: SymbolId, required: SymbolState, lookup: SymbolLookup) -> Outcome {
        let Some(symbol) = self.symbols.get(id) else { return Outcome::Waiting(id) };
        let failed = |cause| failure(symbol.name(), self.dylib_of(symbol), cause);
        if let Some(cause) = symbol.failure() {
            return Outcome::Failed(failed(Arc::clone(cause)));
        }
        let side_effects = symbol.flags().side_effects_only && required != SymbolState::NeverSearched;
        if side_effects && lookup == SymbolLookup::Required {
            return Outcome::Failed(failed(Arc::new(Cause::SideEffectsOnly)));
        }
        match symbol.state() >= required {
            true if side_effects => Outcome::Missing(failed(Arc::new(Cause::SideEffectsOnly))),
            true => Outcome::Found(symbol.found(id)),
            false => Outcome::Waiting(id),
        }
    }

    /// How soon what is looked up for a unit should be there, by who waits for the unit.
    pub(crate) fn priority_of(&self, control: &Control) -> Priority {
        let mut units = control.units().filter_map(|unit| self.units.get(unit));
        if units.any(|unit| unit.awaited) { Priority::Awaited } else { Priority::Ahead }
    }

    /// Sees to it that the unit of a symbol runs, and soon if somebody waits for it.
    pub(crate) fn demand(&mut self, id: SymbolId, priority: Priority, effects: &mut Effects) {
        let mut hurried: SmallVec<[Id<Unit>; 4]> = self.demand_alone(id, priority, effects).into_iter().collect();
        // What a unit that has begun waits for is waited for as well. Each is here once.
        while let Some(unit) = hurried.pop() {
            for needed in self.awaits(unit) {
                hurried.extend(self.demand_alone(needed, priority, effects));
            }
        }
    }

    /// As [`demand`](Self::demand), of nothing else. Gives the unit if it has begun, and nobody has waited for it before.
    fn demand_alone(&mut self, id: SymbolId, priority: Priority, effects: &mut Effects) -> Option<Id<Unit>> {
        let symbol = self.symbols.get(id)?;
        if symbol.state() == SymbolState::Ready {
            return None;
        }
        let unit_id = symbol.unit;
        let unit = self.units.get_mut(unit_id)?;
        let stage = match (unit.stage, priority) {
            (Stage::Waiting, Priority::Ahead) => Stage::Queued,
            (Stage::Waiting | Stage::Queued, Priority::Awaited) => Stage::Awaited,
            (Stage::Running, Priority::Awaited) if !unit.awaited => {
                unit.awaited = true;
                return Some(unit_id);
            }
            _ => return None,
        };
        let first = unit.stage == Stage::Waiting;
        unit.stage = stage;
        unit.awaited = priority == Priority::Awaited;
        if !first {
            effects.dispatch.push((unit_id, priority));
            return None;
        }
        if symbol.flags().absolute && matches!(unit.content, Content::Nothing) && !self.telling.contains_key(&unit_id) {
            self.settle_absolute(unit_id, effects);
            return None;
        }
        for symbol in &unit.symbols {
            if let Some(mut symbol) = self.symbols.get_mut(*symbol) {
                symbol.set_state(SymbolState::Materializing);
            }
        }
        effects.dispatch.push((unit_id, priority));
        None
    }

    /// What a unit that has begun waits for, and what its symbols need, if they are emitted. Its queries are somebody's
    /// who waits from now on.
    fn awaits(&mut self, unit: Id<Unit>) -> SmallVec<[SymbolId; 8]> {
        let mut symbols = SmallVec::new();
        for query in self.waits.get(&unit).into_iter().flatten() {
            let Some(query) = self.queries.get_mut(*query) else { continue };
            query.priority = Priority::Awaited;
            symbols.extend(query.outstanding().map(|(_, symbol)| symbol));
        }
        let own = self.units.get(unit).map(|unit| unit.symbols.as_slice()).unwrap_or_default();
        for own in own.iter().filter_map(|id| self.symbols.get(*id)) {
            if own.state() == SymbolState::Emitted {
                symbols.extend(self.needs(own.needs));
            }
        }
        symbols
    }

    /// The symbols of a list of needs.
    pub(crate) fn needs(&self, mut edge: u32) -> impl Iterator<Item = SymbolId> {
        std::iter::from_fn(move || {
            while edge != edges::NONE {
                let needed;
                (needed, edge) = self.edges.need(edge);
                if let Some((id, _)) = self.symbols.at(needed) {
                    return Some(id);
                }
            }
            None
        })
    }

    /// Makes absolute symbols, which have their addresses, ready.
    fn settle_absolute(&mut self, unit: Id<Unit>, effects: &mut Effects) {
        let Some(unit) = self.units.get_mut(unit) else { return };
        unit.stage = Stage::Running;
        for id in unit.symbols.clone() {
            if let Some(mut symbol) = self.symbols.get_mut(id) {
                symbol.set_state(SymbolState::Ready);
            }
            self.notify(id, effects);
            if let Some(mut symbol) = self.symbols.get_mut(id) {
                symbol.settle();
            }
        }
    }

    /// Takes a unit out to run it: its name, and the unit unless it has been run or is away.
    pub(crate) fn begin(&mut self, id: Id<Unit>, priority: Priority) -> Option<(Arc<str>, Materializer)> {
        let unit = self.units.get_mut(id)?;
        if !matches!(unit.stage, Stage::Queued | Stage::Awaited) {
            return None;
        }
        match unit.take_materializer() {
            Some(materializer) => {
                unit.stage = Stage::Running;
                Some((Arc::clone(&unit.name), materializer))
            }
            None => {
                if let Some(telling) = self.telling.get_mut(&id) {
                    telling.missed = Some(priority);
                }
                None
            }
        }
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
            if symbol.state() != SymbolState::Materializing {
                return Err(Error::UnexpectedDefinition(symbol.name()));
            }
        }
        for (id, definition) in definitions {
            if let Some(mut symbol) = self.symbols.get_mut(*id)
                && symbol.failure().is_none()
            {
                symbol.set_definition(definition);
                symbol.set_state(SymbolState::Resolved);
                let flags = symbol.flags();
                symbol.set_flags(SymbolFlags { weak: false, common: false, ..flags });
            }
            self.aliases.remove(id);
            self.notify(*id, effects);
        }
        Ok(())
    }

    /// Answers the queries that wait for no more of a symbol than it has reached.
    pub(crate) fn notify(&mut self, id: SymbolId, effects: &mut Effects) {
        let Some(mut symbol) = self.symbols.get_mut(id) else { return };
        let state = symbol.state();
        let Some(pending) = &mut symbol.pending else { return };
        if pending.waiters.is_empty() {
            return;
        }
        let has_failed = pending.failure.is_some();
        let mut answered = SmallVec::<[Waiter; 1]>::new();
        pending.waiters.retain(|waiter| {
            let is_answered = has_failed || waiter.required <= state;
            if is_answered {
                answered.push(*waiter);
            }
            !is_answered
        });
        for waiter in answered {
            // Whoever asked for what has no address did not require it: others were told at once.
            let outcome = self.outcome(id, waiter.required, SymbolLookup::WeaklyReferenced);
            let Some(query) = self.queries.get_mut(waiter.query) else { continue };
            query.settle(waiter.position, outcome);
            if query.is_settled() {
                effects.answers.extend(self.take_query(waiter.query));
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
        self.fail_all(symbols, cause, Reach::Unready, effects);
    }

    /// Fails symbols, and of what depends on them as much as `reach` says.
    pub(crate) fn fail_all(
        &mut self,
        symbols: impl IntoIterator<Item = SymbolId>,
        cause: &Arc<Cause>,
        reach: Reach,
        effects: &mut Effects,
    ) {
        // Roots come first: each has the cause itself, whether or not it depends on another.
        let mut work: SmallVec<[(SymbolId, Arc<Cause>, u64); 1]> =
            symbols.into_iter().map(|symbol| (symbol, Arc::clone(cause), 0)).collect();
        let roots = work.len();
        let mut position = 0;
        while let Some((id, cause, needed_slot)) = work.get(position).cloned() {
            let root = position < roots;
            position += 1;
            let Some(mut symbol) = self.symbols.get_mut(id) else { continue };
            if symbol.failure().is_some() {
                continue;
            }
            // A function that can be redirected outlives its bodies: whoever watches them says where its calls go. An alias
            // of it has its slot, and nothing else.
            let outlives = |slot| slot != 0 && slot != needed_slot;
            if symbol.state() == SymbolState::Ready && (reach == Reach::Unready || !root && outlives(symbol.slot())) {
                continue;
            }
            symbol.fail(Arc::clone(&cause));
            let dependants = symbol.needed_by;
            if dependants != edges::NONE {
                let slot = symbol.slot();
                let cause = self.dependency_cause(id, &cause);
                work.extend(
                    self.edges
                        .dependants(dependants)
                        .filter_map(|index| Some((self.symbols.at(index)?.0, Arc::clone(&cause), slot))),
                );
            }
            self.aliases.remove(&id);
            if let Some(watches) = self.watches.remove(&id) {
                effects.rare().unusable.extend(watches);
            }
            self.notify(id, effects);
        }
    }

    /// The cause for what depends on a symbol that failed because of `cause`: always the root, so
    /// that it stays one line however long the chain of dependences.
    pub(crate) fn dependency_cause(&self, id: SymbolId, cause: &Arc<Cause>) -> Arc<Cause> {
        match (&**cause, self.symbols.get(id)) {
            (Cause::Dependency { .. }, _) | (_, None) => Arc::clone(cause),
            (_, Some(symbol)) => Arc::new(Cause::Dependency {
                name: symbol.name(),
                dylib: self.dylib_of(symbol).map(|dylib| dylib.name.clone()).unwrap_or_default(),
                cause: Arc::clone(cause),
            }),
        }
    }

    /// Counts `bytes` against the limits of a unit's tracker and of the one that counts that.
    pub(crate) fn charge(&mut self, unit: Id<Unit>, bytes: u64) -> Result<(), Error> {
        let owner = self.units.get(unit).ok_or(Error::DefunctTracker)?.tracker;
        self.trackers.get(owner).ok_or(Error::DefunctTracker)?;
        for tracker in self.counting(owner).filter_map(|id| self.trackers.get(id)) {
            let limit = tracker.memory_limit.unwrap_or(u64::MAX);
            if tracker.memory_used.checked_add(bytes).is_none_or(|used| used > limit) {
                return Err(Error::MemoryLimit { needed: bytes, limit });
            }
        }
        self.hold_more(owner, bytes);
        if let Some(unit) = self.units.get_mut(unit) {
            unit.memory_used += bytes;
        }
        Ok(())
    }

    /// Gives back what was counted for a unit.
    pub(crate) fn uncharge(&mut self, unit: Id<Unit>) {
        let Some(unit) = self.units.get_mut(unit) else { return };
        let (bytes, owner) = (std::mem::take(&mut unit.memory_used), unit.tracker);
        self.give_back(owner, bytes);
    }

    /// Counts so much more for what a tracker holds.
    pub(crate) fn hold_more(&mut self, tracker: Id<Tracker>, bytes: u64) {
        self.change_used(tracker, |used| used.saturating_add(bytes));
    }

    /// Counts so much less for what a tracker holds.
    pub(crate) fn give_back(&mut self, tracker: Id<Tracker>, bytes: u64) {
        self.change_used(tracker, |used| used.saturating_sub(bytes));
    }

    /// Of a tracker, and of the one that counts it.
    fn change_used(&mut self, tracker: Id<Tracker>, change: impl Fn(u64) -> u64) {
        let Some(own) = self.trackers.get_mut(tracker) else { return };
        own.memory_used = change(own.memory_used);
        if let Some(by) = own.counted_by
            && let Some(by) = self.trackers.get_mut(by)
        {
            by.memory_used = change(by.memory_used);
        }
    }

    /// A tracker, and the one that counts it.
    pub(super) fn counting(&self, tracker: Id<Tracker>) -> impl Iterator<Item = Id<Tracker>> + use<> {
        let counted_by = self.trackers.get(tracker).and_then(|tracker| tracker.counted_by);
        std::iter::once(tracker).chain(counted_by)
    }

    /// Has `by`, if that is one, count what another tracker holds, and whoever did so no more. It may go over its limit.
    pub(crate) fn count(&mut self, id: Id<Tracker>, by: Option<Id<Tracker>>) {
        let by = by.filter(|by| *by != id && self.trackers.get(*by).is_some());
        let Some(tracker) = self.trackers.get_mut(id) else { return };
        let (bytes, before) = (tracker.memory_used, std::mem::replace(&mut tracker.counted_by, by));
        if let Some(before) = before.and_then(|before| self.trackers.get_mut(before)) {
            before.memory_used = before.memory_used.saturating_sub(bytes);
            before.counted.remove(&id);
        }
        if let Some(by) = by.and_then(|by| self.trackers.get_mut(by)) {
            by.memory_used = by.memory_used.saturating_add(bytes);
            by.counted.insert(id);
        }
    }

    /// Counts for one unit what was counted for another. If they are not of one tracker any more, it stays.
    #[cfg(feature = "cranelift")]
    pub(crate) fn move_charge(&mut self, from: Id<Unit>, to: Id<Unit>) {
        let tracker = |state: &Self, unit| state.units.get(unit).map(|unit| unit.tracker);
        if tracker(self, from) != tracker(self, to) {
            return;
        }
        let Some(from) = self.units.get_mut(from) else { return };
        let bytes = std::mem::take(&mut from.memory_used);
        if let Some(to) = self.units.get_mut(to) {
            to.memory_used += bytes;
        }
    }
}

impl Unit {
    /// Takes out what makes the definitions.
    pub(crate) fn take_materializer(&mut self) -> Option<Materializer> {
        if !matches!(self.content, Content::Materializer(_)) {
            return None;
        }
        match std::mem::replace(&mut self.content, Content::Nothing) {
            Content::Materializer(unit) => Some(unit),
            Content::Nothing | Content::Code(_) => None,
        }
    }

    /// The memory that it was emitted into.
    pub(crate) fn code(&self) -> Option<&Arc<FinalizedAllocation>> {
        if let Content::Code(code) = &self.content { Some(code) } else { None }
    }

    pub(crate) fn set_code(&mut self, code: Option<Arc<FinalizedAllocation>>) {
        self.content = code.map_or(Content::Nothing, Content::Code);
    }
}

impl Tracker {
    pub(crate) fn new(dylib: Id<Dylib>) -> Self {
        Self {
            dylib,
            units: UnitList::new(),
            memory_limit: None,
            memory_used: 0,
            counted_by: None,
            counted: FxHashSet::default(),
            resources: Resources::default(),
        }
    }
}

/// How far a failure goes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reach {
    /// To what depends on it and is not ready.
    Unready,
    /// To all that depends on it.
    All,
}

/// What becomes of a name that is not there.
fn absent(failure: SymbolFailure, lookup: SymbolLookup) -> Outcome {
    match lookup {
        SymbolLookup::Required => Outcome::Failed(failure),
        SymbolLookup::WeaklyReferenced => Outcome::Missing(failure),
    }
}
