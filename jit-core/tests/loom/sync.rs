//! The session's primitives, played by the model checker.

use std::sync::PoisonError;
use std::sync::atomic::AtomicBool as Switch;

pub(crate) use loom::hint::spin_loop;
pub(crate) use loom::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};
pub(crate) use loom::sync::{Mutex, MutexGuard};

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The checker's own memory is behind an atomic of its.
pub(crate) fn forget_pages(_: &[AtomicU32]) {}

/// As few as will do: the checker's stacks are small.
pub(crate) const PLACE_BITS: u32 = 8;

/// As short as it can be: the longer, the more the checker has to keep.
pub(crate) const SMALLEST_INDEX: usize = 4;

/// Set by the one test that wants a defect.
pub(crate) static TORN: Switch = Switch::new(false);

pub(crate) fn is_torn() -> bool {
    TORN.load(Ordering::Relaxed)
}

/// As `TORN`.
pub(crate) static UNORDERED: Switch = Switch::new(false);

pub(crate) fn is_unordered() -> bool {
    UNORDERED.load(Ordering::Relaxed)
}

pub(crate) const fn is_broken() -> bool {
    false
}

pub(crate) fn fence_after_update() {
    fence(Ordering::SeqCst);
}
