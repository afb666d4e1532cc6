//! The relocations of arm64, after `<mach-o/arm64/reloc.h>`.

use object::macho::*;

use super::relocation::DifferenceKinds;
use crate::arch::aarch64::{EdgeKind, load_store_log2};

/// What a relocation means. One that is the offset in a page is for many instructions, which
/// tell what they load or store.
pub(super) fn meaning(relocation: &RelocationInfo, bytes: &[u8]) -> Option<EdgeKind> {
    let shape = (relocation.r_type, relocation.r_length, relocation.r_pcrel, relocation.r_extern);
    Some(match shape {
        (ARM64_RELOC_UNSIGNED, 3, false, _) => EdgeKind::Pointer64,
        (ARM64_RELOC_UNSIGNED, 2, false, _) => EdgeKind::Pointer32,
        (ARM64_RELOC_BRANCH26, 2, true, _) => EdgeKind::Branch26,
        (ARM64_RELOC_PAGE21, 2, true, _) => EdgeKind::Page21,
        (ARM64_RELOC_PAGEOFF12, 2, false, _) => {
            let word = u32::from_le_bytes(bytes.try_into().ok()?);
            match load_store_log2(word) {
                Some(log2) => EdgeKind::LoadStorePageOffset12(log2),
                // An addition, or what fixup refuses.
                None => EdgeKind::PageOffset12,
            }
        }
        // The symbol of a thread-local variable is its descriptor, whose address is taken.
        (ARM64_RELOC_GOT_LOAD_PAGE21 | ARM64_RELOC_TLVP_LOAD_PAGE21, 2, true, true) => EdgeKind::GotPage21,
        (ARM64_RELOC_GOT_LOAD_PAGEOFF12 | ARM64_RELOC_TLVP_LOAD_PAGEOFF12, 2, false, true) => EdgeKind::GotPageOffset12,
        (ARM64_RELOC_POINTER_TO_GOT, 2, true, true) => EdgeKind::GotDelta32,
        (ARM64_RELOC_POINTER_TO_GOT, 3, false, true) => EdgeKind::GotPointer64,
        _ => return None,
    })
}

/// The kinds for the difference of two addresses, in a field of a power of two of bytes.
pub(super) fn difference(length: u8) -> Option<DifferenceKinds> {
    let (delta, negative, subtract) = match length {
        2 => (EdgeKind::Delta32, EdgeKind::NegDelta32, EdgeKind::Subtract32),
        3 => (EdgeKind::Delta64, EdgeKind::NegDelta64, EdgeKind::Subtract64),
        _ => return None,
    };
    let [delta, negative, subtract] = [delta, negative, subtract].map(crate::graph::EdgeKind::Aarch64);
    Some(DifferenceKinds { delta, negative, subtract })
}
