//! Blocks of trampolines in executable memory.

use std::sync::Arc;

use jit_core::Error;
use jit_core::seam::{self, CallThrough, Frames, LazyFunctions};
use jit_linker::arch::Architecture;
use jit_linker::arch::stub::{self, TRAMPOLINE_SIZE, TRAMPOLINE_TAIL};
use jit_linker::memory::{Allocation, FinalizedAllocation, MemoryManager, SegmentKind, SegmentRequest};

use crate::call_through::Target;
use crate::reentry;
use crate::registry::Indices;

/// Fields drop in order: a block's code is gone before its indices are given back.
struct Block {
    _code: FinalizedAllocation,
    _indices: Indices,
}

/// Makes a trampoline for each function of a block.
pub(crate) fn make(memory: &Arc<dyn MemoryManager>, target: Target) -> Result<CallThrough, Error> {
    let unsupported = || Error::Target("no trampolines for this machine".to_owned());
    let architecture = Architecture::host().ok_or_else(unsupported)?;
    let routine = reentry::address().ok_or_else(unsupported)?;
    let indices = Indices::reserve(target).ok_or_else(|| Error::Target("2³² lazy functions".to_owned()))?;

    let size = LazyFunctions::LEN as usize * TRAMPOLINE_SIZE + TRAMPOLINE_TAIL;
    let code = SegmentRequest { size, align: TRAMPOLINE_SIZE };
    let word = SegmentRequest { size: size_of::<u64>(), align: align_of::<u64>() };
    let mut block = Allocation::new(memory, &[code, SegmentRequest::NONE, word])?;
    let (first, word) = (block.address(SegmentKind::Code), block.address(SegmentKind::Data));
    block.working(SegmentKind::Data)[..size_of::<u64>()].copy_from_slice(&routine.to_le_bytes());
    let bytes = stub::encode_trampolines(architecture, first, indices.first(), LazyFunctions::LEN, word)
        .map_err(|error| Error::Target(error.to_string()))?;
    block.working(SegmentKind::Code)[..bytes.len()].copy_from_slice(&bytes);
    let mut code = block.finalize()?;
    let frames = Frames::of_trampolines(architecture, code.range(SegmentKind::Code), LazyFunctions::LEN);
    code.attach(Box::new(seam::register(frames)));
    let guard = Box::new(Block { _code: code, _indices: indices });
    Ok(CallThrough { first, stride: TRAMPOLINE_SIZE as u64, guard })
}
