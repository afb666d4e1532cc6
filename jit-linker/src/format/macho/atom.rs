//! Atoms: the parts of a section that are linked or left out on their own, each a block.

use std::cell::{Cell, OnceCell};
use std::ops::Range;

use super::Reader;
use super::literal;
use super::section::Place;
use crate::format::{Parsed, eh_frame};
use crate::graph::{BlockId, Content, Definition, SectionId, Symbol, SymbolId};

/// The atoms of one section, which cover it.
#[derive(Debug)]
pub(super) struct Atoms {
    /// The section's address in the object.
    pub(super) address: u64,
    pub(super) size: u64,
    /// Where its content starts in the object, unless it is zeros.
    pub(super) start: Option<u32>,
    /// In ascending order of offset.
    list: Vec<Atom>,
    /// Made when it is needed: nobody looks for unwinding records.
    guide: OnceCell<Guide>,
    /// The atom that was found last.
    last: Cell<usize>,
}

#[derive(Debug)]
struct Atom {
    offset: u32,
    block: BlockId,
    /// The index of a symbol at the block's start that nobody else sees, or [`Atom::NO_ANCHOR`]: there are many atoms.
    anchor: u32,
}

impl Atom {
    /// More than a table of symbols can hold.
    const NO_ANCHOR: u32 = u32::MAX;

    const fn new(offset: u32, block: BlockId) -> Self {
        Self { offset, block, anchor: Self::NO_ANCHOR }
    }
}

/// Where to look for what is at an offset: a section's content is looked up in no order that could be guessed.
#[derive(Debug)]
struct Guide {
    /// Parts have this power of two of bytes: at most what an atom has on average.
    log2: u32,
    /// By part of the section, the atom that its first byte is in; and at the end the last atom.
    first: Vec<u32>,
}

impl Guide {
    fn new(list: &[Atom], size: u32) -> Self {
        let log2 = (size / list.len().max(1) as u32).checked_ilog2().unwrap_or(0);
        let parts = (u64::from(size) >> log2) as usize + 1;
        // First, by part, the last of the atoms that begin where it does or in the one before.
        let mut first = vec![0; parts + 1];
        for (index, atom) in list.iter().enumerate() {
            let begun = (u64::from(atom.offset) + (1 << log2) - 1) >> log2;
            first[(begun as usize).min(parts)] = index as u32;
        }
        let mut last = 0;
        for first in &mut first {
            last = last.max(*first);
            *first = last;
        }
        first[parts] = list.len().saturating_sub(1) as u32;
        Self { log2, first }
    }
}

/// How many atoms are looked at one by one.
const NEAR: usize = 8;

impl Atoms {
    fn new(place: &Place, list: Vec<Atom>) -> Self {
        let Place { address, size, start, .. } = *place;
        Self { address, size: size.into(), start, list, guide: OnceCell::new(), last: Cell::new(0) }
    }

    /// The atom that a byte of the section is in. An offset beyond the end belongs to the last.
    #[inline]
    fn at(&self, offset: u64) -> usize {
        let index = self.next_at(offset).unwrap_or_else(|| self.guided_to(offset));
        self.last.set(index);
        index
    }

    /// The atom behind the one that was found last, if it begins at an offset: records are in the order of their functions.
    #[inline]
    fn next_at(&self, offset: u64) -> Option<usize> {
        let next = self.last.get() + 1;
        (u64::from(self.list.get(next)?.offset) == offset).then_some(next)
    }

    #[inline]
    fn guided_to(&self, offset: u64) -> usize {
        // Its size is that of a section that fits.
        let Guide { log2, first } = self.guide.get_or_init(|| Guide::new(&self.list, self.size as u32));
        let part = (offset >> log2).min(first.len() as u64 - 2) as usize;
        let (index, end) = (first[part] as usize, first[part + 1] as usize);
        let after = &self.list[index + 1..=end];
        let is_before = |atom: &Atom| u64::from(atom.offset) <= offset;
        if after.len() <= NEAR {
            index + after.iter().take_while(|atom| is_before(atom)).count()
        } else {
            index + after.partition_point(is_before)
        }
    }

    pub(super) fn blocks(&self) -> impl Iterator<Item = BlockId> {
        self.list.iter().map(|atom| atom.block)
    }

    /// Has a symbol at the start of the atom that was found last stand for it, where only the place is known.
    pub(super) fn set_anchor(&mut self, symbol: SymbolId) {
        self.list[self.last.get()].anchor = symbol.0;
    }

    /// The block that a byte of the section is in, and the byte's offset there.
    pub(super) fn find(&self, offset: u64) -> (BlockId, u64) {
        let atom = &self.list[self.at(offset)];
        (atom.block, offset.saturating_sub(atom.offset.into()))
    }

    /// As [`find`](Self::find), with where the block's part of the section is.
    pub(super) fn find_range(&self, offset: u32) -> (BlockId, Range<u32>) {
        let range = |index: usize| {
            let end = self.list.get(index + 1).map_or(u32::MAX, |next| next.offset);
            self.list[index].offset..end
        };
        // Mostly it is in the next one.
        let mut index = (self.last.get() + 1).min(self.list.len() - 1);
        if range(index).contains(&offset) {
            self.last.set(index);
        } else {
            index = self.at(offset.into());
        }
        (self.list[index].block, range(index))
    }

    /// The symbol that stands for the atom that is at an offset, if there is one, and how far into the atom that is.
    #[inline]
    pub(super) fn anchor(&self, offset: i64) -> Option<(SymbolId, i64)> {
        let atom = &self.list[self.at(offset.max(0).cast_unsigned())];
        (atom.anchor != Atom::NO_ANCHOR).then(|| (SymbolId(atom.anchor), offset.wrapping_sub(atom.offset.into())))
    }
}

impl<'data> Reader<'data> {
    /// Takes a section apart at `cuts`, which are in ascending order, within it, and begin with 0.
    pub(super) fn add_atoms(&mut self, place: &Place, section: SectionId, cuts: &[u32]) -> Parsed<Atoms> {
        let end = |index: usize| cuts.get(index + 1).copied().unwrap_or(place.size);
        let parts = cuts.iter().enumerate().map(|(index, offset)| (*offset, end(index) - offset));
        if !place.is_literal {
            return self.add_parts(place, section, parts);
        }
        // Only few can be shorter, unless they are equal.
        let mut merger = literal::Merger::with_capacity(cuts.len().min(place.size as usize / 4));
        let mut list = Vec::with_capacity(cuts.len());
        for (offset, size) in parts {
            let align = place.align_at(offset);
            let bytes = self.bytes(place, offset, size);
            let block = merger.block(&mut self.graph, bytes, align, |graph| {
                let content = place.start.map_or(Content::Zero, |start| Content::Object { start: start + offset });
                graph.add_section_block(section, content, size.into(), align)
            });
            list.push(Atom::new(offset, block.map_err(|source| self.graph_error(source))?));
        }
        Ok(Atoms::new(place, list))
    }

    /// Adds a block for each part of a section: an offset, and a size.
    fn add_parts(
        &mut self,
        place: &Place,
        section: SectionId,
        parts: impl Iterator<Item = (u32, u32)> + Clone,
    ) -> Parsed<Atoms> {
        // The section's content is within the object, whose size fits 32 bits.
        let first = self.graph.add_section_parts(section, place.start, place.align, parts.clone());
        let first = first.map_err(|source| self.graph_error(source))?;
        let list = parts.zip(first..).map(|((offset, _), block)| Atom::new(offset, BlockId(block)));
        Ok(Atoms::new(place, list.collect()))
    }

    /// Takes `.eh_frame` apart: a block a record, so that those of functions that are left out are
    /// left out too, and the others follow each other without gaps.
    pub(super) fn add_records(&mut self, place: &Place, section: SectionId) -> Parsed<Atoms> {
        let records = eh_frame::records(self.bytes(place, 0, place.size)).map_err(|what| self.malformed(what))?;
        let place = &Place { align: 1, ..*place };
        let atoms = if records.is_empty() {
            self.add_parts(place, section, std::iter::once((0, 0)))?
        } else {
            self.add_parts(place, section, records.iter().map(|record| (record.start, record.size)))?
        };
        self.records.get_or_insert(records);
        Ok(atoms)
    }

    fn bytes(&self, place: &Place, offset: u32, size: u32) -> &'data [u8] {
        let Some(start) = place.start else { return &[] };
        let start = start as usize + offset as usize;
        self.data.get(start..start + size as usize).unwrap_or_default()
    }

    /// A symbol for what is at an offset of a section, and what has to be added to its address.
    pub(super) fn anonymous(&mut self, section: usize, offset: i64) -> Parsed<(SymbolId, i64)> {
        let atoms = self.atoms.get(section).and_then(Option::as_ref);
        let found = atoms.and_then(|atoms| atoms.anchor(offset)).or_else(|| self.add_anchor(section, offset));
        found.ok_or_else(|| {
            self.malformed(format!("a relocation refers to section {}, which is not in memory", section + 1))
        })
    }

    /// Adds the symbol for the atom of a section that was found last, for what is at an offset there.
    pub(super) fn add_anchor(&mut self, section: usize, offset: i64) -> Option<(SymbolId, i64)> {
        let atoms = self.atoms.get_mut(section)?.as_mut()?;
        let atom = &mut atoms.list[atoms.last.get()];
        let definition = Definition::Block { block: atom.block, offset: 0 };
        let symbol = self.graph.add_symbol(None, Symbol::new(definition));
        atom.anchor = symbol.0;
        Some((symbol, offset.wrapping_sub(atom.offset.into())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The atoms of a section of so many bytes, which begin at the offsets.
    fn atoms(offsets: &[u32], size: u32) -> Atoms {
        let place = Place { address: 0, size, start: None, align: 1, is_literal: false };
        Atoms::new(&place, offsets.iter().zip(0..).map(|(offset, block)| Atom::new(*offset, BlockId(block))).collect())
    }

    #[test]
    fn every_byte_is_found_in_its_atom_from_wherever_one_looked_before() {
        let together: Vec<u32> = (0..3 * NEAR as u32).chain([500, 1000, 1001, 1023]).collect();
        for offsets in [&[0][..], &[0, 1], &[0, 4, 8, 12, 1020], &together] {
            let atoms = atoms(offsets, 1024);
            let atom_of = |at: u64| offsets.iter().rposition(|offset| u64::from(*offset) <= at).unwrap();
            // A step that meets every offset, in no order; and those beyond the end, which the last atom has.
            for at in (0..1100).map(|index| index * 421 % 1100).chain([u64::MAX]) {
                let start = offsets[atom_of(at)];
                assert_eq!(atoms.find(at), (BlockId(atom_of(at) as u32), at - u64::from(start)), "{offsets:?} at {at}");
            }
            for at in (0..1024).chain((0..1024).rev()) {
                let index = atom_of(at.into());
                let end = offsets.get(index + 1).copied().unwrap_or(u32::MAX);
                let expected = (BlockId(index as u32), offsets[index]..end);
                assert_eq!(atoms.find_range(at), expected, "{offsets:?} at {at}");
            }
        }
    }

    #[test]
    fn a_section_without_bytes_has_an_atom_too() {
        assert_eq!(atoms(&[0], 0).find(0), (BlockId(0), 0));
    }

    #[test]
    fn a_section_of_4_gib_less_one_byte_is_guided_through() {
        let atoms = atoms(&[0, 7, u32::MAX - 1], u32::MAX);
        for (at, block) in [(0, 0), (6, 0), (7, 1), (u32::MAX - 2, 1), (u32::MAX - 1, 2)] {
            assert_eq!(atoms.find(at.into()).0, BlockId(block), "{at}");
        }
    }
}
