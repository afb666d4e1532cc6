//! Tiers: a body that is quick to compile and counts, then, where it counts much, one that is fast.
//!
//! The first tier's code calls [`report`] when its counter has run out. A thread of ours compiles
//! the function as it was defined and redirects it. A loop that is running stays where it is until
//! its function is called again: there is no replacement on the stack.

mod count;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use jit_core::cranelift::codegen::ir;
use jit_core::cranelift::codegen::isa::{CallConv, OwnedTargetIsa};
use jit_core::{ClifTransform, Error, FirstTier, InlineSmallFunctions, Promoter, SymbolName};

pub use count::{Counting, count_calls_and_loops};

/// Makes functions count.
pub type CountingTransform = Arc<dyn Fn(&mut ir::Function, Counting) -> Result<(), String> + Send + Sync>;

/// When functions go from the first tier to the second: see
/// [`LazyJitBuilder::tiers`](crate::LazyJitBuilder::tiers).
#[derive(Clone)]
#[must_use]
pub struct Tiering {
    threshold: u32,
    transform: CountingTransform,
    inlining: Option<InlineSmallFunctions>,
}

impl Default for Tiering {
    /// After 1000 calls and iterations of loops, with small functions inlined.
    fn default() -> Self {
        let inlining = Some(InlineSmallFunctions::default());
        Self { threshold: 1000, transform: Arc::new(count_calls_and_loops), inlining }
    }
}

impl Tiering {
    /// Promotes a function after `threshold` calls and iterations of its loops; at least one.
    pub fn threshold(mut self, threshold: u32) -> Self {
        self.threshold = threshold.max(1);
        self
    }

    /// How functions are made to count: by default [`count_calls_and_loops`].
    pub fn transform(
        mut self,
        transform: impl Fn(&mut ir::Function, Counting) -> Result<(), String> + Send + Sync + 'static,
    ) -> Self {
        self.transform = Arc::new(transform);
        self
    }

    /// Which callees become part of a function that is promoted: of its own module's, those that only the module knows.
    /// An exported one is inlined into nobody, because it can be redefined, which its callers have to see.
    pub fn inlining(mut self, inlining: Option<InlineSmallFunctions>) -> Self {
        self.inlining = inlining;
        self
    }
}

/// What became of the functions of a JIT with tiers.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct TierStatistics {
    /// Bodies that were made for the first tier.
    pub first_tier: u64,
    /// Functions that were promoted, in this order.
    pub promotions: Vec<Promotion>,
    /// Functions that were hot and stayed at the first tier, each with the reason.
    pub refusals: Vec<(SymbolName, String)>,
}

/// A function that was promoted because its counter had run out.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Promotion {
    /// Its name.
    pub function: SymbolName,
    /// Calls and iterations after which.
    pub count: u32,
    /// How long that took in the background, from its first instruction to the redirection.
    pub took: Duration,
}

/// The first tier of a JIT.
pub(crate) struct Tiers {
    isa: OwnedTargetIsa,
    tiering: Tiering,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    promoter: OnceLock<Promoter>,
    first_tier: AtomicU64,
    queue: Mutex<Queue>,
    bell: Condvar,
}

#[derive(Default)]
struct Queue {
    hot: VecDeque<HotBody>,
    done: TierStatistics,
    stopping: bool,
}

struct HotBody {
    function: SymbolName,
    body: SymbolName,
    count: u32,
}

/// A function's counter, and what to do when it has run out.
#[repr(C)]
struct Counter {
    /// The first field: its address is the counter's.
    left: AtomicU32,
    count: u32,
    function: SymbolName,
    body: SymbolName,
    shared: Weak<Shared>,
}

/// Called by code of the first tier: does little, and waits for nothing.
///
/// # Safety
///
/// `counter` points to a [`Counter`] that is alive.
unsafe extern "C" fn report(counter: *const Counter) {
    /// Counts until the next try.
    const AGAIN: u32 = 64;
    // SAFETY: as the caller says.
    let counter = unsafe { &*counter };
    let Some(shared) = counter.shared.upgrade() else { return };
    // The thread that is held up may be what this one interrupted.
    let Ok(mut queue) = shared.queue.try_lock() else {
        counter.left.store(AGAIN, Ordering::Relaxed);
        return;
    };
    let (function, body) = (counter.function.clone(), counter.body.clone());
    queue.hot.push_back(HotBody { function, body, count: counter.count });
    drop(queue);
    shared.bell.notify_one();
}

impl Tiers {
    pub(crate) fn new(isa: OwnedTargetIsa, tiering: Tiering) -> Result<Self, Error> {
        let shared = Arc::new(Shared::default());
        let for_thread = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("orcane-tier".to_owned());
        let thread = thread.spawn(move || for_thread.run()).map_err(|error| Error::Thread(Arc::new(error)))?;
        Ok(Self { isa, tiering, shared, thread: Some(thread) })
    }

    pub(crate) fn statistics(&self) -> TierStatistics {
        let first_tier = self.shared.first_tier.load(Ordering::Relaxed);
        TierStatistics { first_tier, ..self.shared.lock().done.clone() }
    }
}

impl FirstTier for Tiers {
    fn isa(&self) -> &OwnedTargetIsa {
        &self.isa
    }

    fn transform(
        &self,
        function: &SymbolName,
        body: &SymbolName,
        func: &mut ir::Function,
    ) -> Result<Box<dyn Send>, String> {
        let count = self.tiering.threshold;
        let counter = Box::new(Counter {
            left: AtomicU32::new(count),
            count,
            function: function.clone(),
            body: body.clone(),
            shared: Arc::downgrade(&self.shared),
        });
        let counting = Counting {
            counter: std::ptr::from_ref(&*counter).expose_provenance() as u64,
            report: report as *const () as u64,
            convention: CallConv::triple_default(self.isa.triple()),
        };
        (self.tiering.transform)(func, counting)?;
        self.shared.first_tier.fetch_add(1, Ordering::Relaxed);
        Ok(counter)
    }

    fn second_tier(&self) -> Option<Arc<dyn ClifTransform>> {
        Some(Arc::new(self.tiering.inlining?))
    }

    fn start(&self, promoter: Promoter) {
        // A second JIT with the same tiers would be refused by the builder's taking them.
        _ = self.shared.promoter.set(promoter);
    }
}

impl Drop for Tiers {
    fn drop(&mut self) {
        self.shared.lock().stopping = true;
        self.shared.bell.notify_all();
        let here = std::thread::current().id();
        if let Some(thread) = self.thread.take().filter(|thread| thread.thread().id() != here) {
            // Its panics end with the function that they were for.
            _ = thread.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self) {
        let mut queue = self.lock();
        while !queue.stopping {
            let Some(HotBody { function, body, count }) = queue.hot.pop_front() else {
                queue = self.bell.wait(queue).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            drop(queue);
            let start = Instant::now();
            let promoted = self.promoter.get().map(|promoter| promoter.promote(&function, &body));
            let took = start.elapsed();
            queue = self.lock();
            match promoted {
                Some(Ok(true)) => queue.done.promotions.push(Promotion { function, count, took }),
                Some(Err(error)) => {
                    tracing::debug!(function = function.as_str(), %error, "a hot function stays at the first tier");
                    queue.done.refusals.push((function, error.to_string()));
                }
                // A newer body took its place, or it was removed.
                Some(Ok(false)) | None => {}
            }
        }
    }
}
