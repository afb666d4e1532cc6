//! What a slab manager's lock guards: the heaps, and the address space they get chunks from.

use std::fs::File;
use std::ops::Range;
use std::sync::Arc;

use rustc_hash::FxHashSet;

use super::fork::{self, Child};
use super::heap::{GRANULE, Heap, Place};
use super::reservation::{Region, Reservation, memory_file};
use crate::memory::{MemoryError, MemoryStatistics, RawAllocation, SegmentKind};

/// Code is carved from the low end of the range, so that it stays together, and the rest from the
/// high end.
#[derive(Debug)]
pub(super) struct State {
    reservation: Reservation,
    /// The memory of code and read-only data that this process, not an ancestor, has made.
    file: Option<Arc<File>>,
    unused: Range<u64>,
    heaps: [Heap; 3],
    /// Code segments not yet published, at addresses where other code may have run.
    reused_code: FxHashSet<u64>,
    statistics: MemoryStatistics,
    page: u64,
    generation: u64,
    /// What was in use when this process was forked off: its shared memory is the parent's.
    inherited: InUse,
    /// Children that may still run, oldest first.
    children: Vec<Inheritance>,
}

/// The part of the range that chunks had been carved from at some moment, without their free ends.
#[derive(Clone, Debug)]
struct InUse {
    unused: Range<u64>,
    free: [Range<u64>; 3],
}

/// What a child shares with this process.
#[derive(Debug)]
struct Inheritance {
    child: Arc<Child>,
    in_use: InUse,
    /// Freed since, and not to be used or released while the child may run it.
    freed: Vec<(SegmentKind, Range<u64>)>,
}

impl InUse {
    fn contains(&self, address: u64) -> bool {
        !self.unused.contains(&address) && !self.free.iter().any(|free| free.contains(&address))
    }
}

impl State {
    pub(super) fn new(size: u64, region: Region) -> Result<Self, MemoryError> {
        let reservation = Reservation::new(size, region)?;
        let unused = reservation.range();
        Ok(Self {
            reservation,
            file: None,
            unused: unused.clone(),
            heaps: Default::default(),
            reused_code: FxHashSet::default(),
            statistics: MemoryStatistics { mappings: 1, ..Default::default() },
            page: region::page::size() as u64,
            generation: fork::generation(),
            inherited: InUse { unused, free: Default::default() },
            children: Vec::new(),
        })
    }

    pub(super) fn reservation(&self) -> &Reservation {
        &self.reservation
    }

    pub(super) fn statistics(&self) -> MemoryStatistics {
        self.statistics
    }

    pub(super) fn count_allocation(&mut self) {
        self.statistics.allocations += 1;
    }

    pub(super) fn has_shared_memory(&self) -> bool {
        self.file.is_some()
    }

    /// Takes `size` bytes, not 0, at a multiple of `align`.
    pub(super) fn allocate(&mut self, kind: SegmentKind, size: usize, align: usize) -> Result<Place, MemoryError> {
        let full = MemoryError::RangeFull { size, kind };
        let range = self.reservation.range();
        if size as u64 > range.end - range.start {
            return Err(full);
        }
        let (size, align) = ((size as u64).next_multiple_of(GRANULE), (align as u64).max(GRANULE));
        self.release_for_gone_children();
        let place = match self.heaps[kind as usize].take(size, align) {
            Some(place) => place,
            None => {
                self.grow(kind, size, align)?;
                self.heaps[kind as usize].take(size, align).ok_or(full)?
            }
        };
        if kind == SegmentKind::Code && place.used > 0 {
            self.reused_code.insert(place.address);
        }
        self.statistics.bytes[kind as usize] += size as usize;
        Ok(place)
    }

    /// Whether other code may have run where this segment is, and forgets it.
    pub(super) fn take_reused(&mut self, code: u64) -> bool {
        !self.reused_code.is_empty() && self.reused_code.remove(&code)
    }

    /// Whether an address is in memory that was there before this process was.
    pub(super) fn is_inherited(&self, address: u64) -> bool {
        self.inherited.contains(address)
    }

    /// The file whose memory a segment is, and where in it.
    pub(super) fn file_of(&self, kind: SegmentKind, address: u64) -> Option<(Arc<File>, u64)> {
        let file = self.file.as_ref().filter(|_| kind != SegmentKind::Data && !self.is_inherited(address))?;
        Some((Arc::clone(file), address - self.reservation.range().start))
    }

    /// Takes back every segment of an allocation.
    pub(super) fn deallocate(&mut self, allocation: &RawAllocation) {
        self.statistics.allocations -= 1;
        for (kind, segment) in SegmentKind::ALL.into_iter().zip(allocation) {
            if segment.size > 0 {
                self.free(kind, segment.address, segment.size);
            }
        }
    }

    /// Takes a segment back.
    pub(super) fn free(&mut self, kind: SegmentKind, address: u64, size: usize) {
        let size = (size as u64).next_multiple_of(GRANULE);
        self.statistics.bytes[kind as usize] -= size as usize;
        self.take_reused(address);
        if kind != SegmentKind::Data {
            if self.inherited.contains(address) {
                return;
            }
            if self.children.iter().any(|child| child.in_use.contains(address)) {
                self.forget_gone_children();
            }
        }
        self.give(kind, address..address + size);
    }

    /// Notices that this process is a fork's child, and leaves to its parent what is shared.
    pub(super) fn notice_fork(&mut self) {
        let generation = fork::generation();
        if self.generation == generation {
            return;
        }
        self.generation = generation;
        self.file = None;
        self.inherited = InUse { unused: self.unused.clone(), free: Default::default() };
        self.children.clear();
        self.reused_code.clear();
        for kind in [SegmentKind::Code, SegmentKind::ReadOnly] {
            self.heaps[kind as usize] = Heap::default();
        }
    }

    /// What is in use now is not changed as long as `child` may run.
    pub(super) fn keep_for(&mut self, child: &Arc<Child>) {
        if self.file.is_none() {
            return;
        }
        self.forget_gone_children();
        let in_use = InUse { unused: self.unused.clone(), free: [0, 1, 2].map(|kind| self.heaps[kind].wilderness()) };
        self.children.push(Inheritance { child: Arc::clone(child), in_use, freed: Vec::new() });
    }

    /// Makes a free range of the heap's, unless a child may still run what is there.
    fn give(&mut self, kind: SegmentKind, range: Range<u64>) {
        let shared = kind != SegmentKind::Data;
        let keeper = self.children.iter_mut().rev().find(|child| shared && child.in_use.contains(range.start));
        if let Some(keeper) = keeper {
            keeper.freed.push((kind, range));
            return;
        }
        let Self { heaps, reservation, file, page, .. } = self;
        let heap = &mut heaps[kind as usize];
        if heap.give(range) {
            heap.trim(*page, |pages| {
                // SAFETY: the heap's free pages: in its chunks, in no segment, and in none of a
                // child's, whose ranges are kept back above. In a child `file` and the heap are
                // its own.
                unsafe { reservation.release(file.as_deref(), kind, pages) };
            });
        }
    }

    /// Before memory is taken: looks at the children only if they keep some back.
    fn release_for_gone_children(&mut self) {
        if self.children.iter().any(|child| !child.freed.is_empty()) {
            self.forget_gone_children();
        }
    }

    fn forget_gone_children(&mut self) {
        if self.children.is_empty() {
            return;
        }
        let mut gone = fork::gone(self.children.iter().map(|inheritance| &*inheritance.child)).into_iter();
        let released: Vec<_> = self.children.extract_if(.., |_| gone.next() == Some(true)).collect();
        for (kind, range) in released.into_iter().flat_map(|inheritance| inheritance.freed) {
            // An older child may have it too.
            self.give(kind, range);
        }
    }

    /// Maps a chunk that `size` bytes at a multiple of `align` fit into.
    fn grow(&mut self, kind: SegmentKind, size: u64, align: u64) -> Result<(), MemoryError> {
        let full = || MemoryError::RangeFull { size: size as usize, kind };
        let needed = self.carve(kind, size, align, 0).ok_or_else(full)?;
        let wanted = self.heaps[kind as usize].next_chunk(needed.end - needed.start);
        let chunk = self.carve(kind, size, align, wanted).unwrap_or(needed);
        if kind == SegmentKind::Data {
            self.reservation.map_private(chunk.clone())?;
            self.statistics.mappings += 1;
        } else {
            let file = match &mut self.file {
                Some(file) => file,
                none => {
                    let range = self.reservation.range();
                    none.insert(Arc::new(memory_file(range.end - range.start)?))
                }
            };
            self.reservation.map_shared(file, chunk.clone(), kind)?;
            self.statistics.mappings += 2;
        }
        if kind == SegmentKind::Code {
            self.unused.start = chunk.end;
        } else {
            self.unused.end = chunk.start;
        }
        self.heaps[kind as usize].add_chunk(chunk);
        Ok(())
    }

    /// A chunk of whole pages and at least `chunk` bytes at the end of the unused range.
    fn carve(&self, kind: SegmentKind, size: u64, align: u64, chunk: u64) -> Option<Range<u64>> {
        let Range { start, end } = self.unused;
        let carved = if kind == SegmentKind::Code {
            let heap = &self.heaps[kind as usize];
            let first = if heap.wilderness().end == start { heap.wilderness().start } else { start };
            let needed = first.next_multiple_of(align) + size;
            start..needed.max(start + chunk).next_multiple_of(self.page)
        } else {
            let needed = end.checked_sub(size)? / align * align;
            needed.min(end.checked_sub(chunk)?) / self.page * self.page..end
        };
        (start <= carved.start && carved.end <= end).then_some(carved)
    }
}
