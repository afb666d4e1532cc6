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

use super::arena::Id;
use super::grown::Grown;
use crate::sync::{self, AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};

/// How often a reader tries before it takes the lock.
const ATTEMPTS: usize = 8;

/// A symbol as lookups see it.
#[derive(Default)]
pub(crate) struct Cell {
    /// Comes from `SymbolName::into_raw`; null in a place that is not used. Equal to a reader's
    /// name only if that name is here: a name is not freed before the cell gave it back.
    name: AtomicPtr<()>,
    pub(crate) address: AtomicU64,
    /// 0 for none.
    pub(crate) slot: AtomicU64,
    /// The index of its dylib, which goes no sooner than its symbols.
    pub(crate) dylib: AtomicU32,
    pub(crate) generation: AtomicU32,
    /// The number of its signature; 0 for none.
    pub(crate) signature: AtomicU32,
    /// Flags and state.
    pub(crate) condition: AtomicU32,
}

/// The names of all symbols by dylib, and the symbols in their places.
#[derive(Default)]
pub(crate) struct Published {
    version: AtomicU64,
    /// One less than the length of `index`, a power of two; 0 as long as it is empty.
    mask: AtomicU32,
    /// Open addressing, by dylib and name: a symbol's place plus one, or 0.
    index: Grown<AtomicU32>,
    /// Entries of the index. Only the holder of the session's lock looks.
    count: AtomicUsize,
    cells: Grown<Cell>,
    /// The generations of the dylibs.
    dylibs: Grown<AtomicU32>,
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
    pub(crate) fn read<R>(&self, read: impl Fn(&Self) -> R) -> Option<R> {
        for _ in 0..ATTEMPTS {
            let version = self.version.load(Ordering::Acquire);
            if version.is_multiple_of(2) {
                let result = read(self);
                // Whoever has read anything of a change sees its version, too.
                fence(Ordering::Acquire);
                if self.version.load(Ordering::Relaxed) == version {
                    return Some(result);
                }
            }
            sync::spin_loop();
        }
        None
    }

    /// The symbol of that name in a dylib. Means something only within [`read`](Self::read), or
    /// under the session's lock.
    pub(crate) fn find<D>(&self, dylib: Id<D>, name: &SymbolName) -> Option<Entry> {
        let index = dylib.index() as u32;
        if self.dylibs.get(index)?.load(Ordering::Relaxed) != dylib.generation() {
            return None;
        }
        let (place, cell) = self.probe(index, name)?;
        Some(Entry {
            place,
            generation: cell.generation.load(Ordering::Relaxed),
            address: cell.address.load(Ordering::Relaxed),
            slot: cell.slot.load(Ordering::Relaxed),
            signature: cell.signature.load(Ordering::Relaxed),
            condition: cell.condition.load(Ordering::Relaxed),
        })
    }

    /// The place of a symbol by the index of its dylib.
    pub(crate) fn probe(&self, dylib: u32, name: &SymbolName) -> Option<(u32, &Cell)> {
        let mask = self.mask.load(Ordering::Relaxed);
        let wanted = address(name);
        let mut position = home(dylib, wanted, mask);
        // Bounded: in the midst of a change there may be no end in it.
        for _ in 0..=mask {
            let place = self.index.get(position)?.load(Ordering::Relaxed).checked_sub(1)?;
            let cell = self.cells.get(place)?;
            if cell.name.load(Ordering::Relaxed).addr() == wanted && cell.dylib.load(Ordering::Relaxed) == dylib {
                return Some((place, cell));
            }
            position = position.wrapping_add(1) & mask;
        }
        None
    }

    pub(crate) fn signature(&self, number: u32) -> Option<SymbolName> {
        self.signatures.get(number.checked_sub(1)?)?.get().cloned()
    }

    pub(crate) fn cell(&self, place: u32) -> Option<&Cell> {
        self.cells.get(place)
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

    /// Enters a symbol, whose name its dylib does not have.
    pub(crate) fn insert(&self, place: u32, dylib: u32, name: SymbolName) -> &Cell {
        self.change();
        self.reserve(1);
        let cell = self.cells.grow(place);
        cell.dylib.store(dylib, Ordering::Relaxed);
        self.enter(place, dylib, address(&name));
        cell.put_name(name);
        self.count.store(self.count.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        cell
    }

    /// Takes a symbol out; its name, if it was there.
    pub(crate) fn remove(&self, place: u32) -> Option<SymbolName> {
        let cell = self.cells.get(place)?;
        self.change();
        let name = cell.name.load(Ordering::Relaxed).addr();
        self.leave(place, cell.dylib.load(Ordering::Relaxed), name);
        cell.generation.store(cell.generation.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
        for number in [&cell.signature, &cell.condition] {
            number.store(0, Ordering::Relaxed);
        }
        for word in [&cell.address, &cell.slot] {
            word.store(0, Ordering::Relaxed);
        }
        self.count.store(self.count.load(Ordering::Relaxed).saturating_sub(1), Ordering::Relaxed);
        cell.take_name()
    }

    /// Makes room for so many more symbols.
    pub(crate) fn reserve(&self, additional: usize) {
        let mask = self.mask.load(Ordering::Relaxed);
        let length = if mask == 0 { 0 } else { mask as usize + 1 };
        // At three quarters, a name is two or three steps away.
        let needed = (self.count.load(Ordering::Relaxed) + additional) * 4 / 3 + 1;
        if needed <= length {
            return;
        }
        self.change();
        let length = needed.next_power_of_two().max(sync::SMALLEST_INDEX);
        // A place takes more than a byte: 2^32 of them fit no machine's memory.
        let length = u32::try_from(length).unwrap_or(1 << 31);
        let entries: Vec<u32> = (0..if mask == 0 { 0 } else { mask + 1 })
            .map(|position| self.index.grow(position).swap(0, Ordering::Relaxed))
            .filter(|entry| *entry != 0)
            .collect();
        (0..length).for_each(|position| _ = self.index.grow(position));
        self.mask.store(length - 1, Ordering::Relaxed);
        for place in entries.iter().map(|entry| entry - 1) {
            let cell = self.cells.grow(place);
            self.enter(place, cell.dylib.load(Ordering::Relaxed), cell.name.load(Ordering::Relaxed).addr());
        }
    }

    /// Makes the ids of a new dylib valid.
    pub(crate) fn add_dylib<D>(&self, dylib: Id<D>) {
        self.change();
        self.dylibs.grow(dylib.index() as u32).store(dylib.generation(), Ordering::Relaxed);
    }

    /// Makes the ids of a dylib invalid: the next in its place has the next generation.
    pub(crate) fn remove_dylib<D>(&self, dylib: Id<D>) {
        self.change();
        self.dylibs.grow(dylib.index() as u32).store(dylib.generation().wrapping_add(1), Ordering::Relaxed);
    }

    /// Gives a signature its number.
    pub(crate) fn set_signature(&self, number: u32, text: SymbolName) {
        _ = self.signatures.grow(number - 1).set(text);
    }

    fn enter(&self, place: u32, dylib: u32, name: usize) {
        let mask = self.mask.load(Ordering::Relaxed);
        let mut position = home(dylib, name, mask);
        while self.index.grow(position).load(Ordering::Relaxed) != 0 {
            position = position.wrapping_add(1) & mask;
        }
        self.index.grow(position).store(place + 1, Ordering::Relaxed);
    }

    /// Takes an entry out of the index, and moves up what was put behind it for want of its place.
    fn leave(&self, place: u32, dylib: u32, name: usize) {
        let mask = self.mask.load(Ordering::Relaxed);
        let mut hole = home(dylib, name, mask);
        while self.index.grow(hole).load(Ordering::Relaxed) != place + 1 {
            hole = hole.wrapping_add(1) & mask;
        }
        let mut position = hole;
        loop {
            position = position.wrapping_add(1) & mask;
            let entry = self.index.grow(position).load(Ordering::Relaxed);
            let Some(cell) = entry.checked_sub(1).and_then(|place| self.cells.get(place)) else { break };
            let home = home(cell.dylib.load(Ordering::Relaxed), cell.name.load(Ordering::Relaxed).addr(), mask);
            if position.wrapping_sub(home) & mask >= position.wrapping_sub(hole) & mask {
                self.index.grow(hole).store(entry, Ordering::Relaxed);
                hole = position;
            }
        }
        self.index.grow(hole).store(0, Ordering::Relaxed);
    }
}

impl Cell {
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

/// Where the search for a name begins: the upper bits of a product, which all bits of the key reach.
fn home(dylib: u32, name: usize, mask: u32) -> u32 {
    const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;
    let key = (name as u64).rotate_right(3) ^ u64::from(dylib).wrapping_mul(GOLDEN).rotate_left(16);
    (key.wrapping_mul(GOLDEN) >> 32) as u32 >> mask.leading_zeros().min(31) & mask
}
