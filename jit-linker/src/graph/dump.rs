//! The text form of a graph, for tests and for people.

use std::fmt;

use super::{Block, BlockId, Definition, Edge, EdgeKind, LinkGraph, Linkage, Scope, SymbolId, SymbolKind};

struct Label<'a>(&'a LinkGraph, SymbolId);

impl fmt::Display for Label<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let label = self.0.symbol_label(self.1);
        if label.is_empty() { write!(f, "#{}", self.1.index()) } else { f.write_str(&label) }
    }
}

/// What is unusual about a symbol.
struct Attributes<'a>(&'a LinkGraph, SymbolId);

impl fmt::Display for Attributes<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let symbol = self.0.symbol(self.1);
        match symbol.scope {
            Scope::Default => {}
            Scope::Protected => f.write_str(" protected")?,
            Scope::Hidden => f.write_str(" hidden")?,
            Scope::Local => f.write_str(" local")?,
        }
        match symbol.linkage {
            Linkage::Strong => {}
            Linkage::Weak => f.write_str(" weak")?,
            Linkage::Common => f.write_str(" common")?,
        }
        match symbol.kind {
            SymbolKind::Unspecified => {}
            SymbolKind::Function => f.write_str(" function")?,
            SymbolKind::Data => f.write_str(" data")?,
            SymbolKind::ThreadLocal => f.write_str(" thread-local")?,
            SymbolKind::ThreadLocalDescriptor => f.write_str(" thread-local-descriptor")?,
            SymbolKind::Resolver => f.write_str(" resolver")?,
            SymbolKind::Section => f.write_str(" section")?,
        }
        match symbol.size {
            0 => Ok(()),
            size => write!(f, " {size}"),
        }
    }
}

impl LinkGraph {
    fn fmt_block(&self, f: &mut fmt::Formatter<'_>, id: BlockId, block: &Block) -> fmt::Result {
        let content = if self.bytes(block).is_some() { "bytes" } else { "zeros" };
        let live = if block.live { "" } else { " dead" };
        let (kind, size, align) = (block.kind, block.size, 1u64 << block.align_log2);
        write!(f, "block {} {kind:?} {size} {content} align {align}{live}", id.index())?;
        match block.section {
            Some(section) => writeln!(f, " in {}", self.section_name(section)),
            None => writeln!(f),
        }
    }

    fn fmt_edge(&self, f: &mut fmt::Formatter<'_>, edge: &Edge) -> fmt::Result {
        let (offset, target, addend) = (edge.offset, Label(self, edge.target), edge.addend);
        match edge.kind {
            EdgeKind::X86_64(kind) => writeln!(f, "  {offset:#06x} {kind:?} {target} {addend:+}"),
            EdgeKind::Aarch64(kind) => writeln!(f, "  {offset:#06x} {kind:?} {target} {addend:+}"),
        }
    }
}

/// The part of a graph that a symbol is in.
struct Excerpt<'a>(&'a LinkGraph, SymbolId);

impl fmt::Display for Excerpt<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(graph, symbol) = *self;
        let Definition::Block { block: id, .. } = graph.symbol(symbol).definition else {
            return writeln!(f, "{}:{}", Label(graph, symbol), Attributes(graph, symbol));
        };
        graph.fmt_block(f, id, graph.block(id))?;
        let here = graph.symbols().filter_map(|(other, symbol)| match symbol.definition {
            Definition::Block { block, offset } if block == id => Some((offset, other)),
            _ => None,
        });
        let mut here: Vec<_> = here.collect();
        here.sort_unstable();
        for (offset, symbol) in here {
            writeln!(f, "  {offset:#06x} {}:{}", Label(graph, symbol), Attributes(graph, symbol))?;
        }
        graph.edges().iter().filter(|edge| edge.block == id).try_for_each(|edge| graph.fmt_edge(f, edge))
    }
}

impl LinkGraph {
    /// The text of a symbol's block, as it is in that of the whole graph.
    pub fn excerpt(&self, symbol: SymbolId) -> impl fmt::Display + '_ {
        Excerpt(self, symbol)
    }
}

impl fmt::Display for LinkGraph {
    /// One line a block, with its symbols and its edges after it; what is elsewhere at the end.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "graph \"{}\" {}", self.name(), self.architecture())?;
        let mut symbols: Vec<(u32, u32, SymbolId)> = self
            .symbols()
            .filter_map(|(id, symbol)| match symbol.definition {
                Definition::Block { block, offset } => Some((block.0, offset, id)),
                _ => None,
            })
            .collect();
        symbols.sort_unstable();
        let mut symbols = symbols.into_iter().peekable();
        let edges = self.edge_ranges();
        for (id, block) in self.blocks() {
            self.fmt_block(f, id, block)?;
            while let Some((_, offset, symbol)) = symbols.next_if(|(block, ..)| *block <= id.0) {
                writeln!(f, "  {offset:#06x} {}:{}", Label(self, symbol), Attributes(self, symbol))?;
            }
            for edge in &self.edges[edges[id.index()].clone()] {
                self.fmt_edge(f, edge)?;
            }
        }
        for comdat in &self.comdats {
            write!(f, "comdat {}:", comdat.signature)?;
            comdat.blocks.iter().try_for_each(|block| write!(f, " {}", block.index()))?;
            writeln!(f)?;
        }
        for (id, symbol) in self.symbols() {
            let (label, attributes) = (Label(self, id), Attributes(self, id));
            match symbol.definition {
                Definition::Block { .. } => {}
                Definition::External => writeln!(f, "external {label}{attributes}")?,
                Definition::Absolute => writeln!(f, "absolute {label} {:#x}{attributes}", symbol.address())?,
                Definition::SectionBound { section, end } => {
                    let bound = if end { "end" } else { "start" };
                    writeln!(f, "{bound} of {} {label}", self.section_name(section))?;
                }
                Definition::GotBase => writeln!(f, "GOT base {label}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use crate::arch::{Architecture, x86_64};
    use crate::graph::{Edge, EdgeKind, LinkGraph};
    use crate::memory::SegmentKind;
    use crate::name::SymbolStringPool;

    #[test]
    fn a_graph_is_a_line_a_block_symbol_and_edge() {
        let names = SymbolStringPool::new();
        let mut graph = LinkGraph::new("example", Architecture::X86_64);
        let puts = graph.external(names.intern("puts"), 0);
        let block = graph.add_block(SegmentKind::Code, &[0xe8, 0, 0, 0, 0], 16).expect("it is small");
        graph.define(Some(names.intern("main")), block, 0, 0);
        let kind = EdgeKind::X86_64(x86_64::EdgeKind::Plt32);
        graph.add_edge(Edge { block, offset: 1, kind, target: puts, addend: -4 }).expect("the block is the newest");
        let expected = "graph \"example\" x86-64\n\
                        block 0 Code 5 bytes align 16\n\
                        \x20 0x0000 main:\n\
                        \x20 0x0001 Plt32 puts -4\n\
                        external puts\n";
        assert_eq!(graph.to_string(), expected);
        let main = graph.find_symbol("main").expect("it is there");
        let excerpt: Vec<_> = expected.lines().skip(1).take(3).collect();
        assert_eq!(graph.excerpt(main).to_string().lines().collect::<Vec<_>>(), excerpt);
    }
}
