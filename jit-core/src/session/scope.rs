//! Execution scopes: what is removed while code runs goes when whoever could be in it has left.
//!
//! Time is cut into epochs. A scope counts on the side, one of two, of the epoch it was opened in,
//! and an epoch ends only when nobody is left from the one before it. So two ends after something
//! was removed, everybody who was inside at that moment has left, however many have come since.

use std::collections::VecDeque;

use crate::sync::{self, AtomicUsize, Mutex, Ordering, fence, lock};

/// The threads that are inside the session's code, and what waits for them to leave.
#[derive(Default)]
pub(crate) struct ExecutionScopes {
    /// Written with `retired` locked.
    epoch: AtomicUsize,
    /// By side: the epoch's lowest bit.
    inside: [AtomicUsize; 2],
    /// What was removed, with the epoch that it was removed in.
    retired: Mutex<VecDeque<(usize, Box<dyn Send>)>>,
    waiting: AtomicUsize,
}

impl ExecutionScopes {
    pub(crate) fn enter(&self) -> ExecutionScope<'_> {
        // If the epoch ends meanwhile, the scope counts on the older side: that holds back the end
        // of the new one.
        let side = self.epoch.load(Ordering::SeqCst) % 2;
        self.inside[side].fetch_add(1, Ordering::SeqCst);
        // Pairs with the one in `reclaim`: that sees this scope, or this scope's thread does not see what was unlinked
        // before. The addition alone lets what follows be read before others see it.
        sync::fence_after_update();
        ExecutionScope { scopes: self, side }
    }

    /// Drops something that was unlinked, as soon as no thread can be inside it.
    pub(crate) fn retire(&self, garbage: impl Send + 'static) {
        // Whoever was inside when it was unlinked is counted on one of the sides, until they leave.
        if !sync::is_unordered() {
            fence(Ordering::SeqCst);
        }
        if self.inside.iter().all(|inside| inside.load(Ordering::SeqCst) == 0) && self.retired() == 0 {
            return drop(garbage);
        }
        self.retire_later(Box::new(garbage));
    }

    fn retire_later(&self, garbage: Box<dyn Send>) {
        {
            let mut retired = lock(&self.retired);
            retired.push_back((self.epoch.load(Ordering::SeqCst), garbage));
            self.waiting.store(retired.len(), Ordering::SeqCst);
        }
        self.reclaim();
    }

    /// How much waits to be dropped.
    pub(crate) fn retired(&self) -> usize {
        self.waiting.load(Ordering::SeqCst)
    }

    /// Ends epochs as far as possible, and drops what nobody can be inside of any more.
    fn reclaim(&self) {
        let mut garbage = Vec::new();
        {
            let mut retired = lock(&self.retired);
            // What is in there was unlinked before.
            if !sync::is_unordered() {
                fence(Ordering::SeqCst);
            }
            let mut epoch = self.epoch.load(Ordering::SeqCst);
            while retired.back().is_some_and(|(removed, _)| epoch.wrapping_sub(*removed) < 2)
                && (self.inside[epoch.wrapping_add(1) % 2].load(Ordering::SeqCst) == 0 || sync::is_broken())
            {
                epoch = epoch.wrapping_add(1);
                self.epoch.store(epoch, Ordering::SeqCst);
            }
            while retired.front().is_some_and(|(removed, _)| epoch.wrapping_sub(*removed) >= 2) {
                garbage.extend(retired.pop_front());
            }
            self.waiting.store(retired.len(), Ordering::SeqCst);
        }
        // User code may run.
        drop(garbage);
    }
}

/// A thread's stay in a session's code. While it lasts, removed code stays mapped.
#[must_use = "dropped, it no longer holds anything back"]
pub struct ExecutionScope<'a> {
    scopes: &'a ExecutionScopes,
    side: usize,
}

impl Drop for ExecutionScope<'_> {
    fn drop(&mut self) {
        let left = self.scopes.inside[self.side].fetch_sub(1, Ordering::SeqCst) == 1;
        if left && self.scopes.waiting.load(Ordering::SeqCst) > 0 {
            self.scopes.reclaim();
        }
    }
}
