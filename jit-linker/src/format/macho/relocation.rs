//! Relocations, which become edges.
//!
//! Mach-O stores addends in the fields. A relocation names a symbol, or only a section: then the
//! field leads to an address in the object, and what is there has to be found.

use std::ops::Range;

use object::macho::*;
use object::read::macho::{Nlist, Section as _};
use object::{LittleEndian, SymbolIndex};

use super::atom::Atoms;
use super::section::{full_name, is_eh_frame, is_note};
use super::{Reader, aarch64, x86_64};
use crate::arch::Architecture;
use crate::format::{ParseError, Parsed};
use crate::graph::{BlockId, Edge, EdgeKind, SymbolId, SymbolKind};

/// The field of a relocation.
#[derive(Clone, Copy, Debug)]
pub(super) struct Field<'data> {
    /// The relocated section's index.
    pub(super) section: usize,
    /// Its offset and its address in the object.
    pub(super) offset: u32,
    pub(super) address: u64,
    /// Where it is in the graph.
    pub(super) block: BlockId,
    pub(super) block_offset: u32,
    /// What the object has there.
    pub(super) bytes: &'data [u8],
}

impl Field<'_> {
    /// The addend that is stored there, sign-extended.
    pub(super) fn signed(&self) -> i64 {
        let unused = 64 - 8 * self.bytes.len() as u32;
        (self.unsigned() << unused).cast_signed() >> unused
    }

    /// The address that is stored there, zero-extended.
    pub(super) fn unsigned(&self) -> u64 {
        match *self.bytes {
            [a, b, c, d] => u32::from_le_bytes([a, b, c, d]).into(),
            _ => self.bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte)),
        }
    }

    pub(super) fn edge(&self, kind: EdgeKind, target: SymbolId, addend: i64) -> Edge {
        Edge { block: self.block, offset: self.block_offset, kind, target, addend }
    }
}

/// What stands in a field for the difference of two addresses.
pub(super) struct DifferenceKinds {
    /// The distance from the field to a symbol.
    pub(super) delta: EdgeKind,
    /// The distance from a symbol to the field.
    pub(super) negative: EdgeKind,
    /// Makes the distance from the field one from a symbol.
    pub(super) subtract: EdgeKind,
}

impl<'data> Reader<'data> {
    pub(super) fn add_relocations(&mut self) -> Parsed<()> {
        let loaded = self.sections.iter().zip(&self.atoms).filter(|(_, atoms)| atoms.is_some());
        let relocations: usize = loaded.map(|(header, _)| header.nreloc(LittleEndian) as usize).sum();
        // As many as there can be in the object; and a record of unwinding has two without relocations, or is made anew.
        let unwinding = 2 * self.records.as_ref().map_or(0, Vec::len) + self.compact_edges();
        let mut edges = Vec::with_capacity(relocations.min(self.data.len() / 8) + unwinding);
        for section in 0..self.sections.len() {
            if self.atoms[section].is_none() {
                continue;
            }
            if is_note(self.sections[section]) {
                self.add_note_relocations(section);
                continue;
            }
            let first = edges.len();
            self.add_section_relocations(section, &mut edges)?;
            self.add_indirect_pointers(section, &mut edges, first)?;
            if self.sections[section].section_type(LittleEndian) == S_INIT_FUNC_OFFSETS {
                let offsets = edges.split_off(first);
                self.replace_initializer_offsets(section, offsets, &mut edges)?;
            }
            if is_eh_frame(self.sections[section]) {
                self.record_edges = first..edges.len();
            }
        }
        let described = self.add_unwind_edges(&mut edges)?;
        self.add_compact_unwind(&described, &mut edges)?;
        // Those of blocks that were made on the way.
        edges.append(&mut self.graph.edges);
        // The parts of a difference stay in their order.
        let mut before = 0;
        let is_sorted = edges.iter().map(place).fold(true, |is_sorted, place| {
            let follows = std::mem::replace(&mut before, place) <= place;
            is_sorted & follows
        });
        if !is_sorted {
            edges.sort_by_key(place);
        }
        self.graph.edges = edges;
        Ok(())
    }

    /// Adds those that are understood: the others leave what is stored there.
    fn add_note_relocations(&mut self, section: usize) {
        let mut edges = Vec::new();
        _ = self.add_section_relocations(section, &mut edges);
        self.graph.note_edges.append(&mut edges);
    }

    fn add_section_relocations(&mut self, section: usize, edges: &mut Vec<Edge>) -> Parsed<()> {
        let header = self.sections[section];
        self.claim_relocations(header)?;
        let relocations = header.relocations(LittleEndian, self.data).map_err(|error| self.broken(error))?;
        let is_variables = header.section_type(LittleEndian) == S_THREAD_LOCAL_VARIABLES;
        let subtractor = subtractor(self.graph.architecture());
        let mut fields = Fields::of(self, section);
        let mut relocations = Ascending::new(relocations, self.graph.architecture());
        loop {
            self.add_plain_edges(&mut fields, &mut relocations, edges);
            let Some((part, relocation)) = relocations.next() else { return Ok(()) };
            let first = edges.len();
            let relocation = relocation.info(LittleEndian);
            if let Some(part) = part {
                self.add_pair(&mut fields, part.info(LittleEndian), relocation, edges)?;
            } else if relocation.r_type == subtractor {
                return Err(self.stray(section, relocation, LONE_SUBTRAHEND));
            } else {
                match self.graph.architecture() {
                    Architecture::X86_64 => self.add_x86_64(&mut fields, relocation, edges)?,
                    Architecture::Aarch64 => self.add_aarch64(&mut fields, None, relocation, edges)?,
                }
            }
            if is_variables {
                self.complete_descriptor(edges, first)?;
            }
        }
    }

    /// Adds the edges of the relocations that come next, as long as they are plain.
    #[inline(never)]
    fn add_plain_edges(
        &mut self,
        fields: &mut Fields<'data>,
        relocations: &mut Ascending<'data>,
        edges: &mut Vec<Edge>,
    ) {
        if self.graph.architecture() == Architecture::X86_64 {
            // What is relative to its place is no part of another, and has none.
            let (rest, first) = (relocations.rest, edges.len());
            if relocations.is_descending {
                self.add_plain_x86_64(fields, rest.iter().rev(), edges);
                relocations.rest = &rest[..rest.len() - (edges.len() - first)];
            } else {
                self.add_plain_x86_64(fields, rest.iter(), edges);
                relocations.rest = &rest[edges.len() - first..];
            }
            return;
        }
        let mut ahead = relocations.clone();
        loop {
            let rest = ahead.rest;
            if let Some((None, relocation)) = ahead.next()
                && let Some(edge) = self.plain_aarch64(fields, relocation)
            {
                edges.push(edge);
            } else {
                relocations.rest = rest;
                return;
            }
        }
    }

    #[inline]
    fn add_plain_x86_64<'a>(
        &mut self,
        fields: &mut Fields<'data>,
        relocations: impl Iterator<Item = &'a Relocation<LittleEndian>>,
        edges: &mut Vec<Edge>,
    ) {
        let bytes = fields.bytes;
        for relocation in relocations {
            let Some(edge) = self.plain_x86_64(fields, bytes, relocation) else { return };
            edges.push(edge);
        }
    }

    /// The edge of what nearly all relocations of code are: an instruction's field of 32 bits. The others, and what may be
    /// wrong with any, are left to those below.
    #[inline(always)]
    fn plain_x86_64(
        &mut self,
        fields: &mut Fields<'data>,
        bytes: &[u8],
        relocation: &Relocation<LittleEndian>,
    ) -> Option<Edge> {
        let (kind, behind) = x86_64::plain_meaning(relocation)?;
        let offset = relocation.r_word0.get(LittleEndian);
        let value = i64::from(i32::from_le_bytes(*bytes.get(offset as usize..)?.first_chunk()?));
        let (target, addend) = if x86_64::is_extern(relocation) {
            (self.known(relocation)?, value - 4)
        } else {
            let section = (number(relocation) as usize).wrapping_sub(1);
            let atoms = self.atoms.get(section)?.as_ref()?;
            let address = fields.address.wrapping_add(offset.into()).wrapping_add_signed(value + behind + 4);
            let at = address.wrapping_sub(atoms.address).cast_signed();
            let (target, addend) = match atoms.anchor(at) {
                Some(found) => found,
                None => self.add_anchor(section, at)?,
            };
            (target, addend.wrapping_sub(behind + 4))
        };
        let (block, start) = fields.place(&self.atoms, offset);
        Some(Edge { block, offset: offset - start, kind: EdgeKind::X86_64(kind), target, addend })
    }

    #[inline]
    fn plain_aarch64(&mut self, fields: &mut Fields<'data>, relocation: &Relocation<LittleEndian>) -> Option<Edge> {
        let info = relocation.info(LittleEndian);
        let offset = info.r_address;
        let bytes: &[u8; 4] = fields.bytes.get(offset as usize..)?.first_chunk()?;
        let is_plain = matches!(
            info.r_type,
            ARM64_RELOC_BRANCH26
                | ARM64_RELOC_PAGE21
                | ARM64_RELOC_PAGEOFF12
                | ARM64_RELOC_GOT_LOAD_PAGE21
                | ARM64_RELOC_GOT_LOAD_PAGEOFF12
        );
        if !is_plain || !info.r_extern || info.r_length != 2 {
            return None;
        }
        let (kind, target) = (EdgeKind::Aarch64(aarch64::meaning(&info, bytes)?), self.known(relocation)?);
        let (block, start) = fields.place(&self.atoms, offset);
        Some(Edge { block, offset: offset - start, kind, target, addend: 0 })
    }

    /// The symbol that a relocation names, if the graph has it already.
    #[inline]
    fn known(&self, relocation: &Relocation<LittleEndian>) -> Option<SymbolId> {
        self.symbol_ids.get(number(relocation) as usize).copied().flatten()
    }

    /// A relocation and the part of it that comes before: a subtrahend, or an addend.
    fn add_pair(
        &mut self,
        fields: &mut Fields<'data>,
        part: RelocationInfo,
        relocation: RelocationInfo,
        edges: &mut Vec<Edge>,
    ) -> Parsed<()> {
        let architecture = self.graph.architecture();
        if part.r_type == subtractor(architecture) {
            return self.add_difference(fields, part, relocation, edges);
        }
        let takes_addend =
            matches!(relocation.r_type, ARM64_RELOC_BRANCH26 | ARM64_RELOC_PAGE21 | ARM64_RELOC_PAGEOFF12);
        if !takes_addend || relocation.r_address != part.r_address {
            return Err(self.stray(fields.section, part, LONE_ADDEND));
        }
        // 24 bits, signed.
        let addend = i64::from((part.r_symbolnum << 8).cast_signed() >> 8);
        self.add_aarch64(fields, Some(addend), relocation, edges)
    }

    #[inline]
    fn add_x86_64(
        &mut self,
        fields: &mut Fields<'data>,
        relocation: RelocationInfo,
        edges: &mut Vec<Edge>,
    ) -> Parsed<()> {
        let field = self.field(fields, relocation)?;
        let Some((kind, behind)) = x86_64::meaning(&relocation) else {
            return Err(self.unsupported_relocation(&field, relocation));
        };
        let (target, addend) = match (relocation.r_extern, relocation.r_pcrel) {
            // The place is the end of the field.
            (true, true) => (self.extern_target(relocation)?, field.signed() - field.bytes.len() as i64),
            (true, false) => (self.extern_target(relocation)?, field.signed()),
            (false, false) if relocation.r_symbolnum == R_ABS.into() => return Ok(()),
            (false, false) => self.target_at(relocation, field.unsigned())?,
            (false, true) => {
                // The place is the end of the instruction.
                let length = field.bytes.len() as i64 + behind;
                let address = field.address.wrapping_add_signed(field.signed().wrapping_add(length));
                let (target, addend) = self.target_at(relocation, address)?;
                (target, addend.wrapping_sub(length))
            }
        };
        if relocation.r_type == X86_64_RELOC_TLV {
            self.is_descriptor(target);
        }
        edges.push(field.edge(EdgeKind::X86_64(kind), target, addend));
        Ok(())
    }

    fn add_aarch64(
        &mut self,
        fields: &mut Fields<'data>,
        addend: Option<i64>,
        relocation: RelocationInfo,
        edges: &mut Vec<Edge>,
    ) -> Parsed<()> {
        if relocation.r_type == ARM64_RELOC_ADDEND {
            return Err(self.stray(fields.section, relocation, LONE_ADDEND));
        }
        let field = self.field(fields, relocation)?;
        if relocation.r_type == ARM64_RELOC_AUTHENTICATED_POINTER {
            return Err(Box::new(ParseError::AuthenticatedPointer {
                object: self.graph.name().to_owned(),
                section: full_name(self.sections[field.section]),
                offset: field.offset.into(),
            }));
        }
        let Some(kind) = aarch64::meaning(&relocation, field.bytes) else {
            return Err(self.unsupported_relocation(&field, relocation));
        };
        let is_pointer = relocation.r_type == ARM64_RELOC_UNSIGNED;
        let (target, addend) = match (relocation.r_extern, is_pointer) {
            (true, true) => (self.extern_target(relocation)?, field.signed()),
            (true, false) => (self.extern_target(relocation)?, addend.unwrap_or(0)),
            (false, true) if relocation.r_symbolnum == R_ABS.into() => return Ok(()),
            (false, true) => self.target_at(relocation, field.unsigned())?,
            // An instruction has no room for an address: the section's start is meant.
            (false, false) => {
                let section = self.section_index(relocation)?;
                self.anonymous(section, addend.unwrap_or(0))?
            }
        };
        if matches!(relocation.r_type, ARM64_RELOC_TLVP_LOAD_PAGE21 | ARM64_RELOC_TLVP_LOAD_PAGEOFF12) {
            self.is_descriptor(target);
        }
        edges.push(field.edge(EdgeKind::Aarch64(kind), target, addend));
        Ok(())
    }

    /// The address of one symbol less that of another, plus what the field holds.
    fn add_difference(
        &mut self,
        fields: &mut Fields<'data>,
        subtrahend: RelocationInfo,
        minuend: RelocationInfo,
        edges: &mut Vec<Edge>,
    ) -> Parsed<()> {
        // Both architectures number it alike.
        let belongs = minuend.r_type == X86_64_RELOC_UNSIGNED
            && minuend.r_address == subtrahend.r_address
            && minuend.r_length == subtrahend.r_length
            && !minuend.r_pcrel;
        if !belongs {
            return Err(self.stray(fields.section, subtrahend, LONE_SUBTRAHEND));
        }
        let field = self.field(fields, subtrahend)?;
        let kinds = match self.graph.architecture() {
            Architecture::X86_64 => x86_64::difference(subtrahend.r_length),
            Architecture::Aarch64 => aarch64::difference(subtrahend.r_length),
        };
        let Some(kinds) = kinds.filter(|_| !subtrahend.r_pcrel) else {
            return Err(self.unsupported_relocation(&field, subtrahend));
        };
        // The field has the address in the object of what is not a symbol, added or subtracted.
        let value = field.signed();
        let (from, to, addend) = match (subtrahend.r_extern, minuend.r_extern) {
            (true, true) => (self.extern_target(subtrahend)?, self.extern_target(minuend)?, value),
            (true, false) => {
                let (to, addend) = self.target_at(minuend, value.cast_unsigned())?;
                (self.extern_target(subtrahend)?, to, addend)
            }
            (false, true) => {
                let (from, addend) = self.target_at(subtrahend, value.wrapping_neg().cast_unsigned())?;
                (from, self.extern_target(minuend)?, addend.wrapping_neg())
            }
            // Only the difference is known, so both sections have to stay as they are.
            (false, false) => {
                let (from, to) = (self.section_index(subtrahend)?, self.section_index(minuend)?);
                let start = |section: usize| self.atoms[section].as_ref().map_or(0, |atoms| atoms.address);
                let addend = value.wrapping_sub_unsigned(start(to)).wrapping_add_unsigned(start(from));
                (self.anonymous(from, 0)?.0, self.anonymous(to, 0)?.0, addend)
            }
        };
        let place = i64::from(field.block_offset);
        if let Some(offset) = self.offset_from_record(&field, subtrahend) {
            edges.push(field.edge(kinds.delta, to, addend.wrapping_add(place).wrapping_sub(offset)));
        } else if let Some(offset) = self.offset_in(from, field.block) {
            edges.push(field.edge(kinds.delta, to, addend.wrapping_add(place).wrapping_sub(offset)));
        } else if let Some(offset) = self.offset_in(to, field.block) {
            edges.push(field.edge(kinds.negative, from, addend.wrapping_add(offset).wrapping_sub(place)));
        } else {
            edges.push(field.edge(kinds.delta, to, addend));
            edges.push(field.edge(kinds.subtract, from, 0));
        }
        Ok(())
    }

    /// The field of a relocation.
    #[inline]
    fn field(&self, fields: &mut Fields<'data>, relocation: RelocationInfo) -> Parsed<Field<'data>> {
        let (section, offset) = (fields.section, relocation.r_address);
        let start = offset as usize;
        let Some(bytes) = fields.bytes.get(start..start + (1 << relocation.r_length)) else {
            return Err(self.no_field(section, relocation));
        };
        let address = fields.address + u64::from(offset);
        let (block, start) = fields.place(&self.atoms, offset);
        Ok(Field { section, offset, address, block, block_offset: offset.wrapping_sub(start), bytes })
    }

    #[cold]
    fn no_field(&self, section: usize, relocation: RelocationInfo) -> Box<ParseError> {
        let what = match &self.atoms[section] {
            None => "the section is not in memory",
            Some(atoms) if atoms.start.is_none() => "the section is of zeros",
            Some(_) => "it is beyond the end of the section",
        };
        self.stray(section, relocation, what)
    }

    #[inline]
    pub(super) fn extern_target(&mut self, relocation: RelocationInfo) -> Parsed<SymbolId> {
        self.symbol(SymbolIndex(relocation.r_symbolnum as usize))
    }

    /// Notes that code takes a symbol for the descriptor of a thread-local variable: it can be no other.
    fn is_descriptor(&mut self, symbol: SymbolId) {
        self.graph.symbols[symbol.index()].kind = SymbolKind::ThreadLocalDescriptor;
    }

    #[inline]
    pub(super) fn section_index(&self, relocation: RelocationInfo) -> Parsed<usize> {
        let number = relocation.r_symbolnum as usize;
        number
            .checked_sub(1)
            .filter(|index| *index < self.sections.len())
            .ok_or_else(|| self.malformed(format!("a relocation refers to section {number}, which is not there")))
    }

    /// What is at an address in the object, in the section that a relocation names.
    pub(super) fn target_at(&mut self, relocation: RelocationInfo, address: u64) -> Parsed<(SymbolId, i64)> {
        let section = self.section_index(relocation)?;
        let start = self.atoms[section].as_ref().map_or(0, |atoms| atoms.address);
        self.anonymous(section, address.wrapping_sub(start).cast_signed())
    }

    /// In unwinding records differences are counted from a symbol at the start of them all. Records
    /// move, so it is its offset from the start of the field's own that counts.
    fn offset_from_record(&self, field: &Field<'_>, subtrahend: RelocationInfo) -> Option<i64> {
        if !subtrahend.r_extern || !is_eh_frame(self.sections[field.section]) {
            return None;
        }
        let symbol = self.symbols.symbol(SymbolIndex(subtrahend.r_symbolnum as usize)).ok()?;
        let is_here = symbol.is_definition() && usize::from(symbol.n_sect()) == field.section + 1;
        let start = field.address - u64::from(field.block_offset);
        is_here.then(|| symbol.n_value(LittleEndian).wrapping_sub(start).cast_signed())
    }

    /// A symbol's offset in a block, if it is there.
    fn offset_in(&self, symbol: SymbolId, block: BlockId) -> Option<i64> {
        match self.graph.symbol(symbol).definition {
            crate::graph::Definition::Block { block: its, offset } if its == block => Some(offset.into()),
            _ => None,
        }
    }

    #[cold]
    fn stray(&self, section: usize, relocation: RelocationInfo, what: &str) -> Box<ParseError> {
        let section = full_name(self.sections[section]);
        self.malformed(format!("relocation at {section}+{:#x}: {what}", relocation.r_address))
    }

    #[cold]
    fn unsupported_relocation(&self, field: &Field<'_>, relocation: RelocationInfo) -> Box<ParseError> {
        Box::new(ParseError::UnsupportedRelocation {
            object: self.graph.name().to_owned(),
            section: full_name(self.sections[field.section]),
            offset: field.offset.into(),
            relocation: relocation.r_type.into(),
        })
    }
}

const LONE_SUBTRAHEND: &str = "a subtrahend is not followed by its minuend";
const LONE_ADDEND: &str = "an addend is not followed by what it is for";

/// The number of a relocation's symbol, or section.
fn number(relocation: &Relocation<LittleEndian>) -> u32 {
    relocation.r_word1.get(LittleEndian) & 0x00ff_ffff
}

/// By block, and by offset there.
#[inline]
fn place(edge: &Edge) -> u64 {
    u64::from(edge.block.0) << 32 | u64::from(edge.offset)
}

fn subtractor(architecture: Architecture) -> u8 {
    match architecture {
        Architecture::X86_64 => X86_64_RELOC_SUBTRACTOR,
        Architecture::Aarch64 => ARM64_RELOC_SUBTRACTOR,
    }
}

/// Where the fields of a section are, asked for in about ascending order.
struct Fields<'data> {
    section: usize,
    /// The section's address in the object.
    address: u64,
    bytes: &'data [u8],
    /// The atom of the last field: its range in the section, and its block.
    atom: Range<u32>,
    block: BlockId,
}

impl<'data> Fields<'data> {
    fn of(reader: &Reader<'data>, section: usize) -> Self {
        let (address, bytes) = match &reader.atoms[section] {
            Some(atoms) => {
                let start = atoms.start.map(|start| start as usize);
                let bytes = start.and_then(|start| reader.data.get(start..start + atoms.size as usize));
                (atoms.address, bytes.unwrap_or_default())
            }
            None => (0, Default::default()),
        };
        Self { section, address, bytes, atom: 0..0, block: BlockId::new(0) }
    }

    /// The block that an offset of the section is in, and where that starts.
    #[inline]
    fn place(&mut self, atoms: &[Option<Atoms>], offset: u32) -> (BlockId, u32) {
        if !self.atom.contains(&offset) {
            self.enter(atoms, offset);
        }
        (self.block, self.atom.start)
    }

    #[inline(never)]
    fn enter(&mut self, atoms: &[Option<Atoms>], offset: u32) {
        if let Some(Some(atoms)) = atoms.get(self.section) {
            (self.block, self.atom) = atoms.find_range(offset);
        }
    }
}

/// A section's relocations in ascending order of address, if they are in any: assemblers list them from its end. Each
/// comes with the one before it in the list, if that is a part of it: a subtrahend or an addend.
#[derive(Clone)]
struct Ascending<'data> {
    rest: &'data [Relocation<LittleEndian>],
    is_descending: bool,
    architecture: Architecture,
}

impl<'data> Ascending<'data> {
    fn new(rest: &'data [Relocation<LittleEndian>], architecture: Architecture) -> Self {
        let address = |relocation: &Relocation<LittleEndian>| relocation.r_word0.get(LittleEndian);
        let is_descending = rest.first().map(address) > rest.last().map(address);
        Self { rest, is_descending, architecture }
    }

    fn is_part(&self, relocation: &Relocation<LittleEndian>) -> bool {
        let kind = (relocation.r_word1.get(LittleEndian) >> 28) as u8;
        kind == subtractor(self.architecture)
            || self.architecture == Architecture::Aarch64 && kind == ARM64_RELOC_ADDEND
    }
}

impl<'data> Iterator for Ascending<'data> {
    type Item = (Option<&'data Relocation<LittleEndian>>, &'data Relocation<LittleEndian>);

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        if self.is_descending {
            let (last, rest) = self.rest.split_last()?;
            let (part, rest) = match rest.split_last() {
                Some((part, rest)) if self.is_part(part) => (Some(part), rest),
                _ => (None, rest),
            };
            self.rest = rest;
            return Some((part, last));
        }
        let (first, rest) = self.rest.split_first()?;
        let (found, rest) = match rest.split_first() {
            Some((second, rest)) if self.is_part(first) => ((Some(first), second), rest),
            _ => ((None, first), rest),
        };
        self.rest = rest;
        Some(found)
    }
}
