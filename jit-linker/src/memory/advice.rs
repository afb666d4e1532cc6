//! What the system is told about memory: it changes nothing that anybody relies on, and is as well not done.

use std::mem::MaybeUninit;
use std::sync::atomic::AtomicU32;

/// The size of a huge page, on most systems.
#[cfg(target_os = "linux")]
pub(super) const HUGE_PAGE: usize = 2 << 20;

/// Asks for huge pages where `memory`, which is about to be used, has room for some: fewer have to be brought, and found again.
pub fn prefer_huge_pages<T>(memory: &[MaybeUninit<T>]) {
    #[cfg(target_os = "linux")]
    {
        let range = memory.as_ptr_range();
        let start = range.start.addr().next_multiple_of(HUGE_PAGE);
        let length = range.end.addr().saturating_sub(start) / HUGE_PAGE * HUGE_PAGE;
        if length > 0 {
            // SAFETY: a program sees no difference, and the range is a part of `memory`.
            unsafe { libc::madvise(start as *mut libc::c_void, length, libc::MADV_HUGEPAGE) };
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = memory;
}

/// Gives the pages of `memory` back, which nobody needs any more. Any number may be there afterwards; mostly zero.
pub fn forget_pages(memory: &[AtomicU32]) {
    #[cfg(target_os = "linux")]
    {
        let page = region::page::size();
        let range = memory.as_ptr_range();
        let start = range.start.addr().next_multiple_of(page);
        let length = (range.end.addr() / page * page).saturating_sub(start);
        if length > 0 {
            // SAFETY: whole pages of `memory`; an atomic may become any number at any time.
            unsafe { libc::madvise(start as *mut libc::c_void, length, libc::MADV_DONTNEED) };
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = memory;
}

/// Brings all pages of `memory` at once, to be written: cheaper than each at its first write.
pub(crate) fn populate<T>(memory: &mut [T]) {
    #[cfg(target_os = "linux")]
    {
        let page = region::page::size();
        let range = memory.as_mut_ptr_range();
        let start = range.start.addr() / page * page;
        let length = range.end.addr().next_multiple_of(page) - start;
        // SAFETY: contents stay; pages whose ends are not in `memory` may be brought as well.
        unsafe { libc::madvise(start as *mut libc::c_void, length, libc::MADV_POPULATE_WRITE) };
    }
    #[cfg(not(target_os = "linux"))]
    let _ = memory;
}

/// Has the pages of `memory`, which are in a file's memory, found before they are written: at a read, the system finds those
/// around as well.
#[cfg(target_os = "linux")]
pub(super) fn find_pages(memory: &[u8]) {
    /// The part of the file that comes with a page, unless somebody has changed that.
    const AROUND: usize = 64 << 10;
    let first = AROUND - memory.as_ptr().addr() % AROUND;
    for byte in memory.first().into_iter().chain(memory.iter().skip(first).step_by(AROUND)) {
        // SAFETY: a reference is valid for reads.
        unsafe { std::ptr::from_ref(byte).read_volatile() };
    }
}
