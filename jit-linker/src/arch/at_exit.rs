//! The function `atexit`, which the C library has in each component: it says whose the function is.

use super::{Architecture, aarch64, x86_64};
use crate::graph::{BlockId, Edge, EdgeKind, GraphError, LinkGraph, SymbolId};
use crate::memory::SegmentKind;

/// Offset in the code, kind, target and addend.
type Reference = (u32, EdgeKind, SymbolId, i64);

/// Adds code to a graph that, called as `atexit(f)`, goes on to `register(f, null, handle)`, which
/// is `__cxa_atexit` of the C++ ABI.
///
/// # Errors
///
/// When the graph is full.
pub fn add_at_exit(graph: &mut LinkGraph, handle: SymbolId, register: SymbolId) -> Result<BlockId, GraphError> {
    let (code, edges): (&[u8], &[Reference]) = match graph.architecture() {
        Architecture::X86_64 => (
            // endbr64; xor esi, esi; lea rdx, [rip + handle]; jmp register
            &[0xf3, 0x0f, 0x1e, 0xfa, 0x31, 0xf6, 0x48, 0x8d, 0x15, 0, 0, 0, 0, 0xe9, 0, 0, 0, 0],
            &[
                (9, EdgeKind::X86_64(x86_64::EdgeKind::Delta32), handle, -4),
                (14, EdgeKind::X86_64(x86_64::EdgeKind::Branch32), register, -4),
            ],
        ),
        Architecture::Aarch64 => (
            // bti c; mov x1, xzr; adrp x2, handle; add x2, x2, :lo12:handle; b register
            &[
                0x5f, 0x24, 0x03, 0xd5, 0xe1, 0x03, 0x1f, 0xaa, 0x02, 0x00, 0x00, 0x90, 0x42, 0x00, 0x00, 0x91, 0x00,
                0x00, 0x00, 0x14,
            ],
            &[
                (8, EdgeKind::Aarch64(aarch64::EdgeKind::Page21), handle, 0),
                (12, EdgeKind::Aarch64(aarch64::EdgeKind::PageOffset12), handle, 0),
                (16, EdgeKind::Aarch64(aarch64::EdgeKind::Branch26), register, 0),
            ],
        ),
    };
    let block = graph.add_block(SegmentKind::Code, code, 16)?;
    for (offset, kind, target, addend) in edges.iter().copied() {
        graph.add_edge(Edge { block, offset, kind, target, addend })?;
    }
    Ok(block)
}
