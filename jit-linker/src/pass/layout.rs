//! Places blocks in their segments.

use crate::graph::{Block, BlockId, Content, LAYOUT_BLOCKS, LinkGraph, SectionId, SectionRole};
use crate::link::LinkError;
use crate::memory::{Request, SegmentRequest};

/// The live blocks in the order they are placed: that of the table, with the blocks of a section
/// next to each other.
pub(crate) fn order(graph: &LinkGraph) -> Vec<BlockId> {
    let mut order = Vec::with_capacity(graph.blocks.len() + LAYOUT_BLOCKS);
    // A block without a section stays behind those of the section before it.
    let rank = |block: &Block, before: usize| block.section.map_or(before, SectionId::index);
    let (mut is_sorted, mut last) = (true, 0);
    for (id, block) in graph.blocks().filter(|(_, block)| block.live) {
        order.push(id);
        let next = rank(block, last);
        is_sorted &= last <= next;
        last = next;
    }
    if !is_sorted {
        let mut last = 0;
        let ranked = order.iter().map(|id| {
            last = rank(graph.block(*id), last);
            (last, *id)
        });
        let mut ranked: Vec<_> = ranked.collect();
        ranked.sort_by_key(|(rank, _)| *rank);
        order.clear();
        order.extend(ranked.into_iter().map(|(_, id)| id));
    }
    order
}

/// Ends the unwinding tables, if there are any, by the zeros that whoever reads them stops at.
pub(crate) fn terminate_unwind_tables(graph: &mut LinkGraph, order: &mut Vec<BlockId>) -> Result<(), LinkError> {
    let Some(section) = graph.section_with(SectionRole::EhFrame) else { return Ok(()) };
    let Some(last) = order.iter().rposition(|id| graph.block(*id).section == Some(section)) else { return Ok(()) };
    let terminator = graph.add_section_block(section, Content::Zero, 4, 1)?;
    order.insert(last + 1, terminator);
    Ok(())
}

/// Gives each block its offset in its segment, and each section its range.
pub(crate) fn assign(graph: &mut LinkGraph, order: &[BlockId]) -> Result<Request, LinkError> {
    let mut request = [SegmentRequest::NONE; 3];
    let mut ends = [0u64; 3];
    let mut current = None;
    for id in order {
        let block = &mut graph.blocks[id.index()];
        let end = &mut ends[block.kind as usize];
        let segment_align = &mut request[block.kind as usize].align;
        let mut align = 1u64 << block.align_log2;
        let opens = block.section.filter(|section| current != Some(*section));
        if let Some(section) = opens {
            current = Some(section);
            align = align.max(1 << graph.sections[section.index()].align_log2);
        }
        *segment_align = (*segment_align).max(align as usize);
        let start = *end + (u64::from(block.align_offset).wrapping_sub(*end) & (align - 1));
        *end = start + u64::from(block.size);
        let Ok(end_offset) = u32::try_from(*end) else { return Err(LinkError::TooLarge { size: *end }) };
        // It is not behind its end.
        block.segment_offset = start as u32;
        if let Some(section) = block.section.map(|section| &mut graph.sections[section.index()]) {
            if opens.is_some() {
                section.start = block.segment_offset;
            }
            section.end = end_offset;
        }
    }
    for (segment, end) in request.iter_mut().zip(ends) {
        segment.size = usize::try_from(end).map_err(|_| LinkError::TooLarge { size: end })?;
    }
    Ok(request)
}
