//! Symbols: what an edge can point to, and what a lookup can find.

use super::source::TerminatedText;
use super::{BlockId, SectionId};

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

/// What an edge can point to, and what a lookup can find. Its name is [`LinkGraph::symbol_name`](super::LinkGraph::symbol_name).
// There are thousands, mostly local ones that nothing refers to: what only some have stands beside the table.
#[derive(Clone, Copy, Debug)]
pub struct Symbol {
    /// Where it is.
    pub definition: Definition,
    /// How it stands against others of its name.
    pub linkage: Linkage,
    /// Who sees it.
    pub scope: Scope,
    /// What it is the name of.
    pub kind: SymbolKind,
    /// Bytes, where that is known, and at most 4 GiB less one; else 0.
    pub size: u32,
    /// Whether it has a name, by which other graphs may refer to it or it to them.
    pub(crate) is_named: bool,
    /// Which of the graph's names it has, if it has one; else the text in the object that it goes by.
    pub(crate) text: u32,
    /// Its address, once known.
    pub(crate) address: u64,
}

const _: () = assert!(size_of::<Symbol>() == 32);

impl Symbol {
    /// A strong symbol of no kind, of which only its graph knows.
    pub(crate) const fn new(definition: Definition) -> Self {
        Self::labelled(definition, TerminatedText::EMPTY)
    }

    /// As [`new`](Self::new), with a text of the object that tells readers what it is.
    pub(crate) const fn labelled(definition: Definition, label: TerminatedText) -> Self {
        Self {
            definition,
            linkage: Linkage::Strong,
            scope: Scope::Local,
            kind: SymbolKind::Unspecified,
            size: 0,
            is_named: false,
            text: label.start,
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

    /// Whether it has a name, by which other graphs may refer to it or it to them.
    #[must_use]
    pub fn is_named(&self) -> bool {
        self.is_named
    }

    /// The text of the object that it goes by, if it has no name.
    pub(super) fn label(&self) -> TerminatedText {
        if self.is_named { TerminatedText::EMPTY } else { TerminatedText { start: self.text } }
    }
}
