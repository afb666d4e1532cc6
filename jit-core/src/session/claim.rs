//! What a linker asks of a responsibility: how its symbols were declared.

use jit_linker::SymbolName;

use super::MaterializationResponsibility;
use super::symbol::{SymbolFlags, SymbolId};

/// A symbol as its unit declared it.
pub(crate) struct DeclaredSymbol {
    pub(crate) name: SymbolName,
    pub(crate) id: SymbolId,
    pub(crate) flags: SymbolFlags,
}

impl MaterializationResponsibility {
    /// The symbols to define, as they were declared.
    pub(crate) fn declared(&self) -> Vec<DeclaredSymbol> {
        let state = self.session().state();
        let Ok(symbols) = state.responsibility(self.unit()) else { return Vec::new() };
        let declared = symbols.iter().filter_map(|id| {
            let symbol = state.symbols.get(*id)?;
            Some(DeclaredSymbol { name: symbol.name(), id: *id, flags: symbol.flags() })
        });
        declared.collect()
    }
}
