//! The memory manager as what ORC calls a mapper: reservations, actions, and bytes that arrive.

mod machine_code;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

#[cfg(target_os = "linux")]
use jit_linker::memory::SlabManager;
use jit_linker::memory::{Allocation, FinalizedAllocation, MemoryManager, PageManager, SegmentKind, SegmentRequest};

type Manager = Arc<dyn MemoryManager>;

fn data(size: usize) -> [SegmentRequest; 3] {
    [SegmentRequest::NONE, SegmentRequest::NONE, SegmentRequest { size, align: 8 }]
}

fn data_address(allocation: &FinalizedAllocation) -> u64 {
    allocation.range(SegmentKind::Data).start
}

/// The word at an address of a live data segment.
fn word(address: u64) -> u64 {
    // SAFETY: tests pass the start of a data segment of eight bytes or more that lives.
    unsafe { std::ptr::with_exposed_provenance::<u64>(address as usize).read_volatile() }
}

fn holding(manager: &Manager, value: u64) -> FinalizedAllocation {
    let mut allocation = Allocation::new(manager, &data(8)).expect("there is memory");
    allocation.working(SegmentKind::Data).copy_from_slice(&value.to_le_bytes());
    allocation.finalize().expect("it can be published")
}

/// Undoes something once, when it is dropped.
struct Undo(Arc<AtomicUsize>);

impl Drop for Undo {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

fn managers() -> Vec<Manager> {
    let pages: Manager = Arc::new(PageManager::new());
    #[cfg(target_os = "linux")]
    let all = vec![pages, Arc::new(SlabManager::new().expect("there is address space")) as Manager];
    #[cfg(not(target_os = "linux"))]
    let all = vec![pages];
    all
}

#[test]
fn mem_01_actions_are_undone_once_each_and_bytes_are_visible_at_the_target() {
    for manager in managers() {
        let undone = [(); 2].map(|()| Arc::new(AtomicUsize::new(0)));
        let mut allocations = [holding(&manager, 1), holding(&manager, 2)];
        for (allocation, undone) in allocations.iter_mut().zip(&undone) {
            allocation.attach(Box::new(Undo(Arc::clone(undone))));
        }
        assert_eq!(allocations.each_ref().map(|allocation| word(data_address(allocation))), [1, 2]);
        let counts = || undone.each_ref().map(|undone| undone.load(Ordering::Relaxed));
        assert_eq!(counts(), [0, 0]);
        let [first, second] = allocations;
        drop(first);
        assert_eq!(counts(), [1, 0], "on its own deallocation");
        assert_eq!(word(data_address(&second)), 2, "the other stays");
        drop(manager);
        drop(second);
        assert_eq!(counts(), [1, 1], "and when the manager goes with its last allocation");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn mem_03_allocations_share_a_reservation() {
    let manager: Manager = Arc::new(SlabManager::new().expect("there is address space"));
    let first = holding(&manager, 1);
    let mappings = manager.statistics().mappings;
    let second = holding(&manager, 2);
    assert_eq!(manager.statistics().mappings, mappings, "the second needs no mapping of its own");
    assert_eq!((word(data_address(&first)), word(data_address(&second))), (1, 2));
    drop(first);
    assert_eq!(word(data_address(&second)), 2);
}

#[cfg(target_os = "linux")]
#[test]
fn mem_04_adjacent_freed_blocks_merge_and_serve_a_larger_request() {
    let manager: Manager = Arc::new(SlabManager::new().expect("there is address space"));
    let make = |size| Allocation::new(&manager, &data(size)).and_then(Allocation::finalize).expect("there is memory");
    let (first, second, _guard) = (make(4096), make(4096), make(4096));
    let start = data_address(&first).min(data_address(&second));
    drop((first, second));
    let large = make(8192);
    assert_eq!(data_address(&large), start);
}

#[cfg(target_os = "linux")]
#[test]
fn mem_05_code_is_written_elsewhere_than_it_runs() {
    let manager: Manager = Arc::new(SlabManager::new().expect("there is address space"));
    let mut allocation = Allocation::new(&manager, &machine_code::code(16)).expect("there is memory");
    let working = allocation.working(SegmentKind::Code).as_ptr().addr() as u64;
    assert_ne!(working, allocation.address(SegmentKind::Code));
    drop(allocation);
    let function = machine_code::link(&manager, 42);
    assert_eq!(machine_code::call(&function), 42);
    drop(function);
    assert_eq!(manager.statistics().allocations, 0);
}

#[test]
fn mem_06_writes_of_every_width_land() {
    for manager in managers() {
        let mut allocation = Allocation::new(&manager, &data(32)).expect("there is memory");
        let address = allocation.address(SegmentKind::Data);
        let bytes = allocation.working(SegmentKind::Data);
        bytes[0] = 0x11;
        bytes[2..4].copy_from_slice(&0x2222u16.to_le_bytes());
        bytes[4..8].copy_from_slice(&0x3333_3333u32.to_le_bytes());
        bytes[8..16].copy_from_slice(&0x4444_4444_4444_4444u64.to_le_bytes());
        bytes[16..24].copy_from_slice(&address.to_le_bytes());
        bytes[24..32].copy_from_slice(b"a buffer");
        let final_ = allocation.finalize().expect("it can be published");
        assert_eq!(data_address(&final_), address);
        let words: Vec<_> = (0..4).map(|index| word(address + 8 * index)).collect();
        assert_eq!(words, [0x3333_3333_2222_0011, 0x4444_4444_4444_4444, address, u64::from_le_bytes(*b"a buffer")]);
    }
}

#[test]
fn mem_07_deallocation_undoes_what_was_registered_before_the_memory_goes() {
    /// Reads the memory that it stands for.
    struct Reads(u64, Arc<AtomicUsize>);
    impl Drop for Reads {
        fn drop(&mut self) {
            self.1.store(word(self.0) as usize, Ordering::Relaxed);
        }
    }
    for manager in managers() {
        let seen = Arc::new(AtomicUsize::new(0));
        let mut allocation = holding(&manager, 99);
        allocation.attach(Box::new(Reads(data_address(&allocation), Arc::clone(&seen))));
        drop(allocation);
        assert_eq!(seen.load(Ordering::Relaxed), 99);
        assert_eq!(manager.statistics().allocations, 0);
    }
}
