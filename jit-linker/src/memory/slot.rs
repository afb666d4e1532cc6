//! Slots, and the stubs that jump through them.
//!
//! They come in blocks, one segment of stubs and one of slots, whose stubs are written once: a
//! slot that is recycled keeps its stub.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Allocation, FinalizedAllocation, MemoryError, MemoryManager, SegmentKind, SegmentRequest};
use crate::arch::Architecture;
use crate::arch::stub::{self, STUB_SIZE};

const SLOT_SIZE: usize = size_of::<u64>();

/// Pairs in a block: a page of stubs.
const BLOCK: usize = 256;

/// Hands out [`Slot`]s.
#[derive(Debug)]
pub struct SlotPool {
    shared: Arc<Shared>,
}

/// A word that says where a function's body is now, and the function's canonical address: a stub
/// that jumps to what the word holds.
///
/// Dropped, the pair is recycled: whoever drops it vouches that no code refers to either address
/// any more.
pub struct Slot {
    shared: Arc<Shared>,
    block: usize,
    index: usize,
    stub: u64,
    slot: u64,
}

/// Registers a block of stubs with the process, and gives what undoes that.
pub type RegisterStubs = Box<dyn Fn(std::ops::Range<u64>) -> Box<dyn Send + Sync> + Send + Sync>;

struct Shared {
    manager: Arc<dyn MemoryManager>,
    architecture: Architecture,
    register: Option<RegisterStubs>,
    /// Held while a block is made, so that two threads do not make one each.
    blocks: Mutex<Blocks>,
}

#[derive(Debug, Default)]
struct Blocks {
    /// `None` where a block went back.
    blocks: Vec<Option<Block>>,
    /// Blocks with a free pair.
    with_room: Vec<usize>,
    /// Places in `blocks` without a block.
    vacant: Vec<usize>,
}

/// A block of pairs. Blocks outlive their slots, which hold `Shared`.
#[derive(Debug)]
struct Block {
    memory: FinalizedAllocation,
    /// Which pairs are free; the last is handed out first.
    free: Vec<u16>,
}

impl SlotPool {
    /// A pool that takes memory from `manager`, once the first slot is wanted.
    #[must_use]
    pub fn new(manager: Arc<dyn MemoryManager>, architecture: Architecture) -> Self {
        Self { shared: Arc::new(Shared { manager, architecture, register: None, blocks: Mutex::default() }) }
    }

    /// As [`new`](Self::new); `register` is called with the range of each block of stubs.
    #[must_use]
    pub fn registering(manager: Arc<dyn MemoryManager>, architecture: Architecture, register: RegisterStubs) -> Self {
        let register = Some(register);
        Self { shared: Arc::new(Shared { manager, architecture, register, blocks: Mutex::default() }) }
    }

    /// A slot that holds `initial`.
    ///
    /// # Errors
    ///
    /// When a new block is needed and there is no memory for it.
    pub fn allocate(&self, initial: u64) -> Result<Slot, MemoryError> {
        let (block, index, stub, slot) = self.shared.take()?;
        let slot = Slot { shared: Arc::clone(&self.shared), block, index, stub, slot };
        slot.store(initial);
        Ok(slot)
    }
}

impl Slot {
    /// The stub's address: the function's, for its whole life.
    #[must_use]
    pub fn stub_address(&self) -> u64 {
        self.stub
    }

    /// The word's address, for calls that go through it without the stub.
    #[must_use]
    pub fn slot_address(&self) -> u64 {
        self.slot
    }

    /// Where calls go now.
    #[must_use]
    pub fn load(&self) -> u64 {
        self.word().load(Ordering::Acquire)
    }

    /// Makes calls go to `target` from now on, by one store with release ordering: what was
    /// written before is seen by whoever is called.
    pub fn store(&self, target: u64) {
        self.word().store(target, Ordering::Release);
    }

    fn word(&self) -> &AtomicU64 {
        let word = std::ptr::with_exposed_provenance::<AtomicU64>(self.slot as usize);
        // SAFETY: data segments are writable at their address until the block goes back, which
        // its slots prevent; they are aligned to 8, and compiled code only reads the word, whole.
        unsafe { &*word }
    }
}

impl fmt::Debug for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Slot({:#x} -> [{:#x}] -> {:#x})", self.stub, self.slot, self.load())
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("blocks", &self.blocks).finish_non_exhaustive()
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.shared.give(self.block, self.index);
    }
}

impl Shared {
    /// Block, index, stub and slot address of a free pair.
    fn take(&self) -> Result<(usize, usize, u64, u64), MemoryError> {
        let mut blocks = self.lock();
        let number = match blocks.with_room.last() {
            Some(&number) => number,
            None => {
                let block = self.make_block()?;
                blocks.add(block)
            }
        };
        let (pair, is_full) = blocks.take_from(number).expect("`with_room` lists only blocks with a free pair");
        if is_full {
            blocks.with_room.pop();
        }
        Ok(pair)
    }

    fn give(&self, number: usize, index: usize) {
        let emptied = self.lock().give(number, index);
        // Outside the lock: the memory manager has locks of its own.
        drop(emptied);
    }

    fn make_block(&self) -> Result<Block, MemoryError> {
        let stubs = SegmentRequest { size: BLOCK * STUB_SIZE, align: STUB_SIZE };
        let slots = SegmentRequest { size: BLOCK * SLOT_SIZE, align: SLOT_SIZE };
        let mut allocation = Allocation::new(&self.manager, &[stubs, SegmentRequest::NONE, slots])?;
        let (stubs, slots) = (allocation.address(SegmentKind::Code), allocation.address(SegmentKind::Data));
        for (index, bytes) in allocation.working(SegmentKind::Code).chunks_exact_mut(STUB_SIZE).enumerate() {
            let (place, slot) = (stubs + (index * STUB_SIZE) as u64, slots + (index * SLOT_SIZE) as u64);
            let code = stub::encode(self.architecture, place, slot)
                .map_err(|error| MemoryError::System { action: "place stubs", source: std::io::Error::other(error) })?;
            bytes.copy_from_slice(&code);
        }
        let mut memory = allocation.finalize()?;
        if let Some(register) = &self.register {
            memory.attach(register(memory.range(SegmentKind::Code)));
        }
        Ok(Block { memory, free: (0..BLOCK as u16).rev().collect() })
    }

    fn lock(&self) -> MutexGuard<'_, Blocks> {
        self.blocks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Blocks {
    fn add(&mut self, block: Block) -> usize {
        let number = self.vacant.pop().unwrap_or_else(|| {
            self.blocks.push(None);
            self.blocks.len() - 1
        });
        self.blocks[number] = Some(block);
        self.with_room.push(number);
        number
    }

    /// A free pair of a block, and whether it was the last.
    fn take_from(&mut self, number: usize) -> Option<((usize, usize, u64, u64), bool)> {
        let block = self.blocks[number].as_mut()?;
        let index = usize::from(block.free.pop()?);
        let stub = block.memory.range(SegmentKind::Code).start + (index * STUB_SIZE) as u64;
        let slot = block.memory.range(SegmentKind::Data).start + (index * SLOT_SIZE) as u64;
        Some(((number, index, stub, slot), block.free.is_empty()))
    }

    /// Takes a pair back, and gives the block out if it is empty and another has room.
    fn give(&mut self, number: usize, index: usize) -> Option<Block> {
        let block = self.blocks[number].as_mut()?;
        block.free.push(index as u16);
        if block.free.len() == 1 {
            self.with_room.push(number);
        }
        if block.free.len() < BLOCK || self.with_room.len() < 2 {
            return None;
        }
        self.with_room.retain(|&other| other != number);
        self.vacant.push(number);
        self.blocks[number].take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::PageManager;

    fn pool() -> (SlotPool, Arc<dyn MemoryManager>) {
        let manager: Arc<dyn MemoryManager> = Arc::new(PageManager::new());
        let architecture = Architecture::host().expect("tests run where code can");
        (SlotPool::new(Arc::clone(&manager), architecture), manager)
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
        let (pool, _manager) = pool();
        let slot = pool.allocate(one as *const () as u64).expect("memory");
        assert_eq!(call(slot.stub_address()), 1);
        slot.store(two as *const () as u64);
        assert_eq!(slot.load(), two as *const () as u64);
        assert_eq!(call(slot.stub_address()), 2);
    }

    #[test]
    fn pairs_are_distinct_and_independent() {
        let (pool, _manager) = pool();
        let slots: Vec<_> = (0..BLOCK as u64 * 3).map(|value| pool.allocate(value).expect("memory")).collect();
        assert!(slots.iter().zip(0..).all(|(slot, value)| slot.load() == value));
        let stubs: std::collections::HashSet<_> = slots.iter().map(Slot::stub_address).collect();
        assert_eq!(stubs.len(), slots.len());
        assert!(slots.iter().all(|slot| slot.slot_address() % 8 == 0));
    }

    #[test]
    fn a_dropped_pair_is_recycled() {
        let (pool, _manager) = pool();
        let _other = pool.allocate(7).expect("memory");
        let slot = pool.allocate(1).expect("memory");
        let addresses = (slot.stub_address(), slot.slot_address());
        drop(slot);
        let slot = pool.allocate(2).expect("memory");
        assert_eq!((slot.stub_address(), slot.slot_address(), slot.load()), (addresses.0, addresses.1, 2));
    }

    #[test]
    fn an_empty_block_goes_back_when_another_has_room() {
        let (pool, manager) = pool();
        let slots: Vec<_> = (0..BLOCK as u64 * 4).map(|value| pool.allocate(value).expect("memory")).collect();
        assert_eq!(manager.statistics().allocations, 4);
        drop(slots);
        assert_eq!(manager.statistics().allocations, 1);
        drop(pool);
        assert_eq!(manager.statistics().allocations, 0);
    }

    #[test]
    fn slots_outlive_their_pool() {
        let (pool, manager) = pool();
        let slot = pool.allocate(one as *const () as u64).expect("memory");
        drop(pool);
        assert_eq!(call(slot.stub_address()), 1);
        drop(slot);
        assert_eq!(manager.statistics().allocations, 0);
    }
}
