//! Relocations, which become edges.
//!
//! Mach-O stores addends in the fields. A relocation names a symbol, or only a section: then the
//! field leads to an address in the object, and what is there has to be found.

use object::macho::*;
use object::read::macho::{Nlist, Section as _};
use object::{LittleEndian, SymbolIndex};

use super::section::{full_name, is_eh_frame};
use super::{Reader, aarch64, x86_64};
use crate::arch::Architecture;
use crate::format::ParseError;
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
    pub(super) fn add_relocations(&mut self) -> Result<(), ParseError> {
        let mut edges = Vec::new();
        for section in 0..self.sections.len() {
            if self.atoms[section].is_none() {
                continue;
            }
            let first = edges.len();
            self.add_section_relocations(section, &mut edges)?;
            self.add_indirect_pointers(section, &mut edges, first)?;
            if self.sections[section].section_type(LittleEndian) == S_INIT_FUNC_OFFSETS {
                let offsets = edges.split_off(first);
                self.replace_initializer_offsets(section, offsets, &mut edges)?;
            }
        }
        let described = self.add_unwind_edges(&mut edges)?;
        self.add_compact_unwind(&described, &mut edges)?;
        // The parts of a difference stay in their order.
        edges.sort_by_key(|edge| (edge.block, edge.offset));
        let mut own = std::mem::take(&mut self.graph.edges);
        // Blocks that were made on the way come behind all others.
        edges.append(&mut own);
        self.graph.edges = edges;
        Ok(())
    }

    fn add_section_relocations(&mut self, section: usize, edges: &mut Vec<Edge>) -> Result<(), ParseError> {
        let header = self.sections[section];
        let relocations = header.relocations(LittleEndian, self.data).map_err(|error| self.broken(error))?;
        let mut relocations = relocations.iter().map(|relocation| relocation.info(LittleEndian));
        edges.reserve(relocations.len());
        let start = edges.len();
        while let Some(relocation) = relocations.next() {
            let first = edges.len();
            match self.graph.architecture() {
                Architecture::X86_64 => self.add_x86_64(section, relocation, &mut relocations, edges)?,
                Architecture::Aarch64 => self.add_aarch64(section, relocation, &mut relocations, edges)?,
            }
            if header.section_type(LittleEndian) == S_THREAD_LOCAL_VARIABLES {
                self.complete_descriptor(edges, first)?;
            }
        }
        ascend(&mut edges[start..]);
        Ok(())
    }

    fn add_x86_64(
        &mut self,
        section: usize,
        relocation: RelocationInfo,
        rest: &mut impl Iterator<Item = RelocationInfo>,
        edges: &mut Vec<Edge>,
    ) -> Result<(), ParseError> {
        if relocation.r_type == X86_64_RELOC_SUBTRACTOR {
            let minuend = rest.next().filter(|next| next.r_type == X86_64_RELOC_UNSIGNED);
            return self.add_difference(section, relocation, minuend, x86_64::difference, edges);
        }
        let field = self.field(section, relocation)?;
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
        section: usize,
        relocation: RelocationInfo,
        rest: &mut impl Iterator<Item = RelocationInfo>,
        edges: &mut Vec<Edge>,
    ) -> Result<(), ParseError> {
        let (relocation, addend) = match relocation.r_type {
            ARM64_RELOC_SUBTRACTOR => {
                let minuend = rest.next().filter(|next| next.r_type == ARM64_RELOC_UNSIGNED);
                return self.add_difference(section, relocation, minuend, aarch64::difference, edges);
            }
            ARM64_RELOC_ADDEND => {
                let takes_addend = |next: &RelocationInfo| {
                    matches!(next.r_type, ARM64_RELOC_BRANCH26 | ARM64_RELOC_PAGE21 | ARM64_RELOC_PAGEOFF12)
                        && next.r_address == relocation.r_address
                };
                let Some(next) = rest.next().filter(takes_addend) else {
                    return Err(self.stray(section, relocation, "an addend is not followed by what it is for"));
                };
                // 24 bits, signed.
                (next, Some(i64::from((relocation.r_symbolnum << 8).cast_signed() >> 8)))
            }
            _ => (relocation, None),
        };
        let field = self.field(section, relocation)?;
        if relocation.r_type == ARM64_RELOC_AUTHENTICATED_POINTER {
            return Err(ParseError::AuthenticatedPointer {
                object: self.graph.name().to_owned(),
                section: full_name(self.sections[section]),
                offset: field.offset.into(),
            });
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
        section: usize,
        subtrahend: RelocationInfo,
        minuend: Option<RelocationInfo>,
        kinds: impl Fn(u8) -> Option<DifferenceKinds>,
        edges: &mut Vec<Edge>,
    ) -> Result<(), ParseError> {
        let belongs = |next: &RelocationInfo| {
            next.r_address == subtrahend.r_address && next.r_length == subtrahend.r_length && !next.r_pcrel
        };
        let Some(minuend) = minuend.filter(belongs) else {
            return Err(self.stray(section, subtrahend, "a subtrahend is not followed by its minuend"));
        };
        let field = self.field(section, subtrahend)?;
        let Some(kinds) = kinds(subtrahend.r_length).filter(|_| !subtrahend.r_pcrel) else {
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

    fn field(&self, section: usize, relocation: RelocationInfo) -> Result<Field<'data>, ParseError> {
        let offset = relocation.r_address;
        let size = 1usize << relocation.r_length;
        let Some(atoms) = &self.atoms[section] else {
            return Err(self.stray(section, relocation, "the section is not in memory"));
        };
        if u64::from(offset) + size as u64 > atoms.size {
            return Err(self.stray(section, relocation, "it is beyond the end of the section"));
        }
        let bytes = atoms.start.and_then(|start| {
            let start = start as usize + offset as usize;
            self.data.get(start..start + size)
        });
        let Some(bytes) = bytes else {
            return Err(self.stray(section, relocation, "the section is of zeros"));
        };
        let (block, block_offset) = atoms.find(offset.into());
        let address = atoms.address + u64::from(offset);
        // Offsets in a block are below its section's size.
        Ok(Field { section, offset, address, block, block_offset: block_offset as u32, bytes })
    }

    pub(super) fn extern_target(&mut self, relocation: RelocationInfo) -> Result<SymbolId, ParseError> {
        self.symbol(SymbolIndex(relocation.r_symbolnum as usize))
    }

    /// Notes that code takes a symbol for the descriptor of a thread-local variable: it can be no other.
    fn is_descriptor(&mut self, symbol: SymbolId) {
        self.graph.symbols[symbol.index()].kind = SymbolKind::ThreadLocalDescriptor;
    }

    fn section_index(&self, relocation: RelocationInfo) -> Result<usize, ParseError> {
        let number = relocation.r_symbolnum as usize;
        number
            .checked_sub(1)
            .filter(|index| *index < self.sections.len())
            .ok_or_else(|| self.malformed(format!("a relocation refers to section {number}, which is not there")))
    }

    /// What is at an address in the object, in the section that a relocation names.
    pub(super) fn target_at(
        &mut self,
        relocation: RelocationInfo,
        address: u64,
    ) -> Result<(SymbolId, i64), ParseError> {
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

    fn stray(&self, section: usize, relocation: RelocationInfo, what: &str) -> ParseError {
        let section = full_name(self.sections[section]);
        self.malformed(format!("relocation at {section}+{:#x}: {what}", relocation.r_address))
    }

    fn unsupported_relocation(&self, field: &Field<'_>, relocation: RelocationInfo) -> ParseError {
        ParseError::UnsupportedRelocation {
            object: self.graph.name().to_owned(),
            section: full_name(self.sections[field.section]),
            offset: field.offset.into(),
            relocation: relocation.r_type.into(),
        }
    }
}

/// Turns the edges of a section around, which assemblers list from its end: they are sorted by
/// place then, or nearly so. The parts of a difference stay in their order.
fn ascend(edges: &mut [Edge]) {
    let place = |edge: &Edge| (edge.block, edge.offset);
    if edges.first().map(place) <= edges.last().map(place) {
        return;
    }
    edges.reverse();
    for parts in edges.chunk_by_mut(|one, other| place(one) == place(other)) {
        parts.reverse();
    }
}
