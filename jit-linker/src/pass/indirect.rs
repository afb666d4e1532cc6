//! GOT entries and stubs: which references need one, and where it is.
//!
//! An entry belongs to a symbol and addend, never to a name. Edges keep the symbol they refer to,
//! so that fixup can still choose between the entry, the symbol's slot and the symbol itself.

use rustc_hash::FxHashMap;

use super::island::Islands;
use crate::arch::{Architecture, Origin, Referent, aarch64, stub, x86_64};
use crate::graph::{Block, BlockId, Definition, Edge, EdgeKind, LinkGraph, Symbol, SymbolId, SymbolKind};
use crate::link::LinkError;
use crate::memory::SegmentKind;

/// Bytes of a GOT entry.
pub(crate) const GOT_ENTRY: u32 = 8;

/// What stands in the GOT.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum GotContent {
    /// The address of a symbol, plus an addend.
    Address(SymbolId, i64),
    /// What a resolver returned: the address of the function to call.
    Resolved(SymbolId),
    /// The offset of a thread-local variable from the thread pointer.
    TlsOffset(SymbolId, i64),
    /// The module of a thread-local variable, and its offset there.
    TlsPair(SymbolId, i64),
    /// The graph's own module, and 0.
    TlsModule,
    /// What a thread-local variable's offset is found with: a function and its argument.
    TlsDescriptor(SymbolId, i64),
}

impl GotContent {
    const fn words(self) -> u32 {
        match self {
            Self::Address(..) | Self::Resolved(_) | Self::TlsOffset(..) => 1,
            Self::TlsPair(..) | Self::TlsModule | Self::TlsDescriptor(..) => 2,
        }
    }
}

/// A stub, which jumps to a symbol through its GOT entry.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stub {
    /// The offset of its GOT entry in the GOT.
    pub(crate) entry: u32,
    /// The block it is in, and where.
    pub(crate) block: BlockId,
    pub(crate) offset: u32,
}

/// The symbol of a function that is chosen when the code is loaded.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Resolver {
    /// The function that chooses.
    pub(crate) function: SymbolId,
    /// The offset in the GOT of the entry that holds its choice.
    pub(crate) entry: u32,
}

/// The GOT and the stubs of one graph.
#[derive(Debug, Default)]
pub(crate) struct Indirection {
    /// What the GOT holds, with the offset in it.
    pub(crate) entries: Vec<(GotContent, u32)>,
    pub(crate) stubs: Vec<Stub>,
    pub(crate) resolvers: Vec<Resolver>,
    pub(crate) got_block: Option<BlockId>,
    /// The code that a TLS descriptor of a variable at a known offset leads to.
    pub(crate) tls_resolver: Option<BlockId>,
    pub(crate) islands: Islands,
    needs_got: bool,
    got_size: u32,
    entry_of: FxHashMap<GotContent, u32>,
    stub_of: FxHashMap<StubKey, u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct StubKey {
    island: u32,
    target: SymbolId,
    addend: i64,
}

impl Indirection {
    /// Finds what needs an entry or a stub, and adds blocks with room for them, in their places
    /// in the order of blocks.
    pub(crate) fn build(graph: &mut LinkGraph, order: &mut Vec<BlockId>) -> Result<Self, LinkError> {
        // Such a symbol is there because something refers to it.
        let needs_got = graph.symbols.iter().any(|symbol| symbol.definition == Definition::GotBase);
        let mut this = Self { islands: Islands::new(graph, order), needs_got, ..Self::default() };
        for edge in &graph.edges {
            // Nearly all need nothing.
            if is_distance(edge.kind)
                || is_local_branch(graph, edge)
                || is_plain(edge.kind)
                || !graph.blocks[edge.block.index()].live
            {
                continue;
            }
            this.visit(graph, edge);
        }
        let resolvers = this.visit_resolvers(graph);
        this.add_blocks(graph, order)?;
        for (symbol, stub) in resolvers {
            let Stub { block, offset, .. } = this.stubs[stub as usize];
            graph.symbols[symbol.index()].definition = Definition::Block { block, offset };
        }
        Ok(this)
    }

    fn visit(&mut self, graph: &LinkGraph, edge: &Edge) {
        let referent = edge.kind.referent();
        if referent.is_got_entry() && !is_relaxed_inside(graph, edge) {
            self.entry(got_content(edge));
        } else if referent == Referent::GotBase || is_from_got(edge.kind) {
            self.needs_got = true;
        } else if referent == Referent::Branch && self.needs_stub(graph, edge) {
            self.stub(self.stub_key(graph, edge));
        }
    }

    fn needs_stub(&self, graph: &LinkGraph, edge: &Edge) -> bool {
        let Definition::Block { block, .. } = graph.symbol(edge.target).definition else {
            return !is_cranelift_address(graph, edge);
        };
        let is_short = graph.architecture() == Architecture::Aarch64;
        is_short
            && (self.islands.of(edge.block) != self.islands.of(block) || graph.block(block).kind != SegmentKind::Code)
    }

    /// A function that is chosen when the code is loaded is reached through a stub, wherever it is
    /// referred to from: the stub is its address.
    fn visit_resolvers(&mut self, graph: &mut LinkGraph) -> Vec<(SymbolId, u32)> {
        let symbols = graph.symbols().filter(|(_, symbol)| symbol.kind == SymbolKind::Resolver);
        let symbols: Vec<_> = symbols.filter(|(_, symbol)| is_live(graph, symbol)).map(|(id, _)| id).collect();
        let mut stubs = Vec::with_capacity(symbols.len());
        for symbol in symbols {
            let resolver = graph.symbol(symbol);
            let (linkage, scope, size) = (resolver.linkage, resolver.scope, resolver.size);
            let function =
                Symbol { linkage, scope, kind: SymbolKind::Function, size, ..Symbol::new(resolver.definition) };
            let function = graph.add_symbol(None, function);
            let entry = self.entry(GotContent::Resolved(symbol));
            self.resolvers.push(Resolver { function, entry });
            stubs.push((symbol, self.push_stub(entry, self.islands.last())));
        }
        stubs
    }

    fn add_blocks(&mut self, graph: &mut LinkGraph, order: &mut Vec<BlockId>) -> Result<(), LinkError> {
        if self.needs_got || self.got_size > 0 {
            let size = u64::from(self.got_size.max(GOT_ENTRY));
            let block = graph.add_zero_block(SegmentKind::Data, size, u64::from(GOT_ENTRY))?;
            order.push(block);
            self.got_block = Some(block);
        }
        if self.entries.iter().any(|(content, _)| matches!(content, GotContent::TlsDescriptor(..))) {
            let code = stub::tls_resolver(graph.architecture());
            let block = graph.add_block(SegmentKind::Code, &code, stub::STUB_SIZE as u64)?;
            order.push(block);
            self.tls_resolver = Some(block);
        }
        if !self.stubs.is_empty() {
            self.islands.add_stubs(graph, order, &mut self.stubs)?;
        }
        Ok(())
    }

    fn entry(&mut self, content: GotContent) -> u32 {
        let next = self.got_size;
        *self.entry_of.entry(content).or_insert_with(|| {
            self.entries.push((content, next));
            self.got_size += content.words() * GOT_ENTRY;
            next
        })
    }

    fn stub(&mut self, key: StubKey) {
        if !self.stub_of.contains_key(&key) {
            let entry = self.entry(GotContent::Address(key.target, key.addend));
            let stub = self.push_stub(entry, key.island);
            self.stub_of.insert(key, stub);
        }
    }

    /// The block of a stub is not there yet: what stands for it is its island's number.
    fn push_stub(&mut self, entry: u32, island: u32) -> u32 {
        self.stubs.push(Stub { entry, block: BlockId(island), offset: 0 });
        self.stubs.len() as u32 - 1
    }

    fn stub_key(&self, graph: &LinkGraph, edge: &Edge) -> StubKey {
        let addend = edge.addend.wrapping_sub(branch_bias(graph, edge));
        StubKey { island: self.islands.of(edge.block), target: edge.target, addend }
    }

    /// Where in the GOT the entries are that an edge refers to.
    pub(crate) fn entry_offset(&self, edge: &Edge) -> Option<u32> {
        self.entry_of.get(&got_content(edge)).copied()
    }

    /// The stub that an edge can go through.
    pub(crate) fn stub_for(&self, graph: &LinkGraph, edge: &Edge) -> Option<&Stub> {
        self.stub_of.get(&self.stub_key(graph, edge)).map(|index| &self.stubs[*index as usize])
    }
}

/// Whether an edge is what most are that are no branches: plain, and told at once.
#[inline]
fn is_distance(kind: EdgeKind) -> bool {
    matches!(kind, EdgeKind::X86_64(x86_64::EdgeKind::Delta32))
}

/// Whether an edge needs neither entry nor stub: it is about where its symbol is.
#[inline]
fn is_plain(kind: EdgeKind) -> bool {
    kind.referent() == Referent::Symbol && !is_from_got(kind)
}

/// Whether an edge is a branch of x86-64 to the graph's own code, which is in reach.
#[inline]
fn is_local_branch(graph: &LinkGraph, edge: &Edge) -> bool {
    matches!(edge.kind, EdgeKind::X86_64(x86_64::EdgeKind::Branch32 | x86_64::EdgeKind::Plt32))
        && graph.symbols[edge.target.index()].is_defined_here()
}

#[inline]
fn is_from_got(kind: EdgeKind) -> bool {
    matches!(kind.origin(), Origin::GotBase | Origin::GotPage)
}

/// The part of a branch's addend that remains when a stub stands for target and addend: how far
/// before its end an x86-64 instruction has the field. In data the whole addend remains.
pub(crate) fn branch_bias(graph: &LinkGraph, edge: &Edge) -> i64 {
    match edge.kind {
        EdgeKind::X86_64(_) if is_x86_64_branch(graph, edge) => -4,
        EdgeKind::Aarch64(aarch64::EdgeKind::Branch26) => 0,
        _ => edge.addend,
    }
}

/// The GOT's content that an edge refers to. In AArch64's instructions the addend is the
/// symbol's; elsewhere it is added to the entry's address.
fn got_content(edge: &Edge) -> GotContent {
    let addend = match edge.kind {
        EdgeKind::Aarch64(aarch64::EdgeKind::GotDelta32 | aarch64::EdgeKind::GotPointer64) | EdgeKind::X86_64(_) => 0,
        EdgeKind::Aarch64(_) => edge.addend,
    };
    match edge.kind.referent() {
        Referent::TlsPair => GotContent::TlsPair(edge.target, addend),
        Referent::TlsModule => GotContent::TlsModule,
        Referent::TlsEntry => GotContent::TlsOffset(edge.target, addend),
        Referent::TlsDescriptor => GotContent::TlsDescriptor(edge.target, addend),
        _ => GotContent::Address(edge.target, addend),
    }
}

/// Whether an edge through the GOT does without it, because its target is in this graph and so
/// near enough: for AArch64's pair of instructions, which must agree, whatever they are.
pub(crate) fn is_relaxed_inside(graph: &LinkGraph, edge: &Edge) -> bool {
    let symbol = graph.symbol(edge.target);
    if !symbol.is_defined_here() || symbol.kind == SymbolKind::ThreadLocal {
        return false;
    }
    match edge.kind {
        EdgeKind::X86_64(x86_64::EdgeKind::GotLoad32 | x86_64::EdgeKind::GotOperand32) => {
            got_use(graph, edge).is_some()
        }
        EdgeKind::Aarch64(aarch64::EdgeKind::GotPage21 | aarch64::EdgeKind::GotPageOffset12) => true,
        _ => false,
    }
}

/// Cranelift relocates an address that is taken like a call, and its address has to be the
/// canonical one: no stub stands for it.
fn is_cranelift_address(graph: &LinkGraph, edge: &Edge) -> bool {
    edge.kind == EdgeKind::X86_64(x86_64::EdgeKind::Branch32) && !is_x86_64_branch(graph, edge)
}

pub(crate) fn is_x86_64_branch(graph: &LinkGraph, edge: &Edge) -> bool {
    graph.block(edge.block).kind == SegmentKind::Code && x86_64::is_branch(source(graph, edge), edge.offset)
}

/// What an x86-64 instruction does with the GOT entry that an edge refers to, if it could do without.
pub(crate) fn got_use(graph: &LinkGraph, edge: &Edge) -> Option<x86_64::GotUse> {
    x86_64::got_use(source(graph, edge), edge.offset, edge.addend)
}

fn source<'a>(graph: &'a LinkGraph, edge: &Edge) -> &'a [u8] {
    let block: &Block = &graph.blocks[edge.block.index()];
    graph.bytes(block).unwrap_or_default()
}

fn is_live(graph: &LinkGraph, symbol: &Symbol) -> bool {
    matches!(symbol.definition, Definition::Block { block, .. } if graph.block(block).live)
}
