//! Sections: blocks that belong together, and what they are for.

use super::source::Text;
use super::{BlockId, SymbolId};
use crate::SymbolName;
use crate::memory::SegmentKind;

/// What the process has to do with a section, beyond having it in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SectionRole {
    /// Nothing.
    Plain,
    /// Pointers to functions that are called when the code is loaded.
    Initializers {
        /// Lower ones run earlier; objects without priorities have [`SectionRole::DEFAULT_PRIORITY`].
        priority: u32,
        /// Whether the last pointer is called first (`.ctors`).
        reversed: bool,
    },
    /// Pointers to functions that are called when the code is unloaded.
    Finalizers {
        /// Lower ones run later.
        priority: u32,
        /// Whether the last pointer is called first (`.fini_array`); else the first (`.dtors`).
        reversed: bool,
    },
    /// The initial values of thread-local variables.
    ThreadLocal,
    /// Unwinding tables: DWARF call frame information, ended by four zero bytes.
    EhFrame,
    /// What a program takes no memory for: information for debuggers. It is there if
    /// [it was asked for](crate::format::ParseOptions::all_sections), nothing refers to it, and it makes no link fail.
    Note,
}

impl SectionRole {
    /// The priority of initializers that have none: after all that have.
    pub const DEFAULT_PRIORITY: u32 = 65_536;
}

/// Blocks that are placed next to each other.
#[derive(Clone, Debug)]
pub struct Section {
    /// What it is for.
    pub role: SectionRole,
    /// Which segment it goes to.
    pub kind: SegmentKind,
    /// The power of two its start is a multiple of, as an exponent.
    pub align_log2: u8,
    /// Its name in the object it came from.
    pub(crate) label: Text,
    /// Where it lies in its segment, once laid out.
    pub(crate) start: u32,
    pub(crate) end: u32,
}

impl Section {
    pub(crate) const fn empty() -> Self {
        let (role, kind) = (SectionRole::Plain, SegmentKind::ReadOnly);
        Self { role, kind, align_log2: 0, label: Text::EMPTY, start: 0, end: 0 }
    }
}

/// Sections that are linked or left out together (a COMDAT group): of all groups of one
/// signature in a program one is kept.
#[derive(Clone, Debug)]
pub struct Comdat {
    /// The name that makes groups the same.
    pub signature: SymbolName,
    /// Its blocks.
    pub blocks: Vec<BlockId>,
    /// The visible symbols defined in them.
    pub symbols: Vec<SymbolId>,
}
