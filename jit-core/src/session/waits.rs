//! Who waits for whom to go on, so that a cycle of waits is an error and not a hang.
//!
//! Dependences are no waits: units that need each other become ready together. What can't go on is
//! a unit that waits, in a thread or with its responsibility in what is to be done then, for
//! something that needs that unit first, and an alias that is in the end an alias of itself.

use rustc_hash::FxHashSet;

use super::arena::Id;
use super::edges;
use super::query::{Control, Owner, Query};
use super::search::{self, GeneratorSlot};
use super::state::{Effects, State, Unit};
use super::symbol::{SymbolId, SymbolState};
use crate::error::Cause;
use crate::sync::Arc;

impl Owner {
    pub(crate) fn unit(self) -> Id<Unit> {
        match self {
            Self::Thread(unit) | Self::Continuation(unit) | Self::Holder(unit) | Self::Alias(_, unit) => unit,
        }
    }

    /// Whether nothing can be done for the unit before the answer.
    fn is_stopped(self) -> bool {
        matches!(self, Self::Thread(_) | Self::Holder(_))
    }
}

/// Where a search for a cycle begins, and ends if there is one.
#[derive(Clone, Copy)]
enum Start<'a> {
    /// What waits for a query.
    Wait(&'a Query),
    /// A symbol that is emitted. Only a cycle in which a unit waits counts.
    Emitted(SymbolId),
}

/// A symbol on the way of such a search.
struct Step {
    symbol: SymbolId,
    /// Of the step before, the place.
    from: Option<usize>,
    /// The query that waits for it, if no symbol needs it.
    query: Option<Id<Query>>,
}

/// A search was longer than it may be.
struct Unfinished;

/// How many steps a search makes before it is tried from the other end.
const FIRST_LIMIT: usize = 32;

impl State {
    pub(crate) fn enter_wait(&mut self, control: &Control, query: Id<Query>) {
        for unit in control.units() {
            self.waits.entry(unit).or_default().push(query);
        }
        self.blocked += usize::from(control.request.owner.is_some_and(Owner::is_stopped));
        self.held += usize::from(is_held(control));
        self.inside += usize::from(!control.inside.is_empty());
    }

    pub(crate) fn leave_wait(&mut self, control: &Control, query: Id<Query>) {
        for unit in control.units() {
            let Some(queries) = self.waits.get_mut(&unit) else { continue };
            queries.retain(|other| *other != query);
            if queries.is_empty() {
                self.waits.remove(&unit);
            }
        }
        self.blocked -= usize::from(control.request.owner.is_some_and(Owner::is_stopped));
        self.held -= usize::from(is_held(control));
        self.inside -= usize::from(!control.inside.is_empty());
    }

    /// The queries before whose answer a unit has something that it does not do.
    fn waits_of(&self, unit: Id<Unit>) -> impl Iterator<Item = (Id<Query>, Owner, &Query)> {
        let queries = self.waits.get(&unit).into_iter().flatten();
        queries.filter_map(|id| {
            let query = self.queries.get(*id)?;
            Some((*id, query.control.request.owner?, query))
        })
    }

    /// Why the thread that waits for a lookup waits for itself by now, if it does.
    pub(crate) fn closed_cycle(&self, control: &Control) -> Option<Cause> {
        let Some(Owner::Thread(_)) = control.request.owner else { return None };
        self.wait_cycle(self.queries.get(control.query()?)?)
    }

    /// A search that waits for its turn with a generator which waits for what that search is for.
    pub(crate) fn search_kept_up(&self) -> Option<(Arc<GeneratorSlot>, Arc<Control>)> {
        if self.inside == 0 {
            return None;
        }
        self.queries.iter().find_map(|(_, query)| self.search_kept_up_by(&query.control))
    }

    /// A search that waits for its turn with a generator which a lookup was started inside of, if the lookup waits for what
    /// that search is for: neither could go on.
    pub(crate) fn search_kept_up_by(&self, control: &Arc<Control>) -> Option<(Arc<GeneratorSlot>, Arc<Control>)> {
        if control.inside.is_empty() {
            return None;
        }
        let slots = self.dylibs.iter().flat_map(|(_, dylib)| &dylib.generators);
        let parked: Vec<_> =
            slots.flat_map(|slot| slot.parked().into_iter().map(move |search| (slot, search))).collect();
        let searches = || parked.iter().map(|(_, search)| search);
        let (mut seen, mut symbols_seen) = (FxHashSet::default(), FxHashSet::default());
        let mut work = vec![Arc::clone(control)];
        while let Some(next) = work.pop() {
            if !seen.insert(Arc::as_ptr(&next)) {
                continue;
            }
            if let Some((slot, _)) = parked.iter().find(|(_, search)| Arc::ptr_eq(search, &next)) {
                let address = search::address_of(slot);
                if control.inside.contains(&address) {
                    return Some((Arc::clone(slot), next));
                }
                // It waits for whatever the generator looks up.
                let inside = self.queries.iter().map(|(_, query)| &query.control).chain(searches());
                work.extend(inside.filter(|lookup| lookup.inside.contains(&address)).cloned());
                continue;
            }
            let Some(query) = next.query().and_then(|id| self.queries.get(id)) else { continue };
            let mut symbols: Vec<_> = query.outstanding().map(|(_, symbol)| symbol).collect();
            while let Some(id) = symbols.pop() {
                let Some(symbol) = self.symbols.get(id).filter(|symbol| symbol.state() < SymbolState::Ready) else {
                    continue;
                };
                if !symbols_seen.insert(id) {
                    continue;
                }
                symbols.extend(self.needs(symbol.needs));
                let queries = self.waits.get(&symbol.unit).into_iter().flatten();
                work.extend(queries.filter_map(|query| Some(Arc::clone(&self.queries.get(*query)?.control))));
                let started = self.queries.iter().map(|(_, query)| &query.control).chain(searches());
                work.extend(started.filter(|lookup| lookup.started_by == Some(symbol.unit)).cloned());
            }
        }
        None
    }

    /// Why a query could never be answered, if whoever asks is what it would wait for.
    pub(crate) fn cycle(&mut self, query: &Query) -> Option<Cause> {
        match query.control.request.owner? {
            Owner::Thread(_) | Owner::Holder(_) => self.wait_cycle(query),
            Owner::Alias(alias, _) => self.alias_cycle(alias, query).or_else(|| self.wait_cycle_of_stopped(query)),
            Owner::Continuation(_) => self.wait_cycle_of_stopped(query),
        }
    }

    /// Notes what an alias waits for.
    fn alias_cycle(&mut self, alias: SymbolId, query: &Query) -> Option<Cause> {
        let (_, target) = query.outstanding().next()?;
        let mut end = target;
        while end != alias
            && let Some((_, further)) = self.aliases.get(&end)
        {
            end = *further;
        }
        if end != alias {
            self.aliases.insert(alias, (target, end));
            return None;
        }
        let mut members = vec![alias];
        let mut current = target;
        while current != alias {
            members.push(current);
            let Some((next, _)) = self.aliases.get(&current) else { break };
            current = *next;
        }
        Some(Cause::AliasCycle(self.names(&members)))
    }

    fn names(&self, symbols: &[SymbolId]) -> Vec<jit_linker::SymbolName> {
        symbols.iter().filter_map(|symbol| Some(self.symbols.get(*symbol)?.name())).collect()
    }

    /// As [`wait_cycle`](Self::wait_cycle), of a unit that may do something else: only with one that can't is it a cycle.
    fn wait_cycle_of_stopped(&self, query: &Query) -> Option<Cause> {
        if self.blocked > 0 { self.wait_cycle(query) } else { None }
    }

    /// Why what waits for the query would wait for itself.
    fn wait_cycle(&self, query: &Query) -> Option<Cause> {
        Some(self.cause_of(&self.find_cycle(Start::Wait(query))?))
    }

    fn cause_of(&self, cycle: &[Step]) -> Cause {
        let symbols: Vec<_> = cycle.iter().map(|step| step.symbol).collect();
        Cause::WaitCycle(self.names(&symbols))
    }

    /// Fails a wait of each cycle that symbols close because they are emitted, with what they need. (What a thread waits
    /// for, it looks at itself from time to time.)
    pub(crate) fn break_cycles(&mut self, emitted: &[SymbolId], effects: &mut Effects) {
        for &symbol in emitted {
            while self.held > 0
                && let Some(cycle) = self.find_cycle(Start::Emitted(symbol))
            {
                let cause = Arc::new(self.cause_of(&cycle));
                let mut queries = cycle.iter().filter_map(|step| step.query);
                let stopped = queries.find(|id| {
                    let owner = self.queries.get(*id).and_then(|query| query.control.request.owner);
                    owner.is_some_and(Owner::is_stopped)
                });
                let Some(mut query) = stopped.and_then(|id| self.take_query(id)) else { break };
                query.fail_rest(&cause, |symbol| self.dylib_name(symbol));
                effects.answers.push(query);
            }
        }
    }

    /// Searches for a cycle from both ends by turns, so that it takes no longer than from the better one: of a long chain,
    /// who comes last or first sees at once that there is nobody further.
    fn find_cycle(&self, start: Start<'_>) -> Option<Vec<Step>> {
        let mut limit = FIRST_LIMIT;
        loop {
            match self.follow(start, limit) {
                Ok(cycle) => return cycle,
                Err(Unfinished) if self.is_reached_by_none(start, limit) => return None,
                Err(Unfinished) => limit = limit.saturating_mul(4),
            }
        }
    }

    /// What is waited for first.
    fn first_steps(&self, start: Start<'_>) -> Vec<(SymbolId, SymbolState)> {
        match start {
            Start::Wait(query) => {
                let required = query.control.request.required;
                query.outstanding().map(|(_, symbol)| (symbol, required)).collect()
            }
            Start::Emitted(symbol) => {
                let needs = self.symbols.get(symbol).map_or(edges::NONE, |symbol| symbol.needs);
                self.needs(needs).map(|needed| (needed, SymbolState::Ready)).collect()
            }
        }
    }

    /// Searches what is waited for, and what that waits for, for the start.
    fn follow(&self, start: Start<'_>, limit: usize) -> Result<Option<Vec<Step>>, Unfinished> {
        let mut seen = FxHashSet::default();
        let mut steps: Vec<Step> = Vec::new();
        // Each with how far it has to come, and whether a unit that is stopped is on the way to it.
        let mut work = Vec::new();
        for (symbol, required) in self.first_steps(start) {
            let stopped = matches!(start, Start::Wait(..));
            work.push((Step { symbol, from: None, query: None }, required, stopped));
        }
        let mut passed = 0;
        while let Some((step, required, stopped)) = work.pop() {
            passed += 1;
            if passed > limit {
                return Err(Unfinished);
            }
            let id = step.symbol;
            let Some(symbol) = self.symbols.get(id) else { continue };
            if symbol.state() >= required
                || symbol.failure().is_some()
                || !seen.insert((id, required >= SymbolState::Emitted, stopped))
            {
                continue;
            }
            steps.push(step);
            let here = steps.len() - 1;
            let closed = match start {
                Start::Wait(query) => {
                    symbol.state() != SymbolState::Emitted && query.control.units().any(|unit| unit == symbol.unit)
                }
                Start::Emitted(emitted) => id == emitted && stopped,
            };
            if closed {
                return Ok(Some(path_to(here, steps)));
            }
            if symbol.state() == SymbolState::Emitted {
                let needs = self.needs(symbol.needs);
                let step = |symbol| Step { symbol, from: Some(here), query: None };
                work.extend(needs.map(|needed| (step(needed), SymbolState::Ready, stopped)));
                continue;
            }
            for (id, owner, query) in self.waits_of(symbol.unit) {
                let stopped = stopped || owner.is_stopped();
                let step = |symbol| Step { symbol, from: Some(here), query: Some(id) };
                let required = query.control.request.required;
                work.extend(query.outstanding().map(|(_, symbol)| (step(symbol), required, stopped)));
            }
        }
        Ok(None)
    }

    /// Whether nothing that waits for the start, or for what waits for it, is what that would wait for. False, too, if that
    /// is too much to look at.
    fn is_reached_by_none(&self, start: Start<'_>, limit: usize) -> bool {
        let symbols_of =
            |unit| self.units.get(unit).map(|unit| unit.symbols.as_slice()).unwrap_or_default().iter().copied();
        let mut work: Vec<SymbolId> = match start {
            Start::Wait(query) => query.control.units().flat_map(symbols_of).collect(),
            Start::Emitted(symbol) => vec![symbol],
        };
        let (mut seen, mut units) = (FxHashSet::default(), FxHashSet::default());
        let mut passed = 0;
        while let Some(id) = work.pop() {
            passed += 1;
            if passed > limit {
                return false;
            }
            let Some(symbol) = self.symbols.get(id).filter(|_| seen.insert(id)) else { continue };
            work.extend(self.edges.dependants(symbol.needed_by).filter_map(|index| Some(self.symbols.at(index)?.0)));
            let waiters = symbol.pending.iter().flat_map(|pending| &pending.waiters);
            let queries = waiters.filter_map(|waiter| self.queries.get(waiter.query));
            for unit in
                queries.filter(|query| query.control.request.owner.is_some()).flat_map(|query| query.control.units())
            {
                if units.insert(unit) {
                    work.extend(symbols_of(unit));
                }
            }
        }
        self.first_steps(start).iter().all(|(symbol, _)| !seen.contains(symbol))
    }
}

/// Whether a query keeps back a unit that no thread waits in, until something is ready.
fn is_held(control: &Control) -> bool {
    matches!(control.request.owner, Some(Owner::Holder(_))) && control.request.required > SymbolState::Resolved
}

/// The steps that lead to one, in their order, and that one.
fn path_to(place: usize, steps: Vec<Step>) -> Vec<Step> {
    let mut steps: Vec<_> = steps.into_iter().map(Some).collect();
    let mut path = Vec::new();
    let mut next = Some(place);
    while let Some(step) = next.and_then(|place| steps.get_mut(place)?.take()) {
        next = step.from;
        path.push(step);
    }
    path.reverse();
    path
}
