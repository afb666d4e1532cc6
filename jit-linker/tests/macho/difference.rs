//! Differences of two addresses.

use crate::relocation::link_at;
use crate::{ARM64, X86_64, assemble};

const CODE: u64 = 0x1_0000_0000;
const CONSTANTS: u64 = 0x1_1000_0000;
const DATA: u64 = 0x1_3000_0000;

/// Links data that is 8 bytes behind the start, and returns what is there.
fn stored(target: &str, fields: &str) -> Vec<u8> {
    let source = format!(
        ".text\n.p2align 2\n_code: .long 0\n_more: .long 0\n_most: .long 0\n
         .section __TEXT,__const\n.p2align 3\n_constant: .quad 0\n_last: .quad 0\nL_local: .quad 0\n
         .data\n.p2align 3\n.quad 0\n_field:\n{fields}\n_behind: .quad 0\n.subsections_via_symbols\n"
    );
    let (_, data) = link_at(&assemble(target, &source), 0, [CODE, CONSTANTS, DATA]).expect("it links");
    data[8..].to_vec()
}

fn quad(bytes: &[u8]) -> i64 {
    i64::from_le_bytes(bytes[..8].try_into().expect("eight bytes"))
}

fn long(bytes: &[u8]) -> i64 {
    i32::from_le_bytes(bytes[..4].try_into().expect("four bytes")).into()
}

const FIELD: i64 = DATA as i64 + 8;

#[test]
fn macho_23_macho_35_both_symbols_and_the_field_are_in_one_atom() {
    for target in [X86_64, ARM64] {
        let bytes = stored(target, ".quad _inner - _field + 5\n.alt_entry _inner\n_inner: .long _field - _inner");
        assert_eq!((quad(&bytes), long(&bytes[8..])), (13, -8), "{target}");
    }
}

#[test]
fn what_is_subtracted_or_what_it_is_subtracted_from_is_in_the_atom_of_the_field() {
    for target in [X86_64, ARM64] {
        let bytes = stored(
            target,
            ".quad _last - _field + 5\n.quad _field - _last + 6\n.long _last - _field\n.long _field - _last - 7",
        );
        let distance = CONSTANTS as i64 + 8 - FIELD;
        assert_eq!((quad(&bytes), quad(&bytes[8..])), (distance + 5, 6 - distance), "{target}");
        assert_eq!((long(&bytes[16..]), long(&bytes[20..])), (distance, -7 - distance), "{target}");
    }
}

#[test]
fn macho_50_both_symbols_are_outside_the_atom_of_the_field() {
    for target in [X86_64, ARM64] {
        let bytes = stored(
            target,
            ".quad _last - _more + 3\n.long _more - _last\n.long _most - _more - 1\n.quad _constant - _behind",
        );
        let distance = (CONSTANTS + 8 - CODE - 4) as i64;
        assert_eq!((quad(&bytes), long(&bytes[8..]), long(&bytes[12..])), (distance + 3, -distance, 3), "{target}");
        assert_eq!(quad(&bytes[16..]), CONSTANTS as i64 - (FIELD + 24), "{target}");
    }
}

#[test]
fn a_difference_of_what_has_no_symbol_is_found_by_address() {
    for target in [X86_64, ARM64] {
        let bytes = stored(
            target,
            ".quad L_local - _more\n.quad _more - L_local\n.quad L_local - _field\n.quad L_field - _more\nL_field:",
        );
        let distance = (CONSTANTS + 16 - CODE - 4) as i64;
        assert_eq!((quad(&bytes), quad(&bytes[8..])), (distance, -distance), "{target}");
        assert_eq!(quad(&bytes[16..]), CONSTANTS as i64 + 16 - FIELD, "{target}");
        assert_eq!(quad(&bytes[24..]), FIELD + 32 - (CODE as i64 + 4), "{target}");
    }
}

#[test]
fn a_distance_that_does_not_fit_its_field_is_an_error() {
    let source = ".text\n_code: .long 0\n.section __TEXT,__const\n_constant: .long 0\n.data\n.long _code - _constant\n.subsections_via_symbols\n";
    for target in [X86_64, ARM64] {
        let object = assemble(target, source);
        let linked = |data: u64, constants: u64| link_at(&object, 0, [CODE, constants, data]);
        assert!(linked(CODE + 0x7000_0000, CODE + 0x7fff_f000).is_ok(), "{target}");
        let error = linked(CODE + 0x4000_0000, CODE + 0x8000_1000).expect_err("it is too far").to_string();
        assert!(error.contains("__data"), "{target}: {error}");
    }
}
