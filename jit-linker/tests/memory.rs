//! What both memory managers do, with code that runs.

mod machine_code;

use std::ops::Range;
use std::sync::Arc;

use jit_linker::LinkGraph;
use jit_linker::arch::{Architecture, aarch64, x86_64};
use jit_linker::graph::{Edge, EdgeKind, SymbolId};
use jit_linker::link::prepare;
use jit_linker::memory::{
    Allocation, FinalizedAllocation, MemoryError, MemoryManager, PageManager, Request, SegmentKind, SegmentRequest,
};
use machine_code::{address, call, code, link};

const CYCLES: usize = if cfg!(target_arch = "aarch64") { 10_000 } else { 1_000_000 };

type Manager = Arc<dyn MemoryManager>;

fn page_manager() -> Manager {
    Arc::new(PageManager::new())
}

fn request(code: usize, constants: usize, data: usize) -> Request {
    [code, constants, data].map(|size| SegmentRequest { size, align: 8 })
}

fn finalize(manager: &Manager, request: &Request) -> FinalizedAllocation {
    Allocation::new(manager, request).and_then(Allocation::finalize).expect("there is memory")
}

/// The protections of this process's mappings, like `r-xp`, with their addresses.
#[cfg(target_os = "linux")]
fn mappings() -> Vec<(Range<u64>, String)> {
    let maps = std::fs::read_to_string("/proc/self/maps").expect("Linux has it");
    let parse = |line: &str| {
        let mut fields = line.split(' ');
        let (start, end) = fields.next()?.split_once('-')?;
        let range = u64::from_str_radix(start, 16).ok()?..u64::from_str_radix(end, 16).ok()?;
        Some((range, fields.next()?.to_owned()))
    };
    maps.lines().map(|line| parse(line).expect("a line starts with range and protection")).collect()
}

#[cfg(target_os = "linux")]
fn protection(address: u64) -> String {
    let found = mappings().into_iter().find(|(range, _)| range.contains(&address));
    found.expect("the address is mapped").1[..3].to_owned()
}

fn bytes_at(range: Range<u64>) -> &'static [u8] {
    let start = std::ptr::with_exposed_provenance(range.start as usize);
    // SAFETY: tests pass segments that are mapped, readable, and live until the slice is looked at.
    unsafe { std::slice::from_raw_parts(start, (range.end - range.start) as usize) }
}

/// Allocations of many shapes, some at addresses where others were.
fn mixed_allocations(manager: &Manager) -> Vec<FinalizedAllocation> {
    let sizes = [(20, 0, 8), (5000, 100, 0), (0, 0, 70_000), (1, 1, 1), (0, 0, 0), (300_000, 40, 12)];
    let all: Vec<_> = sizes.iter().cycle().take(60).map(|&(c, r, d)| finalize(manager, &request(c, r, d))).collect();
    let kept: Vec<_> = all.into_iter().enumerate().filter(|(index, _)| index % 3 != 0).map(|(_, a)| a).collect();
    let again = sizes.iter().map(|&(c, r, d)| finalize(manager, &request(c, r, d)));
    kept.into_iter().chain(again).collect()
}

fn runs_what_was_written(manager: &Manager) {
    let functions: Vec<_> = (0..500).map(|value| link(manager, value)).collect();
    assert!(functions.iter().zip(0..).all(|(function, value)| call(function) == value));
}

/// But for three system calls it is what a Mac would run.
#[cfg(target_os = "linux")]
#[test]
fn memory_for_macos_runs_what_was_written_and_gives_it_back() {
    let manager: Manager = Arc::new(jit_linker::memory::AppleMemory::new());
    runs_what_was_written(&manager);
    let whole = finalize(&manager, &request(20, 30, 40));
    let protections = SegmentKind::ALL.map(|kind| protection(whole.range(kind).start));
    assert_eq!(protections, ["r-x", "r--", "rw-"]);
    let held = manager.statistics();
    assert_eq!((held.allocations, held.mappings, held.bytes), (1, 3, [region_page(); 3]));
    drop(whole);
    drop(mixed_allocations(&manager));
    assert_eq!(manager.statistics(), jit_linker::memory::MemoryStatistics::default());
    let too_aligned = [SegmentRequest { size: 1, align: 1 << 20 }; 3];
    assert!(matches!(Allocation::new(&manager, &too_aligned), Err(MemoryError::Alignment { align: 0x10_0000 })));
}

#[cfg(target_os = "linux")]
fn region_page() -> usize {
    // SAFETY: the call takes a number.
    unsafe { libc::sysconf(libc::_SC_PAGESIZE) as usize }
}

fn runs_new_code_where_old_code_was(manager: &Manager) {
    let _other = link(manager, 9);
    let mut last = None;
    for value in 0..200 {
        let function = link(manager, value);
        assert_eq!(call(&function), u32::from(value));
        assert_eq!(*last.get_or_insert(address(&function)), address(&function), "memory is used again");
    }
}

fn segments_do_not_overlap(manager: &Manager) {
    let allocations = mixed_allocations(manager);
    let segments = allocations.iter().flat_map(|allocation| SegmentKind::ALL.map(|kind| allocation.range(kind)));
    let mut segments: Vec<_> = segments.filter(|range| !range.is_empty()).collect();
    segments.sort_by_key(|range| range.start);
    assert!(segments.windows(2).all(|pair| pair[0].end <= pair[1].start));
}

fn is_flat_over_many_cycles(manager: &Manager, cycles: usize) {
    let _other = link(manager, 1);
    let shape = request(100, 20, 24);
    drop(finalize(manager, &shape));
    let before = manager.statistics();
    for _ in 0..cycles {
        drop(finalize(manager, &shape));
    }
    assert_eq!(manager.statistics(), before);
}

fn counts_return_to_where_they_were(manager: &Manager) {
    let before = manager.statistics();
    let allocations = mixed_allocations(manager);
    assert_eq!(manager.statistics().allocations, before.allocations + allocations.len());
    let asked: usize = allocations.iter().map(FinalizedAllocation::size).sum();
    assert!(manager.statistics().bytes.iter().sum::<usize>() >= asked);
    drop(allocations);
    assert_eq!((manager.statistics().allocations, manager.statistics().bytes), (before.allocations, before.bytes));
}

fn an_unfinished_allocation_goes_back(manager: &Manager) {
    let before = manager.statistics();
    drop(Allocation::new(manager, &request(100, 100, 100)).expect("memory"));
    assert_eq!(manager.statistics().allocations, before.allocations);
    assert_eq!(manager.statistics().bytes, before.bytes);
}

fn data_is_zero_where_other_data_was(manager: &Manager) {
    for size in [8, 100, 5000, 100_000] {
        let shape = request(0, 0, size);
        let mut allocation = Allocation::new(manager, &shape).expect("memory");
        let old = allocation.address(SegmentKind::Data);
        allocation.working(SegmentKind::Data).fill(0xff);
        drop(allocation.finalize().expect("memory"));
        let allocation = Allocation::new(manager, &shape).expect("memory");
        assert_eq!(allocation.address(SegmentKind::Data), old, "memory is used again");
        let data = allocation.finalize().expect("memory").range(SegmentKind::Data);
        let again = finalize(manager, &shape);
        assert_eq!(again.range(SegmentKind::Data), data);
        assert!(bytes_at(data).iter().all(|&byte| byte == 0));
    }
}

fn constants_are_readable_and_data_writable_at_their_addresses(manager: &Manager) {
    let mut allocation = Allocation::new(manager, &request(0, 5, 1)).expect("memory");
    allocation.working(SegmentKind::ReadOnly).copy_from_slice(b"const");
    allocation.working(SegmentKind::Data)[0] = 7;
    let allocation = allocation.finalize().expect("memory");
    assert_eq!(bytes_at(allocation.range(SegmentKind::ReadOnly)), b"const");
    let data = std::ptr::with_exposed_provenance_mut::<u8>(allocation.range(SegmentKind::Data).start as usize);
    // SAFETY: the data segment of a live allocation, which this thread alone knows.
    unsafe {
        *data += 1;
        assert_eq!(*data, 8);
    }
}

fn alignments_are_kept(manager: &Manager) {
    let mut kept = Vec::new();
    for shift in 0..=21 {
        let shape = [10, 20, 30].map(|size| SegmentRequest { size, align: 1 << shift });
        for _ in 0..2 {
            let allocation = finalize(manager, &shape);
            for kind in SegmentKind::ALL {
                assert_eq!(allocation.range(kind).start % (1 << shift), 0);
            }
            kept.push(allocation);
        }
        kept.swap_remove(0);
    }
}

fn alignments_that_make_no_sense_are_errors(manager: &Manager) {
    for align in [0, 3, 1 << 40] {
        let shape = [SegmentRequest { size: 8, align }, SegmentRequest::NONE, SegmentRequest::NONE];
        let error = Allocation::new(manager, &shape).expect_err("not an alignment");
        assert!(matches!(error, MemoryError::Alignment { align: refused } if refused == align));
    }
}

fn sizes_beyond_all_memory_are_errors(manager: &Manager) {
    let before = manager.statistics();
    for size in [usize::MAX, usize::MAX - 4096, isize::MAX as usize, 1 << 46] {
        for kind in 0..3 {
            let mut shape = request(8, 8, 8);
            shape[kind].size = size;
            Allocation::new(manager, &shape).expect_err("nobody has so much memory");
        }
    }
    assert_eq!(manager.statistics().allocations, before.allocations);
    assert_eq!(manager.statistics().bytes, before.bytes);
}

fn threads_share_it(manager: &Manager) {
    let threads = 4;
    let rounds = if cfg!(target_arch = "aarch64") { 200 } else { 5000 };
    std::thread::scope(|scope| {
        for thread in 0..threads {
            scope.spawn(move || {
                let mut live: Vec<(u16, FinalizedAllocation)> = Vec::new();
                for round in 0..rounds {
                    let value = thread * 10_000 + round;
                    live.push((value, link(manager, value)));
                    if live.len() > 20 {
                        let (value, function) = live.swap_remove(usize::from(round) % 20);
                        assert_eq!(call(&function), u32::from(value));
                    }
                }
                assert!(live.iter().all(|(value, function)| call(function) == u32::from(*value)));
            });
        }
    });
    assert_eq!(manager.statistics().allocations, 0);
}

#[cfg(target_os = "linux")]
fn no_address_is_writable_and_executable(manager: &Manager) {
    let open = Allocation::new(manager, &request(100, 100, 100)).expect("memory");
    let allocations = mixed_allocations(manager);
    assert!(mappings().iter().all(|(_, protection)| !(protection.contains('w') && protection.contains('x'))));
    for allocation in &allocations {
        for (kind, wanted) in SegmentKind::ALL.into_iter().zip(["r-x", "r--", "rw-"]) {
            let range = allocation.range(kind);
            assert!(range.is_empty() || protection(range.start) == wanted, "{kind:?}");
        }
    }
    drop(open);
}

const POINTER: EdgeKind = if cfg!(target_arch = "aarch64") {
    EdgeKind::Aarch64(aarch64::EdgeKind::Pointer64)
} else {
    EdgeKind::X86_64(x86_64::EdgeKind::Pointer64)
};

/// A graph of blocks of many sizes and alignments, some of zeros, of each kind: with the content of each, and a symbol there.
/// Those with room for it end with their own address.
fn large_graph(seed: usize, largest: usize) -> (LinkGraph, Vec<(SymbolId, Vec<u8>)>) {
    let mut graph = LinkGraph::new("large", Architecture::host().expect("tests run"));
    let blocks = (0..900).map(|index| {
        let kind = SegmentKind::ALL[index % 3];
        let size = if index / 3 == 150 { largest } else { index * 37 % 5000 };
        let align = 1 << (index % 7);
        let is_zero = index % 10 == 0;
        let fill = |offset| if is_zero { 0 } else { (seed + index + offset * 7) as u8 };
        let bytes: Vec<u8> = (0..size).map(fill).collect();
        let block =
            if is_zero { graph.add_zero_block(kind, size as u64, align) } else { graph.add_block(kind, &bytes, align) };
        let block = block.expect("it is small");
        let symbol = graph.define(None, block, 0, 0);
        if !is_zero && size >= 8 {
            let edge = Edge { block, offset: size as u32 - 8, kind: POINTER, target: symbol, addend: 0 };
            graph.add_edge(edge).expect("the block is the newest");
        }
        (symbol, bytes)
    });
    let blocks = blocks.collect();
    (graph, blocks)
}

fn large_graphs_are_written_whole(manager: &Manager) {
    // The second one where the first was.
    for (seed, largest) in [(1, 600_000), (100, 600_000), (2, 5_000_000), (200, 5_000_000)] {
        let (graph, blocks) = large_graph(seed, largest);
        let allocated = prepare(graph).and_then(|prepared| prepared.allocate(manager)).expect("there is memory");
        let expected: Vec<_> = blocks.iter().map(|(symbol, bytes)| (allocated.address(*symbol), bytes)).collect();
        let fixed = allocated.fix_up().and_then(|fixed| fixed.finalize()).expect("it can be linked");
        for (address, bytes) in expected {
            let linked = bytes_at(address..address + bytes.len() as u64);
            let has_address = bytes.len() >= 8 && bytes.iter().any(|byte| *byte != 0);
            let content = bytes.len() - if has_address { 8 } else { 0 };
            assert!(linked[..content] == bytes[..content], "{} bytes at {address:#x}", bytes.len());
            assert!(!has_address || linked[content..] == address.to_le_bytes());
        }
        drop(fixed);
    }
}

macro_rules! tests_of {
    ($make:expr; $($name:ident $(($($argument:expr),*))?),* $(,)?) => {
        $(#[test]
        fn $name() {
            super::$name(&$make $(, $($argument),*)?);
        })*
    };
}

mod page {
    use super::*;

    tests_of! { page_manager();
        runs_what_was_written,
        runs_new_code_where_old_code_was,
        segments_do_not_overlap,
        is_flat_over_many_cycles(CYCLES / 100),
        counts_return_to_where_they_were,
        an_unfinished_allocation_goes_back,
        data_is_zero_where_other_data_was,
        constants_are_readable_and_data_writable_at_their_addresses,
        alignments_are_kept,
        alignments_that_make_no_sense_are_errors,
        sizes_beyond_all_memory_are_errors,
        large_graphs_are_written_whole,
        threads_share_it,
    }

    #[cfg(target_os = "linux")]
    tests_of! { page_manager(); no_address_is_writable_and_executable }
}

#[cfg(target_os = "linux")]
mod slab {
    use super::*;
    use jit_linker::memory::SlabManager;

    const MIB: usize = 1 << 20;

    fn slab_manager() -> Manager {
        Arc::new(SlabManager::new().expect("address space"))
    }

    tests_of! { slab_manager();
        runs_what_was_written,
        runs_new_code_where_old_code_was,
        segments_do_not_overlap,
        is_flat_over_many_cycles(CYCLES),
        counts_return_to_where_they_were,
        an_unfinished_allocation_goes_back,
        data_is_zero_where_other_data_was,
        constants_are_readable_and_data_writable_at_their_addresses,
        alignments_are_kept,
        alignments_that_make_no_sense_are_errors,
        sizes_beyond_all_memory_are_errors,
        large_graphs_are_written_whole,
        threads_share_it,
        no_address_is_writable_and_executable,
    }

    /// Bytes of memory behind a range of shared or private memory.
    fn resident(range: Range<u64>) -> usize {
        let page = region::page::size() as u64;
        let (start, end) = (range.start / page * page, range.end.next_multiple_of(page));
        let pagemap = std::fs::File::open("/proc/self/pagemap").expect("Linux has it");
        let mut entries = vec![0; ((end - start) / page * 8) as usize];
        std::os::unix::fs::FileExt::read_exact_at(&pagemap, &mut entries, start / page * 8).expect("mapped");
        let present = |entry: &&[u8]| entry[7] & 0x80 != 0;
        entries.chunks_exact(8).filter(present).count() * page as usize
    }

    #[test]
    fn code_is_written_elsewhere_than_it_runs() {
        let manager = slab_manager();
        let raw = manager.allocate(&request(16, 16, 16)).expect("memory");
        let working = raw.map(|segment| segment.working.as_ptr().addr() as u64);
        assert_ne!(working[0], raw[0].address);
        assert_ne!(working[1], raw[1].address);
        assert_eq!(working[2], raw[2].address);
        assert_eq!(protection(working[0]), "rw-");
        assert_eq!(protection(raw[0].address), "r-x");
        // SAFETY: from `allocate`, given back once.
        unsafe { manager.deallocate(&raw) };
    }

    #[test]
    fn small_functions_share_a_page() {
        let manager = slab_manager();
        let functions: Vec<_> = (0..100).map(|value| link(&manager, value)).collect();
        let first = address(&functions[0]);
        assert!(functions.iter().zip(0..).all(|(function, index)| address(function) == first + index * 16));
    }

    #[test]
    fn neighbours_freed_in_any_order_serve_a_larger_request_at_their_address() {
        for order in [[0, 1, 2], [0, 2, 1], [2, 1, 0], [1, 0, 2]] {
            let manager = slab_manager();
            let mut parts: Vec<_> = (0..3).map(|_| Some(finalize(&manager, &code(64)))).collect();
            let _last = finalize(&manager, &code(64));
            let start = address(parts[0].as_ref().expect("not freed yet"));
            for index in order {
                parts[index] = None;
            }
            assert_eq!(address(&finalize(&manager, &code(192))), start);
        }
    }

    #[test]
    fn all_segments_reach_each_other() {
        let manager = slab_manager();
        let allocations = mixed_allocations(&manager);
        let starts = allocations.iter().flat_map(|allocation| SegmentKind::ALL.map(|kind| allocation.range(kind)));
        let ranges: Vec<_> = starts.filter(|range| !range.is_empty()).collect();
        let lowest = ranges.iter().map(|range| range.start).min().expect("some");
        let highest = ranges.iter().map(|range| range.end).max().expect("some");
        assert!(highest - lowest < 1 << 31);
    }

    #[test]
    fn one_function_touches_one_page() {
        let manager = slab_manager();
        let function = link(&manager, 3);
        assert_eq!(call(&function), 3);
        let start = address(&function);
        assert_eq!(resident(start..start + (128 << 10)), region::page::size());
    }

    #[test]
    fn freed_memory_goes_back_to_the_system() {
        let manager = slab_manager();
        let size = 32 * MIB;
        let [code, data] = [SegmentKind::Code, SegmentKind::Data].map(|kind| {
            let functions: Vec<_> = (0..size / 4000)
                .map(|_| {
                    let mut shape = [SegmentRequest::NONE; 3];
                    shape[kind as usize] = SegmentRequest { size: 4000, align: 16 };
                    let mut allocation = Allocation::new(&manager, &shape).expect("memory");
                    allocation.working(kind).fill(0xcc);
                    allocation.finalize().expect("memory")
                })
                .collect();
            let starts = functions.iter().map(|function| function.range(kind).start);
            let start = starts.min().expect("some");
            let all = start..start + size as u64;
            assert!(bytes_at(start..start + 100).iter().all(|&byte| byte == 0xcc));
            drop(functions);
            all
        });
        assert!(resident(data) <= 8 * MIB, "at most an eighth, and what is kept at hand");
        // Pages that went back read as zero, those that are kept as they were.
        let kept = bytes_at(code).iter().step_by(4096).filter(|&&byte| byte != 0).count() * 4096;
        assert!(kept <= 8 * MIB, "{kept} bytes of code are still there");
    }

    #[test]
    fn a_hundred_thousand_holes_are_found_by_size() {
        let manager = slab_manager();
        let count = if cfg!(target_arch = "aarch64") { 2_000 } else { 200_000 };
        let all: Vec<_> = (0..count).map(|_| finalize(&manager, &code(32))).collect();
        let (kept, freed): (Vec<_>, Vec<_>) = all.into_iter().enumerate().partition(|(index, _)| index % 2 == 0);
        let mut holes: Vec<_> = freed.iter().map(|(_, hole)| address(hole)).collect();
        drop(freed);
        let mut again: Vec<_> = (0..holes.len()).map(|_| finalize(&manager, &code(32))).collect();
        let mut filled: Vec<_> = again.iter().map(address).collect();
        holes.sort_unstable();
        filled.sort_unstable();
        assert!(holes == filled, "every hole is used before new memory");
        again.clear();
        drop(kept);
        assert_eq!(manager.statistics().bytes, [0; 3]);
    }

    #[test]
    fn a_full_range_is_an_error_and_recovers() {
        let manager: Manager = Arc::new(SlabManager::with_capacity(4 << 20).expect("address space"));
        let mut held = Vec::new();
        let error = loop {
            match Allocation::new(&manager, &request(100_000, 100_000, 100_000)) {
                Ok(allocation) => held.push(allocation),
                Err(error) => break error,
            }
        };
        assert!(matches!(error, MemoryError::RangeFull { size: 100_000, .. }), "{error}");
        assert!(held.len() >= 8, "{} fit", held.len());
        assert_eq!(manager.statistics().allocations, held.len());
        held.pop();
        Allocation::new(&manager, &request(100_000, 100_000, 100_000)).expect("there is room again");
    }

    #[test]
    fn a_large_segment_takes_a_chunk_of_its_size() {
        let manager = slab_manager();
        let before = manager.statistics().mappings;
        let large = finalize(&manager, &request(0, 0, 100 * MIB));
        assert_eq!(manager.statistics().mappings, before + 1);
        assert_eq!(resident(large.range(SegmentKind::Data)), 0, "zeros need no memory");
    }

    /// Code of `size` bytes that returns `value`, and constants as large.
    fn link_large(manager: &Manager, size: usize, value: u16) -> FinalizedAllocation {
        let mut allocation = Allocation::new(manager, &request(size, size, 0)).expect("memory");
        for kind in [SegmentKind::Code, SegmentKind::ReadOnly] {
            let bytes = allocation.working(kind);
            bytes.fill(value as u8);
            let function = machine_code::returning(value);
            bytes[..function.len()].copy_from_slice(&function);
        }
        allocation.finalize().expect("it can be published")
    }

    #[test]
    fn large_code_is_written_where_it_runs() {
        let manager = slab_manager();
        let _small = link(&manager, 1);
        let before = manager.statistics();
        let raw = manager.allocate(&request(5 * MIB + 100, 3 * MIB, 8)).expect("memory");
        assert!(raw.iter().all(|segment| segment.working.as_ptr().addr() as u64 == segment.address));
        let protections = || raw.map(|segment| protection(segment.address));
        assert_eq!(protections(), ["rw-"; 3]);
        // SAFETY: from `allocate`, finalized and given back once.
        unsafe {
            manager.finalize(&raw).expect("it can be published");
            assert_eq!(protections(), ["r-x", "r--", "rw-"]);
            manager.deallocate(&raw);
        }
        assert_eq!([protection(raw[0].address), protection(raw[1].address)], ["---"; 2]);
        assert_eq!((manager.statistics().bytes, manager.statistics().allocations), (before.bytes, before.allocations));
        // That of data stays.
        assert_eq!(manager.statistics().mappings, before.mappings + 1);
    }

    #[test]
    fn large_segments_come_and_go() {
        let manager = slab_manager();
        let range = manager.range().expect("it has one");
        let kept = link_large(&manager, 3 * MIB, 7);
        let mut shape = None;
        for value in 0..100 {
            let linked = link_large(&manager, 5 * MIB + 4096 * usize::from(value % 2), value);
            assert_eq!(call(&linked), u32::from(value));
            let segments = [SegmentKind::Code, SegmentKind::ReadOnly].map(|kind| linked.range(kind));
            assert!(segments.iter().all(|segment| range.start <= segment.start && segment.end <= range.end));
            let constants = bytes_at(linked.range(SegmentKind::ReadOnly));
            assert!(constants[8..].iter().all(|&byte| byte == value as u8));
            drop(linked);
            let now = (manager.statistics(), resident(range.clone()));
            assert_eq!(*shape.get_or_insert(now), now);
        }
        assert_eq!(call(&kept), 7);
    }

    #[test]
    fn of_large_segments_no_more_is_there_than_was_asked_for() {
        let manager = slab_manager();
        let linked = link_large(&manager, 5 * MIB + 100, 3);
        for kind in [SegmentKind::Code, SegmentKind::ReadOnly] {
            let range = linked.range(kind);
            let around =
                range.start / (2 * MIB) as u64 * (2 * MIB) as u64..range.end.next_multiple_of((2 * MIB) as u64);
            assert_eq!(resident(around), (5 * MIB + 100).next_multiple_of(region::page::size()));
        }
    }

    #[test]
    fn where_large_segments_were_others_have_room() {
        let manager: Manager = Arc::new(SlabManager::with_capacity(32 << 20).expect("address space"));
        drop(link_large(&manager, 10 * MIB, 1));
        // A larger one takes the place of a smaller, and small ones that of both.
        let larger = finalize(&manager, &code(20 * MIB));
        drop(larger);
        let small = [(MIB, 0, 0), (0, MIB, 0), (0, 0, MIB)];
        let all: Vec<_> = small
            .iter()
            .cycle()
            .map_while(|&(code, constants, data)| Allocation::new(&manager, &request(code, constants, data)).ok())
            .map(|mut allocation| {
                assert!(allocation.working(SegmentKind::Data).iter().all(|&byte| byte == 0));
                allocation.working(SegmentKind::Code).fill(1);
                allocation.finalize().expect("it can be published")
            })
            .collect();
        assert!(all.len() > 25, "{} have room", all.len());
        drop(all);
        assert_eq!(manager.statistics().bytes, [0; 3]);
    }
}
