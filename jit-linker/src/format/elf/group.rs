//! COMDAT groups.

use object::elf::{GRP_COMDAT, SHT_GROUP, STT_SECTION, SectionHeader64};
use object::read::elf::SectionHeader;
use object::{LittleEndian, SymbolIndex, U32};

use super::Reader;
use crate::SymbolName;
use crate::format::Parsed;
use crate::graph::{Comdat, Definition};

impl Reader<'_> {
    pub(super) fn add_groups(&mut self) -> Parsed<()> {
        let mut group_of_block = Vec::new();
        for header in self.sections.iter().filter(|header| header.sh_type.get(LittleEndian) == SHT_GROUP) {
            self.claim(header.sh_size.get(LittleEndian))?;
            let members: &[U32<LittleEndian>] =
                header.data_as_array(LittleEndian, self.data).map_err(|error| self.broken(error))?;
            let Some((flags, members)) = members.split_first() else {
                return Err(self.malformed("a group has no flags"));
            };
            if flags.get(LittleEndian) & GRP_COMDAT == 0 {
                continue;
            }
            let Some(signature) = self.signature(header)? else { continue };
            let mut blocks = Vec::new();
            group_of_block.resize(self.graph.blocks.len(), None);
            for member in members {
                let Some(placed) = self.placed.get(member.get(LittleEndian) as usize) else {
                    return Err(self.malformed("a group has a member that is not there"));
                };
                if let Some(block) = *placed {
                    group_of_block[block.index()] = Some(self.graph.comdats.len());
                    blocks.push(block);
                }
            }
            self.graph.comdats.push(Comdat { signature, blocks, symbols: Vec::new() });
        }
        if !self.graph.comdats.is_empty() {
            self.add_group_symbols(&group_of_block);
        }
        Ok(())
    }

    /// What makes groups one; `None` for a group that is like no other, because its symbol was stripped.
    fn signature(&self, header: &SectionHeader64<LittleEndian>) -> Parsed<Option<SymbolName>> {
        let index = SymbolIndex(header.sh_info.get(LittleEndian) as usize);
        if index.0 == 0 {
            return Ok(None);
        }
        let symbol = self.raw_symbol(index)?;
        let name = match self.symbol_name(symbol)? {
            b"" if symbol.st_type() == STT_SECTION => self.section_name(self.symbol_section(index, symbol))?,
            name => name,
        };
        self.intern(name, index).map(Some)
    }

    fn add_group_symbols(&mut self, group_of_block: &[Option<usize>]) {
        let mut found = Vec::new();
        for (id, symbol) in self.graph.symbols() {
            if let Definition::Block { block, .. } = symbol.definition
                && symbol.is_named()
                && let Some(Some(group)) = group_of_block.get(block.index())
            {
                found.push((*group, id));
            }
        }
        for (group, symbol) in found {
            self.graph.comdats[group].symbols.push(symbol);
        }
    }
}
