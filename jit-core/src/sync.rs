//! The primitives of concurrency that the session is built from, in one place so that a model
//! checker can stand in for them.

#[cfg(feature = "cranelift")]
pub(crate) use std::sync::Weak;
pub(crate) use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// Locks `mutex`. No user code runs while one of our locks is held, so a poisoned one was
/// poisoned by a defect of ours or by memory running out, and its data is as whole as it can be.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits on `condition`, whatever became of other threads.
pub(crate) fn wait<'a, T>(condition: &Condvar, guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
    condition.wait(guard).unwrap_or_else(PoisonError::into_inner)
}
