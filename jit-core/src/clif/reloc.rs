//! What a Cranelift relocation means to the linker.

use cranelift_codegen::binemit::Reloc;
use jit_linker::arch::{Architecture, aarch64, x86_64};
use jit_linker::graph::EdgeKind;

/// The edge kind of a relocation; `None` for one that stores nothing.
///
/// Thread-local variables need no kind of their own: the symbol of such a variable is its
/// descriptor, which general-dynamic code takes the address of.
///
/// # Errors
///
/// When Cranelift does not emit the relocation for this architecture.
pub(crate) fn edge_kind(architecture: Architecture, reloc: Reloc) -> Result<Option<EdgeKind>, UnsupportedReloc> {
    let kind = match architecture {
        Architecture::X86_64 => EdgeKind::X86_64(match reloc {
            Reloc::Abs8 => x86_64::EdgeKind::Pointer64,
            Reloc::Abs4 => x86_64::EdgeKind::Pointer32,
            Reloc::X86PCRel4 | Reloc::ElfX86_64TlsGd => x86_64::EdgeKind::Delta32,
            Reloc::X86CallPCRel4 | Reloc::X86CallPLTRel4 => x86_64::EdgeKind::Branch32,
            Reloc::X86GOTPCRel4 => x86_64::EdgeKind::GotLoad32,
            _ => return Err(UnsupportedReloc(reloc)),
        }),
        Architecture::Aarch64 => EdgeKind::Aarch64(match reloc {
            Reloc::Abs8 => aarch64::EdgeKind::Pointer64,
            Reloc::Abs4 => aarch64::EdgeKind::Pointer32,
            Reloc::Arm64Call => aarch64::EdgeKind::Branch26,
            Reloc::Aarch64AdrGotPage21 => aarch64::EdgeKind::GotPage21,
            Reloc::Aarch64Ld64GotLo12Nc => aarch64::EdgeKind::GotPageOffset12,
            Reloc::Aarch64AdrPrelPgHi21 | Reloc::Aarch64TlsDescAdrPage21 => aarch64::EdgeKind::Page21,
            Reloc::Aarch64AddAbsLo12Nc | Reloc::Aarch64TlsDescAddLo12 => aarch64::EdgeKind::PageOffset12,
            Reloc::Aarch64TlsDescLd64Lo12 => aarch64::EdgeKind::LoadPageOffset12,
            // Marks the call for linkers that rewrite the sequence.
            Reloc::Aarch64TlsDescCall => return Ok(None),
            _ => return Err(UnsupportedReloc(reloc)),
        }),
        _ => return Err(UnsupportedReloc(reloc)),
    };
    Ok(Some(kind))
}

/// How many bytes an edge of one of these kinds changes.
pub(crate) fn field_size(kind: EdgeKind) -> u64 {
    match kind {
        EdgeKind::X86_64(x86_64::EdgeKind::Pointer64) | EdgeKind::Aarch64(aarch64::EdgeKind::Pointer64) => 8,
        EdgeKind::X86_64(_) | EdgeKind::Aarch64(_) => 4,
    }
}

/// A relocation that the linker has no edge kind for.
#[derive(Debug, thiserror::Error)]
#[error("relocation {0:?} is not supported")]
pub(crate) struct UnsupportedReloc(Reloc);
