//! A list that grows and moves nothing: whoever reads it needs no lock while it grows.

use std::sync::OnceLock;

use crate::sync;

/// Elements of the first segment.
const FIRST: usize = 64;
/// Segments of each doubling after the first: the list is at most a quarter larger than it was asked to be.
const QUARTERS: usize = 4;
const SEGMENTS: usize = 1 + QUARTERS * (sync::PLACE_BITS - FIRST.ilog2()) as usize;

pub(crate) struct Grown<T> {
    segments: [OnceLock<Box<[T]>>; SEGMENTS],
}

impl<T> Default for Grown<T> {
    fn default() -> Self {
        Self { segments: [const { OnceLock::new() }; SEGMENTS] }
    }
}

/// The segment of an element, its place there, and the segment's length.
fn place(index: u32) -> (usize, usize, usize) {
    let index = index as usize;
    if index < FIRST {
        return (0, index, FIRST);
    }
    let doubling = index.ilog2();
    let length = (1 << doubling) / QUARTERS;
    let quarter = index / length % QUARTERS;
    (1 + (doubling - FIRST.ilog2()) as usize * QUARTERS + quarter, index % length, length)
}

impl<T: Default> Grown<T> {
    /// The element, if the list has grown as far.
    pub(crate) fn get(&self, index: u32) -> Option<&T> {
        let (segment, offset, _) = place(index);
        self.segments.get(segment)?.get()?.get(offset)
    }

    /// The element; its segment is made if it is not there.
    pub(crate) fn grow(&self, index: u32) -> &T {
        let (segment, offset, length) = place(index);
        &self.segments[segment].get_or_init(|| (0..length).map(|_| T::default()).collect())[offset]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_follow_each_other_without_a_gap() {
        let mut expected = (0, 0);
        for index in 0..10_000 {
            let (segment, offset, length) = place(index);
            assert_eq!((segment, offset), expected, "{index}");
            expected = if offset + 1 == length { (segment + 1, 0) } else { (segment, offset + 1) };
        }
        assert!(place(u32::MAX >> (u32::BITS - sync::PLACE_BITS)).0 < SEGMENTS);
    }
}
