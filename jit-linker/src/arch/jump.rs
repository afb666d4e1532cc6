//! A jump to a function that is elsewhere: an address of its own for it.

use super::{Architecture, aarch64, x86_64};
use crate::graph::{BlockId, Edge, EdgeKind, GraphError, LinkGraph, SymbolId};
use crate::memory::SegmentKind;

/// Adds code to a graph that does nothing but go on to `target`.
///
/// # Errors
///
/// When the graph is full.
pub fn add_jump(graph: &mut LinkGraph, target: SymbolId) -> Result<BlockId, GraphError> {
    let (code, offset, kind, addend): (&[u8], _, _, _) = match graph.architecture() {
        // endbr64; jmp target
        Architecture::X86_64 => {
            (&[0xf3, 0x0f, 0x1e, 0xfa, 0xe9, 0, 0, 0, 0], 5, EdgeKind::X86_64(x86_64::EdgeKind::Branch32), -4)
        }
        // bti c; b target
        Architecture::Aarch64 => {
            (&[0x5f, 0x24, 0x03, 0xd5, 0, 0, 0, 0x14], 4, EdgeKind::Aarch64(aarch64::EdgeKind::Branch26), 0)
        }
    };
    let block = graph.add_block(SegmentKind::Code, code, 16)?;
    graph.add_edge(Edge { block, offset, kind, target, addend })?;
    Ok(block)
}
