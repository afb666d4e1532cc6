//! The C library's `errno`, which is the caller's: a first call is no call that may change it.

/// Does `work`, and leaves `errno` as it was. For signal handlers, too.
pub(crate) fn keep<T>(work: impl FnOnce() -> T) -> T {
    let place = place();
    // SAFETY: the thread's own, as long as the thread is there.
    let before = place.map(|place| unsafe { place.read() });
    let done = work();
    if let (Some(place), Some(before)) = (place, before) {
        // SAFETY: as above.
        unsafe { place.write(before) };
    }
    done
}

#[cfg(target_os = "linux")]
fn place() -> Option<*mut libc::c_int> {
    // SAFETY: only says where it is.
    Some(unsafe { libc::__errno_location() })
}

#[cfg(target_vendor = "apple")]
fn place() -> Option<*mut libc::c_int> {
    // SAFETY: only says where it is.
    Some(unsafe { libc::__error() })
}

#[cfg(not(any(target_os = "linux", target_vendor = "apple")))]
fn place() -> Option<*mut libc::c_int> {
    None
}
