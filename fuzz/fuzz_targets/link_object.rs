//! Reads and links whatever comes, with every undefined symbol at one address.

#![no_main]

use std::sync::Arc;

use jit_linker::graph::ObjectBytes;
use jit_linker::link::{self, TlsLocation};
use jit_linker::memory::{DetachedMemory, MemoryManager};
use jit_linker::{SymbolStringPool, format};
use libfuzzer_sys::fuzz_target;

/// Zeros that an object asks for are granted by a session, up to its limit.
const MEMORY_LIMIT: usize = 16 << 20;

fuzz_target!(|bytes: &[u8]| {
    let names = SymbolStringPool::new();
    let Ok(graph) = format::parse("fuzz.o", ObjectBytes::from(bytes), &names) else { return };
    let Ok(prepared) = link::prepare(graph) else { return };
    if prepared.request().iter().map(|segment| segment.size).sum::<usize>() > MEMORY_LIMIT {
        return;
    }
    let memory: Arc<dyn MemoryManager> = Arc::new(DetachedMemory::at(0x40_0000));
    let Ok(mut allocated) = prepared.allocate(&memory) else { return };
    let location = TlsLocation { module: 1, offset: 0, thread_pointer_offset: Some(64), descriptor: None };
    for symbol in allocated.externals() {
        allocated.resolve(symbol, 0x50_0000, None);
        allocated.resolve_thread_local(symbol, location);
    }
    allocated.set_thread_local_storage(location);
    _ = allocated.dependences(|_| true);
    _ = allocated.fix_up();
});
