//! A memory manager for code that is not to run here.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::io;
use std::ptr::NonNull;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::{MemoryError, MemoryManager, MemoryStatistics, RawAllocation, Request, Segment, SegmentKind};

const PAGE: u64 = 4096;

/// Hands out addresses that its user chose, with working memory somewhere else: for linking
/// without running, and for looking at what a linker wrote. Nothing is mapped at the addresses.
///
/// ```
/// use std::sync::Arc;
/// use jit_linker::memory::{Allocation, DetachedMemory, MemoryManager, SegmentKind, SegmentRequest};
///
/// let memory: Arc<dyn MemoryManager> = Arc::new(DetachedMemory::at(0x40_0000));
/// let wanted = [SegmentRequest { size: 100, align: 16 }; 3];
/// let allocation = Allocation::new(&memory, &wanted)?;
/// assert_eq!(allocation.address(SegmentKind::Code), 0x40_0000);
/// assert_eq!(allocation.address(SegmentKind::ReadOnly), 0x40_1000);
/// # Ok::<(), jit_linker::memory::MemoryError>(())
/// ```
#[derive(Debug)]
pub struct DetachedMemory {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    next: Next,
    statistics: MemoryStatistics,
}

/// Where the next segment goes.
#[derive(Debug)]
enum Next {
    /// Behind the last one, whatever its kind.
    Together(u64),
    /// Behind the last one of its kind.
    Apart([u64; 3]),
}

impl DetachedMemory {
    /// Segments follow each other from `base`, each on pages of its own.
    #[must_use]
    pub fn at(base: u64) -> Self {
        Self::new(Next::Together(base))
    }

    /// Segments of each [`SegmentKind`] follow each other from an address of their own.
    #[must_use]
    pub fn apart(bases: [u64; 3]) -> Self {
        Self::new(Next::Apart(bases))
    }

    fn new(next: Next) -> Self {
        Self { state: Mutex::new(State { next, statistics: MemoryStatistics::default() }) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn take(&mut self, kind: SegmentKind, size: usize, align: usize) -> Result<u64, MemoryError> {
        let (next, granule) = match &mut self.next {
            Next::Together(next) => (next, PAGE),
            Next::Apart(next) => (&mut next[kind as usize], 1),
        };
        let align = (align as u64).max(granule);
        let place = next.checked_next_multiple_of(align);
        let end = place.and_then(|address| address.checked_add(size as u64));
        let (Some(address), Some(end)) = (place, end) else { return Err(MemoryError::RangeFull { size, kind }) };
        *next = end;
        Ok(address)
    }
}

/// Working memory of `size` bytes, not 0.
fn layout(size: usize) -> Result<Layout, MemoryError> {
    let no_memory = |_| MemoryError::System { action: "allocate memory", source: io::ErrorKind::OutOfMemory.into() };
    Layout::from_size_align(size, 16).map_err(no_memory)
}

// SAFETY: each segment's working memory is its own, zeroed, and writable until `deallocate`. Its
// address is one of a process that is not this one, where nobody here can run or read it.
unsafe impl MemoryManager for DetachedMemory {
    fn allocate(&self, request: &Request) -> Result<RawAllocation, MemoryError> {
        let mut allocation = [Segment::EMPTY; 3];
        let mut state = self.lock();
        for kind in SegmentKind::ALL {
            let wanted = request[kind as usize];
            if !wanted.align.is_power_of_two() {
                return Err(MemoryError::Alignment { align: wanted.align });
            }
            if wanted.size > 0 {
                let address = state.take(kind, wanted.size, wanted.align)?;
                allocation[kind as usize] = Segment { address, size: wanted.size, ..Segment::EMPTY };
            }
        }
        for index in 0..allocation.len() {
            let size = allocation[index].size;
            if size == 0 {
                continue;
            }
            // SAFETY: the layout's size is not 0.
            let working = layout(size).map(|layout| NonNull::new(unsafe { alloc_zeroed(layout) }));
            let Ok(Some(working)) = working else {
                for segment in &allocation[..index] {
                    release(segment);
                }
                return Err(MemoryError::System {
                    action: "allocate memory",
                    source: io::ErrorKind::OutOfMemory.into(),
                });
            };
            allocation[index].working = working;
        }
        state.statistics.allocations += 1;
        for (bytes, segment) in state.statistics.bytes.iter_mut().zip(&allocation) {
            *bytes += segment.size;
        }
        Ok(allocation)
    }

    unsafe fn finalize(&self, _allocation: &RawAllocation) -> Result<(), MemoryError> {
        Ok(())
    }

    unsafe fn deallocate(&self, allocation: &RawAllocation) {
        let mut state = self.lock();
        state.statistics.allocations -= 1;
        for (bytes, segment) in state.statistics.bytes.iter_mut().zip(allocation) {
            *bytes -= segment.size;
            release(segment);
        }
    }

    fn statistics(&self) -> MemoryStatistics {
        self.lock().statistics
    }
}

fn release(segment: &Segment) {
    if segment.size > 0
        && let Ok(layout) = layout(segment.size)
    {
        // SAFETY: allocated with this layout, and given back once: by `deallocate`, or before
        // anybody had it.
        unsafe { dealloc(segment.working.as_ptr(), layout) };
    }
}
