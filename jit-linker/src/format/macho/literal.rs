//! Literals: content that has no identity, so that one of several that are equal is enough.

use std::collections::hash_map::Entry;
use std::ffi::CStr;

use rustc_hash::{FxBuildHasher, FxHashMap};

use crate::graph::{BlockId, LinkGraph};

/// The literals of one section that were added to the graph.
pub(super) struct Merger<'data> {
    blocks: FxHashMap<&'data [u8], BlockId>,
}

impl<'data> Merger<'data> {
    pub(super) fn with_capacity(literals: usize) -> Self {
        Self { blocks: FxHashMap::with_capacity_and_hasher(literals, FxBuildHasher) }
    }

    /// The block of an equal literal, which from now on has at least the given alignment; else the one that `add` makes.
    pub(super) fn block<E>(
        &mut self,
        graph: &mut LinkGraph,
        bytes: &'data [u8],
        align: u64,
        add: impl FnOnce(&mut LinkGraph) -> Result<BlockId, E>,
    ) -> Result<BlockId, E> {
        match self.blocks.entry(bytes) {
            Entry::Vacant(entry) => Ok(*entry.insert(add(graph)?)),
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
    let mut starts = vec![0];
    let mut rest = bytes;
    while let Ok(string) = CStr::from_bytes_until_nul(rest) {
        rest = &rest[string.count_bytes() + 1..];
        if !rest.is_empty() {
            // Within the section, whose size fits.
            starts.push((bytes.len() - rest.len()) as u32);
        }
    }
    starts
}
