//! Small functions in machine code, and where they go.

use std::sync::Arc;

use jit_linker::memory::{Allocation, FinalizedAllocation, MemoryManager, SegmentKind, SegmentRequest};

/// Instructions of a function that returns `value`.
pub(crate) fn returning(value: u16) -> Vec<u8> {
    if cfg!(target_arch = "aarch64") {
        let movz_w0 = 0x5280_0000 | u32::from(value) << 5;
        let ret = 0xd65f_03c0u32;
        [movz_w0.to_le_bytes(), ret.to_le_bytes()].concat()
    } else {
        let [low, high] = value.to_le_bytes();
        vec![0xb8, low, high, 0, 0, 0xc3]
    }
}

pub(crate) fn code(size: usize) -> [SegmentRequest; 3] {
    [SegmentRequest { size, align: 16 }, SegmentRequest::NONE, SegmentRequest::NONE]
}

/// A function that returns `value`, ready to run.
pub(crate) fn link(manager: &Arc<dyn MemoryManager>, value: u16) -> FinalizedAllocation {
    let bytes = returning(value);
    let mut allocation = Allocation::new(manager, &code(bytes.len())).expect("there is memory");
    allocation.working(SegmentKind::Code).copy_from_slice(&bytes);
    allocation.finalize().expect("fresh code can be published")
}

pub(crate) fn address(function: &FinalizedAllocation) -> u64 {
    function.range(SegmentKind::Code).start
}

pub(crate) fn call(function: &FinalizedAllocation) -> u32 {
    let code = std::ptr::with_exposed_provenance::<()>(address(function) as usize);
    // SAFETY: made by `link`: a function of this type, which lives as long as `function`.
    unsafe { std::mem::transmute::<*const (), extern "C" fn() -> u32>(code)() }
}
