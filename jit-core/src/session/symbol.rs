//! What a session knows of a symbol.

use std::fmt;

use jit_linker::SymbolName;
use smallvec::SmallVec;

use super::arena::Id;
use super::query::{FoundSymbol, Waiter};
use super::readiness::Ring;
use super::state::Unit;
use crate::error::Cause;
use crate::sync::Arc;

pub(crate) type SymbolId = Id<Symbol>;

/// How a symbol was defined and how it may be used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SymbolFlags {
    /// Another definition may take its place until it is first searched for.
    pub weak: bool,
    /// As `weak`, for a variable without an initial value.
    pub common: bool,
    /// Other dylibs see it.
    pub exported: bool,
    /// It can be called.
    pub callable: bool,
    /// Its address is a number, not a place in memory of the session's.
    pub absolute: bool,
    /// It has no address: looking it up makes its unit do something. Only a lookup that does not
    /// require it finds it, and leaves it out of what it gives.
    pub side_effects_only: bool,
}

impl SymbolFlags {
    /// A strong definition that only its dylib sees.
    pub const HIDDEN: Self = Self {
        weak: false,
        common: false,
        exported: false,
        callable: false,
        absolute: false,
        side_effects_only: false,
    };
    /// A strong definition that other dylibs see.
    pub const EXPORTED: Self = Self { exported: true, ..Self::HIDDEN };
    /// An exported function.
    pub const FUNCTION: Self = Self { callable: true, ..Self::EXPORTED };
    /// An exported definition that gives way to others.
    pub const WEAK: Self = Self { weak: true, ..Self::EXPORTED };

    /// Whether no other definition may take its place.
    #[must_use]
    pub fn is_strong(self) -> bool {
        !self.weak && !self.common
    }
}

/// How far a symbol has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum SymbolState {
    /// Defined, and never searched for: a weak definition can still be replaced.
    NeverSearched,
    /// Its unit has been dispatched.
    Materializing,
    /// It has an address. What is there may not be final.
    Resolved,
    /// Its own memory is final, and something it depends on is not.
    Emitted,
    /// It and everything it depends on are final.
    Ready,
}

/// A symbol's place in memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SymbolDef {
    /// Its address: for a redirectable function its stub's.
    pub address: u64,
    /// The word that holds where its body is now, if the symbol can be redirected.
    pub slot: Option<u64>,
}

impl SymbolDef {
    /// A symbol at a fixed address.
    #[must_use]
    pub fn at(address: u64) -> Self {
        Self { address, slot: None }
    }
}

/// One definition that a unit promises.
#[derive(Clone, Debug)]
pub struct SymbolDeclaration {
    /// Its name.
    pub name: SymbolName,
    /// Its flags.
    pub flags: SymbolFlags,
    /// The text of its calling signature, where it is known: see
    /// [`lookup`](crate::Jit::lookup). Symbols with different texts do not link.
    pub signature: Option<SymbolName>,
}

/// A symbol's entry in its dylib.
pub(crate) struct Symbol {
    pub(crate) name: SymbolName,
    pub(crate) signature: Option<SymbolName>,
    pub(crate) unit: Id<Unit>,
    pub(crate) address: u64,
    /// 0 for none.
    pub(crate) slot: u64,
    /// The index of its dylib, which goes no sooner than its symbols.
    pub(crate) dylib: u32,
    /// First edge to a symbol that this one depends on.
    pub(crate) needs: u32,
    /// First edge from a symbol that depends on this one.
    pub(crate) needed_by: u32,
    pub(crate) flags: SymbolFlags,
    pub(crate) state: SymbolState,
    /// What is known while somebody waits, or the symbol is not ready or has failed.
    pub(crate) pending: Option<Box<Pending>>,
}

impl Symbol {
    pub(crate) fn definition(&self) -> SymbolDef {
        SymbolDef { address: self.address, slot: (self.slot != 0).then_some(self.slot) }
    }

    pub(crate) fn found(&self, id: SymbolId) -> FoundSymbol {
        FoundSymbol {
            name: self.name.clone(),
            definition: self.definition(),
            flags: self.flags,
            signature: self.signature.clone(),
            id,
        }
    }

    /// Why it can't be had.
    pub(crate) fn failure(&self) -> Option<&Arc<Cause>> {
        self.pending.as_ref()?.failure.as_ref()
    }

    pub(crate) fn pending(&mut self) -> &mut Pending {
        self.pending.get_or_insert_with(Box::default)
    }
}

/// The part of a symbol's entry that is dropped once it is ready.
#[derive(Default)]
pub(crate) struct Pending {
    pub(crate) waiters: SmallVec<[Waiter; 1]>,
    pub(crate) failure: Option<Arc<Cause>>,
    /// `None` for a ring of one that nobody watches and that watches nobody.
    pub(crate) ring: Option<Box<Ring>>,
}

impl fmt::Display for SymbolState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NeverSearched => "never searched",
            Self::Materializing => "materializing",
            Self::Resolved => "resolved",
            Self::Emitted => "emitted",
            Self::Ready => "ready",
        })
    }
}
