//! GOT entries and stubs: which references need one, and where it is.
//!
//! An entry belongs to a symbol and addend, never to a name. Edges keep the symbol they refer to,
//! so that fixup can still choose between the entry, the symbol's slot and the symbol itself.

use rustc_hash::FxHashMap;

use crate::arch::{self, aarch64, stub, x86_64};
use crate::graph::{BlockId, Definition, EdgeKind, LinkGraph, SymbolId};
use crate::link::LinkError;
use crate::memory::SegmentKind;

/// Bytes of a GOT entry.
pub(crate) const GOT_ENTRY: u32 = 8;

/// The GOT and the stubs of one graph.
#[derive(Debug, Default)]
pub(crate) struct Indirection {
    /// What each GOT entry holds the address of.
    pub(crate) entries: Vec<(SymbolId, i64)>,
    /// The GOT entry that each stub jumps through.
    pub(crate) stubs: Vec<u32>,
    pub(crate) got_block: Option<BlockId>,
    pub(crate) stub_block: Option<BlockId>,
    entry_of: FxHashMap<(SymbolId, i64), u32>,
    stub_of: FxHashMap<(SymbolId, i64), u32>,
}

impl Indirection {
    /// Finds what needs an entry or a stub, and adds blocks with room for them. Loads of the
    /// address of something in this very graph are relaxed on the spot.
    pub(crate) fn build(graph: &mut LinkGraph) -> Result<Self, LinkError> {
        let mut this = Self::default();
        for index in 0..graph.edges.len() {
            let edge = graph.edges[index];
            let inside = matches!(graph.symbol(edge.target).definition, Definition::Block { .. });
            let kind = match edge.kind {
                EdgeKind::X86_64(kind) => EdgeKind::X86_64(this.visit_x86_64(graph, index, kind, inside)),
                EdgeKind::Aarch64(kind) => EdgeKind::Aarch64(
                    this.visit_aarch64(graph, index, kind, inside)
                        .map_err(|source| LinkError::fixup(graph, &edge, source))?,
                ),
            };
            graph.edges[index].kind = kind;
        }
        if !this.entries.is_empty() {
            let size = this.entries.len() as u64 * u64::from(GOT_ENTRY);
            this.got_block = Some(graph.add_zero_block(SegmentKind::Data, size, u64::from(GOT_ENTRY))?);
        }
        if !this.stubs.is_empty() {
            let size = (this.stubs.len() * stub::STUB_SIZE) as u64;
            this.stub_block = Some(graph.add_zero_block(SegmentKind::Code, size, stub::STUB_SIZE as u64)?);
        }
        Ok(this)
    }

    fn visit_x86_64(
        &mut self,
        graph: &mut LinkGraph,
        index: usize,
        kind: x86_64::EdgeKind,
        inside: bool,
    ) -> x86_64::EdgeKind {
        use x86_64::EdgeKind;
        let edge = graph.edges[index];
        let bytes = graph.bytes_mut(edge.block).unwrap_or_default();
        match kind {
            EdgeKind::GotLoad32 if inside && x86_64::relax_got_load(bytes, edge.offset).is_ok() => EdgeKind::Delta32,
            // The addend is the distance to the next instruction: the entry is the bare symbol's.
            EdgeKind::GotLoad32 => {
                self.entry(edge.target, 0);
                kind
            }
            EdgeKind::Branch32 if inside || !x86_64::is_branch(bytes, edge.offset) => EdgeKind::Delta32,
            EdgeKind::Branch32 => {
                self.stub(edge.target, 0);
                kind
            }
            _ => kind,
        }
    }

    fn visit_aarch64(
        &mut self,
        graph: &mut LinkGraph,
        index: usize,
        kind: aarch64::EdgeKind,
        inside: bool,
    ) -> Result<aarch64::EdgeKind, arch::FixupError> {
        use aarch64::EdgeKind;
        let edge = graph.edges[index];
        let bytes = graph.bytes_mut(edge.block).unwrap_or_default();
        Ok(match kind {
            EdgeKind::GotPage21 if inside => EdgeKind::Page21,
            EdgeKind::GotPageOffset12 if inside => {
                aarch64::relax_got_load(bytes, edge.offset)?;
                EdgeKind::PageOffset12
            }
            EdgeKind::GotPage21 | EdgeKind::GotPageOffset12 => {
                self.entry(edge.target, edge.addend);
                kind
            }
            EdgeKind::Branch26 if !inside => {
                self.stub(edge.target, edge.addend);
                kind
            }
            _ => kind,
        })
    }

    fn entry(&mut self, target: SymbolId, addend: i64) -> u32 {
        let next = self.entries.len() as u32;
        *self.entry_of.entry((target, addend)).or_insert_with(|| {
            self.entries.push((target, addend));
            next
        })
    }

    fn stub(&mut self, target: SymbolId, addend: i64) {
        let entry = self.entry(target, addend);
        self.stub_of.entry((target, addend)).or_insert_with(|| {
            self.stubs.push(entry);
            self.stubs.len() as u32 - 1
        });
    }

    /// The offset in the GOT block of the entry for a symbol and addend.
    pub(crate) fn entry_offset(&self, target: SymbolId, addend: i64) -> Option<u32> {
        self.entry_of.get(&(target, addend)).map(|index| index * GOT_ENTRY)
    }

    /// The offset in the stub block of the stub for a symbol and addend.
    pub(crate) fn stub_offset(&self, target: SymbolId, addend: i64) -> Option<u32> {
        self.stub_of.get(&(target, addend)).map(|index| index * stub::STUB_SIZE as u32)
    }
}
