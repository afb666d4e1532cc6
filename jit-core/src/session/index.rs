//! A table of numbers that is replaced by longer ones, and may be read meanwhile.

use std::sync::atomic::{AtomicPtr, Ordering};

use jit_linker::memory::prefer_huge_pages;

use crate::sync::{self, AtomicU32};

/// In one piece each, so that most of a large one is in huge pages. Former tables stay, because somebody may be late in
/// reading them, and give their memory back.
pub(crate) struct Index {
    /// The length of the current table, as a power of two.
    length_log2: AtomicU32,
    /// By that power. Each null, or the first element of a `Box<[AtomicU32]>` of that length.
    tables: [AtomicPtr<AtomicU32>; TABLES],
}

const TABLES: usize = sync::PLACE_BITS as usize;

impl Default for Index {
    fn default() -> Self {
        let tables = [const { AtomicPtr::new(std::ptr::null_mut()) }; TABLES];
        Self { length_log2: AtomicU32::default(), tables }
    }
}

impl Index {
    /// The current table. Its length is a power of two, or 0 before there is one.
    #[inline]
    pub(crate) fn table(&self) -> &[AtomicU32] {
        let length_log2 = self.length_log2.load(Ordering::Relaxed) as usize % TABLES;
        let table = self.tables[length_log2].load(Ordering::Acquire);
        if table.is_null() {
            return &[];
        }
        // SAFETY: `replace` put a box of that length there, which stays as long as `self`.
        unsafe { std::slice::from_raw_parts(table, 1 << length_log2) }
    }

    /// Makes a table of zeros the current one, longer than all before. Who still reads the last one sees what was there, or
    /// zeros.
    pub(crate) fn replace(&self, length_log2: u32) -> &[AtomicU32] {
        let old = self.table();
        let length = 1 << length_log2;
        let mut new = Vec::with_capacity(length);
        // Lookups in a large table go anywhere in it: with small pages, each would first look for its page.
        prefer_huge_pages(new.spare_capacity_mut());
        new.extend((0..length).map(|_| AtomicU32::default()));
        let new = Box::into_raw(new.into_boxed_slice()).cast();
        let former = self.tables[length_log2 as usize].swap(new, Ordering::AcqRel);
        assert!(former.is_null(), "a table is longer than all before");
        self.length_log2.store(length_log2, Ordering::Relaxed);
        sync::forget_pages(old);
        self.table()
    }
}

impl Drop for Index {
    fn drop(&mut self) {
        for (length_log2, table) in self.tables.iter_mut().enumerate() {
            let table = *table.get_mut();
            if !table.is_null() {
                // SAFETY: it was made from a box of that length, and nobody reads it any more.
                drop(unsafe { Box::from_raw(std::ptr::slice_from_raw_parts_mut(table, 1 << length_log2)) });
            }
        }
    }
}
