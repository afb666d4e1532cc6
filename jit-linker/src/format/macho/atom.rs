//! Atoms: the parts of a section that are linked or left out on their own, each a block.

use std::cell::Cell;
use std::ops::Range;

use super::Reader;
use super::literal;
use super::section::Place;
use crate::format::{Parsed, eh_frame};
use crate::graph::{BlockId, Content, Definition, GraphError, LinkGraph, SectionId, Symbol, SymbolId};

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
    /// The atom that was found last: often what is asked for next is in it, or near.
    last: Cell<usize>,
}

/// How many atoms are looked at one by one.
const NEAR: usize = 4;

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

impl Atoms {
    /// The atom that a byte of the section is in. An offset beyond the end belongs to the last.
    fn at(&self, offset: u64) -> usize {
        let index = self.at_from(self.last.get(), offset);
        self.last.set(index);
        index
    }

    /// As [`at`](Self::at), for whoever knows an atom that is near.
    fn at_from(&self, near: usize, offset: u64) -> usize {
        let is_before = |atom: &Atom| u64::from(atom.offset) <= offset;
        let (before, after) = self.list.split_at((near + 1).min(self.list.len()));
        if !before.last().is_some_and(is_before) {
            return before.partition_point(is_before).saturating_sub(1);
        }
        // The next ones first: most look for what is a little further on.
        let next = after.iter().take(NEAR).take_while(|atom| is_before(atom)).count();
        if next < NEAR {
            return before.len() - 1 + next;
        }
        before.len() - 1 + after.partition_point(is_before)
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

    /// As [`find`](Self::find), with where the block's part of the section is; `near` is an atom that is near.
    pub(super) fn find_range(&self, near: &mut usize, offset: u32) -> (BlockId, Range<u32>) {
        *near = self.at_from(*near, offset.into());
        let atom = &self.list[*near];
        let end = self.list.get(*near + 1).map_or(u32::MAX, |next| next.offset);
        (atom.block, atom.offset..end)
    }
}

impl<'data> Reader<'data> {
    /// Takes a section apart at `cuts`, which are in ascending order, within it, and begin with 0.
    pub(super) fn add_atoms(&mut self, place: &Place, section: SectionId, cuts: &[u32]) -> Parsed<Atoms> {
        // Only few can be shorter, unless they are equal.
        let literals = if place.is_literal { cuts.len().min(place.size as usize / 4) } else { 0 };
        let mut merger = literal::Merger::with_capacity(literals);
        let mut list = Vec::with_capacity(cuts.len());
        let ends = cuts.iter().skip(1).copied().chain([place.size]);
        for (offset, end) in cuts.iter().copied().zip(ends) {
            let size = end - offset;
            let add = |graph: &mut LinkGraph| add_atom(graph, place, section, offset, size);
            let block = if place.is_literal {
                let bytes = self.bytes(place, offset, size);
                merger.block(&mut self.graph, bytes, place.align_at(offset), add)
            } else {
                add(&mut self.graph)
            };
            let block = block.map_err(|source| self.graph_error(source))?;
            list.push(Atom::new(offset, block));
        }
        Ok(Atoms { address: place.address, size: place.size.into(), start: place.start, list, last: Cell::new(0) })
    }

    /// Takes `.eh_frame` apart: a block a record, so that those of functions that are left out are
    /// left out too, and the others follow each other without gaps.
    pub(super) fn add_records(&mut self, place: &Place, section: SectionId) -> Parsed<Atoms> {
        let records = eh_frame::records(self.bytes(place, 0, place.size)).map_err(|what| self.malformed(what))?;
        let place = &Place { align: 1, ..*place };
        let mut list = Vec::with_capacity(records.len().max(1));
        self.graph.blocks.reserve(records.len());
        let extents = records.iter().map(|record| (record.start, record.size));
        for (offset, size) in extents.chain(records.is_empty().then_some((0, 0))) {
            let block = add_atom(&mut self.graph, place, section, offset, size);
            let block = block.map_err(|source| self.graph_error(source))?;
            list.push(Atom::new(offset, block));
        }
        self.records.get_or_insert(records);
        Ok(Atoms { address: place.address, size: place.size.into(), start: place.start, list, last: Cell::new(0) })
    }

    fn bytes(&self, place: &Place, offset: u32, size: u32) -> &'data [u8] {
        let Some(start) = place.start else { return &[] };
        let start = start as usize + offset as usize;
        self.data.get(start..start + size as usize).unwrap_or_default()
    }

    /// A symbol for what is at an offset of a section, and what has to be added to its address.
    pub(super) fn anonymous(&mut self, section: usize, offset: i64) -> Parsed<(SymbolId, i64)> {
        let Some(Some(atoms)) = self.atoms.get_mut(section) else {
            return Err(
                self.malformed(format!("a relocation refers to section {}, which is not in memory", section + 1))
            );
        };
        let index = atoms.at(offset.max(0).cast_unsigned());
        let Atom { offset: start, block, anchor } = atoms.list[index];
        let symbol = match anchor {
            Atom::NO_ANCHOR => {
                let symbol = self.graph.add_symbol(Symbol::new(None, Definition::Block { block, offset: 0 }, 0));
                atoms.list[index].anchor = symbol.0;
                symbol
            }
            anchor => SymbolId(anchor),
        };
        Ok((symbol, offset.wrapping_sub(start.into())))
    }
}

fn add_atom(
    graph: &mut LinkGraph,
    place: &Place,
    section: SectionId,
    offset: u32,
    size: u32,
) -> Result<BlockId, GraphError> {
    let content = match place.start {
        // The section's content is within the object, whose size fits 32 bits.
        Some(start) => Content::Object { start: start + offset },
        None => Content::Zero,
    };
    let align = if place.is_literal { place.align_at(offset) } else { place.align };
    let block = graph.add_section_block(section, content, size.into(), align)?;
    if !place.is_literal {
        graph.blocks[block.index()].align_offset = offset & (align - 1) as u32;
    }
    Ok(block)
}
