//! Relocations, which become edges.

use object::LittleEndian;
use object::elf::{Rela64, SHT_CREL, SHT_REL, SHT_RELA, SectionHeader64};
use object::read::elf::SectionHeader;
use object::read::{SectionIndex, SymbolIndex};

use super::{Reader, aarch64, x86_64};
use crate::arch::{self, Architecture};
use crate::format::{ParseError, Parsed};
use crate::graph::{BlockId, Edge, EdgeKind};
use crate::memory::SegmentKind;

/// What a relocation type means to the linker.
pub(super) enum Meaning {
    /// Something is stored.
    Edge(EdgeKind),
    /// Nothing has to be done.
    Nothing,
    /// We don't have it.
    Unsupported,
}

impl<'data> Reader<'data> {
    pub(super) fn add_relocations(&mut self) -> Parsed<()> {
        let tables = self.relocation_tables()?;
        let mut count = 0;
        let mut tables_of_blocks = Vec::with_capacity(self.graph.blocks.len());
        for (section, table) in tables.iter().enumerate() {
            let length = self.relocations_at(*table)?.len();
            count += length;
            if self.unwind_tables.contains_key(&section) {
                // A record of unwinding has about one relocation, and an edge to its CIE beside.
                count += length;
            } else if let Some(block) = self.placed[section].filter(|_| length > 0) {
                tables_of_blocks.push((block, section as u32));
            }
        }
        self.graph.reserve_edges(count);
        self.graph.bring_edges();
        // A note that is in memory after all comes after the others.
        tables_of_blocks.sort_by_key(|(block, _)| *block);
        for (block, section) in tables_of_blocks {
            let section = section as usize;
            let relocations = self.relocations_at(tables[section])?;
            if self.graph.is_note(block) {
                self.add_note_relocations(block, relocations);
            } else {
                self.add_section_relocations(SectionIndex(section), block, relocations)?;
            }
        }
        for (section, id) in std::mem::take(&mut self.unwind_tables) {
            self.add_unwind_records(SectionIndex(section), id, self.relocations_at(tables[section])?)?;
        }
        Ok(())
    }

    /// For each section that is in memory, the index of the section with its relocations; 0 if it has none. An object's
    /// size fits 32 bits, and so does the number of its sections.
    fn relocation_tables(&mut self) -> Parsed<Vec<u32>> {
        let mut tables = vec![0; self.sections.len()];
        for (index, header) in self.sections.iter().enumerate() {
            let target = header.sh_info.get(LittleEndian) as usize;
            let is_loaded =
                self.placed.get(target).is_some_and(Option::is_some) || self.unwind_tables.contains_key(&target);
            match header.sh_type.get(LittleEndian) {
                SHT_RELA if is_loaded => {}
                kind @ (SHT_REL | SHT_CREL) if is_loaded => {
                    return Err(self.malformed(format!("section {target} has relocations of type {kind}")));
                }
                _ => continue,
            }
            self.claim(header.sh_size.get(LittleEndian))?;
            if std::mem::replace(&mut tables[target], index as u32) != 0 {
                return Err(self.malformed(format!("section {target} has two tables of relocations")));
            }
        }
        Ok(tables)
    }

    /// The relocations that a section holds, of which 0 stands for none.
    fn relocations_at(&self, section: u32) -> Parsed<&'data [Rela64<LittleEndian>]> {
        if section == 0 {
            return Ok(&[]);
        }
        let header = self.sections.section(SectionIndex(section as usize)).map_err(|error| self.broken(error))?;
        self.relocations(header)
    }

    fn relocations(&self, header: &SectionHeader64<LittleEndian>) -> Parsed<&'data [Rela64<LittleEndian>]> {
        let table = header.rela(LittleEndian, self.data).map_err(|error| self.broken(error))?;
        let Some((relocations, symbols)) = table else { return Ok(&[]) };
        if !relocations.is_empty() && symbols != self.symbols.section() {
            return Err(self.malformed("relocations refer to another symbol table"));
        }
        Ok(relocations)
    }

    fn add_section_relocations(
        &mut self,
        section: SectionIndex,
        block: BlockId,
        relocations: &[Rela64<LittleEndian>],
    ) -> Parsed<()> {
        for relocation in relocations {
            if let Some(edge) = self.edge_at(section, block, relocation, 0)? {
                self.graph.edges.push(edge);
            }
        }
        Ok(())
    }

    /// Adds those that are understood and about what is defined here: the others leave what is stored there.
    fn add_note_relocations(&mut self, block: BlockId, relocations: &[Rela64<LittleEndian>]) {
        let size = self.graph.block(block).size;
        for relocation in relocations {
            let symbol = SymbolIndex(relocation.r_sym(LittleEndian, false) as usize);
            let offset = u32::try_from(relocation.r_offset.get(LittleEndian)).ok().filter(|offset| *offset < size);
            let addend = relocation.r_addend.get(LittleEndian);
            if let (Meaning::Edge(kind), Some(offset)) = (self.meaning(relocation), offset)
                && let Some(target) = self.own_symbol(symbol)
            {
                self.graph.note_edges.push(Edge { block, offset, kind, target, addend });
            }
        }
    }

    #[inline]
    fn meaning(&self, relocation: &Rela64<LittleEndian>) -> Meaning {
        let number = relocation.r_type(LittleEndian, false);
        match self.graph.architecture() {
            Architecture::X86_64 => x86_64::meaning(number),
            Architecture::Aarch64 => aarch64::meaning(number),
        }
    }

    /// The edge of a relocation, if it has one, in a block that starts at an offset of the section.
    // What it returns would go through memory, for each of the relocations.
    #[inline(always)]
    pub(super) fn edge_at(
        &mut self,
        section: SectionIndex,
        block: BlockId,
        relocation: &Rela64<LittleEndian>,
        start: u64,
    ) -> Parsed<Option<Edge>> {
        let offset = relocation.r_offset.get(LittleEndian);
        let kind = match self.meaning(relocation) {
            Meaning::Edge(kind) => self.kind_in(block, kind),
            Meaning::Nothing => return Ok(None),
            Meaning::Unsupported => return Err(self.unsupported_relocation(section, relocation)),
        };
        let target = self.symbol(SymbolIndex(relocation.r_sym(LittleEndian, false) as usize))?;
        let size = self.graph.block(block).size;
        let offset = offset.checked_sub(start).and_then(|offset| u32::try_from(offset).ok());
        let Some(offset) = offset.filter(|offset| *offset < size) else {
            return Err(self.malformed(format!("a relocation is beyond the end of section {}", section.0)));
        };
        Ok(Some(Edge { block, offset, kind, target, addend: relocation.r_addend.get(LittleEndian) }))
    }

    #[cold]
    fn unsupported_relocation(&self, section: SectionIndex, relocation: &Rela64<LittleEndian>) -> Box<ParseError> {
        let section = match self.section_name(section) {
            Ok(name) => String::from_utf8_lossy(name).into_owned(),
            Err(error) => return error,
        };
        Box::new(ParseError::UnsupportedRelocation {
            object: self.graph.name().to_owned(),
            section,
            offset: relocation.r_offset.get(LittleEndian),
            relocation: relocation.r_type(LittleEndian, false),
        })
    }

    /// An instruction can be rewritten, data can't.
    #[inline]
    fn kind_in(&self, block: BlockId, kind: EdgeKind) -> EdgeKind {
        use arch::x86_64::EdgeKind::{GotDelta32, GotLoad32, GotOperand32};
        match kind {
            EdgeKind::X86_64(GotLoad32 | GotOperand32) if self.graph.block(block).kind != SegmentKind::Code => {
                EdgeKind::X86_64(GotDelta32)
            }
            kind => kind,
        }
    }
}
