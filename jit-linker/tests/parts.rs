//! Large blocks are written part by part, from their ends, and what is done with goes meanwhile.
#![cfg(target_os = "linux")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::io::IoSlice;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use jit_linker::arch::{Architecture, x86_64};
use jit_linker::graph::{Edge, EdgeKind};
use jit_linker::link;
use jit_linker::memory::{
    MemoryError, MemoryManager, MemoryStatistics, PageManager, RawAllocation, Request, SegmentKind, SlabManager,
};
use jit_linker::{LinkGraph, SymbolStringPool};

static LIVE: AtomicUsize = AtomicUsize::new(0);

struct Counting;

// SAFETY: the system's allocator does the work.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LIVE.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Tests take turns: one counts the memory of all.
static TURN: Mutex<()> = Mutex::new(());

/// `mov rax, [rip + disp32]`, of a GOT entry.
const LOAD: [u8; 7] = [0x48, 0x8b, 0x05, 0, 0, 0, 0];
const PLACE: usize = 3;

/// A block of so many loads of its own address, behind a small one. Its edges are in the order that `order` gives their numbers.
fn loads(before: usize, count: usize, order: impl Fn(usize) -> usize) -> LinkGraph {
    let mut graph = LinkGraph::new("loads", Architecture::X86_64);
    graph.add_block(SegmentKind::Code, &vec![0x90; before], 1).unwrap();
    let block = graph.add_block(SegmentKind::Code, &LOAD.repeat(count), 1).unwrap();
    let target = graph.define(Some(SymbolStringPool::new().intern("loads")), block, 0, 0);
    for index in (0..count).map(order) {
        let offset = (index * LOAD.len() + PLACE) as u32;
        let kind = EdgeKind::X86_64(x86_64::EdgeKind::GotOperand32);
        graph.add_edge(Edge { block, offset, kind, target, addend: -4 }).unwrap();
    }
    graph
}

/// The code of [`loads`], linked: each is a `lea`.
fn addresses(before: usize, count: usize) -> Vec<u8> {
    let lea = |index: usize| {
        let distance = -((index * LOAD.len() + LOAD.len()) as i32);
        [&[0x48, 0x8d, 0x05][..], &distance.to_le_bytes()].concat()
    };
    [vec![0x90; before], (0..count).flat_map(lea).collect()].concat()
}

#[test]
fn instructions_at_the_ends_of_parts_are_changed_whole() {
    let _turn = TURN.lock().unwrap();
    // Parts end everywhere in instructions, and are of several sizes; the largest has pages of its own.
    for (before, count) in [(0, 20_000), (1, 20_000), (2, 100_000), (5, 100_000), (4, 280_000), (6, 500_000)] {
        let managers: [Arc<dyn MemoryManager>; 2] =
            [Arc::new(SlabManager::new().unwrap()), Arc::new(PageManager::new())];
        for manager in managers {
            // 7919 is a prime that divides no count.
            let scattered = |index| index * 7919 % count;
            for graph in [loads(before, count, |index| index), loads(before, count, scattered)] {
                let allocated = link::prepare(graph).unwrap().allocate(&manager).unwrap();
                let mut fixed = allocated.fix_up().unwrap();
                assert!(fixed.content(SegmentKind::Code) == addresses(before, count), "{before} before {count}");
            }
        }
    }
}

/// Notes how much of the heap is in use whenever content is written.
#[derive(Debug)]
struct Watching {
    slabs: SlabManager,
    in_use: Mutex<Vec<usize>>,
}

// SAFETY: everything is the slab manager's, which keeps the contract.
unsafe impl MemoryManager for Watching {
    fn allocate(&self, request: &Request) -> Result<RawAllocation, MemoryError> {
        self.slabs.allocate(request)
    }

    unsafe fn finalize(&self, allocation: &RawAllocation) -> Result<(), MemoryError> {
        // SAFETY: as the caller says.
        unsafe { self.slabs.finalize(allocation) }
    }

    unsafe fn write(
        &self,
        allocation: &RawAllocation,
        kind: SegmentKind,
        offset: usize,
        parts: &[IoSlice<'_>],
    ) -> bool {
        let in_use = LIVE.load(Ordering::Relaxed);
        self.in_use.lock().unwrap().push(in_use);
        // SAFETY: as the caller says.
        unsafe { self.slabs.write(allocation, kind, offset, parts) }
    }

    unsafe fn deallocate(&self, allocation: &RawAllocation) {
        // SAFETY: as the caller says.
        unsafe { self.slabs.deallocate(allocation) };
    }

    fn statistics(&self) -> MemoryStatistics {
        self.slabs.statistics()
    }
}

#[test]
fn edges_of_one_large_block_give_their_memory_back_while_it_is_written() {
    const COUNT: usize = 100_000;
    let _turn = TURN.lock().unwrap();
    let watching = Arc::new(Watching { slabs: SlabManager::new().unwrap(), in_use: Mutex::default() });
    let manager: Arc<dyn MemoryManager> = watching.clone();
    let graph = loads(0, COUNT, |index| index);
    let allocated = link::prepare(graph).unwrap().allocate(&manager).unwrap();
    drop(allocated.fix_up().unwrap());
    let in_use = watching.in_use.lock().unwrap();
    let (first, last) = (in_use[0], in_use[in_use.len() - 1]);
    let edges = COUNT * size_of::<Edge>();
    assert!(last + edges * 3 / 4 < first, "{first} bytes at first, {last} at last, {edges} of edges");
}
