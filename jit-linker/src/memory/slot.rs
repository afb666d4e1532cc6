//! Slots, and the stubs that jump through them.
//!
//! They come in blocks, one segment of stubs and one of slots. Stubs are written once: a slot that
//! is used again keeps its stub.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{Allocation, FinalizedAllocation, MemoryError, MemoryManager, SegmentKind, SegmentRequest};
use crate::arch::Architecture;
use crate::arch::stub::{self, STUB_SIZE};

const SLOT_SIZE: usize = size_of::<u64>();

/// A page of stubs, each with its slot.
///
/// A slot is a word that says where a function's body is now; its stub, the function's canonical
/// address, jumps to what the word holds. Which of them is in use, its owner knows; and that no
/// code refers to any of them any more when the block is dropped.
#[derive(Debug)]
pub struct SlotBlock {
    memory: FinalizedAllocation,
}

impl SlotBlock {
    /// Pairs in a block.
    pub const LEN: usize = 256;

    /// A block in memory from `manager`, whose slots hold 0.
    ///
    /// # Errors
    ///
    /// When there is no memory.
    pub fn new(manager: &Arc<dyn MemoryManager>, architecture: Architecture) -> Result<Self, MemoryError> {
        let stubs = SegmentRequest { size: Self::LEN * STUB_SIZE, align: STUB_SIZE };
        let slots = SegmentRequest { size: Self::LEN * SLOT_SIZE, align: SLOT_SIZE };
        let mut allocation = Allocation::new(manager, &[stubs, SegmentRequest::NONE, slots])?;
        let (stubs, slots) = (allocation.address(SegmentKind::Code), allocation.address(SegmentKind::Data));
        for (index, bytes) in allocation.working(SegmentKind::Code).chunks_exact_mut(STUB_SIZE).enumerate() {
            let (place, slot) = (stubs + (index * STUB_SIZE) as u64, slots + (index * SLOT_SIZE) as u64);
            let code = stub::encode(architecture, place, slot)
                .map_err(|error| MemoryError::System { action: "place stubs", source: std::io::Error::other(error) })?;
            bytes.copy_from_slice(&code);
        }
        allocation.working(SegmentKind::Data).fill(0);
        Ok(Self { memory: allocation.finalize()? })
    }

    /// The address of the stub at `index`: the function's, for its whole life.
    ///
    /// # Panics
    ///
    /// As all methods, when there is no such pair.
    #[must_use]
    pub fn stub_address(&self, index: usize) -> u64 {
        self.address(SegmentKind::Code, index, STUB_SIZE)
    }

    /// The address of the word at `index`, for calls that go through it without the stub.
    #[must_use]
    pub fn slot_address(&self, index: usize) -> u64 {
        self.address(SegmentKind::Data, index, SLOT_SIZE)
    }

    /// Where the stubs are.
    #[must_use]
    pub fn stubs(&self) -> Range<u64> {
        self.memory.range(SegmentKind::Code)
    }

    /// Which pair's stub or word an address belongs to.
    #[must_use]
    pub fn index_of(&self, address: u64) -> Option<usize> {
        let places = [(self.stubs(), STUB_SIZE), (self.slots(), SLOT_SIZE)];
        let (range, size) = places.into_iter().find(|(range, _)| range.contains(&address))?;
        Some((address - range.start) as usize / size).filter(|index| *index < Self::LEN)
    }

    /// Keeps something as long as the block.
    pub fn attach(&mut self, guard: Box<dyn Send + Sync>) {
        self.memory.attach(guard);
    }

    /// Where the words are.
    #[must_use]
    pub fn slots(&self) -> Range<u64> {
        self.memory.range(SegmentKind::Data)
    }

    /// Where calls go now.
    #[must_use]
    pub fn load(&self, index: usize) -> u64 {
        self.word(index).load(Ordering::Acquire)
    }

    /// Makes calls go to `target` from now on, by one store with release ordering: what was
    /// written before is seen by whoever is called.
    pub fn store(&self, index: usize, target: u64) {
        self.word(index).store(target, Ordering::Release);
    }

    fn address(&self, kind: SegmentKind, index: usize, size: usize) -> u64 {
        assert!(index < Self::LEN, "a block has {} slots", Self::LEN);
        self.memory.range(kind).start + (index * size) as u64
    }

    fn word(&self, index: usize) -> &AtomicU64 {
        let word = std::ptr::with_exposed_provenance::<AtomicU64>(self.slot_address(index) as usize);
        // SAFETY: data segments are writable at their address as long as the allocation lives;
        // the word is inside and aligned to 8, and compiled code only reads it, whole.
        unsafe { &*word }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::PageManager;

    fn block() -> (SlotBlock, Arc<dyn MemoryManager>) {
        let manager: Arc<dyn MemoryManager> = Arc::new(PageManager::new());
        let architecture = Architecture::host().expect("tests run where code can");
        (SlotBlock::new(&manager, architecture).expect("memory"), manager)
    }

    extern "C" fn one() -> u64 {
        1
    }

    extern "C" fn two() -> u64 {
        2
    }

    fn call(address: u64) -> u64 {
        let code = std::ptr::with_exposed_provenance::<()>(address as usize);
        // SAFETY: the stub of a slot that holds the address of a function of this type.
        unsafe { std::mem::transmute::<*const (), extern "C" fn() -> u64>(code)() }
    }

    #[test]
    fn a_stub_calls_what_its_slot_holds_now() {
        let (block, _manager) = block();
        block.store(7, one as *const () as u64);
        assert_eq!(call(block.stub_address(7)), 1);
        block.store(7, two as *const () as u64);
        assert_eq!(block.load(7), two as *const () as u64);
        assert_eq!(call(block.stub_address(7)), 2);
    }

    #[test]
    fn pairs_are_distinct_and_independent() {
        let (block, _manager) = block();
        (0..SlotBlock::LEN).for_each(|index| block.store(index, index as u64));
        assert!((0..SlotBlock::LEN).all(|index| block.load(index) == index as u64));
        let stubs: std::collections::HashSet<_> = (0..SlotBlock::LEN).map(|index| block.stub_address(index)).collect();
        assert_eq!(stubs.len(), SlotBlock::LEN);
        assert!((0..SlotBlock::LEN).all(|index| block.slots().contains(&block.slot_address(index))));
    }

    #[test]
    fn a_block_gives_its_memory_back() {
        let (block, manager) = block();
        assert_eq!(manager.statistics().allocations, 1);
        drop(block);
        assert_eq!(manager.statistics().allocations, 0);
    }
}
