//! The relocations of x86-64, after the System V psABI.

use object::elf::*;

use super::relocation::Meaning;
use crate::arch::x86_64::EdgeKind;

/// What a relocation means. Where the psABI says PLT, it may be the function itself.
pub(super) fn meaning(relocation: u32) -> Meaning {
    let kind = match relocation {
        // The second marks a call for linkers that rewrite it.
        R_X86_64_NONE | R_X86_64_TLSDESC_CALL => return Meaning::Nothing,
        R_X86_64_64 => EdgeKind::Pointer64,
        R_X86_64_32 => EdgeKind::Pointer32,
        R_X86_64_32S => EdgeKind::Pointer32Signed,
        R_X86_64_16 => EdgeKind::Pointer16,
        R_X86_64_8 => EdgeKind::Pointer8,
        R_X86_64_PC64 => EdgeKind::Delta64,
        R_X86_64_PC32 => EdgeKind::Delta32,
        R_X86_64_PC16 => EdgeKind::Delta16,
        R_X86_64_PC8 => EdgeKind::Delta8,
        R_X86_64_PLT32 => EdgeKind::Plt32,
        R_X86_64_PLTOFF64 => EdgeKind::PltOffset64,
        R_X86_64_GOTPCREL
        | R_X86_64_GOTPCRELX
        | R_X86_64_CODE_4_GOTPCRELX
        | R_X86_64_CODE_5_GOTPCRELX
        | R_X86_64_CODE_6_GOTPCRELX => EdgeKind::GotLoad32,
        R_X86_64_REX_GOTPCRELX => EdgeKind::GotOperand32,
        R_X86_64_GOTPCREL64 => EdgeKind::GotDelta64,
        R_X86_64_GOT32 => EdgeKind::GotEntryOffset32,
        R_X86_64_GOT64 | R_X86_64_GOTPLT64 => EdgeKind::GotEntryOffset64,
        R_X86_64_GOTPC32 => EdgeKind::GotBaseDelta32,
        R_X86_64_GOTPC64 => EdgeKind::GotBaseDelta64,
        R_X86_64_GOTOFF64 => EdgeKind::GotOffset64,
        R_X86_64_SIZE32 => EdgeKind::Size32,
        R_X86_64_SIZE64 => EdgeKind::Size64,
        R_X86_64_TLSGD => EdgeKind::TlsPairDelta32,
        R_X86_64_TLSLD => EdgeKind::TlsModuleDelta32,
        R_X86_64_GOTTPOFF | R_X86_64_CODE_4_GOTTPOFF | R_X86_64_CODE_5_GOTTPOFF | R_X86_64_CODE_6_GOTTPOFF => {
            EdgeKind::TlsEntryDelta32
        }
        R_X86_64_GOTPC32_TLSDESC
        | R_X86_64_CODE_4_GOTPC32_TLSDESC
        | R_X86_64_CODE_5_GOTPC32_TLSDESC
        | R_X86_64_CODE_6_GOTPC32_TLSDESC => EdgeKind::TlsDescriptorDelta32,
        R_X86_64_TPOFF32 => EdgeKind::TlsOffset32,
        R_X86_64_TPOFF64 => EdgeKind::TlsOffset64,
        R_X86_64_DTPOFF32 => EdgeKind::TlsModuleOffset32,
        R_X86_64_DTPOFF64 => EdgeKind::TlsModuleOffset64,
        _ => return Meaning::Unsupported,
    };
    Meaning::Edge(crate::graph::EdgeKind::X86_64(kind))
}
