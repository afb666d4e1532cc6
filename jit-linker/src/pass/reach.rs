//! Which named symbols each block needs, through any number of blocks that have no name.
//!
//! Functions that call each other in a ring need the same, so rings are found first (by Tarjan's
//! algorithm, without recursion), and what each needs is computed once.

use std::ops::Range;

use crate::graph::{BlockId, Definition, LinkGraph, SymbolId};

/// What each block needs.
pub(super) struct Needs {
    /// By node: the ring it is in.
    ring_of: Vec<u32>,
    /// By ring: the named symbols.
    symbols: Vec<Vec<SymbolId>>,
}

impl Needs {
    pub(super) fn new(graph: &LinkGraph) -> Self {
        let nodes = Nodes::new(graph);
        let mut search = Search {
            nodes: &nodes,
            order: vec![0; nodes.count()],
            ring_of: vec![UNKNOWN; nodes.count()],
            open: Vec::new(),
            symbols: Vec::new(),
            seen: vec![UNKNOWN; graph.symbols.len()],
            next: 1,
        };
        for node in 0..nodes.count() {
            if search.order[node] == 0 {
                search.visit(node as u32);
            }
        }
        Self { ring_of: search.ring_of, symbols: search.symbols }
    }

    pub(super) fn of(&self, block: BlockId) -> &[SymbolId] {
        &self.symbols[self.ring_of[block.index()] as usize]
    }
}

const UNKNOWN: u32 = u32::MAX;

/// Blocks, and behind them sections: one leads to all its blocks when its bounds are asked for.
struct Nodes {
    successors: Lists<u32>,
    symbols: Lists<SymbolId>,
}

impl Nodes {
    fn new(graph: &LinkGraph) -> Self {
        let blocks = graph.blocks.len();
        let count = blocks + graph.sections.len();
        let mut successors = Vec::with_capacity(graph.edges.len());
        let mut symbols = Vec::with_capacity(graph.edges.len());
        for edge in graph.edges.iter().filter(|edge| graph.block(edge.block).live) {
            let target = graph.symbol(edge.target);
            match target.definition {
                _ if target.is_named() => symbols.push((edge.block.0, edge.target)),
                Definition::Block { block, .. } => successors.push((edge.block.0, block.0)),
                Definition::SectionBound { section, .. } => {
                    successors.push((edge.block.0, (blocks + section.index()) as u32))
                }
                Definition::External | Definition::Absolute | Definition::GotBase => {}
            }
        }
        successors.extend(graph.attached.iter().map(|(host, attached)| (host.0, attached.0)));
        for (id, block) in graph.blocks() {
            if let Some(section) = block.section {
                successors.push(((blocks + section.index()) as u32, id.0));
            }
        }
        Self { successors: Lists::new(count, &successors), symbols: Lists::new(count, &symbols) }
    }

    fn count(&self) -> usize {
        self.successors.starts.len() - 1
    }
}

/// A list for each node, packed.
struct Lists<T> {
    starts: Vec<u32>,
    members: Vec<T>,
}

impl<T: Copy> Lists<T> {
    fn new(count: usize, pairs: &[(u32, T)]) -> Self {
        let mut starts = vec![0u32; count + 1];
        for (node, _) in pairs {
            starts[*node as usize + 1] += 1;
        }
        for node in 0..count {
            starts[node + 1] += starts[node];
        }
        let mut members: Vec<T> = pairs.iter().map(|(_, member)| *member).collect();
        let mut next = starts.clone();
        for (node, member) in pairs {
            let at = &mut next[*node as usize];
            members[*at as usize] = *member;
            *at += 1;
        }
        Self { starts, members }
    }

    fn range(&self, node: u32) -> Range<usize> {
        self.starts[node as usize] as usize..self.starts[node as usize + 1] as usize
    }

    fn of(&self, node: u32) -> &[T] {
        &self.members[self.range(node)]
    }
}

struct Search<'a> {
    nodes: &'a Nodes,
    /// By node: when it was found; while its ring is open, the earliest that it leads to.
    order: Vec<u32>,
    ring_of: Vec<u32>,
    /// Nodes whose rings are not complete.
    open: Vec<u32>,
    symbols: Vec<Vec<SymbolId>>,
    /// By symbol: the last ring that it was added to.
    seen: Vec<u32>,
    next: u32,
}

/// A node on the way, the part of its successors not yet looked at, and when it was found.
struct Step {
    node: u32,
    rest: Range<usize>,
    found: u32,
}

impl Search<'_> {
    fn enter(&mut self, node: u32) -> Step {
        let found = self.next;
        self.next += 1;
        self.order[node as usize] = found;
        self.open.push(node);
        Step { node, rest: self.nodes.successors.range(node), found }
    }

    fn visit(&mut self, start: u32) {
        let mut path = vec![self.enter(start)];
        while let Some(step) = path.last_mut() {
            let node = step.node as usize;
            if let Some(at) = step.rest.next() {
                let successor = self.nodes.successors.members[at];
                if self.order[successor as usize] == 0 {
                    let entered = self.enter(successor);
                    path.push(entered);
                } else if self.ring_of[successor as usize] == UNKNOWN {
                    self.order[node] = self.order[node].min(self.order[successor as usize]);
                }
                continue;
            }
            let (node, found, earliest) = (step.node, step.found, self.order[node]);
            path.pop();
            if earliest == found {
                self.close(node);
            } else if let Some(before) = path.last() {
                let before = &mut self.order[before.node as usize];
                *before = (*before).min(earliest);
            }
        }
    }

    /// Completes the ring that began with a node: those it leads to are complete.
    fn close(&mut self, first: u32) {
        let ring = self.symbols.len() as u32;
        let start = self.open.iter().rposition(|node| *node == first).unwrap_or_default();
        let members = self.open.split_off(start);
        for node in &members {
            self.ring_of[*node as usize] = ring;
        }
        let mut symbols = Vec::new();
        for node in members {
            for symbol in self.nodes.symbols.of(node) {
                if std::mem::replace(&mut self.seen[symbol.index()], ring) != ring {
                    symbols.push(*symbol);
                }
            }
            for successor in self.nodes.successors.of(node) {
                let other = self.ring_of[*successor as usize];
                // The symbols of one ring are added once, unless another ring came between.
                for symbol in self.symbols.get(other as usize).into_iter().flatten() {
                    if std::mem::replace(&mut self.seen[symbol.index()], ring) != ring {
                        symbols.push(*symbol);
                    }
                }
            }
        }
        self.symbols.push(symbols);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::{Architecture, x86_64};
    use crate::graph::{Edge, EdgeKind};
    use crate::memory::SegmentKind;
    use crate::name::SymbolStringPool;

    /// A graph of blocks without names that lead to each other as said; where it says more than
    /// there are blocks, to an external symbol of that number.
    fn needs(edges: &[&[usize]]) -> Vec<Vec<usize>> {
        let names = SymbolStringPool::new();
        let mut graph = LinkGraph::new("test", Architecture::X86_64);
        let externals: Vec<_> = (0..20).map(|index| graph.external(names.intern(&index.to_string()), index)).collect();
        let mut blocks = Vec::new();
        // Ids are given in order, so that an edge can lead to a block that is not there yet.
        let symbol = |index: usize| SymbolId::new(externals.len() + index);
        for targets in edges {
            let block = graph.add_block(SegmentKind::Code, &[0; 8], 1).expect("it is small");
            for target in *targets {
                let target = if *target < edges.len() { symbol(*target) } else { externals[*target] };
                let kind = EdgeKind::X86_64(x86_64::EdgeKind::Pointer64);
                graph.edges.push(Edge { block, offset: 0, kind, target, addend: 0 });
            }
            blocks.push(block);
        }
        for block in &blocks {
            graph.define(None, *block, 0, 0);
        }
        let needs = Needs::new(&graph);
        let of = |block: &BlockId| {
            let mut tags: Vec<_> = needs.of(*block).iter().map(|id| graph.tag(*id) as usize).collect();
            tags.sort_unstable();
            tags
        };
        blocks.iter().map(of).collect()
    }

    #[test]
    fn a_ring_needs_what_each_of_it_needs() {
        let found = needs(&[&[1, 10], &[2], &[0, 3, 11], &[12], &[3, 4]]);
        assert_eq!(found, [vec![10, 11, 12], vec![10, 11, 12], vec![10, 11, 12], vec![12], vec![12]]);
    }

    #[test]
    fn agrees_with_following_every_edge() {
        let mut state = 1u64;
        let mut random = |limit: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            ((state >> 33) % limit) as usize
        };
        for _ in 0..300 {
            let edges: Vec<Vec<usize>> = (0..10).map(|_| (0..random(3)).map(|_| random(20)).collect()).collect();
            let expected: Vec<Vec<usize>> = (0..10)
                .map(|start| {
                    let (mut work, mut seen) = (vec![start], [false; 20]);
                    while let Some(node) = work.pop() {
                        for target in edges.get(node).into_iter().flatten() {
                            if !std::mem::replace(&mut seen[*target], true) {
                                work.push(*target);
                            }
                        }
                    }
                    (10..20).filter(|external| seen[*external]).collect()
                })
                .collect();
            let edges: Vec<&[usize]> = edges.iter().map(Vec::as_slice).collect();
            assert_eq!(needs(&edges), expected, "{edges:?}");
        }
    }
}
