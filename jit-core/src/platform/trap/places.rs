//! Where compiled code is whose traps are caught: a question that a signal handler may ask.
//!
//! A radix tree over addresses of 48 bits. Tables are never freed, so that reading takes no lock; there is at most one
//! leaf for each 256 KiB that code was ever in.
//!
//! Code of objects may lie close by. It need not keep frame pointers, so a page that holds some of both must not be taken
//! for compiled code: the answer is exact to 16 bytes, which no two pieces of code share.

use std::ops::Range;
use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicU8, Ordering};

const GRANULE_LOG2: u32 = 4;
const LEAF_LOG2: u32 = 14;
const TABLE_LOG2: u32 = 15;
const LEAF: usize = 1 << LEAF_LOG2;
const TABLE: usize = 1 << TABLE_LOG2;
const ADDRESS_BITS: u32 = GRANULE_LOG2 + LEAF_LOG2 + 2 * TABLE_LOG2;

/// How many pieces of code lie in each granule: at most one a byte.
type Leaf = [AtomicU8; LEAF];
type Middle = [AtomicPtr<Leaf>; TABLE];

/// The places of all code whose traps are caught.
pub(super) static PLACES: Places = Places { root: [const { AtomicPtr::new(ptr::null_mut()) }; TABLE] };

pub(super) struct Places {
    root: [AtomicPtr<Middle>; TABLE],
}

/// The indices of an address in the root, a middle table and a leaf.
const fn indices(address: u64) -> (usize, usize, usize) {
    let granule = (address >> GRANULE_LOG2) as usize;
    let middle = granule >> LEAF_LOG2;
    (middle >> TABLE_LOG2 & (TABLE - 1), middle & (TABLE - 1), granule & (LEAF - 1))
}

impl Places {
    /// Adds a piece of code; what lies above 48 bits is left out.
    pub(super) fn add(&self, code: Range<u64>) {
        for place in granules(code) {
            self.count(place).fetch_add(1, Ordering::Release);
        }
    }

    /// Takes a piece of code out again.
    pub(super) fn remove(&self, code: Range<u64>) {
        for place in granules(code) {
            self.count(place).fetch_sub(1, Ordering::Release);
        }
    }

    /// Whether an address is in code. Takes no lock and allocates nothing.
    pub(super) fn contain(&self, address: u64) -> bool {
        if address >> ADDRESS_BITS != 0 {
            return false;
        }
        let (root, middle, leaf) = indices(address);
        let there = self.root[root].load(Ordering::Acquire);
        // SAFETY: what is published here is whole and never freed.
        let Some(there) = (unsafe { there.as_ref() }) else { return false };
        let there = there[middle].load(Ordering::Acquire);
        // SAFETY: as above.
        let Some(there) = (unsafe { there.as_ref() }) else { return false };
        there[leaf].load(Ordering::Acquire) != 0
    }

    fn count(&self, address: u64) -> &AtomicU8 {
        let (root, middle_index, leaf) = indices(address);
        // SAFETY: null pointers are what an empty table holds.
        let middle = unsafe { table(&self.root[root]) };
        // SAFETY: zeros are what an empty leaf holds.
        let granules = unsafe { table(&middle[middle_index]) };
        &granules[leaf]
    }
}

fn granules(code: Range<u64>) -> impl Iterator<Item = u64> {
    let end = code.end.min(1 << ADDRESS_BITS);
    (code.start >> GRANULE_LOG2..end.div_ceil(1 << GRANULE_LOG2)).map(|granule| granule << GRANULE_LOG2)
}

/// The table in a place, made if there is none.
///
/// # Safety
///
/// All zeros are a `T`.
unsafe fn table<T>(place: &AtomicPtr<T>) -> &T {
    let there = place.load(Ordering::Acquire);
    // SAFETY: what is published here is whole and never freed.
    if let Some(there) = unsafe { there.as_ref() } {
        return there;
    }
    // SAFETY: as the caller says.
    let new = Box::into_raw(unsafe { Box::<T>::new_zeroed().assume_init() });
    match place.compare_exchange(ptr::null_mut(), new, Ordering::AcqRel, Ordering::Acquire) {
        // SAFETY: it is published now, and never freed.
        Ok(_) => unsafe { &*new },
        Err(theirs) => {
            // SAFETY: made above and not published: another thread was first, whose table stays.
            unsafe {
                drop(Box::from_raw(new));
                &*theirs
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_in_code_until_the_last_piece_there_is_gone() {
        // Not a place that code of another test is at; in two leaves.
        let start = 0x1234_5678_0000 - 0x20;
        PLACES.add(start + 1..start + 3);
        PLACES.add(start + 4..start + 0x101);
        assert!((0..0x110).all(|offset| PLACES.contain(start + offset)));
        assert!(!PLACES.contain(start - 1) && !PLACES.contain(start + 0x110));
        PLACES.remove(start + 4..start + 0x101);
        assert!(PLACES.contain(start + 15) && !PLACES.contain(start + 16));
        PLACES.remove(start + 1..start + 3);
        assert!(!PLACES.contain(start));
        assert!(!PLACES.contain(u64::MAX) && !PLACES.contain(0));
    }
}
