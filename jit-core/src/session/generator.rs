//! Definitions that are made when they are asked for.

use std::ffi::CString;

use jit_linker::SymbolName;

use super::lookup::DylibLookup;
use super::symbol::{SymbolDef, SymbolFlags};
use super::{AbsoluteSymbol, JitDylib};
use crate::sync::Arc;

/// Defines symbols in a dylib when a lookup does not find them there.
pub trait DefinitionGenerator: Send + Sync {
    /// Called with the names that `dylib` does not have. What it defines there is found; the
    /// other names go on to the next generator or dylib. No lock is held.
    ///
    /// # Errors
    ///
    /// An error fails the lookup. A name that can't be generated is no error.
    fn generate(
        &self,
        dylib: &JitDylib,
        visibility: DylibLookup,
        names: &[SymbolName],
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>>;
}

/// Decides by name.
pub type SymbolFilter = Arc<dyn Fn(&str) -> bool + Send + Sync>;

/// Defines the symbols of this process: what the dynamic loader would find.
pub struct ProcessSymbols {
    filter: Option<SymbolFilter>,
}

impl ProcessSymbols {
    /// All symbols, or those that pass the filter.
    #[must_use]
    pub fn new(filter: Option<SymbolFilter>) -> Self {
        Self { filter }
    }
}

impl DefinitionGenerator for ProcessSymbols {
    fn generate(
        &self,
        dylib: &JitDylib,
        _visibility: DylibLookup,
        names: &[SymbolName],
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let session = dylib.session();
        let process = session.executor();
        let mut found = Vec::new();
        for name in names {
            if self.filter.as_ref().is_some_and(|filter| !filter(name)) {
                continue;
            }
            // A name with a NUL is no name the loader knows.
            let Ok(text) = CString::new(name.as_str()) else { continue };
            if let Some(address) = process.find_symbol(&text) {
                found.push(AbsoluteSymbol {
                    name: name.clone(),
                    definition: SymbolDef::at(address),
                    // Another lookup may define it at the same moment: the first one stays.
                    flags: SymbolFlags { weak: true, ..SymbolFlags::EXPORTED },
                    signature: None,
                });
            }
        }
        if !found.is_empty() {
            dylib.define_absolute(found)?;
        }
        Ok(())
    }
}
