//! Commons, variables without an initial value: a component has one of a name, as large as the largest that any of its
//! objects has.

use jit_linker::SymbolName;
use jit_linker::graph::{Block, Definition, LinkGraph, Linkage, Scope, Symbol, SymbolId, SymbolKind};
use rustc_hash::{FxHashMap, FxHashSet};

/// What the objects of a component say of its commons.
#[derive(Debug, Default)]
pub(super) struct Commons {
    largest: FxHashMap<SymbolName, Extent>,
    /// Those that are in memory, and grow no more.
    linked: FxHashMap<SymbolName, Extent>,
    /// Weak variables, which give way to a common.
    weak: FxHashSet<SymbolName>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Extent {
    size: u32,
    align_log2: u8,
}

impl Extent {
    fn of(block: &Block) -> Self {
        Self { size: block.size, align_log2: block.align_log2 }
    }

    fn max(self, other: Self) -> Self {
        Self { size: self.size.max(other.size), align_log2: self.align_log2.max(other.align_log2) }
    }

    fn covers(self, other: Self) -> bool {
        self.size >= other.size && self.align_log2 >= other.align_log2
    }
}

impl Commons {
    /// Notes what an object has. Gives the weak variables of earlier objects that a common of it takes the place of.
    ///
    /// # Errors
    ///
    /// With the name of a common that is in memory already, and smaller or less aligned.
    pub(super) fn add(&mut self, graph: &LinkGraph) -> Result<Vec<SymbolName>, SymbolName> {
        let mut replaced = Vec::new();
        for (_, name, block) in commons(graph) {
            let wanted = Extent::of(block);
            if self.linked.get(name).is_some_and(|linked| !linked.covers(wanted)) {
                return Err(name.clone());
            }
            let largest = self.largest.entry(name.clone()).or_default();
            *largest = largest.max(wanted);
            replaced.extend(self.weak.take(name));
        }
        // Functions are no variables, and in a group of C++'s there are no commons' namesakes.
        let grouped: FxHashSet<_> = graph.comdats().iter().flat_map(|comdat| &comdat.symbols).collect();
        let weak = definitions(graph, Linkage::Weak)
            .filter(|(id, _, symbol, _)| symbol.kind != SymbolKind::Function && !grouped.contains(id));
        self.weak.extend(weak.map(|(_, name, ..)| name.clone()));
        Ok(replaced)
    }

    /// Makes the commons that an object has for the component as large as any object needs them. They are in memory from
    /// now on, until they are [forgotten](Self::forget): gives their names.
    pub(super) fn settle(&mut self, graph: &mut LinkGraph) -> Vec<SymbolName> {
        let own: Vec<_> = commons(graph).map(|(id, name, block)| (id, name.clone(), Extent::of(block))).collect();
        for (id, name, extent) in &own {
            let extent = self.largest.get(name).map_or(*extent, |largest| largest.max(*extent));
            graph.grow_common(*id, extent.size, extent.align_log2);
            self.linked.insert(name.clone(), extent);
        }
        own.into_iter().map(|(_, name, _)| name).collect()
    }

    pub(super) fn forget(&mut self, linked: &[SymbolName]) {
        for name in linked {
            self.linked.remove(name);
        }
    }
}

/// The commons that an object defines for others.
pub(super) fn commons(graph: &LinkGraph) -> impl Iterator<Item = (SymbolId, &SymbolName, &Block)> {
    definitions(graph, Linkage::Common).map(|(id, name, _, block)| (id, name, block))
}

fn definitions(graph: &LinkGraph, linkage: Linkage) -> impl Iterator<Item = (SymbolId, &SymbolName, &Symbol, &Block)> {
    let visible = graph.symbols().filter(move |(_, symbol)| symbol.linkage == linkage && symbol.scope != Scope::Local);
    visible.filter_map(|(id, symbol)| match symbol.definition {
        Definition::Block { block, .. } => Some((id, graph.symbol_name(id)?, symbol, graph.block(block))),
        _ => None,
    })
}
