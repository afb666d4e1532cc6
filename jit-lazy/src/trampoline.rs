//! Blocks of trampolines in executable memory.

use std::sync::Arc;

use jit_core::Error;
use jit_core::seam::{CallThrough, Frames, LazyFunctions};
use jit_linker::arch::stub::{self, TRAMPOLINE_SIZE, TRAMPOLINE_TAIL};
use jit_linker::memory::{FinalizedAllocation, MemoryManager, SegmentKind};

use crate::block;
use crate::call_through::Target;
use crate::registry::Indices;

/// Fields drop in order: a block's code is gone before its indices are given back.
struct Block {
    _code: FinalizedAllocation,
    _indices: Indices,
}

/// Makes a trampoline for each function of a block.
pub(crate) fn make(memory: &Arc<dyn MemoryManager>, target: Target) -> Result<CallThrough, Error> {
    let architecture = block::architecture()?;
    let indices = Indices::reserve(target).ok_or_else(|| Error::Target("2³² lazy functions".to_owned()))?;
    let code = block::make(
        memory,
        LazyFunctions::LEN as usize * TRAMPOLINE_SIZE + TRAMPOLINE_TAIL,
        0,
        |places| {
            stub::encode_trampolines(architecture, places.code, indices.first(), LazyFunctions::LEN, places.routine)
        },
        |code| Frames::of_trampolines(architecture, code, LazyFunctions::LEN),
    )?;
    let first = code.range(SegmentKind::Code).start;
    let guard = Box::new(Block { _code: code, _indices: indices });
    Ok(CallThrough { first, stride: TRAMPOLINE_SIZE as u64, guard })
}
