//! Indirect symbols: those that stand for another one, and pointers that stand for a symbol.

use object::macho::*;
use object::read::macho::{Nlist, Section as _};
use object::{LittleEndian, SymbolIndex};
use rustc_hash::FxHashMap;

use super::Reader;
use crate::arch::{Architecture, aarch64, x86_64};
use crate::format::Parsed;
use crate::graph::{Definition, Edge, EdgeKind, SymbolId};

/// What indirect symbols lead through.
#[derive(Default)]
struct Chains<'data> {
    by_name: FxHashMap<&'data [u8], SymbolIndex>,
    /// The names that chains end at, for every indirect symbol of a chain that was followed.
    ends: FxHashMap<SymbolIndex, &'data [u8]>,
}

impl<'data> Reader<'data> {
    /// Adds the symbols (`N_INDR`) that have an address only by another one's name.
    pub(super) fn add_indirect_symbols(&mut self, symbols: &[SymbolIndex]) -> Parsed<()> {
        if symbols.is_empty() {
            return Ok(());
        }
        let mut chains = Chains::default();
        for index in (0..self.symbols.len()).map(SymbolIndex) {
            let symbol = self.raw_symbol(index)?;
            if !symbol.is_stab() && (symbol.n_type() & N_EXT != 0 || symbol.is_definition()) {
                chains.by_name.insert(self.symbol_name(symbol)?, index);
            }
        }
        for index in symbols.iter().copied() {
            let id = self.add_indirect_symbol(index, &mut chains)?;
            self.symbol_ids[index.0] = Some(id);
        }
        Ok(())
    }

    fn add_indirect_symbol(&mut self, index: SymbolIndex, chains: &mut Chains<'data>) -> Parsed<SymbolId> {
        let symbol = self.raw_symbol(index)?;
        let name = self.name_behind(index, chains)?;
        let target = match chains.by_name.get(name) {
            Some(target) => self.symbol(*target)?,
            None => self.graph.external(self.intern(name, index)?, 0),
        };
        let definition = self.graph.symbol(target).definition;
        if matches!(definition, Definition::Block { .. } | Definition::Absolute) {
            let address = self.graph.symbol(target).address;
            let id = self.add(index, symbol, definition)?;
            self.graph.symbols[id.index()].address = address;
            return Ok(id);
        }
        // Elsewhere it is a name for what this object does not define either.
        if symbol.n_type() & N_EXT != 0 {
            let [own, target] = [self.symbol_name(symbol)?, name].map(|name| self.intern(name, index));
            self.graph.aliases.push((own?, target?));
        }
        Ok(target)
    }

    /// The name that a chain of indirect symbols ends at.
    fn name_behind(&self, index: SymbolIndex, chains: &mut Chains<'data>) -> Parsed<&'data [u8]> {
        let mut at = index;
        let mut passed = Vec::new();
        let end = loop {
            if let Some(end) = chains.ends.get(&at) {
                break *end;
            }
            if passed.len() == self.symbols.len() {
                return Err(self.malformed(format!("symbol {} stands for itself", index.0)));
            }
            passed.push(at);
            let offset = u32::try_from(self.raw_symbol(at)?.n_value(LittleEndian)).ok();
            let name = offset.and_then(|offset| self.symbols.strings().get(offset).ok());
            let Some(name) = name else {
                return Err(self.malformed(format!("symbol {} stands for one without a name", at.0)));
            };
            self.budget.take_name(name).map_err(|what| self.malformed(what))?;
            match chains.by_name.get(name) {
                Some(next) if self.raw_symbol(*next)?.n_type() & N_TYPE == N_INDR => at = *next,
                _ => break name,
            }
        };
        chains.ends.extend(passed.into_iter().map(|symbol| (symbol, end)));
        Ok(end)
    }

    /// Each pointer of the sections for indirect symbols is the address of one of them, whatever else
    /// the edges from `first` on say: a lazy one is said to lead to what would bind it.
    pub(super) fn add_indirect_pointers(&mut self, section: usize, edges: &mut Vec<Edge>, first: usize) -> Parsed<()> {
        let header = self.sections[section];
        // Stubs are code, which refers to pointers.
        if header.section_type(LittleEndian) == S_SYMBOL_STUBS {
            return Ok(());
        }
        let indirect = header.indirect_symbols(LittleEndian, self.indirect).map_err(|error| self.broken(error))?;
        if indirect.is_empty() {
            return Ok(());
        }
        let kind = match self.graph.architecture() {
            Architecture::X86_64 => EdgeKind::X86_64(x86_64::EdgeKind::Pointer64),
            Architecture::Aarch64 => EdgeKind::Aarch64(aarch64::EdgeKind::Pointer64),
        };
        let mut relocated: FxHashMap<_, _> =
            edges[first..].iter().zip(first..).map(|(edge, index)| ((edge.block, edge.offset), index)).collect();
        for (index, symbol) in indirect.iter().enumerate() {
            let symbol = symbol.get(LittleEndian);
            // A local symbol's pointer has its value, and a relocation.
            if symbol & (INDIRECT_SYMBOL_LOCAL | INDIRECT_SYMBOL_ABS) != 0 {
                continue;
            }
            let target = self.symbol(SymbolIndex(symbol as usize))?;
            let Some(atoms) = &self.atoms[section] else { continue };
            let (block, offset) = atoms.find(index as u64 * 8);
            let edge = Edge { block, offset: offset as u32, kind, target, addend: 0 };
            match relocated.remove(&(block, edge.offset)) {
                Some(known) => edges[known] = edge,
                None => edges.push(edge),
            }
        }
        Ok(())
    }
}
