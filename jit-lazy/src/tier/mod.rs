//! Tiers: a body that is quick to compile and counts, then, where it counts much, one that is fast.
//!
//! Calls of the first tier's code come by an [entry](entry::Entry) that counts; its loops count
//! themselves. When the counter has run out, it goes to the [inbox] of a thread of ours, which compiles
//! the function as it was defined and redirects it. A loop that is running stays where it is until its
//! function is called again: there is no replacement on the stack.

mod count;
mod entry;
mod inbox;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use jit_core::cranelift::codegen::ir;
use jit_core::cranelift::codegen::isa::{CallConv, OwnedTargetIsa};
use jit_core::seam::{Crew, FirstTier, FirstTierBody, Promoter, Worker, may_loop, register_crew};
use jit_core::{ClifTransform, Error, InlineSmallFunctions, SymbolName};
use jit_linker::memory::MemoryManager;

use entry::Entries;
use inbox::{Counted, Counter, Inbox};

pub use count::{Counting, count_loops};
pub(crate) use inbox::counted;

/// Makes functions count what they do beside being called.
pub type CountingTransform = Arc<dyn Fn(&mut ir::Function, Counting) -> Result<(), String> + Send + Sync>;

/// When functions go from the first tier to the second: see
/// [`LazyJitBuilder::tiers`](crate::LazyJitBuilder::tiers).
///
/// ```
/// use jit_lazy::{LazyJit, Tiering};
///
/// let jit = LazyJit::builder().tiers(Tiering::default().threshold(100)).build()?;
/// // What is added by `redefine` is compiled without optimization first, and again after 100 calls and rounds of loops.
/// assert_eq!(jit.tier_statistics().promoted, 0);
/// # Ok::<(), jit_core::Error>(())
/// ```
#[derive(Clone)]
#[must_use]
pub struct Tiering {
    threshold: u32,
    /// By default [`count_loops`].
    transform: Option<CountingTransform>,
    inlining: Option<InlineSmallFunctions>,
}

impl Default for Tiering {
    /// After 1000 calls and iterations of loops, with small functions inlined.
    fn default() -> Self {
        let inlining = Some(InlineSmallFunctions::default());
        Self { threshold: 1000, transform: None, inlining }
    }
}

impl Tiering {
    /// Promotes a function after `threshold` calls and iterations of its loops; at least one.
    pub fn threshold(mut self, threshold: u32) -> Self {
        self.threshold = threshold.max(1);
        self
    }

    /// How functions are made to count what they do beside being called, which is counted without them: by default
    /// [`count_loops`].
    pub fn transform(
        mut self,
        transform: impl Fn(&mut ir::Function, Counting) -> Result<(), String> + Send + Sync + 'static,
    ) -> Self {
        self.transform = Some(Arc::new(transform));
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
    /// Functions that were promoted.
    pub promoted: u64,
    /// The last 1000 of them, in this order.
    pub promotions: Vec<Promotion>,
    /// Functions that were hot and stayed at the first tier.
    pub refused: u64,
    /// The last 1000 of them, each with the reason.
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
    /// What the last of them was.
    pub cause: PromotionCause,
    /// How long that took in the background, from its first instruction to the redirection.
    pub took: Duration,
}

/// What made a counter run out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PromotionCause {
    /// A call of the function.
    Call,
    /// An iteration of one of its loops, or what else [`Tiering::transform`] makes it count.
    Loop,
}

/// The first tier of a JIT.
pub(crate) struct Tiers {
    isa: OwnedTargetIsa,
    tiering: Tiering,
    shared: Arc<Shared>,
    inbox: Arc<Inbox>,
    /// From the start on.
    entries: OnceLock<Arc<Entries>>,
    thread: Mutex<Option<Worker>>,
}

#[derive(Default)]
struct Shared {
    promoter: OnceLock<Promoter>,
    first_tier: AtomicU64,
    done: Mutex<Done>,
    /// Rung when a fork is over.
    resumed: Condvar,
}

#[derive(Default)]
struct Done {
    /// A function is being promoted.
    working: bool,
    /// A thread is about to fork: nothing is begun.
    forking: bool,
    promotions: Recent<Promotion>,
    refusals: Recent<(SymbolName, String)>,
}

/// How many there were, and the last of them.
struct Recent<T> {
    total: u64,
    last: VecDeque<T>,
}

impl<T> Default for Recent<T> {
    fn default() -> Self {
        Self { total: 0, last: VecDeque::new() }
    }
}

impl<T> Recent<T> {
    const KEPT: usize = 1000;

    fn push(&mut self, one: T) {
        if self.last.len() == Self::KEPT {
            self.last.pop_front();
        }
        self.last.push_back(one);
        self.total += 1;
    }
}

impl Tiers {
    pub(crate) fn new(isa: OwnedTargetIsa, tiering: Tiering) -> Result<Self, Error> {
        let (shared, inbox) = (Arc::new(Shared::default()), Arc::new(Inbox::default()));
        register_crew(&shared);
        let tiers = Self { isa, tiering, shared, inbox, entries: OnceLock::new(), thread: Mutex::default() };
        let thread = tiers.start_thread().map_err(|error| Error::Thread(Arc::new(error)))?;
        *tiers.thread() = Some(thread);
        Ok(tiers)
    }

    fn start_thread(&self) -> std::io::Result<Worker> {
        let thread = std::thread::Builder::new().name("orcane-tier".to_owned());
        let (shared, inbox) = (Arc::clone(&self.shared), Arc::clone(&self.inbox));
        let thread = thread.spawn(move || shared.run(&inbox))?;
        self.inbox.taken_by(thread.thread().clone());
        Ok(Worker::new(thread))
    }

    fn thread(&self) -> MutexGuard<'_, Option<Worker>> {
        self.thread.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts the thread anew in a fork's child, which does not have it. If that is not to be had, functions stay at the
    /// first tier.
    fn replace_lost(&self) {
        if let Some(thread) = self.thread().as_mut().filter(|thread| thread.is_lost())
            && let Ok(own) = self.start_thread()
        {
            *thread = own;
        }
    }

    pub(crate) fn statistics(&self) -> TierStatistics {
        let first_tier = self.shared.first_tier.load(Ordering::Relaxed);
        let Done { promotions, refusals, .. } = &*self.shared.lock();
        TierStatistics {
            first_tier,
            promoted: promotions.total,
            promotions: promotions.last.iter().cloned().collect(),
            refused: refusals.total,
            refusals: refusals.last.iter().cloned().collect(),
        }
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
    ) -> Result<Box<dyn FirstTierBody>, String> {
        self.replace_lost();
        let threshold = self.tiering.threshold;
        let entries = self.entries.get().ok_or("the first tier was not started")?;
        let entry = entries.take(threshold).map_err(|error| error.to_string())?;
        let counter = Counter::new(entry, threshold, function.clone(), body.clone(), Arc::clone(&self.inbox));
        let counting = Counting {
            counter: counter.counts_at().expose_provenance() as u64,
            report: inbox::report as *const () as u64,
            convention: CallConv::triple_default(self.isa.triple()),
        };
        match &self.tiering.transform {
            Some(transform) => transform(func, counting)?,
            None if may_loop(func) => count_loops(func, counting)?,
            None => {}
        }
        self.shared.first_tier.fetch_add(1, Ordering::Relaxed);
        Ok(Box::new(Counted(counter)))
    }

    fn second_tier(&self) -> Option<Arc<dyn ClifTransform>> {
        Some(Arc::new(self.tiering.inlining?))
    }

    fn start(&self, promoter: Promoter, memory: &Arc<dyn MemoryManager>) -> Result<(), Error> {
        // A second JIT with the same tiers would be refused by the builder's taking them.
        _ = self.entries.set(Entries::new(memory)?);
        _ = self.shared.promoter.set(promoter);
        Ok(())
    }
}

impl Drop for Tiers {
    fn drop(&mut self) {
        self.inbox.close();
        let thread = self.thread().take();
        if let Some(thread) = thread {
            thread.join();
        }
    }
}

impl Crew for Shared {
    type State = Done;

    fn state(&self) -> &Mutex<Done> {
        &self.done
    }

    fn is_quiet(&self, done: &mut Done) -> bool {
        done.forking = true;
        !done.working
    }

    fn waits_for_others(&self) -> bool {
        true
    }

    fn in_parent(&self, done: &mut Done) {
        done.forking = false;
        self.resumed.notify_all();
    }

    fn in_child(&self, done: &mut Done) {
        (done.forking, done.working) = (false, false);
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Done> {
        self.done.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self, inbox: &Inbox) {
        while let Some(hot) = inbox.take() {
            for (counter, cause) in hot {
                if inbox.is_closed() {
                    return;
                }
                self.begin();
                self.promote(&counter, cause);
                drop(counter);
                self.lock().working = false;
            }
            std::thread::park();
        }
    }

    /// Waits until nobody is about to fork.
    fn begin(&self) {
        let mut done = self.lock();
        while done.forking {
            done = self.resumed.wait(done).unwrap_or_else(PoisonError::into_inner);
        }
        done.working = true;
    }

    fn promote(&self, Counter { function, body, threshold, .. }: &Counter, cause: PromotionCause) {
        let _span = tracing::debug_span!("promote", function = function.as_str()).entered();
        let start = Instant::now();
        let promoted = self.promoter.get().map(|promoter| promoter.promote(function, body));
        let (function, took) = (function.clone(), start.elapsed());
        match promoted {
            Some(Ok(true)) => self.lock().promotions.push(Promotion { function, count: *threshold, cause, took }),
            Some(Err(error)) => {
                tracing::debug!(function = function.as_str(), %error, "a hot function stays at the first tier");
                self.lock().refusals.push((function, error.to_string()));
            }
            // A newer body took its place, or it was removed.
            Some(Ok(false)) | None => {}
        }
    }
}
