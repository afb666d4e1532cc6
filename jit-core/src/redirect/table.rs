//! The table of redirectable functions: slots, stubs, and what calls go to.
//!
//! A program may have a million of them and call ten, so one that is not called costs a place in a
//! block (slot, stub, sixteen bytes of [`Record`]) and four bytes in the index by name.

use std::ops::Range;

use jit_linker::SymbolName;
use jit_linker::arch::Architecture;
use jit_linker::memory::{MemoryManager, SlotBlock};
use rustc_hash::FxHashMap;

use super::body::BodySource;
use super::places::{BLOCK, Block, Body, FunctionId, Record, Table, UNUSED, hash};
use crate::error::{Cause, Error};
use crate::first_call::{FirstCall, LazyFunction, LazyFunctions};
use crate::platform::unwind::{self, Frames};
use crate::session::{ExecutionSession, FoundSymbol, SymbolDef, Watch, WeakDylib};
use crate::sync::{Arc, AtomicBool, Mutex, Ordering, Weak, lock, try_lock};

pub(crate) struct FunctionTable {
    pub(crate) memory: Arc<dyn MemoryManager>,
    architecture: Architecture,
    unwinding: bool,
    /// `None` where functions are compiled as soon as they are referred to.
    pub(crate) first_call: Option<Arc<dyn FirstCall>>,
    /// Where calls go whose function has no body that may be called, if they don't go through.
    failure: u64,
    table: Mutex<Table>,
}

/// A body that a function is to get.
pub(crate) struct Replacement {
    pub(crate) id: FunctionId,
    pub(crate) body: Body,
    /// Where it is, if that is known.
    pub(crate) found: Option<FoundSymbol>,
}

/// Why bodies are not replaced.
pub(crate) enum Refused {
    /// These have to be found first.
    NotFound(Vec<usize>),
    /// Calls of these functions would come back for ever.
    Ring(Vec<SymbolName>),
}

/// Functions of a unit. Dropped, they are removed: calls of them fail from now on, and their places
/// are used again when nothing that is linked refers to them.
pub(crate) struct FunctionIds {
    table: Arc<FunctionTable>,
    /// Those of one block mostly follow one another.
    ranges: Box<[Range<FunctionId>]>,
}

impl FunctionIds {
    /// In the order they were entered in.
    pub(crate) fn iter(&self) -> impl Iterator<Item = FunctionId> {
        self.ranges.iter().cloned().flatten()
    }

    /// Removes one function.
    pub(crate) fn remove(&mut self, name: &SymbolName) {
        let is_it = |id: &FunctionId| self.table.body(*id).is_some_and(|body| body.function() == name);
        let Some(id) = self.iter().find(is_it) else { return };
        let split = |range: &Range<FunctionId>| match range.contains(&id) {
            true => [range.start..id, id + 1..range.end],
            false => [range.clone(), range.end..range.end],
        };
        self.ranges = self.ranges.iter().flat_map(split).filter(|range| !range.is_empty()).collect();
        drop(Self { table: Arc::clone(&self.table), ranges: std::iter::once(id..id + 1).collect() });
    }
}

/// What keeps the slots that some code is linked to.
pub(crate) struct SlotLinks {
    table: Arc<FunctionTable>,
    ids: Vec<FunctionId>,
}

/// Where calls go by default whose function has no body that may be called.
extern "C" fn called_unusable() -> ! {
    eprintln!("orcane: a function was called that was removed, or depends on something that was removed");
    std::process::abort()
}

impl FunctionTable {
    pub(crate) fn new(
        memory: Arc<dyn MemoryManager>,
        architecture: Architecture,
        unwinding: bool,
        first_call: Option<Arc<dyn FirstCall>>,
        failure: Option<u64>,
    ) -> Self {
        let failure = failure.filter(|address| *address != UNUSED).unwrap_or(called_unusable as *const () as u64);
        Self { memory, architecture, unwinding, first_call, failure, table: Mutex::default() }
    }

    /// Makes room for so many more functions.
    pub(crate) fn reserve(&self, additional: usize) {
        lock(&self.table).reserve(additional);
    }

    /// Enters functions, each with its first body. Calls go to what compiles it, if anything does.
    pub(crate) fn enter(self: &Arc<Self>, source: &Arc<BodySource>, items: &[u32]) -> Result<FunctionIds, Error> {
        let mut ranges: Vec<Range<FunctionId>> = Vec::new();
        let mut items = items.iter();
        let mut result = Ok(());
        while result.is_ok() && !items.as_slice().is_empty() {
            let mut table = lock(&self.table);
            while let Some(item) = items.as_slice().first()
                && let Some(id) = table.take(source, *item)
            {
                match ranges.last_mut() {
                    Some(range) if range.end == id => range.end += 1,
                    _ => ranges.push(id..id + 1),
                }
                items.next();
            }
            drop(table);
            if !items.as_slice().is_empty() {
                result = self.add_block();
            }
        }
        // What was entered before an error goes with this.
        let ids = FunctionIds { table: Arc::clone(self), ranges: ranges.into() };
        result.map(|()| ids)
    }

    fn add_block(self: &Arc<Self>) -> Result<(), Error> {
        let number = {
            let mut table = lock(&self.table);
            let next = table.blocks.len();
            table.vacant.pop().unwrap_or_else(|| {
                table.blocks.push(None);
                next as u32
            })
        };
        // Not with the lock held: memory managers have locks of their own.
        let block = self.make_block(number);
        let mut table = lock(&self.table);
        match block {
            Ok(block) => {
                table.places.extend([block.slots.slots(), block.slots.stubs()].map(|range| (range.start, number)));
                table.blocks[number as usize] = Some(block);
                table.with_room.push(number);
                Ok(())
            }
            Err(error) => {
                table.vacant.push(number);
                Err(error)
            }
        }
    }

    fn make_block(self: &Arc<Self>, number: u32) -> Result<Box<Block>, Error> {
        if number >= u32::MAX / BLOCK {
            return Err(Error::Target("2³² redirectable functions".to_owned()));
        }
        let mut slots = SlotBlock::new(&self.memory, self.architecture)?;
        if self.unwinding {
            let frames = Frames::of_stubs(self.architecture, slots.stubs());
            slots.attach(Box::new(unwind::register(frames)));
        }
        let functions = LazyFunctions { table: Arc::downgrade(self), first: number * BLOCK };
        let call_through =
            self.first_call.as_ref().map(|first_call| first_call.call_through(&self.memory, functions)).transpose()?;
        let mut records = Vec::new();
        records.resize_with(SlotBlock::LEN, Record::default);
        Ok(Box::new(Block { slots, call_through, records, free: (0..=u8::MAX).rev().collect() }))
    }

    /// The newest function of a name in a dylib.
    pub(crate) fn find(&self, name: &SymbolName, dylib: &WeakDylib) -> Option<(FunctionId, Body)> {
        let table = lock(&self.table);
        let id = table.find(name, Some(dylib))?;
        Some((id, table.record(id)?.body()?))
    }

    /// For each of a source's functions, the newest of its name.
    pub(crate) fn find_all(&self, source: &BodySource, items: &[u32]) -> Vec<Option<(FunctionId, Body)>> {
        let table = lock(&self.table);
        let dylib = source.dylib();
        let find = |item: &u32| {
            let id = table.find(source.function(*item), dylib)?;
            Some((id, table.record(id)?.body()?))
        };
        items.iter().map(find).collect()
    }

    /// The newest functions of a name, in all dylibs.
    pub(crate) fn named(&self, name: &SymbolName) -> Vec<(FunctionId, Body)> {
        let table = lock(&self.table);
        let bodies = table.names.iter_hash(hash(name)).filter_map(|id| Some((*id, table.record(*id)?.body()?)));
        bodies.filter(|(_, body)| body.function() == name).collect()
    }

    /// The newest body of a function.
    pub(crate) fn body(&self, id: FunctionId) -> Option<Body> {
        lock(&self.table).record(id)?.body()
    }

    /// The newest body of a function, for whoever sees to it that calls go there. Until then they can't be made; from
    /// now on, whoever replaces the body has to say where the new one is.
    pub(crate) fn begin_to_use(&self, id: FunctionId) -> Option<Body> {
        let table = lock(&self.table);
        let (block, place) = table.place(id)?;
        if block.slots.load(place) == UNUSED {
            block.slots.store(place, self.failure);
        }
        block.records[place].body()
    }

    /// The newest body of the function whose slot is at an address.
    pub(crate) fn body_at(&self, slot: u64) -> Option<Body> {
        let table = lock(&self.table);
        table.record(table.at(slot)?)?.body()
    }

    /// The function's stub and slot.
    pub(crate) fn definition(&self, id: FunctionId) -> Option<SymbolDef> {
        lock(&self.table).definition(id)
    }

    /// Gives each of the functions that were entered as `items` its stub and slot.
    pub(crate) fn definitions(&self, functions: &FunctionIds, items: &[u32], mut give: impl FnMut(u32, SymbolDef)) {
        let table = lock(&self.table);
        for (item, id) in items.iter().zip(functions.iter()) {
            if let Some(definition) = table.definition(id) {
                give(*item, definition);
            }
        }
    }

    /// Where calls go, if that is a body, and the one that is wanted.
    pub(crate) fn ready(&self, id: FunctionId, is_wanted: impl FnOnce(&Body) -> bool) -> Option<u64> {
        let (body, target) = {
            let table = lock(&self.table);
            let (block, place) = table.place(id)?;
            let target = block.slots.load(place);
            let body = block.records[place].body()?;
            (Some(target) != block.unresolved(place)).then_some((body, target))?
        };
        is_wanted(&body).then_some(target)
    }

    /// As [`ready`](Self::ready), without waiting for whoever changes the table.
    pub(crate) fn known(&self, id: FunctionId) -> Option<LazyFunction> {
        let table = try_lock(&self.table)?;
        let (block, place) = table.place(id)?;
        let target = block.slots.load(place);
        if Some(target) != block.unresolved(place) {
            return Some(LazyFunction::Ready(target));
        }
        let (source, item) = table.source(id)?;
        Some(LazyFunction::Waiting(source.function(item).clone()))
    }

    /// Makes calls go to a body that was found, if it is still the newest, as long as it may be
    /// called.
    ///
    /// # Errors
    ///
    /// When calls would come back for ever.
    pub(crate) fn publish(
        self: &Arc<Self>,
        session: &ExecutionSession,
        id: FunctionId,
        body: &Body,
        found: &FoundSymbol,
    ) -> Result<bool, Cause> {
        let Some(watch) = self.watch(session, id, body, found) else { return Ok(false) };
        let table = lock(&self.table);
        let Some((block, place)) = table.place(id) else { return Ok(false) };
        // With the lock held, so that what replaces bodies and `withdraw` come before or after both.
        let usable = body.is(&block.records[place]) && !watch.is_withdrawn();
        if usable {
            let target = found.definition.address;
            if let Some(ring) = table.ring(id, target, &FxHashMap::default()) {
                return Err(Cause::AliasCycle(ring));
            }
            block.slots.store(place, target);
        }
        Ok(usable)
    }

    /// Sees to it that nobody is sent to a body any more once it is gone. `None` if it is. Comes before anybody is sent
    /// there, who otherwise may find other code in its place; with the table locked, the watch says whether it is gone
    /// since.
    fn watch(
        self: &Arc<Self>,
        session: &ExecutionSession,
        id: FunctionId,
        body: &Body,
        found: &FoundSymbol,
    ) -> Option<Arc<BodyWatch>> {
        let (table, source) = (Arc::downgrade(self), Arc::downgrade(&body.source));
        let watch = Arc::new(BodyWatch { table, id, source, item: body.item, withdrawn: AtomicBool::new(false) });
        session.watch(found.id, Arc::clone(&watch) as Arc<dyn Watch>).then_some(watch)
    }

    /// A body must not be called any more.
    fn withdraw(&self, id: FunctionId, body: &Body) {
        let table = lock(&self.table);
        let Some((block, place)) = table.place(id) else { return };
        if body.is(&block.records[place]) {
            block.slots.store(place, block.unresolved(place).unwrap_or(self.failure));
        }
    }

    /// Makes bodies the newest of their functions, and calls go to them: to where they were found, or to what compiles
    /// them; if what was found must not be called any more, to what says so. Gives the old ones. A function that was
    /// removed is passed over: its place may be another's.
    ///
    /// Functions that are not lazy may be in use, so that their bodies have to be found first: if others are among those
    /// without, nothing changes.
    pub(crate) fn replace(
        self: &Arc<Self>,
        session: &ExecutionSession,
        replacements: &[Replacement],
    ) -> Result<Vec<Body>, Refused> {
        let watches: Vec<_> = replacements
            .iter()
            .map(|Replacement { id, body, found }| self.watch(session, *id, body, found.as_ref()?))
            .collect();
        let mut table = lock(&self.table);
        let is_used = |new: &Replacement| {
            let place = table.place(new.id).filter(|(block, place)| block.records[*place].is_of(&new.body));
            place.is_some_and(|(block, place)| block.is_used(place))
        };
        let to_find = |(index, new): (usize, &Replacement)| (new.found.is_none() && is_used(new)).then_some(index);
        let to_find: Vec<_> = replacements.iter().enumerate().filter_map(to_find).collect();
        if !to_find.is_empty() {
            return Err(Refused::NotFound(to_find));
        }
        let mut targets = FxHashMap::default();
        for (Replacement { id, body, found }, watch) in replacements.iter().zip(&watches) {
            let (Some(found), Some(watch)) = (found, watch) else { continue };
            if watch.is_withdrawn() || !table.record(*id).is_some_and(|record| record.is_of(body)) {
                continue;
            }
            let target = found.definition.address;
            if let Some(ring) = table.ring(*id, target, &targets) {
                return Err(Refused::Ring(ring));
            }
            targets.insert(*id, target);
        }
        let mut old = Vec::with_capacity(replacements.len());
        for Replacement { id, body, found } in replacements {
            let place = table.place_mut(*id).filter(|(block, place)| block.records[*place].is_of(body));
            let Some((block, place)) = place else { continue };
            let target = match targets.get(id) {
                Some(target) => Some(*target),
                None => block.unresolved(place).or_else(|| found.is_some().then_some(self.failure)),
            };
            old.extend(block.replace(place, body, target));
        }
        Ok(old)
    }

    /// Makes `new` the newest body instead of `old`, if that is, and calls go to where it was found, if it may be
    /// called. Gives the old one.
    pub(crate) fn promote(
        self: &Arc<Self>,
        session: &ExecutionSession,
        id: FunctionId,
        old: &Body,
        new: &Body,
        found: &FoundSymbol,
    ) -> Option<Body> {
        let watch = self.watch(session, id, new, found)?;
        let mut table = lock(&self.table);
        let (block, place) = table.place_mut(id)?;
        let usable = old.is(&block.records[place]) && !watch.is_withdrawn();
        if usable { block.replace(place, new, Some(found.definition.address)) } else { None }
    }

    /// Keeps the functions whose slots are at these addresses.
    pub(crate) fn link(self: &Arc<Self>, slots: Vec<u64>) -> SlotLinks {
        let mut table = lock(&self.table);
        // One that was given back since the code found it is nobody's: the code fails with what it found, and whoever
        // gets the place begins with no links.
        let is_there = |id: &FunctionId| table.record(*id).is_some_and(|record| record.body.is_some());
        let ids: Vec<_> = slots.into_iter().filter_map(|slot| table.at(slot)).filter(is_there).collect();
        for id in &ids {
            if let Some((block, place)) = table.place_mut(*id) {
                block.records[place].links += 1;
            }
        }
        drop(table);
        SlotLinks { table: Arc::clone(self), ids }
    }
}

/// The calls of a function that go to a body which was found.
struct BodyWatch {
    table: Weak<FunctionTable>,
    id: FunctionId,
    source: Weak<BodySource>,
    item: u32,
    /// What was found must not be called. Changed with the table locked.
    withdrawn: AtomicBool,
}

impl BodyWatch {
    /// Whether what was found must not be called, as long as the table is locked.
    fn is_withdrawn(&self) -> bool {
        self.withdrawn.load(Ordering::Relaxed)
    }
}

impl Watch for BodyWatch {
    fn unusable(&self) {
        let Some(table) = self.table.upgrade() else { return };
        {
            let _unchanging = lock(&table.table);
            self.withdrawn.store(true, Ordering::Relaxed);
        }
        if let Some(source) = self.source.upgrade() {
            table.withdraw(self.id, &Body { source, item: self.item });
        }
    }

    fn is_needed(&self) -> bool {
        self.source.strong_count() > 0
    }
}

impl Drop for FunctionIds {
    fn drop(&mut self) {
        // Bodies and blocks are dropped with no lock held: with them go trackers and memory.
        let mut bodies = Vec::new();
        let mut blocks = Vec::new();
        let failure = self.table.failure;
        let mut table = lock(&self.table.table);
        for id in self.iter() {
            let Some(body) = table.record(id).and_then(Record::body) else { continue };
            let name = body.function().clone();
            table.forget(&body, id);
            let Some((block, place)) = table.place_mut(id) else { continue };
            block.slots.store(place, block.unresolved(place).unwrap_or(failure));
            let record = &mut block.records[place];
            (record.body, record.item) = (Some(Arc::new(BodySource::Removed(name))), 0);
            if record.links == 0 {
                blocks.extend(table.give(id));
            }
            bodies.push(body);
        }
        drop(table);
        drop(bodies);
        drop(blocks);
    }
}

impl Drop for SlotLinks {
    fn drop(&mut self) {
        let mut blocks = Vec::new();
        let mut table = lock(&self.table.table);
        for id in &self.ids {
            let Some((block, place)) = table.place_mut(*id) else { continue };
            let record = &mut block.records[place];
            record.links -= 1;
            if record.links == 0 && matches!(record.body.as_deref(), Some(BodySource::Removed(_))) {
                blocks.extend(table.give(*id));
            }
        }
        drop(table);
        drop(blocks);
    }
}

#[cfg(test)]
mod tests {
    use jit_linker::memory::PageManager;

    use super::*;
    use crate::Jit;
    use crate::session::{Alias, SymbolFlags};

    #[test]
    fn code_that_is_linked_to_a_slot_that_was_given_back_does_not_count_for_the_next_function() {
        let jit = Jit::builder().build().unwrap();
        let alias = |name| {
            let name = jit.session().intern(name);
            Alias { name: name.clone(), aliasee: name, flags: SymbolFlags::FUNCTION }
        };
        let functions = vec![alias("one"), alias("other")];
        let source =
            BodySource::ReExports { dylib: jit.main().downgrade(), order: jit.main().downgrade().order(), functions };
        let source = Arc::new(source);
        let architecture = Architecture::host().unwrap();
        let table = FunctionTable::new(Arc::new(PageManager::new()), architecture, false, None, None);
        let table = Arc::new(table);
        let slot = |functions: &FunctionIds| {
            let id = functions.iter().next().unwrap();
            table.definition(id).unwrap().slot.unwrap()
        };
        let one = table.enter(&source, &[0]).unwrap();
        let given_back = slot(&one);
        drop(one);
        let stale = table.link(vec![given_back]);
        let other = table.enter(&source, &[1]).unwrap();
        assert_eq!(slot(&other), given_back);
        let linked = table.link(vec![given_back]);
        drop(stale);
        // It is kept for what is linked to it.
        drop(other);
        let third = table.enter(&source, &[0]).unwrap();
        assert_ne!(slot(&third), given_back);
        drop(linked);
        drop(third);
    }

    #[test]
    fn the_newest_function_of_a_name_is_the_newest_that_is_left() {
        let jit = Jit::builder().build().unwrap();
        let name = jit.session().intern("f");
        let alias = Alias { name: name.clone(), aliasee: name.clone(), flags: SymbolFlags::FUNCTION };
        let dylib = jit.main().downgrade();
        let source = BodySource::ReExports { dylib: dylib.clone(), order: dylib.order(), functions: vec![alias] };
        let source = Arc::new(source);
        let table = FunctionTable::new(Arc::new(PageManager::new()), Architecture::host().unwrap(), false, None, None);
        let table = Arc::new(table);
        // In each order, what is removed is no longer found, and what was before is.
        for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
            let mut functions = [0; 3].map(|item| Some(table.enter(&source, &[item]).unwrap()));
            for removed in order {
                functions[removed] = None;
                let newest = functions.iter().rev().flatten().next().and_then(|newest| newest.iter().next());
                assert_eq!(table.find(&name, &dylib).map(|(id, _)| id), newest, "{order:?}");
            }
        }
    }
}
