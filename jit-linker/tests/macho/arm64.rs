//! Every relocation of arm64.

use crate::relocation::{ANY, CODE, Case, FAR, Formula, LOWEST, PAGE, check, link_at, store_32, store_64};
use crate::{ARM64, assemble};

const S33: (i64, i64) = (-(1 << 32), (1 << 32) - 0x1000);
const E32: (i64, i64) = (-(1 << 31), (1 << 32) - 1);
const ADDRESSES: (i64, i64) = (LOWEST, i64::MAX);

fn word(field: &mut [u8], mask: u32, bits: u32) {
    let word = u32::from_le_bytes(field[..4].try_into().expect("four bytes"));
    field[..4].copy_from_slice(&(word & !mask | bits).to_le_bytes());
}

/// Pages, in an `adrp`.
fn adrp(field: &mut [u8], value: i64) {
    let pages = (value >> 12) as u32;
    word(field, 0x60ff_ffe0, (pages & 3) << 29 | (pages >> 2 & 0x7_ffff) << 5);
}

#[test]
fn macho_32_arm64_relocations_store_their_formula_up_to_the_edge_of_their_range() {
    use Formula::{Absolute, Data, DataAddress, DataPages, GotAddress, GotEntry, GotPages, Pages};
    let case =
        |source, formula, range, store: fn(&mut [u8], i64)| Case { source, at: 0, formula, range, store, step: 1 };
    let pages = |source, formula| Case { step: 0x1000, ..case(source, formula, S33, adrp) };
    check(
        ARM64,
        &[
            case(".quad _t+5", Absolute(5), ADDRESSES, store_64),
            case(".long _t+5", Absolute(5), (LOWEST, (1 << 32) - 1), store_32),
            case(".quad L_data", DataAddress, ADDRESSES, store_64),
            pages("adrp x3, _t@PAGE", Pages(0)),
            pages("adrp x3, _t@PAGE+0x5432", Pages(0x5432)),
            pages("adrp x3, L_data@PAGE", DataPages),
            pages("adrp x3, _t@GOTPAGE", GotPages),
            pages("adrp x3, _t@TLVPPAGE", GotPages),
            case(".long _t@GOT - .", GotEntry(0), S32, store_32),
            case(".quad _t@GOT", GotAddress, ADDRESSES, store_64),
            case("_here: .quad L_data - _here + 3", Data(3), ANY, store_64),
            case("_here: .long L_data - _here - 3", Data(-3), E32, store_32),
        ],
    );
}

const S32: (i64, i64) = (-(1 << 31), (1 << 31) - 1);

/// Links one instruction with `_t` at an address; the instruction before and after.
fn linked(source: &str, t: u64) -> Result<(u32, u32), String> {
    let object = assemble(ARM64, &format!("{source}\n.subsections_via_symbols\n"));
    let first = |bytes: &[u8]| u32::from_le_bytes(bytes[..4].try_into().expect("four bytes"));
    let text = crate::support::parse(object.clone());
    let before = first(text.bytes(text.blocks().next().expect("there is code").1).expect("it is stored"));
    let (code, _) = link_at(&object, t, [CODE, 0x3000, CODE + PAGE]).map_err(|error| error.to_string())?;
    Ok((before, first(&code)))
}

#[test]
fn macho_32_the_offset_in_a_page_is_scaled_by_what_is_accessed() {
    let accesses = [
        ("add x1, x3, _t@PAGEOFF", 0),
        ("ldrb w1, [x3, _t@PAGEOFF]", 0),
        ("ldrsb x1, [x3, _t@PAGEOFF]", 0),
        ("strb w1, [x3, _t@PAGEOFF]", 0),
        ("ldr b1, [x3, _t@PAGEOFF]", 0),
        ("ldrh w1, [x3, _t@PAGEOFF]", 1),
        ("ldrsh w1, [x3, _t@PAGEOFF]", 1),
        ("str h1, [x3, _t@PAGEOFF]", 1),
        ("ldr w1, [x3, _t@PAGEOFF]", 2),
        ("ldrsw x1, [x3, _t@PAGEOFF]", 2),
        ("str s1, [x3, _t@PAGEOFF]", 2),
        ("ldr x1, [x3, _t@PAGEOFF]", 3),
        ("str x1, [x3, _t@PAGEOFF]", 3),
        ("prfm pldl1keep, [x3, _t@PAGEOFF]", 3),
        ("ldr d1, [x3, _t@PAGEOFF]", 3),
        ("ldr q1, [x3, _t@PAGEOFF]", 4),
        ("str q1, [x3, _t@PAGEOFF]", 4),
    ];
    for (source, log2) in accesses {
        for low in [0, 0x10, 0x550, 0xff0] {
            let (before, after) = linked(source, FAR | low).unwrap();
            assert_eq!(after, before | (low as u32 >> log2) << 10, "{source} {low:#x}");
        }
        let odd = linked(source, FAR | 1 << log2 >> 1);
        match log2 {
            0 => assert!(odd.is_ok(), "{source}"),
            _ => assert!(odd.expect_err("it is not aligned").contains("not a multiple"), "{source}"),
        }
    }
    let (before, after) = linked("ldr x1, [x3, _t@PAGEOFF+0x18]", FAR | 0x100).unwrap();
    assert_eq!(after, before | (0x118 >> 3) << 10);
}

#[test]
fn a_branch_goes_straight_within_128_mib_and_through_a_stub_else() {
    const REACH: i64 = 1 << 27;
    for source in ["b _t", "bl _t", "bl _t+8"] {
        let addend = if source.ends_with('8') { 8 } else { 0 };
        let object = assemble(ARM64, &format!("{source}\n.subsections_via_symbols\n"));
        for distance in [-REACH, 0, REACH - 4] {
            let (before, after) = linked(source, CODE.wrapping_add_signed(distance - addend)).unwrap();
            assert_eq!(after, before | (distance >> 2) as u32 & 0x03ff_ffff, "{source} {distance:#x}");
        }
        for distance in [-REACH - 4, REACH] {
            let target = CODE.wrapping_add_signed(distance - addend);
            let (code, data) = link_at(&object, target, [CODE, 0x3000, CODE + PAGE]).unwrap();
            let field = u32::from_le_bytes(code[..4].try_into().expect("four bytes")) & 0x03ff_ffff;
            let stub = &code[field as usize * 4..][..16];
            assert_eq!(stub[..4], 0xd503_245f_u32.to_le_bytes(), "{source}: bti c");
            assert_eq!(stub[12..], 0xd61f_0200_u32.to_le_bytes(), "{source}: br x16");
            assert_eq!(data, target.wrapping_add_signed(addend).to_le_bytes(), "{source}");
        }
    }
    assert!(linked("b _t", CODE + 2).expect_err("it is not aligned").contains("not a multiple"));
}

#[test]
fn a_load_from_the_got_becomes_an_addition_where_the_target_is_near() {
    for (got, low) in [("GOTPAGE", "GOTPAGEOFF"), ("TLVPPAGE", "TLVPPAGEOFF")] {
        let source = format!("adrp x3, _t@{got}\nldr x4, [x3, _t@{low}]\n.subsections_via_symbols\n");
        let object = assemble(ARM64, &source);
        let words = |code: &[u8]| [0, 4].map(|at| u32::from_le_bytes(code[at..][..4].try_into().expect("four bytes")));
        let (code, _) = link_at(&object, CODE + 0x3_2345, [CODE, 0x3000, CODE + PAGE]).unwrap();
        assert_eq!(words(&code), [0x9000_0003 | 2 << 29 | 12 << 5, 0x9100_0064 | 0x345 << 10], "{got}");
        let (code, data) = link_at(&object, FAR, [CODE, 0x3000, CODE + PAGE]).unwrap();
        assert_eq!(words(&code), [0xb000_0003, 0xf940_0064], "{got}");
        assert_eq!(data, FAR.to_le_bytes(), "{got}");
    }
}

#[test]
fn an_addend_is_a_signed_number_of_24_bits() {
    // clang 22 lets the sign run into the bits beside the addend.
    let mut object = assemble(ARM64, "adrp x3, _t@PAGE+0x5432\n.subsections_via_symbols\n");
    let addend = [0x32, 0x54, 0x00, 0xa4];
    let at = object.windows(4).rposition(|word| word == addend).expect("it is there");
    for (bytes, pages) in [([0, 0, 0xff], -0x10), ([0xff, 0xff, 0x7f], 0x7ff), ([0, 0, 0x80], -0x800i64)] {
        object[at..at + 3].copy_from_slice(&bytes);
        let (code, _) = link_at(&object, CODE, [CODE, 0x3000, FAR]).unwrap();
        let mut expected = 0x9000_0003u32.to_le_bytes();
        adrp(&mut expected, pages << 12);
        assert_eq!(code[..4], expected, "{pages}");
    }
}
