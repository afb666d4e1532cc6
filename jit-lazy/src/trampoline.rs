//! Blocks of trampolines in executable memory.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jit_core::Error;
use jit_core::platform::unwind::{self, Frames};
use jit_linker::arch::Architecture;
use jit_linker::arch::stub::{self, TRAMPOLINE_SIZE};
use jit_linker::memory::{Allocation, FinalizedAllocation, MemoryManager, SegmentKind, SegmentRequest};

use crate::call_through::Target;
use crate::reentry;
use crate::registry::{self, Indices, RANGE};

/// Hands out [`Trampoline`]s.
#[derive(Debug, Default)]
pub(crate) struct TrampolinePool {
    shared: Arc<Mutex<Blocks>>,
}

#[derive(Debug, Default)]
struct Blocks {
    /// Fields drop in order: a block's code is gone before its indices are given back.
    blocks: Vec<(FinalizedAllocation, Indices)>,
    free: Vec<Free>,
}

/// A trampoline that stands for nothing.
#[derive(Clone, Copy, Debug)]
struct Free {
    address: u64,
    index: u32,
}

/// A trampoline that stands for a function. Dropped, it will stand for another one: whoever drops
/// it vouches that nobody calls it any more.
pub(crate) struct Trampoline {
    place: Free,
    shared: Arc<Mutex<Blocks>>,
}

impl TrampolinePool {
    /// A trampoline for `target`, in a block from `memory` if none is free.
    pub(crate) fn allocate(&self, memory: &Arc<dyn MemoryManager>, target: Target) -> Result<Trampoline, Error> {
        let place = {
            let mut blocks = lock(&self.shared);
            match blocks.free.pop() {
                Some(place) => place,
                None => blocks.grow(memory)?,
            }
        };
        registry::set(place.index, Some(Arc::new(target)));
        Ok(Trampoline { place, shared: Arc::clone(&self.shared) })
    }
}

impl Trampoline {
    pub(crate) fn address(&self) -> u64 {
        self.place.address
    }
}

impl Drop for Trampoline {
    fn drop(&mut self) {
        registry::set(self.place.index, None);
        lock(&self.shared).free.push(self.place);
    }
}

impl Blocks {
    /// Makes a block, and gives its first trampoline.
    fn grow(&mut self, memory: &Arc<dyn MemoryManager>) -> Result<Free, Error> {
        let unsupported = || Error::Target("no trampolines for this machine".to_owned());
        let architecture = Architecture::host().ok_or_else(unsupported)?;
        let routine = reentry::address().ok_or_else(unsupported)?;
        let indices = Indices::reserve().ok_or_else(|| Error::Target("2³² lazy functions".to_owned()))?;

        let code = SegmentRequest { size: RANGE as usize * TRAMPOLINE_SIZE, align: 16 };
        let word = SegmentRequest { size: size_of::<u64>(), align: align_of::<u64>() };
        let mut block = Allocation::new(memory, &[code, SegmentRequest::NONE, word])?;
        let (start, word) = (block.address(SegmentKind::Code), block.address(SegmentKind::Data));
        block.working(SegmentKind::Data).copy_from_slice(&routine.to_le_bytes());
        let mut places = Vec::with_capacity(RANGE as usize);
        for (position, bytes) in (0..RANGE).zip(block.working(SegmentKind::Code).chunks_exact_mut(TRAMPOLINE_SIZE)) {
            let place =
                Free { address: start + u64::from(position) * TRAMPOLINE_SIZE as u64, index: indices.at(position) };
            let code = stub::encode_trampoline(architecture, place.address, place.index, word)
                .map_err(|error| Error::Target(error.to_string()))?;
            bytes.copy_from_slice(&code);
            places.push(place);
        }
        let mut block = block.finalize()?;
        let frames = Frames::of_trampolines(architecture, block.range(SegmentKind::Code));
        block.attach(Box::new(unwind::register(frames)));
        self.blocks.push((block, indices));
        self.free.extend(places[1..].iter().rev());
        Ok(places[0])
    }
}

fn lock(blocks: &Mutex<Blocks>) -> MutexGuard<'_, Blocks> {
    blocks.lock().unwrap_or_else(PoisonError::into_inner)
}
