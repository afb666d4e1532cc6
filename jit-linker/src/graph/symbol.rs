//! Symbols: what an edge can point to, and what a lookup can find.

use super::source::TerminatedText;
use super::{BlockId, SectionId};
use crate::SymbolName;

/// Where a symbol is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Definition {
    /// In a block of this graph.
    Block {
        /// Which block.
        block: BlockId,
        /// How far into it, in bytes.
        offset: u32,
    },
    /// Somewhere else: its address is looked up.
    External,
    /// Somewhere else, at a known address.
    Absolute,
    /// The first byte of a section of this graph, or the one after its last (`__start_X`, `__stop_X`).
    /// An edge to such a symbol keeps the whole section alive.
    SectionBound {
        /// Which section.
        section: SectionId,
        /// Whether it is the section's end.
        end: bool,
    },
    /// The base of this graph's GOT (`_GLOBAL_OFFSET_TABLE_`).
    GotBase,
}

/// How a definition stands against others of its name; for an external symbol, whether it must
/// be found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Linkage {
    /// There is to be one definition; an external must be found.
    #[default]
    Strong,
    /// Another definition may be taken instead; an external that is not found is at address 0.
    Weak,
    /// A variable without an initial value (Fortran's and old C's `common`): any definition with
    /// a value wins over it, and the largest among several commons.
    Common,
}

/// Who sees a definition.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Scope {
    /// Everybody.
    #[default]
    Default,
    /// Everybody, and its own component always binds to it.
    Protected,
    /// The graphs that are linked as one component with this one: the same dylib.
    Hidden,
    /// Its graph alone.
    Local,
}

/// What kind of thing a symbol is the name of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum SymbolKind {
    /// Nothing is said.
    #[default]
    Unspecified,
    /// A function.
    Function,
    /// A variable or constant.
    Data,
    /// A thread-local variable: its offset is in the thread's copy of the template.
    ThreadLocal,
    /// The descriptor of a thread-local variable, by which Mach-O's code finds it.
    ThreadLocalDescriptor,
    /// A function that returns the address of the function to call (`STT_GNU_IFUNC`).
    Resolver,
    /// A section's start.
    Section,
}

/// What an edge can point to, and what a lookup can find.
#[derive(Clone, Debug)]
pub struct Symbol {
    /// Its name, if other graphs may refer to it or it to them; a local symbol's is given by
    /// [`LinkGraph::symbol_label`](super::LinkGraph::symbol_label).
    pub name: Option<SymbolName>,
    /// Where it is.
    pub definition: Definition,
    /// How it stands against others of its name.
    pub linkage: Linkage,
    /// Who sees it.
    pub scope: Scope,
    /// What it is the name of.
    pub kind: SymbolKind,
    /// Bytes, where that is known; else 0.
    pub size: u64,
    /// A number of the host's own, given back with the symbol.
    pub tag: u32,
    /// Its name in the object it came from.
    pub(crate) label: TerminatedText,
    /// Its address, once known.
    pub(crate) address: u64,
}

impl Symbol {
    /// A strong, visible symbol of no kind.
    pub(crate) const fn new(name: Option<SymbolName>, definition: Definition, tag: u32) -> Self {
        let scope = if name.is_some() { Scope::Default } else { Scope::Local };
        Self {
            name,
            definition,
            linkage: Linkage::Strong,
            scope,
            kind: SymbolKind::Unspecified,
            size: 0,
            tag,
            label: TerminatedText::EMPTY,
            address: 0,
        }
    }

    /// The address of an absolute symbol, or of any once it is known; else 0.
    #[must_use]
    pub fn address(&self) -> u64 {
        self.address
    }

    /// Whether it is in this graph, at whatever address.
    #[must_use]
    pub fn is_defined_here(&self) -> bool {
        matches!(self.definition, Definition::Block { .. })
    }
}
