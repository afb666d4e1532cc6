//! Compiling ahead: what a function that is being compiled is likely to call.
//!
//! Done by threads of its own, one function at a time, begun only while no first call waits, and after what is
//! waited for in the dispatcher's queue: a call that is blocked is delayed by what is being compiled at most.

use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use jit_core::seam::{Crew, Worker, register_crew};
use jit_core::{LazyBody, SymbolName};

/// Functions that are likely to be called, and threads that compile them.
pub(crate) struct Ahead {
    shared: Arc<Shared>,
    threads: Mutex<Vec<Worker>>,
}

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    bell: Condvar,
}

#[derive(Default)]
struct Queue {
    likely: VecDeque<LikelyCallee>,
    /// What is in the queue, and no more: functions come and go.
    queued: HashSet<SymbolName>,
    /// First calls that are being waited for.
    blocked: usize,
    /// Threads that are at work.
    working: usize,
    /// A thread is about to fork: nothing is begun.
    forking: bool,
    stopping: bool,
}

struct LikelyCallee {
    body: LazyBody,
    /// Calls between it and the function that was called.
    distance: u32,
}

/// A first call that is being waited for.
pub(crate) struct Waiting<'a> {
    shared: &'a Shared,
}

impl Ahead {
    /// How far ahead is looked: callees of callees, and no further.
    const DISTANCE: u32 = 2;

    pub(crate) fn new(threads: usize) -> std::io::Result<Self> {
        let ahead = Self { shared: Arc::default(), threads: Mutex::default() };
        register_crew(&ahead.shared);
        for _ in 0..threads {
            let worker = ahead.start()?;
            ahead.threads().push(worker);
        }
        Ok(ahead)
    }

    fn start(&self) -> std::io::Result<Worker> {
        let shared = Arc::clone(&self.shared);
        let thread = std::thread::Builder::new().name("orcane-ahead".to_owned());
        Ok(Worker::new(thread.spawn(move || shared.run())?))
    }

    fn threads(&self) -> MutexGuard<'_, Vec<Worker>> {
        self.threads.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts threads in place of those that a fork's child does not have, if this is one. Those that are not to be had
    /// are not waited for by anybody.
    fn replace_lost(&self) {
        for thread in self.threads().iter_mut().filter(|thread| thread.is_lost()) {
            if let Ok(own) = self.start() {
                *thread = own;
            }
        }
    }

    /// Takes what `body` calls for likely to be called. To be told before it is compiled; as long
    /// as what this gives lives, nothing is begun ahead.
    pub(crate) fn look_at(&self, body: &LazyBody) -> Waiting<'_> {
        self.replace_lost();
        let callees = body.callees();
        let mut queue = self.shared.lock();
        queue.blocked += 1;
        queue.add(callees, 1);
        Waiting { shared: &self.shared }
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        let mut queue = self.shared.lock();
        queue.stopping = true;
        let likely = std::mem::take(&mut queue.likely);
        drop(queue);
        drop(likely);
        self.shared.bell.notify_all();
        // One of them may be what drops the last function: it does not wait for itself.
        let threads = std::mem::take(&mut *self.threads());
        threads.into_iter().for_each(Worker::join);
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        // A fork's child does not count those of its parent.
        let mut queue = self.shared.lock();
        queue.blocked = queue.blocked.saturating_sub(1);
        drop(queue);
        self.shared.bell.notify_all();
    }
}

impl Queue {
    fn add(&mut self, callees: Vec<LazyBody>, distance: u32) {
        for body in callees {
            if self.queued.insert(body.function().clone()) {
                self.likely.push_back(LikelyCallee { body, distance });
            }
        }
    }
}

impl Crew for Shared {
    type State = Queue;

    fn state(&self) -> &Mutex<Queue> {
        &self.queue
    }

    fn is_quiet(&self, queue: &mut Queue) -> bool {
        queue.forking = true;
        queue.working == 0
    }

    fn waits_for_others(&self) -> bool {
        true
    }

    fn in_parent(&self, queue: &mut Queue) {
        queue.forking = false;
        self.bell.notify_all();
    }

    fn in_child(&self, queue: &mut Queue) {
        (queue.forking, queue.working, queue.blocked) = (false, 0, 0);
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self) {
        let mut queue = self.lock();
        while !queue.stopping {
            let next = if queue.blocked == 0 && !queue.forking { queue.likely.pop_front() } else { None };
            let Some(LikelyCallee { body, distance }) = next else {
                queue = self.bell.wait(queue).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            queue.queued.remove(body.function());
            queue.working += 1;
            drop(queue);
            // What is there was followed when it was compiled.
            if body.ready().is_some() {
                drop(body);
                queue = self.lock();
                queue.working -= 1;
                continue;
            }
            let span = tracing::debug_span!("ahead", function = body.function().as_str(), distance).entered();
            let callees = if distance < Ahead::DISTANCE { body.callees() } else { Vec::new() };
            // Why it fails is told to whoever calls it.
            _ = body.resolve_ahead();
            drop(span);
            drop(body);
            queue = self.lock();
            queue.working -= 1;
            queue.add(callees, distance + 1);
            // There may be enough for the others.
            self.bell.notify_all();
        }
    }
}
