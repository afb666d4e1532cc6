//! Keeps parent and child apart after `fork`, although shared memory stays shared.
//!
//! The child writes no memory that it inherited: it counts a new [`generation`]. The parent must
//! not change what the child may still run: it keeps the read end of a pipe whose write end only
//! the child and its own children have, and which the system closes when they have all exited or
//! called `exec` ([`Child`]). A child that closes descriptors it knows nothing of must not go on
//! running inherited code; nor may one made by a bare `clone`, which runs no handlers.
//!
//! The locks of all managers are held across the fork, so that the child finds their state whole.

use std::cell::UnsafeCell;
use std::io::{self, PipeReader, PipeWriter};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use rustc_hash::{FxBuildHasher, FxHashMap};
use smallvec::SmallVec;

use super::reservation::system;
use super::state::State;
use crate::memory::MemoryError;

/// How often this process and its ancestors were a fork's child, since the first manager.
static GENERATION: AtomicU64 = AtomicU64::new(0);

/// Locked before any manager's state.
static REGISTRY: Mutex<Registry> =
    Mutex::new(Registry { handlers_installed: false, managers: FxHashMap::with_hasher(FxBuildHasher) });

static IN_PROGRESS: InProgress = InProgress(UnsafeCell::new(None));

struct Registry {
    handlers_installed: bool,
    managers: FxHashMap<usize, Weak<Mutex<State>>>,
}

/// What the thread that forks holds from before the fork until after it.
struct InProgress(UnsafeCell<Option<Held>>);

// SAFETY: accessed only by a thread that has locked the registry and not unlocked it.
unsafe impl Sync for InProgress {}

/// Fields are dropped in order: states are unlocked before their owners go, the registry last.
struct Held {
    states: Vec<(MutexGuard<'static, State>, Arc<Mutex<State>>)>,
    pipe: Option<(PipeReader, PipeWriter)>,
    _registry: MutexGuard<'static, Registry>,
}

/// A forked child and its descendants.
#[derive(Debug)]
pub(super) struct Child {
    /// Without a pipe nobody can tell, and the child counts as running for ever.
    reader: Option<PipeReader>,
}

/// How often this process is a fork's child.
pub(super) fn generation() -> u64 {
    GENERATION.load(Ordering::Relaxed)
}

/// Includes a manager in what forks take care of.
pub(super) fn register(state: &Arc<Mutex<State>>) -> Result<(), MemoryError> {
    let mut registry = lock(&REGISTRY);
    install_handlers(&mut registry)?;
    registry.managers.insert(key(state), Arc::downgrade(state));
    Ok(())
}

/// Has forks taken care of from now on, although there is no manager yet: a handler that is registered after this comes
/// before ours at a fork, and may wait for who uses memory.
pub fn take_care_of_forks() {
    // The first manager says what is wrong.
    _ = install_handlers(&mut lock(&REGISTRY));
}

fn install_handlers(registry: &mut Registry) -> Result<(), MemoryError> {
    if !registry.handlers_installed {
        // SAFETY: the handlers are functions that live as long as this library is loaded.
        let error = unsafe { libc::pthread_atfork(Some(before), Some(after_in_parent), Some(after_in_child)) };
        if error != 0 {
            return Err(system("install fork handlers")(io::Error::from_raw_os_error(error)));
        }
        registry.handlers_installed = true;
    }
    Ok(())
}

/// Ends what [`register`] began. Waits for a fork that is in progress, which may use the state.
pub(super) fn unregister(state: &Arc<Mutex<State>>) {
    lock(&REGISTRY).managers.remove(&key(state));
}

/// Which of the children have exited or called `exec`, with all their descendants.
pub(super) fn gone<'a>(children: impl Iterator<Item = &'a Child>) -> SmallVec<[bool; 8]> {
    let mut polls: SmallVec<[libc::pollfd; 8]> = children
        .map(|child| {
            // A negative descriptor is passed over.
            let fd = child.reader.as_ref().map_or(-1, AsRawFd::as_raw_fd);
            libc::pollfd { fd, events: 0, revents: 0 }
        })
        .collect();
    // SAFETY: the array is ours, and as long as said. It returns at once.
    let ready = unsafe { libc::poll(polls.as_mut_ptr(), polls.len() as libc::nfds_t, 0) };
    polls.iter().map(|poll| ready > 0 && poll.revents & libc::POLLHUP != 0).collect()
}

/// Locks although a holder panicked: what the locks guard is whole between statements.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn key(state: &Arc<Mutex<State>>) -> usize {
    Arc::as_ptr(state).addr()
}

extern "C" fn before() {
    let registry = lock(&REGISTRY);
    let managers = registry.managers.values().filter_map(Weak::upgrade);
    let states: Vec<_> = managers
        .map(|manager| {
            let mut state = lock(&manager);
            state.notice_fork();
            // SAFETY: only the lifetime changes. `Held` keeps the manager longer than the guard.
            let state = unsafe { std::mem::transmute::<MutexGuard<'_, State>, MutexGuard<'static, State>>(state) };
            (state, manager)
        })
        .collect();
    let needs_pipe = states.iter().any(|(state, _)| state.has_shared_memory());
    let pipe = if needs_pipe { io::pipe().ok() } else { None };
    let held = Held { states, pipe, _registry: registry };
    // SAFETY: this thread has locked the registry, and unlocks it in `take_held`.
    unsafe { *IN_PROGRESS.0.get() = Some(held) };
}

extern "C" fn after_in_parent() {
    let Some(mut held) = take_held() else { return };
    let child = Arc::new(Child { reader: held.pipe.take().map(|(reader, _writer)| reader) });
    for (state, _) in &mut held.states {
        state.keep_for(&child);
    }
}

extern "C" fn after_in_child() {
    let Some(mut held) = take_held() else { return };
    GENERATION.fetch_add(1, Ordering::Relaxed);
    if let Some((_reader, writer)) = held.pipe.take() {
        // Open until this process ends: that is the message.
        std::mem::forget(writer);
    }
}

fn take_held() -> Option<Held> {
    // SAFETY: the thread that returns from `fork` is the one that locked the registry in `before`,
    // and in the child the only one.
    unsafe { (*IN_PROGRESS.0.get()).take() }
}
