//! Which references to a function take its address, rather than call it.

use super::{Edge, EdgeKind, LinkGraph, SectionRole};
use crate::arch::{aarch64, x86_64};
use crate::pass::indirect;

impl LinkGraph {
    /// Whether an edge gives the program the address of its target: it may be compared, kept and passed on, so
    /// it has to be the one that everybody knows the target by. False for calls and jumps, for unwinding tables,
    /// and for what means a place inside the target, or its size.
    #[must_use]
    pub fn takes_address(&self, edge: &Edge) -> bool {
        let section = self.block(edge.block).section.map(|id| self.section(id).role);
        if section == Some(SectionRole::EhFrame) {
            return false;
        }
        match edge.kind {
            EdgeKind::X86_64(kind) => self.takes_address_on_x86_64(edge, kind),
            EdgeKind::Aarch64(kind) => takes_address_on_aarch64(edge, kind),
        }
    }

    /// Whether an edge belongs to a call or jump: through whatever it goes, its target runs next.
    #[must_use]
    pub fn is_call(&self, edge: &Edge) -> bool {
        match edge.kind {
            EdgeKind::X86_64(x86_64::EdgeKind::GotLoad32 | x86_64::EdgeKind::GotOperand32) => {
                indirect::got_use(self, edge).is_some_and(|usage| usage != x86_64::GotUse::Load)
            }
            EdgeKind::X86_64(x86_64::EdgeKind::Branch32 | x86_64::EdgeKind::Plt32 | x86_64::EdgeKind::Delta32) => {
                indirect::is_x86_64_branch(self, edge)
            }
            EdgeKind::X86_64(x86_64::EdgeKind::PltOffset64) => true,
            EdgeKind::X86_64(_) => false,
            EdgeKind::Aarch64(kind) => matches!(
                kind,
                aarch64::EdgeKind::Branch26 | aarch64::EdgeKind::CondBranch19 | aarch64::EdgeKind::TestBranch14
            ),
        }
    }

    fn takes_address_on_x86_64(&self, edge: &Edge, kind: x86_64::EdgeKind) -> bool {
        use x86_64::EdgeKind as Kind;
        match kind {
            Kind::Pointer64 | Kind::Pointer32 | Kind::Pointer32Signed | Kind::GotOffset64 => edge.addend == 0,
            // Older assemblers relocate calls so.
            Kind::Delta32 | Kind::GotLoad32 | Kind::GotOperand32 => !self.is_call(edge),
            Kind::Delta64 | Kind::GotDelta32 | Kind::GotDelta64 | Kind::GotEntryOffset32 | Kind::GotEntryOffset64 => {
                true
            }
            _ => false,
        }
    }
}

fn takes_address_on_aarch64(edge: &Edge, kind: aarch64::EdgeKind) -> bool {
    use aarch64::EdgeKind as Kind;
    match kind {
        Kind::Delta64 | Kind::Delta32 | Kind::GotDelta32 | Kind::GotPointer64 => true,
        // The parts of an address are in several instructions, which have to agree: their addend is one.
        Kind::Pointer64
        | Kind::Pointer32
        | Kind::Adr21
        | Kind::Page21
        | Kind::Page21Unchecked
        | Kind::PageOffset12
        | Kind::Move(_)
        | Kind::MoveDelta(_)
        | Kind::GotLoad19
        | Kind::GotPage21
        | Kind::GotPageOffset12
        | Kind::GotPageOffset15
        | Kind::GotOffset15 => edge.addend == 0,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::super::{BlockId, SymbolId};
    use super::*;
    use crate::arch::Architecture;
    use crate::memory::SegmentKind;

    fn in_block(kind: SegmentKind, bytes: &[u8], edge: x86_64::EdgeKind, offset: u32, addend: i64) -> bool {
        let mut graph = LinkGraph::new("test", Architecture::X86_64);
        let block: BlockId = graph.add_block(kind, bytes, 1).unwrap();
        let target: SymbolId = graph.define(None, block, 0, 0);
        let edge = Edge { block, offset, kind: EdgeKind::X86_64(edge), target, addend };
        graph.add_edge(edge).unwrap();
        graph.takes_address(&edge)
    }

    #[test]
    fn an_address_is_taken_by_what_is_no_call() {
        use x86_64::EdgeKind as Kind;
        let code = |bytes: &[u8], kind, offset| in_block(SegmentKind::Code, bytes, kind, offset, -4);
        let (lea, call) = ([0x48, 0x8d, 0x05, 0, 0, 0, 0], [0xe8, 0, 0, 0, 0]);
        assert!(code(&lea, Kind::Delta32, 3));
        assert!(!code(&call, Kind::Delta32, 1));
        assert!(!code(&call, Kind::Branch32, 1));
        let (load, through) = ([0x48, 0x8b, 0x05, 0, 0, 0, 0], [0xff, 0x15, 0, 0, 0, 0]);
        assert!(code(&load, Kind::GotLoad32, 3));
        assert!(!code(&through, Kind::GotLoad32, 2));
        assert!(in_block(SegmentKind::Data, &[0; 8], Kind::Pointer64, 0, 0));
        assert!(!in_block(SegmentKind::Data, &[0; 8], Kind::Pointer64, 0, 4));
    }
}
