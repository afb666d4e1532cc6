//! Definitions that are complete when they are made: functions whose stubs are there.

use smallvec::SmallVec;

use super::ResourceTracker;
use super::arena::Id;
use super::definition::FETCHED;
use super::dylib::AbsoluteSymbol;
use super::state::{Effects, Resources, Stage, State, Tracker, Unit};
use super::symbol::SymbolState;
use crate::error::Error;
use crate::sync::Arc;

/// Symbols that are ready, in units that hold something as long as they are there.
pub(crate) struct ReadyUnits {
    /// What all of the units are called in errors.
    pub(crate) name: Arc<str>,
    pub(crate) units: Vec<ReadyUnit>,
}

pub(crate) struct ReadyUnit {
    /// They are strong.
    pub(crate) symbols: Vec<AbsoluteSymbol>,
    pub(crate) holds: Box<dyn Send>,
}

impl ResourceTracker {
    /// Defines symbols that are ready, all or none. The platform is not told.
    pub(crate) fn define_ready(&self, units: ReadyUnits) -> Result<(), Error> {
        let mut effects = Effects::default();
        let result = self.session().state().define_ready(self.id(), units, &mut effects);
        self.session().perform(effects);
        result
    }
}

impl State {
    fn define_ready(
        &mut self,
        tracker: Id<Tracker>,
        definition: ReadyUnits,
        effects: &mut Effects,
    ) -> Result<(), Error> {
        let ReadyUnits { name, units } = definition;
        let Some(dylib) = self.trackers.get(tracker).map(|tracker| tracker.dylib) else {
            // Not dropped here, where the lock is held.
            effects.resources.0.extend(units.into_iter().map(|unit| unit.holds));
            return Err(Error::DefunctTracker);
        };
        self.symbols.reserve(units.iter().map(|unit| unit.symbols.len()).sum());
        let mut entered: Vec<Id<Unit>> = Vec::with_capacity(units.len());
        let mut met = Vec::new();
        for ReadyUnit { symbols, holds } in units {
            let Some(unit) = self.insert_unit(Arc::clone(&name), tracker, Stage::Running) else {
                effects.resources.0.push(holds);
                continue;
            };
            entered.push(unit);
            let mut ids = SmallVec::with_capacity(symbols.len());
            let mut symbols = symbols.into_iter();
            while !symbols.as_slice().is_empty() {
                let count = symbols.len().min(FETCHED);
                self.symbols.fetch(dylib, symbols.as_slice()[..count].iter().map(|symbol| &symbol.name));
                for symbol in symbols.by_ref().take(count) {
                    match self.enter(dylib, unit, symbol, SymbolState::Ready) {
                        Ok(id) => ids.push(id),
                        Err((by, symbol)) => met.push((by, unit, symbol)),
                    }
                }
            }
            if let Some(unit) = self.units.get_mut(unit) {
                unit.symbols = ids;
                unit.resources = Some(Box::new(Resources(vec![holds])));
            }
        }
        let duplicates = self.duplicates(dylib, met.iter().map(|(by, _, symbol)| (*by, &symbol.name)), &name);
        if !duplicates.is_empty() {
            for unit in entered {
                let symbols = self.units.get_mut(unit).map(|unit| std::mem::take(&mut unit.symbols));
                for id in symbols.into_iter().flatten() {
                    self.remove_symbol(id);
                }
                effects.garbage.extend(self.take_unit(unit));
            }
            return Err(Error::DuplicateDefinitions(duplicates));
        }
        for (by, unit, symbol) in met {
            self.discard(by, effects);
            let id = self.enter(dylib, unit, symbol, SymbolState::Ready).ok();
            if let Some(unit) = self.units.get_mut(unit) {
                unit.symbols.extend(id);
            }
        }
        Ok(())
    }
}
