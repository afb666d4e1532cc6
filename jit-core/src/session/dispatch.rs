//! Who runs what the session has to do.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::time::Instant;

use super::ExecutionSession;
use super::arena::Id;
use super::query::Query;
use super::search::{self, Search};
use super::state::{Effects, Parts, Unit};
use super::unit::{MaterializationResponsibility, catching_panics};
use crate::error::{Cause, Error};
use crate::sync::fork::{self, Crew, Worker};
use crate::sync::thread::{self, ThreadId};
use crate::sync::{self, Arc, AtomicBool, Condvar, Mutex, MutexGuard, Ordering, lock, wait};

/// How soon a task should run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Priority {
    /// Nobody waits for it yet.
    #[default]
    Ahead,
    /// A thread waits for it.
    Awaited,
}

/// A piece of work: a unit to materialize, a lookup to answer, a batch to compile.
///
/// Dropped, it fails what it was for.
#[must_use = "dropped, it fails what it was for"]
pub struct Task {
    kind: Option<TaskKind>,
    priority: Priority,
    /// The thread that had better run it, since it began what this goes on with: what it frees then, it has allocated.
    /// Where one thread frees and reuses what another has allocated, they wait for each other's heaps.
    begun_by: Option<ThreadId>,
    /// How often others were run before it for that.
    passed_over: u8,
}

pub(crate) enum TaskKind {
    Materialize(ExecutionSession, Id<Unit>),
    Answer(Query),
    Search(Box<Search>),
    Run(Box<dyn FnOnce() + Send>),
    /// Has parts made that wait to be made together.
    #[cfg_attr(not(feature = "cranelift"), expect(dead_code, reason = "modules are what has parts"))]
    Batch(ExecutionSession, Arc<dyn Parts>),
}

impl TaskKind {
    pub(crate) fn with_priority(self, priority: Priority) -> Task {
        let begun_by = if let Self::Answer(query) = &self { query.control.runner } else { None };
        Task { kind: Some(self), priority, begun_by, passed_over: 0 }
    }

    /// The unit whose code it runs, and its session, by address: of a lookup, what is done with the answer is that of the
    /// unit that has asked.
    fn unit(&self) -> Option<(usize, Id<Unit>)> {
        match self {
            Self::Materialize(session, unit) => Some((session.address(), *unit)),
            Self::Answer(query) => query.control.home(),
            Self::Search(search) => search.home(),
            Self::Run(_) | Self::Batch(..) => None,
        }
    }
}

sync::thread_local! {
    /// The priority of the task that this thread runs.
    static PRIORITY: Cell<Priority> = const { Cell::new(Priority::Ahead) };
    /// The unit that this thread materializes, and its session, by address.
    static CURRENT: Cell<Option<(usize, Id<Unit>)>> = const { Cell::new(None) };
}

/// The priority of what this thread asks for: that of what it runs.
pub(crate) fn current_priority() -> Priority {
    PRIORITY.with(Cell::get)
}

/// The unit that this thread runs for `session`.
pub(crate) fn current_unit(session: &ExecutionSession) -> Option<Id<Unit>> {
    let (address, unit) = CURRENT.with(Cell::get)?;
    (address == session.address()).then_some(unit)
}

/// This thread, if it runs tasks.
pub(crate) fn runner() -> Option<ThreadId> {
    let runs = RUNNING.with(|running| !running.borrow().is_empty());
    runs.then(|| thread::current().id())
}

impl ExecutionSession {
    pub(super) fn address(&self) -> usize {
        Arc::as_ptr(&self.shared) as usize
    }
}

/// What a thread runs.
#[derive(Clone, Debug)]
pub(super) struct Running {
    priority: Priority,
    unit: Option<(usize, Id<Unit>)>,
    dispatchers: Vec<usize>,
}

/// What this thread runs.
pub(super) fn running() -> Running {
    Running {
        priority: current_priority(),
        unit: CURRENT.with(Cell::get),
        dispatchers: RUNNING.with(|running| running.borrow().clone()),
    }
}

/// Takes this thread for one that runs `running`.
pub(super) fn set_running(running: Running) {
    PRIORITY.with(|priority| priority.set(running.priority));
    CURRENT.with(|current| current.set(running.unit));
    RUNNING.with(|dispatchers| dispatchers.replace(running.dispatchers));
}

/// Runs a unit's code on this thread.
pub(crate) fn as_unit(session: &ExecutionSession, unit: Id<Unit>, work: impl FnOnce()) {
    struct Restore(Option<(usize, Id<Unit>)>);
    impl Drop for Restore {
        fn drop(&mut self) {
            CURRENT.with(|current| current.set(self.0));
        }
    }
    let _restore = Restore(CURRENT.with(|current| current.replace(Some((session.address(), unit)))));
    work();
}

impl Task {
    /// A task of a user's own.
    pub fn new(priority: Priority, work: impl FnOnce() + Send + 'static) -> Self {
        TaskKind::Run(Box::new(work)).with_priority(priority)
    }

    /// How soon it should run.
    #[must_use]
    pub fn priority(&self) -> Priority {
        self.priority
    }

    /// Does the work. A panic in it fails what it was for, and goes no further.
    pub fn run(mut self) {
        let Some(kind) = self.kind.take() else { return };
        let priority = self.priority;
        let outer = PRIORITY.with(|current| current.replace(priority));
        // The rest of what a lookup is for is inside of what it was started in; a unit is inside of nothing.
        let inside = match &kind {
            TaskKind::Answer(query) => query.control.inside.clone(),
            _ => Vec::new(),
        };
        let outer_inside = search::set_inside(inside);
        let outer_unit = CURRENT.with(|current| current.replace(kind.unit()));
        catching_panics(|| match kind {
            TaskKind::Materialize(session, id) => {
                let begun = session.state().begin(id, priority);
                if let Some((name, unit)) = begun {
                    let _span = tracing::debug_span!("materialize", unit = &*name).entered();
                    unit.materialize(MaterializationResponsibility::new(session, id, name));
                }
            }
            TaskKind::Answer(query) => query.answer(),
            TaskKind::Search(search) => search.go_on(),
            TaskKind::Run(work) => work(),
            TaskKind::Batch(session, parts) => parts.make_waiting(&session),
        });
        CURRENT.with(|current| current.set(outer_unit));
        search::set_inside(outer_inside);
        PRIORITY.with(|current| current.set(outer));
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        let Some(kind) = self.kind.take() else { return };
        catching_panics(|| match kind {
            TaskKind::Materialize(session, id) => {
                let mut effects = Effects::default();
                let mut state = session.state();
                let unit = state.units.get(id).map(|unit| unit.name.to_string()).unwrap_or_default();
                state.lose(id, &Arc::new(Cause::Abandoned { unit }), &mut effects);
                drop(state);
                session.perform(effects);
            }
            TaskKind::Answer(query) => query.answer(),
            TaskKind::Search(search) => search.abandon(),
            TaskKind::Run(work) => drop(work),
            TaskKind::Batch(..) => {}
        });
    }
}

/// Decides where and when tasks run.
///
/// ```
/// use std::sync::Arc;
/// use std::sync::atomic::{AtomicUsize, Ordering};
/// use std::time::Instant;
///
/// use jit_core::{Jit, Task, TaskDispatcher, ThreadPoolDispatcher};
///
/// /// A pool that counts what it is given.
/// struct Counting {
///     pool: ThreadPoolDispatcher,
///     tasks: Arc<AtomicUsize>,
/// }
///
/// impl TaskDispatcher for Counting {
///     fn dispatch(&self, tasks: Vec<Task>) {
///         self.tasks.fetch_add(tasks.len(), Ordering::Relaxed);
///         self.pool.dispatch(tasks);
///     }
///
///     fn wait(&self, done: &dyn Fn() -> bool, deadline: Option<Instant>) {
///         self.pool.wait(done, deadline);
///     }
///
///     fn wake(&self) {
///         self.pool.wake();
///     }
///
///     fn concurrency(&self) -> usize {
///         self.pool.concurrency()
///     }
/// }
///
/// let tasks = Arc::new(AtomicUsize::new(0));
/// let dispatcher = Counting { pool: ThreadPoolDispatcher::new(2)?, tasks: Arc::clone(&tasks) };
/// let jit = Jit::builder().dispatcher(Box::new(dispatcher)).build()?;
/// jit.define_closure("double", |n: i64| 2 * n)?;
/// jit.lookup_address("double")?;
/// assert!(tasks.load(Ordering::Relaxed) > 0);
/// # Ok::<(), jit_core::Error>(())
/// ```
pub trait TaskDispatcher: Send + Sync {
    /// Takes tasks on. They may run before this returns, but never inside one another, except
    /// that a task that [`wait`](Self::wait)s may see others run meanwhile.
    fn dispatch(&self, tasks: Vec<Task>);

    /// Returns once `done` holds, or `deadline` is over. Called by a thread that has nothing else
    /// to do; if it is one that runs tasks, another one has to take its place.
    fn wait(&self, done: &dyn Fn() -> bool, deadline: Option<Instant>);

    /// Makes those who [`wait`](Self::wait) look again.
    fn wake(&self);

    /// How many tasks run at a time: what to have ready for it, so that it is busy.
    fn concurrency(&self) -> usize {
        1
    }
}

/// Tasks that nobody has started.
#[derive(Default)]
struct Queue {
    awaited: VecDeque<Task>,
    ahead: VecDeque<Task>,
    /// How many threads of a pool are to be at work at a time.
    size: usize,
    /// Threads of a pool, those that wait for something included.
    threads: usize,
    /// Threads of a pool that wait for something.
    blocked: usize,
    /// Threads asleep until there is a task.
    idle: usize,
    /// Threads asleep until what they wait for is there.
    waiting: usize,
    /// Tasks that run on threads which look for more afterwards.
    running: usize,
    /// A thread is about to fork: only what is waited for is begun.
    forking: bool,
    stopping: bool,
}

impl Queue {
    fn push(&mut self, tasks: Vec<Task>) {
        for task in tasks {
            match task.priority {
                Priority::Awaited => self.awaited.push_back(task),
                Priority::Ahead => self.ahead.push_back(task),
            }
        }
    }

    fn pop(&mut self) -> Option<Task> {
        // A thread that is blocked may wait for any of them.
        let only_awaited = self.forking && self.blocked == 0;
        let is_others = |task: &Task| task.begun_by.is_some_and(|begun_by| begun_by != thread::current().id());
        let Self { awaited, ahead, .. } = self;
        take(awaited, is_others).or_else(|| if only_awaited { None } else { take(ahead, is_others) })
    }

    /// Threads of a pool that wait for nothing but tasks.
    fn free(&self) -> usize {
        self.threads - self.blocked
    }

    /// Whether a pool is to start another thread: there are tasks that no thread which is there is about to begin.
    fn is_short(&self) -> bool {
        let begins = !self.forking && !self.stopping;
        begins && self.free() < self.size && self.awaited.len() + self.ahead.len() > self.idle
    }
}

/// How many of the first tasks one is sought among.
const SOUGHT: usize = 8;

/// How often one is passed over: for the units of a few batches, which are asked for one by one while the thread that began
/// it compiles one batch.
const PATIENCE: u8 = 100;

/// The first task that no other thread had better run. The first of all, if there is none near, or if it was passed over
/// often enough: that thread may be about something long.
fn take(tasks: &mut VecDeque<Task>, is_others: impl Fn(&Task) -> bool) -> Option<Task> {
    let first = tasks.front()?;
    if !is_others(first) || first.passed_over == PATIENCE {
        return tasks.pop_front();
    }
    let place = tasks.iter().take(SOUGHT).position(|task| !is_others(task)).unwrap_or(0);
    tasks.range_mut(..place).for_each(|task| task.passed_over += 1);
    tasks.remove(place)
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

sync::thread_local! {
    /// The dispatchers whose tasks this thread is running, by address.
    static RUNNING: RefCell<Vec<usize>> = const { RefCell::new(Vec::new()) };
}

impl Shared {
    fn address(&self) -> usize {
        std::ptr::from_ref(self) as usize
    }

    fn is_running_here(&self) -> bool {
        self.runs_here() > 0
    }

    /// How many of the tasks that run do so on this thread, one inside the other.
    fn runs_here(&self) -> usize {
        RUNNING.with(|running| running.borrow().iter().filter(|address| **address == self.address()).count())
    }

    /// Runs `work` as a thread that runs this dispatcher's tasks.
    fn as_runner(&self, work: impl FnOnce()) {
        RUNNING.with(|running| running.borrow_mut().push(self.address()));
        // No panic leaves a task.
        work();
        RUNNING.with(|running| running.borrow_mut().pop());
    }

    /// Runs a task, and tasks that it dispatches wait for whoever runs more.
    fn run<'a>(&'a self, mut queue: MutexGuard<'a, Queue>, task: Task) -> MutexGuard<'a, Queue> {
        queue.running += 1;
        drop(queue);
        self.as_runner(|| task.run());
        queue = lock(&self.queue);
        queue.running -= 1;
        queue
    }

    /// Runs tasks until there are none.
    fn run_all(&self) {
        let mut queue = lock(&self.queue);
        while let Some(task) = queue.pop() {
            queue = self.run(queue, task);
        }
    }

    /// Runs tasks until `done` holds.
    fn help(&self, done: &dyn Fn() -> bool, deadline: Option<Instant>) {
        let mut queue = lock(&self.queue);
        while !done() {
            match queue.pop() {
                Some(task) => queue = self.run(queue, task),
                None => match self.idle(queue, deadline) {
                    (guard, false) => queue = guard,
                    (_, true) => return,
                },
            }
        }
        // Tasks that it has run may have left others, and whoever dispatched some in the meantime may have relied on it.
        let is_left_to_others = queue.running > 0 || self.is_running_here();
        let idle = queue.idle;
        drop(queue);
        if idle > 0 {
            self.work.notify_one();
        } else if !is_left_to_others {
            self.run_all();
        }
    }

    fn sleep(&self, done: &dyn Fn() -> bool, deadline: Option<Instant>) {
        let mut queue = lock(&self.queue);
        while !done() {
            queue.waiting += 1;
            let over;
            (queue, over) = wait(&self.done, queue, deadline);
            queue.waiting -= 1;
            if over {
                return;
            }
        }
    }

    /// Whether a pool's threads are too few for what is to be done.
    fn push(&self, tasks: Vec<Task>) -> bool {
        let count = tasks.len();
        let mut queue = lock(&self.queue);
        queue.push(tasks);
        let (idle, is_short) = (queue.idle, queue.is_short());
        drop(queue);
        for _ in 0..count.min(idle) {
            self.work.notify_one();
        }
        is_short
    }

    fn idle<'a>(&self, mut queue: MutexGuard<'a, Queue>, deadline: Option<Instant>) -> (MutexGuard<'a, Queue>, bool) {
        queue.idle += 1;
        let over;
        (queue, over) = wait(&self.work, queue, deadline);
        queue.idle -= 1;
        (queue, over)
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

impl Crew for Shared {
    type State = Queue;

    fn state(&self) -> &Mutex<Queue> {
        &self.queue
    }

    fn is_quiet(&self, queue: &mut Queue) -> bool {
        queue.forking = true;
        queue.running <= self.runs_here()
    }

    fn in_parent(&self, queue: &mut Queue) {
        queue.forking = false;
        self.work.notify_all();
    }

    /// Whoever slept or ran a task did so in the parent.
    fn in_child(&self, queue: &mut Queue) {
        let running = self.runs_here();
        *queue = Queue {
            awaited: std::mem::take(&mut queue.awaited),
            ahead: std::mem::take(&mut queue.ahead),
            size: queue.size,
            threads: running.min(queue.threads).min(1),
            running,
            stopping: queue.stopping,
            ..Queue::default()
        };
    }
}

/// Runs each task on the thread that dispatched it, one after the other. Only when a task waits
/// for another one does a second thread run that.
#[derive(Default)]
pub struct InPlaceDispatcher {
    shared: Arc<Shared>,
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
        self.shared.run_all();
    }

    fn wait(&self, done: &dyn Fn() -> bool, deadline: Option<Instant>) {
        if !self.shared.is_running_here() {
            return self.shared.help(done, deadline);
        }
        if done() {
            return;
        }
        // Run on this stack, a task that waits for this one would never let it go on.
        let over = Arc::new(AtomicBool::new(false));
        let (shared, stop) = (Arc::clone(&self.shared), Arc::clone(&over));
        let spare = thread::Builder::new()
            .name("orcane-spare".to_owned())
            .spawn(move || shared.help(&|| stop.load(Ordering::Acquire), None));
        if spare.is_err() {
            return self.shared.help(done, deadline);
        }
        self.shared.sleep(done, deadline);
        over.store(true, Ordering::Release);
        self.shared.wake();
    }

    fn wake(&self) {
        self.shared.wake();
    }
}

/// Runs tasks on a number of threads. One that has to wait is replaced by a spare one meanwhile.
/// What somebody waits for comes first.
///
/// All threads but the first are started when there are tasks for them.
///
/// A process may fork. That waits until its threads have done what they are at, two seconds at most, because the child has
/// none of them; it starts its own when it has a task for them. Tasks that nobody has begun are both processes'. What is
/// being done after two seconds, or by other threads of the program, is never done in the child, and what such a thread has
/// locked stays locked there.
///
/// ```
/// use std::sync::mpsc::channel;
///
/// use jit_core::{Jit, SymbolState, ThreadPoolDispatcher};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// // As `compile_threads(4)` does.
/// let jit = Jit::builder().dispatcher(Box::new(ThreadPoolDispatcher::new(4)?)).build()?;
/// jit.define_closure("double", |n: i64| 2 * n)?;
/// let (sender, answers) = channel();
/// let names = vec![jit.session().intern("double")];
/// // Compiled on a thread of the pool, which calls the closure.
/// jit.session().lookup_async(&jit.search_order(), names, SymbolState::Ready, move |found| {
///     _ = sender.send(found.map(|symbols| symbols[0].definition.address));
/// });
/// assert_eq!(answers.recv()??, jit.lookup_address("double")?);
/// # Ok(())
/// # }
/// ```
pub struct ThreadPoolDispatcher {
    pool: Pool,
}

/// What the threads of a pool have of it.
#[derive(Clone)]
struct Pool {
    shared: Arc<Shared>,
    threads: Arc<Mutex<Vec<Worker>>>,
}

impl Pool {
    /// Starts another thread.
    fn start<'a>(&'a self, mut queue: MutexGuard<'a, Queue>) -> std::io::Result<()> {
        queue.threads += 1;
        drop(queue);
        let pool = self.clone();
        let builder = thread::Builder::new().name("orcane-compile".to_owned());
        match builder.spawn(move || pool.shared.as_runner(|| pool.work())) {
            Ok(handle) => {
                let mut threads = lock(&self.threads);
                // Spares come and go.
                threads.retain(|thread| !thread.is_over());
                threads.push(Worker::new(handle));
                Ok(())
            }
            Err(error) => {
                lock(&self.shared.queue).threads -= 1;
                Err(error)
            }
        }
    }

    /// Starts another thread if those that are there are too few. One that the system refuses is missed by nobody as long
    /// as there is another: the next task may have more luck.
    ///
    /// A thread that is started goes to an idle core. One that slept may be woken on the core on which it ran last, even if
    /// another thread of the pool runs there and others are idle: it takes a kernel milliseconds to see that.
    fn start_if_short(&self, queue: MutexGuard<'_, Queue>) {
        if queue.is_short() {
            _ = self.start(queue);
        }
    }

    /// Has a thread at work for one that waits, which is one of the pool's if it `is_inside`. False if none is to be had.
    fn leave_to_others(&self, is_inside: bool) -> bool {
        let mut queue = lock(&self.shared.queue);
        queue.blocked += usize::from(is_inside);
        if queue.free() > 0 {
            self.start_if_short(queue);
            return true;
        }
        let is_started = self.start(queue).is_ok();
        if !is_started && is_inside {
            lock(&self.shared.queue).blocked -= 1;
        }
        is_started
    }

    /// What a thread does.
    fn work(&self) {
        let shared = &*self.shared;
        let mut queue = lock(&shared.queue);
        loop {
            if queue.free() > queue.size || queue.stopping {
                queue.threads -= 1;
                return;
            }
            match queue.pop() {
                Some(task) => {
                    queue.running += 1;
                    self.start_if_short(queue);
                    task.run();
                    queue = lock(&shared.queue);
                    queue.running -= 1;
                }
                None => queue = shared.idle(queue, None).0,
            }
        }
    }
}

impl ThreadPoolDispatcher {
    /// A pool of `size` threads; at least one.
    ///
    /// # Errors
    ///
    /// When the system refuses a thread.
    pub fn new(size: usize) -> Result<Self, Error> {
        let queue = Queue { size: size.max(1), ..Queue::default() };
        let shared = Arc::new(Shared { queue: Mutex::new(queue), ..Shared::default() });
        let pool = Pool { shared, threads: Arc::default() };
        fork::register(&pool.shared);
        pool.start(lock(&pool.shared.queue)).map_err(|error| Error::Thread(Arc::new(error)))?;
        Ok(Self { pool })
    }
}

impl TaskDispatcher for ThreadPoolDispatcher {
    fn dispatch(&self, tasks: Vec<Task>) {
        if self.pool.shared.push(tasks) {
            self.pool.start_if_short(lock(&self.pool.shared.queue));
        }
    }

    fn wait(&self, done: &dyn Fn() -> bool, deadline: Option<Instant>) {
        let shared = &*self.pool.shared;
        if done() {
            return;
        }
        let is_inside = shared.is_running_here();
        if !self.pool.leave_to_others(is_inside) {
            return shared.help(done, deadline);
        }
        shared.sleep(done, deadline);
        if is_inside {
            lock(&shared.queue).blocked -= 1;
            // A spare that is idle leaves.
            shared.work.notify_all();
        }
    }

    fn wake(&self) {
        self.pool.shared.wake();
    }

    fn concurrency(&self) -> usize {
        lock(&self.pool.shared.queue).size
    }
}

impl Drop for ThreadPoolDispatcher {
    fn drop(&mut self) {
        lock(&self.pool.shared.queue).stopping = true;
        self.pool.shared.work.notify_all();
        // Those that are started meanwhile are there before the one that starts them ends. The last task of all may be what
        // drops the session: its thread does not wait for itself.
        loop {
            let last = lock(&self.pool.threads).pop();
            let Some(worker) = last else { break };
            worker.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_is_left_to_the_thread_that_began_it_and_not_for_ever() {
        let is_others = |task: &Task| task.priority == Priority::Ahead;
        let patience = usize::from(PATIENCE);
        let last = patience + 12;
        let mut tasks: VecDeque<_> = (0..=last).map(|_| Task::new(Priority::Awaited, || {})).collect();
        [0, last - 1, last].into_iter().for_each(|place| tasks[place].priority = Priority::Ahead);
        let mut order = Vec::new();
        while let Some(mut task) = take(&mut tasks, is_others) {
            order.push(is_others(&task));
            // A task that is dropped says so to a thread of the session's.
            task.kind = None;
        }
        let others: Vec<_> = (0..order.len()).filter(|place| order[*place]).collect();
        assert_eq!((order.len(), others), (last + 1, vec![patience, last - 1, last]));
    }
}
