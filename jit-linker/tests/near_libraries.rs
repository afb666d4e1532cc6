//! Where the first sessions of a process are. A process of its own: what is near the libraries is scarce, and sessions
//! of other tests would take it.
#![cfg(target_os = "linux")]

use std::sync::Arc;

use jit_linker::memory::{Allocation, MemoryManager, SegmentKind, SegmentRequest, SlabManager};

#[test]
fn the_first_sessions_reach_the_libraries() {
    let library = libc::getpid as *const () as u64;
    let code = [SegmentRequest { size: 16, align: 16 }, SegmentRequest::NONE, SegmentRequest::NONE];
    let sessions: Vec<_> = (0..3)
        .map(|_| {
            let manager: Arc<dyn MemoryManager> = Arc::new(SlabManager::new().expect("address space"));
            let allocation = Allocation::new(&manager, &code).and_then(Allocation::finalize).expect("there is memory");
            (manager, allocation)
        })
        .collect();
    for (_, allocation) in &sessions {
        let start = allocation.range(SegmentKind::Code).start;
        assert!(start.abs_diff(library) < 1 << 31, "{start:#x} is too far from {library:#x}");
    }
}
