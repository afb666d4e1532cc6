//! A memory manager that needs nothing of the system but protections that change.

use std::io;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::{Mutex, MutexGuard, PoisonError};

use region::Protection;
use rustc_hash::FxHashMap;

use super::{MemoryError, MemoryManager, MemoryStatistics, RawAllocation, Request, Segment, SegmentKind};
use crate::arch::cache::{self, History};

/// Freed mappings that are kept to be used again, in bytes.
const KEPT: usize = 4 << 20;

const LARGEST_ALIGNMENT: usize = 2 << 20;

/// Gives each allocation pages of its own: writable until it is final, then with the protection
/// of each segment. The segments of an allocation are neighbours; different allocations are
/// wherever the system puts them.
///
/// A small function costs whole pages and two system calls. Prefer `SlabManager` where there is
/// one. All memory is private, so that parent and child of a `fork` are independent; its lock is
/// not held across a fork, though, so a process with other threads must not fork while they use it
/// if the child is to use it too.
///
/// ```
/// use std::sync::Arc;
/// use jit_linker::memory::{Allocation, MemoryManager, PageManager, SegmentKind, SegmentRequest};
///
/// let manager: Arc<dyn MemoryManager> = Arc::new(PageManager::new());
/// let code = SegmentRequest { size: 1, align: 16 };
/// let mut allocation = Allocation::new(&manager, &[code, SegmentRequest::NONE, SegmentRequest::NONE])?;
/// allocation.working(SegmentKind::Code)[0] = 0xc3;
/// let code = allocation.finalize()?;
/// assert_eq!(code.range(SegmentKind::Code).count(), 1);
/// # Ok::<(), jit_linker::memory::MemoryError>(())
/// ```
#[derive(Debug, Default)]
pub struct PageManager {
    pages: Mutex<Pages>,
}

#[derive(Debug, Default)]
struct Pages {
    /// By the address of an allocation's first segment.
    live: FxHashMap<u64, Mapping>,
    /// Freed, by size, with the protections they had last.
    free: FxHashMap<usize, Vec<Mapping>>,
    /// Bytes in `free`.
    kept: usize,
    statistics: MemoryStatistics,
}

#[derive(Debug)]
struct Mapping {
    memory: OwnedPages,
    history: History,
}

/// Pages that go back when dropped.
struct OwnedPages(region::Allocation);

// SAFETY: an owned range of memory that no other handle frees; the handle itself reads nothing.
unsafe impl Send for OwnedPages {}

/// Where the segments of a request are in its mapping.
struct Layout {
    offsets: [usize; 3],
    /// Bytes of the mapping, alignment of its start included.
    size: usize,
    align: usize,
}

impl PageManager {
    /// A manager that holds nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn lock(&self) -> MutexGuard<'_, Pages> {
        self.pages.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// SAFETY: each live allocation has a mapping of its own, writable as a whole from `allocate` to
// `finalize`, which sets the protection of each segment's pages; segments share no page. Mappings
// that are used again are cleared where they are data.
unsafe impl MemoryManager for PageManager {
    fn allocate(&self, request: &Request) -> Result<RawAllocation, MemoryError> {
        let layout = Layout::new(request)?;
        if layout.size == 0 {
            self.lock().statistics.allocations += 1;
            return Ok([Segment::EMPTY; 3]);
        }
        let mapping = match self.lock().take(layout.size) {
            Some(mapping) => mapping.reopen()?,
            None => Mapping::new(layout.size)?,
        };
        let start = mapping.range().start.next_multiple_of(layout.align);
        let mut allocation = [Segment::EMPTY; 3];
        for (kind, (segment, wanted)) in SegmentKind::ALL.into_iter().zip(allocation.iter_mut().zip(request)) {
            if wanted.size == 0 {
                continue;
            }
            let address = start + layout.offsets[kind as usize];
            let pointer = std::ptr::with_exposed_provenance_mut(address);
            let working = NonNull::new(pointer).expect("a mapping is not at address 0");
            if kind == SegmentKind::Data && mapping.history == History::Reused {
                // SAFETY: in the mapping, which is writable and nobody else's.
                unsafe { working.write_bytes(0, wanted.size) };
            }
            *segment = Segment { address: address as u64, working, size: wanted.size };
        }
        self.lock().enter(&allocation, mapping);
        Ok(allocation)
    }

    unsafe fn finalize(&self, allocation: &RawAllocation) -> Result<(), MemoryError> {
        let history = {
            let pages = self.lock();
            let mapping = first_address(allocation).and_then(|address| pages.live.get(&address));
            mapping.map_or(History::Fresh, |mapping| mapping.history)
        };
        let code = &allocation[SegmentKind::Code as usize];
        let constants = &allocation[SegmentKind::ReadOnly as usize];
        if code.size > 0 {
            // SAFETY: `code.size` mapped bytes, and nobody runs them yet.
            unsafe { cache::publish(code.working.as_ptr(), code.working.as_ptr(), code.size, history) };
        }
        let protections = [(code, Protection::READ_EXECUTE), (constants, Protection::READ)];
        for (segment, protection) in protections {
            if segment.size > 0 {
                // SAFETY: whole pages of this segment alone, by the layout.
                unsafe { region::protect(segment.working.as_ptr(), segment.size, protection) }
                    .map_err(system("protect memory"))?;
            }
        }
        Ok(())
    }

    unsafe fn deallocate(&self, allocation: &RawAllocation) {
        let surplus = self.lock().leave(allocation);
        // Unmapping takes long, and needs no lock.
        drop(surplus);
    }

    fn statistics(&self) -> MemoryStatistics {
        self.lock().statistics
    }
}

impl Layout {
    fn new(request: &Request) -> Result<Self, MemoryError> {
        let page = region::page::size();
        let mut layout = Self { offsets: [0; 3], size: 0, align: 1 };
        for (kind, segment) in SegmentKind::ALL.into_iter().zip(request) {
            if !segment.align.is_power_of_two() || segment.align > LARGEST_ALIGNMENT {
                return Err(MemoryError::Alignment { align: segment.align });
            }
            if segment.size == 0 {
                continue;
            }
            let full = MemoryError::RangeFull { size: segment.size, kind };
            let align = segment.align.max(page);
            let offset = layout.size.checked_next_multiple_of(align);
            let end = offset.and_then(|offset| offset.checked_add(segment.size));
            let end = end.and_then(|end| end.checked_next_multiple_of(page)).filter(|&end| end <= isize::MAX as usize);
            let (Some(offset), Some(end)) = (offset, end) else { return Err(full) };
            layout.offsets[kind as usize] = offset;
            layout.size = end;
            layout.align = layout.align.max(align);
        }
        // The system aligns to pages; the rest is ours.
        layout.size += layout.align.saturating_sub(page);
        Ok(layout)
    }
}

impl Pages {
    fn take(&mut self, size: usize) -> Option<Mapping> {
        let mapping = self.free.get_mut(&size)?.pop()?;
        self.kept -= size;
        self.statistics.mappings -= 1;
        Some(mapping)
    }

    fn enter(&mut self, allocation: &RawAllocation, mapping: Mapping) {
        let Some(address) = first_address(allocation) else { return };
        self.live.insert(address, mapping);
        self.statistics.mappings += 1;
        self.statistics.allocations += 1;
        for (bytes, held) in self.statistics.bytes.iter_mut().zip(held_bytes(allocation)) {
            *bytes += held;
        }
    }

    /// The mapping of an allocation, if it is not worth keeping.
    fn leave(&mut self, allocation: &RawAllocation) -> Option<Mapping> {
        self.statistics.allocations -= 1;
        for (bytes, held) in self.statistics.bytes.iter_mut().zip(held_bytes(allocation)) {
            *bytes -= held;
        }
        let mut mapping = self.live.remove(&first_address(allocation)?)?;
        let size = mapping.range().len();
        if self.kept + size > KEPT {
            self.statistics.mappings -= 1;
            return Some(mapping);
        }
        mapping.history = History::Reused;
        self.kept += size;
        self.free.entry(size).or_default().push(mapping);
        None
    }
}

impl Mapping {
    fn new(size: usize) -> Result<Self, MemoryError> {
        let memory = region::alloc(size, Protection::READ_WRITE).map_err(system("map memory"))?;
        Ok(Self { memory: OwnedPages(memory), history: History::Fresh })
    }

    /// Makes a mapping writable again.
    fn reopen(self) -> Result<Self, MemoryError> {
        let range = self.range();
        let start = std::ptr::with_exposed_provenance::<u8>(range.start);
        // SAFETY: our own mapping, which nobody uses.
        unsafe { region::protect(start, range.len(), Protection::READ_WRITE) }
            .map_err(system("make memory writable"))?;
        Ok(self)
    }

    fn range(&self) -> Range<usize> {
        let range = self.memory.0.as_ptr_range::<u8>();
        range.start.expose_provenance()..range.end.addr()
    }
}

impl std::fmt::Debug for OwnedPages {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.as_range().fmt(f)
    }
}

fn first_address(allocation: &RawAllocation) -> Option<u64> {
    allocation.iter().find(|segment| segment.size > 0).map(|segment| segment.address)
}

fn held_bytes(allocation: &RawAllocation) -> [usize; 3] {
    allocation.map(|segment| segment.size.next_multiple_of(region::page::size()))
}

fn system(action: &'static str) -> impl Fn(region::Error) -> MemoryError {
    move |error| MemoryError::System { action, source: io::Error::from(error) }
}
