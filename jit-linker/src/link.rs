//! The pipeline, as a state machine that its host drives.
//!
//! ```text
//! LinkGraph -> prepare -> Prepared       GOT and stubs built, blocks laid out
//!           -> allocate -> Allocated     addresses known: publish them, look up the externals
//!           -> fix_up -> Fixed           content final in working memory
//!           -> finalize                  executable
//! ```
//!
//! Nothing here waits: between two steps the host may take as long as it needs, on any thread.

use std::sync::Arc;

use crate::arch::{self, Architecture, FixupError, Operands, aarch64, stub, x86_64};
use crate::graph::{BlockId, Definition, Edge, EdgeKind, GraphError, LinkGraph, SymbolId};
use crate::memory::{Allocation, FinalizedAllocation, MemoryError, MemoryManager, Request, SegmentKind};
use crate::pass::indirect::{GOT_ENTRY, Indirection};
use crate::pass::{depend, layout};

/// Builds GOT and stubs and lays the graph out.
///
/// # Errors
///
/// When a relocation does not fit its instruction, or the graph is too large.
pub fn prepare(mut graph: LinkGraph) -> Result<Prepared, LinkError> {
    let indirection = Indirection::build(&mut graph)?;
    let request = layout::assign(&mut graph)?;
    Ok(Prepared { graph, indirection, request })
}

/// A graph that is laid out and has no memory yet.
#[derive(Debug)]
pub struct Prepared {
    graph: LinkGraph,
    indirection: Indirection,
    request: Request,
}

impl Prepared {
    /// The memory it needs.
    #[must_use]
    pub fn request(&self) -> &Request {
        &self.request
    }

    /// Reserves memory, which settles every address.
    ///
    /// # Errors
    ///
    /// As the memory manager's.
    pub fn allocate(self, memory: &Arc<dyn MemoryManager>) -> Result<Allocated, LinkError> {
        let Self { mut graph, indirection, request } = self;
        let allocation = Allocation::new(memory, &request)?;
        let bases = SegmentKind::ALL.map(|kind| allocation.address(kind));
        for symbol in &mut graph.symbols {
            if let Definition::Block { block, offset } = symbol.definition {
                let block = &graph.blocks[block.index()];
                symbol.address = bases[block.kind as usize] + u64::from(block.segment_offset) + u64::from(offset);
            }
        }
        Ok(Allocated { graph, indirection, allocation, bases })
    }
}

/// A graph whose addresses are settled, waiting for those of its externals.
#[derive(Debug)]
pub struct Allocated {
    graph: LinkGraph,
    indirection: Indirection,
    allocation: Allocation,
    bases: [u64; 3],
}

impl Allocated {
    /// The graph.
    #[must_use]
    pub fn graph(&self) -> &LinkGraph {
        &self.graph
    }

    /// The address of a symbol that the graph defines, or that was resolved.
    #[must_use]
    pub fn address(&self, symbol: SymbolId) -> u64 {
        self.graph.symbol(symbol).address
    }

    /// Whether a symbol has to be looked up.
    #[must_use]
    pub fn is_external(&self, symbol: SymbolId) -> bool {
        self.graph.symbol(symbol).definition == Definition::External
    }

    /// Every pair of a named symbol defined here and a named symbol it needs.
    #[must_use]
    pub fn dependences(&self) -> Vec<(SymbolId, SymbolId)> {
        depend::dependences(&self.graph)
    }

    /// Says where an external symbol is. `slot` is the word that holds where its body is now, if
    /// the symbol can be redirected: calls go through it.
    pub fn resolve(&mut self, symbol: SymbolId, address: u64, slot: Option<u64>) {
        let symbol = &mut self.graph.symbols[symbol.index()];
        symbol.address = address;
        symbol.slot = slot.unwrap_or(0);
    }

    /// Leaves out whatever needs one of the `failed` symbols, and returns the symbols that are
    /// lost with it. The rest can still be linked.
    pub fn exclude(&mut self, failed: &[SymbolId]) -> Vec<SymbolId> {
        depend::exclude(&mut self.graph, failed)
    }

    /// Copies the content into working memory and applies the fixups.
    ///
    /// # Errors
    ///
    /// When a value does not fit its field: the error names the symbol and the place.
    pub fn fix_up(mut self) -> Result<Fixed, LinkError> {
        self.copy_content();
        self.write_got()?;
        self.write_stubs()?;
        for index in 0..self.graph.edges.len() {
            let edge = self.graph.edges[index];
            if self.graph.blocks[edge.block.index()].live {
                self.apply(&edge).map_err(|source| LinkError::fixup(&self.graph, &edge, source))?;
            }
        }
        Ok(Fixed { allocation: self.allocation })
    }

    fn copy_content(&mut self) {
        for block in self.graph.blocks.iter().filter(|block| block.live) {
            let start = block.segment_offset as usize;
            let target = &mut self.allocation.working(block.kind)[start..start + block.size as usize];
            match self.graph.bytes(block) {
                Some(bytes) => target.copy_from_slice(bytes),
                // Data memory comes zeroed; the other kinds may have held something else.
                None if block.kind == SegmentKind::Data => {}
                None => target.fill(0),
            }
        }
    }

    /// Where a block is seen by the executor.
    fn block_address(&self, block: BlockId) -> u64 {
        let block = &self.graph.blocks[block.index()];
        self.bases[block.kind as usize] + u64::from(block.segment_offset)
    }

    /// A block's bytes in working memory.
    fn block_bytes(&mut self, block: BlockId) -> &mut [u8] {
        let block = &self.graph.blocks[block.index()];
        let start = block.segment_offset as usize;
        &mut self.allocation.working(block.kind)[start..start + block.size as usize]
    }

    fn write_got(&mut self) -> Result<(), LinkError> {
        let Some(got) = self.indirection.got_block else { return Ok(()) };
        for index in 0..self.indirection.entries.len() {
            let (target, addend) = self.indirection.entries[index];
            let value = self.graph.symbol(target).address.wrapping_add_signed(addend);
            let start = index * GOT_ENTRY as usize;
            self.block_bytes(got)[start..start + GOT_ENTRY as usize].copy_from_slice(&value.to_le_bytes());
        }
        Ok(())
    }

    fn write_stubs(&mut self) -> Result<(), LinkError> {
        let (Some(stubs), Some(got)) = (self.indirection.stub_block, self.indirection.got_block) else {
            return Ok(());
        };
        let (stub_base, got_base) = (self.block_address(stubs), self.block_address(got));
        for (index, entry) in self.indirection.stubs.clone().into_iter().enumerate() {
            let start = index * stub::STUB_SIZE;
            let place = stub_base + start as u64;
            let slot = got_base + u64::from(entry * GOT_ENTRY);
            let code = stub::encode(self.graph.architecture(), place, slot)
                .map_err(|source| LinkError::Stub { graph: self.graph.name().to_owned(), source })?;
            self.block_bytes(stubs)[start..start + stub::STUB_SIZE].copy_from_slice(&code);
        }
        Ok(())
    }

    fn apply(&mut self, edge: &Edge) -> Result<(), FixupError> {
        let target = self.graph.symbol(edge.target);
        let operands = Operands {
            place: self.block_address(edge.block) + u64::from(edge.offset),
            target: target.address,
            addend: edge.addend,
        };
        let slot = target.slot;
        match edge.kind {
            EdgeKind::X86_64(kind) => self.apply_x86_64(kind, edge, operands, slot),
            EdgeKind::Aarch64(kind) => self.apply_aarch64(kind, edge, operands, slot),
        }
    }

    fn apply_x86_64(
        &mut self,
        kind: x86_64::EdgeKind,
        edge: &Edge,
        operands: Operands,
        slot: u64,
    ) -> Result<(), FixupError> {
        use x86_64::EdgeKind;
        let operands = match kind {
            EdgeKind::GotLoad32 if slot != 0 && x86_64::reaches(Operands { target: slot, ..operands }) => {
                Operands { target: slot, ..operands }
            }
            EdgeKind::GotLoad32 => {
                let near = slot == 0 && x86_64::reaches(operands);
                if near && x86_64::relax_got_load(self.block_bytes(edge.block), edge.offset).is_ok() {
                    operands
                } else {
                    Operands { target: self.got_entry(edge.target, 0), ..operands }
                }
            }
            EdgeKind::Branch32 if !x86_64::reaches(operands) => {
                Operands { target: self.stub(edge.target, 0), ..operands }
            }
            _ => operands,
        };
        x86_64::apply(kind, self.block_bytes(edge.block), edge.offset, operands)
    }

    fn apply_aarch64(
        &mut self,
        kind: aarch64::EdgeKind,
        edge: &Edge,
        operands: Operands,
        slot: u64,
    ) -> Result<(), FixupError> {
        use aarch64::EdgeKind;
        let got = matches!(kind, EdgeKind::GotPage21 | EdgeKind::GotPageOffset12);
        if got && slot == 0 && self.near_whole_code(edge.target, edge.addend) {
            // Both instructions of the pair come to the same answer, so they stay a pair.
            let kind = match kind {
                EdgeKind::GotPage21 => EdgeKind::Page21,
                _ => {
                    aarch64::relax_got_load(self.block_bytes(edge.block), edge.offset)?;
                    EdgeKind::PageOffset12
                }
            };
            return aarch64::apply(kind, self.block_bytes(edge.block), edge.offset, operands);
        }
        let operands = match kind {
            // The slot takes the entry's place; entries and slots are for the bare symbol.
            _ if got && slot != 0 && edge.addend == 0 && self.page_reachable(slot) => {
                Operands { target: slot, addend: 0, ..operands }
            }
            _ if got => Operands { target: self.got_entry(edge.target, edge.addend), addend: 0, ..operands },
            EdgeKind::Branch26 if !aarch64::branch_reaches(operands) => {
                Operands { target: self.stub(edge.target, edge.addend), addend: 0, ..operands }
            }
            _ => operands,
        };
        aarch64::apply(kind, self.block_bytes(edge.block), edge.offset, operands)
    }

    fn near_whole_code(&self, target: SymbolId, addend: i64) -> bool {
        self.page_reachable(self.graph.symbol(target).address.wrapping_add_signed(addend))
    }

    /// Whether an `adrp` anywhere in the graph's code reaches `address`. A segment is below
    /// 4 GiB, so its base decides if the other end is checked too.
    fn page_reachable(&self, address: u64) -> bool {
        let base = self.bases[SegmentKind::Code as usize];
        let end = base + self.allocation.size(SegmentKind::Code) as u64;
        [base, end].into_iter().all(|place| aarch64::page_reaches(Operands { place, target: address, addend: 0 }))
    }

    fn got_entry(&self, target: SymbolId, addend: i64) -> u64 {
        let offset = self.indirection.entry_offset(target, addend);
        let block = self.indirection.got_block;
        let (Some(offset), Some(block)) = (offset, block) else { return 0 };
        self.block_address(block) + u64::from(offset)
    }

    fn stub(&self, target: SymbolId, addend: i64) -> u64 {
        let offset = self.indirection.stub_offset(target, addend);
        let block = self.indirection.stub_block;
        let (Some(offset), Some(block)) = (offset, block) else { return 0 };
        self.block_address(block) + u64::from(offset)
    }
}

/// A graph whose content is final in working memory.
#[derive(Debug)]
pub struct Fixed {
    allocation: Allocation,
}

impl Fixed {
    /// Publishes the memory: code can run from here on.
    ///
    /// # Errors
    ///
    /// As the memory manager's.
    pub fn finalize(self) -> Result<FinalizedAllocation, LinkError> {
        Ok(self.allocation.finalize()?)
    }
}

/// Why a graph can't be linked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LinkError {
    /// A fixup can't be applied.
    #[error("in {graph}: relocation {kind} of '{symbol}' at offset {offset:#x}: {source}")]
    Fixup {
        /// The graph's name.
        graph: String,
        /// The symbol the place refers to.
        symbol: String,
        /// The edge kind.
        kind: String,
        /// The place's offset in its block.
        offset: u32,
        /// What is wrong.
        source: FixupError,
    },
    /// A stub can't reach its GOT entry.
    #[error("in {graph}: {source}")]
    Stub {
        /// The graph's name.
        graph: String,
        /// What is wrong.
        source: stub::StubError,
    },
    /// A segment exceeds 4 GiB.
    #[error("a segment of {size} bytes is too large")]
    TooLarge {
        /// Its size in bytes.
        size: u64,
    },
    /// The graph can't be built.
    #[error(transparent)]
    Graph(#[from] GraphError),
    /// There is no memory for it.
    #[error(transparent)]
    Memory(#[from] MemoryError),
}

impl LinkError {
    pub(crate) fn fixup(graph: &LinkGraph, edge: &Edge, source: FixupError) -> Self {
        let target = graph.symbol(edge.target);
        let symbol = target.name.as_ref().map_or_else(|| format!("#{}", edge.target.index()), |name| name.to_string());
        let kind = match edge.kind {
            EdgeKind::X86_64(kind) => format!("{} {kind:?}", Architecture::X86_64),
            EdgeKind::Aarch64(kind) => format!("{} {kind:?}", Architecture::Aarch64),
        };
        Self::Fixup { graph: graph.name().to_owned(), symbol, kind, offset: edge.offset, source }
    }
}

const _: () = {
    const fn assert_send<T: Send>() {}
    assert_send::<Allocated>();
    _ = arch::apply;
};
