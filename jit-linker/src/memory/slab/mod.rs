//! A memory manager that packs many small graphs into shared pages.

mod fork;
mod free_ranges;
mod heap;
mod reservation;
mod state;

use std::fmt;
use std::io::{self, IoSlice};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};

use self::fork::lock;
pub use self::fork::take_care_of_forks;
use self::reservation::Region;
use self::state::{State, is_apart};
use super::advice::find_pages;
use super::{MemoryError, MemoryManager, MemoryStatistics, RawAllocation, Request, Segment, SegmentKind};
use crate::arch::cache::{self, History};

/// Address space of a session unless it asks for more: several sessions then find room within
/// reach of the process's libraries.
const DEFAULT_CAPACITY: u64 = 512 << 20;

/// The range of a session must be within reach of any instruction in it.
const LARGEST_CAPACITY: u64 = 2 << 30;

/// The size of a huge page: more has no use that we know of.
const LARGEST_ALIGNMENT: usize = 2 << 20;

/// Packs code and data of one session into one range of addresses, so that all of it reaches all
/// of it. The range is sought within 2 GiB of the process's libraries.
///
/// Code and read-only data are memory that is mapped twice: executable or readable at its
/// address, writable elsewhere. Segments of 2 MiB and more have pages of their own, huge ones if the
/// system has any, which are written where they are and protected when they are final. No address is
/// ever writable and executable. Data is private memory. Pages are taken when they are first written,
/// and go back when they are free again. The address space of a kind of segment, once used, stays with
/// that kind; that of large ones serves any.
///
/// After a `fork`, parent and child go on independently: neither changes what the other runs or
/// holds. An allocation that is not final at the fork belongs to the parent; the child may only
/// drop it. The child must not close descriptors that it does not know.
///
/// ```
/// use std::sync::Arc;
/// use jit_linker::memory::{Allocation, MemoryManager, SegmentKind, SegmentRequest, SlabManager};
///
/// let manager: Arc<dyn MemoryManager> = Arc::new(SlabManager::new()?);
/// let code = SegmentRequest { size: 1, align: 16 };
/// let mut allocation = Allocation::new(&manager, &[code, SegmentRequest::NONE, SegmentRequest::NONE])?;
/// allocation.working(SegmentKind::Code)[0] = 0xc3;
/// let code = allocation.finalize()?;
/// assert_eq!(code.range(SegmentKind::Code).count(), 1);
/// # Ok::<(), jit_linker::memory::MemoryError>(())
/// ```
pub struct SlabManager {
    state: Arc<Mutex<State>>,
}

impl SlabManager {
    /// A manager with address space for 512 MiB.
    ///
    /// # Errors
    ///
    /// When the system grants no address space.
    pub fn new() -> Result<Self, MemoryError> {
        Self::with_capacity(DEFAULT_CAPACITY)
    }

    /// A manager with address space for `bytes`, rounded to whole megabytes and at most 2 GiB; for
    /// less if the process may not have so much, or make no file of that size (`RLIMIT_FSIZE`). A
    /// large range is less often near the libraries.
    ///
    /// # Errors
    ///
    /// When the system grants no address space.
    pub fn with_capacity(bytes: u64) -> Result<Self, MemoryError> {
        Self::at(bytes.clamp(1, LARGEST_CAPACITY), Region::NearLibraries)
    }

    /// A manager whose memory lies below 2 GiB, for code that is not position-independent: its
    /// instructions hold addresses in 32 bits. It has address space for 512 MiB, or less if so much
    /// is not free there.
    ///
    /// # Errors
    ///
    /// When the system grants no address space.
    pub fn below_2_gib() -> Result<Self, MemoryError> {
        Self::at(DEFAULT_CAPACITY, Region::Below2Gib)
    }

    fn at(bytes: u64, region: Region) -> Result<Self, MemoryError> {
        let size = bytes.next_multiple_of(1 << 20);
        let state = Arc::new(Mutex::new(State::new(size, region)?));
        fork::register(&state)?;
        Ok(Self { state })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        let mut state = lock(&self.state);
        state.notice_fork();
        state
    }
}

// SAFETY: each heap hands a range out once until it is given back, and heaps have disjoint
// chunks; chunks are mapped when they are made, at `address` with the protection of their kind and
// at `working` writable, and stay so until the manager is dropped. A large segment has a mapping of
// its own, in no chunk, which is writable until `finalize`. What an earlier segment wrote in data is
// cleared; other memory comes zeroed from the system.
unsafe impl MemoryManager for SlabManager {
    fn allocate(&self, request: &Request) -> Result<RawAllocation, MemoryError> {
        for segment in request {
            if !segment.align.is_power_of_two() || segment.align > LARGEST_ALIGNMENT {
                return Err(MemoryError::Alignment { align: segment.align });
            }
        }
        let mut allocation = [Segment::EMPTY; 3];
        let mut used_data = 0;
        let mut state = self.lock();
        for kind in SegmentKind::ALL {
            let wanted = request[kind as usize];
            if wanted.size == 0 {
                continue;
            }
            match state.allocate(kind, wanted.size, wanted.align) {
                Ok((segment, used)) => {
                    allocation[kind as usize] = segment;
                    if kind == SegmentKind::Data {
                        used_data = used;
                    }
                }
                Err(error) => {
                    for (kind, segment) in SegmentKind::ALL.into_iter().zip(&allocation) {
                        if segment.size > 0 {
                            state.free(kind, segment);
                        }
                    }
                    return Err(error);
                }
            }
        }
        state.count_allocation();
        drop(state);
        let data = &allocation[SegmentKind::Data as usize];
        // SAFETY: the segment is mapped and writable, and nobody else's; 0 bytes where there is none.
        unsafe { data.working.write_bytes(0, data.size.min(used_data)) };
        Ok(allocation)
    }

    unsafe fn finalize(&self, allocation: &RawAllocation) -> Result<(), MemoryError> {
        let code = &allocation[SegmentKind::Code as usize];
        let filled = || SegmentKind::ALL.into_iter().zip(allocation).filter(|(_, segment)| segment.size > 0);
        let history = {
            let mut state = self.lock();
            let is_shared = |kind, segment| kind != SegmentKind::Data && !is_apart(kind, segment);
            if filled().any(|(kind, segment)| is_shared(kind, segment) && state.is_inherited(segment.address)) {
                return Err(MemoryError::System {
                    action: "publish memory allocated before the fork",
                    source: io::Error::from_raw_os_error(libc::EOWNERDEAD),
                });
            }
            if state.take_reused(code.address) { History::Reused } else { History::Fresh }
        };
        if code.size > 0 {
            let address = std::ptr::with_exposed_provenance(code.address as usize);
            // SAFETY: both are `code.size` mapped bytes, of the same memory.
            unsafe { cache::publish(code.working.as_ptr(), address, code.size, history) };
        }
        for (kind, segment) in filled().filter(|(kind, segment)| is_apart(*kind, segment)) {
            // SAFETY: the caller's contract: what follows `allocate` and writing.
            unsafe { self.lock().seal(kind, segment)? };
        }
        Ok(())
    }

    unsafe fn write(
        &self,
        allocation: &RawAllocation,
        kind: SegmentKind,
        offset: usize,
        parts: &[IoSlice<'_>],
    ) -> bool {
        let segment = &allocation[kind as usize];
        if is_apart(kind, segment) {
            return false;
        }
        let Some((file, start)) = self.lock().file_of(kind, segment.address) else { return false };
        if !reservation::write(&file, start + offset as u64, parts) {
            return false;
        }
        let size = parts.iter().map(|part| part.len()).sum();
        // SAFETY: the caller's contract: so many bytes there are the allocation's, and nobody uses them meanwhile.
        find_pages(unsafe { std::slice::from_raw_parts(segment.working.as_ptr().add(offset), size) });
        true
    }

    unsafe fn deallocate(&self, allocation: &RawAllocation) {
        self.lock().deallocate(allocation);
    }

    fn statistics(&self) -> MemoryStatistics {
        self.lock().statistics()
    }

    fn range(&self) -> Option<Range<u64>> {
        Some(self.lock().reservation().range())
    }
}

impl fmt::Debug for SlabManager {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (range, statistics) = {
            let state = self.lock();
            (state.reservation().range(), state.statistics())
        };
        f.debug_struct("SlabManager").field("range", &range).field("statistics", &statistics).finish()
    }
}

impl Drop for SlabManager {
    fn drop(&mut self) {
        fork::unregister(&self.state);
    }
}
