//! The relocations of x86-64, after `<mach-o/x86_64/reloc.h>`.

use object::LittleEndian;
use object::macho::*;

use super::relocation::DifferenceKinds;
use crate::arch::x86_64::EdgeKind;

/// What a relocation means, and how many bytes of the instruction are behind the field.
#[inline]
pub(super) fn meaning(relocation: &RelocationInfo) -> Option<(EdgeKind, i64)> {
    let shape = (relocation.r_type, relocation.r_length, relocation.r_pcrel, relocation.r_extern);
    Some(match shape {
        (X86_64_RELOC_UNSIGNED, 3, false, _) => (EdgeKind::Pointer64, 0),
        (X86_64_RELOC_UNSIGNED, 2, false, _) => (EdgeKind::Pointer32, 0),
        (X86_64_RELOC_SIGNED, 2, true, _) => (EdgeKind::Delta32, 0),
        (X86_64_RELOC_SIGNED_1, 2, true, _) => (EdgeKind::Delta32, 1),
        (X86_64_RELOC_SIGNED_2, 2, true, _) => (EdgeKind::Delta32, 2),
        (X86_64_RELOC_SIGNED_4, 2, true, _) => (EdgeKind::Delta32, 4),
        (X86_64_RELOC_BRANCH, 2, true, _) => (EdgeKind::Plt32, 0),
        (X86_64_RELOC_BRANCH, 0, true, _) => (EdgeKind::Delta8, 0),
        (X86_64_RELOC_GOT, 2, true, true) => (EdgeKind::GotDelta32, 0),
        // The symbol of a thread-local variable is its descriptor, whose address is taken.
        (X86_64_RELOC_GOT_LOAD | X86_64_RELOC_TLV, 2, true, true) => (EdgeKind::GotLoad32, 0),
        _ => return None,
    })
}

/// As [`meaning`], with whether a symbol is named, of those that nearly all relocations of code are: an instruction's
/// field of 32 bits, relative to its place. All but what they name is one byte.
#[inline]
pub(super) fn plain_meaning(relocation: &Relocation<LittleEndian>) -> Option<(EdgeKind, i64, bool)> {
    const RELATIVE: u32 = 1;
    const BITS_32: u32 = 2 << 1;
    const EXTERN: u32 = 1 << 3;
    let shape = relocation.r_word1.get(LittleEndian) >> 24;
    if shape & 0b111 != RELATIVE | BITS_32 {
        return None;
    }
    let is_extern = shape & EXTERN != 0;
    Some(match (shape >> 4) as u8 {
        X86_64_RELOC_SIGNED => (EdgeKind::Delta32, 0, is_extern),
        X86_64_RELOC_SIGNED_1 => (EdgeKind::Delta32, 1, is_extern),
        X86_64_RELOC_SIGNED_2 => (EdgeKind::Delta32, 2, is_extern),
        X86_64_RELOC_SIGNED_4 => (EdgeKind::Delta32, 4, is_extern),
        X86_64_RELOC_BRANCH => (EdgeKind::Plt32, 0, is_extern),
        X86_64_RELOC_GOT if is_extern => (EdgeKind::GotDelta32, 0, true),
        X86_64_RELOC_GOT_LOAD if is_extern => (EdgeKind::GotLoad32, 0, true),
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
    let [delta, negative, subtract] = [delta, negative, subtract].map(crate::graph::EdgeKind::X86_64);
    Some(DifferenceKinds { delta, negative, subtract })
}
