//! Who waits for whom to go on, so that a cycle of waits is an error and not a hang.
//!
//! Dependences are no waits: units that need each other become ready together. What can't go on is
//! a thread that materializes a unit and waits for something that needs that unit first, and an
//! alias that is in the end an alias of itself.

use rustc_hash::FxHashSet;

use super::arena::Id;
use super::edges;
use super::query::{Control, Owner, Query};
use super::search::{self, GeneratorSlot};
use super::state::{State, Unit};
use super::symbol::{SymbolId, SymbolState};
use crate::error::Cause;
use crate::sync::Arc;

impl Owner {
    pub(crate) fn unit(self) -> Id<Unit> {
        match self {
            Self::Thread(unit) | Self::Continuation(unit) | Self::Alias(_, unit) => unit,
        }
    }
}

impl State {
    pub(crate) fn enter_wait(&mut self, owner: Option<Owner>, query: Id<Query>) {
        let Some(owner) = owner else { return };
        self.waits.entry(owner.unit()).or_default().push(query);
        self.blocked += usize::from(matches!(owner, Owner::Thread(_)));
    }

    pub(crate) fn leave_wait(&mut self, owner: Option<Owner>, query: Id<Query>) {
        let Some(owner) = owner else { return };
        let Some(queries) = self.waits.get_mut(&owner.unit()) else { return };
        let Some(position) = queries.iter().position(|other| *other == query) else { return };
        queries.swap_remove(position);
        if queries.is_empty() {
            self.waits.remove(&owner.unit());
        }
        self.blocked -= usize::from(matches!(owner, Owner::Thread(_)));
    }

    /// Why the thread that waits for a lookup waits for itself by now, if it does.
    pub(crate) fn closed_cycle(&self, control: &Control) -> Option<Cause> {
        let Some(Owner::Thread(unit)) = control.request.owner else { return None };
        self.wait_cycle(unit, self.queries.get(control.query()?)?)
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
                let mut edge = symbol.needs;
                while edge != edges::NONE {
                    let (needed, rest) = self.edges.need(edge);
                    symbols.extend(self.symbols.at(needed).map(|(id, _)| id));
                    edge = rest;
                }
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
            Owner::Alias(alias, _) => self.alias_cycle(alias, query),
            Owner::Thread(unit) => self.wait_cycle(unit, query),
            Owner::Continuation(unit) if self.blocked > 0 => self.wait_cycle(unit, query),
            Owner::Continuation(_) => None,
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

    /// Searches what the query waits for, and what that waits for, for something that `unit` has
    /// to do first.
    fn wait_cycle(&self, unit: Id<Unit>, query: &Query) -> Option<Cause> {
        let mut seen = FxHashSet::default();
        // Each with the place of what led to it.
        let mut path: Vec<(SymbolId, usize)> = Vec::new();
        let mut work: Vec<(SymbolId, SymbolState, usize)> = Vec::new();
        let required = query.control.request.required;
        work.extend(query.outstanding().map(|(_, symbol)| (symbol, required, usize::MAX)));
        while let Some((id, required, from)) = work.pop() {
            let Some(symbol) = self.symbols.get(id) else { continue };
            if symbol.state() >= required
                || symbol.failure().is_some()
                || !seen.insert((id, required >= SymbolState::Emitted))
            {
                continue;
            }
            path.push((id, from));
            let here = path.len() - 1;
            if symbol.state() == SymbolState::Emitted {
                let mut edge = symbol.needs;
                while edge != edges::NONE {
                    let (needed, next) = self.edges.need(edge);
                    work.extend(self.symbols.at(needed).map(|(id, _)| (id, SymbolState::Ready, here)));
                    edge = next;
                }
                continue;
            }
            if symbol.unit == unit {
                let mut members = Vec::new();
                let mut place = here;
                while let Some((symbol, from)) = path.get(place) {
                    members.push(*symbol);
                    place = *from;
                }
                members.reverse();
                return Some(Cause::WaitCycle(self.names(&members)));
            }
            for query in self.waits.get(&symbol.unit).into_iter().flatten() {
                let Some(query) = self.queries.get(*query) else { continue };
                let required = query.control.request.required;
                work.extend(query.outstanding().map(|(_, symbol)| (symbol, required, here)));
            }
        }
        None
    }
}
