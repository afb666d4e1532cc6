//! Execution scopes: what is removed while code runs goes when it has left.

use std::sync::atomic::{AtomicUsize, Ordering, fence};

use crate::sync::{Mutex, lock};

/// The threads that are inside the session's code, and what waits for them to leave.
#[derive(Default)]
pub(crate) struct ExecutionScopes {
    inside: AtomicUsize,
    retired: Mutex<Vec<Box<dyn Send>>>,
}

impl ExecutionScopes {
    pub(crate) fn enter(&self) -> ExecutionScope<'_> {
        self.inside.fetch_add(1, Ordering::SeqCst);
        // Pairs with the one in `retire`: either the scope is seen there, or what was unlinked
        // before is not seen here.
        fence(Ordering::SeqCst);
        ExecutionScope { scopes: self }
    }

    /// Drops something that was unlinked, as soon as no thread can be inside it.
    pub(crate) fn retire(&self, garbage: Box<dyn Send>) {
        fence(Ordering::SeqCst);
        if self.inside.load(Ordering::SeqCst) == 0 {
            drop(garbage);
            return;
        }
        lock(&self.retired).push(garbage);
        // The last scope may have closed before it could see this.
        if self.inside.load(Ordering::SeqCst) == 0 {
            self.reclaim();
        }
    }

    fn reclaim(&self) {
        let garbage = std::mem::take(&mut *lock(&self.retired));
        drop(garbage);
    }
}

/// A thread's stay in a session's code. While it lasts, removed code stays mapped.
#[must_use = "dropped, it no longer holds anything back"]
pub struct ExecutionScope<'a> {
    scopes: &'a ExecutionScopes,
}

impl Drop for ExecutionScope<'_> {
    fn drop(&mut self) {
        if self.scopes.inside.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.scopes.reclaim();
        }
    }
}
