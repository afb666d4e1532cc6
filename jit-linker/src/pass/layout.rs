//! Places blocks in their segments.

use crate::graph::LinkGraph;
use crate::link::LinkError;
use crate::memory::{Request, SegmentRequest};

/// Gives each live block its offset in its segment, in the order of the blocks.
pub(crate) fn assign(graph: &mut LinkGraph) -> Result<Request, LinkError> {
    let mut request = [SegmentRequest::NONE; 3];
    let mut ends = [0u64; 3];
    for block in graph.blocks.iter_mut().filter(|block| block.live) {
        let align = 1u64 << block.align_log2;
        let segment = &mut request[block.kind as usize];
        segment.align = segment.align.max(align as usize);
        let start = ends[block.kind as usize].next_multiple_of(align);
        let end = start + u64::from(block.size);
        block.segment_offset = u32::try_from(start).map_err(|_| LinkError::TooLarge { size: end })?;
        segment.size = usize::try_from(end).map_err(|_| LinkError::TooLarge { size: end })?;
        ends[block.kind as usize] = end;
    }
    Ok(request)
}
