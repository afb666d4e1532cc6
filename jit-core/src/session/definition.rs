//! Transitions that enter definitions into a dylib's table, and take them out of their units.

use jit_linker::{NonOwningSymbolName, SymbolName};
use rustc_hash::FxHashSet;
use smallvec::SmallVec;

use super::arena::Id;
use super::dispatch::Priority;
use super::dylib::AbsoluteSymbol;
use super::state::{
    Content, Discard, Dylib, Effects, Materializer, Stage, State, Telling, Tracker, Unit, UnitDefinition, UnitEntry,
    UnitSource,
};
use super::symbol::{SymbolDeclaration, SymbolFlags, SymbolId, SymbolState};
use super::symbols::Occupied;
use crate::error::{Cause, DuplicateDefinition, Error};
use crate::sync::Arc;

/// How many names are fetched into the cache together.
pub(super) const FETCHED: usize = 32;

impl State {
    /// Defines units that were [checked](Self::check). A weak definition that another one makes pointless is told so to
    /// its unit, and not defined.
    pub(crate) fn define(
        &mut self,
        tracker: Id<Tracker>,
        units: impl UnitSource,
        initializers: Vec<(usize, SymbolName)>,
        effects: &mut Effects,
    ) {
        let Some(dylib) = self.trackers.get(tracker).map(|tracker| tracker.dylib) else { return };
        let count = units.len();
        self.symbols.reserve(count);
        let mut initializers = initializers.into_iter().peekable();
        for (position, entry) in units.into_entries().enumerate() {
            let initializer = initializers.next_if(|(owner, _)| *owner == position).map(|(_, name)| name);
            self.install(dylib, tracker, entry, initializer, effects);
        }
    }

    /// Whether the definitions could be entered as things are.
    pub(crate) fn check(&self, tracker: Id<Tracker>, units: &impl UnitSource) -> Result<(), Error> {
        let dylib = self.trackers.get(tracker).ok_or(Error::DefunctTracker)?.dylib;
        self.check_strong(dylib, units.len(), || units.names().filter(|(_, flags, _)| flags.is_strong()))
    }

    /// Refuses strong definitions that meet each other or one that can't be replaced.
    fn check_strong<'a, I: Iterator<Item = (SymbolName, SymbolFlags, &'a str)>>(
        &self,
        dylib: Id<Dylib>,
        count: usize,
        strong: impl Fn() -> I,
    ) -> Result<(), Error> {
        self.dylibs.get(dylib).ok_or(Error::DylibGone)?;
        let is_alone = strong().nth(1).is_none();
        // Whoever is asked for the names keeps them.
        let mut here: FxHashSet<NonOwningSymbolName> = FxHashSet::default();
        if !is_alone {
            here.reserve(count);
        }
        let mut duplicates = Vec::new();
        for (name, _, unit) in strong() {
            let earlier = match is_alone || here.insert(name.non_owning()) {
                true => self.symbols.find(dylib, &name).and_then(|existing| self.irreplaceable(existing)),
                false => strong().find(|(other, ..)| *other == name).map(|(.., unit)| unit.to_owned()),
            };
            if let Some(first) = earlier {
                duplicates.push(self.duplicate(dylib, name, first, unit));
            }
        }
        if duplicates.is_empty() { Ok(()) } else { Err(Error::DuplicateDefinitions(duplicates)) }
    }

    /// Those of the new symbols that can't take the place of the ones they meet: a definition that nobody has searched for
    /// gives way, to one.
    pub(super) fn duplicates<'a>(
        &self,
        dylib: Id<Dylib>,
        met: impl Iterator<Item = (SymbolId, &'a SymbolName)>,
        unit: &str,
    ) -> Vec<DuplicateDefinition> {
        let mut replaced = FxHashSet::default();
        met.filter_map(|(by, name)| {
            let again = !replaced.insert(by);
            let first = self.irreplaceable(by).or_else(|| again.then(|| unit.to_owned()))?;
            Some(self.duplicate(dylib, name.clone(), first, unit))
        })
        .collect()
    }

    /// The unit of a symbol whose place no other may take.
    fn irreplaceable(&self, id: SymbolId) -> Option<String> {
        let symbol = self.symbols.get(id)?;
        let replaceable = !symbol.flags().is_strong() && symbol.state() == SymbolState::NeverSearched;
        (!replaceable).then(|| self.unit_name(symbol.unit))
    }

    fn unit_name(&self, unit: Id<Unit>) -> String {
        self.units.get(unit).map(|unit| unit.name.to_string()).unwrap_or_default()
    }

    /// Enters a unit without symbols.
    pub(crate) fn insert_unit(&mut self, name: Arc<str>, tracker: Id<Tracker>, stage: Stage) -> Option<Id<Unit>> {
        let owner = self.trackers.get_mut(tracker)?;
        let id = self.units.next_id();
        let position = owner.units.len() as u32;
        owner.units.push(id);
        Some(self.units.insert(Unit {
            name,
            tracker,
            position,
            stage,
            awaited: false,
            content: Content::Nothing,
            symbols: SmallVec::new(),
            memory_used: 0,
            resources: None,
        }))
    }

    fn install(
        &mut self,
        dylib: Id<Dylib>,
        tracker: Id<Tracker>,
        entry: UnitEntry,
        initializer: Option<SymbolName>,
        effects: &mut Effects,
    ) {
        let UnitEntry { symbols, materializer, name } = entry;
        // Before its symbols: a unit that they replace gives its place in the table back.
        let Some(id) = self.insert_unit(name, tracker, Stage::Waiting) else { return };
        let mut ids = SmallVec::new();
        let mut lost = SmallVec::<[SymbolName; 1]>::new();
        for declaration in symbols {
            let name = declaration.name.clone();
            match self.place(dylib, id, declaration, effects) {
                Some(symbol) => {
                    if initializer.as_ref() == Some(&name) {
                        self.initializers.insert(id, symbol);
                    }
                    ids.push(symbol);
                }
                None => lost.push(name),
            }
        }
        if ids.is_empty() {
            effects.garbage.extend(self.take_unit(id));
            if lost.is_empty() {
                effects.rare().dropped.push(materializer);
            } else {
                effects.rare().discards.push(Discard { unit: id, materializer, names: lost });
            }
            return;
        }
        if let Some(entry) = self.units.get_mut(id) {
            entry.symbols = ids;
            entry.content = Content::Materializer(materializer);
        }
        if !lost.is_empty() {
            self.tell(id, lost, effects);
        }
    }

    /// Defines symbols whose addresses are known, all or none. The strong ones are ready.
    pub(crate) fn define_absolute(
        &mut self,
        tracker: Id<Tracker>,
        symbols: Vec<AbsoluteSymbol>,
        effects: &mut Effects,
    ) -> Result<(), Error> {
        let dylib = self.trackers.get(tracker).ok_or(Error::DefunctTracker)?.dylib;
        let name: Arc<str> = Arc::from("absolute symbols");
        let unit = self.insert_unit(Arc::clone(&name), tracker, Stage::Running).ok_or(Error::DefunctTracker)?;
        self.symbols.reserve(symbols.len());
        let mut ids = SmallVec::with_capacity(symbols.len());
        // Entered as they come: a table of many thousand is not searched twice. Those that meet another definition wait
        // until it is known that all can be.
        let (mut met, mut weak) = (Vec::new(), Vec::new());
        let mut symbols = symbols.into_iter();
        while !symbols.as_slice().is_empty() {
            let count = symbols.len().min(FETCHED);
            self.symbols.fetch(dylib, symbols.as_slice()[..count].iter().map(|symbol| &symbol.name));
            for symbol in symbols.by_ref().take(count) {
                if !symbol.flags.is_strong() {
                    weak.push(symbol);
                    continue;
                }
                match self.enter_absolute(dylib, unit, symbol, SymbolState::Ready) {
                    Ok(id) => ids.push(id),
                    Err(other) => met.push(other),
                }
            }
        }
        let duplicates = self.duplicates(dylib, met.iter().map(|(by, symbol)| (*by, &symbol.name)), &name);
        if !duplicates.is_empty() {
            for id in ids {
                self.remove_symbol(id);
            }
            effects.garbage.extend(self.take_unit(unit));
            return Err(Error::DuplicateDefinitions(duplicates));
        }
        for (by, symbol) in met {
            self.discard(by, effects);
            ids.extend(self.enter_absolute(dylib, unit, symbol, SymbolState::Ready).ok());
        }
        if ids.is_empty() {
            effects.garbage.extend(self.take_unit(unit));
        } else if let Some(unit) = self.units.get_mut(unit) {
            ids.shrink_to_fit();
            unit.symbols = ids;
        }
        for symbol in weak {
            // Each is used or replaced by itself.
            let Some(unit) = self.insert_unit(Arc::clone(&name), tracker, Stage::Waiting) else { break };
            match self.enter_absolute(dylib, unit, symbol, SymbolState::NeverSearched) {
                Err(_) => effects.garbage.extend(self.take_unit(unit)),
                Ok(id) => {
                    if let Some(unit) = self.units.get_mut(unit) {
                        unit.symbols.push(id);
                    }
                }
            }
        }
        Ok(())
    }

    /// Enters an absolute symbol, unless there is one of its name: then it comes back with that.
    fn enter_absolute(
        &mut self,
        dylib: Id<Dylib>,
        unit: Id<Unit>,
        symbol: AbsoluteSymbol,
        state: SymbolState,
    ) -> Result<SymbolId, (SymbolId, AbsoluteSymbol)> {
        let flags = SymbolFlags { absolute: true, ..symbol.flags };
        self.enter(dylib, unit, AbsoluteSymbol { flags, ..symbol }, state)
    }

    /// As [`enter_absolute`](Self::enter_absolute), with the flags as they are.
    pub(super) fn enter(
        &mut self,
        dylib: Id<Dylib>,
        unit: Id<Unit>,
        symbol: AbsoluteSymbol,
        state: SymbolState,
    ) -> Result<SymbolId, (SymbolId, AbsoluteSymbol)> {
        let AbsoluteSymbol { name, definition, flags, signature } = symbol;
        match self.symbols.insert(dylib, name, flags, signature, unit) {
            Ok(id) => {
                if let Some(mut symbol) = self.symbols.get_mut(id) {
                    symbol.set_definition(&definition);
                    symbol.set_state(state);
                }
                Ok(id)
            }
            Err(Occupied { by, name, signature }) => Err((by, AbsoluteSymbol { name, definition, flags, signature })),
        }
    }

    fn duplicate(&self, dylib: Id<Dylib>, name: SymbolName, first: String, second: &str) -> DuplicateDefinition {
        let dylib = self.dylibs.get(dylib).map(|dylib| dylib.name.clone()).unwrap_or_default();
        DuplicateDefinition { name, dylib, first, second: second.to_owned() }
    }

    /// Enters a symbol into its dylib's table, unless it loses to another.
    fn place(
        &mut self,
        dylib: Id<Dylib>,
        unit: Id<Unit>,
        declaration: SymbolDeclaration,
        effects: &mut Effects,
    ) -> Option<SymbolId> {
        let SymbolDeclaration { name, flags, signature } = declaration;
        match self.symbols.insert(dylib, name, flags, signature, unit) {
            Ok(id) => Some(id),
            Err(Occupied { by, name, signature }) => {
                if !flags.is_strong() {
                    return None;
                }
                self.discard(by, effects);
                self.symbols.insert(dylib, name, flags, signature, unit).ok()
            }
        }
    }

    /// Takes a symbol that was never searched for away from its unit.
    pub(crate) fn discard(&mut self, id: SymbolId, effects: &mut Effects) {
        let Some(symbol) = self.remove_symbol(id) else { return };
        let unit_id = symbol.unit;
        if self.initializers.get(&unit_id) == Some(&id) {
            self.initializers.remove(&unit_id);
        }
        let Some(unit) = self.units.get_mut(unit_id) else { return };
        unit.symbols.retain(|other| *other != id);
        let empty = unit.symbols.is_empty();
        self.tell(unit_id, SmallVec::from_iter([symbol.name]), effects);
        if empty {
            effects.garbage.extend(self.take_unit(unit_id));
        }
    }

    /// Has a unit told which of its definitions are not wanted.
    fn tell(&mut self, id: Id<Unit>, names: SmallVec<[SymbolName; 1]>, effects: &mut Effects) {
        if let Some(telling) = self.telling.get_mut(&id) {
            telling.names.extend(names);
            return;
        }
        let Some(materializer) = self.units.get_mut(id).and_then(Unit::take_materializer) else { return };
        self.telling.insert(id, Telling::default());
        effects.rare().discards.push(Discard { unit: id, materializer, names });
    }

    /// Takes a unit back that has been told. Gives it again if there is more to tell.
    pub(crate) fn told(
        &mut self,
        id: Id<Unit>,
        materializer: Option<Materializer>,
        effects: &mut Effects,
    ) -> Option<Discard> {
        if let Some(telling) = self.telling.get_mut(&id)
            && !telling.names.is_empty()
            && let Some(materializer) = materializer
        {
            return Some(Discard { unit: id, materializer, names: std::mem::take(&mut telling.names) });
        }
        let telling = self.telling.remove(&id);
        match (self.units.get_mut(id), materializer) {
            (Some(unit), Some(materializer)) if telling.is_some() => {
                unit.content = Content::Materializer(materializer);
                if let Some(priority) = telling.and_then(|telling| telling.missed) {
                    effects.dispatch.push((id, priority));
                }
            }
            (_, Some(materializer)) => effects.rare().dropped.push(materializer),
            (_, None) => {}
        }
        None
    }

    /// Removes a unit from the tables, its symbols aside.
    pub(crate) fn take_unit(&mut self, id: Id<Unit>) -> Option<Unit> {
        let unit = self.units.remove(id)?;
        self.initializers.remove(&id);
        self.give_back(unit.tracker, unit.memory_used);
        if let Some(tracker) = self.trackers.get_mut(unit.tracker) {
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

    /// Adds definitions to a unit that runs: strong ones all or none, weak ones that are not
    /// defined yet. Gives the names that were accepted.
    pub(crate) fn define_materializing(
        &mut self,
        unit_id: Id<Unit>,
        declarations: Vec<SymbolDeclaration>,
        effects: &mut Effects,
    ) -> Result<Vec<SymbolName>, Error> {
        let unit = self.units.get(unit_id).ok_or(Error::DefunctTracker)?;
        let dylib = self.trackers.get(unit.tracker).ok_or(Error::DefunctTracker)?.dylib;
        let name = Arc::clone(&unit.name);
        let strong = || {
            let strong = declarations.iter().filter(|declaration| declaration.flags.is_strong());
            strong.map(|declaration| (declaration.name.clone(), declaration.flags, &*name))
        };
        self.check_strong(dylib, declarations.len(), strong)?;
        let mut accepted = Vec::new();
        for declaration in declarations {
            let name = declaration.name.clone();
            let Some(id) = self.place(dylib, unit_id, declaration, effects) else { continue };
            if let Some(mut symbol) = self.symbols.get_mut(id) {
                symbol.set_state(SymbolState::Materializing);
            }
            if let Some(unit) = self.units.get_mut(unit_id) {
                unit.symbols.push(id);
            }
            accepted.push(name);
        }
        Ok(accepted)
    }

    /// Moves symbols of a running unit, none of which has an address, to a new unit of its
    /// tracker.
    pub(crate) fn split(&mut self, from: Id<Unit>, names: &[SymbolName], to: Arc<str>) -> Result<Id<Unit>, Error> {
        let unit = self.units.get(from).ok_or(Error::DefunctTracker)?;
        let tracker = unit.tracker;
        let mut moved = SmallVec::<[SymbolId; 1]>::with_capacity(names.len());
        let dylib = self.trackers.get(tracker).ok_or(Error::DefunctTracker)?.dylib;
        for name in names {
            let own = self.symbols.find(dylib, name).and_then(|id| Some((id, self.symbols.get(id)?)));
            match own {
                Some((id, symbol)) if symbol.unit == from && symbol.state() == SymbolState::Materializing => {
                    moved.push(id)
                }
                _ => return Err(Error::UnexpectedDefinition(name.clone())),
            }
        }
        let id = self.insert_unit(to, tracker, Stage::Running).ok_or(Error::DefunctTracker)?;
        for symbol in &moved {
            if let Some(mut symbol) = self.symbols.get_mut(*symbol) {
                symbol.unit = id;
            }
        }
        if let Some(unit) = self.units.get_mut(from) {
            if moved.len() == 1 {
                unit.symbols.retain(|symbol| *symbol != moved[0]);
            } else {
                let symbols = &self.symbols;
                unit.symbols.retain(|symbol| symbols.get(*symbol).is_some_and(|symbol| symbol.unit == from));
            }
        }
        if let Some(initializer) = self.initializers.get(&from).copied()
            && moved.contains(&initializer)
        {
            self.initializers.remove(&from);
            self.initializers.insert(id, initializer);
        }
        let awaited = self.units.get(from).is_some_and(|unit| unit.awaited);
        if let Some(unit) = self.units.get_mut(id) {
            unit.symbols = moved;
            unit.awaited = awaited;
        }
        Ok(id)
    }

    /// Hands symbols of a running unit to another one, which runs when one of them is needed: now
    /// if somebody waits already.
    pub(crate) fn replace(
        &mut self,
        from: Id<Unit>,
        definition: UnitDefinition,
        effects: &mut Effects,
    ) -> Result<(), Error> {
        let names: Vec<_> = definition.symbols.iter().map(|symbol| symbol.name.clone()).collect();
        let id = match self.split(from, &names, definition.name) {
            Ok(id) => id,
            Err(error) => {
                effects.rare().dropped.push(Materializer::Unit(definition.unit));
                return Err(error);
            }
        };
        let mut wanted = false;
        for symbol in self.units.get(id).map(|unit| unit.symbols.clone()).unwrap_or_default() {
            wanted |= self.symbols.get(symbol).is_some_and(|symbol| self.is_awaited(symbol));
            // The symbol stays bound to this definition: it has been searched for.
        }
        if let Some(unit) = self.units.get_mut(id) {
            unit.content = Content::Materializer(Materializer::Unit(definition.unit));
            unit.stage = if wanted { Stage::Awaited } else { Stage::Waiting };
            unit.awaited = wanted;
        }
        if wanted {
            effects.dispatch.push((id, Priority::Awaited));
        }
        Ok(())
    }

    /// Symbols of a unit that somebody waits for.
    pub(crate) fn requested(&self, unit: Id<Unit>) -> Vec<SymbolName> {
        let Some(unit) = self.units.get(unit) else { return Vec::new() };
        let symbols = unit.symbols.iter().filter_map(|id| self.symbols.get(*id));
        symbols.filter(|symbol| self.is_awaited(*symbol)).map(|symbol| symbol.name()).collect()
    }

    /// Fails a unit whose materializer was lost.
    pub(crate) fn lose(&mut self, unit: Id<Unit>, cause: &Arc<Cause>, effects: &mut Effects) {
        self.telling.remove(&unit);
        let symbols = self.units.get(unit).map(|unit| unit.symbols.clone()).unwrap_or_default();
        self.fail(symbols, cause, effects);
    }
}
