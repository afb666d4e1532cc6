//! What a slab manager's lock guards: the heaps, the address space they get chunks from, and what large segments have of it.

use std::fs::File;
use std::ops::Range;
use std::sync::Arc;

use rustc_hash::FxHashSet;

use super::fork::{self, Child};
use super::free_ranges::FreeRanges;
use super::heap::{GRANULE, Heap, Place};
use super::reservation::{Region, Reservation, memory_file};
use crate::memory::advice::HUGE_PAGE;
use crate::memory::{MemoryError, MemoryStatistics, RawAllocation, Segment, SegmentKind};

/// Code and constants of this size and more have pages of their own, some of them huge.
const LARGE: u64 = HUGE_PAGE as u64;

/// Code is carved from the low end of the range, so that it stays together, and the rest from the
/// high end.
#[derive(Debug)]
pub(super) struct State {
    reservation: Reservation,
    /// The memory of code and read-only data that this process, not an ancestor, has made.
    file: Option<Arc<File>>,
    unused: Range<u64>,
    heaps: [Heap; 3],
    /// Nothing is mapped there: large segments had it, or alignment left it out before them.
    apart: FreeRanges,
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
            apart: FreeRanges::default(),
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

    /// Takes `size` bytes, not 0, at a multiple of `align`. Says how many bytes at their start may hold something.
    pub(super) fn allocate(
        &mut self,
        kind: SegmentKind,
        size: usize,
        align: usize,
    ) -> Result<(Segment, usize), MemoryError> {
        let range = self.reservation.range();
        if size as u64 > range.end - range.start {
            return Err(MemoryError::RangeFull { size, kind });
        }
        let granules = (size as u64).next_multiple_of(GRANULE);
        self.release_for_gone_children();
        let (place, working) = match self.take_apart(kind, granules, align as u64) {
            Some(place) => (place, self.reservation.in_place(place.address)),
            None => {
                let place = self.take(kind, granules, (align as u64).max(GRANULE))?;
                (place, self.reservation.working(kind, place.address))
            }
        };
        if kind == SegmentKind::Code && place.used > 0 {
            self.reused_code.insert(place.address);
        }
        self.statistics.bytes[kind as usize] += granules as usize;
        Ok((Segment { address: place.address, working, size }, place.used as usize))
    }

    /// Takes a place in a heap.
    fn take(&mut self, kind: SegmentKind, size: u64, align: u64) -> Result<Place, MemoryError> {
        if let Some(place) = self.heaps[kind as usize].take(size, align) {
            return Ok(place);
        }
        self.grow(kind, size, align)?;
        self.heaps[kind as usize].take(size, align).ok_or(MemoryError::RangeFull { size: size as usize, kind })
    }

    /// Maps pages for a large segment alone. None if it is not large, or what it would need is not to be had: then it is as
    /// small ones are.
    fn take_apart(&mut self, kind: SegmentKind, size: u64, align: u64) -> Option<Place> {
        if kind == SegmentKind::Data || size < LARGE {
            return None;
        }
        let whole = size.next_multiple_of(LARGE);
        let (start, used) = match self.apart.take(whole, LARGE) {
            Some(start) => (start, size),
            None => self.carve_apart(kind, whole)?,
        };
        // At the end: it is written from there, and what is written last, when memory is scarcest, has small pages.
        let pages = size.next_multiple_of(self.page);
        let address = (start + whole - pages) / align.max(self.page) * align.max(self.page);
        if self.reservation.map_apart(address..address + pages, kind).is_err() {
            self.apart.insert(start..start + whole);
            return None;
        }
        self.statistics.mappings += 1;
        Some(Place { address, used })
    }

    /// Takes the pages of a large segment back, and the address space before and behind them.
    fn give_apart(&mut self, address: u64, size: u64) {
        let end = address + size.next_multiple_of(self.page);
        // SAFETY: the segment's own pages; it goes.
        unsafe { self.reservation.unmap(address..end) };
        self.statistics.mappings -= 1;
        self.apart.insert(address / LARGE * LARGE..end.next_multiple_of(LARGE));
    }

    /// The start of `size` bytes at the end of the unused range, together with what large segments left there, and how many of
    /// them may have been in a segment.
    fn carve_apart(&mut self, kind: SegmentKind, size: u64) -> Option<(u64, u64)> {
        let Self { unused, apart, .. } = self;
        let (left, room) = if kind == SegmentKind::Code {
            let left = apart.remove_ending_at(unused.start).unwrap_or(unused.start..unused.start);
            (left.clone(), left.start..unused.end)
        } else {
            let left = apart.remove(unused.end).unwrap_or(unused.end..unused.end);
            (left.clone(), unused.start..left.end)
        };
        let address = if kind == SegmentKind::Code {
            room.start.next_multiple_of(LARGE)
        } else {
            room.end.saturating_sub(size) / LARGE * LARGE
        };
        let place = address..address + size;
        let fits = room.start <= place.start && place.end <= room.end;
        let beside = if !fits {
            [left.clone(), 0..0]
        } else if kind == SegmentKind::Code {
            unused.start = unused.start.max(place.end);
            [room.start..place.start, place.end..unused.start]
        } else {
            unused.end = unused.end.min(place.start);
            [unused.end..place.start, place.end..room.end]
        };
        for range in beside.into_iter().filter(|range| !range.is_empty()) {
            apart.insert(range);
        }
        if !fits {
            return None;
        }
        Some((address, if left.is_empty() { 0 } else { size }))
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

    /// Gives a segment with pages of its own its final protection.
    ///
    /// # Safety
    ///
    /// Nobody writes it any more.
    pub(super) unsafe fn seal(&self, kind: SegmentKind, segment: &Segment) -> Result<(), MemoryError> {
        let end = segment.address + (segment.size as u64).next_multiple_of(self.page);
        // SAFETY: the caller's contract.
        unsafe { self.reservation.seal(&(segment.address..end), kind) }
    }

    /// Takes back every segment of an allocation.
    pub(super) fn deallocate(&mut self, allocation: &RawAllocation) {
        self.statistics.allocations -= 1;
        for (kind, segment) in SegmentKind::ALL.into_iter().zip(allocation) {
            if segment.size > 0 {
                self.free(kind, segment);
            }
        }
    }

    /// Takes a segment back.
    pub(super) fn free(&mut self, kind: SegmentKind, segment: &Segment) {
        let address = segment.address;
        let size = (segment.size as u64).next_multiple_of(GRANULE);
        self.statistics.bytes[kind as usize] -= size as usize;
        self.take_reused(address);
        if is_apart(kind, segment) {
            self.give_apart(address, size);
            return;
        }
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
        let Some(needed) = self.carve(kind, size, align, 0) else { return self.grow_apart(kind, size, align) };
        let wanted = self.heaps[kind as usize].next_chunk(needed.end - needed.start);
        let chunk = self.carve(kind, size, align, wanted).unwrap_or(needed);
        self.map_chunk(kind, chunk.clone())?;
        if kind == SegmentKind::Code {
            self.unused.start = chunk.end;
        } else {
            self.unused.end = chunk.start;
        }
        self.heaps[kind as usize].add_chunk(chunk);
        Ok(())
    }

    /// Maps a chunk where large segments were, since nowhere else is room.
    fn grow_apart(&mut self, kind: SegmentKind, size: u64, align: u64) -> Result<(), MemoryError> {
        let full = MemoryError::RangeFull { size: size as usize, kind };
        let chunk_size = size.next_multiple_of(self.page);
        let Some(start) = self.apart.take(chunk_size, align.max(self.page)) else { return Err(full) };
        let chunk = start..start + chunk_size;
        // By its address alone, nobody could tell such a chunk from the parent's.
        let is_taken_for_inherited = self.is_inherited(chunk.start) || self.is_inherited(chunk.end - 1);
        let mapped = match kind {
            SegmentKind::Code | SegmentKind::ReadOnly if is_taken_for_inherited => Err(full),
            _ => self.map_chunk(kind, chunk.clone()),
        };
        match mapped {
            Ok(()) => self.heaps[kind as usize].add_used_chunk(chunk),
            Err(_) => self.apart.insert(chunk),
        }
        mapped
    }

    fn map_chunk(&mut self, kind: SegmentKind, chunk: Range<u64>) -> Result<(), MemoryError> {
        if kind == SegmentKind::Data {
            self.reservation.map_private(chunk)?;
            self.statistics.mappings += 1;
            return Ok(());
        }
        let file = match &mut self.file {
            Some(file) => file,
            none => {
                let range = self.reservation.range();
                none.insert(Arc::new(memory_file(range.end - range.start)?))
            }
        };
        self.reservation.map_shared(file, chunk, kind)?;
        self.statistics.mappings += 2;
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

/// Whether a segment has pages of its own, which are written where they are.
pub(super) fn is_apart(kind: SegmentKind, segment: &Segment) -> bool {
    kind != SegmentKind::Data && segment.working.as_ptr().addr() as u64 == segment.address
}
