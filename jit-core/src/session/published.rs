//! What lookups read of the symbols without the session's lock.
//!
//! A version stands over all of it, as in a sequence lock: whoever has the session's lock makes it
//! odd before the first change and even after the last, just before the lock goes. A reader whose
//! version was even, and is the same when it has read, has seen what was true at one moment, over
//! all dylibs and names it looked at; otherwise it tries again, and takes the lock in the end.
//!
//! Everything a reader touches is atomic and stays where it is as long as the session: a torn read
//! is useless, never invalid.

use std::sync::OnceLock;

use jit_linker::SymbolName;
use smallvec::SmallVec;

use super::arena::Id;
use super::grown::Grown;
use super::index::Index;
use crate::sync::{self, AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};

/// How often a reader tries before it takes the lock.
const ATTEMPTS: usize = 8;

/// Bits of a symbol's condition.
pub(crate) const CONDITION_BITS: u32 = 11;

const CONDITION: u32 = (1 << CONDITION_BITS) - 1;

/// Beside a dylib's generation: it has generators.
const GENERATES: u64 = 1 << u32::BITS;

/// How many dylibs there may be at a time.
pub(crate) const MAX_DYLIBS: usize = 1 << (u32::BITS - CONDITION_BITS);

/// A symbol as lookups see it: half a line of the processor's cache.
#[derive(Default)]
#[repr(align(32))]
pub(crate) struct Cell {
    /// Comes from `SymbolName::into_raw`; null in a place that is not used. Equal to a reader's
    /// name only if that name is here: a name is not freed before the cell gave it back.
    name: AtomicPtr<()>,
    pub(crate) address: AtomicU64,
    /// The index of its dylib, which goes no sooner than its symbols, and below it the symbol's
    /// condition: flags and state.
    owner: AtomicU32,
    pub(crate) generation: AtomicU32,
    /// The number of its signature; 0 for none.
    pub(crate) signature: AtomicU32,
    /// The number of its slot; 0 for none.
    slot: AtomicU32,
}

/// The names of all symbols by dylib, and the symbols in their places.
#[derive(Default)]
pub(crate) struct Published {
    version: AtomicU64,
    /// Open addressing, by dylib and name: as many low bits as a position has are a symbol's place
    /// plus one, the others a part of its hash that its home does not tell; or 0.
    index: Index,
    /// Entries of the index. Only the holder of the session's lock looks.
    count: AtomicUsize,
    cells: Grown<Cell>,
    /// The addresses of slots, which few symbols have. In one that is not used is the number of the
    /// next such.
    slots: Grown<AtomicU64>,
    /// How many slots there are, and the number of the first that is not used. Only the holder of
    /// the session's lock looks.
    slot_count: AtomicU32,
    free_slot: AtomicU32,
    /// The generations of the dylibs, and above those whether they have generators.
    dylibs: Grown<AtomicU64>,
    /// The texts of signatures by their number less one. There are as many as a program has types
    /// of functions, and they stay.
    signatures: Grown<OnceLock<SymbolName>>,
}

/// What a lookup reads of a symbol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) place: u32,
    pub(crate) generation: u32,
    pub(crate) address: u64,
    pub(crate) slot: u64,
    pub(crate) signature: u32,
    pub(crate) condition: u32,
}

impl Published {
    /// What `read` sees at one moment. `None` if changes have disturbed it again and again.
    #[inline]
    pub(crate) fn read<R>(&self, read: impl Fn(&Self) -> R) -> Option<R> {
        self.try_read(&read).or_else(|| self.read_again(read))
    }

    /// As [`read`](Self::read), at the first attempt.
    #[inline]
    pub(crate) fn try_read<R>(&self, read: impl Fn(&Self) -> R) -> Option<R> {
        let version = self.version.load(Ordering::Acquire);
        if !version.is_multiple_of(2) {
            return None;
        }
        let result = read(self);
        // Whoever has read anything of a change sees its version, too.
        fence(Ordering::Acquire);
        (self.version.load(Ordering::Relaxed) == version).then_some(result)
    }

    #[cold]
    fn read_again<R>(&self, read: impl Fn(&Self) -> R) -> Option<R> {
        (1..ATTEMPTS).find_map(|_| {
            sync::spin_loop();
            self.try_read(&read)
        })
    }

    /// The symbol of that name in a dylib. Means something only within [`read`](Self::read), or
    /// under the session's lock.
    pub(crate) fn find<D>(&self, dylib: Id<D>, name: &SymbolName) -> Option<Entry> {
        let (place, cell) = self.find_cell(dylib, name)?;
        Some(self.entry(place, cell))
    }

    /// What is in a cell, as long as nothing changes.
    pub(crate) fn entry(&self, place: u32, cell: &Cell) -> Entry {
        Entry {
            place,
            generation: cell.generation.load(Ordering::Relaxed),
            address: cell.address.load(Ordering::Relaxed),
            slot: self.slot(cell).unwrap_or(0),
            signature: cell.signature.load(Ordering::Relaxed),
            condition: cell.condition(),
        }
    }

    /// As [`find`](Self::find): its place, and the cell there.
    #[inline]
    pub(crate) fn find_cell<D>(&self, dylib: Id<D>, name: &SymbolName) -> Option<(u32, &Cell)> {
        let index = dylib.index() as u32;
        if self.dylibs.get(index)?.load(Ordering::Relaxed) as u32 != dylib.generation() {
            return None;
        }
        self.probe(&Key::new(index, address(name))).ok()
    }

    /// As [`find_cell`](Self::find_cell), only where the search begins, where most symbols are: without a loop there is
    /// little to do. With the cell comes the symbol's condition.
    #[inline]
    pub(crate) fn find_at_home<D>(&self, dylib: Id<D>, name: &SymbolName) -> Option<(&Cell, u32)> {
        let index = dylib.index() as u32;
        if self.dylibs.get(index)?.load(Ordering::Relaxed) as u32 != dylib.generation() {
            return None;
        }
        let table = self.index.table();
        if table.is_empty() {
            return None;
        }
        let key = Key::new(index, address(name));
        let (position, tag) = key.home_and_tag(table);
        // Greater than the mask if the tag is another one.
        let number = table[position & (table.len() - 1)].load(Ordering::Relaxed) ^ tag;
        if number as usize > table.len() - 1 {
            return None;
        }
        let cell = self.cells.get(number.wrapping_sub(1))?;
        let owner = cell.owner.load(Ordering::Relaxed);
        let is_it = cell.name.load(Ordering::Relaxed).addr() == key.name && owner >> CONDITION_BITS == index;
        is_it.then_some((cell, owner & CONDITION))
    }

    /// Whether a dylib has generators: what is not there may be made.
    #[inline]
    pub(crate) fn generates<D>(&self, dylib: Id<D>) -> bool {
        let entry = self.dylibs.get(dylib.index() as u32).map_or(0, |entry| entry.load(Ordering::Relaxed));
        entry == u64::from(dylib.generation()) | GENERATES
    }

    /// Where a symbol is, or else the position in the index where it would be entered.
    #[inline]
    fn probe(&self, key: &Key) -> Result<(u32, &Cell), usize> {
        let table = self.index.table();
        let mask = mask(table);
        let (mut position, tag) = key.home_and_tag(table);
        // Bounded: in the midst of a change there may be no end in it.
        for _ in 0..table.len() {
            let entry = table.get(position).map_or(0, |entry| entry.load(Ordering::Relaxed));
            if entry == 0 {
                break;
            }
            if entry & !mask == tag
                && let place = (entry & mask).wrapping_sub(1)
                && let Some(cell) = self.cells.get(place)
                && cell.name.load(Ordering::Relaxed).addr() == key.name
                && cell.dylib() == key.dylib
            {
                return Ok((place, cell));
            }
            position = (position + 1) & mask as usize;
        }
        Err(position)
    }

    /// What stands in the index where the search for a name begins.
    pub(crate) fn home(&self, dylib: u32, name: &SymbolName) -> u32 {
        let table = self.index.table();
        let (position, _) = Key::new(dylib, address(name)).home_and_tag(table);
        table.get(position).map_or(0, |entry| entry.load(Ordering::Relaxed))
    }

    /// Looks at where names would be found, before any is searched for: of places that do not depend on each other the
    /// processor fetches several at a time.
    pub(crate) fn fetch<D>(&self, dylib: Id<D>, names: &[SymbolName]) {
        let mask = mask(self.index.table());
        let homes: SmallVec<[u32; 32]> = names.iter().map(|name| self.home(dylib.index() as u32, name)).collect();
        for entry in homes {
            let cell = self.cells.get((entry & mask).wrapping_sub(1));
            _ = std::hint::black_box(cell.map_or(0, |cell| cell.generation.load(Ordering::Relaxed)));
        }
    }

    pub(crate) fn signature(&self, number: u32) -> Option<SymbolName> {
        self.signatures.get(number.checked_sub(1)?)?.get().cloned()
    }

    pub(crate) fn cell(&self, place: u32) -> Option<&Cell> {
        self.cells.get(place)
    }

    /// The address of a symbol's slot.
    pub(crate) fn slot(&self, cell: &Cell) -> Option<u64> {
        let number = cell.slot.load(Ordering::Relaxed).checked_sub(1)?;
        Some(self.slots.get(number)?.load(Ordering::Relaxed))
    }
}

/// What only the holder of the session's lock may do.
impl Published {
    /// Turns readers away until the changes are [complete](Self::complete).
    pub(crate) fn change(&self) {
        let version = self.version.load(Ordering::Relaxed);
        if version.is_multiple_of(2) {
            self.version.store(version.wrapping_add(1), Ordering::Relaxed);
            if !sync::is_torn() {
                fence(Ordering::Release);
            }
        }
    }

    /// Lets readers see what was changed, if anything was.
    pub(crate) fn complete(&self) {
        let version = self.version.load(Ordering::Relaxed);
        if !version.is_multiple_of(2) {
            self.version.store(version.wrapping_add(1), Ordering::Release);
        }
    }

    /// Enters a symbol, unless its dylib has that name: then the name comes back with the place of
    /// the symbol that has it.
    pub(crate) fn insert(&self, place: u32, dylib: u32, name: SymbolName) -> Result<&Cell, (SymbolName, u32)> {
        self.reserve(1);
        let key = Key::new(dylib, address(&name));
        let position = match self.probe(&key) {
            Ok((place, _)) => return Err((name, place)),
            Err(position) => position,
        };
        self.change();
        let table = self.index.table();
        put(table, position, key.home_and_tag(table).1, place);
        let cell = self.cells.grow(place);
        cell.owner.store(dylib << CONDITION_BITS, Ordering::Relaxed);
        cell.put_name(name);
        self.count.store(self.count.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        Ok(cell)
    }

    /// Takes a symbol out; its name, if it was there.
    pub(crate) fn remove(&self, place: u32) -> Option<SymbolName> {
        let cell = self.cells.get(place)?;
        self.change();
        self.leave(place, &cell.key());
        self.set_slot(cell, None);
        cell.generation.store(cell.generation.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
        for number in [&cell.signature, &cell.owner] {
            number.store(0, Ordering::Relaxed);
        }
        cell.address.store(0, Ordering::Relaxed);
        self.count.store(self.count.load(Ordering::Relaxed).saturating_sub(1), Ordering::Relaxed);
        cell.take_name()
    }

    pub(crate) fn set_slot(&self, cell: &Cell, slot: Option<u64>) {
        let number = cell.slot.load(Ordering::Relaxed);
        if number == 0 && slot.is_none() {
            return;
        }
        self.change();
        match slot {
            None => {
                let next = self.free_slot.swap(number, Ordering::Relaxed);
                self.slots.grow(number - 1).store(next.into(), Ordering::Relaxed);
                cell.slot.store(0, Ordering::Relaxed);
            }
            Some(address) => {
                let number = if number == 0 { self.take_slot() } else { number };
                self.slots.grow(number - 1).store(address, Ordering::Relaxed);
                cell.slot.store(number, Ordering::Relaxed);
            }
        }
    }

    /// The number of a slot that nobody uses.
    fn take_slot(&self) -> u32 {
        let free = self.free_slot.load(Ordering::Relaxed);
        if free == 0 {
            let number = self.slot_count.load(Ordering::Relaxed) + 1;
            self.slot_count.store(number, Ordering::Relaxed);
            return number;
        }
        // A number in a slot came from one.
        let next = self.slots.grow(free - 1).load(Ordering::Relaxed) as u32;
        self.free_slot.store(next, Ordering::Relaxed);
        free
    }

    /// Makes room for so many more symbols.
    pub(crate) fn reserve(&self, additional: usize) {
        let old = self.index.table();
        // At three quarters, a name is two or three steps away.
        let needed = (self.count.load(Ordering::Relaxed) + additional) * 4 / 3 + 1;
        // A place takes more than a byte: 2^32 of them fit no machine's memory.
        let length_log2 = needed.next_power_of_two().max(sync::SMALLEST_INDEX).ilog2().min(sync::PLACE_BITS - 1);
        if 1 << length_log2 <= old.len() {
            return;
        }
        self.change();
        let old_mask = mask(old);
        let entries = old.iter().map(|entry| entry.load(Ordering::Relaxed) & old_mask);
        let places: Vec<_> = entries.filter_map(|entry| entry.checked_sub(1)).collect();
        let table = self.index.replace(length_log2);
        for place in places {
            let (mut position, tag) = self.cells.grow(place).key().home_and_tag(table);
            while table[position].load(Ordering::Relaxed) != 0 {
                position = (position + 1) % table.len();
            }
            put(table, position, tag, place);
        }
    }

    /// Makes the ids of a new dylib valid.
    pub(crate) fn add_dylib<D>(&self, dylib: Id<D>) {
        self.change();
        self.dylibs.grow(dylib.index() as u32).store(dylib.generation().into(), Ordering::Relaxed);
    }

    /// Says whether a dylib has generators.
    pub(crate) fn set_generates<D>(&self, dylib: Id<D>, generates: bool) {
        self.change();
        let entry = u64::from(dylib.generation()) | if generates { GENERATES } else { 0 };
        self.dylibs.grow(dylib.index() as u32).store(entry, Ordering::Relaxed);
    }

    /// Makes the ids of a dylib invalid: the next in its place has the next generation.
    pub(crate) fn remove_dylib<D>(&self, dylib: Id<D>) {
        self.change();
        self.dylibs.grow(dylib.index() as u32).store(dylib.generation().wrapping_add(1).into(), Ordering::Relaxed);
    }

    /// Gives a signature its number.
    pub(crate) fn set_signature(&self, number: u32, text: SymbolName) {
        _ = self.signatures.grow(number - 1).set(text);
    }

    /// Takes an entry out of the index, and moves up what was put behind it for want of its place.
    fn leave(&self, place: u32, key: &Key) {
        let table = self.index.table();
        let mask = mask(table);
        let after = |position: usize| (position + 1) % table.len();
        let entry_at = |position: usize| table[position].load(Ordering::Relaxed);
        let mut hole = key.home_and_tag(table).0;
        while entry_at(hole) & mask != place + 1 {
            hole = after(hole);
        }
        let mut position = hole;
        loop {
            position = after(position);
            let entry = entry_at(position);
            let Some(cell) = (entry & mask).checked_sub(1).and_then(|place| self.cells.get(place)) else { break };
            let home = cell.key().home_and_tag(table).0;
            if position.wrapping_sub(home) % table.len() >= position.wrapping_sub(hole) % table.len() {
                table[hole].store(entry, Ordering::Relaxed);
                hole = position;
            }
        }
        table[hole].store(0, Ordering::Relaxed);
    }
}

/// The bits of a position in a table.
#[inline]
fn mask(table: &[AtomicU32]) -> u32 {
    (table.len() as u32).saturating_sub(1)
}

fn put(table: &[AtomicU32], position: usize, tag: u32, place: u32) {
    table[position].store(tag | (place + 1), Ordering::Relaxed);
}

impl Cell {
    /// The index of its dylib.
    pub(crate) fn dylib(&self) -> u32 {
        self.owner.load(Ordering::Relaxed) >> CONDITION_BITS
    }

    pub(crate) fn condition(&self) -> u32 {
        self.owner.load(Ordering::Relaxed) & CONDITION
    }

    pub(crate) fn set_condition(&self, condition: u32) {
        let owner = self.owner.load(Ordering::Relaxed);
        self.owner.store(owner & !CONDITION | condition & CONDITION, Ordering::Relaxed);
    }

    fn key(&self) -> Key {
        Key::new(self.dylib(), self.name.load(Ordering::Relaxed).addr())
    }

    fn put_name(&self, name: SymbolName) {
        let old = self.name.swap(name.into_raw().cast_mut(), Ordering::AcqRel);
        debug_assert!(old.is_null());
    }

    fn take_name(&self) -> Option<SymbolName> {
        let raw = self.name.swap(std::ptr::null_mut(), Ordering::AcqRel);
        // SAFETY: `put_name` left one count of the name here, which this swap alone took out.
        (!raw.is_null()).then(|| unsafe { SymbolName::from_raw(raw) })
    }

    /// Another handle of its name.
    ///
    /// # Safety
    ///
    /// There is a name here, and nobody takes it meanwhile.
    pub(crate) unsafe fn name(&self) -> SymbolName {
        let raw = self.name.load(Ordering::Acquire);
        // SAFETY: the cell's count of the name stays here, as the caller says.
        unsafe {
            SymbolName::retain(raw);
            SymbolName::from_raw(raw)
        }
    }
}

impl Drop for Cell {
    fn drop(&mut self) {
        drop(self.take_name());
    }
}

fn address(name: &SymbolName) -> usize {
    name.non_owning().addr()
}

/// What a symbol is looked up by.
struct Key {
    dylib: u32,
    name: usize,
    hash: u32,
}

impl Key {
    #[inline]
    fn new(dylib: u32, name: usize) -> Self {
        const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;
        // Addresses have no use for the bits that a dylib's number changes.
        let word = (name as u64).rotate_right(3) ^ u64::from(dylib).rotate_left(44);
        // The upper bits of a product: all bits of the key reach them.
        Self { dylib, name, hash: (word.wrapping_mul(GOLDEN) >> 32) as u32 }
    }

    /// Where the search for it begins in a table: as many upper bits of the hash as a position has; and the others, as an
    /// entry has them.
    #[inline]
    fn home_and_tag(&self, table: &[AtomicU32]) -> (usize, u32) {
        // Of an empty table 0, where nothing is found.
        let bits = table.len().trailing_zeros() % u32::BITS;
        ((u64::from(self.hash) >> (u32::BITS - bits)) as usize, self.hash << bits)
    }
}
