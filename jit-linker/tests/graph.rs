//! Graphs built by hand: pruning, the passes of a host, and ids that belong elsewhere.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use jit_linker::arch::{Architecture, x86_64};
use jit_linker::graph::{BlockId, Edge, EdgeKind, GraphError, SymbolId};
use jit_linker::link::{self, LinkError, Loaded};
use jit_linker::memory::{MemoryManager, PageManager, SegmentKind};
use jit_linker::plugin::{Passes, Stage};
use jit_linker::{LinkGraph, SymbolStringPool};

const POINTER: EdgeKind = EdgeKind::X86_64(x86_64::EdgeKind::Pointer64);

struct Builder {
    graph: LinkGraph,
    names: SymbolStringPool,
}

impl Builder {
    fn new() -> Self {
        Self { graph: LinkGraph::new("hand-made", Architecture::X86_64), names: SymbolStringPool::new() }
    }

    fn external(&mut self, name: &str) -> SymbolId {
        self.graph.external(self.names.intern(name), 0)
    }

    /// A word of data that holds the addresses of `targets`.
    fn data(&mut self, name: Option<&str>, targets: &[SymbolId]) -> (BlockId, SymbolId) {
        let bytes = vec![0; 8 * targets.len().max(1)];
        let block = self.graph.add_block(SegmentKind::Data, &bytes, 8).expect("it is small");
        for (target, offset) in targets.iter().zip((0..).step_by(8)) {
            let edge = Edge { block, offset, kind: POINTER, target: *target, addend: 0 };
            self.graph.add_edge(edge).expect("the block is the newest");
        }
        let name = name.map(|name| self.names.intern(name));
        (block, self.graph.define(name, block, 0, 0))
    }
}

fn memory() -> Arc<dyn MemoryManager> {
    Arc::new(PageManager::new())
}

fn load(graph: LinkGraph) -> Loaded {
    link::load(graph, Passes::default()).expect("there are no passes")
}

#[test]
fn pruning_keeps_what_wanted_symbols_and_kept_blocks_lead_to() {
    let mut builder = Builder::new();
    let (used, unused) = (builder.external("used"), builder.external("unused"));
    let (leaf, leaf_symbol) = builder.data(None, &[used]);
    let (wanted, wanted_symbol) = builder.data(Some("wanted"), &[leaf_symbol]);
    let (dead, _) = builder.data(Some("dead"), &[unused, leaf_symbol]);
    let (kept, _) = builder.data(None, &[]);
    builder.graph.keep(kept);
    let mut loaded = load(builder.graph);
    loaded.prune(&[wanted_symbol]);
    let live = [leaf, wanted, dead, kept].map(|block| loaded.graph().block(block).live);
    assert_eq!(live, [true, true, false, true]);
    let prepared = loaded.prepare().expect("it can be laid out");
    assert_eq!(prepared.request()[SegmentKind::Data as usize].size, 24, "what is dead takes no room");
    let allocated = prepared.allocate(&memory()).expect("there is memory");
    assert_eq!(allocated.externals(), [used], "what only dead blocks need is not looked up");
}

#[test]
fn pruning_goes_through_rings_and_long_chains() {
    let mut builder = Builder::new();
    let first = builder.external("first");
    let mut last = first;
    for _ in 0..100_000 {
        last = builder.data(None, &[last]).1;
    }
    let (end, _) = builder.data(None, &[last]);
    builder.graph.define_external(first, end, 0, 0);
    let mut loaded = load(builder.graph);
    loaded.prune(&[first]);
    assert!(loaded.graph().blocks().all(|(_, block)| block.live));
    loaded.prune(&[]);
    assert!(loaded.graph().blocks().all(|(_, block)| !block.live), "the ring alone keeps nothing");
}

#[test]
fn passes_run_in_their_order_and_see_what_is_settled() {
    let mut builder = Builder::new();
    let outside = builder.external("outside");
    let (block, symbol) = builder.data(Some("word"), &[outside]);
    let seen = Arc::new(Mutex::new(Vec::new()));
    let note = |stage: Stage, address_of: SymbolId| {
        let seen = Arc::clone(&seen);
        Box::new(move |graph: &mut LinkGraph| {
            seen.lock().expect("no pass panics").push((stage, graph.symbol(address_of).address() != 0));
            Ok(())
        })
    };
    let mut passes = Passes::default();
    passes.before_prune.push(note(Stage::BeforePrune, symbol));
    passes.after_prune.push(note(Stage::AfterPrune, symbol));
    passes.after_allocation.push(note(Stage::AfterAllocation, symbol));
    passes.after_allocation.push(note(Stage::AfterAllocation, outside));
    passes.before_fixup.push(note(Stage::BeforeFixup, outside));
    let value = Arc::new(AtomicUsize::new(0));
    let to = Arc::clone(&value);
    passes.after_fixup.push(Box::new(move |fixed| {
        let bytes: [u8; 8] = (*fixed.block_content(block)).try_into()?;
        to.store(usize::from_le_bytes(bytes), Ordering::Relaxed);
        fixed.block_content(block)[0] = 0x99;
        Ok(())
    }));
    let loaded = link::load(builder.graph, passes).expect("no pass fails");
    let mut allocated = loaded.prepare().and_then(|prepared| prepared.allocate(&memory())).expect("it can be placed");
    allocated.resolve(outside, 0x1234, None);
    let address = allocated.address(symbol);
    let _code = allocated.fix_up().and_then(link::Fixed::finalize).expect("it can be linked");
    assert_eq!(
        *seen.lock().expect("no pass panics"),
        [
            (Stage::BeforePrune, false),
            (Stage::AfterPrune, false),
            (Stage::AfterAllocation, true),
            (Stage::AfterAllocation, false),
            (Stage::BeforeFixup, true),
        ]
    );
    assert_eq!(value.load(Ordering::Relaxed), 0x1234, "fixups are applied before the last pass");
    // SAFETY: the block is data of eight bytes, and `_code` lives.
    let word = unsafe { *std::ptr::with_exposed_provenance::<u64>(address as usize) };
    assert_eq!(word, 0x1299, "what the last pass writes stays");
}

#[test]
fn a_pass_adds_content_before_layout_and_none_after() {
    let mut builder = Builder::new();
    let (_, word) = builder.data(Some("word"), &[]);
    let mut passes = Passes::default();
    passes.after_prune.push(Box::new(move |graph| {
        let block = graph.add_block(SegmentKind::Data, &[0; 8], 8)?;
        graph.add_edge(Edge { block, offset: 0, kind: POINTER, target: word, addend: 0 })?;
        Ok(())
    }));
    passes.after_allocation.push(Box::new(|graph| {
        let late = graph.add_zero_block(SegmentKind::Data, 8, 8);
        assert_eq!(late, Err(GraphError::Settled));
        Ok(())
    }));
    let prepared = link::load(builder.graph, passes).and_then(Loaded::prepare).expect("no pass fails");
    assert_eq!(prepared.request()[SegmentKind::Data as usize].size, 16);
    prepared.allocate(&memory()).expect("no pass fails");
}

#[test]
fn a_pass_that_fails_ends_the_link_and_the_memory_goes_back() {
    let memory = memory();
    let failing = || Box::new(|_: &mut LinkGraph| Err("no".into()));
    let run = |passes: Passes| {
        let mut builder = Builder::new();
        builder.data(Some("word"), &[]);
        link::load(builder.graph, passes)?.prepare()?.allocate(&memory)?.fix_up().map(drop)
    };
    let stages: [(Stage, Passes); 5] = [
        (Stage::BeforePrune, Passes { before_prune: vec![failing()], ..Passes::default() }),
        (Stage::AfterPrune, Passes { after_prune: vec![failing()], ..Passes::default() }),
        (Stage::AfterAllocation, Passes { after_allocation: vec![failing()], ..Passes::default() }),
        (Stage::BeforeFixup, Passes { before_fixup: vec![failing()], ..Passes::default() }),
        (Stage::AfterFixup, Passes { after_fixup: vec![Box::new(|_| Err("no".into()))], ..Passes::default() }),
    ];
    for (expected, passes) in stages {
        match run(passes) {
            Err(LinkError::Pass { stage, .. }) => assert_eq!(stage, expected),
            other => panic!("{expected}: {other:?}"),
        }
        assert_eq!(memory.statistics().allocations, 0, "{expected}");
    }
}

#[test]
fn ids_of_another_graph_are_refused() {
    let mut large = Builder::new();
    let symbols: Vec<_> = (0..10).map(|_| large.data(Some("other"), &[])).collect();
    let (foreign_block, foreign_symbol) = symbols[9];

    let mut builder = Builder::new();
    let (block, _) = builder.data(Some("own"), &[]);
    let edge = Edge { block, offset: 0, kind: POINTER, target: foreign_symbol, addend: 0 };
    assert_eq!(builder.graph.add_edge(edge), Err(GraphError::ForeignId));
    assert!(builder.graph.bytes_mut(foreign_block).is_err());
    assert!(builder.graph.symbol_name(foreign_symbol).is_none());
    assert!(!builder.graph.block(foreign_block).live);
    link::prepare(builder.graph.clone()).expect("nothing came of it");

    let changes: [&dyn Fn(&mut LinkGraph); 4] = [
        &|graph| _ = graph.define(None, foreign_block, 0, 0),
        &|graph| graph.define_external(foreign_symbol, block, 0, 0),
        &|graph| graph.make_external(foreign_symbol),
        &|graph| graph.keep(foreign_block),
    ];
    for change in changes {
        let mut graph = builder.graph.clone();
        change(&mut graph);
        let refused = link::prepare(graph);
        assert!(matches!(refused, Err(LinkError::Graph(GraphError::ForeignId))), "{refused:?}");
    }
}
