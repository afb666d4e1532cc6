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

/// Whether an instruction is `add xd, xn, #immediate`.
fn is_addition(word: u32) -> bool {
    word & 0xffc0_0000 == 0x9100_0000
}

/// The register that an `adrp` gives an address to.
fn given(word: u32) -> u32 {
    word & 0x1f
}

/// The register that a load has an address from.
fn base(word: u32) -> u32 {
    word >> 5 & 0x1f
}

/// Notes of each `adrp` of an entry's page, and of each load from one, where the other of the two is: of the same symbol in
/// the same section, with the same register. Loads follow; where several do, they come to the same answer.
pub(super) fn pair(sites: &mut [Site]) {
    let word = |site: &Site| site.after.first_chunk().map(|bytes| u32::from_le_bytes(*bytes));
    for load in 0..sites.len() {
        if sites[load].kind != R_AARCH64_LD64_GOT_LO12_NC {
            continue;
        }
        let register = word(&sites[load]).map(base);
        let is_page = |site: &Site| {
            site.kind == R_AARCH64_ADR_GOT_PAGE
                && (site.place, &site.symbol, site.addend)
                    == (sites[load].place, &sites[load].symbol, sites[load].addend)
                && site.offset < sites[load].offset
                && word(site).map(given) == register
        };
        let pages = sites.iter().enumerate().filter(|(_, site)| is_page(site));
        let Some((page, _)) = pages.max_by_key(|(_, site)| site.offset) else { continue };
        sites[load].partner = Some(sites[page].offset);
        sites[page].partner = Some(sites[load].offset);
    }
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
    // What the entry of the GOT at an address holds: of another address nothing.
    let entry = |address: u64| Some([*image.got.get(&address)?, target]);
    // As much as an instruction knows of such an entry's address; there may be several.
    let part_of_entry = |found: u64, part: &dyn Fn(u64) -> u64| {
        let is_it = |(entry, held): (&u64, &u64)| *held == target && part(*entry) == found;
        image.got.iter().any(is_it).then_some([found, found])
    };
    // The other instruction of the two that load an entry, and where it is.
    let partner = || {
        let offset = site.partner?;
        Some((u32::from_le_bytes(*bytes.get(offset as usize..)?.first_chunk()?), start + offset))
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
        R_AARCH64_GOTPCREL32 => entry(from_here(i64::from(word()?.cast_signed()))),
        R_AARCH64_GOT_LD_PREL19 => entry(near_load(word()?, place)),
        R_AARCH64_LD64_GOTPAGE_LO15 => entry((image.tables[site.place.0] & !0xfff) + in_page(word()?, 3)),
        R_AARCH64_ADR_PREL_PG_HI21 | R_AARCH64_ADR_PREL_PG_HI21_NC => Some([page(word()?), target & !0xfff]),
        R_AARCH64_ADD_ABS_LO12_NC | R_AARCH64_LDST8_ABS_LO12_NC => scaled(0),
        R_AARCH64_LDST16_ABS_LO12_NC => scaled(1),
        R_AARCH64_LDST32_ABS_LO12_NC => scaled(2),
        R_AARCH64_LDST64_ABS_LO12_NC => scaled(3),
        R_AARCH64_LDST128_ABS_LO12_NC => scaled(4),
        R_AARCH64_CALL26 | R_AARCH64_JUMP26 => branch(0, 26),
        R_AARCH64_CONDBR19 => branch(5, 19),
        R_AARCH64_TSTBR14 => branch(5, 14),
        R_AARCH64_ADR_GOT_PAGE => match partner() {
            Some((load, _)) if is_addition(load) => Some([page(word()?), target & !0xfff]),
            _ => part_of_entry(page(word()?), &|address| address & !0xfff),
        },
        // An addition of the address's own bits has taken the load's place.
        R_AARCH64_LD64_GOT_LO12_NC if is_addition(word()?) => scaled(0),
        R_AARCH64_LD64_GOT_LO12_NC => match partner() {
            Some((adrp, place)) => entry(self::page(adrp, place) + in_page(word()?, 3)),
            None => part_of_entry(in_page(word()?, 3), &|address| address & 0xfff),
        },
        _ => None,
    }
}
