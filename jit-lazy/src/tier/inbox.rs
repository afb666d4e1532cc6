//! The way of a counter that has run out from the code that counts to the thread that promotes.
//!
//! A report may come from any code, a signal handler's too, and is the only one of its function: so it takes no lock,
//! allocates nothing and is never refused. Counters are linked through a field of their own, the last one first.

use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, Ordering, fence};
use std::thread::Thread;

use jit_core::SymbolName;
use jit_core::seam::FirstTierBody;

use super::PromotionCause;
use super::entry::{self, Entry};

/// A function's counter, and what to do when it has run out.
pub(super) struct Counter {
    entry: Entry,
    pub(super) threshold: u32,
    pub(super) function: SymbolName,
    pub(super) body: SymbolName,
    inbox: Arc<Inbox>,
    /// In the inbox, or about to be.
    sent: AtomicBool,
    /// Whether it is a loop that has sent it, and not a call.
    sent_by_loop: AtomicBool,
    next: AtomicPtr<Counter>,
}

impl Counter {
    pub(super) fn new(
        entry: Entry,
        threshold: u32,
        function: SymbolName,
        body: SymbolName,
        inbox: Arc<Inbox>,
    ) -> Arc<Self> {
        let (sent, sent_by_loop, next) = (AtomicBool::new(false), AtomicBool::new(false), AtomicPtr::default());
        let counter = Arc::new(Self { entry, threshold, function, body, inbox, sent, sent_by_loop, next });
        counter.entry.tell(IS_COUNTER | Arc::as_ptr(&counter).expose_provenance() as u64);
        counter
    }

    /// What code counts in.
    pub(super) fn counts_at(&self) -> *const AtomicU32 {
        self.entry.counter()
    }
}

/// The body that a counter counts the calls of.
pub(super) struct Counted(pub(super) Arc<Counter>);

impl FirstTierBody for Counted {
    fn entry(&self, code: u64) -> u64 {
        self.0.entry.lead_to(code)
    }
}

/// Tells a counter's address from the index of a trampoline, as that is pushed: of that, this bit and the next are the
/// same.
const IS_COUNTER: u64 = 1 << 62;

/// The counter that the re-entry routine was told of, counted once more.
///
/// # Safety
///
/// If it is one, it is alive.
unsafe fn counter_of(told: u64) -> Option<Arc<Counter>> {
    let counter = (told >> 62 == 1).then(|| ptr::with_exposed_provenance((told & !IS_COUNTER) as usize))?;
    // SAFETY: that is the pointer of an `Arc`, as `Counter::new` wrote it, and alive as the caller says.
    unsafe {
        Arc::increment_strong_count(counter);
        Some(Arc::from_raw(counter))
    }
}

/// Where a call goes on whose counter has run out; `None` if it is not from an entry that counts.
///
/// # Safety
///
/// The re-entry routine was told this by a trampoline, or by an entry whose function is alive.
pub(crate) unsafe fn counted(told: u64) -> Option<u64> {
    // SAFETY: as the caller says.
    let counter = unsafe { counter_of(told) }?;
    let target = counter.entry.target();
    Arc::clone(&counter.inbox).put(counter, PromotionCause::Call);
    Some(target)
}

/// Called by code of the first tier when its counter has run out.
///
/// # Safety
///
/// `counter` is a [`Counter::counts_at`] of a counter that is alive.
pub(super) unsafe extern "C" fn report(counter: *const AtomicU32) {
    // SAFETY: as the caller says.
    if let Some(counter) = unsafe { counter_of(entry::told_at(counter)) } {
        Arc::clone(&counter.inbox).put(counter, PromotionCause::Loop);
    }
}

/// Counters that have run out.
#[derive(Default)]
pub(super) struct Inbox {
    /// The last one that came, which owns a count of itself; null, or [`closed`].
    newest: AtomicPtr<Counter>,
    /// Who takes them: null, or a box. One that another took the place of, in a fork's child, is left where it is: a
    /// report may be looking at it.
    taker: AtomicPtr<Thread>,
}

impl Drop for Inbox {
    fn drop(&mut self) {
        let taker = *self.taker.get_mut();
        if !taker.is_null() {
            // SAFETY: `taken_by` made it from a box, and nobody else has the inbox any more.
            drop(unsafe { Box::from_raw(taker) });
        }
    }
}

/// What stands in place of the newest where none is taken any more.
fn closed() -> *mut Counter {
    ptr::without_provenance_mut(align_of::<Counter>())
}

impl Inbox {
    /// Says which thread sleeps until something comes.
    pub(super) fn taken_by(&self, thread: Thread) {
        self.taker.store(Box::into_raw(Box::new(thread)), Ordering::Release);
        // Whoever does not see it has put its counter in before this thread looks.
        fence(Ordering::SeqCst);
        self.wake();
    }

    fn wake(&self) {
        // SAFETY: what stands there is null, or a box that is there as long as the inbox.
        if let Some(thread) = unsafe { self.taker.load(Ordering::Acquire).as_ref() } {
            thread.unpark();
        }
    }

    fn put(&self, counter: Arc<Counter>, cause: PromotionCause) {
        // A counter that wraps around before it was taken.
        if counter.sent.swap(true, Ordering::Acquire) {
            return;
        }
        counter.sent_by_loop.store(cause == PromotionCause::Loop, Ordering::Relaxed);
        let counter = Arc::into_raw(counter);
        let link = |newest: *mut Counter| {
            // SAFETY: this call owns a count of it until it is in the list.
            let next = unsafe { &(*counter).next };
            next.store(newest, Ordering::Relaxed);
            (newest != closed()).then_some(counter.cast_mut())
        };
        if self.newest.fetch_update(Ordering::Release, Ordering::Relaxed, link).is_err() {
            // SAFETY: the count that was given to this call, and that no list has taken.
            drop(unsafe { Arc::from_raw(counter) });
        } else {
            fence(Ordering::SeqCst);
            self.wake();
        }
    }

    /// What has come since the last call, in this order; nothing once it is closed.
    pub(super) fn take(&self) -> Option<Vec<(Arc<Counter>, PromotionCause)>> {
        let taken = self.newest.fetch_update(Ordering::Acquire, Ordering::Acquire, |newest| {
            (newest != closed()).then_some(ptr::null_mut())
        });
        taken.ok().map(unlink)
    }

    /// From here on, nothing is taken.
    pub(super) fn close(&self) {
        let last = self.newest.swap(closed(), Ordering::Acquire);
        if last != closed() {
            drop(unlink(last));
        }
        self.wake();
    }

    pub(super) fn is_closed(&self) -> bool {
        self.newest.load(Ordering::Relaxed) == closed()
    }
}

/// The counters of a list that was taken whole, the oldest first.
fn unlink(mut newest: *mut Counter) -> Vec<(Arc<Counter>, PromotionCause)> {
    let mut counters = Vec::new();
    while !newest.is_null() {
        // SAFETY: the list owned a count of it, and was taken by this thread alone.
        let counter = unsafe { Arc::from_raw(newest) };
        newest = counter.next.load(Ordering::Relaxed);
        let by_loop = counter.sent_by_loop.load(Ordering::Relaxed);
        counter.sent.store(false, Ordering::Release);
        counters.push((counter, if by_loop { PromotionCause::Loop } else { PromotionCause::Call }));
    }
    counters.reverse();
    counters
}

#[cfg(test)]
mod tests {
    use super::*;
    use jit_core::SymbolStringPool;
    use jit_linker::memory::{MemoryManager, PageManager};

    use super::super::entry::Entries;

    fn counter(inbox: &Arc<Inbox>, name: &str) -> Arc<Counter> {
        let pool = SymbolStringPool::new();
        let memory: Arc<dyn MemoryManager> = Arc::new(PageManager::new());
        let entry = Entries::new(&memory).unwrap().take(1).unwrap();
        Counter::new(entry, 1, pool.intern(name), pool.intern("body"), Arc::clone(inbox))
    }

    fn functions(taken: &[(Arc<Counter>, PromotionCause)]) -> Vec<&str> {
        taken.iter().map(|(counter, _)| counter.function.as_str()).collect()
    }

    fn send(counter: &Arc<Counter>) {
        // SAFETY: it is alive.
        unsafe { report(counter.counts_at()) }
    }

    #[test]
    fn counters_come_in_order_and_each_once_until_it_is_taken() {
        let inbox = Arc::new(Inbox::default());
        let (one, two) = (counter(&inbox, "one"), counter(&inbox, "two"));
        [&one, &two, &one].into_iter().for_each(send);
        assert_eq!(functions(&inbox.take().unwrap()), ["one", "two"]);
        assert!(inbox.take().unwrap().is_empty());
        send(&one);
        assert_eq!(functions(&inbox.take().unwrap()), ["one"]);
        assert_eq!(Arc::strong_count(&one), 1);
    }

    #[test]
    fn what_comes_before_or_after_the_end_is_given_back() {
        let inbox = Arc::new(Inbox::default());
        let one = counter(&inbox, "one");
        send(&one);
        assert_eq!(Arc::strong_count(&one), 2);
        inbox.close();
        inbox.close();
        send(&one);
        assert!(inbox.take().is_none() && inbox.is_closed());
        assert_eq!(Arc::strong_count(&one), 1);
    }

    #[test]
    fn no_report_of_many_threads_is_lost() {
        let inbox = Arc::new(Inbox::default());
        let counters: Vec<_> = (0..4).map(|_| (0..500).map(|_| counter(&inbox, "f")).collect::<Vec<_>>()).collect();
        let mut taken = 0;
        std::thread::scope(|scope| {
            for part in &counters {
                scope.spawn(|| part.iter().for_each(send));
            }
            inbox.taken_by(std::thread::current());
            while taken < 2000 {
                taken += inbox.take().unwrap().len();
                std::thread::yield_now();
            }
        });
        assert_eq!(taken, 2000);
    }
}
