//! `.eh_frame`: a block a record, so that those of functions that are left out are left out too,
//! and the others follow each other without gaps.

use std::borrow::Cow;

use object::LittleEndian;
use object::elf::Rela64;
use object::read::SectionIndex;
use object::read::elf::SectionHeader;
use rustc_hash::FxHashMap;

use super::Reader;
use crate::arch::{Architecture, aarch64, x86_64};
use crate::format::Parsed;
use crate::format::eh_frame::{self, CIE_POINTER, RecordKind};
use crate::graph::{Content, Definition, Edge, EdgeKind, SectionId, SymbolId};

impl<'data> Reader<'data> {
    pub(super) fn add_unwind_records(
        &mut self,
        index: SectionIndex,
        section: SectionId,
        relocations: &'data [Rela64<LittleEndian>],
    ) -> Parsed<()> {
        let header = self.sections.section(index).map_err(|error| self.broken(error))?;
        let bytes = header.data(LittleEndian, self.data).map_err(|error| self.broken(error))?;
        let base = self.text(bytes).start;
        let count = eh_frame::count(bytes);
        let relocations = sorted(relocations);
        let mut relocations = relocations.iter().peekable();
        let mut cies: FxHashMap<u32, SymbolId> = FxHashMap::default();
        self.graph.reserve_blocks(count);
        self.graph.attached.reserve_exact(count);
        for record in eh_frame::each(bytes) {
            let record = record.map_err(|what| self.malformed(what))?;
            let content = Content::Object { start: base + record.start };
            let block = self.graph.add_section_block(section, content, record.size.into(), 1);
            let block = block.map_err(|source| self.graph_error(source))?;
            match record.kind {
                RecordKind::Cie => {
                    cies.insert(record.start, self.graph.define(None, block, 0, 0));
                }
                RecordKind::Fde { cie } => {
                    let Some(target) = cies.get(&cie).copied() else {
                        return Err(self.malformed(format!("an FDE of .eh_frame has no CIE at {cie:#x}")));
                    };
                    let kind = match self.graph.architecture() {
                        Architecture::X86_64 => EdgeKind::X86_64(x86_64::EdgeKind::NegDelta32),
                        Architecture::Aarch64 => EdgeKind::Aarch64(aarch64::EdgeKind::NegDelta32),
                    };
                    self.graph.edges.push(Edge { block, offset: CIE_POINTER, kind, target, addend: 0 });
                }
            }
            let end = u64::from(record.start) + u64::from(record.size);
            while let Some(relocation) = relocations.next_if(|next| next.r_offset.get(LittleEndian) < end) {
                let Some(edge) = self.edge_at(index, block, relocation, record.start.into())? else { continue };
                if edge.offset < CIE_POINTER + 4 {
                    return Err(
                        self.malformed(format!("a relocation changes the record at {:#x} of .eh_frame", record.start))
                    );
                }
                let host = match self.graph.symbol(edge.target).definition {
                    Definition::Block { block, .. } => Some(block),
                    _ => None,
                };
                if let (RecordKind::Fde { .. }, eh_frame::FUNCTION, Some(host)) = (record.kind, edge.offset, host) {
                    self.graph.attached.push((host, block));
                }
                self.graph.edges.push(edge);
            }
        }
        match relocations.next() {
            Some(_) => Err(self.malformed("a relocation of .eh_frame is beyond its last record")),
            None => Ok(()),
        }
    }
}

/// In ascending order of offset, as assemblers write them.
fn sorted(relocations: &[Rela64<LittleEndian>]) -> Cow<'_, [Rela64<LittleEndian>]> {
    let offset = |relocation: &Rela64<LittleEndian>| relocation.r_offset.get(LittleEndian);
    if relocations.is_sorted_by_key(offset) {
        return Cow::Borrowed(relocations);
    }
    let mut sorted = relocations.to_vec();
    sorted.sort_by_key(offset);
    Cow::Owned(sorted)
}
