//! The pipeline, as a state machine that its host drives.
//!
//! ```text
//! LinkGraph -> load -> Loaded            what nobody needs can be left out
//!           -> prepare -> Prepared       GOT and stubs built, blocks laid out
//!           -> allocate -> Allocated     addresses known: publish them, look up the externals
//!           -> fix_up -> Fixed           content final in working memory
//!           -> finalize                  executable
//! ```
//!
//! Between the steps run the [passes](crate::plugin) that the link was begun with.
//!
//! Nothing here waits: between two steps the host may take as long as it needs, on any thread.
//!
//! ```
//! use std::sync::Arc;
//!
//! use jit_linker::arch::{Architecture, x86_64};
//! use jit_linker::graph::{Edge, EdgeKind, LinkGraph};
//! use jit_linker::link;
//! use jit_linker::memory::{MemoryManager, PageManager, SegmentKind};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // A word that holds where `there` is.
//! let names = jit_linker::SymbolStringPool::new();
//! let mut graph = LinkGraph::new("pointer", Architecture::X86_64);
//! let target = graph.external(names.intern("there"), 0);
//! let block = graph.add_block(SegmentKind::Data, &[0; 8], 8)?;
//! let kind = EdgeKind::X86_64(x86_64::EdgeKind::Pointer64);
//! graph.add_edge(Edge { block, offset: 0, kind, target, addend: 0 })?;
//! let pointer = graph.define(Some(names.intern("pointer")), block, 0, 8);
//!
//! let memory: Arc<dyn MemoryManager> = Arc::new(PageManager::new());
//! let mut allocated = link::prepare(graph)?.allocate(&memory)?;
//! // The graph's own addresses can be published now, and those it needs be found.
//! let address = allocated.address(pointer);
//! for external in allocated.externals() {
//!     allocated.resolve(external, 0x1234_5678, None);
//! }
//! let code = allocated.fix_up()?.finalize()?;
//! // SAFETY: the word is the graph's, whose memory is `code`'s.
//! assert_eq!(unsafe { *std::ptr::with_exposed_provenance::<u64>(address as usize) }, 0x1234_5678);
//! drop(code);
//! # Ok(())
//! # }
//! ```

use std::ops::Range;
use std::sync::Arc;

use crate::arch::{Architecture, FixupError, stub};
use crate::graph::{BlockId, Definition, Edge, EdgeKind, GraphError, LinkGraph, SectionId, SymbolId};
use crate::memory::{Allocation, FinalizedAllocation, MemoryError, MemoryManager, Request, SegmentKind};
use crate::pass::fixup::{Elsewhere, Placement};
use crate::pass::indirect::Indirection;
use crate::pass::{depend, layout, prune};
use crate::plugin::{self, PassError, Passes, Stage};

/// Begins a link with passes of the host's, and runs those that come first.
///
/// # Errors
///
/// When a pass fails.
pub fn load(mut graph: LinkGraph, mut passes: Passes) -> Result<Loaded, LinkError> {
    plugin::run(Stage::BeforePrune, &mut passes.before_prune, &mut graph)?;
    Ok(Loaded { graph, passes })
}

/// A graph whose content is not settled.
#[derive(Debug)]
pub struct Loaded {
    graph: LinkGraph,
    passes: Passes,
}

impl Loaded {
    /// The graph.
    #[must_use]
    pub fn graph(&self) -> &LinkGraph {
        &self.graph
    }

    /// The graph, to change it.
    pub fn graph_mut(&mut self) -> &mut LinkGraph {
        &mut self.graph
    }

    /// Leaves out what neither a `wanted` symbol leads to nor a block that is
    /// [kept](LinkGraph::keep).
    pub fn prune(&mut self, wanted: &[SymbolId]) {
        prune::prune(&mut self.graph, wanted);
    }

    /// As the function [`prepare`], after the passes that come before it.
    ///
    /// # Errors
    ///
    /// As the function's, or when a pass fails.
    pub fn prepare(self) -> Result<Prepared, LinkError> {
        let Self { mut graph, mut passes } = self;
        plugin::run(Stage::AfterPrune, &mut passes.after_prune, &mut graph)?;
        lay_out(graph, passes)
    }
}

/// Builds GOT and stubs and lays the graph out.
///
/// # Errors
///
/// When a relocation does not fit its instruction, or the graph is too large.
pub fn prepare(graph: LinkGraph) -> Result<Prepared, LinkError> {
    lay_out(graph, Passes::default())
}

fn lay_out(mut graph: LinkGraph, passes: Passes) -> Result<Prepared, LinkError> {
    graph.check()?;
    let mut order = layout::order(&graph);
    layout::terminate_unwind_tables(&mut graph, &mut order)?;
    let indirection = Indirection::build(&mut graph, &mut order)?;
    let request = layout::assign(&mut graph, &order)?;
    graph.settle();
    Ok(Prepared { graph, indirection, request, passes })
}

/// A graph that is laid out and has no memory yet.
#[derive(Debug)]
pub struct Prepared {
    graph: LinkGraph,
    indirection: Indirection,
    request: Request,
    passes: Passes,
}

impl Prepared {
    /// The memory it needs.
    #[must_use]
    pub fn request(&self) -> &Request {
        &self.request
    }

    /// Reserves memory, which settles every address.
    ///
    /// # Errors
    ///
    /// As the memory manager's, or when a pass fails: the memory has gone back then.
    pub fn allocate(self, memory: &Arc<dyn MemoryManager>) -> Result<Allocated, LinkError> {
        let Self { graph, indirection, request, mut passes } = self;
        let allocation = Allocation::new(memory, &request)?;
        let mut placement = Placement::new(graph, indirection, allocation);
        if !passes.after_allocation.is_empty() {
            plugin::run(Stage::AfterAllocation, &mut passes.after_allocation, &mut placement.graph)?;
            placement.graph.check()?;
            placement.place_symbols();
        }
        Ok(Allocated { placement, passes })
    }
}

/// A graph whose addresses are settled, waiting for those of its externals.
#[derive(Debug)]
pub struct Allocated {
    placement: Box<Placement>,
    passes: Passes,
}

impl Allocated {
    /// The graph.
    #[must_use]
    pub fn graph(&self) -> &LinkGraph {
        &self.placement.graph
    }

    /// The addresses of a segment.
    #[must_use]
    pub fn segment(&self, kind: SegmentKind) -> Range<u64> {
        let start = self.placement.bases[kind as usize];
        start..start + self.placement.allocation.size(kind) as u64
    }

    pub(crate) fn placement(&self) -> &Placement {
        &self.placement
    }

    /// The address of a symbol that the graph defines, or that was resolved.
    #[must_use]
    pub fn address(&self, symbol: SymbolId) -> u64 {
        self.graph().symbol(symbol).address
    }

    /// The symbols that something live refers to and that have to be looked up.
    #[must_use]
    pub fn externals(&self) -> Vec<SymbolId> {
        depend::externals(self.graph())
    }

    /// Whether a symbol has to be looked up.
    #[must_use]
    pub fn is_external(&self, symbol: SymbolId) -> bool {
        self.graph().symbol(symbol).definition == Definition::External
    }

    /// The addresses of a section: of initializers, unwinding tables, the thread-local template.
    #[must_use]
    pub fn section_range(&self, section: SectionId) -> Range<u64> {
        let section = self.graph().section(section);
        let base = self.placement.bases[section.kind as usize];
        base + u64::from(section.start)..base + u64::from(section.end)
    }

    /// The addresses of stubs, in pieces without gaps. They are entered by calls and jumps, leave by
    /// jumps, and use no stack: what an unwinder has to be told, since no object does.
    #[must_use]
    pub fn stub_ranges(&self) -> Vec<Range<u64>> {
        let indirection = &self.placement.indirection;
        if indirection.stubs.is_empty() && indirection.tls_resolver.is_none() {
            return Vec::new();
        }
        let mut blocks: Vec<_> = indirection.stubs.iter().map(|stub| stub.block).collect();
        blocks.extend(indirection.tls_resolver);
        blocks.sort_unstable_by_key(|block| block.index());
        blocks.dedup();
        let range = |block| {
            let start = self.placement.block_address(block);
            start..start + u64::from(self.graph().block(block).size)
        };
        blocks.into_iter().map(range).collect()
    }

    /// The functions that are chosen when the code is loaded. Each has to be settled after the
    /// memory is final and before anybody calls what depends on it.
    #[must_use]
    pub fn resolvers(&self) -> Vec<Resolver> {
        let got = self.placement.got_base();
        let resolver = |resolver: &crate::pass::indirect::Resolver| Resolver {
            function: self.address(resolver.function),
            slot: got + u64::from(resolver.entry),
        };
        self.placement.indirection.resolvers.iter().map(resolver).collect()
    }

    /// Pairs of a named symbol defined here and a named symbol it needs, both of them `known`: what they say
    /// together is all that each needs. Of several symbols in one block, all need one of them, which needs what the
    /// block does.
    #[must_use]
    pub fn dependences(&self, known: impl Fn(SymbolId) -> bool) -> Vec<(SymbolId, SymbolId)> {
        depend::dependences(self.graph(), known)
    }

    /// Says where an external symbol is. `slot` is the word that holds where its body is now, if
    /// the symbol can be redirected: calls go through it. A weak symbol that was not found is at
    /// address 0.
    pub fn resolve(&mut self, symbol: SymbolId, address: u64, slot: Option<u64>) {
        let Placement { graph, slots, .. } = &mut *self.placement;
        if let Some(found) = graph.symbols.get_mut(symbol.index()) {
            found.address = address;
            match slot {
                Some(slot) => _ = slots.insert(symbol, slot),
                None => _ = slots.remove(&symbol),
            }
        }
    }

    /// Says where an external thread-local variable is.
    pub fn resolve_thread_local(&mut self, symbol: SymbolId, location: TlsLocation) {
        self.placement.tls_externals.insert(symbol, location);
    }

    /// The initial values of this graph's own thread-local variables, if it has any. Values that
    /// depend on an external which is not resolved yet are as if it were at address 0.
    ///
    /// # Errors
    ///
    /// When a value does not fit its field.
    pub fn thread_local_image(&self) -> Result<Option<ThreadLocalImage>, LinkError> {
        self.placement.thread_local_image()
    }

    /// The offset of a thread-local variable of this graph's own in its template. Of a symbol that is a descriptor (Mach-O)
    /// it is that of the variable which the descriptor is for.
    #[must_use]
    pub fn thread_local_offset(&self, symbol: SymbolId) -> Option<u64> {
        self.placement.thread_local_offset(symbol)
    }

    /// Says where each thread has its copy of this graph's own template, the section with
    /// [`SectionRole::ThreadLocal`](crate::graph::SectionRole::ThreadLocal).
    pub fn set_thread_local_storage(&mut self, location: TlsLocation) {
        self.placement.tls_storage = Some(location);
    }

    /// Has a section be a part of a larger one that the host has at `whole`, from `address` on: its content is linked as
    /// if it were there, for the host to [copy](Fixed::section_content), and symbols for its bounds are the whole's.
    pub fn place_section(&mut self, section: SectionId, address: u64, whole: Range<u64>) {
        self.placement.elsewhere.insert(section, Elsewhere { address, whole });
        self.placement.place_symbols();
    }

    /// Leaves out whatever needs one of the `failed` symbols, and returns the symbols that are
    /// lost with it. The rest can still be linked.
    pub fn exclude(&mut self, failed: &[SymbolId]) -> Vec<SymbolId> {
        depend::exclude(&mut self.placement.graph, failed)
    }

    /// Copies the content into working memory and applies the fixups.
    ///
    /// # Errors
    ///
    /// When a value does not fit its field: the error names the symbol and the place. When a pass
    /// fails. The memory has gone back then.
    pub fn fix_up(self) -> Result<Fixed, LinkError> {
        self.fix_up_with(|_, error| Err(error))
    }

    /// As [`fix_up`](Self::fix_up), but for blocks with a value that does not fit its field: what is in them must not be
    /// used, nor what needs it, which is for the host to see to.
    ///
    /// # Errors
    ///
    /// When something else is wrong. The memory has gone back then.
    pub fn fix_up_what_fits(self) -> Result<(Fixed, Vec<(BlockId, LinkError)>), LinkError> {
        let mut failed = Vec::new();
        let fixed = self.fix_up_with(|block, error| {
            failed.push((block, error));
            Ok(())
        })?;
        Ok((fixed, failed))
    }

    fn fix_up_with(self, failed: impl FnMut(BlockId, LinkError) -> Result<(), LinkError>) -> Result<Fixed, LinkError> {
        let Self { mut placement, mut passes } = self;
        if !passes.before_fixup.is_empty() {
            plugin::run(Stage::BeforeFixup, &mut passes.before_fixup, &mut placement.graph)?;
            placement.graph.check()?;
        }
        placement.write(!passes.after_fixup.is_empty(), failed)?;
        let mut fixed = Fixed { placement };
        plugin::run_on_content(passes.after_fixup, &mut fixed)?;
        Ok(fixed)
    }
}

/// The template of a graph's thread-local variables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ThreadLocalImage {
    /// The initial values.
    pub bytes: Vec<u8>,
    /// The alignment in bytes: a power of two.
    pub align: u64,
    /// Whether a value depends on the address of an external symbol.
    pub depends_on_externals: bool,
}

/// Where a thread-local variable is, or the first of a graph's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TlsLocation {
    /// The number that `__tls_get_addr` knows the module by.
    pub module: u64,
    /// Bytes from the start of the module's storage, as `__tls_get_addr` counts them.
    pub offset: u64,
    /// Bytes from the thread pointer, if that is the same in every thread: the variable is in the
    /// static block. Code that was compiled for an executable can reach no other.
    pub thread_pointer_offset: Option<i64>,
    /// A TLS descriptor: the address of a resolver and its argument, which grows with the offset.
    /// Not needed for a variable in the static block.
    pub descriptor: Option<[u64; 2]>,
}

impl TlsLocation {
    /// The location `offset` bytes further.
    #[must_use]
    pub fn at(self, offset: u64) -> Self {
        let signed = offset.cast_signed();
        Self {
            module: self.module,
            offset: self.offset.wrapping_add(offset),
            thread_pointer_offset: self.thread_pointer_offset.map(|start| start.wrapping_add(signed)),
            descriptor: self.descriptor.map(|[resolver, argument]| [resolver, argument.wrapping_add(offset)]),
        }
    }

    pub(crate) fn static_offset(self) -> Result<i64, FixupError> {
        self.thread_pointer_offset.ok_or(FixupError::NotInStaticBlock)
    }
}

/// A function that returns the address of the function to call in its place, once
/// (`STT_GNU_IFUNC`). Until then the symbol leads nowhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resolver {
    /// The function's address.
    pub function: u64,
    /// The word that what it returns is stored in.
    pub slot: u64,
}

/// A graph whose content is final in working memory.
#[derive(Debug)]
pub struct Fixed {
    placement: Box<Placement>,
}

impl Fixed {
    /// The graph; without its edges, which are applied, unless there are passes that come after.
    #[must_use]
    pub fn graph(&self) -> &LinkGraph {
        &self.placement.graph
    }

    /// The final bytes of a block, to be read or written; none if the block is left out.
    pub fn block_content(&mut self, block: BlockId) -> &mut [u8] {
        let is_live = self.graph().block(block).live;
        if is_live { self.placement.block_bytes(block) } else { &mut [] }
    }

    /// The final bytes of a section.
    #[must_use]
    pub fn section_content(&mut self, section: SectionId) -> &[u8] {
        let section = self.graph().section(section);
        let (kind, range) = (section.kind, section.start as usize..section.end as usize);
        self.content(kind).get(range).unwrap_or_default()
    }

    /// The bytes of a segment as they will be seen at its address.
    #[must_use]
    pub fn content(&mut self, kind: SegmentKind) -> &[u8] {
        self.placement.allocation.working(kind)
    }

    /// Publishes the memory: code can run from here on.
    ///
    /// # Errors
    ///
    /// As the memory manager's.
    pub fn finalize(self) -> Result<FinalizedAllocation, LinkError> {
        Ok(self.placement.allocation.finalize()?)
    }
}

/// Why a graph can't be linked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LinkError {
    /// A fixup can't be applied.
    #[error("in {graph}: relocation {kind} of '{symbol}' at {section}+{offset:#x}: {source}{advice}")]
    Fixup {
        /// The graph's name.
        graph: String,
        /// The section the place is in; empty where there are none.
        section: String,
        /// The symbol the place refers to.
        symbol: String,
        /// The edge kind.
        kind: String,
        /// The place's offset in its block.
        offset: u32,
        /// What is wrong.
        source: FixupError,
        /// What can be done about it.
        advice: &'static str,
    },
    /// A GOT entry can't be filled.
    #[error("in {graph}: the GOT entry of '{symbol}': {source}")]
    Got {
        /// The graph's name.
        graph: String,
        /// The symbol the entry is for.
        symbol: String,
        /// What is wrong.
        source: FixupError,
    },
    /// A stub can't reach its GOT entry.
    #[error("in {graph}: {source}")]
    Stub {
        /// The graph's name.
        graph: String,
        /// What is wrong.
        source: stub::StubError,
    },
    /// A pass of the host's ended the link.
    #[error("in {graph}: a pass {stage}: {source}")]
    Pass {
        /// The graph's name.
        graph: String,
        /// When it was run.
        stage: Stage,
        /// Its reason.
        source: PassError,
    },
    /// A segment exceeds 4 GiB.
    #[error("a segment of {size} bytes is too large")]
    TooLarge {
        /// Its size in bytes.
        size: u64,
    },
    /// The graph can't be built.
    #[error(transparent)]
    Graph(#[from] GraphError),
    /// There is no memory for it.
    #[error(transparent)]
    Memory(#[from] MemoryError),
}

impl LinkError {
    pub(crate) fn fixup(graph: &LinkGraph, edge: &Edge, source: FixupError) -> Self {
        let symbol = Self::label(graph, edge.target);
        let kind = match edge.kind {
            EdgeKind::X86_64(kind) => format!("{} {kind:?}", Architecture::X86_64),
            EdgeKind::Aarch64(kind) => format!("{} {kind:?}", Architecture::Aarch64),
        };
        let section = graph.block(edge.block).section.map(|section| graph.section_name(section).into_owned());
        let advice = match source {
            FixupError::OutOfRange { .. } if edge.kind.is_tiny() => "; compile with -mcmodel=small",
            FixupError::OutOfRange { .. } if !graph.symbol(edge.target).is_defined_here() => "; compile with -fPIC",
            _ => "",
        };
        let section = section.unwrap_or_default();
        Self::Fixup { graph: graph.name().to_owned(), section, symbol, kind, offset: edge.offset, source, advice }
    }

    /// What a symbol is called in an error.
    pub(crate) fn label(graph: &LinkGraph, symbol: SymbolId) -> String {
        let label = graph.symbol_label(symbol);
        if label.is_empty() { format!("#{}", symbol.index()) } else { label.into_owned() }
    }
}

const _: () = {
    const fn assert_send<T: Send>() {}
    assert_send::<Allocated>();
};
