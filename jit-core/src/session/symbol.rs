//! What a session knows of a symbol.

use std::fmt;

use jit_linker::SymbolName;
use smallvec::SmallVec;

use super::arena::Id;
use super::edges;
use super::published::{CONDITION_BITS, Cell};
use super::query::Waiter;
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

/// What a session knows of a symbol beside what it publishes.
pub(crate) struct Symbol {
    pub(crate) unit: Id<Unit>,
    /// First edge to a symbol that this one depends on.
    pub(crate) needs: u32,
    /// First edge from a symbol that depends on this one.
    pub(crate) needed_by: u32,
    /// What is known while somebody waits, or the symbol is not ready or has failed.
    pub(crate) pending: Option<Box<Pending>>,
}

impl Symbol {
    pub(crate) fn new(unit: Id<Unit>) -> Self {
        Self { unit, needs: edges::NONE, needed_by: edges::NONE, pending: None }
    }

    /// Why it can't be had.
    pub(crate) fn failure(&self) -> Option<&Arc<Cause>> {
        self.pending.as_ref()?.failure.as_ref()
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

/// A symbol's flags, its state and whether it has failed, in as many bits as its cell has for it. 0 is no symbol's.
#[derive(Clone, Copy)]
pub(crate) struct Condition(u32);

const FLAGS: u32 = 0x3F;
const STATE: u32 = 6;
const FAILED: u32 = 1 << 9;
const USED: u32 = 1 << (CONDITION_BITS - 1);

impl Condition {
    /// That of a symbol that was never searched for.
    pub(crate) fn new(flags: SymbolFlags) -> Self {
        Self(USED).with_flags(flags)
    }

    pub(crate) fn from_bits(bits: u32) -> Self {
        Self(bits)
    }

    pub(crate) fn bits(self) -> u32 {
        self.0
    }

    pub(crate) fn of(cell: &Cell) -> Self {
        Self(cell.condition())
    }

    pub(crate) fn is_used(self) -> bool {
        self.0 & USED != 0
    }

    pub(crate) fn flags(self) -> SymbolFlags {
        let has = |bit: u32| self.0 >> bit & 1 != 0;
        SymbolFlags {
            weak: has(0),
            common: has(1),
            exported: has(2),
            callable: has(3),
            absolute: has(4),
            side_effects_only: has(5),
        }
    }

    pub(crate) fn with_flags(self, flags: SymbolFlags) -> Self {
        let SymbolFlags { weak, common, exported, callable, absolute, side_effects_only } = flags;
        let flags = [weak, common, exported, callable, absolute, side_effects_only];
        let bits = flags.iter().zip(0..).fold(0, |bits, (flag, bit)| bits | u32::from(*flag) << bit);
        Self(self.0 & !FLAGS | bits)
    }

    pub(crate) fn state(self) -> SymbolState {
        match self.0 >> STATE & 7 {
            0 => SymbolState::NeverSearched,
            1 => SymbolState::Materializing,
            2 => SymbolState::Resolved,
            3 => SymbolState::Emitted,
            _ => SymbolState::Ready,
        }
    }

    pub(crate) fn with_state(self, state: SymbolState) -> Self {
        Self(self.0 & !(7 << STATE) | (state as u32) << STATE)
    }

    pub(crate) fn with_failure(self) -> Self {
        Self(self.0 | FAILED)
    }

    /// Whether a lookup that wants `required` has it, address and all.
    pub(crate) fn is_there(self, required: SymbolState) -> bool {
        self.0 & FAILED == 0 && self.state() >= required
    }
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
