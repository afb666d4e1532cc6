//! Places of redirectable functions, in blocks, and the index by name.

use std::collections::BTreeMap;
use std::hash::BuildHasher;

use hashbrown::HashTable;
use hashbrown::hash_table::Entry;
use jit_linker::SymbolName;
use jit_linker::memory::SlotBlock;
use rustc_hash::{FxBuildHasher, FxHashMap};

use super::body::BodySource;
use crate::first_call::CallThrough;
use crate::session::{SymbolDef, WeakDylib};
use crate::sync::Arc;

/// A redirectable function: its block, and its place there.
pub(crate) type FunctionId = u32;

/// Functions in a block.
pub(crate) const BLOCK: u32 = SlotBlock::LEN as u32;

/// What the slot of a function holds that is not lazy and that nobody has looked up: nobody can call it.
pub(super) const UNUSED: u64 = 0;

#[derive(Default)]
pub(super) struct Table {
    /// `None` where a block went back, or is being made.
    pub(super) blocks: Vec<Option<Box<Block>>>,
    /// Blocks by where their slots begin, and by where their stubs do.
    pub(super) places: BTreeMap<u64, u32>,
    pub(super) with_room: Vec<u32>,
    pub(super) vacant: Vec<u32>,
    /// The newest function of each name in each dylib.
    pub(super) names: HashTable<FunctionId>,
    /// By function: the one that was the newest of its name before, and is there still. Of two that are defined at
    /// once, the session keeps one, and it may be the older.
    older: FxHashMap<FunctionId, FunctionId>,
}

pub(super) struct Block {
    pub(super) slots: SlotBlock,
    /// What slots hold before the first call.
    pub(super) call_through: Option<CallThrough>,
    pub(super) records: Vec<Record>,
    /// Places that stand for nothing; the last is taken first.
    pub(super) free: Vec<u8>,
}

/// What calls of a function go to.
#[derive(Default)]
pub(super) struct Record {
    /// `None` if the place is free.
    pub(super) body: Option<Arc<BodySource>>,
    /// Which of the source's bodies.
    pub(super) item: u32,
    /// How much of what is linked refers to the slot or the stub.
    pub(super) links: u32,
}

/// A function's newest body.
#[derive(Clone)]
pub(crate) struct Body {
    pub(crate) source: Arc<BodySource>,
    pub(crate) item: u32,
}

impl Body {
    pub(super) fn is(&self, record: &Record) -> bool {
        record.item == self.item && record.body.as_ref().is_some_and(|source| Arc::ptr_eq(source, &self.source))
    }

    /// Whether the two are one.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        self.item == other.item && Arc::ptr_eq(&self.source, &other.source)
    }

    pub(crate) fn function(&self) -> &SymbolName {
        self.source.function(self.item)
    }

    /// Whether others of its source may be in use when it is not.
    pub(crate) fn has_others(&self) -> bool {
        matches!(*self.source, BodySource::Promoted { .. }) || Arc::strong_count(&self.source) > 1
    }
}

pub(super) fn hash(name: &SymbolName) -> u64 {
    FxBuildHasher.hash_one(name)
}

impl Record {
    /// Whether it is of the function that a body is for.
    pub(super) fn is_of(&self, body: &Body) -> bool {
        self.body.as_ref().is_some_and(|source| {
            let signatures = source.signature(self.item).zip(body.source.signature(body.item));
            source.function(self.item) == body.function()
                && source.dylib() == body.source.dylib()
                && signatures.is_none_or(|(one, other)| one == other)
        })
    }

    pub(super) fn body(&self) -> Option<Body> {
        Some(Body { source: Arc::clone(self.body.as_ref()?), item: self.item })
    }
}

impl Block {
    /// What the slot at `place` holds before the first call.
    pub(super) fn unresolved(&self, place: usize) -> Option<u64> {
        self.call_through.as_ref().map(|call_through| call_through.address(place as u32))
    }

    /// Whether calls of the function at `place` may go to a body, and nothing compiles that on the way.
    pub(super) fn is_used(&self, place: usize) -> bool {
        self.call_through.is_none() && self.slots.load(place) != UNUSED
    }

    /// Makes a body the newest of the function at `place`, and calls go to `target`, if that is given. Gives the old
    /// body, if there is a function.
    pub(super) fn replace(&mut self, place: usize, new: &Body, target: Option<u64>) -> Option<Body> {
        let record = &mut self.records[place];
        let source = std::mem::replace(record.body.as_mut()?, Arc::clone(&new.source));
        let old = Body { source, item: std::mem::replace(&mut record.item, new.item) };
        if let Some(target) = target {
            self.slots.store(place, target);
        }
        Some(old)
    }
}

pub(super) fn source_of(blocks: &[Option<Box<Block>>], id: FunctionId) -> Option<(&BodySource, u32)> {
    let record = &blocks.get((id / BLOCK) as usize)?.as_ref()?.records[(id % BLOCK) as usize];
    Some((record.body.as_ref()?, record.item))
}

impl Table {
    pub(super) fn place(&self, id: FunctionId) -> Option<(&Block, usize)> {
        Some((self.blocks.get((id / BLOCK) as usize)?.as_deref()?, (id % BLOCK) as usize))
    }

    pub(super) fn place_mut(&mut self, id: FunctionId) -> Option<(&mut Block, usize)> {
        Some((self.blocks.get_mut((id / BLOCK) as usize)?.as_deref_mut()?, (id % BLOCK) as usize))
    }

    pub(super) fn record(&self, id: FunctionId) -> Option<&Record> {
        self.place(id).map(|(block, place)| &block.records[place])
    }

    /// The newest function of a name in a dylib.
    pub(super) fn find(&self, name: &SymbolName, dylib: Option<&WeakDylib>) -> Option<FunctionId> {
        let is_it = |id: &FunctionId| {
            self.source(*id).is_some_and(|(source, item)| source.function(item) == name && source.dylib() == dylib)
        };
        self.names.find(hash(name), is_it).copied()
    }

    pub(super) fn definition(&self, id: FunctionId) -> Option<SymbolDef> {
        let (block, place) = self.place(id)?;
        Some(SymbolDef { address: block.slots.stub_address(place), slot: Some(block.slots.slot_address(place)) })
    }

    pub(super) fn source(&self, id: FunctionId) -> Option<(&BodySource, u32)> {
        source_of(&self.blocks, id)
    }

    /// The function whose slot or stub is at an address.
    pub(super) fn at(&self, address: u64) -> Option<FunctionId> {
        let (_, number) = self.places.range(..=address).next_back()?;
        let place = self.blocks[*number as usize].as_ref()?.slots.index_of(address)?;
        Some(number * BLOCK + place as u32)
    }

    /// Which functions stand for one another if calls of `id` go to `target`: none is called then. `new` says where
    /// calls of others are about to go.
    pub(super) fn ring(
        &self,
        id: FunctionId,
        target: u64,
        new: &FxHashMap<FunctionId, u64>,
    ) -> Option<Vec<SymbolName>> {
        let step = |from: &FunctionId| {
            let (block, place) = self.place(*from)?;
            self.at(new.get(from).copied().unwrap_or_else(|| block.slots.load(place)))
        };
        // It ends: there is no ring without this. Most targets are code.
        let mut others = std::iter::successors(self.at(target), step);
        others.any(|other| other == id).then(|| {
            let others = std::iter::successors(self.at(target), step).take_while(|other| *other != id);
            std::iter::once(id).chain(others).filter_map(|id| self.name(id).cloned()).collect()
        })
    }

    fn name(&self, id: FunctionId) -> Option<&SymbolName> {
        self.source(id).map(|(source, item)| source.function(item))
    }

    /// Makes room in the index for so many more functions.
    pub(super) fn reserve(&mut self, additional: usize) {
        let Self { names, blocks, .. } = self;
        names.reserve(additional, |id| source_of(blocks, *id).map_or(0, |(source, item)| hash(source.function(item))));
    }

    /// A free place, for a function with this body. None if there is none.
    pub(super) fn take(&mut self, source: &Arc<BodySource>, item: u32) -> Option<FunctionId> {
        let number = *self.with_room.last()?;
        let block = self.blocks[number as usize].as_deref_mut()?;
        let place = block.free.pop()?;
        if block.free.is_empty() {
            self.with_room.pop();
        }
        let index = usize::from(place);
        block.records[index] = Record { body: Some(Arc::clone(source)), item, links: 0 };
        block.slots.store(index, block.unresolved(index).unwrap_or(UNUSED));
        let id = number * BLOCK + u32::from(place);
        self.index(source, item, id);
        Some(id)
    }

    /// Makes `id` the newest function of its name.
    fn index(&mut self, source: &BodySource, item: u32, id: FunctionId) {
        let Self { names, blocks, older, .. } = self;
        let (name, dylib) = (source.function(item), source.dylib());
        let hash_of = |id: &FunctionId| source_of(blocks, *id).map_or(0, |(source, item)| hash(source.function(item)));
        let is_it = |other: &FunctionId| {
            *other != id
                && source_of(blocks, *other)
                    .is_some_and(|(source, item)| source.function(item) == name && source.dylib() == dylib)
        };
        match names.entry(hash(name), is_it, hash_of) {
            Entry::Occupied(mut newest) => _ = older.insert(id, std::mem::replace(newest.get_mut(), id)),
            Entry::Vacant(place) => _ = place.insert(id),
        }
    }

    /// Takes `id`, which has this body, for a function of its name no more.
    pub(super) fn forget(&mut self, body: &Body, id: FunctionId) {
        let before = self.older.remove(&id);
        let name = body.function();
        if let Ok(mut newest) = self.names.find_entry(hash(name), |newest| *newest == id) {
            match before {
                Some(before) => *newest.get_mut() = before,
                None => _ = newest.remove(),
            }
            return;
        }
        // Another one took its place.
        let mut newer = self.find(name, body.source.dylib());
        while let Some(other) = newer {
            let next = self.older.get(&other).copied();
            if next == Some(id) {
                match before {
                    Some(before) => self.older.insert(other, before),
                    None => self.older.remove(&other),
                };
                return;
            }
            newer = next;
        }
    }

    /// Gives a place back. Gives the block out if it is empty and another has room.
    pub(super) fn give(&mut self, id: FunctionId) -> Option<Box<Block>> {
        let number = id / BLOCK;
        let (block, place) = self.place_mut(id)?;
        block.records[place] = Record::default();
        block.free.push(place as u8);
        let free = block.free.len();
        if free == 1 {
            self.with_room.push(number);
        }
        if free < SlotBlock::LEN || self.with_room.len() < 2 {
            return None;
        }
        self.with_room.retain(|other| *other != number);
        self.vacant.push(number);
        let block = self.blocks[number as usize].take()?;
        for range in [block.slots.slots(), block.slots.stubs()] {
            self.places.remove(&range.start);
        }
        Some(block)
    }
}
