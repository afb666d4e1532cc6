//! Where linked code and data live.
//!
//! A [`MemoryManager`] hands out an [`Allocation`] for one link graph: at most one segment of each
//! [`SegmentKind`], each with the address the executor sees and the working memory that the linker
//! writes. Nothing here knows what is in a segment.
//!
//! Two managers are provided. [`SlabManager`] packs many small graphs into shared pages and
//! writes code through a second mapping, unless it is large; [`PageManager`] gives each allocation pages of its own
//! and changes their protection, for systems where a second mapping can't be had.

mod advice;
#[cfg(unix)]
mod apple;
mod detached;
mod page;
#[cfg(target_os = "linux")]
mod slab;
mod slot;

use std::fmt;
use std::io::IoSlice;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::NonNull;
use std::sync::Arc;

use smallvec::SmallVec;

pub(crate) use advice::populate;
pub use advice::{forget_pages, prefer_huge_pages};
#[cfg(unix)]
pub use apple::AppleMemory;
pub use detached::DetachedMemory;
pub use page::PageManager;
#[cfg(target_os = "linux")]
pub use slab::{SlabManager, take_care_of_forks};
pub use slot::SlotBlock;

/// What a segment's bytes may be used for once the allocation is final.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum SegmentKind {
    /// Instructions: readable and executable.
    Code = 0,
    /// Constants: readable.
    ReadOnly = 1,
    /// Variables, GOT entries: readable and writable.
    Data = 2,
}

impl SegmentKind {
    /// Every kind, in the order of [`Request`] and [`RawAllocation`].
    pub const ALL: [Self; 3] = [Self::Code, Self::ReadOnly, Self::Data];
}

/// The size and alignment wanted of one segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentRequest {
    /// Bytes; 0 for none.
    pub size: usize,
    /// Alignment in bytes; a power of two.
    pub align: usize,
}

impl SegmentRequest {
    /// No segment.
    pub const NONE: Self = Self { size: 0, align: 1 };
}

/// What one graph needs, indexed by [`SegmentKind`].
pub type Request = [SegmentRequest; 3];

/// One segment of an allocation.
#[derive(Clone, Copy, Debug)]
pub struct Segment {
    /// Where the executor sees the segment.
    pub address: u64,
    /// Where the linker writes it, until the allocation is finalized. May differ from `address`.
    pub working: NonNull<u8>,
    /// Bytes; 0 where no such segment was asked for.
    pub size: usize,
}

// SAFETY: a segment is an address range; who may write through `working`, and when, is the
// contract of `MemoryManager`, which hands each range to one owner.
unsafe impl Send for Segment {}
// SAFETY: as above; nothing can be written through a shared `Segment` without `unsafe`.
unsafe impl Sync for Segment {}

impl Segment {
    /// The segment that was not asked for.
    pub const EMPTY: Self = Self { address: 0, working: NonNull::dangling(), size: 0 };
}

/// The segments of one allocation, indexed by [`SegmentKind`].
pub type RawAllocation = [Segment; 3];

/// Hands out, publishes and takes back memory.
///
/// # Safety
///
/// An implementation gives each allocation ranges that no other live allocation has, writable
/// through `working` from `allocate` until `finalize`, zeroed where they are
/// [`SegmentKind::Data`], aligned as asked at `address`, and mapped at `address` with the
/// protection of their kind from `finalize` until `deallocate`. Data segments stay writable at
/// `address`.
///
/// ```
/// use jit_linker::memory::{MemoryError, MemoryManager, MemoryStatistics, PageManager, RawAllocation, Request};
///
/// /// Has no room for more than so many allocations.
/// #[derive(Debug)]
/// struct Limited {
///     pages: PageManager,
///     most: usize,
/// }
///
/// // SAFETY: everything is the page manager's, which keeps the contract.
/// unsafe impl MemoryManager for Limited {
///     fn allocate(&self, request: &Request) -> Result<RawAllocation, MemoryError> {
///         if self.statistics().allocations >= self.most {
///             let source = std::io::ErrorKind::OutOfMemory.into();
///             return Err(MemoryError::System { action: "allocate more", source });
///         }
///         self.pages.allocate(request)
///     }
///
///     unsafe fn finalize(&self, allocation: &RawAllocation) -> Result<(), MemoryError> {
///         // SAFETY: as the caller says.
///         unsafe { self.pages.finalize(allocation) }
///     }
///
///     unsafe fn deallocate(&self, allocation: &RawAllocation) {
///         // SAFETY: as the caller says.
///         unsafe { self.pages.deallocate(allocation) };
///     }
///
///     fn statistics(&self) -> MemoryStatistics {
///         self.pages.statistics()
///     }
/// }
/// ```
pub unsafe trait MemoryManager: Send + Sync + fmt::Debug {
    /// Reserves memory for one graph.
    ///
    /// # Errors
    ///
    /// When the system or the manager's range has no room left, or an alignment can't be had.
    fn allocate(&self, request: &Request) -> Result<RawAllocation, MemoryError>;

    /// Makes what was written visible to instruction fetch on every thread (by
    /// [`cache::publish`](crate::arch::cache::publish)), and gives each segment its final
    /// protection.
    ///
    /// # Errors
    ///
    /// When the system refuses the protection.
    ///
    /// # Safety
    ///
    /// `allocation` came from `allocate` of this manager and was not finalized before.
    unsafe fn finalize(&self, allocation: &RawAllocation) -> Result<(), MemoryError>;

    /// Writes `parts`, one behind the other, to the working memory of a segment of code or constants from `offset` on, if
    /// that is cheaper than to copy them there, and says whether it did. If not, anything may be there.
    ///
    /// # Safety
    ///
    /// `allocation` came from `allocate` of this manager and was not finalized before. The segment has room for the
    /// parts, which are elsewhere, and nobody else uses its working memory.
    unsafe fn write(
        &self,
        allocation: &RawAllocation,
        kind: SegmentKind,
        offset: usize,
        parts: &[IoSlice<'_>],
    ) -> bool {
        let _ = (allocation, kind, offset, parts);
        false
    }

    /// Takes an allocation back, finalized or not.
    ///
    /// # Safety
    ///
    /// `allocation` came from `allocate` of this manager, is given back once, and nothing runs,
    /// reads or writes it any more.
    unsafe fn deallocate(&self, allocation: &RawAllocation);

    /// What is held now.
    fn statistics(&self) -> MemoryStatistics;

    /// The addresses that all allocations are within, where that is settled before they are made.
    fn range(&self) -> Option<Range<u64>> {
        None
    }
}

/// What a memory manager holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct MemoryStatistics {
    /// Live allocations.
    pub allocations: usize,
    /// Bytes in live allocations, by [`SegmentKind`], after rounding to the manager's granule.
    pub bytes: [usize; 3],
    /// Mappings the manager has made and not undone.
    pub mappings: usize,
}

/// Why memory could not be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MemoryError {
    /// The system refused a mapping or a protection.
    #[error("cannot {action}: {source}")]
    System {
        /// What was tried.
        action: &'static str,
        /// The system's answer.
        source: std::io::Error,
    },
    /// The reserved range has no room for a segment.
    #[error("no room for {size} bytes of {kind:?} within the session's address range")]
    RangeFull {
        /// Bytes asked for.
        size: usize,
        /// Of which kind.
        kind: SegmentKind,
    },
    /// A segment's alignment is not a power of two, or larger than the manager supports.
    #[error("an alignment of {align} bytes is not supported")]
    Alignment {
        /// Bytes.
        align: usize,
    },
}

/// Memory of one graph that the linker is still writing. Dropped, it goes back.
#[derive(Debug)]
pub struct Allocation {
    manager: Arc<dyn MemoryManager>,
    raw: RawAllocation,
}

impl Allocation {
    /// Reserves memory from `manager`.
    ///
    /// # Errors
    ///
    /// As [`MemoryManager::allocate`].
    pub fn new(manager: &Arc<dyn MemoryManager>, request: &Request) -> Result<Self, MemoryError> {
        let raw = manager.allocate(request)?;
        Ok(Self { manager: Arc::clone(manager), raw })
    }

    /// The address the executor will see the segment at.
    #[must_use]
    pub fn address(&self, kind: SegmentKind) -> u64 {
        self.raw[kind as usize].address
    }

    /// Bytes of a segment.
    #[must_use]
    pub fn size(&self, kind: SegmentKind) -> usize {
        self.raw[kind as usize].size
    }

    /// The writable bytes of a segment.
    pub fn working(&mut self, kind: SegmentKind) -> &mut [u8] {
        let segment = &self.raw[kind as usize];
        // SAFETY: the manager's contract: `size` bytes at `working` are ours alone and writable
        // until `finalize`, which consumes `self`; `&mut self` excludes a second slice. Fresh
        // memory comes from the system or from an earlier allocation: initialised either way.
        unsafe { std::slice::from_raw_parts_mut(segment.working.as_ptr(), segment.size) }
    }

    /// Writes `parts`, one behind the other, to a segment of code or constants from `offset` on, if the manager has a cheaper
    /// way than to copy them to [`working`](Self::working), and says whether it did. If not, anything may be there.
    pub(crate) fn write(&mut self, kind: SegmentKind, offset: usize, parts: &[IoSlice<'_>]) -> bool {
        let room = self.size(kind).checked_sub(offset);
        let size = parts.iter().try_fold(0usize, |size, part| size.checked_add(part.len()));
        // SAFETY: the parts fit. They are borrowed, and the working memory only by `self`: not at the same time.
        size.is_some() && size <= room && unsafe { self.manager.write(&self.raw, kind, offset, parts) }
    }

    /// Publishes what was written.
    ///
    /// # Errors
    ///
    /// As [`MemoryManager::finalize`]; the memory has gone back then.
    pub fn finalize(self) -> Result<FinalizedAllocation, MemoryError> {
        // SAFETY: `raw` came from this manager's `allocate`, and `self` is consumed, so this is
        // the only `finalize`.
        unsafe { self.manager.finalize(&self.raw)? };
        let this = std::mem::ManuallyDrop::new(self);
        // SAFETY: `this` is never dropped nor used again; the `Arc` is moved out of it once.
        let manager = unsafe { std::ptr::read(&this.manager) };
        Ok(FinalizedAllocation { registrations: SmallVec::new(), manager, raw: this.raw })
    }
}

impl Drop for Allocation {
    fn drop(&mut self) {
        // SAFETY: not finalized, so nothing was told its address as ready to run; given back once.
        unsafe { self.manager.deallocate(&self.raw) };
    }
}

/// Memory of one linked graph. Dropped, it goes back: whoever drops it vouches that no thread
/// runs in it and no pointer into it is used again.
pub struct FinalizedAllocation {
    /// Dropped before the memory goes back, the last first.
    registrations: SmallVec<[Box<dyn Send + Sync>; 1]>,
    manager: Arc<dyn MemoryManager>,
    raw: RawAllocation,
}

impl FinalizedAllocation {
    /// The address range of a segment.
    #[must_use]
    pub fn range(&self, kind: SegmentKind) -> std::ops::Range<u64> {
        let segment = &self.raw[kind as usize];
        segment.address..segment.address + segment.size as u64
    }

    /// Keeps something that stands for a registration of this memory with the process: dropping it
    /// undoes that, before the memory goes back.
    pub fn attach(&mut self, registration: Box<dyn Send + Sync>) {
        self.registrations.push(registration);
    }

    /// Bytes of all segments, before the manager's rounding.
    #[must_use]
    pub fn size(&self) -> usize {
        self.raw.iter().map(|segment| segment.size).sum()
    }
}

impl fmt::Debug for FinalizedAllocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FinalizedAllocation").field("segments", &self.raw).finish_non_exhaustive()
    }
}

impl Drop for FinalizedAllocation {
    fn drop(&mut self) {
        while let Some(registration) = self.registrations.pop() {
            // One that panics, which the hook has told, must not keep the others from being undone, or the memory.
            _ = catch_unwind(AssertUnwindSafe(|| drop(registration)));
        }
        // SAFETY: the type's contract: its owner drops it when nothing uses the memory any more.
        unsafe { self.manager.deallocate(&self.raw) };
    }
}
