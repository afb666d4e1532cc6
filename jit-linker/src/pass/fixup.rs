//! Writes content, GOT, stubs and fixups into working memory, once every address is known.

use std::ops::Range;

use rustc_hash::FxHashMap;

use super::indirect::{self, GOT_ENTRY, GotContent, Indirection};
use super::window::Windows;
use crate::arch::{self, FixupError, Operands, Origin, Referent, aarch64, stub, x86_64};
use crate::graph::{
    Block, BlockId, Definition, Edge, EdgeKind, LinkGraph, Linkage, SectionId, SectionRole, SymbolId, SymbolKind,
};
use crate::link::{LinkError, ThreadLocalImage, TlsLocation};
use crate::memory::{Allocation, SegmentKind};

/// Room for so many edges is given back at a time: it is worth a system call, and being brought
/// anew for the next graph. Within a large block, for a quarter of what is left, since all of its content is there in the end.
const SPARE_EDGES: usize = 1 << 15;
const LEAST_SPARE_EDGES: usize = 1 << 8;

/// Parts of a large block get smaller towards its start, so that little is brought while there are edges left; not smaller
/// than this.
const LEAST_PART: usize = 8 << 10;

/// So far before its place an edge may change an instruction.
const BEFORE_PLACE: usize = 16;

/// The edges that are still to be applied.
struct Rest {
    edges: Vec<Edge>,
    end: usize,
    keep: bool,
}

impl Rest {
    /// Where the edges of the last block that has any begin, if it is this one.
    fn start_of(&self, block: BlockId) -> usize {
        self.end - self.edges[..self.end].iter().rev().take_while(|edge| edge.block == block).count()
    }

    /// Those from `start` on are done with: their memory goes back if there is more than `spare` of it, unless they are kept.
    fn done_from(&mut self, start: usize, spare: usize) {
        self.end = start;
        if !self.keep && self.edges.capacity() - start > spare {
            self.edges.truncate(start);
            self.edges.shrink_to_fit();
        }
    }
}

/// Where a section is that is one with sections of other graphs.
#[derive(Clone, Debug)]
pub(crate) struct Elsewhere {
    /// The address of the graph's part.
    pub(crate) address: u64,
    /// The addresses of all parts.
    pub(crate) whole: Range<u64>,
}

/// What local-dynamic code counts from that refers to variables of other objects.
#[derive(Clone, Copy, Debug)]
enum SharedTls {
    /// The module that all of them are in.
    Module(TlsLocation),
    /// The thread pointer: the place which, counted from a module in the static block, has offset 0 from it.
    ThreadPointer(Option<TlsLocation>),
}

/// A graph whose addresses are all known, and where it goes.
#[derive(Debug)]
pub(crate) struct Placement {
    pub(crate) graph: LinkGraph,
    pub(crate) indirection: Indirection,
    pub(crate) allocation: Allocation,
    pub(crate) bases: [u64; 3],
    /// Where this graph's own thread-local variables are.
    pub(crate) tls_storage: Option<TlsLocation>,
    /// By symbol that can be redirected: the word that holds where its body is now.
    pub(crate) slots: FxHashMap<SymbolId, u64>,
    /// Sections that lie where the host says.
    pub(crate) elsewhere: FxHashMap<SectionId, Elsewhere>,
    /// What local-dynamic code counts from, where that is not the graph's own storage.
    shared_tls: Option<SharedTls>,
    /// Where external thread-local variables are.
    pub(crate) tls_externals: FxHashMap<SymbolId, TlsLocation>,
}

impl Placement {
    pub(crate) fn new(graph: LinkGraph, indirection: Indirection, allocation: Allocation) -> Box<Self> {
        let bases = SegmentKind::ALL.map(|kind| allocation.address(kind));
        let (slots, elsewhere, tls_externals) = Default::default();
        let (tls_storage, shared_tls) = (None, None);
        let mut this = Box::new(Self {
            graph,
            indirection,
            allocation,
            bases,
            tls_storage,
            slots,
            elsewhere,
            shared_tls,
            tls_externals,
        });
        this.place_symbols();
        this
    }

    /// Gives each symbol that the graph defines its address.
    pub(crate) fn place_symbols(&mut self) {
        for index in 0..self.graph.symbols.len() {
            let address = match self.graph.symbols[index].definition {
                Definition::Block { block, offset } => self.block_address(block) + u64::from(offset),
                Definition::SectionBound { section, end } => match self.elsewhere.get(&section) {
                    Some(Elsewhere { whole, .. }) => {
                        if end {
                            whole.end
                        } else {
                            whole.start
                        }
                    }
                    None => {
                        let section = self.graph.section(section);
                        self.bases[section.kind as usize] + u64::from(if end { section.end } else { section.start })
                    }
                },
                Definition::GotBase => self.got_base(),
                Definition::External | Definition::Absolute => continue,
            };
            self.graph.symbols[index].address = address;
        }
    }

    /// Copies the content and applies everything. Edges go as they are applied, unless they are kept. What can't be applied
    /// ends the rest of its block, and everything if `failed` says so.
    pub(crate) fn write(
        &mut self,
        keep_edges: bool,
        mut failed: impl FnMut(BlockId, LinkError) -> Result<(), LinkError>,
    ) -> Result<(), LinkError> {
        self.shared_tls = self.shared_tls();
        let edges = std::mem::take(&mut self.graph.edges);
        debug_assert!(edges.is_sorted_by_key(|edge| edge.block), "edges are in the order of their blocks");
        let is_whole = self.graph.blocks.iter().all(|block| block.live);
        let mut rest = Rest { end: edges.len(), edges, keep: keep_edges };
        let mut windows = Windows::new(&self.graph, &self.allocation);
        // From the last: what is done with gives its memory back while more is written.
        for index in (0..self.graph.blocks.len()).rev() {
            let block = BlockId::new(index);
            let start = rest.start_of(block);
            let Block { live, kind, size, .. } = self.graph.blocks[index];
            let size = size as usize;
            let result = if !live {
                Ok(())
            } else if size <= windows.size(kind) {
                self.write_part(block, &(0..size), &rest.edges[start..rest.end], &mut windows, is_whole)
            } else {
                self.write_in_parts(block, &mut rest, start, &mut windows, is_whole)
            };
            if let Err((edge, source)) = result {
                failed(block, LinkError::fixup(&self.graph, &edge, source))?;
            }
            rest.done_from(start, SPARE_EDGES);
        }
        if keep_edges {
            self.graph.edges = rest.edges;
        } else {
            drop(rest);
        }
        self.apply_notes();
        self.write_got()?;
        self.write_stubs()
    }

    /// Writes a part of a block, and applies edges to it.
    // Most blocks are small: what it returns would go through memory for each.
    #[inline(always)]
    fn write_part(
        &mut self,
        block: BlockId,
        part: &Range<usize>,
        edges: &[Edge],
        windows: &mut Windows,
        is_whole: bool,
    ) -> Result<(), (Edge, FixupError)> {
        if !windows.open(&mut self.allocation, &self.graph, block.index(), part) {
            self.copy_content(block, part);
        }
        if edges.is_empty() { Ok(()) } else { self.apply_all(block, edges, is_whole) }
    }

    /// Writes a large block, part by part from its end, and applies its edges: those that are left from `start` on.
    #[inline(never)]
    fn write_in_parts(
        &mut self,
        block: BlockId,
        rest: &mut Rest,
        start: usize,
        windows: &mut Windows,
        is_whole: bool,
    ) -> Result<(), (Edge, FixupError)> {
        let Block { kind, size, segment_offset, .. } = self.graph.blocks[block.index()];
        let (offset, window) = (segment_offset as usize, windows.size(kind));
        let mut result = Ok(());
        let mut end = size as usize;
        while end > 0 {
            let part = window.min(end / 2).max(LEAST_PART);
            let at = end.saturating_sub(part);
            let at = if at == 0 { 0 } else { (offset + at).next_multiple_of(LEAST_PART / 2).saturating_sub(offset) };
            let edges = &rest.edges[start..rest.end];
            // What an edge changes is in the part, or behind it. Where edges are not in order, some wait for longer.
            let is_after = |edge: &&Edge| edge.offset as usize >= at + BEFORE_PLACE;
            let first = match at {
                0 => 0,
                _ => edges.len() - edges.iter().rev().take_while(is_after).count(),
            };
            // After an error, only the content.
            let edges = if result.is_ok() { &edges[first..] } else { &[] };
            result = result.and(self.write_part(block, &(at..end), edges, windows, is_whole));
            let spare = ((start + first) / 4).clamp(LEAST_SPARE_EDGES, SPARE_EDGES);
            rest.done_from(start + first, spare);
            end = at;
        }
        result
    }

    /// What can't be stored in a note stays as it was.
    fn apply_notes(&mut self) {
        for edge in std::mem::take(&mut self.graph.note_edges) {
            let is_known =
                matches!(edge.kind.referent(), Referent::Symbol | Referent::Size | Referent::TlsModuleOffset);
            if is_known && self.graph.block(edge.block).live {
                _ = self.apply(&edge);
            }
        }
    }

    /// Applies the edges of one block. Of a whole graph nothing was left out.
    fn apply_all(&mut self, block: BlockId, mut edges: &[Edge], is_whole: bool) -> Result<(), (Edge, FixupError)> {
        while let Some((edge, rest)) = self.skip_direct(block, edges, is_whole).split_first() {
            self.apply(edge).map_err(|source| (*edge, source))?;
            edges = rest;
        }
        Ok(())
    }

    /// Applies the first of a block's edges, as long as they lead to known addresses within reach: nearly all do.
    #[inline(never)]
    fn skip_direct<'a>(&mut self, block: BlockId, edges: &'a [Edge], is_whole: bool) -> &'a [Edge] {
        let start = self.block_address(block);
        let Self { graph: LinkGraph { blocks, symbols, .. }, allocation, .. } = self;
        let Block { kind, segment_offset, size, .. } = blocks[block.index()];
        let bytes = &mut allocation.working(kind)[segment_offset as usize..][..size as usize];
        let mut rest = edges.iter();
        while let Some(edge) = rest.as_slice().first() {
            let symbol = &symbols[edge.target.index()];
            let is_known = match symbol.definition {
                Definition::Block { block, .. } => is_whole || blocks[block.index()].live,
                Definition::External => symbol.address != 0,
                _ => true,
            };
            let place = start + u64::from(edge.offset);
            let operands = Operands { place, target: symbol.address, addend: edge.addend };
            if !is_known || !arch::apply_direct(edge.kind, bytes, edge.offset, operands) {
                break;
            }
            rest.next();
        }
        rest.as_slice()
    }

    fn copy_content(&mut self, block: BlockId, part: &Range<usize>) {
        let block = &self.graph.blocks[block.index()];
        let start = block.segment_offset as usize;
        let target = &mut self.allocation.working(block.kind)[start + part.start..start + part.end];
        match self.graph.bytes(block) {
            Some(bytes) => target.copy_from_slice(&bytes[part.clone()]),
            // Data memory comes zeroed; the other kinds may have held something else.
            None if block.kind == SegmentKind::Data => {}
            None => target.fill(0),
        }
    }

    /// The initial values of thread-local variables, as far as the addresses are known.
    pub(crate) fn thread_local_image(&self) -> Result<Option<ThreadLocalImage>, LinkError> {
        let Some(id) = self.graph.section_with(SectionRole::ThreadLocal) else { return Ok(None) };
        let section = self.graph.section(id);
        if section.start == section.end {
            return Ok(None);
        }
        let mut bytes = vec![0; (section.end - section.start) as usize];
        let mut depends_on_externals = false;
        let range = |block: &Block| {
            let start = (block.segment_offset - section.start) as usize;
            start..start + block.size as usize
        };
        for block in self.graph.blocks.iter().filter(|block| block.live && block.section == Some(id)) {
            if let Some(content) = self.graph.bytes(block) {
                bytes[range(block)].copy_from_slice(content);
            }
        }
        for edge in &self.graph.edges {
            let block = self.graph.block(edge.block);
            if block.section != Some(id) || !block.live || edge.kind.referent() != Referent::Symbol {
                continue;
            }
            let symbol = self.graph.symbol(edge.target);
            depends_on_externals |= symbol.definition == Definition::External;
            let place = self.block_address(edge.block) + u64::from(edge.offset);
            let operands = Operands { place, target: symbol.address, addend: edge.addend };
            arch::apply(edge.kind, &mut bytes[range(block)], edge.offset, operands)
                .map_err(|source| LinkError::fixup(&self.graph, edge, source))?;
        }
        Ok(Some(ThreadLocalImage { bytes, align: 1 << section.align_log2, depends_on_externals }))
    }

    /// Where in the template a variable of this graph's is, by its own symbol or its descriptor's.
    pub(crate) fn thread_local_offset(&self, symbol: SymbolId) -> Option<u64> {
        let symbol = self.graph.symbol(symbol);
        let Definition::Block { block, offset } = symbol.definition else { return None };
        let section = self.graph.section(self.graph.section_with(SectionRole::ThreadLocal)?);
        let start = self.bases[section.kind as usize] + u64::from(section.start);
        let address = match symbol.kind {
            SymbolKind::ThreadLocal => symbol.address,
            SymbolKind::ThreadLocalDescriptor => {
                let edges = &self.graph.edges;
                let of_block = &edges[edges.partition_point(|edge| edge.block < block)..];
                let mut of_block = of_block.iter().take_while(|edge| edge.block == block);
                // A descriptor's third word is the offset.
                let is_third = |edge: &Edge| edge.offset.checked_sub(offset) == Some(16);
                let is_it = |edge: &&Edge| is_third(edge) && edge.kind.referent() == Referent::TlsModuleOffset;
                let edge = of_block.find(is_it)?;
                self.graph.symbol(edge.target).address.wrapping_add_signed(edge.addend)
            }
            _ => return None,
        };
        // An object can say of anything that it is thread-local.
        address.checked_sub(start).filter(|offset| *offset <= u64::from(section.end - section.start))
    }

    /// Where a block is seen by the executor.
    pub(crate) fn block_address(&self, block: BlockId) -> u64 {
        let block = &self.graph.blocks[block.index()];
        if !self.elsewhere.is_empty()
            && let Some(section) = block.section
            && let Some(moved) = self.elsewhere.get(&section)
        {
            return moved.address + u64::from(block.segment_offset - self.graph.section(section).start);
        }
        self.bases[block.kind as usize] + u64::from(block.segment_offset)
    }

    /// A block's bytes in working memory.
    pub(crate) fn block_bytes(&mut self, block: BlockId) -> &mut [u8] {
        let block = &self.graph.blocks[block.index()];
        let start = block.segment_offset as usize;
        &mut self.allocation.working(block.kind)[start..start + block.size as usize]
    }

    pub(crate) fn got_base(&self) -> u64 {
        self.indirection.got_block.map_or(0, |block| self.block_address(block))
    }

    fn write_got(&mut self) -> Result<(), LinkError> {
        let Some(got) = self.indirection.got_block else { return Ok(()) };
        for index in 0..self.indirection.entries.len() {
            let (content, start) = self.indirection.entries[index];
            let words = self.got_words(content)?;
            let start = start as usize;
            for (index, word) in words.into_iter().enumerate() {
                let Some(word) = word else { continue };
                let start = start + index * GOT_ENTRY as usize;
                self.block_bytes(got)[start..start + GOT_ENTRY as usize].copy_from_slice(&word.to_le_bytes());
            }
        }
        Ok(())
    }

    fn got_words(&self, content: GotContent) -> Result<[Option<u64>; 2], LinkError> {
        let tls = |symbol| {
            self.tls_location(symbol).map_err(|source| LinkError::Got {
                graph: self.graph.name().to_owned(),
                symbol: LinkError::label(&self.graph, symbol),
                source,
            })
        };
        Ok(match content {
            GotContent::Address(target, addend) => {
                [Some(self.graph.symbol(target).address.wrapping_add_signed(addend)), None]
            }
            // Written when the resolver has run.
            GotContent::Resolved(_) => [None, None],
            GotContent::TlsOffset(symbol, addend) => {
                let offset = tls(symbol)?.static_offset().map_err(|source| LinkError::Got {
                    graph: self.graph.name().to_owned(),
                    symbol: LinkError::label(&self.graph, symbol),
                    source,
                })?;
                [Some(offset.wrapping_add(addend).cast_unsigned()), None]
            }
            GotContent::TlsPair(symbol, addend) => {
                let location = tls(symbol)?;
                [Some(location.module), Some(location.offset.wrapping_add_signed(addend))]
            }
            GotContent::TlsModule => {
                // The relocation names a symbol that plays no part.
                let base = self.tls_module_base().ok_or_else(|| LinkError::Got {
                    graph: self.graph.name().to_owned(),
                    symbol: String::new(),
                    source: FixupError::NoThreadLocalStorage,
                })?;
                [Some(base.module), Some(base.offset)]
            }
            GotContent::TlsDescriptor(symbol, addend) => {
                let location = tls(symbol)?;
                match (location.descriptor, location.thread_pointer_offset, self.indirection.tls_resolver) {
                    (Some([resolver, argument]), ..) => [Some(resolver), Some(argument.wrapping_add_signed(addend))],
                    (None, Some(offset), Some(resolver)) => {
                        [Some(self.block_address(resolver)), Some(offset.wrapping_add(addend).cast_unsigned())]
                    }
                    _ => {
                        return Err(LinkError::Got {
                            graph: self.graph.name().to_owned(),
                            symbol: LinkError::label(&self.graph, symbol),
                            source: FixupError::NoThreadLocalStorage,
                        });
                    }
                }
            }
        })
    }

    /// Where a thread-local variable is.
    fn tls_location(&self, symbol: SymbolId) -> Result<TlsLocation, FixupError> {
        let (block, offset) = match self.graph.symbol(symbol).definition {
            Definition::Block { block, offset } => (block, offset),
            Definition::SectionBound { section, end: false }
                if self.graph.section(section).role == SectionRole::ThreadLocal =>
            {
                return self.tls_module_base().ok_or(FixupError::NoThreadLocalStorage);
            }
            _ => return self.tls_externals.get(&symbol).copied().ok_or(FixupError::NoThreadLocalStorage),
        };
        let block = self.graph.block(block);
        if !block.live {
            return Err(FixupError::LeftOut);
        }
        let section = block.section.map(|section| self.graph.section(section));
        let section = section.filter(|section| section.role == SectionRole::ThreadLocal);
        let section = section.ok_or(FixupError::NotThreadLocal)?;
        let storage = self.tls_storage.ok_or(FixupError::NoThreadLocalStorage)?;
        Ok(storage.at(u64::from(block.segment_offset - section.start) + u64::from(offset)))
    }

    /// What local-dynamic code measures from, if it refers to variables of other objects. Its compiler has taken the
    /// component's variables for one module's, and other objects have modules of their own.
    fn shared_tls(&self) -> Option<SharedTls> {
        if self.tls_externals.is_empty() {
            return None;
        }
        let is_used = |edge: &&Edge| {
            edge.kind.referent() == Referent::TlsModuleOffset && self.graph.blocks[edge.block.index()].live
        };
        let mut used: Vec<SymbolId> = self.graph.edges.iter().filter(is_used).map(|edge| edge.target).collect();
        used.sort_unstable();
        used.dedup();
        if !used.iter().any(|symbol| self.tls_externals.contains_key(symbol)) {
            return None;
        }
        let locations: Vec<_> = used.iter().filter_map(|symbol| self.tls_location(*symbol).ok()).collect();
        let first = *locations.first()?;
        if locations.iter().all(|location| location.module == first.module) {
            return Some(SharedTls::Module(first.at(first.offset.wrapping_neg())));
        }
        let base =
            |location: &TlsLocation| Some(location.at(location.thread_pointer_offset?.wrapping_neg().cast_unsigned()));
        Some(SharedTls::ThreadPointer(locations.iter().find_map(base)))
    }

    /// What local-dynamic code measures from.
    fn tls_module_base(&self) -> Option<TlsLocation> {
        match self.shared_tls {
            // Code may ask for it without a use.
            None => self.tls_storage.or_else(|| self.tls_externals.values().next().copied()),
            Some(SharedTls::Module(base)) => Some(base),
            Some(SharedTls::ThreadPointer(base)) => base,
        }
    }

    /// How far a variable is from there.
    fn tls_module_offset(&self, symbol: SymbolId) -> Result<u64, FixupError> {
        let location = self.tls_location(symbol)?;
        match self.shared_tls {
            Some(SharedTls::ThreadPointer(_)) => {
                location.thread_pointer_offset.map(i64::cast_unsigned).ok_or(FixupError::NotInOneModule)
            }
            _ => Ok(location.offset),
        }
    }

    fn write_stubs(&mut self) -> Result<(), LinkError> {
        let got = self.got_base();
        if let Some(block) = self.indirection.tls_resolver {
            let code = stub::tls_resolver(self.graph.architecture());
            self.block_bytes(block).copy_from_slice(&code);
        }
        for index in 0..self.indirection.stubs.len() {
            let entry = self.indirection.stubs[index];
            let place = self.block_address(entry.block) + u64::from(entry.offset);
            let code = stub::encode(self.graph.architecture(), place, got + u64::from(entry.entry))
                .map_err(|source| LinkError::Stub { graph: self.graph.name().to_owned(), source })?;
            let start = entry.offset as usize;
            self.block_bytes(entry.block)[start..start + stub::STUB_SIZE].copy_from_slice(&code);
        }
        Ok(())
    }

    fn apply(&mut self, edge: &Edge) -> Result<(), FixupError> {
        let (referent, origin) = (edge.kind.referent(), edge.kind.origin());
        let symbol = self.graph.symbol(edge.target);
        let place = match origin {
            Origin::GotBase | Origin::GotPage => self.got_base(),
            _ => self.block_address(edge.block) + u64::from(edge.offset),
        };
        let mut operands = Operands { place, target: symbol.address, addend: edge.addend };
        match referent {
            Referent::Symbol => {
                if symbol.definition == Definition::External && symbol.address == 0 {
                    return self.apply_undefined(edge, operands);
                }
                if let Definition::Block { block, .. } = symbol.definition
                    && !self.graph.block(block).live
                {
                    return Err(FixupError::LeftOut);
                }
            }
            Referent::Branch => return self.apply_branch(edge, operands),
            Referent::GotEntry => return self.apply_got(edge, operands),
            Referent::GotBase => operands.target = self.got_base(),
            // Larger ones count as that.
            Referent::Size if symbol.size == u32::MAX => {
                return Err(FixupError::OutOfRange { value: symbol.size.into(), bits: u32::BITS });
            }
            Referent::Size => operands.target = symbol.size.into(),
            Referent::TlsPair | Referent::TlsModule | Referent::TlsEntry | Referent::TlsDescriptor => {
                operands = self.through_entry(edge, operands);
            }
            Referent::TlsOffset => {
                operands.target = self.tls_location(edge.target)?.static_offset()?.cast_unsigned();
            }
            Referent::TlsModuleNumber => {
                operands.target = self.tls_storage.ok_or(FixupError::NoThreadLocalStorage)?.module;
            }
            Referent::TlsModuleOffset => operands.target = self.tls_module_offset(edge.target)?,
        }
        arch::apply(edge.kind, self.block_bytes(edge.block), edge.offset, operands)
    }

    /// A reference to what is not there, and need not be, is to address 0. Where 0 is out of reach,
    /// an address that is computed becomes 0 all the same; any other use stands behind a test of
    /// the address, so that it only has to be linked: to the place itself, as AArch64's ABI says.
    fn apply_undefined(&mut self, edge: &Edge, operands: Operands) -> Result<(), FixupError> {
        let is_optional = self.graph.symbol(edge.target).linkage == Linkage::Weak;
        let result = arch::apply(edge.kind, self.block_bytes(edge.block), edge.offset, operands);
        match result {
            Err(FixupError::OutOfRange { .. }) if is_optional => {}
            result => return result,
        }
        let is_zeroed = match edge.kind {
            EdgeKind::X86_64(_) => x86_64::zero_address(self.block_bytes(edge.block), edge.offset),
            EdgeKind::Aarch64(_) => aarch64::zero_address(self.block_bytes(edge.block), edge.offset),
        };
        if is_zeroed {
            return Ok(());
        }
        let operands = Operands { target: operands.place, addend: 0, ..operands };
        arch::apply(edge.kind, self.block_bytes(edge.block), edge.offset, operands)
    }

    /// A branch goes where it is to go if that is in reach, else through the stub.
    fn apply_branch(&mut self, edge: &Edge, operands: Operands) -> Result<(), FixupError> {
        let bytes = self.block_bytes(edge.block);
        let result = arch::apply(edge.kind, bytes, edge.offset, operands);
        let Err(FixupError::OutOfRange { .. }) = result else { return result };
        let Some(stub) = self.indirection.stub_for(&self.graph, edge).copied() else { return result };
        let target = self.block_address(stub.block) + u64::from(stub.offset);
        let addend = indirect::branch_bias(&self.graph, edge);
        arch::apply(edge.kind, self.block_bytes(edge.block), edge.offset, Operands { target, addend, ..operands })
    }

    fn apply_got(&mut self, edge: &Edge, operands: Operands) -> Result<(), FixupError> {
        match edge.kind {
            EdgeKind::X86_64(x86_64::EdgeKind::GotLoad32 | x86_64::EdgeKind::GotOperand32) => {
                return self.apply_got_load(edge, operands);
            }
            EdgeKind::Aarch64(kind @ (aarch64::EdgeKind::GotPage21 | aarch64::EdgeKind::GotPageOffset12)) => {
                return self.apply_got_pair(kind, edge, operands);
            }
            _ => {}
        }
        let operands = self.through_entry(edge, operands);
        arch::apply(edge.kind, self.block_bytes(edge.block), edge.offset, operands)
    }

    /// The address of an edge's entries in the GOT, in place of the target's. In AArch64's
    /// instructions the addend is part of what the entry holds.
    fn through_entry(&self, edge: &Edge, operands: Operands) -> Operands {
        let entry = self.indirection.entry_offset(edge).unwrap_or_default();
        let addend = match edge.kind {
            EdgeKind::X86_64(_)
            | EdgeKind::Aarch64(aarch64::EdgeKind::GotDelta32 | aarch64::EdgeKind::GotPointer64) => operands.addend,
            EdgeKind::Aarch64(_) => 0,
        };
        Operands { target: self.got_base() + u64::from(entry), addend, ..operands }
    }

    fn apply_got_load(&mut self, edge: &Edge, operands: Operands) -> Result<(), FixupError> {
        let slot = self.slots.get(&edge.target).copied().unwrap_or(0);
        let through_slot = Operands { target: slot, ..operands };
        let operands = if slot != 0 && x86_64::reaches(through_slot) {
            through_slot
        } else if slot == 0
            && x86_64::reaches(operands)
            && let Some(usage) = x86_64::got_use(self.block_bytes(edge.block), edge.offset, edge.addend)
        {
            let bytes = self.block_bytes(edge.block);
            let offset = x86_64::relax_got_use(bytes, edge.offset, usage)?;
            let place = operands.place - u64::from(edge.offset - offset);
            return x86_64::apply(x86_64::EdgeKind::Delta32, bytes, offset, Operands { place, ..operands });
        } else if slot == 0
            && edge.kind == EdgeKind::X86_64(x86_64::EdgeKind::GotOperand32)
            && x86_64::take_operand(self.block_bytes(edge.block), edge.offset, edge.addend, operands.target)
        {
            return Ok(());
        } else {
            self.through_entry(edge, operands)
        };
        arch::apply(edge.kind, self.block_bytes(edge.block), edge.offset, operands)
    }

    fn apply_got_pair(&mut self, kind: aarch64::EdgeKind, edge: &Edge, operands: Operands) -> Result<(), FixupError> {
        use aarch64::EdgeKind;
        let symbol = self.graph.symbol(edge.target);
        let slot = self.slots.get(&edge.target).copied().unwrap_or(0);
        let is_thread_local = symbol.kind == SymbolKind::ThreadLocal;
        if slot == 0 && !is_thread_local && self.page_reachable(operands.absolute()) {
            // Both instructions of the pair come to the same answer, so they stay a pair.
            let kind = match kind {
                EdgeKind::GotPage21 => EdgeKind::Page21,
                _ => {
                    aarch64::relax_got_load(self.block_bytes(edge.block), edge.offset)?;
                    EdgeKind::PageOffset12
                }
            };
            return aarch64::apply(kind, self.block_bytes(edge.block), edge.offset, operands);
        }
        // The slot takes the entry's place; entries and slots are for the bare symbol.
        let operands = if slot != 0 && edge.addend == 0 && self.page_reachable(slot) {
            Operands { target: slot, addend: 0, ..operands }
        } else {
            self.through_entry(edge, operands)
        };
        aarch64::apply(kind, self.block_bytes(edge.block), edge.offset, operands)
    }

    /// Whether an `adrp` anywhere in the graph's code reaches `address`. A segment is below
    /// 4 GiB, so its base decides if the other end is checked too.
    fn page_reachable(&self, address: u64) -> bool {
        let base = self.bases[SegmentKind::Code as usize];
        let end = base + self.allocation.size(SegmentKind::Code) as u64;
        [base, end].into_iter().all(|place| aarch64::page_reaches(Operands { place, target: address, addend: 0 }))
    }
}
