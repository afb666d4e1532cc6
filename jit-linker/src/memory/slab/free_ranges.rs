//! Which ranges are free, by their ends and by size. Every operation but
//! [`take_resident`](FreeRanges::take_resident) takes a time that does not depend on how many
//! there are. Knows nothing of what the addresses mean.

use std::ops::Range;

use rustc_hash::FxHashMap;

use super::heap::GRANULE;

/// Ranges of one bin that are tried before one from a bin whose ranges all fit: many holes that
/// are a little too small, or badly aligned, must not cost a scan.
const TRIES: usize = 4;

/// Sizes below this many granules have a bin each.
const EXACT: u64 = 64;

/// Larger sizes have this many bins between two powers of two.
const STEPS: u64 = 8;

/// Enough for ranges of 2^63 bytes.
const BINS: usize = (EXACT + STEPS * (59 - EXACT.ilog2() as u64)).next_multiple_of(64) as usize;

/// Free ranges that neither overlap nor touch, of whole granules.
#[derive(Debug)]
pub(super) struct FreeRanges {
    by_start: FxHashMap<u64, FreeRange>,
    /// The start of the range that ends somewhere.
    by_end: FxHashMap<u64, u64>,
    /// Starts of ranges by size; the youngest last. As long as the largest size needed.
    bins: Vec<Vec<u64>>,
    /// Which bins are not empty.
    occupied: [u64; BINS / 64],
    bytes: u64,
}

#[derive(Clone, Copy, Debug)]
struct FreeRange {
    size: u64,
    /// Where it is in its bin.
    position: usize,
    /// Pages of it may hold memory.
    resident: bool,
}

impl Default for FreeRanges {
    fn default() -> Self {
        Self {
            by_start: FxHashMap::default(),
            by_end: FxHashMap::default(),
            bins: Vec::new(),
            occupied: [0; BINS / 64],
            bytes: 0,
        }
    }
}

/// The bin of ranges of `size` bytes. Larger ranges never have smaller bins.
fn bin_of(size: u64) -> usize {
    let granules = size / GRANULE;
    if granules < EXACT {
        return granules as usize;
    }
    let power = u64::from(granules.ilog2());
    let step = (granules >> (power - u64::from(STEPS.ilog2()))) % STEPS;
    (EXACT + (power - u64::from(EXACT.ilog2())) * STEPS + step) as usize
}

impl FreeRanges {
    /// Bytes in all ranges.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Adds a range that held data, and what touches it.
    pub(super) fn insert(&mut self, range: Range<u64>) {
        self.bytes += range.end - range.start;
        let Range { mut start, mut end } = range;
        if let Some(&before) = self.by_end.get(&start) {
            self.unlink(before);
            start = before;
        }
        if let Some(after) = self.unlink(end) {
            end += after.size;
        }
        self.link(start, end - start, true);
    }

    /// Takes `size` bytes at a multiple of `align` out of a range that is little larger.
    pub(super) fn take(&mut self, size: u64, align: u64) -> Option<u64> {
        if self.bytes < size {
            return None;
        }
        let start = self.find(size, align)?;
        let range = self.unlink(start)?;
        let at = start.next_multiple_of(align);
        if at > start {
            self.link(start, at - start, range.resident);
        }
        let rest = start + range.size - (at + size);
        if rest > 0 {
            self.link(at + size, rest, range.resident);
        }
        self.bytes -= size;
        Some(at)
    }

    /// Removes the range that starts at `start`.
    pub(super) fn remove(&mut self, start: u64) -> Option<Range<u64>> {
        let range = self.unlink(start)?;
        self.bytes -= range.size;
        Some(start..start + range.size)
    }

    /// Removes the range that ends at `end`.
    pub(super) fn remove_ending_at(&mut self, end: u64) -> Option<Range<u64>> {
        let start = *self.by_end.get(&end)?;
        self.remove(start)
    }

    /// Ranges of at least `size` bytes that have not been given here since memory was last put in.
    pub(super) fn take_resident(&mut self, size: u64) -> Vec<Range<u64>> {
        let mut ranges = Vec::new();
        for &start in self.bins.iter().skip(bin_of(size)).flatten() {
            let Some(range) = self.by_start.get_mut(&start) else { continue };
            if range.size >= size && std::mem::replace(&mut range.resident, false) {
                ranges.push(start..start + range.size);
            }
        }
        ranges
    }

    /// The start of a range that has `size` bytes at a multiple of `align`: from the bins in which
    /// some have, if one is found soon, or else from those in which all have.
    fn find(&self, size: u64, align: u64) -> Option<u64> {
        let fits = |&&start: &&u64| {
            let range_size = self.by_start.get(&start).map_or(0, |range| range.size);
            start.next_multiple_of(align) - start + size <= range_size
        };
        let near = [Some(bin_of(size)), self.occupied_from(bin_of(size) + 1)];
        let near = near.into_iter().flatten().filter_map(|bin| self.bins.get(bin));
        let tight = near.flat_map(|bin| bin.iter().rev().take(TRIES)).find(fits);
        tight.copied().or_else(|| self.bins[self.occupied_from(bin_of(size + align) + 1)?].last().copied())
    }

    /// The first bin from `bin` on that is not empty.
    fn occupied_from(&self, bin: usize) -> Option<usize> {
        let mut word = bin / 64;
        let mut bits = self.occupied.get(word)? & (u64::MAX << (bin % 64));
        while bits == 0 {
            word += 1;
            bits = *self.occupied.get(word)?;
        }
        Some(word * 64 + bits.trailing_zeros() as usize)
    }

    fn link(&mut self, start: u64, size: u64, resident: bool) {
        let bin = bin_of(size);
        if bin >= self.bins.len() {
            self.bins.resize_with(bin + 1, Vec::new);
        }
        let position = self.bins[bin].len();
        self.bins[bin].push(start);
        self.occupied[bin / 64] |= 1 << (bin % 64);
        self.by_start.insert(start, FreeRange { size, position, resident });
        self.by_end.insert(start + size, start);
    }

    fn unlink(&mut self, start: u64) -> Option<FreeRange> {
        let range = self.by_start.remove(&start)?;
        self.by_end.remove(&(start + range.size));
        let bin = bin_of(range.size);
        self.bins[bin].swap_remove(range.position);
        if let Some(moved) = self.bins[bin].get(range.position) {
            if let Some(moved) = self.by_start.get_mut(moved) {
                moved.position = range.position;
            }
        } else if self.bins[bin].is_empty() {
            self.occupied[bin / 64] &= !(1 << (bin % 64));
        }
        Some(range)
    }
}

#[cfg(test)]
#[expect(clippy::single_range_in_vec_init, reason = "lists of ranges that have one")]
mod tests {
    use super::*;

    fn ranges(free: &FreeRanges) -> Vec<Range<u64>> {
        let mut ranges: Vec<_> = free.by_start.iter().map(|(&start, range)| start..start + range.size).collect();
        ranges.sort_by_key(|range| range.start);
        assert_eq!(free.by_end.len(), ranges.len());
        assert!(ranges.iter().all(|range| free.by_end[&range.end] == range.start));
        for (number, bin) in free.bins.iter().enumerate() {
            assert_eq!(free.occupied_from(number) == Some(number), !bin.is_empty());
            for (position, start) in bin.iter().enumerate() {
                let range = free.by_start[start];
                assert_eq!((bin_of(range.size), range.position), (number, position));
            }
        }
        assert_eq!(free.bins.iter().map(Vec::len).sum::<usize>(), ranges.len());
        assert_eq!(ranges.iter().map(|range| range.end - range.start).sum::<u64>(), free.bytes);
        ranges
    }

    #[test]
    fn bins_are_in_the_order_of_sizes() {
        assert!((1..100_000).all(|granules| {
            let (smaller, larger) = (bin_of(granules * GRANULE), bin_of((granules + 1) * GRANULE));
            smaller <= larger && larger <= smaller + 1
        }));
        assert!(bin_of(1 << 63) < BINS);
    }

    #[test]
    fn neighbours_merge_on_both_sides() {
        let mut free = FreeRanges::default();
        free.insert(0x100..0x140);
        free.insert(0x180..0x1c0);
        assert_eq!(ranges(&free), [0x100..0x140, 0x180..0x1c0]);
        free.insert(0x140..0x180);
        assert_eq!(ranges(&free), [0x100..0x1c0]);
    }

    #[test]
    fn a_range_of_the_size_is_taken_before_a_larger_one_is_split() {
        let mut free = FreeRanges::default();
        for (start, size) in [(0x1000, 0x100), (0x3000, 0x40), (0x2000, 0x40)] {
            free.insert(start..start + size);
        }
        assert_eq!([0; 3].map(|_| free.take(0x40, 16)), [Some(0x2000), Some(0x3000), Some(0x1000)]);
        assert_eq!(ranges(&free), [0x1040..0x1100]);
        assert_eq!(free.take(0x100, 16), None);
    }

    #[test]
    fn a_large_range_of_just_the_size_is_found() {
        let mut free = FreeRanges::default();
        free.insert(0x10_0000..0x10_5010);
        assert_eq!(free.take(0x5020, 16), None);
        assert_eq!(free.take(0x5010, 16), Some(0x10_0000));
    }

    #[test]
    fn alignment_leaves_both_ends_free() {
        let mut free = FreeRanges::default();
        free.insert(0x1010..0x3010);
        assert_eq!(free.take(0x20, 0x1000), Some(0x2000));
        assert_eq!(ranges(&free), [0x1010..0x2000, 0x2020..0x3010]);
    }

    #[test]
    fn many_misaligned_ranges_do_not_hide_a_larger_one() {
        let mut free = FreeRanges::default();
        for index in 0..100u64 {
            free.insert(index * 0x1000 + 0x10..index * 0x1000 + 0x50);
        }
        free.insert(0x10_0010..0x10_0100);
        assert_eq!(free.take(0x40, 0x80), Some(0x10_0080));
    }

    #[test]
    fn resident_ranges_are_given_once() {
        let mut free = FreeRanges::default();
        free.insert(0x1000..0x3000);
        free.insert(0x8000..0x8010);
        assert_eq!(free.take_resident(0x1000), [0x1000..0x3000]);
        assert_eq!(free.take_resident(0x1000), []);
        free.insert(0x3000..0x3010);
        assert_eq!(free.take_resident(0x1000), [0x1000..0x3010]);
    }

    /// Compares with a map of granules over a long mixed sequence.
    #[test]
    fn agrees_with_a_map_of_granules() {
        const GRANULES: usize = 512;
        let mut free = FreeRanges::default();
        free.insert(0..GRANULES as u64 * 16);
        let mut used = [false; GRANULES];
        let mut live: Vec<(u64, u64)> = Vec::new();
        let mut seed = 1u64;
        let mut random = |below: u64| {
            seed = seed.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
            (seed >> 33) % below
        };
        let granules = |start: u64, size: u64| start as usize / 16..(start + size) as usize / 16;
        for _ in 0..20_000 {
            if random(2) == 0 && !live.is_empty() {
                let (start, size) = live.swap_remove(random(live.len() as u64) as usize);
                free.insert(start..start + size);
                used[granules(start, size)].fill(false);
            } else {
                let (size, align) = ((random(8) + 1) * 16, 16 << random(4));
                let Some(start) = free.take(size, align) else { continue };
                assert_eq!(start % align, 0);
                assert!(!used[granules(start, size)].contains(&true), "handed out twice");
                used[granules(start, size)].fill(true);
                live.push((start, size));
            }
            assert_eq!(free.bytes() as usize, used.iter().filter(|used| !**used).count() * 16);
        }
        for (start, size) in live {
            free.insert(start..start + size);
        }
        assert_eq!(ranges(&free), [0..GRANULES as u64 * 16]);
    }
}
