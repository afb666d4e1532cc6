//! When an emitted symbol becomes ready.
//!
//! A symbol is ready when it is emitted and everything it depends on is ready. Symbols that depend
//! on each other form a ring and become ready together. A ring (a lone symbol is a ring of one)
//! that is not ready watches one *blocker*: the first symbol among its dependences that is not
//! ready. Only when that becomes ready does it look at the next. So each dependence is looked at
//! once, whatever the order in which units are emitted.
//!
//! Blockers lead from ring to ring until one that has none: a symbol that is not emitted yet.
//! If they lead back to where they started, the rings on the way are one.

use jit_linker::SymbolName;
use smallvec::SmallVec;

use super::dispatch::Priority;
use super::edges;
use super::state::{Effects, State};
use super::symbol::{SymbolId, SymbolState};
use crate::error::{Cause, Error};
use crate::sync::Arc;

/// What is known of a symbol while it is emitted and not ready. Of a ring's symbols, one stands
/// for all; the others lead to it through `parent`.
#[derive(Default)]
pub(crate) struct Ring {
    /// A symbol nearer to the one that stands for the ring.
    parent: Option<u32>,
    /// Symbols of the ring, each with its first dependence that was not looked at.
    members: SmallVec<[(u32, u32); 1]>,
    /// Symbols of the ring whose dependences are ready or within the ring.
    finished: SmallVec<[u32; 1]>,
    /// Rings whose blocker is in this one, each by one of its symbols.
    watchers: SmallVec<[u32; 2]>,
    /// A symbol this ring waits for.
    blocker: Option<u32>,
    /// A symbol further along the way of blockers. Still on it as long as it is not ready:
    /// whatever lies before it waits for it.
    shortcut: Option<u32>,
}

/// What symbols were found as: one that was removed has no name any more.
pub(crate) type NamesOf<'a> = &'a dyn Fn(SymbolId) -> Option<SymbolName>;

impl State {
    /// Marks `symbols` emitted, with their dependences. Those whose dependences have failed
    /// fail; the error names the first of them.
    pub(crate) fn emit(
        &mut self,
        symbols: &[SymbolId],
        dependences: &[(SymbolId, SymbolId)],
        names: NamesOf<'_>,
        effects: &mut Effects,
    ) -> Result<(), Error> {
        let mut failed: Vec<(SymbolId, Arc<Cause>)> = Vec::new();
        let mut error = None;
        for id in symbols {
            match self.symbols.get_mut(*id) {
                None => error = Some(Error::DefunctTracker),
                Some(symbol) if symbol.failure().is_some() => {}
                Some(mut symbol)
                    if symbol.state() == SymbolState::Resolved
                        || symbol.flags().side_effects_only && symbol.state() == SymbolState::Materializing =>
                {
                    symbol.set_state(SymbolState::Emitted);
                    // What waits for an address of what will never have one waits for this.
                    self.notify(*id, effects);
                }
                Some(symbol) => {
                    let unresolved = Error::Unresolved(symbol.name());
                    failed.push((*id, Arc::new(Cause::Session(unresolved.clone()))));
                    error = Some(unresolved);
                }
            }
        }
        for &(from, to) in dependences {
            if from == to {
                continue;
            }
            match self.add_dependence(from, to, names) {
                Ok(()) => self.demand_need(from, to, effects),
                Err((unsatisfied, cause)) => {
                    error.get_or_insert(unsatisfied);
                    failed.push((from, cause));
                }
            }
        }
        for (symbol, cause) in failed {
            self.fail([symbol], &cause, effects);
        }
        let mut waiting = SmallVec::<[u32; 8]>::new();
        for id in symbols {
            if self.is_waiting(id.index() as u32) && !self.is_ready_at_once(*id, effects) {
                waiting.push(id.index() as u32);
            }
        }
        for &index in &waiting {
            let Some(mut symbol) = self.symbols.at_mut(index) else { continue };
            let first = symbol.needs;
            symbol.pending().ring.get_or_insert_default().members.push((index, first));
        }
        for index in waiting {
            self.advance(index, effects);
        }
        self.break_cycles(symbols, effects);
        error.map_or(Ok(()), Err)
    }

    /// Makes an emitted symbol ready if everything it needs is, and nothing watches it: the common
    /// case, which needs no bookkeeping.
    fn is_ready_at_once(&mut self, id: SymbolId, effects: &mut Effects) -> bool {
        let Some(symbol) = self.symbols.get(id) else { return true };
        if symbol
            .pending
            .as_ref()
            .and_then(|pending| pending.ring.as_ref())
            .is_some_and(|ring| !ring.watchers.is_empty())
        {
            return false;
        }
        let mut edge = symbol.needs;
        while edge != edges::NONE {
            let (dependency, next) = self.edges.need(edge);
            if self.symbols.at(dependency).is_some_and(|(_, symbol)| symbol.state() != SymbolState::Ready) {
                return false;
            }
            edge = next;
        }
        self.set_ready(id, effects);
        true
    }

    fn set_ready(&mut self, id: SymbolId, effects: &mut Effects) {
        let Some(mut symbol) = self.symbols.get_mut(id) else { return };
        symbol.set_state(SymbolState::Ready);
        self.notify(id, effects);
        if let Some(mut symbol) = self.symbols.get_mut(id) {
            symbol.settle();
        }
    }

    fn add_dependence(&mut self, from: SymbolId, to: SymbolId, names: NamesOf<'_>) -> Result<(), (Error, Arc<Cause>)> {
        let Some(dependant) = self.symbols.get(from) else { return Ok(()) };
        let (name, needs) = (dependant.name(), dependant.needs);
        let Some(dependency) = self.symbols.get(to) else {
            let cause = Arc::new(Cause::Removed);
            let Some(removed) = names(to) else { return Err((Error::DefunctTracker, cause)) };
            let error =
                Error::UnsatisfiedDependency { symbol: name, dependency: removed.clone(), cause: Arc::clone(&cause) };
            return Err((error, Arc::new(Cause::Dependency { name: removed, dylib: String::new(), cause })));
        };
        if let Some(cause) = dependency.failure() {
            let error =
                Error::UnsatisfiedDependency { symbol: name, dependency: dependency.name(), cause: Arc::clone(cause) };
            return Err((error, self.dependency_cause(to, cause)));
        }
        let edge = self.edges.add(from.index() as u32, needs, to.index() as u32, dependency.needed_by);
        for (id, head) in [(from, true), (to, false)] {
            if let Some(mut symbol) = self.symbols.get_mut(id) {
                *(if head { &mut symbol.needs } else { &mut symbol.needed_by }) = edge;
            }
        }
        Ok(())
    }

    /// Sees to it that what an emitted symbol needs is made, and soon if somebody waits for the symbol.
    fn demand_need(&mut self, symbol: SymbolId, needed: SymbolId, effects: &mut Effects) {
        let Some(needed_symbol) = self.symbols.get(needed) else { return };
        let unit = self.symbols.get(symbol).map(|symbol| symbol.unit);
        if needed_symbol.state() == SymbolState::Ready || unit == Some(needed_symbol.unit) {
            return;
        }
        let awaited = unit.and_then(|unit| self.units.get(unit)).is_some_and(|unit| unit.awaited);
        self.demand(needed, if awaited { Priority::Awaited } else { Priority::Ahead }, effects);
    }

    fn ring(&mut self, symbol: u32) -> Option<&mut Ring> {
        Some(self.symbols.at_mut(symbol)?.into_pending().ring.get_or_insert_default())
    }

    /// Whether a symbol is emitted and neither ready nor failed.
    fn is_waiting(&self, symbol: u32) -> bool {
        self.symbols
            .at(symbol)
            .is_some_and(|(_, symbol)| symbol.state() == SymbolState::Emitted && symbol.failure().is_none())
    }

    /// The symbol that stands for the ring of `symbol`.
    fn representative(&mut self, symbol: u32) -> u32 {
        let mut root = symbol;
        while let Some(parent) = self.ring(root).and_then(|ring| ring.parent) {
            root = parent;
        }
        let mut current = symbol;
        while let Some(parent) = self.ring(current).and_then(|ring| ring.parent) {
            if let Some(ring) = self.ring(current) {
                ring.parent = Some(root);
            }
            current = parent;
        }
        root
    }

    /// Looks at further dependences of an emitted symbol's ring, and of those that become ready
    /// because of it.
    fn advance(&mut self, symbol: u32, effects: &mut Effects) {
        let mut work = vec![symbol];
        while let Some(symbol) = work.pop() {
            if !self.is_waiting(symbol) {
                continue;
            }
            let ring = self.representative(symbol);
            if self.is_blocked(ring) {
                continue;
            }
            if self.find_blocker(ring) {
                continue;
            }
            let Some(done) = self.ring(ring).map(std::mem::take) else { continue };
            for member in done.finished {
                if let Some((id, _)) = self.symbols.at(member) {
                    self.set_ready(id, effects);
                }
            }
            work.extend(done.watchers);
        }
    }

    /// Whether a ring's blocker is still not ready. (One that failed has failed the ring too.)
    fn is_blocked(&mut self, ring: u32) -> bool {
        let Some(blocker) = self.ring(ring).and_then(|ring| ring.blocker) else { return false };
        let ready = self.symbols.at(blocker).is_none_or(|(_, symbol)| symbol.state() == SymbolState::Ready);
        if ready && let Some(ring) = self.ring(ring) {
            ring.blocker = None;
            ring.shortcut = None;
        }
        !ready
    }

    /// Looks for a dependence of a ring that is not ready, and watches it. False if there is none.
    fn find_blocker(&mut self, ring: u32) -> bool {
        while let Some(dependency) = self.next_dependence(ring) {
            let Some((_, symbol)) = self.symbols.at(dependency) else { continue };
            let waits = match symbol.state() {
                SymbolState::Ready => false,
                SymbolState::Emitted => self.representative(dependency) != ring && !self.close_ring(ring, dependency),
                _ => true,
            };
            if waits {
                self.watch(ring, dependency);
                return true;
            }
        }
        false
    }

    /// The next dependence of a ring that was not looked at.
    fn next_dependence(&mut self, ring: u32) -> Option<u32> {
        loop {
            let ring = self.symbols.at_mut(ring)?.into_pending().ring.as_mut()?;
            let (member, edge) = ring.members.last_mut()?;
            if *edge != edges::NONE {
                let dependency;
                (dependency, *edge) = self.edges.need(*edge);
                return Some(dependency);
            }
            ring.finished.push(*member);
            ring.members.pop();
        }
    }

    fn watch(&mut self, ring: u32, blocker: u32) {
        if let Some(ring) = self.ring(ring) {
            ring.blocker = Some(blocker);
        }
        // Only an emitted symbol has a ring to stand for it.
        let watched = if self.is_waiting(blocker) { self.representative(blocker) } else { blocker };
        if let Some(watched) = self.ring(watched) {
            watched.watchers.push(ring);
        }
    }

    /// Follows the blockers from `dependency`. If they lead back to `ring`, all on the way become
    /// part of it.
    fn close_ring(&mut self, ring: u32, dependency: u32) -> bool {
        // Nobody waits for this ring: nothing can lead back to it.
        if self.ring(ring).is_none_or(|ring| ring.watchers.is_empty()) {
            return false;
        }
        if self.end_of_blockers(dependency) != ring {
            return false;
        }
        let mut current = self.representative(dependency);
        while current != ring {
            let Some(merged) = self.ring(current).map(std::mem::take) else { break };
            let next = merged.blocker.map(|blocker| self.representative(blocker));
            if let Some(old) = self.ring(current) {
                old.parent = Some(ring);
            }
            if let Some(ring) = self.ring(ring) {
                append(&mut ring.members, merged.members);
                append(&mut ring.finished, merged.finished);
                append(&mut ring.watchers, merged.watchers);
            }
            let Some(next) = next else { break };
            current = next;
        }
        true
    }

    /// The ring or symbol without a blocker that the blockers from `symbol` lead to.
    fn end_of_blockers(&mut self, symbol: u32) -> u32 {
        let mut path = SmallVec::<[u32; 16]>::new();
        let mut current = self.representative(symbol);
        while self.is_waiting(current) {
            let Some(ring) = self.ring(current) else { break };
            let (blocker, shortcut) = (ring.blocker, ring.shortcut);
            let valid = shortcut
                .filter(|to| self.symbols.at(*to).is_some_and(|(_, symbol)| symbol.state() != SymbolState::Ready));
            let Some(next) = valid.or(blocker) else { break };
            path.push(current);
            current = if self.is_waiting(next) { self.representative(next) } else { next };
        }
        for passed in path {
            if let Some(ring) = self.ring(passed) {
                ring.shortcut = (passed != current).then_some(current);
            }
        }
        current
    }
}

/// Appends the shorter list to the longer: their order is free.
fn append<A: smallvec::Array>(list: &mut SmallVec<A>, mut other: SmallVec<A>) {
    if other.len() > list.len() {
        std::mem::swap(list, &mut other);
    }
    list.extend(other);
}
