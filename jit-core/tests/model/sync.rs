//! The session's primitives, played by the model checker.

use std::sync::PoisonError;
use std::sync::atomic::AtomicBool as Switch;
use std::time::Instant;

// What is written with the session's lock held: `loom` checks how it is read without. Here it only
// costs schedules.
pub(crate) use std::hint::spin_loop;
pub(crate) use std::sync::atomic::{AtomicPtr, AtomicU32, fence};

pub(crate) use jit_linker::memory::forget_pages;
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

pub(crate) const PLACE_BITS: u32 = 32;

pub(crate) const SMALLEST_INDEX: usize = 64;

pub(crate) const fn is_torn() -> bool {
    false
}

/// Set by the one test that wants a defect.
pub(crate) static BROKEN: Switch = Switch::new(false);

pub(crate) fn is_broken() -> bool {
    BROKEN.load(Ordering::Relaxed)
}

pub(crate) const fn is_unordered() -> bool {
    false
}

pub(crate) fn fence_after_update() {
    fence(Ordering::SeqCst);
}

/// Nobody forks here.
pub(crate) mod fork {
    use super::{Arc, Mutex, thread};

    pub(crate) trait Crew: Send + Sync + 'static {
        type State: Send;
        fn state(&self) -> &Mutex<Self::State>;
        fn is_quiet(&self, state: &mut Self::State) -> bool;
        fn in_parent(&self, state: &mut Self::State);
        fn in_child(&self, state: &mut Self::State);
    }

    pub(crate) fn register<C: Crew>(_: &Arc<C>) {}

    pub(crate) struct Worker(thread::JoinHandle<()>);

    impl Worker {
        pub(crate) fn new(thread: thread::JoinHandle<()>) -> Self {
            Self(thread)
        }

        pub(crate) fn is_over(&self) -> bool {
            false
        }

        pub(crate) fn join(self) {
            if self.0.thread().id() != thread::current().id() {
                _ = self.0.join();
            }
        }
    }
}
