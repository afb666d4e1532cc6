//! Redirectable functions: one address for life, and a body that can be replaced.
//!
//! Such a function has a slot, which holds where its body is now, and a stub, an indirect jump
//! through the slot, whose address is the function's. Calls from compiled code go through the
//! slot. Its bodies are ordinary functions with names of their own, defined when they are needed.

mod body;
mod claim;
mod object;
mod places;
mod table;
mod tier;
mod unit;

use std::collections::HashMap;

use jit_linker::SymbolName;
use rustc_hash::FxHashSet;
use smallvec::SmallVec;

use crate::clif::{ClifLayer, ClifModule, RESERVED};
use crate::error::{Cause, DuplicateDefinition, Error, LookupError, SymbolFailure};
use crate::session::{
    AbsoluteSymbol, Alias, ExecutionSession, FoundSymbol, JitDylib, MaterializationUnit, ReadyUnit, ReadyUnits,
    ResourceTracker, SearchOrder, SymbolDeclaration, SymbolState, UnitDefinition, WeakTracker,
};
use crate::sync::{Arc, Mutex, lock};
pub(crate) use body::BodySource;
use body::{Owner, Versions};
use claim::Claims;
use table::{Refused, Replacement};
use unit::{EagerUnit, LazyUnit};

pub use body::{BodyMaker, RedirectableFunction};
pub use object::LazyObjects;
pub(crate) use places::{BLOCK, Body, FunctionId};
pub(crate) use table::FunctionTable;
pub use tier::{FirstTier, FirstTierBody, Promoter};

/// The redirectable functions of a JIT.
pub(crate) struct Redirections {
    table: Arc<FunctionTable>,
    first_tier: Option<Arc<dyn FirstTier>>,
    /// Removes a function whose definition has failed. Lazy ones' don't.
    trackers: Mutex<HashMap<SymbolName, ResourceTracker>>,
    versions: Arc<Mutex<Versions>>,
    claims: Claims,
}

/// Items whose functions are new, and replacements, each with the body that its function has.
type Divided = (Vec<u32>, Vec<(Replacement, Body)>);

/// What units of redirectable functions are called.
const UNIT: &str = "redirectable functions";

/// Removes what was defined with a tracker.
struct RemoveOnDrop(WeakTracker);

impl Drop for RemoveOnDrop {
    fn drop(&mut self) {
        if let Some(tracker) = self.0.upgrade() {
            // An error means that the dylib is gone.
            _ = tracker.remove();
        }
    }
}

impl Redirections {
    pub(crate) fn new(
        table: FunctionTable,
        first_tier: Option<Arc<dyn FirstTier>>,
        session: &ExecutionSession,
    ) -> Result<Self, Error> {
        let table = Arc::new(table);
        let slots = Arc::downgrade(&table);
        session.set_slots(Arc::new(move |linked| {
            let links: Box<dyn Send + Sync> = Box::new(slots.upgrade()?.link(linked));
            Some(links)
        }));
        if let Some(first_tier) = &first_tier {
            first_tier.start(Promoter { table: Arc::downgrade(&table) }, session.executor().memory())?;
        }
        Ok(Self { table, first_tier, trackers: Mutex::default(), versions: Arc::default(), claims: Claims::default() })
    }

    /// Makes functions of objects lazy, if functions are.
    pub(crate) fn lazy_objects(&self) -> Option<LazyObjects> {
        self.table.first_call.as_ref()?;
        Some(LazyObjects { table: Arc::clone(&self.table), versions: Arc::clone(&self.versions) })
    }

    /// The newest body of what was found, if it is redirectable and there still, with its name. It is defined from now on.
    pub(crate) fn body_of(&self, found: &FoundSymbol) -> Option<Result<(Body, SymbolName), Error>> {
        let slot = found.definition.slot?;
        let mut body = self.table.body_at(slot)?;
        loop {
            let dylib = body.source.dylib()?.upgrade()?;
            // Otherwise the slot may be another function's. It is given back after the symbol.
            dylib.session().code_of(found.id)?;
            let name = body.source.define(dylib.session(), body.item);
            match self.table.body_at(slot).filter(|newest| name.is_err() && !newest.is_same(&body)) {
                Some(newest) => body = newest,
                None => return Some(name.map(|name| (body, name))),
            }
        }
    }

    /// Whether a function has no newer body.
    pub(crate) fn is_newest(&self, body: &Body) -> bool {
        let newest = body.source.dylib().and_then(|dylib| self.table.find(body.function(), dylib));
        newest.is_none_or(|(_, newest)| newest.is_same(body))
    }

    /// Makes calls go to a body, if it is still the newest of its function.
    pub(crate) fn publish(&self, session: &ExecutionSession, body: &Body, found: &FoundSymbol) {
        let newest = body.source.dylib().and_then(|dylib| self.table.find(body.function(), dylib));
        if let Some((id, _)) = newest {
            // What was found is code: it stands for nothing else.
            _ = self.table.publish(session, id, body, found);
        }
    }

    /// Defines the exported functions of a module, or gives them new bodies. The tracker removes
    /// the functions that are new.
    pub(crate) fn define(
        &self,
        layer: &ClifLayer,
        dylib: &JitDylib,
        module: ClifModule,
    ) -> Result<ResourceTracker, Error> {
        let tracker = dylib.create_tracker()?;
        let owner = self.owner(dylib, &tracker);
        let units = layer.add_redirectable(&tracker, module, self.first_tier.clone())?;
        self.install(dylib, Arc::new(BodySource::Module { owner, units }))
    }

    /// As [`define`](Self::define), for functions whose bodies the user's units make.
    pub(crate) fn define_with(
        &self,
        dylib: &JitDylib,
        functions: Vec<RedirectableFunction>,
    ) -> Result<ResourceTracker, Error> {
        let owner = self.owner(dylib, &dylib.create_tracker()?);
        self.install(dylib, Arc::new(BodySource::custom(owner, functions)))
    }

    /// As [`define`](Self::define), for functions that are others by another name.
    pub(crate) fn re_export(
        &self,
        dylib: &JitDylib,
        order: &SearchOrder,
        functions: Vec<Alias>,
    ) -> Result<ResourceTracker, Error> {
        let source = BodySource::ReExports { dylib: dylib.downgrade(), order: order.clone(), functions };
        self.install(dylib, Arc::new(source))
    }

    fn owner(&self, dylib: &JitDylib, tracker: &ResourceTracker) -> Owner {
        Owner::new(dylib, tracker, &self.versions)
    }

    fn install(&self, dylib: &JitDylib, source: Arc<BodySource>) -> Result<ResourceTracker, Error> {
        let items = source.items();
        let tracker = dylib.create_tracker()?;
        let entered = {
            // Nobody else defines one of them between the look and the definition.
            let _claim = self.claims.claim(&source, &items);
            self.divide(dylib, &source, &items).and_then(|(new, known)| {
                self.count(&tracker, &source, &new, &known);
                let known = known.into_iter().map(|(replacement, _)| replacement).collect();
                self.enter(dylib, &tracker, &source, &new).map(|()| known)
            })
        };
        if let Err(error) = entered.and_then(|mut known: Vec<_>| self.replace(dylib, &mut known)) {
            // An error means that the dylib is gone.
            _ = tracker.remove();
            return Err(error);
        }
        Ok(tracker)
    }

    /// Refuses one function that is replaced twice. Of one that is new twice, its definition says so.
    fn check_names(dylib: &JitDylib, known: &[(Replacement, Body)]) -> Result<(), Error> {
        let mut ids = FxHashSet::default();
        let twice = known.iter().filter(|(replacement, _)| !ids.insert(replacement.id));
        let duplicates: Vec<_> = twice
            .map(|(replacement, _)| DuplicateDefinition {
                name: replacement.body.function().clone(),
                dylib: dylib.name().unwrap_or_default(),
                first: UNIT.to_owned(),
                second: UNIT.to_owned(),
            })
            .collect();
        if duplicates.is_empty() { Ok(()) } else { Err(Error::DuplicateDefinitions(duplicates)) }
    }

    /// Which of a source's functions are new, and those that are not, with the bodies that they have.
    fn divide(&self, dylib: &JitDylib, source: &Arc<BodySource>, items: &[u32]) -> Result<Divided, Error> {
        let (mut new, mut known) = (Vec::with_capacity(items.len()), Vec::new());
        for (item, found) in items.iter().zip(self.table.find_all(source, items)) {
            let body = Body { source: Arc::clone(source), item: *item };
            match found {
                Some((id, old)) if self.is_defined(dylib, &old, &body)? => {
                    known.push((Replacement { id, body, found: None }, old))
                }
                _ => new.push(*item),
            }
        }
        Self::check_names(dylib, &known)?;
        Ok((new, known))
    }

    /// Sees to it that a tracker counts what bodies hold: that of their functions.
    fn count(&self, tracker: &ResourceTracker, source: &BodySource, new: &[u32], known: &[(Replacement, Body)]) {
        let Some(bodies) = source.tracker() else { return };
        let before = known.first().and_then(|(_, old)| old.source.tracker());
        match before.filter(|_| new.is_empty()) {
            Some(before) => bodies.count_as(&before),
            None => bodies.count_against(tracker),
        }
    }

    /// Whether the function that a body is for, which had another, is defined. One whose definition has failed is
    /// removed, to be defined anew.
    fn is_defined(&self, dylib: &JitDylib, old: &Body, body: &Body) -> Result<bool, Error> {
        let name = body.function();
        match dylib.session().symbol_state(dylib, name) {
            None => return Ok(false),
            Some((_, None)) => {}
            Some((_, Some(_))) => {
                let tracker = lock(&self.trackers).remove(name);
                tracker.map_or(Ok(()), |tracker| tracker.remove())?;
                return Ok(false);
            }
        }
        match (old.source.signature(old.item), body.source.signature(body.item)) {
            (Some(defined), Some(wanted)) if defined != wanted => Err(Error::Signature {
                symbol: name.to_string(),
                defined: defined.to_string(),
                wanted: wanted.to_string(),
            }),
            _ => Ok(true),
        }
    }

    /// Defines new functions.
    fn enter(
        &self,
        dylib: &JitDylib,
        tracker: &ResourceTracker,
        source: &Arc<BodySource>,
        items: &[u32],
    ) -> Result<(), Error> {
        if self.table.first_call.is_some() {
            let strong = items.iter().all(|item| source.flags(*item).is_strong());
            if strong && !dylib.session().has_platform() {
                return tracker.define_ready(self.ready_units(source, items)?);
            }
            let units = items.chunks(BLOCK as usize).map(|items| {
                let functions = self.table.enter(source, items)?;
                let unit = LazyUnit { table: Arc::clone(&self.table), functions };
                Ok(Self::unit(source, items, Box::new(unit)))
            });
            return tracker.define(units.collect::<Result<_, Error>>()?);
        }
        for item in items {
            let own = dylib.create_tracker()?;
            tracker.hold(Box::new(RemoveOnDrop(own.downgrade())))?;
            let items = std::slice::from_ref(item);
            let functions = self.table.enter(source, items)?;
            let function = source.function(*item).clone();
            let unit = EagerUnit { table: Arc::clone(&self.table), function: function.clone(), functions };
            own.define(vec![Self::unit(source, items, Box::new(unit))])?;
            lock(&self.trackers).insert(function, own);
        }
        Ok(())
    }

    /// Lazy functions: their stubs are all that has to be there.
    fn ready_units(&self, source: &Arc<BodySource>, items: &[u32]) -> Result<ReadyUnits, Error> {
        self.table.reserve(items.len());
        let units = items.chunks(BLOCK as usize).map(|items| {
            let functions = self.table.enter(source, items)?;
            let mut symbols = Vec::with_capacity(items.len());
            self.table.definitions(&functions, items, |item, definition| {
                let (name, signature) = (source.function(item).clone(), source.signature(item).cloned());
                symbols.push(AbsoluteSymbol { name, definition, flags: source.flags(item), signature });
            });
            Ok(ReadyUnit { symbols, holds: Box::new(functions) })
        });
        Ok(ReadyUnits { name: Arc::from(UNIT), units: units.collect::<Result<_, Error>>()? })
    }

    fn unit(source: &BodySource, items: &[u32], unit: Box<dyn MaterializationUnit>) -> UnitDefinition {
        let declare = |item: &u32| SymbolDeclaration {
            name: source.function(*item).clone(),
            flags: source.flags(*item),
            signature: source.signature(*item).cloned(),
        };
        let symbols: SmallVec<_> = items.iter().map(declare).collect();
        UnitDefinition { symbols, unit, name: Arc::from(UNIT) }
    }

    /// Gives functions new bodies of one source, or none of them if one has to be compiled and can't be. Of those that
    /// are lazy, the next call compiles it.
    fn replace(&self, dylib: &JitDylib, replacements: &mut [Replacement]) -> Result<(), Error> {
        let session = dylib.session();
        // Those that are lazy don't depend on each other: somebody may want the table in between.
        let at_once = if self.table.first_call.is_some() { BLOCK as usize } else { usize::MAX };
        for replacements in replacements.chunks_mut(at_once) {
            let old = loop {
                match self.table.replace(session, replacements) {
                    Ok(old) => break old,
                    // Others may be used until these are found.
                    Err(Refused::NotFound(used)) => Self::compile(session, replacements, &used)?,
                    Err(Refused::Ring(members)) => return Err(ring(members, dylib).into()),
                }
            };
            // Not with a lock held: the last body of a module removes it.
            old.into_iter().for_each(|old| self.retire(dylib, old));
        }
        Ok(())
    }

    /// Takes back a body that is the newest no more. Not before its function is ready, which may become so with this
    /// body, and would fail with it.
    fn retire(&self, dylib: &JitDylib, old: Body) {
        let function = old.function().clone();
        let retire = move || {
            if old.has_others() {
                old.source.retire(old.item);
            }
        };
        if self.table.first_call.is_some() {
            return retire();
        }
        match dylib.session().symbol_state(dylib, &function) {
            Some((SymbolState::Materializing | SymbolState::Resolved | SymbolState::Emitted, None)) => {
                let retire = move |_| retire();
                dylib.session().lookup_async(&dylib.downgrade().order(), vec![function], SymbolState::Ready, retire);
            }
            _ => retire(),
        }
    }

    /// Compiles some of the bodies of one source.
    fn compile(session: &ExecutionSession, replacements: &mut [Replacement], which: &[usize]) -> Result<(), Error> {
        let source = replacements.first().map(|new| Arc::clone(&new.body.source));
        let Some(order) = source.as_ref().and_then(|source| source.order()) else { return Err(Error::DylibGone) };
        let define = |index: &usize| {
            let body = &replacements[*index].body;
            body.source.define(session, body.item)
        };
        let names = which.iter().map(define).collect::<Result<Vec<_>, Error>>()?;
        let found = session.lookup(order, names).map_err(|error| of_functions(session, error))?;
        for (index, found) in which.iter().zip(found) {
            replacements[*index].found = Some(found);
        }
        Ok(())
    }
}

/// That functions of a dylib stand for one another, and none for code.
pub(crate) fn ring(members: Vec<SymbolName>, dylib: &JitDylib) -> LookupError {
    let (name, cause) = (members[0].clone(), Arc::new(Cause::AliasCycle(members)));
    LookupError { failures: vec![SymbolFailure { name, dylib: dylib.name().unwrap_or_default(), cause }] }
}

/// A failure of bodies as one of the functions that they are for: nobody else knows the bodies' names.
pub(crate) fn of_functions(session: &ExecutionSession, mut error: LookupError) -> LookupError {
    for failure in &mut error.failures {
        if let Some((function, _)) = failure.name.split_once(RESERVED) {
            failure.name = session.intern(function);
        }
    }
    error
}
