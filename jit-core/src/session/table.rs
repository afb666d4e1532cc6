//! A dylib's symbols by name: their places in the session's table, hashed by the names that stand
//! there.

use std::hash::BuildHasher;

use hashbrown::HashTable;
use jit_linker::SymbolName;
use rustc_hash::FxBuildHasher;

use super::arena::Arena;
use super::symbol::{Symbol, SymbolId};

#[derive(Default)]
pub(crate) struct SymbolTable(HashTable<u32>);

fn hash(name: &SymbolName) -> u64 {
    FxBuildHasher.hash_one(name)
}

fn hash_at(symbols: &Arena<Symbol>, index: u32) -> u64 {
    symbols.at(index).map_or(0, |(_, symbol)| hash(&symbol.name))
}

impl SymbolTable {
    pub(crate) fn get(&self, symbols: &Arena<Symbol>, name: &SymbolName) -> Option<SymbolId> {
        let is_it = |index: &u32| symbols.at(*index).is_some_and(|(_, symbol)| symbol.name == *name);
        let index = self.0.find(hash(name), is_it)?;
        symbols.at(*index).map(|(id, _)| id)
    }

    /// Enters a symbol whose name the table does not have.
    pub(crate) fn insert(&mut self, symbols: &Arena<Symbol>, name: &SymbolName, id: SymbolId) {
        self.0.insert_unique(hash(name), id.index() as u32, |index| hash_at(symbols, *index));
    }

    /// Removes a symbol, which may have left the session's table already.
    pub(crate) fn remove(&mut self, name: &SymbolName, id: SymbolId) {
        if let Ok(entry) = self.0.find_entry(hash(name), |index| *index as usize == id.index()) {
            entry.remove();
        }
    }

    pub(crate) fn reserve(&mut self, symbols: &Arena<Symbol>, additional: usize) {
        self.0.reserve(additional, |index| hash_at(symbols, *index));
    }
}
