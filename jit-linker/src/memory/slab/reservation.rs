//! The address space of a session: one range that the code sees, and a second one of the same
//! size through which shared memory is written. Nothing in either is accessible until mapped.

use std::fs::File;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::ops::Range;
use std::os::fd::{AsRawFd, FromRawFd};
use std::ptr::NonNull;

use crate::memory::{MemoryError, SegmentKind, prefer_huge_pages};

/// How far code may be from a library: what a signed 32-bit offset reaches, less room for the
/// libraries around the one that is looked at.
const NEAR: u64 = (2 << 30) - (128 << 20);

/// Room for the main thread's stack to grow.
const STACK_ROOM: u64 = 1 << 30;

/// Distance between the places that are tried.
const STRIDE: u64 = 256 << 20;

/// The second range is looked for this far away: what is near the libraries is scarce.
const ALIAS_DISTANCE: u64 = 64 << 30;

/// Below this, address space is not asked for: the limit is too tight for a session.
const SMALLEST: u64 = 16 << 20;

/// Two ranges of address space, the second one not before it is needed. Dropped, all that is mapped in them goes.
#[derive(Debug)]
pub(super) struct Reservation {
    base: u64,
    size: u64,
    /// Where the second range starts, once shared memory was mapped.
    alias: Option<u64>,
}

/// Where code and data are to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Region {
    /// Within reach of the process's libraries, if there is room.
    NearLibraries,
    /// Where 31 bits are an address.
    Below2Gib,
}

impl Reservation {
    /// Reserves `size` bytes, or less where the process may not have so much.
    pub(super) fn new(size: u64, region: Region) -> Result<Self, MemoryError> {
        let mut size = size;
        while size > largest_file() && size / 2 >= SMALLEST {
            size /= 2;
        }
        loop {
            let base = match region {
                Region::NearLibraries => reserve_near_libraries(size),
                Region::Below2Gib => reserve_below_2_gib(size),
            };
            match base {
                Ok(base) => return Ok(Self { base, size, alias: None }),
                Err(error) if error.raw_os_error() == Some(libc::ENOMEM) && size / 2 >= SMALLEST => size /= 2,
                Err(error) => return Err(system("reserve address space")(error)),
            }
        }
    }

    /// The range that the code sees.
    pub(super) fn range(&self) -> Range<u64> {
        self.base..self.base + self.size
    }

    /// Where memory that code sees at `address` is written.
    pub(super) fn working(&self, kind: SegmentKind, address: u64) -> NonNull<u8> {
        let address = match self.alias {
            Some(alias) if kind != SegmentKind::Data => alias + (address - self.base),
            _ => address,
        };
        self.in_place(address)
    }

    /// A pointer to what is mapped at an address.
    pub(super) fn in_place(&self, address: u64) -> NonNull<u8> {
        let pointer = std::ptr::with_exposed_provenance_mut(address as usize);
        NonNull::new(pointer).expect("a mapping is not at address 0")
    }

    /// Makes memory of `file` visible to code in `range`, and writable in the second range. The
    /// offset in the file is that in the range, so that neighbours are one mapping to the system.
    pub(super) fn map_shared(&mut self, file: &File, range: Range<u64>, kind: SegmentKind) -> Result<(), MemoryError> {
        let action = if kind == SegmentKind::Code { "map code" } else { "map read-only data" };
        self.map(range.start, &range, protection(kind), libc::MAP_SHARED, Some(file)).map_err(system(action))?;
        let alias = self.alias().map_err(system("reserve address space"))? + (range.start - self.base);
        self.map(alias, &range, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED, Some(file))
            .map_err(system("map the writable alias of code"))
    }

    /// Where the second range starts.
    fn alias(&mut self) -> io::Result<u64> {
        if let Some(alias) = self.alias {
            return Ok(alias);
        }
        let hint = self.base.saturating_sub(ALIAS_DISTANCE);
        Ok(*self.alias.insert(map_inaccessible(hint, self.size, 0)?))
    }

    /// Makes private memory readable and writable in `range`.
    pub(super) fn map_private(&self, range: Range<u64>) -> Result<(), MemoryError> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        self.map(range.start, &range, libc::PROT_READ | libc::PROT_WRITE, flags, None).map_err(system("map data"))
    }

    /// Makes private memory writable in `range` that [`seal`](Self::seal) will make what it is to be. In huge pages, as far as
    /// it fills them: all of it is going to be written.
    pub(super) fn map_apart(&self, range: Range<u64>, kind: SegmentKind) -> io::Result<()> {
        const WRITABLE: i32 = libc::PROT_READ | libc::PROT_WRITE;
        self.map(range.start, &range, WRITABLE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, None)?;
        // A process may be forbidden to run what it wrote (`PR_SET_MDWE`), which shows while nothing is there yet, too.
        // SAFETY: nobody else knows the memory.
        let probed = unsafe { protect(&range, protection(kind)).and_then(|()| protect(&range, WRITABLE)) };
        if probed.is_err() {
            // SAFETY: as above.
            unsafe { self.unmap(range) };
            return probed;
        }
        let start = std::ptr::with_exposed_provenance::<MaybeUninit<u8>>(range.start as usize);
        // SAFETY: mapped just now, and not changed meanwhile.
        prefer_huge_pages(unsafe { std::slice::from_raw_parts(start, (range.end - range.start) as usize) });
        Ok(())
    }

    /// Gives what [`map_apart`](Self::map_apart) made its final protection.
    ///
    /// # Safety
    ///
    /// The memory is written, and nobody writes it any more.
    pub(super) unsafe fn seal(&self, range: &Range<u64>, kind: SegmentKind) -> Result<(), MemoryError> {
        // SAFETY: the caller's contract.
        unsafe { protect(range, protection(kind)) }.map_err(system("protect memory"))
    }

    /// Undoes [`map_apart`](Self::map_apart).
    ///
    /// # Safety
    ///
    /// Nobody uses the memory.
    pub(super) unsafe fn unmap(&self, range: Range<u64>) {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        if self.map(range.start, &range, libc::PROT_NONE, flags, None).is_err() {
            let start = std::ptr::with_exposed_provenance_mut(range.start as usize);
            // It stays mapped, then, without memory.
            // SAFETY: the caller's contract.
            unsafe { libc::madvise(start, (range.end - range.start) as usize, libc::MADV_DONTNEED) };
        }
    }

    /// Maps at `address`, which is in one of the two ranges, memory of the size of `range`.
    fn map(
        &self,
        address: u64,
        range: &Range<u64>,
        protection: i32,
        flags: i32,
        file: Option<&File>,
    ) -> io::Result<()> {
        let size = (range.end - range.start) as usize;
        let offset = if file.is_some() { (range.start - self.base) as libc::off_t } else { 0 };
        let descriptor = file.map_or(-1, AsRawFd::as_raw_fd);
        let target = std::ptr::with_exposed_provenance_mut(address as usize);
        // SAFETY: replaces pages of our own reservation, which the caller has not handed out yet.
        let mapped = unsafe { libc::mmap(target, size, protection, flags | libc::MAP_FIXED, descriptor, offset) };
        if mapped == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Gives the memory of whole pages back; they read as zero, or are never read.
    ///
    /// # Safety
    ///
    /// `pages` are in mapped chunks of `kind`, and no segment has them. `file` is what shared ones
    /// were mapped from, and no other process uses its pages there.
    pub(super) unsafe fn release(&self, file: Option<&File>, kind: SegmentKind, pages: Range<u64>) {
        let size = pages.end - pages.start;
        // Failure leaves the memory where it is, to be used again: nothing to tell anybody.
        if kind == SegmentKind::Data {
            let start = std::ptr::with_exposed_provenance_mut(pages.start as usize);
            // SAFETY: the caller's contract: private memory of ours that nobody uses.
            unsafe { libc::madvise(start, size as usize, libc::MADV_DONTNEED) };
        } else if let Some(file) = file {
            let offset = pages.start - self.base;
            let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
            // SAFETY: the caller's contract: nobody uses the file's pages there.
            unsafe { libc::fallocate(file.as_raw_fd(), mode, offset as libc::off_t, size as libc::off_t) };
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        for base in std::iter::once(self.base).chain(self.alias) {
            // SAFETY: the range is ours, and its owner goes: no segment is in use any more.
            unsafe { unmap(base, self.size) };
        }
    }
}

/// What may be done with a segment when it is final.
fn protection(kind: SegmentKind) -> i32 {
    match kind {
        SegmentKind::Code => libc::PROT_READ | libc::PROT_EXEC,
        SegmentKind::ReadOnly => libc::PROT_READ,
        SegmentKind::Data => libc::PROT_READ | libc::PROT_WRITE,
    }
}

/// # Safety
///
/// `range` is whole pages that are mapped, and nobody uses them in a way that goes with it.
unsafe fn protect(range: &Range<u64>, protection: i32) -> io::Result<()> {
    let start = std::ptr::with_exposed_provenance_mut(range.start as usize);
    // SAFETY: the caller's contract.
    let result = unsafe { libc::mprotect(start, (range.end - range.start) as usize, protection) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// A file that is only memory, of `size` bytes that take none until written.
pub(super) fn memory_file(size: u64) -> Result<File, MemoryError> {
    let create = |flags| {
        // SAFETY: the name is a C string.
        unsafe { libc::memfd_create(c"jit-code".as_ptr(), flags) }
    };
    // Systems that forbid files that can be run with `exec` want to be told that this is none;
    // older ones do not know the flag.
    let mut descriptor = create(libc::MFD_CLOEXEC | libc::MFD_NOEXEC_SEAL);
    if descriptor < 0 && io::Error::last_os_error().raw_os_error() == Some(libc::EINVAL) {
        descriptor = create(libc::MFD_CLOEXEC);
    }
    if descriptor < 0 {
        return Err(system("create a memory file")(io::Error::last_os_error()));
    }
    // SAFETY: the descriptor was just opened, and nobody else knows it.
    let file = unsafe { File::from_raw_fd(descriptor) };
    if size > largest_file() {
        // Tried, it would raise a signal that ends the process.
        return Err(system("size a memory file")(io::Error::from_raw_os_error(libc::EFBIG)));
    }
    file.set_len(size).map_err(system("size a memory file"))?;
    Ok(file)
}

/// How large this process may make a file, or write it.
fn largest_file() -> u64 {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: writes the limit, which is ours.
    let result = unsafe { libc::getrlimit(libc::RLIMIT_FSIZE, &mut limit) };
    if result == 0 { limit.rlim_cur } else { u64::MAX }
}

/// Writes `parts`, one behind the other, to a memory file from `start` on. Says whether all of it was.
///
/// Pages that are not there need not be cleared first, as those that are written through a mapping.
pub(super) fn write(file: &File, start: u64, parts: &[IoSlice<'_>]) -> bool {
    /// As many as the system takes.
    const MOST: usize = libc::UIO_MAXIOV as usize;
    let end = start + parts.iter().map(|part| part.len() as u64).sum::<u64>();
    if end > largest_file() {
        return false;
    }
    let mut start = start;
    parts.chunks(MOST).all(|parts| {
        let size: usize = parts.iter().map(|part| part.len()).sum();
        // SAFETY: an `IoSlice` is an `iovec`, and each is readable.
        let written = unsafe {
            libc::pwritev(file.as_raw_fd(), parts.as_ptr().cast(), parts.len() as libc::c_int, start as libc::off_t)
        };
        start += size as u64;
        written == size as libc::ssize_t
    })
}

pub(super) fn system(action: &'static str) -> impl Fn(io::Error) -> MemoryError {
    move |source| MemoryError::System { action, source }
}

/// Reserves near the C library if any of the places tried is free, otherwise anywhere.
fn reserve_near_libraries(size: u64) -> io::Result<u64> {
    let library = libc::getpid as *const () as u64;
    let is_near = |base: u64| library.saturating_sub(base) <= NEAR && (base + size).saturating_sub(library) <= NEAR;
    let anywhere = map_inaccessible(0, size, 0)?;
    if is_near(anywhere) {
        return Ok(anywhere);
    }
    // SAFETY: a query without arguments in memory.
    let stack = unsafe { libc::getauxval(libc::AT_RANDOM) };
    let aligned = library / STRIDE * STRIDE;
    let below = (0..).map_while(|step| aligned.checked_sub(size + step * STRIDE)).take_while(|&base| is_near(base));
    let above = (1..).map(|step| aligned + step * STRIDE).take_while(|&base| is_near(base));
    let above = above.filter(|base| !(base.saturating_sub(STACK_ROOM)..base + size + STACK_ROOM).contains(&stack));
    for hint in below.chain(above) {
        let Ok(base) = map_inaccessible(hint, size, libc::MAP_FIXED_NOREPLACE) else { continue };
        // Systems that do not know the flag take the address as a wish.
        let unused = if base == hint { anywhere } else { base };
        // SAFETY: reserved above, and not used.
        unsafe { unmap(unused, size) };
        if base == hint {
            return Ok(base);
        }
    }
    Ok(anywhere)
}

/// Reserves below 2 GiB, where a program that was linked to a fixed address has its code.
fn reserve_below_2_gib(size: u64) -> io::Result<u64> {
    const END: u64 = 2 << 30;
    let first = STRIDE.min(END.saturating_sub(size));
    for hint in (first..=END.saturating_sub(size)).step_by(STRIDE as usize / 4) {
        let Ok(base) = map_inaccessible(hint, size, libc::MAP_FIXED_NOREPLACE) else { continue };
        if base == hint {
            return Ok(base);
        }
        // SAFETY: reserved above, and not used.
        unsafe { unmap(base, size) };
    }
    Err(io::Error::from_raw_os_error(libc::ENOMEM))
}

fn map_inaccessible(hint: u64, size: u64, flags: i32) -> io::Result<u64> {
    let flags = flags | libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    let hint = std::ptr::with_exposed_provenance_mut(hint as usize);
    // SAFETY: a new mapping that replaces none.
    let base = unsafe { libc::mmap(hint, size as usize, libc::PROT_NONE, flags, -1, 0) };
    if base == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(base.expose_provenance() as u64) }
}

/// # Safety
///
/// The range was reserved by [`map_inaccessible`], and nobody uses it.
unsafe fn unmap(base: u64, size: u64) {
    let base = std::ptr::with_exposed_provenance_mut(base as usize);
    // SAFETY: the caller's contract.
    let result = unsafe { libc::munmap(base, size as usize) };
    debug_assert_eq!(result, 0, "unmapping what was mapped");
}
