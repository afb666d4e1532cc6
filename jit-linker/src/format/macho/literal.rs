//! Literals: content that has no identity, so that one of several that are equal is enough.

use std::hash::BuildHasher;

use hashbrown::HashTable;
use hashbrown::hash_table::Entry;
use rustc_hash::FxBuildHasher;

use crate::graph::{BlockId, LinkGraph};

/// The literals of one section that were added to the graph.
pub(super) struct Merger {
    blocks: HashTable<BlockId>,
}

impl Merger {
    pub(super) fn with_capacity(literals: usize) -> Self {
        Self { blocks: HashTable::with_capacity(literals) }
    }

    /// The block of an equal literal, which from now on has at least the given alignment; else the one that `add` makes.
    pub(super) fn block<E>(
        &mut self,
        graph: &mut LinkGraph,
        bytes: &[u8],
        align: u64,
        add: impl FnOnce(&mut LinkGraph) -> Result<BlockId, E>,
    ) -> Result<BlockId, E> {
        let content = |block: &BlockId| graph.bytes(graph.block(*block)).unwrap_or_default();
        let hash = |bytes: &[u8]| FxBuildHasher.hash_one(bytes);
        match self.blocks.entry(hash(bytes), |block| content(block) == bytes, |block| hash(content(block))) {
            Entry::Vacant(entry) => {
                let block = add(graph)?;
                entry.insert(block);
                Ok(block)
            }
            Entry::Occupied(entry) => {
                let align_log2 = &mut graph.blocks[entry.get().index()].align_log2;
                *align_log2 = (*align_log2).max(align.trailing_zeros() as u8);
                Ok(*entry.get())
            }
        }
    }
}

/// Where the strings of a section begin: after each NUL.
pub(super) fn string_starts(bytes: &[u8]) -> Vec<u32> {
    // Within the section, whose size fits.
    let behind = memchr::memchr_iter(0, bytes).map(|end| end as u32 + 1);
    std::iter::once(0).chain(behind.filter(|start| (*start as usize) < bytes.len())).collect()
}
