//! Who runs what the session has to do.

use std::cell::Cell;
use std::collections::VecDeque;
use std::thread::JoinHandle;

use super::ExecutionSession;
use super::arena::Id;
use super::query::Query;
use super::state::Unit;
use super::unit::{MaterializationResponsibility, MaterializationUnit, catching_panics};
use crate::error::Error;
use crate::sync::{Arc, Condvar, Mutex, MutexGuard, lock, wait};

/// A piece of work: a unit to materialize, a lookup to answer, a batch to compile.
#[must_use = "whoever waits for it waits for ever"]
pub struct Task(TaskKind);

pub(crate) enum TaskKind {
    Materialize(ExecutionSession, Box<dyn MaterializationUnit>, Id<Unit>),
    Answer(Query),
    Run(Box<dyn FnOnce() + Send>),
}

impl From<TaskKind> for Task {
    fn from(kind: TaskKind) -> Self {
        Self(kind)
    }
}

impl Task {
    /// Does the work. A panic in it fails what it was for, and goes no further.
    pub fn run(self) {
        catching_panics(|| match self.0 {
            TaskKind::Materialize(session, unit, id) => {
                if let Some(responsibility) = MaterializationResponsibility::new(session, id) {
                    unit.materialize(responsibility);
                }
            }
            TaskKind::Answer(query) => query.answer(),
            TaskKind::Run(work) => work(),
        });
    }
}

/// Decides where and when tasks run.
pub trait TaskDispatcher: Send + Sync {
    /// Takes tasks on. They may run before this returns, but never inside one another.
    fn dispatch(&self, tasks: Vec<Task>);

    /// Returns once `done` holds. Called by a thread that has nothing else to do; if it is one
    /// that runs tasks, another one takes its place.
    fn wait(&self, done: &dyn Fn() -> bool);

    /// Makes those who [`wait`](Self::wait) look again.
    fn wake(&self);
}

/// Tasks that nobody has started.
#[derive(Default)]
struct Queue {
    tasks: VecDeque<Task>,
    /// Threads of a pool, those that wait for something included.
    threads: usize,
    /// Threads of a pool that wait for something.
    blocked: usize,
    /// Threads asleep until there is a task.
    idle: usize,
    /// Threads asleep until what they wait for is there.
    waiting: usize,
    stopping: bool,
}

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    /// Rung for who is idle: there is a task, or another reason to look.
    work: Condvar,
    /// Rung for who waits. Two bells, because a thread that wakes in vain takes a core from one
    /// that compiles.
    done: Condvar,
}

thread_local! {
    /// The dispatcher whose tasks this thread is running, by address.
    static RUNNING: Cell<*const Shared> = const { Cell::new(std::ptr::null()) };
}

impl Shared {
    fn is_running_here(&self) -> bool {
        std::ptr::eq(RUNNING.get(), self)
    }

    /// Runs `work` as a thread that runs this dispatcher's tasks.
    fn as_runner(&self, work: impl FnOnce()) {
        let outer = RUNNING.replace(self);
        work();
        RUNNING.set(outer);
    }

    /// Runs tasks until `done` holds.
    fn help(&self, done: &dyn Fn() -> bool) {
        let mut queue = lock(&self.queue);
        while !done() {
            match queue.tasks.pop_front() {
                Some(task) => {
                    drop(queue);
                    self.as_runner(|| task.run());
                    queue = lock(&self.queue);
                }
                None => queue = self.idle(queue),
            }
        }
    }

    fn push(&self, tasks: Vec<Task>) {
        let count = tasks.len();
        let mut queue = lock(&self.queue);
        queue.tasks.extend(tasks);
        let idle = queue.idle;
        drop(queue);
        for _ in 0..count.min(idle) {
            self.work.notify_one();
        }
    }

    fn idle<'a>(&self, mut queue: MutexGuard<'a, Queue>) -> MutexGuard<'a, Queue> {
        queue.idle += 1;
        queue = wait(&self.work, queue);
        queue.idle -= 1;
        queue
    }

    /// Has everybody look again.
    fn wake(&self) {
        let queue = lock(&self.queue);
        let (idle, waiting) = (queue.idle, queue.waiting);
        drop(queue);
        if idle > 0 {
            self.work.notify_all();
        }
        if waiting > 0 {
            self.done.notify_all();
        }
    }
}

/// Runs each task on the thread that dispatched it, one after the other.
#[derive(Default)]
pub struct InPlaceDispatcher {
    shared: Shared,
}

impl InPlaceDispatcher {
    /// A dispatcher without threads of its own.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }
}

impl TaskDispatcher for InPlaceDispatcher {
    fn dispatch(&self, tasks: Vec<Task>) {
        self.shared.push(tasks);
        if self.shared.is_running_here() {
            // The loop that runs the current task comes to these: no recursion.
            return;
        }
        self.shared.as_runner(|| {
            loop {
                let Some(task) = lock(&self.shared.queue).tasks.pop_front() else { break };
                task.run();
            }
        });
    }

    fn wait(&self, done: &dyn Fn() -> bool) {
        self.shared.help(done);
    }

    fn wake(&self) {
        self.shared.wake();
    }
}

/// Runs tasks on a number of threads. One that has to wait is replaced by a spare one meanwhile.
pub struct ThreadPoolDispatcher {
    shared: Arc<Shared>,
    size: usize,
    threads: Arc<Mutex<Vec<JoinHandle<()>>>>,
}

impl ThreadPoolDispatcher {
    /// A pool of `size` threads; at least one.
    ///
    /// # Errors
    ///
    /// When the system refuses a thread.
    pub fn new(size: usize) -> Result<Self, Error> {
        let size = size.max(1);
        let pool = Self { shared: Arc::default(), size, threads: Arc::default() };
        for _ in 0..size {
            lock(&pool.shared.queue).threads += 1;
            if let Err(error) = pool.spawn() {
                lock(&pool.shared.queue).threads -= 1;
                return Err(Error::Thread(Arc::new(error)));
            }
        }
        Ok(pool)
    }

    /// Starts a thread that is counted already.
    fn spawn(&self) -> std::io::Result<()> {
        let (shared, size) = (Arc::clone(&self.shared), self.size);
        let builder = std::thread::Builder::new().name("orcane-compile".to_owned());
        let handle = builder.spawn(move || run_worker(&shared, size))?;
        lock(&self.threads).push(handle);
        Ok(())
    }
}

fn run_worker(shared: &Shared, size: usize) {
    RUNNING.set(shared);
    let mut queue = lock(&shared.queue);
    loop {
        let surplus = queue.threads - queue.blocked > size;
        if surplus || queue.stopping {
            queue.threads -= 1;
            return;
        }
        match queue.tasks.pop_front() {
            Some(task) => {
                drop(queue);
                task.run();
                queue = lock(&shared.queue);
            }
            None => queue = shared.idle(queue),
        }
    }
}

impl TaskDispatcher for ThreadPoolDispatcher {
    fn dispatch(&self, tasks: Vec<Task>) {
        self.shared.push(tasks);
    }

    fn wait(&self, done: &dyn Fn() -> bool) {
        let worker = self.shared.is_running_here();
        let mut queue = lock(&self.shared.queue);
        if worker && !done() {
            queue.blocked += 1;
            if queue.threads - queue.blocked < self.size {
                queue.threads += 1;
                drop(queue);
                if self.spawn().is_err() {
                    // No spare to be had: this thread runs the tasks itself.
                    let mut queue = lock(&self.shared.queue);
                    queue.threads -= 1;
                    queue.blocked -= 1;
                    drop(queue);
                    self.shared.help(done);
                    return;
                }
                queue = lock(&self.shared.queue);
            }
        }
        let counted = worker && queue.blocked > 0;
        while !done() {
            queue.waiting += 1;
            queue = wait(&self.shared.done, queue);
            queue.waiting -= 1;
        }
        if counted {
            queue.blocked -= 1;
            // A spare that is idle leaves.
            drop(queue);
            self.shared.work.notify_all();
        }
    }

    fn wake(&self) {
        self.shared.wake();
    }
}

impl Drop for ThreadPoolDispatcher {
    fn drop(&mut self) {
        lock(&self.shared.queue).stopping = true;
        self.shared.work.notify_all();
        let here = std::thread::current().id();
        let threads = std::mem::take(&mut *lock(&self.threads));
        // The last task of all may be what drops the session: its thread can't wait for itself.
        for thread in threads.into_iter().filter(|thread| thread.thread().id() != here) {
            // A worker's panics end with their task.
            _ = thread.join();
        }
    }
}
