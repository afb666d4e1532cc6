//! A list that grows and moves nothing: whoever reads it needs no lock while it grows.

use std::marker::PhantomData;
use std::sync::atomic::{AtomicPtr, Ordering};

use jit_linker::memory::prefer_huge_pages;

use crate::sync;

/// Elements of the first segment.
const FIRST: usize = 64;
/// In how many segments a doubling comes, a power of two: the more, the less room is made in advance, and the less of a
/// large list is in huge pages.
const PARTS: usize = 2;
const SEGMENTS: usize = 1 + PARTS * (sync::PLACE_BITS - FIRST.ilog2()) as usize;

pub(crate) struct Grown<T> {
    /// Each null, or the first element of a `Box<[T]>` whose length its position tells.
    segments: [AtomicPtr<T>; SEGMENTS],
    /// It is as fit for several threads as its elements are.
    elements: PhantomData<T>,
}

impl<T> Default for Grown<T> {
    fn default() -> Self {
        const { assert!(PARTS.is_power_of_two() && PARTS <= FIRST) }
        Self { segments: [const { AtomicPtr::new(std::ptr::null_mut()) }; SEGMENTS], elements: PhantomData }
    }
}

/// The segment of an element, and its place there.
#[inline]
fn place(index: u32) -> (usize, usize) {
    let index = index as usize;
    if index < FIRST {
        return (0, index);
    }
    let doubling = index.ilog2();
    // In parts of an element, so that nothing but the doubling is shifted by: a lookup comes by here, and each instruction
    // counts. The upper bits count from `PARTS`: the first of them is the doubling itself.
    let scaled = index * PARTS;
    let upper = scaled >> doubling;
    let segment = doubling as usize * PARTS + upper - (FIRST.ilog2() as usize * PARTS + PARTS - 1);
    (segment, (scaled - (upper << doubling)) / PARTS)
}

/// The length of a segment.
fn length_of(segment: usize) -> usize {
    if segment == 0 { FIRST } else { (FIRST / PARTS) << ((segment - 1) / PARTS) }
}

impl<T: Default + Send> Grown<T> {
    /// The element, if the list has grown as far.
    #[inline]
    pub(crate) fn get(&self, index: u32) -> Option<&T> {
        let (segment, offset) = place(index);
        let elements = self.segments.get(segment)?.load(Ordering::Acquire);
        if elements.is_null() {
            return None;
        }
        // SAFETY: `grow` put a box of the segment's length there, which stays as long as the list; the offset is less.
        Some(unsafe { &*elements.add(offset) })
    }

    /// The element; its segment is made if it is not there.
    #[inline]
    pub(crate) fn grow(&self, index: u32) -> &T {
        match self.get(index) {
            Some(element) => element,
            None => self.add_segment(index),
        }
    }

    #[cold]
    fn add_segment(&self, index: u32) -> &T {
        let (segment, offset) = place(index);
        let length = length_of(segment);
        let mut elements = Vec::with_capacity(length);
        // Lookups in a large table go anywhere in it: with small pages, each would first look for its page.
        prefer_huge_pages(&elements.spare_capacity_mut()[..length]);
        elements.extend((0..length).map(|_| T::default()));
        let new = Box::into_raw(elements.into_boxed_slice()).cast::<T>();
        let old = std::ptr::null_mut();
        let there = match self.segments[segment].compare_exchange(old, new, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => new,
            Err(there) => {
                // SAFETY: it was made above, and nobody else has seen it.
                drop(unsafe { segment_from(new, length) });
                there
            }
        };
        // SAFETY: as in `get`.
        unsafe { &*there.add(offset) }
    }
}

/// The box of a segment's elements.
///
/// # Safety
///
/// `add_segment` made it so, and its owner gives it up.
unsafe fn segment_from<T>(elements: *mut T, length: usize) -> Box<[T]> {
    // SAFETY: as the caller says.
    unsafe { Box::from_raw(std::ptr::slice_from_raw_parts_mut(elements, length)) }
}

impl<T> Drop for Grown<T> {
    fn drop(&mut self) {
        for (segment, elements) in self.segments.iter_mut().enumerate() {
            if !elements.get_mut().is_null() {
                // SAFETY: the list owns it, and goes.
                drop(unsafe { segment_from(*elements.get_mut(), length_of(segment)) });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_follow_each_other_without_a_gap() {
        let mut expected = (0, 0);
        for index in 0..10_000 {
            let (segment, offset) = place(index);
            assert_eq!((segment, offset), expected, "{index}");
            expected = if offset + 1 == length_of(segment) { (segment + 1, 0) } else { (segment, offset + 1) };
        }
        assert!(place(u32::MAX >> (u32::BITS - sync::PLACE_BITS)).0 < SEGMENTS);
    }
}
