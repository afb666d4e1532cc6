//! What a thread is in the middle of, for another one that does a part of that.

use super::dispatch::{self, Running};
use super::search;

/// What a thread is doing for sessions: the unit that it materializes, the dispatchers whose tasks it runs, the
/// generators that it asks.
///
/// A session knows by it that a wait could only end after itself, which is refused, and that a thread that
/// waits has to be replaced meanwhile. Who has another thread do a part of its work hands it on.
///
/// ```
/// use jit_core::seam::ThreadContext;
///
/// let context = ThreadContext::current();
/// let done = std::thread::scope(|scope| scope.spawn(|| context.enter(|| "a part of what this thread does")).join());
/// assert!(done.is_ok());
/// ```
#[derive(Clone, Debug)]
pub struct ThreadContext {
    running: Running,
    inside: Vec<usize>,
}

impl ThreadContext {
    /// The calling thread's.
    #[must_use]
    pub fn current() -> Self {
        Self { running: dispatch::running(), inside: search::inside() }
    }

    /// Does `work` as a part of what the thread does whose context this is, and which has to wait until then.
    pub fn enter<R>(&self, work: impl FnOnce() -> R) -> R {
        struct Restore(ThreadContext);
        impl Drop for Restore {
            fn drop(&mut self) {
                self.0.clone().install();
            }
        }
        let _restore = Restore(Self::current());
        self.clone().install();
        work()
    }

    fn install(self) {
        dispatch::set_running(self.running);
        search::set_inside(self.inside);
    }
}
