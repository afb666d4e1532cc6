//! Leaves out what nobody needs: blocks that neither a wanted symbol nor a block that is kept for
//! its own sake leads to.

use crate::graph::{BlockId, Definition, LinkGraph, SectionRole, SymbolId};

/// Clears [`live`](crate::graph::Block::live) of every block that can't be reached.
///
/// Roots are the `wanted` symbols, blocks that [`LinkGraph::keep`] was called for, and what the
/// process looks at unasked: initializers and finalizers. A COMDAT group is one thing, and so is a
/// section whose bounds somebody takes. A block of unwinding tables lives as long as its function;
/// one that was not attributed to a function is kept, with what it describes.
pub(crate) fn prune(graph: &mut LinkGraph, wanted: &[SymbolId]) {
    let mut marker = Marker::new(graph);
    for symbol in wanted {
        marker.mark_symbol(*symbol);
    }
    for (id, block) in graph.blocks() {
        let role = block.section.map(|section| graph.section(section).role);
        let is_root = match role {
            Some(SectionRole::Initializers { .. } | SectionRole::Finalizers { .. }) => true,
            Some(SectionRole::EhFrame) => !marker.is_attached[id.index()],
            _ => block.keep,
        };
        if is_root {
            marker.mark(id);
        }
    }
    marker.follow();
    let Marker { reached, .. } = marker;
    for (block, reached) in graph.blocks.iter_mut().zip(reached) {
        block.live &= reached;
    }
}

/// Lists by block or section, packed: the members of `n` stand from `starts[n]` to `starts[n + 1]`.
struct Groups {
    starts: Vec<u32>,
    members: Vec<BlockId>,
}

impl Groups {
    fn new(count: usize, pairs: impl Iterator<Item = (usize, BlockId)> + Clone) -> Self {
        let mut starts = vec![0; count + 1];
        for (group, _) in pairs.clone() {
            starts[group + 1] += 1;
        }
        for group in 0..count {
            starts[group + 1] += starts[group];
        }
        let mut next = starts.clone();
        let mut members = vec![BlockId::new(0); starts[count] as usize];
        for (group, block) in pairs {
            members[next[group] as usize] = block;
            next[group] += 1;
        }
        Self { starts, members }
    }

    fn of(&self, group: usize) -> &[BlockId] {
        &self.members[self.starts[group] as usize..self.starts[group + 1] as usize]
    }
}

struct Marker<'a> {
    graph: &'a LinkGraph,
    edges: Vec<std::ops::Range<usize>>,
    reached: Vec<bool>,
    work: Vec<BlockId>,
    /// By host, the blocks that live as long as it does.
    attached: Groups,
    is_attached: Vec<bool>,
    /// By COMDAT group, its blocks; and the group of each block, if it is in one.
    comdat_of: Vec<Option<u32>>,
    /// By section, its blocks.
    sections: Groups,
    is_section_reached: Vec<bool>,
}

impl<'a> Marker<'a> {
    fn new(graph: &'a LinkGraph) -> Self {
        let blocks = graph.blocks.len();
        let mut is_attached = vec![false; blocks];
        for (_, attached) in &graph.attached {
            is_attached[attached.index()] = true;
        }
        let mut comdat_of = vec![None; blocks];
        for (index, comdat) in graph.comdats().iter().enumerate() {
            for block in &comdat.blocks {
                comdat_of[block.index()] = Some(index as u32);
            }
        }
        let in_sections = graph.blocks.iter().enumerate();
        let in_sections = in_sections.filter_map(|(index, block)| Some((block.section?.index(), BlockId::new(index))));
        Self {
            graph,
            edges: graph.edge_ranges(),
            reached: vec![false; blocks],
            work: Vec::new(),
            attached: Groups::new(blocks, graph.attached.iter().map(|(host, block)| (host.index(), *block))),
            is_attached,
            comdat_of,
            sections: Groups::new(graph.sections.len(), in_sections),
            is_section_reached: vec![false; graph.sections.len()],
        }
    }

    fn mark(&mut self, block: BlockId) {
        if self.graph.block(block).live && !std::mem::replace(&mut self.reached[block.index()], true) {
            self.work.push(block);
        }
    }

    fn mark_all(&mut self, blocks: &[BlockId]) {
        blocks.iter().for_each(|block| self.mark(*block));
    }

    fn mark_symbol(&mut self, symbol: SymbolId) {
        match self.graph.symbol(symbol).definition {
            Definition::Block { block, .. } => self.mark(block),
            Definition::SectionBound { section, .. } => {
                let section = section.index();
                if !std::mem::replace(&mut self.is_section_reached[section], true) {
                    let blocks = self.sections.of(section).to_vec();
                    self.mark_all(&blocks);
                }
            }
            Definition::External | Definition::Absolute | Definition::GotBase => {}
        }
    }

    /// Marks everything that the marked blocks lead to.
    fn follow(&mut self) {
        let graph = self.graph;
        while let Some(block) = self.work.pop() {
            for edge in &graph.edges()[self.edges[block.index()].clone()] {
                self.mark_symbol(edge.target);
            }
            let attached = self.attached.of(block.index()).to_vec();
            self.mark_all(&attached);
            if let Some(comdat) = self.comdat_of[block.index()].take() {
                self.mark_all(&graph.comdats()[comdat as usize].blocks);
            }
        }
    }
}
