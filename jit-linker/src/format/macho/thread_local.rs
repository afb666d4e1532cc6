//! Thread-local variables.
//!
//! The symbol of one is its descriptor: three words, of which the first is a function that takes
//! the descriptor's address and returns the variable's. The other two are the function's; here
//! they are what `__tls_get_addr` takes on ELF, the number of a module and an offset in its
//! storage, so that both formats need one thing of their host, and know each other's variables.

use object::LittleEndian;
use object::macho::{Nlist64, S_THREAD_LOCAL_VARIABLES};
use object::read::macho::Section as _;

use super::Reader;
use crate::arch::{Architecture, aarch64, stub, x86_64};
use crate::format::Parsed;
use crate::graph::{Definition, Edge, EdgeKind, SectionRole, SymbolId};
use crate::memory::SegmentKind;

/// What compilers store in the first word; our function takes its place.
pub(super) const BOOTSTRAP: &[u8] = b"__tlv_bootstrap";

impl Reader<'_> {
    /// Makes the newest edges, from `first`, those of a descriptor.
    pub(super) fn complete_descriptor(&mut self, edges: &mut Vec<Edge>, first: usize) -> Parsed<()> {
        let (offset_kind, number_kind) = match self.graph.architecture() {
            Architecture::X86_64 => (
                EdgeKind::X86_64(x86_64::EdgeKind::TlsModuleOffset64),
                EdgeKind::X86_64(x86_64::EdgeKind::TlsModuleNumber64),
            ),
            Architecture::Aarch64 => (
                EdgeKind::Aarch64(aarch64::EdgeKind::TlsModuleOffset64),
                EdgeKind::Aarch64(aarch64::EdgeKind::TlsModuleNumber64),
            ),
        };
        for index in first..edges.len() {
            let edge = edges[index];
            if self.thunk == Some(edge.target) {
                if u64::from(edge.offset) + 16 > u64::from(self.graph.block(edge.block).size) {
                    return Err(self.malformed("the descriptor of a thread-local variable is cut off"));
                }
                edges.push(Edge { offset: edge.offset + 8, kind: number_kind, addend: 0, ..edge });
            } else if self.is_in_template(edge.target) {
                edges[index].kind = offset_kind;
            }
        }
        Ok(())
    }

    /// Whether a symbol is a descriptor, or would be one if it were at its start.
    pub(super) fn is_in_descriptors(&self, symbol: &Nlist64<LittleEndian>) -> bool {
        let section = self.offset_in_section(symbol).map(|(section, _)| self.sections[section]);
        section.is_some_and(|section| section.section_type(LittleEndian) == S_THREAD_LOCAL_VARIABLES)
    }

    fn is_in_template(&self, symbol: SymbolId) -> bool {
        let Definition::Block { block, .. } = self.graph.symbol(symbol).definition else { return false };
        let section = self.graph.block(block).section;
        section.is_some_and(|section| self.graph.section(section).role == SectionRole::ThreadLocal)
    }

    /// The function that finds variables.
    pub(super) fn thunk(&mut self) -> Parsed<SymbolId> {
        if let Some(thunk) = self.thunk {
            return Ok(thunk);
        }
        let thunk = stub::tlv_thunk(self.graph.architecture());
        let finder = self.graph.external(self.names.intern("__tls_get_addr"), 0);
        let block = self.graph.add_block(SegmentKind::Code, &thunk.code, stub::STUB_SIZE as u64);
        let block = block.map_err(|source| self.graph_error(source))?;
        let edge = Edge { block, offset: thunk.call, kind: thunk.kind, target: finder, addend: thunk.addend };
        self.graph.edges.push(edge);
        let symbol = self.graph.define(None, block, 0, 0);
        self.thunk = Some(symbol);
        Ok(symbol)
    }
}
