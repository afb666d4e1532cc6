//! Relocations, which become edges.

use object::LittleEndian;
use object::elf::{Rela64, SHT_CREL, SHT_REL, SHT_RELA, SectionHeader64};
use object::read::elf::SectionHeader;
use object::read::{SectionIndex, SymbolIndex};

use super::{Reader, aarch64, x86_64};
use crate::arch::{self, Architecture};
use crate::format::ParseError;
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
    pub(super) fn add_relocations(&mut self) -> Result<(), ParseError> {
        let tables = self.relocation_tables()?;
        for (section, table) in tables.iter().enumerate() {
            if let (Some(block), Some(table)) = (self.placed[section], table) {
                self.add_section_relocations(SectionIndex(section), block, table)?;
            }
        }
        for (section, id) in std::mem::take(&mut self.unwind_tables) {
            self.add_unwind_records(SectionIndex(section), id, tables[section].unwrap_or_default())?;
        }
        Ok(())
    }

    /// For each section that is in memory, its relocations.
    fn relocation_tables(&mut self) -> Result<Vec<Option<&'data [Rela64<LittleEndian>]>>, ParseError> {
        let mut tables = vec![None; self.sections.len()];
        let mut is_loaded: Vec<_> = self.placed.iter().map(Option::is_some).collect();
        for section in self.unwind_tables.keys() {
            is_loaded[*section] = true;
        }
        for header in self.sections.iter() {
            let target = header.sh_info.get(LittleEndian) as usize;
            let is_loaded = is_loaded.get(target).is_some_and(|is_loaded| *is_loaded);
            match header.sh_type.get(LittleEndian) {
                SHT_RELA if is_loaded => {}
                kind @ (SHT_REL | SHT_CREL) if is_loaded => {
                    return Err(self.malformed(format!("section {target} has relocations of type {kind}")));
                }
                _ => continue,
            }
            self.claim(header.sh_size.get(LittleEndian))?;
            if tables[target].replace(self.relocations(header)?).is_some() {
                return Err(self.malformed(format!("section {target} has two tables of relocations")));
            }
        }
        Ok(tables)
    }

    fn relocations(&self, header: &SectionHeader64<LittleEndian>) -> Result<&'data [Rela64<LittleEndian>], ParseError> {
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
    ) -> Result<(), ParseError> {
        self.graph.edges.reserve(relocations.len());
        for relocation in relocations {
            if let Some(edge) = self.edge_at(section, block, relocation, 0)? {
                self.graph.edges.push(edge);
            }
        }
        Ok(())
    }

    /// The edge of a relocation, if it has one, in a block that starts at an offset of the section.
    pub(super) fn edge_at(
        &mut self,
        section: SectionIndex,
        block: BlockId,
        relocation: &Rela64<LittleEndian>,
        start: u64,
    ) -> Result<Option<Edge>, ParseError> {
        let offset = relocation.r_offset.get(LittleEndian);
        let number = relocation.r_type(LittleEndian, false);
        let meaning = match self.graph.architecture() {
            Architecture::X86_64 => x86_64::meaning(number),
            Architecture::Aarch64 => aarch64::meaning(number),
        };
        let kind = match meaning {
            Meaning::Edge(kind) => self.kind_in(block, kind),
            Meaning::Nothing => return Ok(None),
            Meaning::Unsupported => {
                return Err(ParseError::UnsupportedRelocation {
                    object: self.graph.name().to_owned(),
                    section: String::from_utf8_lossy(self.section_name(section)?).into_owned(),
                    offset,
                    relocation: number,
                });
            }
        };
        let target = self.symbol(SymbolIndex(relocation.r_sym(LittleEndian, false) as usize))?;
        let size = self.graph.block(block).size;
        let offset = offset.checked_sub(start).and_then(|offset| u32::try_from(offset).ok());
        let Some(offset) = offset.filter(|offset| *offset < size) else {
            return Err(self.malformed(format!("a relocation is beyond the end of section {}", section.0)));
        };
        Ok(Some(Edge { block, offset, kind, target, addend: relocation.r_addend.get(LittleEndian) }))
    }

    /// An instruction can be rewritten, data can't.
    fn kind_in(&self, block: BlockId, kind: EdgeKind) -> EdgeKind {
        use arch::x86_64::EdgeKind::{GotDelta32, GotLoad32};
        match kind {
            EdgeKind::X86_64(GotLoad32) if self.graph.block(block).kind != SegmentKind::Code => {
                EdgeKind::X86_64(GotDelta32)
            }
            kind => kind,
        }
    }
}
