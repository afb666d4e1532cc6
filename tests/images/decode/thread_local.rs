//! The fields of code that reaches thread-local variables, and the words of the GOT that it reaches them through.
//!
//! A variable is told as its place in the template, which each image has at an address of its own; an offset from the
//! thread pointer is turned into that by what the platform says of the first module's storage.

use object::Architecture;
use object::elf::*;

use super::{Site, aarch64};
use crate::image::{Image, Words};

/// The variable that a relocation is about.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum About {
    /// That of the symbol.
    Symbol,
    /// The start of the template, whichever symbol is named.
    Module,
    /// Only an instruction, which linkers that rewrite it have to find.
    Mark,
}

/// What a relocation is about, if it has to do with thread-local variables.
pub(super) fn about(architecture: Architecture, kind: u32) -> Option<About> {
    match (architecture, kind) {
        (Architecture::X86_64, R_X86_64_TLSDESC_CALL)
        | (Architecture::Aarch64, R_AARCH64_TLSDESC_CALL | R_AARCH64_TLSDESC_LDR | R_AARCH64_TLSDESC_ADD) => {
            Some(About::Mark)
        }
        (Architecture::X86_64, R_X86_64_TLSLD)
        | (
            Architecture::Aarch64,
            R_AARCH64_TLSLD_ADR_PREL21 | R_AARCH64_TLSLD_ADR_PAGE21 | R_AARCH64_TLSLD_ADD_LO12_NC,
        ) => Some(About::Module),
        (
            Architecture::X86_64,
            R_X86_64_DTPMOD64..=R_X86_64_TPOFF32
            | R_X86_64_GOTPC32_TLSDESC
            | R_X86_64_CODE_4_GOTTPOFF
            | R_X86_64_CODE_5_GOTTPOFF
            | R_X86_64_CODE_6_GOTTPOFF
            | R_X86_64_CODE_4_GOTPC32_TLSDESC
            | R_X86_64_CODE_5_GOTPC32_TLSDESC
            | R_X86_64_CODE_6_GOTPC32_TLSDESC,
        )
        | (Architecture::Aarch64, R_AARCH64_TLSGD_ADR_PREL21..=R_AARCH64_TLSLE_LDST128_TPREL_LO12_NC) => {
            Some(About::Symbol)
        }
        _ => None,
    }
}

/// What a field of x86-64 says, and what it has to say for a variable at a place in the template.
pub(super) fn x86_64(image: &Image, site: &Site, variable: u64) -> Option<[u64; 2]> {
    let (start, bytes) = image.sections.get(&site.place)?;
    let field = bytes.get(site.offset as usize..)?;
    let storage = image.storage?;
    let int = || Some(i64::from(i32::from_le_bytes(*field.first_chunk()?)));
    let long = || Some(i64::from_le_bytes(*field.first_chunk()?));
    let own = variable.wrapping_add_signed(site.addend);
    let entry = |words: Words, variable: u64| {
        // Measured from behind the field.
        let address = (start + site.offset + 4).wrapping_add_signed(int()?);
        let (_, found) = image.variables.get(&address).filter(|(found, _)| *found == words)?;
        Some([*found, variable])
    };
    // The addend is what the field is before the next instruction.
    let through = |words| entry(words, own.wrapping_add(4));
    match site.kind {
        R_X86_64_TPOFF32 => Some([storage.at(int()?), own]),
        R_X86_64_TPOFF64 => Some([storage.at(long()?), own]),
        R_X86_64_DTPOFF32 => Some([storage.start.wrapping_add_signed(int()?), own]),
        R_X86_64_DTPOFF64 => Some([storage.start.wrapping_add_signed(long()?), own]),
        R_X86_64_TLSGD => through(Words::Pair),
        R_X86_64_TLSLD => entry(Words::Pair, storage.start),
        R_X86_64_GOTTPOFF | R_X86_64_CODE_4_GOTTPOFF | R_X86_64_CODE_5_GOTTPOFF | R_X86_64_CODE_6_GOTTPOFF => {
            through(Words::Offset)
        }
        R_X86_64_GOTPC32_TLSDESC
        | R_X86_64_CODE_4_GOTPC32_TLSDESC
        | R_X86_64_CODE_5_GOTPC32_TLSDESC
        | R_X86_64_CODE_6_GOTPC32_TLSDESC => through(Words::Descriptor),
        _ => None,
    }
}

/// As [`x86_64`]. Of instructions that know a part of an offset or address, only that.
pub(super) fn aarch64(image: &Image, site: &Site, variable: u64) -> Option<[u64; 2]> {
    let (start, bytes) = image.sections.get(&site.place)?;
    let word = u32::from_le_bytes(*bytes.get(site.offset as usize..)?.first_chunk()?);
    let variable = variable.wrapping_add_signed(site.addend);
    let storage = image.storage?;
    // From the thread pointer, and in the module.
    let (offset, inside) = (storage.offset_of(variable), variable.wrapping_sub(storage.start));
    let scaled = |offset: u64, scale: u32| Some([aarch64::immediate(word) << scale, offset & 0xfff]);
    let high = |offset: u64| Some([aarch64::immediate(word) << 12, offset & 0xff_f000]);
    let taken = |offset: u64, group: u32| {
        let immediate = u64::from(word >> 5 & 0xffff);
        // `movn` takes the complement.
        let found = if word >> 29 & 3 == 0 { !immediate & 0xffff } else { immediate };
        Some([found, offset >> (16 * group) & 0xffff])
    };
    // Entries for the variable, of which there may be several.
    let entry = |words: Words, found: u64, part: &dyn Fn(u64) -> u64| {
        let is_it = |held: &(Words, u64)| *held == (words, variable);
        let entries = image.variables.iter().filter(|(_, held)| is_it(held)).map(|(entry, _)| part(*entry));
        let mut entries = entries.collect::<Vec<_>>().into_iter();
        let other = *entries.as_slice().first()?;
        Some([found, entries.find(|expected| *expected == found).unwrap_or(other)])
    };
    let page = |words| entry(words, aarch64::page(word, start + site.offset), &|address| address & !0xfff);
    let in_page = |words, scale: u32| entry(words, aarch64::immediate(word) << scale, &|address| address & 0xfff);
    let near = |words, found: u64| entry(words, found, &|address| address);
    let place = start + site.offset;
    match site.kind {
        R_AARCH64_TLSLE_ADD_TPREL_HI12 => high(offset),
        R_AARCH64_TLSLE_ADD_TPREL_LO12 | R_AARCH64_TLSLE_ADD_TPREL_LO12_NC => scaled(offset, 0),
        R_AARCH64_TLSLE_LDST8_TPREL_LO12 | R_AARCH64_TLSLE_LDST8_TPREL_LO12_NC => scaled(offset, 0),
        R_AARCH64_TLSLE_LDST16_TPREL_LO12 | R_AARCH64_TLSLE_LDST16_TPREL_LO12_NC => scaled(offset, 1),
        R_AARCH64_TLSLE_LDST32_TPREL_LO12 | R_AARCH64_TLSLE_LDST32_TPREL_LO12_NC => scaled(offset, 2),
        R_AARCH64_TLSLE_LDST64_TPREL_LO12 | R_AARCH64_TLSLE_LDST64_TPREL_LO12_NC => scaled(offset, 3),
        R_AARCH64_TLSLE_LDST128_TPREL_LO12 | R_AARCH64_TLSLE_LDST128_TPREL_LO12_NC => scaled(offset, 4),
        R_AARCH64_TLSLE_MOVW_TPREL_G0 | R_AARCH64_TLSLE_MOVW_TPREL_G0_NC => taken(offset, 0),
        R_AARCH64_TLSLE_MOVW_TPREL_G1 | R_AARCH64_TLSLE_MOVW_TPREL_G1_NC => taken(offset, 1),
        R_AARCH64_TLSLE_MOVW_TPREL_G2 => taken(offset, 2),
        R_AARCH64_TLSLD_ADD_DTPREL_HI12 => high(inside),
        R_AARCH64_TLSLD_ADD_DTPREL_LO12 | R_AARCH64_TLSLD_ADD_DTPREL_LO12_NC => scaled(inside, 0),
        R_AARCH64_TLSLD_LDST32_DTPREL_LO12 | R_AARCH64_TLSLD_LDST32_DTPREL_LO12_NC => scaled(inside, 2),
        R_AARCH64_TLSLD_MOVW_DTPREL_G0 | R_AARCH64_TLSLD_MOVW_DTPREL_G0_NC => taken(inside, 0),
        R_AARCH64_TLSLD_ADR_PAGE21 => page(Words::Pair),
        R_AARCH64_TLSLD_ADD_LO12_NC => in_page(Words::Pair, 0),
        R_AARCH64_TLSLD_ADR_PREL21 | R_AARCH64_TLSGD_ADR_PREL21 => near(Words::Pair, aarch64::near(word, place)),
        R_AARCH64_TLSIE_LD_GOTTPREL_PREL19 => near(Words::Offset, aarch64::near_load(word, place)),
        R_AARCH64_TLSIE_ADR_GOTTPREL_PAGE21 => page(Words::Offset),
        R_AARCH64_TLSIE_LD64_GOTTPREL_LO12_NC => in_page(Words::Offset, 3),
        R_AARCH64_TLSGD_ADR_PAGE21 => page(Words::Pair),
        R_AARCH64_TLSGD_ADD_LO12_NC => in_page(Words::Pair, 0),
        R_AARCH64_TLSDESC_ADR_PAGE21 => page(Words::Descriptor),
        R_AARCH64_TLSDESC_LD64_LO12 => in_page(Words::Descriptor, 3),
        R_AARCH64_TLSDESC_ADD_LO12 => in_page(Words::Descriptor, 0),
        _ => None,
    }
}
