//! The session's primitives, played by the model checker.

use std::sync::PoisonError;
use std::sync::atomic::AtomicBool as Switch;
use std::time::Instant;

pub(crate) use shuttle::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
pub(crate) use shuttle::sync::{Arc, Condvar, Mutex, MutexGuard, Weak};
pub(crate) use shuttle::{thread, thread_local};

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Time stands still: no deadline is ever over.
pub(crate) fn wait<'a, T>(
    condition: &Condvar,
    guard: MutexGuard<'a, T>,
    _: Option<Instant>,
) -> (MutexGuard<'a, T>, bool) {
    (condition.wait(guard).unwrap_or_else(PoisonError::into_inner), false)
}

pub(crate) fn is_finished<T>(_: &thread::JoinHandle<T>) -> bool {
    false
}

#[derive(Default)]
pub(crate) struct StateLock<T>(Mutex<T>);

impl<T> StateLock<T> {
    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        lock(&self.0)
    }

    pub(crate) fn read<R>(&self, read: impl FnOnce(&T) -> R) -> R {
        read(&self.lock())
    }
}

/// Set by the one test that wants a defect.
pub(crate) static BROKEN: Switch = Switch::new(false);

pub(crate) fn is_broken() -> bool {
    BROKEN.load(Ordering::Relaxed)
}
