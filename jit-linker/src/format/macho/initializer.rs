//! Initializers that are stored as distances from the start of a linked image (`__init_offsets`).
//! There is no image here: the pointers that they stand for take their place.

use super::Reader;
use crate::arch::{Architecture, aarch64, x86_64};
use crate::format::Parsed;
use crate::graph::{Edge, EdgeKind, Section, SectionRole};
use crate::memory::SegmentKind;

impl Reader<'_> {
    /// Adds the pointers that a section's edges, of 4 bytes each, are about.
    pub(super) fn replace_initializer_offsets(
        &mut self,
        section: usize,
        mut offsets: Vec<Edge>,
        edges: &mut Vec<Edge>,
    ) -> Parsed<()> {
        let kind = match self.graph.architecture() {
            Architecture::X86_64 => EdgeKind::X86_64(x86_64::EdgeKind::Pointer64),
            Architecture::Aarch64 => EdgeKind::Aarch64(aarch64::EdgeKind::Pointer64),
        };
        let Some(atoms) = &self.atoms[section] else { return Ok(()) };
        // What was there is of no use any more, and nothing can refer to it.
        let own = atoms.find(0).0;
        self.graph.blocks[own.index()].live = false;
        // A distance may be a difference, whose first edge is about the function.
        offsets.sort_by_key(|edge| edge.offset);
        offsets.dedup_by_key(|edge| edge.offset);
        let label = self.text(self.sections[section].sectname.as_slice());
        let role = SectionRole::Initializers { priority: SectionRole::DEFAULT_PRIORITY, reversed: false };
        let kind_of_segment = SegmentKind::ReadOnly;
        let pointers =
            self.graph.add_section(Section { role, kind: kind_of_segment, align_log2: 3, label, start: 0, end: 0 });
        let bytes = vec![0; 8 * offsets.len()];
        let block = self.graph.add_section_bytes(pointers, &bytes, 8).map_err(|source| self.graph_error(source))?;
        for (index, offset) in offsets.iter().enumerate() {
            // A function whose label is no symbol is told by its distance from the symbol before it.
            edges.push(Edge { block, offset: 8 * index as u32, kind, ..*offset });
        }
        Ok(())
    }
}
