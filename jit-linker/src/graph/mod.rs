//! The link graph: sections, blocks, symbols and edges in index-addressed tables.
//!
//! A graph is plain data, cheap to build and to drop, and `Send`. Ids are indices into the tables
//! of the graph that gave them.

mod address;
mod bounds;
mod dump;
mod section;
mod source;
mod symbol;

use std::borrow::Cow;
use std::num::NonZeroU32;
use std::ops::Range;
use std::sync::Arc;

pub use self::bounds::{NamedSection, SectionBound};
pub(crate) use self::bounds::{bound_of, is_identifier};
pub use self::section::{Comdat, Section, SectionRole};
pub use self::source::ObjectBytes;
pub(crate) use self::source::{TerminatedText, Text};
pub use self::symbol::{Definition, Linkage, Scope, Symbol, SymbolKind};
use crate::SymbolName;
use crate::arch::{Architecture, aarch64, x86_64};
use crate::memory::{SegmentKind, populate, prefer_huge_pages};

/// The most blocks that layout adds, unless the code needs several islands: the end of the unwinding tables, GOT, stubs, and
/// the resolver of TLS descriptors.
pub(crate) const LAYOUT_BLOCKS: usize = 4;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub(crate) u32);

        impl $name {
            /// The id as an index.
            #[must_use]
            pub const fn index(self) -> usize {
                self.0 as usize
            }

            /// Tables are bounded by `u32`: their entries are larger than a byte, so an index
            /// beyond it would need more than 64 GiB of graph.
            pub(crate) fn new(index: usize) -> Self {
                Self(u32::try_from(index).expect("a link graph's tables stay below 2^32 entries"))
            }
        }
    };
}

id! {
    /// A block of one graph.
    BlockId
}
id! {
    /// A symbol of one graph.
    SymbolId
}
/// A section of one graph.
// One more than its index: an option of it, which each block has, is as small.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SectionId(NonZeroU32);

impl SectionId {
    /// The id as an index.
    #[must_use]
    pub const fn index(self) -> usize {
        self.0.get() as usize - 1
    }

    pub(crate) fn new(index: usize) -> Self {
        let number = u32::try_from(index + 1).ok().and_then(NonZeroU32::new);
        Self(number.expect("a link graph's tables stay below 2^32 entries"))
    }
}

/// What a block holds before it is copied into working memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// Bytes of the graph's arena, from an offset.
    Bytes {
        /// Where they start in the arena.
        start: u32,
    },
    /// Bytes of the object the graph was read from, from an offset.
    Object {
        /// Where they start in the object.
        start: u32,
    },
    /// Zeros that no input stores.
    Zero,
}

/// A run of bytes that is placed as one.
#[derive(Clone, Debug)]
pub struct Block {
    /// Which segment it goes to.
    pub kind: SegmentKind,
    /// The section it lies in, next to the others of that section; else it lies anywhere.
    pub section: Option<SectionId>,
    /// Its bytes.
    pub content: Content,
    /// Size in bytes.
    pub size: u32,
    /// The power of two its address is a multiple of, as an exponent.
    pub align_log2: u8,
    /// How far past such a multiple its address is instead: a part of a section keeps the alignment
    /// that it had in the whole.
    pub align_offset: u32,
    /// Whether it is linked; cleared by pruning and by [`exclude`](crate::link::Allocated::exclude).
    pub live: bool,
    /// Whether pruning leaves it, though nothing leads to it.
    pub(crate) keep: bool,
    /// Where it lies in its segment, once laid out.
    pub(crate) segment_offset: u32,
}

/// An architecture's kind of edge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EdgeKind {
    /// On x86-64.
    X86_64(x86_64::EdgeKind),
    /// On AArch64.
    Aarch64(aarch64::EdgeKind),
}

/// A place in a block whose bytes depend on a symbol's address.
#[derive(Clone, Copy, Debug)]
pub struct Edge {
    /// The block that holds the place.
    pub block: BlockId,
    /// The place's offset in the block.
    pub offset: u32,
    /// What is stored there.
    pub kind: EdgeKind,
    /// The symbol it depends on.
    pub target: SymbolId,
    /// A constant that is added to the symbol's address.
    pub addend: i64,
}

/// Code and data that are linked as one.
///
/// ```
/// use jit_linker::arch::{Architecture, x86_64};
/// use jit_linker::graph::{Edge, EdgeKind, LinkGraph};
/// use jit_linker::memory::SegmentKind;
///
/// // A pointer to `there`, which is defined elsewhere.
/// let names = jit_linker::SymbolStringPool::new();
/// let mut graph = LinkGraph::new("pointer", Architecture::X86_64);
/// let target = graph.external(names.intern("there"), 0);
/// let block = graph.add_block(SegmentKind::Data, &[0; 8], 8)?;
/// let kind = EdgeKind::X86_64(x86_64::EdgeKind::Pointer64);
/// graph.add_edge(Edge { block, offset: 0, kind, target, addend: 16 })?;
/// graph.define(Some(names.intern("pointer")), block, 0, 0);
/// assert!(graph.to_string().contains("there +16"), "{graph}");
/// # Ok::<(), jit_linker::graph::GraphError>(())
/// ```
#[derive(Clone, Debug)]
pub struct LinkGraph {
    name: Arc<str>,
    architecture: Architecture,
    pub(crate) blocks: Vec<Block>,
    pub(crate) symbols: Vec<Symbol>,
    /// Of those symbols that other graphs may see.
    names: Vec<SymbolName>,
    /// By symbol: the host's numbers, as far as there are any.
    tags: Vec<u32>,
    pub(crate) sections: Vec<Section>,
    pub(crate) comdats: Vec<Comdat>,
    /// Names that it defines for what it does not, and the names of that.
    pub(crate) aliases: Vec<(SymbolName, SymbolName)>,
    /// Pairs of a block and one that lives as long as it does, though it does not refer to it: a
    /// function and its unwinding record.
    pub(crate) attached: Vec<(BlockId, BlockId)>,
    /// In ascending order of block.
    pub(crate) edges: Vec<Edge>,
    /// Those of sections that are [notes](SectionRole::Note). They keep nothing in the link.
    pub(crate) note_edges: Vec<Edge>,
    arena: Vec<u8>,
    object: ObjectBytes,
    /// Whether its code writes code to its stack.
    pub(crate) needs_executable_stack: bool,
    /// Whether it is laid out: it takes no more content.
    settled: bool,
    /// Whether an id of another graph was used to change it.
    foreign_id: bool,
}

impl LinkGraph {
    /// An empty graph. The name appears in errors.
    #[must_use]
    pub fn new(name: impl Into<Arc<str>>, architecture: Architecture) -> Self {
        Self {
            name: name.into(),
            architecture,
            blocks: Vec::new(),
            symbols: Vec::new(),
            names: Vec::new(),
            tags: Vec::new(),
            sections: Vec::new(),
            comdats: Vec::new(),
            aliases: Vec::new(),
            attached: Vec::new(),
            edges: Vec::new(),
            note_edges: Vec::new(),
            arena: Vec::new(),
            object: ObjectBytes::default(),
            needs_executable_stack: false,
            settled: false,
            foreign_id: false,
        }
    }

    /// Makes room for `blocks` small blocks with a few edges each.
    pub fn reserve(&mut self, blocks: usize) {
        self.blocks.reserve(blocks);
        self.symbols.reserve(2 * blocks);
        self.names.reserve(2 * blocks);
        self.tags.reserve(2 * blocks);
        self.edges.reserve(2 * blocks);
        self.arena.reserve(64 * blocks);
    }

    /// Makes room for so many blocks of an object, and for those that layout adds: a table that grows then doubles.
    pub(crate) fn reserve_blocks(&mut self, count: usize) {
        self.blocks.reserve_exact(count + LAYOUT_BLOCKS);
    }

    /// Makes room for the symbols that an object has.
    pub(crate) fn reserve_symbols(&mut self, count: usize) {
        self.symbols.reserve_exact(count);
        prefer_huge_pages(self.symbols.spare_capacity_mut());
    }

    /// Makes room for the edges that an object has at most.
    pub(crate) fn reserve_edges(&mut self, count: usize) {
        self.edges.reserve_exact(count);
        prefer_huge_pages(self.edges.spare_capacity_mut());
    }

    /// Brings the memory of the edges there is room for, all of which are coming.
    pub(crate) fn bring_edges(&mut self) {
        /// From this size on it is worth a system call.
        const LARGE: usize = 64 << 10;
        let room = self.edges.spare_capacity_mut();
        if size_of_val(room) >= LARGE {
            populate(room);
        }
    }

    /// Adds a block of bytes. Its edges are added next: see [`add_edge`](Self::add_edge).
    ///
    /// # Errors
    ///
    /// When `align` is not a power of two, or the graph's bytes exceed 4 GiB.
    pub fn add_block(&mut self, kind: SegmentKind, bytes: &[u8], align: u64) -> Result<BlockId, GraphError> {
        let too_large = || GraphError::TooLarge { size: bytes.len() as u64 };
        let start = u32::try_from(self.arena.len()).map_err(|_| too_large())?;
        let size = u32::try_from(bytes.len()).map_err(|_| too_large())?;
        let block = self.push_block(kind, Content::Bytes { start }, size, align)?;
        self.arena.extend_from_slice(bytes);
        Ok(block)
    }

    /// Adds a block of zeros.
    ///
    /// # Errors
    ///
    /// As [`add_block`](Self::add_block).
    pub fn add_zero_block(&mut self, kind: SegmentKind, size: u64, align: u64) -> Result<BlockId, GraphError> {
        let size = u32::try_from(size).map_err(|_| GraphError::TooLarge { size })?;
        self.push_block(kind, Content::Zero, size, align)
    }

    fn push_block(
        &mut self,
        kind: SegmentKind,
        content: Content,
        size: u32,
        align: u64,
    ) -> Result<BlockId, GraphError> {
        let block = self.new_block(kind, content, size, align)?;
        let id = BlockId::new(self.blocks.len());
        self.blocks.push(block);
        Ok(id)
    }

    #[inline]
    fn new_block(&self, kind: SegmentKind, content: Content, size: u32, align: u64) -> Result<Block, GraphError> {
        if !align.is_power_of_two() || align > 1 << 31 {
            return Err(GraphError::Alignment { align });
        }
        if self.settled {
            return Err(GraphError::Settled);
        }
        Ok(Block {
            kind,
            section: None,
            content,
            size,
            align_log2: align.trailing_zeros() as u8,
            align_offset: 0,
            live: true,
            keep: false,
            segment_offset: 0,
        })
    }

    /// Adds a symbol at an offset of a block. `tag` is the host's own.
    pub fn define(&mut self, name: Option<SymbolName>, block: BlockId, offset: u32, tag: u32) -> SymbolId {
        self.foreign_id |= block.index() >= self.blocks.len();
        self.push_symbol(name, Definition::Block { block, offset }, tag)
    }

    /// Adds a symbol whose address has to be looked up. `tag` is the host's own.
    pub fn external(&mut self, name: SymbolName, tag: u32) -> SymbolId {
        self.push_symbol(Some(name), Definition::External, tag)
    }

    /// Adds a symbol at a known address.
    pub fn absolute(&mut self, address: u64) -> SymbolId {
        let id = self.push_symbol(None, Definition::Absolute, 0);
        self.symbols[id.index()].address = address;
        id
    }

    /// Adds a symbol at a known address that other graphs see. `tag` is the host's own.
    pub fn define_absolute(&mut self, name: SymbolName, address: u64, tag: u32) -> SymbolId {
        let id = self.push_symbol(Some(name), Definition::Absolute, tag);
        self.symbols[id.index()].address = address;
        id
    }

    fn push_symbol(&mut self, name: Option<SymbolName>, definition: Definition, tag: u32) -> SymbolId {
        let scope = if name.is_some() { Scope::Default } else { Scope::Local };
        let id = self.add_symbol(name, Symbol { scope, ..Symbol::new(definition) });
        self.set_tag(id, tag);
        id
    }

    pub(crate) fn add_symbol(&mut self, name: Option<SymbolName>, symbol: Symbol) -> SymbolId {
        let id = SymbolId::new(self.symbols.len());
        self.symbols.push(symbol);
        if let Some(name) = name {
            self.set_name(id, name);
        }
        id
    }

    fn set_name(&mut self, symbol: SymbolId, name: SymbolName) {
        let symbol = &mut self.symbols[symbol.index()];
        (symbol.is_named, symbol.text) = (true, SymbolId::new(self.names.len()).0);
        self.names.push(name);
    }

    fn set_tag(&mut self, symbol: SymbolId, tag: u32) {
        let index = symbol.index();
        if tag != 0 && index >= self.tags.len() {
            self.tags.resize(index + 1, 0);
        }
        if let Some(known) = self.tags.get_mut(index) {
            *known = tag;
        }
    }

    pub(crate) fn add_section(&mut self, section: Section) -> SectionId {
        let id = SectionId::new(self.sections.len());
        self.sections.push(section);
        id
    }

    /// Adds a block to a section. Its content is zeros, or bytes of the object.
    pub(crate) fn add_section_block(
        &mut self,
        section: SectionId,
        content: Content,
        size: u64,
        align: u64,
    ) -> Result<BlockId, GraphError> {
        let size = u32::try_from(size).map_err(|_| GraphError::TooLarge { size })?;
        let kind = self.sections[section.index()].kind;
        let id = self.push_block(kind, content, size, align)?;
        let block = &mut self.blocks[id.index()];
        block.section = Some(section);
        let section = &mut self.sections[section.index()];
        section.align_log2 = section.align_log2.max(block.align_log2);
        Ok(id)
    }

    /// Adds the parts of a section, each an offset and a size, as blocks that keep the alignment they have in the whole.
    /// Their content is the object's from `start` on, or zeros. Returns the first one's index.
    pub(crate) fn add_section_parts(
        &mut self,
        section: SectionId,
        start: Option<u32>,
        align: u64,
        parts: impl Iterator<Item = (u32, u32)>,
    ) -> Result<u32, GraphError> {
        let first = self.blocks.len();
        let kind = self.sections[section.index()].kind;
        let like = Block { section: Some(section), ..self.new_block(kind, Content::Zero, 0, align)? };
        self.blocks.extend(parts.map(|(offset, size)| {
            let content = start.map_or(Content::Zero, |start| Content::Object { start: start + offset });
            Block { content, size, align_offset: offset & (align - 1) as u32, ..like }
        }));
        // Those before have lower ones.
        BlockId::new(self.blocks.len());
        let section = &mut self.sections[section.index()];
        section.align_log2 = section.align_log2.max(like.align_log2);
        Ok(BlockId::new(first).0)
    }

    /// Adds a block to a section. Its content is the bytes, which are copied.
    pub(crate) fn add_section_bytes(
        &mut self,
        section: SectionId,
        bytes: &[u8],
        align: u64,
    ) -> Result<BlockId, GraphError> {
        let start = u32::try_from(self.arena.len()).map_err(|_| GraphError::TooLarge { size: bytes.len() as u64 })?;
        let block = self.add_section_block(section, Content::Bytes { start }, bytes.len() as u64, align)?;
        self.arena.extend_from_slice(bytes);
        Ok(block)
    }

    /// An empty graph whose content is borrowed from an object.
    pub(crate) fn from_object(name: impl Into<Arc<str>>, architecture: Architecture, object: ObjectBytes) -> Self {
        Self { object, ..Self::new(name, architecture) }
    }

    /// Turns an external symbol into one that this graph defines, with the edges it has.
    pub fn define_external(&mut self, symbol: SymbolId, block: BlockId, offset: u32, tag: u32) {
        self.foreign_id |= block.index() >= self.blocks.len();
        if let Some(found) = self.change(symbol) {
            found.definition = Definition::Block { block, offset };
            self.set_tag(symbol, tag);
        }
    }

    /// Names that the object defines for symbols that it does not, each with the other name. What links
    /// the graph defines them; the object's own references already are to the other name.
    #[must_use]
    pub fn aliases(&self) -> &[(SymbolName, SymbolName)] {
        &self.aliases
    }

    /// Says how a symbol stands against others of its name; strong unless said otherwise.
    pub fn set_linkage(&mut self, symbol: SymbolId, linkage: Linkage) {
        if let Some(symbol) = self.change(symbol) {
            symbol.linkage = linkage;
        }
    }

    /// Says who sees a symbol: everybody, if it has a name, unless said otherwise.
    pub fn set_scope(&mut self, symbol: SymbolId, scope: Scope) {
        if let Some(symbol) = self.change(symbol) {
            symbol.scope = scope;
        }
    }

    /// Gives a symbol another name: edges stay as they are.
    pub fn rename(&mut self, symbol: SymbolId, name: SymbolName) {
        if self.change(symbol).is_some() {
            self.set_name(symbol, name);
        }
    }

    /// Says what a symbol is the name of.
    pub fn set_kind(&mut self, symbol: SymbolId, kind: SymbolKind) {
        if let Some(symbol) = self.change(symbol) {
            symbol.kind = kind;
        }
    }

    /// A symbol to be changed; an id of another graph is remembered, and the link refused.
    fn change(&mut self, symbol: SymbolId) -> Option<&mut Symbol> {
        let found = self.symbols.get_mut(symbol.index());
        self.foreign_id |= found.is_none();
        found
    }

    /// Has pruning leave a block, though nothing leads to it.
    pub fn keep(&mut self, block: BlockId) {
        match self.blocks.get_mut(block.index()) {
            Some(block) => block.keep = true,
            None => self.foreign_id = true,
        }
    }

    /// A block's bytes, to be changed before fixups are applied to them. Bytes of an object are
    /// copied when this is first called.
    ///
    /// # Errors
    ///
    /// When the graph has no such block, or its bytes exceed 4 GiB with these.
    pub fn bytes_mut(&mut self, block: BlockId) -> Result<&mut [u8], GraphError> {
        let Self { blocks, arena, object, .. } = self;
        let block = blocks.get_mut(block.index()).ok_or(GraphError::ForeignId)?;
        let size = block.size as usize;
        let start = match block.content {
            Content::Bytes { start } => start as usize,
            Content::Object { .. } | Content::Zero => {
                let start = arena.len();
                let content = u32::try_from(start).map_err(|_| GraphError::TooLarge { size: size as u64 })?;
                if let Content::Object { start } = block.content {
                    let source = object.get(start as usize..start as usize + size);
                    arena.extend_from_slice(source.unwrap_or_default());
                }
                arena.resize(start + size, 0);
                block.content = Content::Bytes { start: content };
                start
            }
        };
        arena.get_mut(start..start + size).ok_or(GraphError::ForeignId)
    }

    /// Has edges lead elsewhere: those for which `to` names another target.
    ///
    /// # Errors
    ///
    /// When the graph is laid out, or has no such target.
    pub fn retarget(&mut self, mut to: impl FnMut(&Edge) -> Option<SymbolId>) -> Result<(), GraphError> {
        if self.settled {
            return Err(GraphError::Settled);
        }
        for edge in &mut self.edges {
            if let Some(target) = to(edge) {
                if target.index() >= self.symbols.len() {
                    return Err(GraphError::ForeignId);
                }
                edge.target = target;
            }
        }
        Ok(())
    }

    /// Whether it can be linked.
    pub(crate) fn check(&self) -> Result<(), GraphError> {
        if self.foreign_id { Err(GraphError::ForeignId) } else { Ok(()) }
    }

    /// From here on it takes no more content: there is no room for it.
    pub(crate) fn settle(&mut self) {
        self.settled = true;
    }

    /// Adds an edge to the newest block.
    ///
    /// # Errors
    ///
    /// When the edge belongs to an earlier block, or to another architecture.
    pub fn add_edge(&mut self, edge: Edge) -> Result<(), GraphError> {
        let newest = self.blocks.len().checked_sub(1).map(BlockId::new);
        if newest != Some(edge.block) {
            return Err(GraphError::EdgeOrder);
        }
        if self.settled {
            return Err(GraphError::Settled);
        }
        if edge.target.index() >= self.symbols.len() {
            return Err(GraphError::ForeignId);
        }
        let architecture = match edge.kind {
            EdgeKind::X86_64(_) => Architecture::X86_64,
            EdgeKind::Aarch64(_) => Architecture::Aarch64,
        };
        if architecture != self.architecture {
            return Err(GraphError::Architecture { edge: architecture, graph: self.architecture });
        }
        self.edges.push(edge);
        Ok(())
    }

    /// The graph's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The architecture of its code.
    #[must_use]
    pub fn architecture(&self) -> Architecture {
        self.architecture
    }

    /// One symbol; an undefined one without a name for an id of another graph that has more.
    #[must_use]
    pub fn symbol(&self, id: SymbolId) -> &Symbol {
        static NONE: Symbol = Symbol::new(Definition::External);
        self.symbols.get(id.index()).unwrap_or(&NONE)
    }

    /// All symbols with their ids.
    pub fn symbols(&self) -> impl Iterator<Item = (SymbolId, &Symbol)> {
        self.symbols.iter().enumerate().map(|(index, symbol)| (SymbolId::new(index), symbol))
    }

    /// The bytes of a block, where it has any.
    #[must_use]
    pub fn bytes(&self, block: &Block) -> Option<&[u8]> {
        let range = |start: u32| start as usize..start as usize + block.size as usize;
        match block.content {
            Content::Bytes { start } => self.arena.get(range(start)),
            Content::Object { start } => self.object.get(range(start)),
            Content::Zero => None,
        }
    }

    /// The object that the graph was read from; empty if it was built otherwise.
    #[must_use]
    pub fn object(&self) -> &ObjectBytes {
        &self.object
    }

    /// One block; an empty one that is left out for an id of another graph that has more.
    #[must_use]
    pub fn block(&self, id: BlockId) -> &Block {
        static NONE: Block = Block {
            kind: SegmentKind::ReadOnly,
            section: None,
            content: Content::Zero,
            size: 0,
            align_log2: 0,
            align_offset: 0,
            live: false,
            keep: false,
            segment_offset: 0,
        };
        self.blocks.get(id.index()).unwrap_or(&NONE)
    }

    /// All blocks with their ids.
    pub fn blocks(&self) -> impl Iterator<Item = (BlockId, &Block)> {
        self.blocks.iter().enumerate().map(|(index, block)| (BlockId::new(index), block))
    }

    /// All edges, in ascending order of block.
    #[must_use]
    pub fn edges(&self) -> &[Edge] {
        &self.edges
    }

    /// One section; an empty one for an id of another graph that has more.
    #[must_use]
    pub fn section(&self, id: SectionId) -> &Section {
        static NONE: Section = Section::empty();
        self.sections.get(id.index()).unwrap_or(&NONE)
    }

    /// All sections with their ids.
    pub fn sections(&self) -> impl Iterator<Item = (SectionId, &Section)> {
        self.sections.iter().enumerate().map(|(index, section)| (SectionId::new(index), section))
    }

    /// The name of a section in the object it came from.
    #[must_use]
    pub fn section_name(&self, id: SectionId) -> Cow<'_, str> {
        self.text(self.section(id).label)
    }

    /// The name of a symbol, if other graphs may refer to it or it to them.
    #[must_use]
    pub fn symbol_name(&self, id: SymbolId) -> Option<&SymbolName> {
        let symbol = self.symbol(id);
        if symbol.is_named { self.names.get(symbol.text as usize) } else { None }
    }

    /// The first symbol that has a name, in time linear in the symbols.
    #[must_use]
    pub fn find_symbol(&self, name: &str) -> Option<SymbolId> {
        let mut symbols = self.symbols().map(|(id, _)| id);
        symbols.find(|id| self.symbol_name(*id).is_some_and(|found| **found == *name))
    }

    /// The host's own number that a symbol was added with, or 0.
    #[must_use]
    pub fn tag(&self, id: SymbolId) -> u32 {
        self.tags.get(id.index()).copied().unwrap_or(0)
    }

    /// The name of a symbol, local ones included; empty if it has none.
    #[must_use]
    pub fn symbol_label(&self, id: SymbolId) -> Cow<'_, str> {
        match self.symbol_name(id) {
            Some(name) => Cow::Borrowed(name.as_str()),
            None => String::from_utf8_lossy(self.symbol(id).label().in_object(&self.object)),
        }
    }

    /// Pairs of a block and one that lives as long as it does, though it does not refer to it: a
    /// function's and that of its unwinding record.
    #[must_use]
    pub fn attached(&self) -> &[(BlockId, BlockId)] {
        &self.attached
    }

    /// Whether its code writes code to its stack and calls it, as GCC's nested functions do whose address is taken.
    #[must_use]
    pub fn needs_executable_stack(&self) -> bool {
        self.needs_executable_stack
    }

    /// The COMDAT groups.
    #[must_use]
    pub fn comdats(&self) -> &[Comdat] {
        &self.comdats
    }

    /// Keeps only the COMDAT groups that `keep` wants. The others are left out, because the program
    /// has groups of their signatures already: their visible symbols become external.
    pub fn retain_comdats(&mut self, mut keep: impl FnMut(&Comdat) -> bool) {
        let Self { comdats, blocks, symbols, .. } = self;
        comdats.retain(|comdat| {
            let kept = keep(comdat);
            if !kept {
                comdat.blocks.iter().for_each(|block| blocks[block.index()].live = false);
                comdat.symbols.iter().for_each(|symbol| symbols[symbol.index()].definition = Definition::External);
            }
            kept
        });
        for (host, attached) in &self.attached {
            if !self.blocks[host.index()].live {
                self.blocks[attached.index()].live = false;
            }
        }
    }

    /// Leaves out whatever needs one of the `failed` symbols, and returns the symbols that are
    /// lost with it.
    pub fn exclude(&mut self, failed: &[SymbolId]) -> Vec<SymbolId> {
        crate::pass::depend::exclude(self, failed)
    }

    /// Turns a definition into a reference to another's of the same name: that of a weak symbol
    /// whose definition elsewhere is taken.
    pub fn make_external(&mut self, symbol: SymbolId) {
        if let Some(symbol) = self.change(symbol) {
            symbol.definition = Definition::External;
        }
    }

    /// Whether it has a variable of a name with a value: a common of another graph gives way to that.
    #[must_use]
    pub fn has_value(&self, name: &SymbolName) -> bool {
        self.symbols().any(|(id, symbol)| {
            symbol.is_defined_here()
                && symbol.linkage == Linkage::Strong
                && symbol.kind != SymbolKind::Function
                && self.symbol_name(id) == Some(name)
        })
    }

    /// Makes a common at least as large and as aligned as another of its name, and leaves what is no common as it is. Of
    /// one that was [made external](Self::make_external) only the size changes.
    pub fn grow_common(&mut self, symbol: SymbolId, size: u32, align_log2: u8) {
        let Some(symbol) = self.symbols.get_mut(symbol.index()) else {
            self.foreign_id = true;
            return;
        };
        if symbol.linkage != Linkage::Common {
            return;
        }
        symbol.size = symbol.size.max(size);
        if let Definition::Block { block, offset: 0 } = symbol.definition
            && let Some(block) = self.blocks.get_mut(block.index()).filter(|block| block.content == Content::Zero)
        {
            block.size = block.size.max(size);
            block.align_log2 = block.align_log2.max(align_log2);
        }
    }

    /// Says how a symbol stands against others of its name, and who sees it.
    pub fn set_binding(&mut self, symbol: SymbolId, linkage: Linkage, scope: Scope) {
        if let Some(symbol) = self.change(symbol) {
            (symbol.linkage, symbol.scope) = (linkage, scope);
        }
    }

    /// The sections that hold initializers, in the order they run.
    #[must_use]
    pub fn initializers(&self) -> Vec<SectionId> {
        let priority = |role| match role {
            SectionRole::Initializers { priority, .. } => Some(priority),
            _ => None,
        };
        self.sections_by(priority)
    }

    /// The sections that hold finalizers, in the order they run.
    #[must_use]
    pub fn finalizers(&self) -> Vec<SectionId> {
        let priority = |role| match role {
            SectionRole::Finalizers { priority, .. } => Some(priority),
            _ => None,
        };
        let mut sections = self.sections_by(priority);
        sections.reverse();
        sections
    }

    fn sections_by(&self, priority: impl Fn(SectionRole) -> Option<u32>) -> Vec<SectionId> {
        let mut sections: Vec<_> =
            self.sections().filter_map(|(id, section)| Some((priority(section.role)?, id))).collect();
        sections.sort_unstable();
        sections.into_iter().map(|(_, id)| id).collect()
    }

    /// The section with a role that at most one has: unwinding tables, the thread-local template.
    #[must_use]
    pub fn section_with(&self, role: SectionRole) -> Option<SectionId> {
        self.sections().find(|(_, section)| section.role == role).map(|(id, _)| id)
    }

    pub(crate) fn is_note(&self, block: BlockId) -> bool {
        self.block(block).section.is_some_and(|section| self.section(section).role == SectionRole::Note)
    }

    fn text(&self, text: Text) -> Cow<'_, str> {
        let start = text.start as usize;
        String::from_utf8_lossy(self.object.get(start..start + text.length as usize).unwrap_or_default())
    }

    /// Where in the edges those of each block are.
    pub(crate) fn edge_ranges(&self) -> Vec<Range<usize>> {
        let mut ranges = vec![0..0; self.blocks.len()];
        let mut start = 0;
        for edges in self.edges_by_block() {
            ranges[edges[0].block.index()] = start..start + edges.len();
            start += edges.len();
        }
        ranges
    }

    /// The edges of each block in turn.
    pub(crate) fn edges_by_block(&self) -> impl Iterator<Item = &[Edge]> {
        self.edges.chunk_by(|a, b| a.block == b.block)
    }
}

/// Why a graph can't hold what it was given.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GraphError {
    /// A block, or all blocks together, exceed 4 GiB.
    #[error("a block of {size} bytes is too large for a link graph")]
    TooLarge {
        /// The block's size in bytes.
        size: u64,
    },
    /// The alignment is not a power of two, or beyond 2 GiB.
    #[error("an alignment of {align} is not a power of two up to 2 GiB")]
    Alignment {
        /// Bytes.
        align: u64,
    },
    /// Edges are added to the newest block only.
    #[error("an edge belongs to a block that is not the newest")]
    EdgeOrder,
    /// A block or symbol of another graph.
    #[error("an id of another link graph")]
    ForeignId,
    /// It is laid out already: there is no room for more.
    #[error("the link graph is laid out: it takes no more content")]
    Settled,
    /// The edge is of another architecture.
    #[error("an edge of {edge} in a graph of {graph}")]
    Architecture {
        /// The edge's.
        edge: Architecture,
        /// The graph's.
        graph: Architecture,
    },
}
