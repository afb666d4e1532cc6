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

/// As [`meaning`], of those that nearly all relocations of code are: an instruction's field of 32 bits, relative to its
/// place. All but what they name is one byte.
#[inline]
pub(super) fn plain_meaning(relocation: &Relocation<LittleEndian>) -> Option<(EdgeKind, i64)> {
    let shape = (relocation.r_word1.get(LittleEndian) >> 24) as u8;
    let (kind, behind) = PLAIN[usize::from(shape >> 3)];
    (shape & 0b111 == RELATIVE | BITS_32 && behind != NOT_PLAIN).then_some((kind, behind.into()))
}

/// Whether a symbol is named.
#[inline]
pub(super) fn is_extern(relocation: &Relocation<LittleEndian>) -> bool {
    relocation.r_word1.get(LittleEndian) >> 27 & 1 != 0
}

const RELATIVE: u8 = 1;
const BITS_32: u8 = 2 << 1;

/// More than an instruction has behind a field.
const NOT_PLAIN: u8 = u8::MAX;

/// By type of relocation, twice its number, and one more where a symbol is named. A table, because types come in no order
/// that could be guessed.
static PLAIN: [(EdgeKind, u8); 32] = {
    let mut table = [(EdgeKind::Delta32, NOT_PLAIN); 32];
    let mut named = 0;
    while named < 2 {
        table[2 * X86_64_RELOC_SIGNED as usize + named] = (EdgeKind::Delta32, 0);
        table[2 * X86_64_RELOC_SIGNED_1 as usize + named] = (EdgeKind::Delta32, 1);
        table[2 * X86_64_RELOC_SIGNED_2 as usize + named] = (EdgeKind::Delta32, 2);
        table[2 * X86_64_RELOC_SIGNED_4 as usize + named] = (EdgeKind::Delta32, 4);
        table[2 * X86_64_RELOC_BRANCH as usize + named] = (EdgeKind::Plt32, 0);
        named += 1;
    }
    table[2 * X86_64_RELOC_GOT as usize + 1] = (EdgeKind::GotDelta32, 0);
    table[2 * X86_64_RELOC_GOT_LOAD as usize + 1] = (EdgeKind::GotLoad32, 0);
    table
};

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
