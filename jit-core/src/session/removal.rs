//! Transitions that take things away: units, names, trackers, dylibs, everything.

use jit_linker::SymbolName;
use rustc_hash::FxHashSet;
use smallvec::SmallVec;

use super::arena::Id;
use super::edges;
use super::manager::Notification;
use super::query::Query;
use super::state::{Dylib, Effects, Reach, State, Tracker, Unit, UnitList};
use super::symbol::{SymbolId, SymbolState};
use super::symbols::RemovedSymbol;
use crate::error::{Cause, Error, Use};
use crate::sync::Arc;

/// What becomes of code that depends on what is removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RemovalPolicy {
    /// Nothing is removed as long as something that stays depends on it.
    Refuse,
    /// It stays in memory and is not found any more: lookups of it fail, with the reason. A call of it through
    /// a slot lands in the failure handler.
    #[default]
    Poison,
    /// It is removed as well, whole units at a time, and what depends on that.
    Cascade,
}

impl RemovedSymbol {
    /// Leaves the error that it had failed with, which may be the user's, to be dropped without the lock; `ours` is the
    /// removal's own.
    fn leave_failure(self, ours: Option<&Arc<Cause>>, effects: &mut Effects) {
        if let Some(failure) = self.failure
            && !ours.is_some_and(|ours| Arc::ptr_eq(&failure, ours))
        {
            effects.resources.0.push(Box::new(failure));
        }
    }
}

impl State {
    /// Removes a tracker's units with their symbols; what still waits for one of them fails.
    pub(crate) fn remove_units(
        &mut self,
        id: Id<Tracker>,
        policy: RemovalPolicy,
        effects: &mut Effects,
    ) -> Result<(), Error> {
        let tracker = self.trackers.get_mut(id).ok_or(Error::DefunctTracker)?;
        let units = std::mem::take(&mut tracker.units);
        if let Err(error) = self.may_remove(&units, policy) {
            if let Some(tracker) = self.trackers.get_mut(id) {
                tracker.units = units;
            }
            return Err(error);
        }
        if let Some(tracker) = self.trackers.get_mut(id) {
            effects.resources.append(&mut tracker.resources);
            if self.managed {
                self.notifications.push(Notification::Removed { dylib: tracker.dylib, key: id });
            }
        }
        self.remove_all(units, policy, effects);
        Ok(())
    }

    /// Whether a dylib may be removed.
    pub(crate) fn may_remove_dylib(&self, id: Id<Dylib>, policy: RemovalPolicy) -> Result<(), Error> {
        self.may_remove(&self.units_of(id)?, policy)
    }

    /// The units of all of a dylib's trackers.
    fn units_of(&self, id: Id<Dylib>) -> Result<UnitList, Error> {
        let trackers = &self.dylibs.get(id).ok_or(Error::DylibGone)?.trackers;
        let trackers = trackers.iter().filter_map(|tracker| self.trackers.get(*tracker));
        Ok(trackers.flat_map(|tracker| tracker.units.iter().copied()).collect())
    }

    fn may_remove(&self, units: &[Id<Unit>], policy: RemovalPolicy) -> Result<(), Error> {
        if policy != RemovalPolicy::Refuse {
            return Ok(());
        }
        let removed: FxHashSet<_> = units.iter().copied().collect();
        let mut uses = Vec::new();
        for symbol in units.iter().filter_map(|unit| self.units.get(*unit)).flat_map(|unit| &unit.symbols) {
            let Some(symbol) = self.symbols.get(*symbol) else { continue };
            for user in self.edges.dependants(symbol.needed_by).filter_map(|index| Some(self.symbols.at(index)?.1)) {
                if !removed.contains(&user.unit) && user.failure().is_none() {
                    uses.push(Use { name: symbol.name(), user: user.name() });
                }
            }
        }
        if uses.is_empty() { Ok(()) } else { Err(Error::InUse(uses)) }
    }

    /// Units that depend on one of `units`, and those themselves.
    fn dependants(&self, units: UnitList) -> UnitList {
        let mut seen: FxHashSet<_> = units.iter().copied().collect();
        let mut all = units;
        let mut position = 0;
        while let Some(unit) = all.get(position).copied() {
            position += 1;
            let symbols = self.units.get(unit).map(|unit| unit.symbols.as_slice()).unwrap_or_default();
            for symbol in symbols.iter().filter_map(|symbol| self.symbols.get(*symbol)) {
                let users = self.edges.dependants(symbol.needed_by).filter_map(|index| Some(self.symbols.at(index)?.1));
                // A function that can be redirected outlives its bodies; an alias of one, with its slot, does not outlive it.
                let users = users.filter(|user| user.slot() == 0 || user.slot() == symbol.slot());
                all.extend(users.map(|user| user.unit).filter(|unit| seen.insert(*unit)));
            }
        }
        all
    }

    fn remove_all(&mut self, mut units: UnitList, policy: RemovalPolicy, effects: &mut Effects) {
        if policy == RemovalPolicy::Cascade {
            units = self.dependants(units);
        }
        let symbols: SmallVec<[SymbolId; 4]> = units
            .iter()
            .filter_map(|unit| self.units.get(*unit))
            .flat_map(|unit| unit.symbols.iter().copied())
            .collect();
        // Of the others nobody hears why they are gone.
        let noticed = || symbols.iter().copied().filter(|symbol| self.is_noticed(*symbol));
        let mut cause = None;
        if noticed().next().is_some() {
            let noticed: Vec<_> = noticed().collect();
            let cause = cause.insert(Arc::new(if self.ended { Cause::SessionEnded } else { Cause::Removed }));
            self.fail_all(noticed, cause, Reach::All, effects);
        }
        for symbol in symbols {
            if let Some(removed) = self.remove_symbol(symbol) {
                removed.leave_failure(cause.as_ref(), effects);
            }
        }
        for unit in units {
            self.telling.remove(&unit);
            effects.garbage.extend(self.take_unit(unit));
        }
    }

    /// Whether somebody waits for a symbol, needs or watches it, or it has failed.
    fn is_noticed(&self, id: SymbolId) -> bool {
        let Some(symbol) = self.symbols.get(id) else { return false };
        let is_used = symbol.pending.is_some() || symbol.needed_by != edges::NONE;
        is_used || self.watches.contains_key(&id) || self.aliases.contains_key(&id)
    }

    pub(crate) fn remove_symbol(&mut self, id: SymbolId) -> Option<RemovedSymbol> {
        let symbol = self.symbols.remove(id)?;
        let symbols = &mut self.symbols;
        self.edges.remove_needs(symbol.needs, |to, head| {
            if let Some(mut symbol) = symbols.at_mut(to) {
                symbol.needed_by = head;
            }
        });
        self.edges.orphan(symbol.needed_by);
        Some(symbol)
    }

    /// Removes names of a dylib, all or none.
    pub(crate) fn remove_names(
        &mut self,
        dylib: Id<Dylib>,
        names: &[SymbolName],
        effects: &mut Effects,
    ) -> Result<(), Error> {
        self.dylibs.get(dylib).ok_or(Error::DylibGone)?;
        let (mut missing, mut busy, mut found) = (Vec::new(), Vec::new(), Vec::new());
        for name in names {
            let entry = self.symbols.find(dylib, name).and_then(|id| Some((id, self.symbols.get(id)?)));
            match entry {
                None => missing.push(name.clone()),
                Some((id, symbol)) if symbol.failure().is_some() => found.push(id),
                Some((id, symbol)) => match symbol.state() {
                    SymbolState::NeverSearched | SymbolState::Ready => found.push(id),
                    _ => busy.push(name.clone()),
                },
            }
        }
        if !missing.is_empty() {
            return Err(Error::SymbolsNotFound(missing));
        }
        if !busy.is_empty() {
            return Err(Error::SymbolsBusy(busy));
        }
        let cause = Arc::new(Cause::Removed);
        for id in found {
            let Some(symbol) = self.symbols.get(id) else { continue };
            if symbol.state() == SymbolState::NeverSearched {
                self.discard(id, effects);
                continue;
            }
            self.fail_all([id], &cause, Reach::All, effects);
            let Some(symbol) = self.remove_symbol(id) else { continue };
            let owner = symbol.unit;
            symbol.leave_failure(Some(&cause), effects);
            let Some(unit) = self.units.get_mut(owner) else { continue };
            unit.symbols.retain(|other| *other != id);
            if unit.symbols.is_empty() {
                let garbage = self.take_unit(owner);
                effects.garbage.extend(garbage);
            }
        }
        Ok(())
    }

    /// Makes everything of one tracker another's, of the same dylib. The first is defunct then.
    pub(crate) fn transfer(&mut self, from: Id<Tracker>, to: Id<Tracker>) -> Result<(), Error> {
        if from == to {
            return self.trackers.get(from).map(|_| ()).ok_or(Error::DefunctTracker);
        }
        let source = self.trackers.get(from).ok_or(Error::DefunctTracker)?;
        let dylib = source.dylib;
        let is_counted = source.counted_by.is_some() || !source.counted.is_empty();
        if self.trackers.get(to).ok_or(Error::DefunctTracker)?.dylib != dylib {
            return Err(Error::ForeignTracker);
        }
        if is_counted {
            // What it counts goes along; who counted it counts the other's, if at all.
            self.count(from, None);
            let counted: Vec<_> =
                self.trackers.get(from).into_iter().flat_map(|source| source.counted.iter().copied()).collect();
            counted.into_iter().for_each(|id| self.count(id, Some(to)));
        }
        let Some(mut source) = self.replace_tracker(from, to) else { return Err(Error::DefunctTracker) };
        if let Some(target) = self.trackers.get_mut(to) {
            target.units.reserve(source.units.len());
            for id in source.units {
                if let Some(unit) = self.units.get_mut(id) {
                    unit.tracker = to;
                    unit.position = target.units.len() as u32;
                    target.units.push(id);
                }
            }
            target.resources.append(&mut source.resources);
        }
        self.hold_more(to, source.memory_used);
        Ok(())
    }

    /// Takes a tracker away, in whose place comes another of the same dylib.
    fn replace_tracker(&mut self, from: Id<Tracker>, to: Id<Tracker>) -> Option<Tracker> {
        let tracker = self.trackers.remove(from)?;
        let dylib = tracker.dylib;
        if let Some(entry) = self.dylibs.get_mut(dylib) {
            entry.trackers.remove(&from);
            if entry.default_tracker == from {
                entry.default_tracker = to;
            }
        }
        if self.managed {
            self.notifications.push(Notification::Transferred { dylib, to, from });
        }
        Some(tracker)
    }

    /// The last handle of a tracker is gone: what it has belongs to the dylib's default one.
    pub(crate) fn release_tracker(&mut self, id: Id<Tracker>) {
        let Some(tracker) = self.trackers.get(id) else { return };
        let Some(default) = self.dylibs.get(tracker.dylib).map(|dylib| dylib.default_tracker) else { return };
        if default == id {
            return;
        }
        if tracker.has_nothing() {
            self.replace_tracker(id, default);
            return;
        }
        // Both are there, and of one dylib.
        _ = self.transfer(id, default);
    }

    /// Removes what all trackers of a dylib have.
    pub(crate) fn clear_dylib(
        &mut self,
        id: Id<Dylib>,
        policy: RemovalPolicy,
        effects: &mut Effects,
    ) -> Result<(), Error> {
        let units = self.units_of(id)?;
        // All of them at once: they may depend on each other.
        self.may_remove(&units, policy)?;
        let trackers: Vec<_> =
            self.dylibs.get(id).into_iter().flat_map(|dylib| dylib.trackers.iter().copied()).collect();
        for id in trackers {
            if let Some(tracker) = self.trackers.get_mut(id) {
                tracker.units.clear();
                effects.resources.append(&mut tracker.resources);
                if self.managed {
                    self.notifications.push(Notification::Removed { dylib: tracker.dylib, key: id });
                }
            }
        }
        self.remove_all(units, policy, effects);
        Ok(())
    }

    /// Removes a dylib with everything in it.
    pub(crate) fn remove_dylib(
        &mut self,
        id: Id<Dylib>,
        policy: RemovalPolicy,
        effects: &mut Effects,
    ) -> Result<(), Error> {
        self.clear_dylib(id, policy, effects)?;
        let Some(dylib) = self.dylibs.remove(id) else { return Err(Error::DylibGone) };
        self.symbols.published().remove_dylib(id);
        self.dylib_names.remove(&dylib.name);
        for tracker in dylib.trackers {
            self.trackers.remove(tracker);
        }
        if !dylib.generators.is_empty() {
            effects.rare().generators.extend(dylib.generators);
        }
        Ok(())
    }

    /// Lets nobody create a dylib any more. Gives those that there are, the newest first; none to who comes second.
    pub(crate) fn begin_end(&mut self) -> Vec<Id<Dylib>> {
        if std::mem::replace(&mut self.ending, true) {
            return Vec::new();
        }
        let mut dylibs: Vec<_> = self.dylibs.iter().map(|(id, _)| id).collect();
        dylibs.reverse();
        dylibs
    }

    /// Ends the session: everything goes, newest dylib first, and whoever waits is told.
    pub(crate) fn end(&mut self, effects: &mut Effects) {
        self.ended = true;
        let mut dylibs: Vec<_> = self.dylibs.iter().map(|(id, _)| id).collect();
        dylibs.reverse();
        for dylib in dylibs {
            _ = self.remove_dylib(dylib, RemovalPolicy::Poison, effects);
        }
        let cause = Arc::new(Cause::SessionEnded);
        let queries: Vec<Id<Query>> = self.queries.iter().map(|(id, _)| id).collect();
        for id in queries {
            if let Some(mut query) = self.take_query(id) {
                query.fail_rest(&cause, |symbol| self.dylib_name(symbol));
                effects.answers.push(query);
            }
        }
    }
}
