//! Link graphs made by hand, and a session to link them in.

use std::sync::Arc;

use jit_core::{ExecutionSession, InPlaceDispatcher, InProcess, JitDylib};
use jit_linker::LinkGraph;
use jit_linker::arch::{Architecture, x86_64};
use jit_linker::graph::{Edge, EdgeKind, Linkage, SymbolId, SymbolKind};
use jit_linker::memory::{PageManager, SegmentKind};

pub(crate) fn session() -> (ExecutionSession, JitDylib) {
    let memory = Arc::new(PageManager::new());
    let executor = Box::new(InProcess::new(Architecture::X86_64, memory));
    let session = ExecutionSession::new(executor, Box::new(InPlaceDispatcher::new()), None);
    let main = session.create_dylib("main").unwrap();
    (session, main)
}

/// The code of a function that returns `value`.
pub(crate) fn returning(value: u32) -> Vec<u8> {
    [&[0xb8][..], &value.to_le_bytes(), &[0xc3]].concat()
}

pub(crate) fn call(address: u64) -> u32 {
    let code = std::ptr::with_exposed_provenance::<()>(address as usize);
    // SAFETY: tests name functions of this type that nobody removes.
    unsafe { std::mem::transmute::<*const (), extern "C" fn() -> u32>(code)() }
}

/// A graph on the way.
pub(crate) struct Made {
    pub(crate) graph: LinkGraph,
    session: ExecutionSession,
}

impl Made {
    pub(crate) fn new(session: &ExecutionSession, name: &str) -> Self {
        Self { graph: LinkGraph::new(name, Architecture::X86_64), session: session.clone() }
    }

    /// A function that returns `value`.
    pub(crate) fn function(&mut self, name: &str, value: u32) -> SymbolId {
        let block = self.graph.add_block(SegmentKind::Code, &returning(value), 16).unwrap();
        let symbol = self.graph.define(Some(self.session.intern(name)), block, 0, 0);
        self.graph.set_kind(symbol, SymbolKind::Function);
        symbol
    }

    /// A function that goes on in an external one.
    pub(crate) fn jump(&mut self, name: &str, target: &str) {
        let target = self.graph.external(self.session.intern(target), 0);
        let block = self.graph.add_block(SegmentKind::Code, &[0xe9, 0, 0, 0, 0], 16).unwrap();
        let kind = EdgeKind::X86_64(x86_64::EdgeKind::Branch32);
        self.graph.add_edge(Edge { block, offset: 1, kind, target, addend: -4 }).unwrap();
        let symbol = self.graph.define(Some(self.session.intern(name)), block, 0, 0);
        self.graph.set_kind(symbol, SymbolKind::Function);
    }

    pub(crate) fn constant(&mut self, name: &str, value: u64) {
        let block = self.graph.add_block(SegmentKind::ReadOnly, &value.to_le_bytes(), 8).unwrap();
        self.graph.define(Some(self.session.intern(name)), block, 0, 0);
    }

    /// A word that holds the address of an external symbol.
    pub(crate) fn pointer(&mut self, name: &str, target: &str, linkage: Linkage) {
        let target = self.graph.external(self.session.intern(target), 0);
        self.graph.set_linkage(target, linkage);
        self.pointer_to(name, target);
    }

    pub(crate) fn pointer_to(&mut self, name: &str, target: SymbolId) {
        let block = self.graph.add_block(SegmentKind::Data, &[0; 8], 8).unwrap();
        let kind = EdgeKind::X86_64(x86_64::EdgeKind::Pointer64);
        self.graph.add_edge(Edge { block, offset: 0, kind, target, addend: 0 }).unwrap();
        self.graph.define(Some(self.session.intern(name)), block, 0, 0);
    }
}
