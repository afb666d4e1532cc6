//! All symbols of a session: what lookups read of them is [published](Published), the rest is here.

use jit_linker::SymbolName;
use rustc_hash::FxHashMap;

use super::arena::Id;
use super::published::{Cell, Entry, Published};
use super::query::FoundSymbol;
use super::readiness::Ring;
use super::state::{Dylib, Unit};
use super::symbol::{Condition, Pending, Symbol, SymbolDef, SymbolFlags, SymbolId, SymbolState};
use crate::error::Cause;
use crate::sync::{Arc, Ordering};

/// Entries of a chunk: the table grows by chunks and moves nothing.
const CHUNK: usize = 64;

#[derive(Default)]
pub(crate) struct Symbols {
    published: Arc<Published>,
    chunks: Vec<Vec<Symbol>>,
    free: Vec<u32>,
    signatures: FxHashMap<SymbolName, u32>,
    spare: Spare,
}

/// What was pending of symbols that are ready, for others: who makes it is often another thread than who makes the
/// symbol ready, and memory that goes from one thread's heap to another's has the two wait for each other.
#[derive(Default)]
#[expect(clippy::vec_box, reason = "they go from one symbol to another as they are")]
struct Spare(Vec<Box<Pending>>);

impl Spare {
    /// What some batches of compiled functions have that wait for one another.
    const KEPT: usize = 512;

    fn pending<'a>(&mut self, symbol: &'a mut Symbol) -> &'a mut Pending {
        symbol.pending.get_or_insert_with(|| self.0.pop().unwrap_or_default())
    }

    fn keep(&mut self, mut pending: Box<Pending>) {
        if self.0.len() < Self::KEPT {
            let mut ring = pending.ring.take();
            if let Some(ring) = &mut ring {
                **ring = Ring::default();
            }
            *pending = Pending { ring, ..Pending::default() };
            self.0.push(pending);
        }
    }
}

/// A symbol in its place.
#[derive(Clone, Copy)]
pub(crate) struct SymbolRef<'a> {
    published: &'a Published,
    cell: &'a Cell,
    own: &'a Symbol,
}

/// A symbol that may be changed.
pub(crate) struct SymbolMut<'a> {
    published: &'a Published,
    cell: &'a Cell,
    own: &'a mut Symbol,
    spare: &'a mut Spare,
}

/// Why a symbol was not entered, and what was to be.
pub(crate) struct Occupied {
    /// The symbol that has the name.
    pub(crate) by: SymbolId,
    pub(crate) name: SymbolName,
    pub(crate) signature: Option<SymbolName>,
}

/// What is left of a symbol that was removed.
pub(crate) struct RemovedSymbol {
    pub(crate) name: SymbolName,
    pub(crate) unit: Id<Unit>,
    pub(crate) needs: u32,
    pub(crate) needed_by: u32,
    /// Why it had failed.
    pub(crate) failure: Option<Arc<Cause>>,
}

impl Symbols {
    pub(crate) fn published(&self) -> &Arc<Published> {
        &self.published
    }

    /// Enters a symbol, unless its dylib has that name.
    pub(crate) fn insert(
        &mut self,
        dylib: Id<Dylib>,
        name: SymbolName,
        flags: SymbolFlags,
        signature: Option<SymbolName>,
        unit: Id<Unit>,
    ) -> Result<SymbolId, Occupied> {
        let place = self.free.last().copied().unwrap_or_else(|| self.len());
        let cell = match self.published.insert(place, dylib.index() as u32, name) {
            Ok(cell) => cell,
            Err((name, place)) => {
                let generation = self.published.cell(place).map_or(0, |cell| cell.generation.load(Ordering::Relaxed));
                return Err(Occupied { by: Id::new(place, generation), name, signature });
            }
        };
        cell.set_condition(Condition::new(flags).bits());
        let id = Id::new(place, cell.generation.load(Ordering::Relaxed));
        if signature.is_some() {
            let number = self.number(signature);
            if let Some(cell) = self.published.cell(place) {
                cell.signature.store(number, Ordering::Relaxed);
            }
        }
        let symbol = Symbol::new(unit);
        if self.free.pop().is_some()
            && let Some(own) = self.own_mut(place)
        {
            *own = symbol;
        } else {
            if (place as usize).is_multiple_of(CHUNK) {
                self.chunks.push(Vec::with_capacity(CHUNK));
            }
            if let Some(chunk) = self.chunks.last_mut() {
                chunk.push(symbol);
            }
        }
        Ok(id)
    }

    /// Looks at where names will be entered, before the first of them is: of places that do not depend on each other
    /// the processor fetches several at a time.
    pub(crate) fn fetch<'a>(&self, dylib: Id<Dylib>, names: impl Iterator<Item = &'a SymbolName>) {
        names.for_each(|name| _ = std::hint::black_box(self.published.home(dylib.index() as u32, name)));
    }

    /// Places, used or not.
    fn len(&self) -> u32 {
        let Some(last) = self.chunks.last() else { return 0 };
        // An entry is larger than a byte: 2^32 of them do not fit the address space of any machine
        // that holds the program that made them.
        u32::try_from((self.chunks.len() - 1) * CHUNK + last.len()).expect("tables stay below 2^32 entries")
    }

    fn own(&self, place: u32) -> Option<&Symbol> {
        self.chunks.get(place as usize / CHUNK)?.get(place as usize % CHUNK)
    }

    fn own_mut(&mut self, place: u32) -> Option<&mut Symbol> {
        self.chunks.get_mut(place as usize / CHUNK)?.get_mut(place as usize % CHUNK)
    }

    /// The number of a signature, which is the same for the same text.
    fn number(&mut self, signature: Option<SymbolName>) -> u32 {
        let Some(text) = signature else { return 0 };
        let next = self.signatures.len() as u32 + 1;
        *self.signatures.entry(text).or_insert_with_key(|text| {
            self.published.set_signature(next, text.clone());
            next
        })
    }

    pub(crate) fn set_signature(&mut self, id: SymbolId, signature: Option<SymbolName>) {
        let number = self.number(signature);
        if let Some(symbol) = self.get_mut(id) {
            symbol.published.change();
            symbol.cell.signature.store(number, Ordering::Relaxed);
        }
    }

    /// The symbol in a place.
    pub(crate) fn at(&self, place: u32) -> Option<(SymbolId, SymbolRef<'_>)> {
        let own = self.own(place)?;
        let cell = self.published.cell(place)?;
        if !Condition::of(cell).is_used() {
            return None;
        }
        let id = Id::new(place, cell.generation.load(Ordering::Relaxed));
        Some((id, SymbolRef { published: &self.published, cell, own }))
    }

    /// As [`at`](Self::at).
    pub(crate) fn at_mut(&mut self, place: u32) -> Option<SymbolMut<'_>> {
        let own = self.chunks.get_mut(place as usize / CHUNK)?.get_mut(place as usize % CHUNK)?;
        let cell = self.published.cell(place)?;
        Condition::of(cell).is_used().then_some(SymbolMut {
            published: &self.published,
            cell,
            own,
            spare: &mut self.spare,
        })
    }

    pub(crate) fn get(&self, id: SymbolId) -> Option<SymbolRef<'_>> {
        let (there, symbol) = self.at(id.index() as u32)?;
        (there == id).then_some(symbol)
    }

    pub(crate) fn get_mut(&mut self, id: SymbolId) -> Option<SymbolMut<'_>> {
        let symbol = self.at_mut(id.index() as u32)?;
        (symbol.cell.generation.load(Ordering::Relaxed) == id.generation()).then_some(symbol)
    }

    /// The symbol of that name in a dylib.
    pub(crate) fn find(&self, dylib: Id<Dylib>, name: &SymbolName) -> Option<SymbolId> {
        let entry = self.published.find(dylib, name)?;
        Some(Id::new(entry.place, entry.generation))
    }

    pub(crate) fn remove(&mut self, id: SymbolId) -> Option<RemovedSymbol> {
        let Symbol { unit, needs, needed_by, .. } = *self.get(id)?.own;
        let place = id.index() as u32;
        let name = self.published.remove(place)?;
        // A ring's watchers fail or become ready with what they watch; none is left to wake.
        let pending = self.own_mut(place).and_then(|own| own.pending.take());
        self.free.push(place);
        Some(RemovedSymbol { name, unit, needs, needed_by, failure: pending.and_then(|pending| pending.failure) })
    }

    pub(crate) fn reserve(&self, additional: usize) {
        self.published.reserve(additional);
    }

    pub(crate) fn count(&self) -> usize {
        self.len() as usize - self.free.len()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (SymbolId, SymbolRef<'_>)> {
        (0..self.len()).filter_map(|place| self.at(place))
    }
}

impl<'a> SymbolRef<'a> {
    pub(crate) fn name(&self) -> SymbolName {
        // SAFETY: a cell in use has a name, and only `Symbols::remove` takes it, which has to have
        // the symbols for itself: they are borrowed.
        unsafe { self.cell.name() }
    }

    pub(crate) fn flags(&self) -> SymbolFlags {
        Condition::of(self.cell).flags()
    }

    pub(crate) fn state(&self) -> SymbolState {
        Condition::of(self.cell).state()
    }

    /// The index of its dylib, which goes no sooner than its symbols.
    pub(crate) fn dylib(&self) -> u32 {
        self.cell.dylib()
    }

    pub(crate) fn address(&self) -> u64 {
        self.cell.address.load(Ordering::Relaxed)
    }

    /// 0 for none.
    pub(crate) fn slot(&self) -> u64 {
        self.published.slot(self.cell).unwrap_or(0)
    }

    /// Why it can't be had.
    pub(crate) fn failure(&self) -> Option<&'a Arc<Cause>> {
        self.own.failure()
    }

    pub(crate) fn found(&self, id: SymbolId) -> FoundSymbol {
        FoundSymbol {
            name: self.name(),
            definition: SymbolDef { address: self.address(), slot: (self.slot() != 0).then_some(self.slot()) },
            flags: self.flags(),
            signature: self.published.signature(self.cell.signature.load(Ordering::Relaxed)),
            id,
        }
    }
}

impl std::ops::Deref for SymbolRef<'_> {
    type Target = Symbol;

    fn deref(&self) -> &Symbol {
        self.own
    }
}

impl<'a> SymbolMut<'a> {
    fn shared(&self) -> SymbolRef<'_> {
        SymbolRef { published: self.published, cell: self.cell, own: self.own }
    }

    pub(crate) fn name(&self) -> SymbolName {
        self.shared().name()
    }

    pub(crate) fn flags(&self) -> SymbolFlags {
        self.shared().flags()
    }

    pub(crate) fn state(&self) -> SymbolState {
        self.shared().state()
    }

    pub(crate) fn slot(&self) -> u64 {
        self.shared().slot()
    }

    fn set_condition(&mut self, condition: Condition) {
        self.published.change();
        self.cell.set_condition(condition.bits());
    }

    pub(crate) fn set_state(&mut self, state: SymbolState) {
        self.set_condition(Condition::of(self.cell).with_state(state));
    }

    pub(crate) fn set_flags(&mut self, flags: SymbolFlags) {
        self.set_condition(Condition::of(self.cell).with_flags(flags));
    }

    pub(crate) fn set_definition(&mut self, definition: &SymbolDef) {
        self.published.change();
        self.cell.address.store(definition.address, Ordering::Relaxed);
        self.published.set_slot(self.cell, definition.slot.filter(|slot| *slot != 0));
    }

    pub(crate) fn fail(&mut self, cause: Arc<Cause>) {
        self.pending().failure = Some(cause);
        self.set_condition(Condition::of(self.cell).with_failure());
    }

    pub(crate) fn pending(&mut self) -> &mut Pending {
        self.spare.pending(self.own)
    }

    pub(crate) fn into_pending(self) -> &'a mut Pending {
        self.spare.pending(self.own)
    }

    /// Forgets what was pending: it is ready.
    pub(crate) fn settle(&mut self) {
        if let Some(pending) = self.own.pending.take() {
            self.spare.keep(pending);
        }
    }
}

impl std::ops::Deref for SymbolMut<'_> {
    type Target = Symbol;

    fn deref(&self) -> &Symbol {
        self.own
    }
}

impl std::ops::DerefMut for SymbolMut<'_> {
    fn deref_mut(&mut self) -> &mut Symbol {
        self.own
    }
}

impl Entry {
    pub(crate) fn condition(&self) -> Condition {
        Condition::from_bits(self.condition)
    }

    /// What a lookup gives of it: it looked for `name`.
    pub(crate) fn found(&self, name: &SymbolName, published: &Published) -> FoundSymbol {
        FoundSymbol {
            name: name.clone(),
            definition: SymbolDef { address: self.address, slot: (self.slot != 0).then_some(self.slot) },
            flags: self.condition().flags(),
            signature: published.signature(self.signature),
            id: Id::new(self.place, self.generation),
        }
    }
}
