//! Compiling ahead: what a function that is being compiled is likely to call.
//!
//! Done by threads of its own, one function at a time, begun only while no first call waits, and after what is
//! waited for in the dispatcher's queue: a call that is blocked is delayed by what is being compiled at most.

use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use jit_core::{LazyBody, SymbolName};

/// Functions that are likely to be called, and threads that compile them.
pub(crate) struct Ahead {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
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
        let shared = Arc::new(Shared::default());
        let mut ahead = Self { shared, threads: Vec::new() };
        for _ in 0..threads {
            let shared = Arc::clone(&ahead.shared);
            let thread = std::thread::Builder::new().name("orcane-ahead".to_owned());
            ahead.threads.push(thread.spawn(move || shared.run())?);
        }
        Ok(ahead)
    }

    /// Takes what `body` calls for likely to be called. To be told before it is compiled; as long
    /// as what this gives lives, nothing is begun ahead.
    pub(crate) fn look_at(&self, body: &LazyBody) -> Waiting<'_> {
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
        let here = std::thread::current().id();
        // One of them may be what drops the last function: it can't wait for itself.
        for thread in self.threads.drain(..).filter(|thread| thread.thread().id() != here) {
            // A panic ends with the function that it was for.
            _ = thread.join();
        }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.shared.lock().blocked -= 1;
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

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self) {
        let mut queue = self.lock();
        while !queue.stopping {
            let next = if queue.blocked == 0 { queue.likely.pop_front() } else { None };
            let Some(LikelyCallee { body, distance }) = next else {
                queue = self.bell.wait(queue).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            queue.queued.remove(body.function());
            drop(queue);
            // What is there was followed when it was compiled.
            if body.ready().is_some() {
                drop(body);
                queue = self.lock();
                continue;
            }
            let span = tracing::debug_span!("ahead", function = body.function().as_str(), distance).entered();
            let callees = if distance < Ahead::DISTANCE { body.callees() } else { Vec::new() };
            // Why it fails is told to whoever calls it.
            _ = body.resolve_ahead();
            drop(span);
            drop(body);
            queue = self.lock();
            queue.add(callees, distance + 1);
            // There may be enough for the others.
            self.bell.notify_all();
        }
    }
}
