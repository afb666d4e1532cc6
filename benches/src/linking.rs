//! Linking: ELF and Mach-O of one source, and objects beside LLVM's JITLink.

use std::sync::Arc;

use orcane::linker::graph::ObjectBytes;
use orcane::linker::link;
use orcane::linker::memory::{MemoryManager, SlabManager};
use orcane::linker::{SymbolStringPool, format};

use crate::Result;

/// Does what a process does that links an object: see [`workloads::link`].
pub(crate) fn child(arguments: &[String]) -> Result<String> {
    workloads::link::run(arguments, ObjectBytes::from, |object| link_once(object))
}

/// Links an object into memory of its own, with every external symbol at one address, and gives the memory back.
fn link_once(object: &ObjectBytes) -> Result<()> {
    let memory: Arc<dyn MemoryManager> = Arc::new(SlabManager::new()?);
    let graph = format::parse("object", object.clone(), &SymbolStringPool::new())?;
    let mut allocated = link::prepare(graph)?.allocate(&memory)?;
    for symbol in allocated.externals() {
        allocated.resolve(symbol, workloads::link::external(), None);
    }
    drop(allocated.fix_up()?.finalize()?);
    Ok(())
}
