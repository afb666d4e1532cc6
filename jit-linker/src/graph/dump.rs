//! The text form of a graph, for tests and for people.

use std::fmt;

use super::{Definition, LinkGraph, Symbol, SymbolId};

struct SymbolLabel<'a>(SymbolId, &'a Symbol);

impl fmt::Display for SymbolLabel<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.1.name {
            Some(name) => f.write_str(name),
            None => write!(f, "#{}", self.0.index()),
        }
    }
}

impl fmt::Display for LinkGraph {
    /// One line a block, with its symbols before it and its edges after it; externals at the end.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "graph \"{}\" {}", self.name(), self.architecture())?;
        for (index, block) in self.blocks.iter().enumerate() {
            let content = if self.bytes(block).is_some() { "bytes" } else { "zeros" };
            let live = if block.live { "" } else { " dead" };
            let (kind, size, align) = (block.kind, block.size, 1u64 << block.align_log2);
            writeln!(f, "block {index} {kind:?} {size} {content} align {align}{live}")?;
            for (id, symbol) in self.symbols() {
                match symbol.definition {
                    Definition::Block { block, offset } if block.index() == index => {
                        writeln!(f, "  {offset:#06x} {}:", SymbolLabel(id, symbol))?;
                    }
                    _ => {}
                }
            }
            for edge in self.edges.iter().filter(|edge| edge.block.index() == index) {
                let target = SymbolLabel(edge.target, self.symbol(edge.target));
                writeln!(f, "  {:#06x} {:?} {target} {:+}", edge.offset, edge.kind, edge.addend)?;
            }
        }
        for (id, symbol) in self.symbols() {
            if symbol.definition == Definition::External {
                writeln!(f, "external {}", SymbolLabel(id, symbol))?;
            }
        }
        Ok(())
    }
}
