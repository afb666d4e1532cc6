//! Packs segments of one kind into the chunks of address space that the heap was given. Knows
//! addresses only: what is mapped there is its owner's business.

use std::ops::Range;

use super::free_ranges::FreeRanges;

/// Sizes and, at least, alignments are multiples of this: a stub, and what code is fetched in.
pub(super) const GRANULE: u64 = 16;

/// The first chunk's size. Only pages that are touched take memory.
const FIRST_CHUNK: u64 = 256 << 10;

/// Chunks double in size up to this.
const LARGEST_CHUNK: u64 = 4 << 20;

/// Freed bytes that may stay resident: giving pages back costs a system call.
const TRIM_MINIMUM: u64 = 1 << 20;

/// Memory above the youngest segment that stays resident for the next ones.
const KEPT: u64 = 64 << 10;

/// The memory of one [`SegmentKind`](crate::memory::SegmentKind).
#[derive(Debug)]
pub(super) struct Heap {
    free: FreeRanges,
    /// The end of the newest chunk, which segments are cut from in order.
    wilderness: Wilderness,
    chunk: u64,
    freed: u64,
}

/// What lies beyond the youngest segment: `next <= fresh`, `resident <= end`.
#[derive(Clone, Debug, Default)]
struct Wilderness {
    /// Where the next segment starts.
    next: u64,
    /// No segment was ever beyond.
    fresh: u64,
    /// No memory is resident beyond.
    resident: u64,
    end: u64,
}

/// A range that was handed out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// Its address.
    pub(super) address: u64,
    /// Bytes at its start that may have been in a segment before.
    pub(super) used: u64,
}

impl Default for Heap {
    fn default() -> Self {
        Self { free: FreeRanges::default(), wilderness: Wilderness::default(), chunk: FIRST_CHUNK, freed: 0 }
    }
}

impl Heap {
    /// Takes `size` bytes at a multiple of `align`, both multiples of [`GRANULE`]; `None` when a
    /// chunk must be added first.
    pub(super) fn take(&mut self, size: u64, align: u64) -> Option<Place> {
        if let Some(address) = self.free.take(size, align) {
            return Some(Place { address, used: size });
        }
        let place = self.cut(size, align);
        if place.is_none() && self.absorb() { self.cut(size, align) } else { place }
    }

    /// Takes a range back. True when so much was freed that [`trim`](Self::trim) is due.
    pub(super) fn give(&mut self, range: Range<u64>) -> bool {
        self.freed += range.end - range.start;
        if range.end == self.wilderness.next {
            self.wilderness.next = self.free.remove_ending_at(range.start).map_or(range.start, |before| before.start);
        } else {
            self.free.insert(range);
        }
        self.freed >= TRIM_MINIMUM.max(self.free.bytes() / 8)
    }

    /// How large a chunk should be that a segment of `needed` bytes goes into.
    pub(super) fn next_chunk(&mut self, needed: u64) -> u64 {
        let chunk = self.chunk;
        self.chunk = (chunk * 2).min(LARGEST_CHUNK);
        chunk.max(needed)
    }

    /// The free end of the newest chunk. A chunk that starts where it ends continues it.
    pub(super) fn wilderness(&self) -> Range<u64> {
        self.wilderness.next..self.wilderness.end
    }

    /// Adds a chunk of fresh memory.
    pub(super) fn add_chunk(&mut self, chunk: Range<u64>) {
        if self.wilderness.end == chunk.start {
            self.wilderness.end = chunk.end;
            return;
        }
        let new = Wilderness { next: chunk.start, fresh: chunk.start, resident: chunk.start, end: chunk.end };
        let old = std::mem::replace(&mut self.wilderness, new);
        if old.next < old.end {
            self.free.insert(old.next..old.end);
        }
    }

    /// Adds a chunk of memory where segments may have been.
    pub(super) fn add_used_chunk(&mut self, chunk: Range<u64>) {
        self.free.insert(chunk);
    }

    /// Calls `release` for whole pages that are free and may be resident.
    pub(super) fn trim(&mut self, page: u64, mut release: impl FnMut(Range<u64>)) {
        self.freed = 0;
        for range in self.free.take_resident(page) {
            let pages = range.start.next_multiple_of(page)..range.end / page * page;
            if !pages.is_empty() {
                release(pages);
            }
        }
        let wilderness = &mut self.wilderness;
        // It may end within a page, whose rest is somebody's.
        let end = wilderness.resident.next_multiple_of(page).min(wilderness.end / page * page);
        let pages = (wilderness.next + KEPT).next_multiple_of(page)..end;
        if !pages.is_empty() {
            wilderness.resident = pages.start;
            release(pages);
        }
    }

    /// Takes a segment from the wilderness. What alignment leaves out in front of it is free.
    fn cut(&mut self, size: u64, align: u64) -> Option<Place> {
        let wilderness = &mut self.wilderness;
        let skipped = wilderness.next..wilderness.next.next_multiple_of(align);
        let address = skipped.end;
        if address + size > wilderness.end {
            return None;
        }
        wilderness.next = address + size;
        let used = wilderness.fresh.min(wilderness.next).saturating_sub(address);
        wilderness.fresh = wilderness.fresh.max(wilderness.next);
        wilderness.resident = wilderness.resident.max(wilderness.next);
        if !skipped.is_empty() {
            self.free.insert(skipped);
        }
        Some(Place { address, used })
    }

    /// Free ranges that start where the wilderness ends become part of it. Not done before it is
    /// needed, because the whole wilderness then counts as used.
    fn absorb(&mut self) -> bool {
        let Some(range) = self.free.remove(self.wilderness.end) else { return false };
        let wilderness = &mut self.wilderness;
        (wilderness.fresh, wilderness.resident, wilderness.end) = (range.end, range.end, range.end);
        true
    }
}

#[cfg(test)]
#[expect(clippy::single_range_in_vec_init, reason = "lists of ranges that have one")]
mod tests {
    use super::*;

    const BASE: u64 = 0x1000_0000;

    fn heap() -> Heap {
        let mut heap = Heap::default();
        heap.add_chunk(BASE..BASE + 0x1_0000);
        heap
    }

    fn address(heap: &mut Heap, size: u64) -> u64 {
        heap.take(size, GRANULE).expect("the chunk has room").address
    }

    #[test]
    fn fresh_memory_is_told_from_used() {
        let mut heap = heap();
        assert_eq!(heap.take(0x40, 16), Some(Place { address: BASE, used: 0 }));
        heap.give(BASE..BASE + 0x40);
        assert_eq!(heap.take(0x60, 16), Some(Place { address: BASE, used: 0x40 }));
        assert_eq!(heap.take(0x20, 16), Some(Place { address: BASE + 0x60, used: 0 }));
        heap.give(BASE..BASE + 0x60);
        assert_eq!(heap.take(0x20, 16), Some(Place { address: BASE, used: 0x20 }));
    }

    #[test]
    fn freed_neighbours_serve_a_larger_segment() {
        let mut heap = heap();
        let [first, second, _third] = [0; 3].map(|_| address(&mut heap, 0x100));
        heap.give(second..second + 0x100);
        heap.give(first..first + 0x100);
        assert_eq!(address(&mut heap, 0x200), first);
    }

    #[test]
    fn the_last_segment_freed_takes_free_ranges_before_it_along() {
        let mut heap = heap();
        let [first, second] = [0; 2].map(|_| address(&mut heap, 0x100));
        heap.give(first..first + 0x100);
        heap.give(second..second + 0x100);
        assert_eq!(heap.wilderness().start, first);
        assert_eq!(heap.free.bytes(), 0);
    }

    #[test]
    fn what_alignment_skips_is_used_by_others() {
        let mut heap = heap();
        assert_eq!(address(&mut heap, 0x10), BASE);
        assert_eq!(heap.take(0x10, 0x1000), Some(Place { address: BASE + 0x1000, used: 0 }));
        assert_eq!(address(&mut heap, 0x10), BASE + 0x10);
    }

    #[test]
    fn a_segment_can_span_two_chunks_that_touch() {
        let mut heap = heap();
        assert_eq!(address(&mut heap, 0x1_0000), BASE);
        heap.add_chunk(BASE - 0x1_0000..BASE);
        assert_eq!(heap.take(0x1_0010, 16), None);
        heap.give(BASE..BASE + 0x1_0000);
        assert_eq!(heap.take(0x1_8000, 16), Some(Place { address: BASE - 0x1_0000, used: 0x1_8000 }));
    }

    #[test]
    fn trimming_spares_what_lives_where_an_absorbed_range_ends() {
        let mut heap = Heap::default();
        heap.add_chunk(BASE..BASE + 0x2_0000);
        let first = address(&mut heap, 0x1_9010);
        let live = address(&mut heap, 0x40);
        heap.give(first..first + 0x1_9010);
        heap.add_chunk(BASE - 0x20_0000..BASE);
        // Takes the new chunk and the range behind it.
        let large = address(&mut heap, 0x21_0000);
        assert!(large < BASE && large + 0x21_0000 > BASE);
        assert!(heap.give(large..large + 0x21_0000));
        let mut released = Vec::new();
        heap.trim(0x1000, |pages| released.push(pages));
        assert!(released.iter().any(|pages| pages.start < BASE));
        assert!(!released.iter().any(|pages| pages.contains(&live)), "{released:x?}, {live:#x}");
    }

    #[test]
    fn trimming_gives_free_pages_once_and_keeps_some_at_hand() {
        let mut heap = Heap::default();
        heap.add_chunk(BASE..BASE + 0x40_0000);
        let first = address(&mut heap, 0x1_0000);
        let second = address(&mut heap, 0x10_0010);
        assert!(!heap.give(first..first + 0x1_0000));
        assert!(heap.give(second..second + 0x10_0010), "a megabyte was freed");
        let mut released = Vec::new();
        heap.trim(0x1000, |pages| released.push(pages));
        heap.trim(0x1000, |pages| released.push(pages));
        assert_eq!(released, [BASE + KEPT..BASE + 0x11_1000]);
    }
}
