//! Reads and links objects, with every undefined symbol at one address, and tells how long it took.
//!
//! ```text
//! cargo run --release -p jit-linker --example link_object -- sqlite3.o
//! ```

use std::sync::Arc;
use std::time::Instant;

use jit_linker::graph::{Definition, ObjectBytes};
use jit_linker::link::{self, TlsLocation};
use jit_linker::memory::{MemoryManager, SlabManager};
use jit_linker::{SymbolStringPool, format};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let names = SymbolStringPool::new();
    for path in std::env::args().skip(1) {
        let object = ObjectBytes::from(std::fs::read(&path)?);
        let memory: Arc<dyn MemoryManager> = Arc::new(SlabManager::with_capacity(1 << 30)?);
        let near = std::ptr::from_ref(&memory) as u64;
        let start = Instant::now();
        let graph = format::parse(&path, object.clone(), &names)?;
        let parsed = start.elapsed();
        let mut allocated = link::prepare(graph)?.allocate(&memory)?;
        let externals: Vec<_> = allocated
            .graph()
            .symbols()
            .filter(|(_, symbol)| symbol.definition == Definition::External)
            .map(|(id, _)| id)
            .collect();
        let location = TlsLocation { module: 1, offset: 0, thread_pointer_offset: Some(0x100), descriptor: None };
        for symbol in externals {
            allocated.resolve(symbol, near, None);
            allocated.resolve_thread_local(symbol, location);
        }
        allocated.set_thread_local_storage(location);
        let linked = allocated.fix_up()?.finalize()?;
        let total = start.elapsed();
        println!("{path}: {} bytes of {}, read in {parsed:?}, linked in {total:?}", linked.size(), object.len());
    }
    Ok(())
}
