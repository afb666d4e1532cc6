//! Which symbol an address belongs to.

use std::fmt;

use jit_linker::SymbolName;
use jit_linker::arch::stub::STUB_SIZE;
use jit_linker::memory::SegmentKind;

use super::ExecutionSession;
use super::state::Unit;
use super::symbol::SymbolState;

/// A place in the session's code or data, as [`ExecutionSession::symbol_at`] finds it. It prints as `name+0x10`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SymbolPlace {
    /// The symbol.
    pub name: SymbolName,
    /// The dylib that defines it.
    pub dylib: String,
    /// Bytes from the symbol's address.
    pub offset: u64,
}

impl fmt::Display for SymbolPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}+{:#x}", self.name, self.offset)
    }
}

impl ExecutionSession {
    /// The symbol that an address belongs to, for backtraces and logs: what `dladdr` is for shared libraries. Of a
    /// return address, ask for the byte before it.
    ///
    /// It is the nearest symbol at or before the address, in the same piece of memory. What has no symbol (a local
    /// function of an object, a stub that the linker made) comes under the one before it. A redirectable function's own
    /// symbol is a stub; its code belongs to its bodies, `f$orcane.1` and so on. Absolute symbols are found by
    /// their exact addresses.
    ///
    /// It looks at every symbol, with the session locked.
    ///
    /// ```
    /// let jit = jit_core::Jit::new()?;
    /// jit.define_closure("double", |n: i64| 2 * n)?;
    /// let address = jit.lookup_address("double")?;
    /// let place = jit.session().symbol_at(address + 4).expect("a place in a function");
    /// assert_eq!((place.to_string().as_str(), place.dylib.as_str()), ("double+0x4", "main"));
    /// # Ok::<(), jit_core::Error>(())
    /// ```
    #[must_use]
    pub fn symbol_at(&self, address: u64) -> Option<SymbolPlace> {
        let state = self.state();
        let mut nearest: Option<(u64, SymbolName, u32)> = None;
        for (_, symbol) in state.symbols.iter() {
            let start = symbol.address();
            let has_one = symbol.state() >= SymbolState::Resolved && symbol.failure().is_none();
            if !has_one || start > address || nearest.as_ref().is_some_and(|(other, ..)| *other > start) {
                continue;
            }
            let unit = state.units.get(symbol.unit);
            if unit.is_some_and(|unit| unit.holds(start, address))
                || symbol.slot() != 0 && address - start < STUB_SIZE as u64
                || start == address && start != 0
            {
                nearest = Some((start, symbol.name().clone(), symbol.dylib()));
            }
        }
        let (start, name, dylib) = nearest?;
        let dylib = state.dylibs.at(dylib).map(|(_, dylib)| dylib.name.clone()).unwrap_or_default();
        Some(SymbolPlace { name, dylib, offset: address - start })
    }
}

impl Unit {
    /// Whether both addresses lie in one segment of what it was emitted into.
    fn holds(&self, start: u64, address: u64) -> bool {
        let Some(code) = self.code() else { return false };
        SegmentKind::ALL.iter().any(|kind| {
            let range = code.range(*kind);
            range.contains(&start) && range.contains(&address)
        })
    }
}
