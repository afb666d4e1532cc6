//! Blocks of small pieces of code that may go on to the re-entry routine: trampolines, and entries that count.

use std::ops::Range;
use std::sync::Arc;

use jit_core::Error;
use jit_core::seam::{self, Frames};
use jit_linker::arch::Architecture;
use jit_linker::arch::stub::StubError;
use jit_linker::memory::{Allocation, FinalizedAllocation, MemoryManager, SegmentKind, SegmentRequest};

use crate::reentry;

/// How its code is aligned.
const ALIGN: usize = 16;

/// Where the parts of a block are to be.
pub(crate) struct Places {
    pub(crate) code: u64,
    /// What the pieces read and write.
    pub(crate) words: u64,
    /// The word that holds the re-entry routine's address.
    pub(crate) routine: u64,
}

/// The architecture of this process, if the re-entry routine is written for it.
pub(crate) fn architecture() -> Result<Architecture, Error> {
    Architecture::host().filter(|_| reentry::address().is_some()).ok_or_else(unsupported)
}

fn unsupported() -> Error {
    Error::Target("no trampolines for this machine".to_owned())
}

/// Makes a block of `code` bytes that `encode` gives, with `words` bytes of zeros for its pieces. Unwinders know it.
pub(crate) fn make(
    memory: &Arc<dyn MemoryManager>,
    code: usize,
    words: usize,
    encode: impl FnOnce(&Places) -> Result<Vec<u8>, StubError>,
    frames: impl FnOnce(Range<u64>) -> Frames,
) -> Result<FinalizedAllocation, Error> {
    let routine = reentry::address().ok_or_else(unsupported)?.to_le_bytes();
    let code = SegmentRequest { size: code, align: ALIGN };
    let data = SegmentRequest { size: words + routine.len(), align: align_of::<u64>() };
    let mut block = Allocation::new(memory, &[code, SegmentRequest::NONE, data])?;
    let start = block.address(SegmentKind::Data);
    let places = Places { code: block.address(SegmentKind::Code), words: start, routine: start + words as u64 };
    block.working(SegmentKind::Data)[words..][..routine.len()].copy_from_slice(&routine);
    let bytes = encode(&places).map_err(|error| Error::Target(error.to_string()))?;
    block.working(SegmentKind::Code)[..bytes.len()].copy_from_slice(&bytes);
    let mut block = block.finalize()?;
    let frames = frames(block.range(SegmentKind::Code));
    block.attach(Box::new(seam::register(frames)));
    Ok(block)
}
