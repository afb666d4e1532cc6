//! The fields of AArch64's code and data.

use object::elf::*;

use super::Site;
use crate::image::Image;

/// The page that an `adrp` gives.
pub(super) fn page(word: u32, place: u64) -> u64 {
    let immediate = (word >> 5 & 0x7_ffff) << 2 | word >> 29 & 3;
    let pages = i64::from((immediate << 11).cast_signed() >> 11);
    (place & !0xfff).wrapping_add_signed(pages << 12)
}

/// The address that an `adr` gives.
pub(super) fn near(word: u32, place: u64) -> u64 {
    let immediate = (word >> 5 & 0x7_ffff) << 2 | word >> 29 & 3;
    place.wrapping_add_signed(i64::from((immediate << 11).cast_signed() >> 11))
}

/// The address that a load is from that knows its distance in words.
pub(super) fn near_load(word: u32, place: u64) -> u64 {
    let words = word >> 5 & 0x7_ffff;
    place.wrapping_add_signed(i64::from((words << 13).cast_signed() >> 11))
}

/// The twelve bits of an addition, or of a load or store, which counts in units of what it accesses.
pub(super) fn immediate(word: u32) -> u64 {
    u64::from(word >> 10 & 0xfff)
}

/// What a field says, and what it has to say for a symbol at an address: of instructions that know a page or a place in
/// one, only that.
pub(super) fn field(image: &Image, site: &Site, symbol: u64) -> Option<[u64; 2]> {
    let (start, bytes) = image.sections.get(&site.place)?;
    let field = bytes.get(site.offset as usize..)?;
    let place = start + site.offset;
    let target = symbol.wrapping_add_signed(site.addend);
    let word = || Some(u32::from_le_bytes(*field.first_chunk()?));
    let long = || Some(u64::from_le_bytes(*field.first_chunk()?));
    let from_here = |distance: i64| place.wrapping_add_signed(distance);
    // The bits of an instruction from `low` on as a signed distance in words.
    let distance =
        |word: u32, low: u32, bits: u32| i64::from((word << (32 - low - bits)).cast_signed() >> (32 - bits)) * 4;
    let page = |word: u32| page(word, place);
    let in_page = |word: u32, scale: u32| immediate(word) << scale;
    let scaled = |scale: u32| Some([in_page(word()?, scale), target & 0xfff]);
    let through_stub = |to: u64| Some([image.stubs.get(&to).copied().unwrap_or(to), target]);
    let branch = |low, bits| through_stub(from_here(distance(word()?, low, bits)));
    // An entry of the GOT for the symbol, of which there may be several, or the symbol itself.
    let entry = |found: u64, part: &dyn Fn(u64) -> u64| {
        let entries = image.got.iter().filter(|(_, held)| **held == target).map(|(entry, _)| part(*entry));
        Some([found, entries.chain([part(target)]).find(|expected| *expected == found).unwrap_or(part(target))])
    };
    let half = || Some(u16::from_le_bytes(*field.first_chunk()?));
    let group_of = |value: u64, group: u32| value >> (16 * group) & 0xffff;
    let taken = |value: u64, group: u32| Some([u64::from(word()? >> 5 & 0xffff), group_of(value, group)]);
    // Of a negative number `movn` takes the complement.
    let taken_signed = |value: u64, group: u32| {
        let word = word()?;
        let bits = u64::from(word >> 5 & 0xffff);
        let is_complement = word >> 29 & 3 == 0;
        let found = if is_complement { bits ^ 0xffff } else { bits };
        let is_negative = value.cast_signed() < 0;
        Some([found | u64::from(is_complement) << 16, group_of(value, group) | u64::from(is_negative) << 16])
    };
    let away = target.wrapping_sub(place);
    match site.kind {
        R_AARCH64_LD_PREL_LO19 => Some([near_load(word()?, place), target]),
        R_AARCH64_ADR_PREL_LO21 => Some([near(word()?, place), target]),
        R_AARCH64_MOVW_UABS_G0 | R_AARCH64_MOVW_UABS_G0_NC => taken(target, 0),
        R_AARCH64_MOVW_UABS_G1 | R_AARCH64_MOVW_UABS_G1_NC => taken(target, 1),
        R_AARCH64_MOVW_UABS_G2 | R_AARCH64_MOVW_UABS_G2_NC => taken(target, 2),
        R_AARCH64_MOVW_UABS_G3 => taken(target, 3),
        R_AARCH64_MOVW_SABS_G0 => taken_signed(target, 0),
        R_AARCH64_MOVW_SABS_G1 => taken_signed(target, 1),
        R_AARCH64_MOVW_SABS_G2 => taken_signed(target, 2),
        R_AARCH64_MOVW_PREL_G0 => taken_signed(away, 0),
        R_AARCH64_MOVW_PREL_G1 => taken_signed(away, 1),
        R_AARCH64_MOVW_PREL_G2 => taken_signed(away, 2),
        R_AARCH64_MOVW_PREL_G3 => taken(away, 3),
        R_AARCH64_MOVW_PREL_G0_NC => taken(away, 0),
        R_AARCH64_MOVW_PREL_G1_NC => taken(away, 1),
        R_AARCH64_MOVW_PREL_G2_NC => taken(away, 2),
        R_AARCH64_ABS64 => Some([long()?, target]),
        R_AARCH64_ABS32 => Some([u64::from(word()?), target & 0xffff_ffff]),
        R_AARCH64_ABS16 => Some([u64::from(half()?), target & 0xffff]),
        R_AARCH64_PREL16 => Some([from_here(i64::from(half()?.cast_signed())), target]),
        R_AARCH64_PREL64 => Some([from_here(long()?.cast_signed()), target]),
        R_AARCH64_PREL32 => Some([from_here(i64::from(word()?.cast_signed())), target]),
        R_AARCH64_PLT32 => through_stub(from_here(i64::from(word()?.cast_signed()))),
        R_AARCH64_GOTPCREL32 => entry(from_here(i64::from(word()?.cast_signed())), &|address| address),
        R_AARCH64_GOT_LD_PREL19 => entry(near_load(word()?, place), &|address| address),
        R_AARCH64_LD64_GOTPAGE_LO15 => {
            entry((image.tables[site.place.0] & !0xfff) + in_page(word()?, 3), &|address| address)
        }
        R_AARCH64_ADR_PREL_PG_HI21 | R_AARCH64_ADR_PREL_PG_HI21_NC => Some([page(word()?), target & !0xfff]),
        R_AARCH64_ADD_ABS_LO12_NC | R_AARCH64_LDST8_ABS_LO12_NC => scaled(0),
        R_AARCH64_LDST16_ABS_LO12_NC => scaled(1),
        R_AARCH64_LDST32_ABS_LO12_NC => scaled(2),
        R_AARCH64_LDST64_ABS_LO12_NC => scaled(3),
        R_AARCH64_LDST128_ABS_LO12_NC => scaled(4),
        R_AARCH64_CALL26 | R_AARCH64_JUMP26 => branch(0, 26),
        R_AARCH64_CONDBR19 => branch(5, 19),
        R_AARCH64_TSTBR14 => branch(5, 14),
        R_AARCH64_ADR_GOT_PAGE => entry(page(word()?), &|address| address & !0xfff),
        R_AARCH64_LD64_GOT_LO12_NC => {
            let word = word()?;
            // A load from the entry, or an addition where the symbol is near.
            let scale = if word >> 24 == 0xf9 { 3 } else { 0 };
            entry(in_page(word, scale), &|address| address & 0xfff)
        }
        _ => None,
    }
}
