//! Range extension: where in the code the stubs are, so that every branch reaches one.
//!
//! A branch on AArch64 reaches 128 MiB. Code that is longer is cut into islands, each with stubs
//! of its own behind it.

use super::indirect::Stub;
use crate::arch::{Architecture, stub};
use crate::graph::{BlockId, LinkGraph};
use crate::link::LinkError;
use crate::memory::SegmentKind;

/// Code of an island, before the block that exceeds it. Twice as much is in reach.
const SPAN: u64 = 48 << 20;

/// Code that is in reach of itself.
const REACH: u64 = 96 << 20;

/// Which island each block is in.
#[derive(Debug, Default)]
pub(crate) struct Islands {
    /// By block; empty if there is one island.
    of: Vec<u32>,
    /// The position in the order of blocks that each island ends at.
    ends: Vec<usize>,
}

impl Islands {
    pub(crate) fn new(graph: &LinkGraph, order: &[BlockId]) -> Self {
        let code =
            || order.iter().map(|id| (*id, graph.block(*id))).filter(|(_, block)| block.kind == SegmentKind::Code);
        // Padding is below what an instruction's reach has to spare, unless alignments are huge.
        let room = |size: u32, align_log2: u8| u64::from(size) + (1 << align_log2);
        let total: u64 = code().map(|(_, block)| room(block.size, block.align_log2)).sum();
        if graph.architecture() != Architecture::Aarch64 || total <= REACH {
            return Self::default();
        }
        let mut this = Self { of: vec![0; graph.blocks.len()], ends: Vec::new() };
        let mut size = 0;
        for (position, id) in order.iter().enumerate() {
            let block = graph.block(*id);
            if block.kind == SegmentKind::Code {
                let needed = room(block.size, block.align_log2);
                if size + needed > SPAN && size > 0 {
                    this.ends.push(position);
                    size = 0;
                }
                size += needed;
            }
            this.of[id.index()] = this.ends.len() as u32;
        }
        this
    }

    /// The island a block is in.
    pub(crate) fn of(&self, block: BlockId) -> u32 {
        self.of.get(block.index()).copied().unwrap_or(0)
    }

    /// The last island.
    pub(crate) fn last(&self) -> u32 {
        self.ends.len() as u32
    }

    /// Adds a block of stubs to each island that has any, and tells the stubs where they are.
    pub(crate) fn add_stubs(
        &self,
        graph: &mut LinkGraph,
        order: &mut Vec<BlockId>,
        stubs: &mut [Stub],
    ) -> Result<(), LinkError> {
        let mut sizes = vec![0u32; self.ends.len() + 1];
        for stub in stubs.iter_mut() {
            let size = &mut sizes[stub.block.index()];
            stub.offset = *size;
            *size += stub::STUB_SIZE as u32;
        }
        let align = stub::STUB_SIZE as u64;
        let blocks: Vec<_> = sizes
            .iter()
            .map(|size| graph.add_zero_block(SegmentKind::Code, u64::from(*size), align))
            .collect::<Result<_, _>>()?;
        for stub in stubs {
            stub.block = blocks[stub.block.index()];
        }
        if let [block] = blocks[..] {
            order.push(block);
            return Ok(());
        }
        let mut placed = Vec::with_capacity(order.len() + blocks.len());
        let mut start = 0;
        for (end, block) in self.ends.iter().copied().chain([order.len()]).zip(blocks) {
            placed.extend_from_slice(&order[start..end]);
            placed.push(block);
            start = end;
        }
        *order = placed;
        Ok(())
    }
}
