//! Memory for macOS: code in pages of `MAP_JIT`, which each thread may either write or execute.
//!
//! All of it is compiled on every Unix, but for the three calls in `system`. No Mac has run it yet.

use std::io;
use std::ptr::NonNull;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustc_hash::FxHashMap;

use super::{MemoryError, MemoryManager, MemoryStatistics, RawAllocation, Request, Segment, SegmentKind};

/// Gives each segment pages of its own. Code is written elsewhere and copied when it is final, in one
/// step on one thread: on Apple's processors the right to write code is a thread's, and a link may go
/// from thread to thread. An entitlement (`com.apple.security.cs.allow-jit`) is needed where a program
/// runs hardened.
///
/// ```
/// use std::sync::Arc;
/// use jit_linker::memory::{Allocation, AppleMemory, MemoryManager, SegmentKind, SegmentRequest};
///
/// let manager: Arc<dyn MemoryManager> = Arc::new(AppleMemory::new());
/// let code = SegmentRequest { size: 1, align: 16 };
/// let mut allocation = Allocation::new(&manager, &[code, SegmentRequest::NONE, SegmentRequest::NONE])?;
/// allocation.working(SegmentKind::Code)[0] = 0xc3;
/// let code = allocation.finalize()?;
/// assert_eq!(code.range(SegmentKind::Code).count(), 1);
/// # Ok::<(), jit_linker::memory::MemoryError>(())
/// ```
#[derive(Debug, Default)]
pub struct AppleMemory {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// By the address of a segment.
    live: FxHashMap<u64, Pages>,
    statistics: MemoryStatistics,
}

/// A mapping, undone when it is dropped, and for code what is to be copied there.
#[derive(Debug)]
struct Pages {
    address: usize,
    size: usize,
    content: Option<Vec<u128>>,
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: a mapping of its own, which nobody uses any more. A failure leaves it where it is.
        unsafe { libc::munmap(std::ptr::with_exposed_provenance_mut(self.address), self.size) };
    }
}

impl AppleMemory {
    /// A manager that holds nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// SAFETY: each segment has a mapping of its own; that of code is only written by `finalize`, from
// working memory that lives as long as the mapping.
unsafe impl MemoryManager for AppleMemory {
    fn allocate(&self, request: &Request) -> Result<RawAllocation, MemoryError> {
        let page = region::page::size();
        let mut allocation = [Segment::EMPTY; 3];
        let mut mapped = Vec::new();
        let mut near = 0;
        for (kind, wanted) in SegmentKind::ALL.into_iter().zip(request) {
            if !wanted.align.is_power_of_two() || wanted.align > page {
                return Err(MemoryError::Alignment { align: wanted.align });
            }
            if wanted.size == 0 {
                continue;
            }
            let size = wanted.size.checked_next_multiple_of(page).filter(|size| *size <= isize::MAX as usize);
            let size = size.ok_or(MemoryError::RangeFull { size: wanted.size, kind })?;
            let is_code = kind == SegmentKind::Code;
            let address = system::map(near, size, is_code)?;
            let mut pages = Pages { address, size, content: None };
            let working = if is_code {
                // As much aligned as segments of code are within their page.
                let content = pages.content.insert(vec![0; size.div_ceil(16)]);
                NonNull::from(content.as_mut_slice()).cast()
            } else {
                NonNull::new(std::ptr::with_exposed_provenance_mut(address)).expect("a mapping is not at address 0")
            };
            allocation[kind as usize] = Segment { address: address as u64, working, size: wanted.size };
            near = address + size;
            mapped.push((kind, pages));
        }
        let mut state = self.lock();
        state.statistics.allocations += 1;
        for (kind, pages) in mapped {
            state.statistics.mappings += 1;
            state.statistics.bytes[kind as usize] += pages.size;
            state.live.insert(pages.address as u64, pages);
        }
        Ok(allocation)
    }

    unsafe fn finalize(&self, allocation: &RawAllocation) -> Result<(), MemoryError> {
        let [code, constants, _] = allocation;
        if code.size > 0 {
            // SAFETY: as many bytes of each, which do not overlap; nobody runs the code yet.
            unsafe { system::write_code(code.address as usize, code.working.as_ptr(), code.size)? };
        }
        if constants.size > 0 {
            // SAFETY: pages of this segment alone.
            unsafe { region::protect(constants.working.as_ptr(), constants.size, region::Protection::READ) }
                .map_err(|error| failed("protect memory", io::Error::other(error)))?;
        }
        Ok(())
    }

    unsafe fn deallocate(&self, allocation: &RawAllocation) {
        let mut state = self.lock();
        let mut unused = Vec::new();
        for (kind, segment) in SegmentKind::ALL.into_iter().zip(allocation).filter(|(_, segment)| segment.size > 0) {
            let Some(pages) = state.live.remove(&segment.address) else { continue };
            state.statistics.mappings -= 1;
            state.statistics.bytes[kind as usize] -= pages.size;
            unused.push(pages);
        }
        state.statistics.allocations -= 1;
        drop(state);
        // Unmapping takes long, and needs no lock.
        drop(unused);
    }

    fn statistics(&self) -> MemoryStatistics {
        self.lock().statistics
    }
}

fn failed(action: &'static str, source: io::Error) -> MemoryError {
    MemoryError::System { action, source }
}

/// What macOS does in its own way; other systems have a protection that is changed.
mod system {
    use super::{MemoryError, failed};

    #[cfg(target_vendor = "apple")]
    unsafe extern "C" {
        /// `<pthread.h>`: whether this thread executes the pages of `MAP_JIT`, or writes them.
        fn pthread_jit_write_protect_np(enabled: std::ffi::c_int);
        /// `<libkern/OSCacheControl.h>`.
        fn sys_icache_invalidate(start: *mut std::ffi::c_void, size: usize);
    }

    /// Zeroed pages, at `near` if there is room.
    pub(super) fn map(near: usize, size: usize, is_code: bool) -> Result<usize, MemoryError> {
        let (mut protection, mut flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANON);
        if is_code && cfg!(target_vendor = "apple") {
            /// `<sys/mman.h>` of macOS.
            const MAP_JIT: std::ffi::c_int = 0x800;
            protection |= libc::PROT_EXEC;
            flags |= MAP_JIT;
        }
        let near = std::ptr::without_provenance_mut(near);
        // SAFETY: a new mapping, of no file; `near` is a wish.
        let start = unsafe { libc::mmap(near, size, protection, flags, -1, 0) };
        if start == libc::MAP_FAILED {
            return Err(failed("map memory", std::io::Error::last_os_error()));
        }
        Ok(start.expose_provenance())
    }

    /// Puts code where it runs.
    ///
    /// # Safety
    ///
    /// Both are of `size` bytes; `address` is in a mapping of [`map`] for code, written once.
    #[cfg(target_vendor = "apple")]
    pub(super) unsafe fn write_code(address: usize, content: *const u8, size: usize) -> Result<(), MemoryError> {
        let code = std::ptr::with_exposed_provenance_mut::<u8>(address);
        // SAFETY: this thread runs no code of such pages until it can't write them again; the rest is
        // as the caller says.
        unsafe {
            pthread_jit_write_protect_np(0);
            code.copy_from_nonoverlapping(content, size);
            pthread_jit_write_protect_np(1);
            sys_icache_invalidate(code.cast(), size);
        }
        Ok(())
    }

    /// As above.
    ///
    /// # Safety
    ///
    /// As above.
    #[cfg(not(target_vendor = "apple"))]
    pub(super) unsafe fn write_code(address: usize, content: *const u8, size: usize) -> Result<(), MemoryError> {
        use crate::arch::cache::{History, publish};
        let code = std::ptr::with_exposed_provenance_mut::<u8>(address);
        // SAFETY: as the caller says; whole pages of this code alone change their protection.
        unsafe {
            code.copy_from_nonoverlapping(content, size);
            publish(code, code, size, History::Fresh);
            region::protect(code, size, region::Protection::READ_EXECUTE)
        }
        .map_err(|error| failed("protect memory", std::io::Error::other(error)))
    }
}
