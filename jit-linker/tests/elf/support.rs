//! The shortest way from an object to a call.

use std::collections::HashMap;
use std::sync::Arc;

use jit_linker::graph::{Definition, Linkage, ObjectBytes, SymbolId};
use jit_linker::link::{self, Allocated, LinkError};
use jit_linker::memory::{FinalizedAllocation, MemoryManager, SlabManager};
use jit_linker::{LinkGraph, SymbolStringPool, format};

/// The C compiler whose objects run here, wherever the tests were compiled.
pub(crate) const CC: &str =
    if cfg!(target_arch = "aarch64") { "aarch64-linux-gnu-gcc" } else { "x86_64-linux-gnu-gcc" };

pub(crate) fn parse(object: impl Into<ObjectBytes>) -> LinkGraph {
    format::parse("test.o", object.into(), &SymbolStringPool::new()).expect("the object is well-formed")
}

/// An object in memory, ready to run.
pub(crate) struct Linked {
    symbols: HashMap<String, u64>,
    _code: FinalizedAllocation,
}

impl Linked {
    pub(crate) fn address(&self, name: &str) -> u64 {
        *self.symbols.get(name).unwrap_or_else(|| panic!("{name} is not defined"))
    }

    /// Calls a function of type `extern "C" fn(i32) -> i32`.
    pub(crate) fn call(&self, name: &str, argument: i32) -> i32 {
        let code = std::ptr::with_exposed_provenance::<()>(self.address(name) as usize);
        // SAFETY: tests name functions of this type, which live as long as `self`.
        unsafe { std::mem::transmute::<*const (), extern "C" fn(i32) -> i32>(code)(argument) }
    }
}

/// Gives every external symbol its address.
pub(crate) fn resolve(allocated: &mut Allocated, externals: &dyn Fn(&str) -> Option<u64>) {
    let graph = allocated.graph();
    let found: Vec<(SymbolId, Option<u64>)> = graph
        .symbols()
        .filter(|(_, symbol)| symbol.definition == Definition::External)
        .map(|(id, symbol)| {
            let name = graph.symbol_name(id).expect("an external has a name");
            let address = externals(name);
            assert!(address.is_some() || symbol.linkage == Linkage::Weak, "{name} is undefined");
            (id, address)
        })
        .collect();
    for (id, address) in found {
        allocated.resolve(id, address.unwrap_or(0), None);
    }
}

pub(crate) fn link(graph: LinkGraph, externals: &dyn Fn(&str) -> Option<u64>) -> Result<Linked, LinkError> {
    let memory: Arc<dyn MemoryManager> = Arc::new(SlabManager::new().expect("there is address space"));
    let mut allocated = link::prepare(graph)?.allocate(&memory)?;
    resolve(&mut allocated, externals);
    let graph = allocated.graph();
    let symbols = graph.symbols().map(|(id, _)| id);
    let symbols = symbols.filter_map(|id| Some((graph.symbol_name(id)?.to_string(), allocated.address(id)))).collect();
    let resolvers = allocated.resolvers();
    let code = allocated.fix_up()?.finalize()?;
    for resolver in resolvers {
        // SAFETY: the code is final, and the resolvers of tests need nothing else.
        unsafe { resolver.settle() };
    }
    Ok(Linked { symbols, _code: code })
}
