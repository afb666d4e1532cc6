//! Symbols.

use object::macho::*;
use object::read::macho::Nlist;
use object::{LittleEndian, SymbolIndex};

use super::section::is_note;
use super::{Reader, thread_local};
use crate::format::Parsed;
use crate::graph::{Definition, Linkage, Scope, Symbol, SymbolId, SymbolKind, TerminatedText};
use crate::memory::SegmentKind;

impl<'data> Reader<'data> {
    /// Adds what the object defines.
    pub(super) fn add_symbols(&mut self) -> Parsed<()> {
        self.symbol_ids = vec![None; self.symbols.len()];
        // What is referred to by its address alone has a symbol for it, unless it has one of its own: literals, and the
        // functions of records.
        let is_local = |symbol: &&Nlist64<LittleEndian>| symbol.is_definition() && symbol.n_type() & N_EXT == 0;
        let own = self.symbols.iter().filter(is_local).count() + self.records.as_ref().map_or(0, Vec::len);
        // A few of them are at one place, and a few records are of no function.
        let own = own - own / 16;
        self.graph.symbols.reserve_exact(self.symbols.len() + self.graph.blocks.len().saturating_sub(own));
        let mut indirect = Vec::new();
        for index in 0..self.symbols.len() {
            let index = SymbolIndex(index);
            let raw = self.raw_symbol(index)?;
            if raw.is_stab() {
                continue;
            }
            if raw.n_type() & N_TYPE == N_INDR {
                indirect.push(index);
                continue;
            }
            if let Some((definition, address)) = self.definition(index, raw)? {
                let id = self.add(index, raw, definition)?;
                self.graph.symbols[id.index()].address = address;
                self.symbol_ids[index.0] = Some(id);
                self.set_anchor(raw, id);
            }
        }
        self.add_indirect_symbols(&indirect)
    }

    /// Has a symbol that was just added stand for its atom, if it is at the start and nobody else sees it.
    fn set_anchor(&mut self, raw: &Nlist64<LittleEndian>, id: SymbolId) {
        let symbol = &self.graph.symbols[id.index()];
        if !symbol.is_named()
            && matches!(symbol.kind, SymbolKind::Function | SymbolKind::Data)
            && matches!(symbol.definition, Definition::Block { offset: 0, .. })
            && let Some(Some(atoms)) = self.atoms.get_mut(usize::from(raw.n_sect()).wrapping_sub(1))
        {
            atoms.set_anchor(id);
        }
    }

    /// The graph's symbol that a relocation refers to.
    #[inline]
    pub(super) fn symbol(&mut self, index: SymbolIndex) -> Parsed<SymbolId> {
        match self.symbol_ids.get(index.0) {
            Some(Some(id)) => Ok(*id),
            known => self.add_referenced(index, known.is_some()),
        }
    }

    pub(super) fn raw_symbol(&self, index: SymbolIndex) -> Parsed<&'data Nlist64<LittleEndian>> {
        self.symbols.symbol(index).map_err(|error| self.broken(error))
    }

    pub(super) fn symbol_name(&self, symbol: &Nlist64<LittleEndian>) -> Parsed<&'data [u8]> {
        let name = symbol.name(LittleEndian, self.symbols.strings()).map_err(|error| self.broken(error))?;
        self.budget.take_name(name).map_err(|what| self.malformed(what))?;
        Ok(name)
    }

    /// Where a symbol is defined; its address, where that is known. `None` if it is not defined
    /// in memory.
    fn definition(&mut self, index: SymbolIndex, symbol: &Nlist64<LittleEndian>) -> Parsed<Option<(Definition, u64)>> {
        let value = symbol.n_value(LittleEndian);
        match symbol.n_type() & N_TYPE {
            N_UNDF if is_common(symbol) => {
                let block = self.graph.add_zero_block(SegmentKind::Data, value, common_align(symbol));
                let block = block.map_err(|source| self.graph_error(source))?;
                return Ok(Some((Definition::Block { block, offset: 0 }, 0)));
            }
            N_UNDF => return Ok(None),
            N_ABS => return Ok(Some((Definition::Absolute, value))),
            N_SECT => {}
            kind => return Err(self.malformed(format!("symbol {} is of the unknown type {kind:#x}", index.0))),
        }
        let Some((section, offset)) = self.offset_in_section(symbol) else {
            let section = symbol.n_sect();
            return Err(self.malformed(format!("symbol {} is not within section {section}, which it is in", index.0)));
        };
        let Some(atoms) = &self.atoms[section] else { return Ok(None) };
        if self.options.all_sections && is_note(self.sections[section]) {
            return Ok(Some((Definition::Absolute, offset.into())));
        }
        let (block, offset) = atoms.find(offset.into());
        // It is at most the section's size, which fits.
        Ok(Some((Definition::Block { block, offset: offset as u32 }, 0)))
    }

    pub(super) fn add(
        &mut self,
        index: SymbolIndex,
        raw: &'data Nlist64<LittleEndian>,
        definition: Definition,
    ) -> Parsed<SymbolId> {
        let label = self.symbol_name(raw)?;
        let flags = raw.n_desc(LittleEndian);
        let is_undefined = definition == Definition::External;
        if let Definition::Block { block, .. } = definition
            && flags & N_NO_DEAD_STRIP != 0
        {
            self.graph.keep(block);
        }
        let is_local = raw.n_type() & N_EXT == 0 && !is_undefined;
        let linkage = match definition {
            Definition::External if flags & N_WEAK_REF != 0 => Linkage::Weak,
            Definition::External => Linkage::Strong,
            _ if is_common(raw) => Linkage::Common,
            _ if flags & N_WEAK_DEF != 0 => Linkage::Weak,
            _ => Linkage::Strong,
        };
        let scope = match raw.n_type() & N_PEXT {
            _ if is_local => Scope::Local,
            0 if is_undefined || !label.starts_with(b"l") => Scope::Default,
            // Linker-private names are for the objects of one component, as private externals are.
            _ => Scope::Hidden,
        };
        let kind = match definition {
            _ if flags & N_SYMBOL_RESOLVER != 0 && !is_undefined && !is_common(raw) => SymbolKind::Resolver,
            Definition::Block { .. } if self.is_in_descriptors(raw) => SymbolKind::ThreadLocalDescriptor,
            Definition::Block { block, .. } if self.graph.block(block).kind == SegmentKind::Code => {
                SymbolKind::Function
            }
            Definition::Block { .. } => SymbolKind::Data,
            _ => SymbolKind::Unspecified,
        };
        let size = if is_common(raw) { u32::try_from(raw.n_value(LittleEndian)).unwrap_or(u32::MAX) } else { 0 };
        let name = if is_local { None } else { Some(self.intern(label, index)?) };
        let label = if is_local { self.text(label).into() } else { TerminatedText::EMPTY };
        Ok(self.graph.add_symbol(name, Symbol { linkage, scope, kind, size, ..Symbol::labelled(definition, label) }))
    }

    /// Adds a symbol that only a reference makes worth it.
    #[cold]
    fn add_referenced(&mut self, index: SymbolIndex, is_there: bool) -> Parsed<SymbolId> {
        if !is_there {
            return Err(self.malformed(format!("a relocation refers to symbol {}, which is not there", index.0)));
        }
        let raw = self.raw_symbol(index)?;
        if raw.is_stab() || !raw.is_undefined() {
            return Err(self.malformed(format!("a relocation refers to symbol {}, which is not in memory", index.0)));
        }
        let name = self.symbol_name(raw)?;
        let id = match self.bound(name)? {
            _ if name == thread_local::BOOTSTRAP => self.thunk()?,
            Some((section, end)) => {
                let label = self.text(name).into();
                let definition = Definition::SectionBound { section, end };
                self.graph.add_symbol(None, Symbol::labelled(definition, label))
            }
            None => self.add(index, raw, Definition::External)?,
        };
        self.symbol_ids[index.0] = Some(id);
        Ok(id)
    }
}

/// A variable without an initial value, whose value is its size.
fn is_common(symbol: &Nlist64<LittleEndian>) -> bool {
    symbol.is_undefined() && symbol.n_type() & N_EXT != 0 && symbol.n_value(LittleEndian) != 0
}

/// The alignment is among the flags; where it is not, it is that of the size, up to 16 bytes.
fn common_align(symbol: &Nlist64<LittleEndian>) -> u64 {
    match symbol.n_desc(LittleEndian) >> 8 & 0xf {
        0 => symbol.n_value(LittleEndian).min(16).next_power_of_two(),
        exponent => 1 << exponent,
    }
}
