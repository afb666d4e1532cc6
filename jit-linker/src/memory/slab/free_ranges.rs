//! Which ranges are free, by address and by size. Knows nothing of what the addresses mean.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

/// Ranges too small for a request once aligned are passed over this often before a range is taken
/// that is large enough whatever its alignment: many holes of one size must not cost a scan.
const ALIGNMENT_TRIES: usize = 4;

/// Free ranges that neither overlap nor touch.
#[derive(Debug, Default)]
pub(super) struct FreeRanges {
    by_address: BTreeMap<u64, FreeRange>,
    /// Size, then address: the best fit, and of those the lowest.
    by_size: BTreeSet<(u64, u64)>,
    bytes: u64,
}

#[derive(Clone, Copy, Debug)]
struct FreeRange {
    size: u64,
    /// Pages of it may hold memory.
    resident: bool,
}

impl FreeRanges {
    /// Bytes in all ranges.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Adds a range that held data, and gives the range it has become part of.
    pub(super) fn insert(&mut self, range: Range<u64>) -> Range<u64> {
        self.bytes += range.end - range.start;
        let mut merged = range;
        if let Some((&start, before)) = self.by_address.range(..merged.start).next_back()
            && start + before.size == merged.start
        {
            self.by_size.remove(&(before.size, start));
            merged.start = start;
        }
        if let Some(after) = self.by_address.remove(&merged.end) {
            self.by_size.remove(&(after.size, merged.end));
            merged.end += after.size;
        }
        self.link(merged.start, FreeRange { size: merged.end - merged.start, resident: true });
        merged
    }

    /// Takes `size` bytes at a multiple of `align` out of the smallest range that has them.
    pub(super) fn take(&mut self, size: u64, align: u64) -> Option<u64> {
        let (start, range_size) = self.find(size, align)?;
        let at = start.next_multiple_of(align);
        let range = self.unlink(start)?;
        if at > start {
            self.link(start, FreeRange { size: at - start, ..range });
        }
        let rest = start + range_size - (at + size);
        if rest > 0 {
            self.link(at + size, FreeRange { size: rest, ..range });
        }
        self.bytes -= size;
        Some(at)
    }

    fn find(&self, size: u64, align: u64) -> Option<(u64, u64)> {
        let fits = |&&(range_size, start): &&(u64, u64)| start.next_multiple_of(align) - start + size <= range_size;
        let tight = self.by_size.range((size, 0)..).take(ALIGNMENT_TRIES).find(fits);
        let &(range_size, start) = tight.or_else(|| self.by_size.range((size + align, 0)..).next())?;
        Some((start, range_size))
    }

    /// Removes the range that starts at `start`.
    pub(super) fn remove(&mut self, start: u64) -> Option<Range<u64>> {
        let range = self.unlink(start)?;
        self.bytes -= range.size;
        Some(start..start + range.size)
    }

    /// Removes the range that ends at `end`.
    pub(super) fn remove_ending_at(&mut self, end: u64) -> Option<Range<u64>> {
        let (&start, range) = self.by_address.range(..end).next_back()?;
        if start + range.size == end { self.remove(start) } else { None }
    }

    /// Ranges of at least `size` bytes that have not been given here since memory was last put in.
    pub(super) fn take_resident(&mut self, size: u64) -> Vec<Range<u64>> {
        let by_address = &mut self.by_address;
        self.by_size
            .range((size, 0)..)
            .filter(|(_, start)| {
                by_address.get_mut(start).is_some_and(|range| std::mem::replace(&mut range.resident, false))
            })
            .map(|&(size, start)| start..start + size)
            .collect()
    }

    fn link(&mut self, start: u64, range: FreeRange) {
        self.by_address.insert(start, range);
        self.by_size.insert((range.size, start));
    }

    fn unlink(&mut self, start: u64) -> Option<FreeRange> {
        let range = self.by_address.remove(&start)?;
        self.by_size.remove(&(range.size, start));
        Some(range)
    }
}

#[cfg(test)]
#[expect(clippy::single_range_in_vec_init, reason = "lists of ranges that have one")]
mod tests {
    use super::*;

    fn ranges(free: &FreeRanges) -> Vec<Range<u64>> {
        let sizes: BTreeSet<_> = free.by_address.iter().map(|(&start, range)| (range.size, start)).collect();
        assert_eq!(sizes, free.by_size, "the two orders hold the same ranges");
        let ranges: Vec<_> = free.by_address.iter().map(|(&start, range)| start..start + range.size).collect();
        assert_eq!(ranges.iter().map(|range| range.end - range.start).sum::<u64>(), free.bytes);
        ranges
    }

    #[test]
    fn neighbours_merge_on_both_sides() {
        let mut free = FreeRanges::default();
        assert_eq!(free.insert(0x100..0x140), 0x100..0x140);
        assert_eq!(free.insert(0x180..0x1c0), 0x180..0x1c0);
        assert_eq!(free.insert(0x140..0x180), 0x100..0x1c0);
        assert_eq!(ranges(&free), [0x100..0x1c0]);
    }

    #[test]
    fn the_smallest_range_that_fits_is_taken_and_of_those_the_lowest() {
        let mut free = FreeRanges::default();
        for (start, size) in [(0x1000, 0x100), (0x3000, 0x40), (0x2000, 0x40)] {
            free.insert(start..start + size);
        }
        assert_eq!(free.take(0x40, 16), Some(0x2000));
        assert_eq!(free.take(0x40, 16), Some(0x3000));
        assert_eq!(free.take(0x40, 16), Some(0x1000));
        assert_eq!(ranges(&free), [0x1040..0x1100]);
        assert_eq!(free.take(0x100, 16), None);
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
