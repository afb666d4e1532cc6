//! Links assembly at chosen addresses, and looks at the bytes.

use std::sync::Arc;

use jit_linker::LinkGraph;
use jit_linker::graph::{SectionRole, SymbolId};
use jit_linker::link::{self, Allocated, LinkError};
use jit_linker::memory::{DetachedMemory, MemoryManager, SegmentKind};

use crate::compiler::build;
use crate::support::{parse, resolve};

pub(crate) const X86_64: &str = "x86_64-linux-gnu";
pub(crate) const AARCH64: &str = "aarch64-linux-gnu";

pub(crate) fn assemble(target: &str, source: &str) -> LinkGraph {
    parse(build(&["clang-22", "-target", target, "-c"], "s", source))
}

/// Where code, constants and data are, unless a test says otherwise.
pub(crate) const BASES: [u64; 3] = [0x5_1000_0000, 0x5_1100_0000, 0x5_1200_0000];

pub(crate) struct Image {
    pub(crate) code: Vec<u8>,
    pub(crate) constants: Vec<u8>,
    pub(crate) data: Vec<u8>,
}

impl Image {
    pub(crate) fn word(bytes: &[u8], at: usize) -> u32 {
        u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
    }

    pub(crate) fn quad(bytes: &[u8], at: usize) -> u64 {
        u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
    }

    /// Where the 32-bit displacement at an offset of the code leads, from its end.
    pub(crate) fn displaced(&self, at: usize) -> u64 {
        let displacement = Self::word(&self.code, at).cast_signed();
        (BASES[0] + at as u64 + 4).wrapping_add_signed(displacement.into())
    }
}

pub(crate) fn allocate(graph: LinkGraph) -> Result<Allocated, LinkError> {
    let memory: Arc<dyn MemoryManager> = Arc::new(DetachedMemory::apart(BASES));
    link::prepare(graph)?.allocate(&memory)
}

pub(crate) fn image(graph: LinkGraph, externals: &dyn Fn(&str) -> Option<u64>) -> Result<Image, LinkError> {
    let mut allocated = allocate(graph)?;
    resolve(&mut allocated, externals);
    let mut fixed = allocated.fix_up()?;
    let mut content = |kind| fixed.content(kind).to_vec();
    let (code, constants) = (content(SegmentKind::Code), content(SegmentKind::ReadOnly));
    Ok(Image { code, constants, data: content(SegmentKind::Data) })
}

pub(crate) fn symbol(graph: &LinkGraph, name: &str) -> SymbolId {
    let found = graph.symbols().find(|(id, _)| graph.symbol_label(*id) == name);
    found.unwrap_or_else(|| panic!("there is no {name}")).0
}

pub(crate) fn roles(graph: &LinkGraph, ids: Vec<jit_linker::graph::SectionId>) -> Vec<(String, SectionRole)> {
    ids.into_iter().map(|id| (graph.section_name(id).into_owned(), graph.section(id).role)).collect()
}
