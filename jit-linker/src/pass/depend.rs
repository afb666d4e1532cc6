//! Who in a graph needs whom: the dependences its symbols are published with, and what can't be
//! linked once something it refers to has failed.

use super::reach;
use crate::graph::{BlockId, Definition, LinkGraph, Symbol, SymbolId};

/// For each block, the symbols it defines.
struct Owners {
    first: Vec<Option<SymbolId>>,
    next: Vec<Option<SymbolId>>,
}

impl Owners {
    fn new(graph: &LinkGraph) -> Self {
        let mut owners = Self { first: vec![None; graph.blocks.len()], next: vec![None; graph.symbols.len()] };
        for (id, symbol) in graph.symbols() {
            if let Definition::Block { block, .. } = symbol.definition {
                owners.next[id.index()] = owners.first[block.index()].replace(id);
            }
        }
        owners
    }

    fn of(&self, block: BlockId) -> impl Iterator<Item = SymbolId> {
        std::iter::successors(self.first[block.index()], |id| self.next[id.index()])
    }
}

/// The external symbols that live blocks refer to, each once.
pub(crate) fn externals(graph: &LinkGraph) -> Vec<SymbolId> {
    let is_external = |symbol: &Symbol| symbol.definition == Definition::External;
    let mut is_left: Vec<_> = graph.symbols.iter().map(is_external).collect();
    let mut externals = Vec::new();
    for edge in &graph.edges {
        let is_left = &mut is_left[edge.target.index()];
        if *is_left && graph.blocks[edge.block.index()].live {
            *is_left = false;
            externals.push(edge.target);
        }
    }
    externals
}

/// Pairs of a named symbol that the graph defines and a named symbol that it needs, directly or
/// through what has no name, both of them `known`. Of several in one block, all need the first, and
/// that one needs what the block needs: a section of a thousand functions is one block to some
/// compilers, and refers to thousands. A pair may occur more than once.
pub(crate) fn dependences(graph: &LinkGraph, known: impl Fn(SymbolId) -> bool) -> Vec<(SymbolId, SymbolId)> {
    let owners = Owners::new(graph);
    let named = |id: SymbolId| graph.symbol(id).is_named();
    let mut pairs = Vec::with_capacity(graph.edges.len());
    let mut add = |block: BlockId, needed: &mut dyn Iterator<Item = SymbolId>| {
        let mut here = owners.of(block).filter(|owner| named(*owner) && known(*owner));
        let Some(first) = here.next() else { return };
        pairs.extend(needed.filter(|target| known(*target)).map(|target| (first, target)));
        pairs.extend(here.map(|other| (other, first)));
    };
    if graph.attached.is_empty() && graph.edges.iter().all(|edge| named(edge.target)) {
        for edges in graph.edges_by_block() {
            add(edges[0].block, &mut edges.iter().map(|edge| edge.target));
        }
        return pairs;
    }
    let needs = reach::Needs::new(graph);
    for (block, _) in graph.blocks().filter(|(_, block)| block.live) {
        add(block, &mut needs.of(block).iter().copied());
    }
    pairs
}

/// Takes the blocks that need one of the `failed` symbols, directly or not, out of the link, and
/// returns the symbols they define.
pub(crate) fn exclude(graph: &mut LinkGraph, failed: &[SymbolId]) -> Vec<SymbolId> {
    let owners = Owners::new(graph);
    let mut users: Vec<Vec<BlockId>> = vec![Vec::new(); graph.symbols.len()];
    for edge in &graph.edges {
        users[edge.target.index()].push(edge.block);
    }
    let mut excluded = Vec::new();
    let mut work = failed.to_vec();
    work.retain(|symbol| symbol.index() < users.len());
    for symbol in failed {
        if let Definition::Block { block, .. } = graph.symbol(*symbol).definition {
            kill(graph, &owners, block, &mut work, &mut excluded);
        }
    }
    while let Some(symbol) = work.pop() {
        for block in std::mem::take(&mut users[symbol.index()]) {
            kill(graph, &owners, block, &mut work, &mut excluded);
        }
    }
    excluded
}

fn kill(
    graph: &mut LinkGraph,
    owners: &Owners,
    block: BlockId,
    work: &mut Vec<SymbolId>,
    excluded: &mut Vec<SymbolId>,
) {
    if std::mem::replace(&mut graph.blocks[block.index()].live, false) {
        for symbol in owners.of(block) {
            work.push(symbol);
            excluded.push(symbol);
        }
    }
}
