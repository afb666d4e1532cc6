//! Where calls of first-tier code are counted: at entries of ours in front of it, so that the code itself need not.
//!
//! Entries come in blocks, and go from one function to another: a JIT keeps as many as it has had functions of the first
//! tier at a time.

use std::ptr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jit_core::Error;
use jit_core::seam::Frames;
use jit_linker::arch::Architecture;
use jit_linker::arch::counted::{ENTRY_TAIL, EntryWords, encode_entries, entry_size};
use jit_linker::memory::{FinalizedAllocation, MemoryManager, SegmentKind};

use crate::block;

/// How many a block has.
const LEN: usize = 32;

/// The entries that no function has, and where more of them are made.
pub(super) struct Entries {
    memory: Arc<dyn MemoryManager>,
    architecture: Architecture,
    free: Mutex<Vec<Place>>,
}

/// An entry in its block.
struct Place {
    block: Arc<FinalizedAllocation>,
    index: usize,
}

/// The entry of a function. Dropped, it is another's: by then, nothing runs in it.
pub(super) struct Entry {
    /// There until it is dropped.
    place: Option<Place>,
    code: u64,
    words: u64,
    pool: Arc<Entries>,
}

impl Entries {
    /// With a block of them: what a first function has to wait for must be little.
    pub(super) fn new(memory: &Arc<dyn MemoryManager>) -> Result<Arc<Self>, Error> {
        let architecture = block::architecture()?;
        let free = places(make_block(architecture, memory)?);
        Ok(Arc::new(Self { memory: Arc::clone(memory), architecture, free: Mutex::new(free) }))
    }

    fn free(&self) -> MutexGuard<'_, Vec<Place>> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An entry that counts down from `left`.
    pub(super) fn take(self: &Arc<Self>, left: u32) -> Result<Entry, Error> {
        let place = loop {
            let free = self.free().pop();
            match free {
                Some(place) => break place,
                None => {
                    let made = places(make_block(self.architecture, &self.memory)?);
                    self.free().extend(made);
                }
            }
        };
        let start = |kind| place.block.range(kind).start;
        let code = start(SegmentKind::Code) + (place.index * entry_size(self.architecture)) as u64;
        let words = start(SegmentKind::Data) + (place.index * size_of::<EntryWords>()) as u64;
        let entry = Entry { place: Some(place), code, words, pool: Arc::clone(self) };
        entry.words().left.store(left, Ordering::Relaxed);
        Ok(entry)
    }
}

fn places(block: FinalizedAllocation) -> Vec<Place> {
    let block = Arc::new(block);
    (0..LEN).map(|index| Place { block: Arc::clone(&block), index }).collect()
}

fn make_block(architecture: Architecture, memory: &Arc<dyn MemoryManager>) -> Result<FinalizedAllocation, Error> {
    const COUNT: u32 = LEN as u32;
    block::make(
        memory,
        LEN * entry_size(architecture) + ENTRY_TAIL,
        LEN * size_of::<EntryWords>(),
        |places| encode_entries(architecture, places.code, COUNT, places.words, places.routine),
        |code| Frames::of_counted_entries(architecture, code, COUNT),
    )
}

impl Entry {
    fn words(&self) -> &EntryWords {
        // SAFETY: they are in the data of the block, which is aligned as they are and lives as long as this; all bits are
        // valid for them, and everybody changes them atomically.
        unsafe { &*ptr::with_exposed_provenance::<EntryWords>(self.words as usize) }
    }

    /// The counter: compiled code counts there, too.
    pub(super) fn counter(&self) -> *const AtomicU32 {
        &raw const self.words().left
    }

    /// Where calls go on.
    pub(super) fn target(&self) -> u64 {
        self.words().target.load(Ordering::Relaxed)
    }

    /// What the re-entry routine is told when the counter has run out.
    pub(super) fn tell(&self, told: u64) {
        self.words().told.store(told, Ordering::Relaxed);
    }

    /// Lets calls in, on the way to `code`. Gives where.
    pub(super) fn lead_to(&self, code: u64) -> u64 {
        self.words().target.store(code, Ordering::Relaxed);
        self.code
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.pool.free().extend(self.place.take());
    }
}

/// What the words of the entry say that counts at `counter`.
///
/// # Safety
///
/// It is an [`Entry::counter`], of an entry that is alive.
pub(super) unsafe fn told_at(counter: *const AtomicU32) -> u64 {
    // SAFETY: the counter is the first of the words, whose address was exposed when it was given away.
    unsafe { (*ptr::with_exposed_provenance::<EntryWords>(counter.addr())).told.load(Ordering::Relaxed) }
}
