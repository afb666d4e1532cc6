//! Keeps what threads of ours share whole across `fork`, whose child does not have those threads.
//!
//! A fork waits until none of them is at work, for a moment: what one was doing could not be ended in the child, and the
//! locks that it held would be held there for ever. What they share is locked meanwhile. The child starts its own threads
//! when it needs them. Threads of the user's that use a session when another one forks are the user's to stop.

use std::cell::RefCell;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long a fork waits for threads that are at work, which may wait for the thread that forks.
const PATIENCE: Duration = Duration::from_secs(2);

/// How long it waits for locks after that, which nobody holds while waiting for something else.
const LAST_PATIENCE: Duration = Duration::from_millis(100);

/// How long it waits before it looks again.
const PAUSE: Duration = Duration::from_micros(50);

/// How often this process and its ancestors were a fork's child, since the first threads of ours.
static GENERATION: AtomicU64 = AtomicU64::new(0);

static REGISTRY: Mutex<Registry> = Mutex::new(Registry { handlers_installed: false, crews: Vec::new() });

thread_local! {
    /// What this thread holds from before a fork until after it.
    static HELD: RefCell<Option<Held>> = const { RefCell::new(None) };
}

/// What threads of ours share.
pub trait Crew: Send + Sync + 'static {
    /// What of it is locked across a fork.
    type State: Send;

    /// Its lock. A thread that is not at work holds no other one.
    fn state(&self) -> &Mutex<Self::State>;

    /// Whether no thread is at work but the one that asks, which is about to fork: nothing that can wait is begun any
    /// more. It is asked again soon if one is.
    fn is_quiet(&self, state: &mut Self::State) -> bool;

    /// Whether they wait for threads of other crews: those go on with everything until these are quiet.
    fn waits_for_others(&self) -> bool {
        false
    }

    /// The fork is over, and this is the process that has the threads.
    fn in_parent(&self, state: &mut Self::State);

    /// The fork is over, and this is its child: of the threads there is the one that forked, at most.
    fn in_child(&self, state: &mut Self::State);
}

/// A thread of ours. In a fork's child it stands for nothing.
pub struct Worker {
    thread: Option<JoinHandle<()>>,
    generation: u64,
}

impl Worker {
    /// Takes over the handle of a thread that this process has started.
    #[must_use]
    pub fn new(thread: JoinHandle<()>) -> Self {
        Self { thread: Some(thread), generation: generation() }
    }

    /// Whether this process does not have it: it is the parent's.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.generation != generation()
    }

    /// Whether it has ended, or there never was one here.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.is_lost() || self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Waits for its end. A thread does not wait for itself, nor a child for its parent's.
    pub fn join(mut self) {
        if !self.is_lost()
            && let Some(thread) = self.thread.take()
            && thread.thread().id() != std::thread::current().id()
        {
            // Panics end with the work that they are in.
            _ = thread.join();
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        if self.is_lost() {
            // The C library has the parent's threads' memory back already.
            std::mem::forget(self.thread.take());
        }
    }
}

fn generation() -> u64 {
    GENERATION.load(Ordering::Relaxed)
}

struct Registry {
    handlers_installed: bool,
    crews: Vec<Registered>,
}

struct Registered {
    crew: Weak<dyn AnyCrew>,
    /// It was asked whether it is quiet, and has to be told that the fork is over.
    was_asked: bool,
}

/// Fields are dropped in order: crews that nobody else has go with no lock held.
struct Held {
    registry: MutexGuard<'static, Registry>,
    /// By place in the registry.
    crews: Vec<(usize, Box<dyn Holding>)>,
}

/// A [`Crew`], whatever it shares.
trait AnyCrew: Send + Sync {
    /// Locks what is shared, if that can be had until then, and says whether nobody is at work.
    fn hold(self: Arc<Self>, until: Instant) -> Option<(Box<dyn Holding>, bool)>;

    fn comes_first(&self) -> bool;

    /// The fork is over, and this is the process that has the threads: for what was not held.
    fn go_on(&self);
}

/// A crew whose state is locked.
trait Holding {
    /// Unlocks it, once it has been told which process this is.
    fn release(&mut self, is_child: bool);
}

/// Fields are dropped in order: the lock before what it is in.
struct HeldCrew<C: Crew> {
    state: Option<MutexGuard<'static, C::State>>,
    crew: Arc<C>,
}

impl<C: Crew> AnyCrew for C {
    fn hold(self: Arc<Self>, until: Instant) -> Option<(Box<dyn Holding>, bool)> {
        let mut state = lock_until(self.state(), until)?;
        let is_quiet = self.is_quiet(&mut state);
        // SAFETY: only the lifetime changes. `HeldCrew` keeps what the lock is in longer than the guard.
        let state = unsafe { std::mem::transmute::<MutexGuard<'_, C::State>, MutexGuard<'static, C::State>>(state) };
        Some((Box::new(HeldCrew { state: Some(state), crew: self }), is_quiet))
    }

    fn comes_first(&self) -> bool {
        self.waits_for_others()
    }

    fn go_on(&self) {
        self.in_parent(&mut lock(self.state()));
    }
}

impl<C: Crew> Holding for HeldCrew<C> {
    fn release(&mut self, is_child: bool) {
        let Some(mut state) = self.state.take() else { return };
        match is_child {
            true => self.crew.in_child(&mut state),
            false => self.crew.in_parent(&mut state),
        }
    }
}

/// Includes what threads share in what forks take care of, for as long as it is there.
pub fn register<C: Crew>(crew: &Arc<C>) {
    let mut registry = lock(&REGISTRY);
    if !registry.handlers_installed {
        install_handlers();
        registry.handlers_installed = true;
    }
    registry.crews.retain(|registered| registered.crew.strong_count() > 0);
    let crew: Weak<C> = Arc::downgrade(crew);
    registry.crews.push(Registered { crew, was_asked: false });
}

#[cfg(any(target_os = "linux", target_vendor = "apple"))]
fn install_handlers() {
    // Before a fork, what is registered last comes first: threads that are at work need memory.
    #[cfg(target_os = "linux")]
    jit_linker::memory::take_care_of_forks();
    // SAFETY: the handlers are functions that live as long as this library is loaded. An error means that there is no
    // memory: forks are as they would be without us.
    _ = unsafe { libc::pthread_atfork(Some(before), Some(after_in_parent), Some(after_in_child)) };
}

#[cfg(not(any(target_os = "linux", target_vendor = "apple")))]
fn install_handlers() {}

/// Locks although a holder panicked: what the locks guard is whole between statements.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Locks if nobody else has, until then at least for a moment: it may be the thread that forks, in a signal handler.
fn lock_until<T>(mutex: &Mutex<T>, until: Instant) -> Option<MutexGuard<'_, T>> {
    loop {
        match mutex.try_lock() {
            Ok(guard) => return Some(guard),
            Err(TryLockError::Poisoned(poisoned)) => return Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) if Instant::now() >= until => return None,
            Err(TryLockError::WouldBlock) => std::thread::sleep(PAUSE),
        }
    }
}

/// Locks what all crews share, as far as that can be had if the fork waits no longer. `None` as long as it `may_wait` and
/// somebody is at work; those that others wait for go on then.
fn hold_all(may_wait: bool) -> Option<Held> {
    let until = if may_wait { Instant::now() } else { Instant::now() + LAST_PATIENCE };
    let registry = lock_until(&REGISTRY, until)?;
    let there = registry.crews.iter().enumerate().filter_map(|(at, registered)| Some((at, registered.crew.upgrade()?)));
    let (first, others): (Vec<_>, Vec<_>) = there.partition(|(_, crew)| crew.comes_first());
    let mut held = Held { registry, crews: Vec::new() };
    for crews in [first, others] {
        let mut are_quiet = true;
        for (at, crew) in crews {
            let Some((crew, is_quiet)) = crew.hold(until) else {
                are_quiet = false;
                continue;
            };
            held.registry.crews[at].was_asked = true;
            held.crews.push((at, crew));
            are_quiet &= is_quiet;
        }
        if may_wait && !are_quiet {
            return None;
        }
    }
    Some(held)
}

extern "C" fn before() {
    let deadline = Instant::now() + PATIENCE;
    let held = loop {
        let may_wait = Instant::now() < deadline;
        match hold_all(may_wait) {
            None if may_wait => {}
            held => break held,
        }
        // With no lock held: those at work may need them all.
        std::thread::sleep(PAUSE);
    };
    // An error means that the thread is about to end: it holds nothing then.
    _ = HELD.try_with(|place| place.replace(held));
}

extern "C" fn after_in_parent() {
    release(false);
}

extern "C" fn after_in_child() {
    GENERATION.fetch_add(1, Ordering::Relaxed);
    release(true);
}

fn release(is_child: bool) {
    let Ok(Some(held)) = HELD.try_with(RefCell::take) else { return };
    held.release(is_child);
}

impl Held {
    /// Tells each crew that was asked that the fork is over.
    fn release(self, is_child: bool) {
        let Self { mut registry, mut crews } = self;
        for (at, crew) in &mut crews {
            crew.release(is_child);
            registry.crews[*at].was_asked = false;
        }
        let take_missed = |registered: &mut Registered| {
            std::mem::take(&mut registered.was_asked).then(|| registered.crew.upgrade()).flatten()
        };
        let missed: Vec<_> = registry.crews.iter_mut().filter_map(take_missed).collect();
        drop(registry);
        // Somebody else had locked it in the end: not this thread, which locked it when it asked. In the child, nobody ever
        // unlocks it.
        if !is_child {
            missed.iter().for_each(|crew| crew.go_on());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Threads that are at work as long as there are so many.
    struct Workers {
        forking: Mutex<bool>,
        working: usize,
    }

    impl Workers {
        fn new(working: usize) -> Arc<Self> {
            let workers = Arc::new(Self { forking: Mutex::new(false), working });
            register(&workers);
            workers
        }
    }

    impl Crew for Workers {
        type State = bool;

        fn state(&self) -> &Mutex<bool> {
            &self.forking
        }

        fn is_quiet(&self, forking: &mut bool) -> bool {
            *forking = true;
            self.working == 0
        }

        fn in_parent(&self, forking: &mut bool) {
            *forking = false;
        }

        fn in_child(&self, _: &mut bool) {}
    }

    /// One that has everything at a time.
    static FORKS: Mutex<()> = Mutex::new(());

    #[test]
    fn what_was_dropped_is_not_held() {
        let _alone = lock(&FORKS);
        let (kept, gone) = (Workers::new(0), Workers::new(0));
        let weak = Arc::downgrade(&gone);
        drop(gone);
        let held = hold_all(false).unwrap();
        assert!(kept.forking.try_lock().is_err());
        drop(held);
        assert!(*lock(&kept.forking));
        assert!(weak.upgrade().is_none());
    }

    #[test]
    fn whoever_is_asked_goes_on_after_the_fork_although_its_lock_could_not_be_had_in_the_end() {
        let _alone = lock(&FORKS);
        let workers = Workers::new(1);
        assert!(hold_all(true).is_none());
        assert!(*lock(&workers.forking));
        let (is_over, over) = std::sync::mpsc::channel::<()>();
        let (is_locked, locked) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            let workers = &workers;
            scope.spawn(move || {
                let _busy = lock(&workers.forking);
                is_locked.send(()).unwrap();
                over.recv().unwrap();
            });
            locked.recv().unwrap();
            let held = hold_all(false).unwrap();
            is_over.send(()).unwrap();
            held.release(false);
        });
        assert!(!*lock(&workers.forking));
    }
}
