//! Which pages hold compiled code: a question that a signal handler may ask.
//!
//! A radix tree over addresses of 48 bits. Tables are never freed, so that reading takes no lock;
//! there is at most one for each 16 MiB that code was ever in.

use std::ops::Range;
use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicU32, Ordering};

const PAGE_LOG2: u32 = 12;
const LEVEL_LOG2: u32 = 12;
const LEVEL: usize = 1 << LEVEL_LOG2;
const ADDRESS_BITS: u32 = PAGE_LOG2 + 3 * LEVEL_LOG2;

/// How many pieces of code lie on each page.
type Leaf = [AtomicU32; LEVEL];
type Middle = [AtomicPtr<Leaf>; LEVEL];

/// The pages of all code whose traps are caught.
pub(super) static PAGES: Pages = Pages { root: [const { AtomicPtr::new(ptr::null_mut()) }; LEVEL] };

pub(super) struct Pages {
    root: [AtomicPtr<Middle>; LEVEL],
}

/// The index of an address at a level, of which the leaves are 0.
const fn index(address: u64, level: u32) -> usize {
    (address >> (PAGE_LOG2 + level * LEVEL_LOG2)) as usize & (LEVEL - 1)
}

impl Pages {
    /// Adds a piece of code; what lies above 48 bits is left out.
    pub(super) fn add(&self, code: Range<u64>) {
        for page in pages(code) {
            let leaf = self.leaf(page);
            leaf[index(page, 0)].fetch_add(1, Ordering::Release);
        }
    }

    /// Takes a piece of code out again.
    pub(super) fn remove(&self, code: Range<u64>) {
        for page in pages(code) {
            let leaf = self.leaf(page);
            leaf[index(page, 0)].fetch_sub(1, Ordering::Release);
        }
    }

    /// Whether there is code on the page of an address. Takes no lock and allocates nothing.
    pub(super) fn contain(&self, address: u64) -> bool {
        if address >> ADDRESS_BITS != 0 {
            return false;
        }
        let middle = self.root[index(address, 2)].load(Ordering::Acquire);
        // SAFETY: what is published here is whole and never freed.
        let Some(middle) = (unsafe { middle.as_ref() }) else { return false };
        let leaf = middle[index(address, 1)].load(Ordering::Acquire);
        // SAFETY: as above.
        let Some(leaf) = (unsafe { leaf.as_ref() }) else { return false };
        leaf[index(address, 0)].load(Ordering::Acquire) != 0
    }

    fn leaf(&self, address: u64) -> &Leaf {
        let middle = table(&self.root[index(address, 2)], || [const { AtomicPtr::new(ptr::null_mut()) }; LEVEL]);
        table(&middle[index(address, 1)], || [const { AtomicU32::new(0) }; LEVEL])
    }
}

fn pages(code: Range<u64>) -> impl Iterator<Item = u64> {
    let end = code.end.min(1 << ADDRESS_BITS);
    (code.start >> PAGE_LOG2..end.div_ceil(1 << PAGE_LOG2)).map(|page| page << PAGE_LOG2)
}

/// The table in a place, made if there is none.
fn table<T>(place: &AtomicPtr<T>, new: impl FnOnce() -> T) -> &T {
    let there = place.load(Ordering::Acquire);
    // SAFETY: what is published here is whole and never freed.
    if let Some(there) = unsafe { there.as_ref() } {
        return there;
    }
    let new = Box::into_raw(Box::new(new()));
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
    fn a_page_has_code_until_the_last_piece_on_it_is_gone() {
        // Not a place that code of another test is at.
        let start = 0x1234_5678_9000;
        PAGES.add(start + 10..start + 20);
        PAGES.add(start + 100..start + 0x3000);
        assert!((0..3).all(|page| PAGES.contain(start + page * 0x1000 + 7)));
        assert!(!PAGES.contain(start - 1) && !PAGES.contain(start + 0x3000));
        PAGES.remove(start + 100..start + 0x3000);
        assert!(PAGES.contain(start) && !PAGES.contain(start + 0x1000));
        PAGES.remove(start + 10..start + 20);
        assert!(!PAGES.contain(start));
        assert!(!PAGES.contain(u64::MAX) && !PAGES.contain(0));
    }
}
