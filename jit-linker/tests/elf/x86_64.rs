//! Every relocation of x86-64, byte by byte.

use crate::relocation::{Case, Entry, Formula, check};

const TARGET: &str = "x86_64-linux-gnu";

const S32: (i64, i64) = (-(1 << 31), (1 << 31) - 1);

fn little(size: usize) -> Box<dyn Fn(i64) -> Vec<u8>> {
    Box::new(move |value| value.to_le_bytes()[..size].to_vec())
}

/// A field of `size` bytes that takes the values from `low` to `high`.
fn case(relocation: &'static str, formula: Formula, size: usize, low: i64, high: i64) -> Case {
    let outside = if size == 8 { vec![] } else { vec![low - 1, high + 1] };
    // What stands there before plays no part.
    let (before, after) = (vec![0xa5; size], little(size));
    let inside = vec![low, 0, 0x55, high];
    Case { relocation, addend: 5, before, formula, entry: Entry::None, inside, outside, after }
}

/// A field that takes the distance of a GOT entry or of the GOT, which is aligned to 8: its limits
/// are reached with addends that are not.
fn got_case(relocation: &'static str, formula: Formula, entry: Entry, size: usize) -> [Case; 2] {
    let one = |addend: i64, inside: Vec<i64>, outside: Vec<i64>| {
        let outside = if size == 8 { vec![] } else { outside };
        Case { relocation, addend, before: vec![0x5a; size], formula, entry, inside, outside, after: little(size) }
    };
    [one(-8, vec![S32.0, 0, 0x4000], vec![S32.0 - 8]), one(7, vec![7, 0x407, S32.1], vec![S32.1 + 8])]
}

#[test]
fn elf_01_x86_64_relocations_store_their_formula_up_to_the_edge_of_their_range() {
    use Formula::{Absolute, GotBase, GotEntry, GotOffset, Relative, TlsModuleOffset, TlsOffset};
    let (low, high) = (i64::MIN / 2, i64::MAX / 2);
    let mut cases = vec![
        case("R_X86_64_64", Absolute, 8, low, high),
        case("R_X86_64_32", Absolute, 4, 0, (1 << 32) - 1),
        case("R_X86_64_32S", Absolute, 4, S32.0, S32.1),
        case("R_X86_64_16", Absolute, 2, -(1 << 15), (1 << 16) - 1),
        case("R_X86_64_8", Absolute, 1, -(1 << 7), (1 << 8) - 1),
        case("R_X86_64_PC64", Relative, 8, low, high),
        case("R_X86_64_PC32", Relative, 4, S32.0, S32.1),
        case("R_X86_64_PC16", Relative, 2, -(1 << 15), (1 << 15) - 1),
        case("R_X86_64_PC8", Relative, 1, -(1 << 7), (1 << 7) - 1),
        case("R_X86_64_GOTOFF64", GotOffset, 8, low, high),
        case("R_X86_64_TPOFF32", TlsOffset, 4, S32.0, S32.1),
        case("R_X86_64_TPOFF64", TlsOffset, 8, low, high),
        case("R_X86_64_DTPOFF32", TlsModuleOffset, 4, S32.0, S32.1),
        case("R_X86_64_DTPOFF64", TlsModuleOffset, 8, low, high),
    ];
    for (relocation, entry, size) in [
        ("R_X86_64_GOTPCREL", Entry::Address, 4),
        ("R_X86_64_GOTPCRELX", Entry::Address, 4),
        ("R_X86_64_REX_GOTPCRELX", Entry::Address, 4),
        ("R_X86_64_GOTPCREL64", Entry::Address, 8),
        ("R_X86_64_TLSGD", Entry::TlsPair, 4),
        ("R_X86_64_TLSLD", Entry::TlsModule, 4),
        ("R_X86_64_GOTTPOFF", Entry::TlsOffset, 4),
        ("R_X86_64_GOTPC32_TLSDESC", Entry::TlsDescriptor, 4),
    ] {
        cases.extend(got_case(relocation, GotEntry, entry, size));
    }
    cases.extend(got_case("R_X86_64_GOTPC32", GotBase, Entry::None, 4));
    cases.extend(got_case("R_X86_64_GOTPC64", GotBase, Entry::None, 8));
    check(TARGET, &cases);
}
