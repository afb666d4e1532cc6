//! The primitives of concurrency that the session is built from, in one place so that a model
//! checker can stand in for them.

use std::time::Instant;

pub(crate) use crate::fork;
pub(crate) use jit_linker::memory::forget_pages;
pub(crate) use std::hint::spin_loop;
#[cfg(feature = "cranelift")]
use std::sync::TryLockError;
pub(crate) use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};
pub(crate) use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
pub(crate) use std::{thread, thread_local};

/// Locks `mutex`. No user code runs while one of our locks is held, so a poisoned one was
/// poisoned by a defect of ours or by memory running out, and its data is as whole as it can be.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Locks `mutex` if nobody has it locked.
#[cfg(feature = "cranelift")]
pub(crate) fn try_lock<T>(mutex: &Mutex<T>) -> Option<MutexGuard<'_, T>> {
    match mutex.try_lock() {
        Ok(guard) => Some(guard),
        Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
        Err(TryLockError::WouldBlock) => None,
    }
}

/// Has others see an update of an atomic that was just made before anything that follows is read.
pub(crate) fn fence_after_update() {
    // On x86-64 the update is such a fence itself.
    if !cfg!(target_arch = "x86_64") {
        fence(Ordering::SeqCst);
    }
}

/// Waits on `condition`, whatever became of other threads, and says whether `deadline` is over.
pub(crate) fn wait<'a, T>(
    condition: &Condvar,
    guard: MutexGuard<'a, T>,
    deadline: Option<Instant>,
) -> (MutexGuard<'a, T>, bool) {
    let Some(deadline) = deadline else {
        return (condition.wait(guard).unwrap_or_else(PoisonError::into_inner), false);
    };
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return (guard, true);
    }
    let (guard, _) = condition.wait_timeout(guard, left).unwrap_or_else(PoisonError::into_inner);
    (guard, false)
}

/// The width of an index of a list that only grows.
pub(crate) const PLACE_BITS: u32 = 32;

/// The least length of a session's index of names, a power of two.
pub(crate) const SMALLEST_INDEX: usize = 64;

/// Whether the model checker is to be shown a defect: changes that may be seen before their
/// version. It has to find it.
pub(crate) const fn is_torn() -> bool {
    false
}

/// Whether the model checker is to be shown a defect: the end of an epoch that somebody is still
/// in. It has to find it.
pub(crate) const fn is_broken() -> bool {
    false
}

/// Whether the model checker is to be shown a defect: removed code that may be dropped before others see that it was
/// removed. It has to find it.
pub(crate) const fn is_unordered() -> bool {
    false
}
