//! Resource managers: who keeps things of their own for trackers.

use std::collections::VecDeque;

use super::arena::Id;
use super::state::{Dylib, State, Tracker};
use super::unit::catching_panics;
use super::{ExecutionSession, JitDylib, MaterializationResponsibility, ResourceTracker};
use crate::error::Error;
use crate::sync::{Arc, AtomicBool, Mutex, Ordering, lock};

/// What a [`ResourceManager`] files resources under: stands for one tracker.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct ResourceKey(Id<Tracker>);

/// Keeps resources that belong to code, such as registrations with a debugger, by the key of the
/// tracker that the code belongs to.
///
/// A layer with few resources need not be one:
/// [`MaterializationResponsibility::hold`] keeps anything for as long as a unit lives.
///
/// Managers are told of each event in the order in which the session went through them, newest
/// manager first, with no lock held. An event may be told a second time.
///
/// ```
/// use std::collections::HashMap;
/// use std::sync::{Arc, Mutex};
///
/// use jit_core::{Jit, JitDylib, ResourceKey, ResourceManager};
///
/// /// Notes of a frontend's on the code of each tracker.
/// #[derive(Default)]
/// struct Notes(Mutex<HashMap<ResourceKey, Vec<&'static str>>>);
///
/// impl ResourceManager for Notes {
///     fn remove(&self, _: &JitDylib, key: ResourceKey) {
///         self.0.lock().unwrap().remove(&key);
///     }
///
///     fn transfer(&self, _: &JitDylib, to: ResourceKey, from: ResourceKey) {
///         let mut notes = self.0.lock().unwrap();
///         let moved = notes.remove(&from).unwrap_or_default();
///         notes.entry(to).or_default().extend(moved);
///     }
/// }
///
/// let jit = Jit::new()?;
/// let notes = Arc::new(Notes::default());
/// jit.session().register_resource_manager(notes.clone());
/// let tracker = jit.define_closure("one", || 1i64)?;
/// notes.0.lock().unwrap().insert(tracker.key(), vec!["from the prelude"]);
/// tracker.remove()?;
/// assert!(notes.0.lock().unwrap().is_empty());
/// # Ok::<(), jit_core::Error>(())
/// ```
pub trait ResourceManager: Send + Sync {
    /// The tracker was removed: drop what is filed under `key`.
    fn remove(&self, dylib: &JitDylib, key: ResourceKey);

    /// What is filed under `from` belongs to `to` from now on.
    fn transfer(&self, dylib: &JitDylib, to: ResourceKey, from: ResourceKey);
}

/// An event that managers have to be told of.
#[derive(Clone, Copy)]
pub(crate) enum Notification {
    Removed { dylib: Id<Dylib>, key: Id<Tracker> },
    Transferred { dylib: Id<Dylib>, to: Id<Tracker>, from: Id<Tracker> },
}

#[derive(Default)]
pub(crate) struct Managers {
    managers: Mutex<Vec<Arc<dyn ResourceManager>>>,
    queue: Mutex<Queue>,
    there: AtomicBool,
}

impl Managers {
    /// Whether there has ever been one.
    pub(crate) fn are_there(&self) -> bool {
        self.there.load(Ordering::Relaxed)
    }
}

#[derive(Default)]
struct Queue {
    notifications: VecDeque<Notification>,
    /// Somebody is telling the managers.
    busy: bool,
}

impl ExecutionSession {
    /// Registers a manager.
    pub fn register_resource_manager(&self, manager: Arc<dyn ResourceManager>) {
        lock(&self.shared.managers.managers).push(manager);
        self.shared.managers.there.store(true, Ordering::Relaxed);
        self.state().managed = true;
    }

    /// Takes a manager off the list: it is told nothing more.
    pub fn deregister_resource_manager(&self, manager: &Arc<dyn ResourceManager>) {
        lock(&self.shared.managers.managers).retain(|other| !Arc::ptr_eq(other, manager));
    }

    /// Tells the managers what happened.
    pub(crate) fn notify_managers(&self) {
        let managers = &self.shared.managers;
        let mut queue = lock(&managers.queue);
        // In the order of the transitions, whichever threads made them.
        let news = std::mem::take(&mut self.state().notifications);
        queue.notifications.extend(news);
        if queue.busy {
            return;
        }
        queue.busy = true;
        while let Some(notification) = queue.notifications.pop_front() {
            drop(queue);
            self.tell_managers(notification);
            queue = lock(&managers.queue);
        }
        queue.busy = false;
    }

    fn tell_managers(&self, notification: Notification) {
        let managers = lock(&self.shared.managers.managers).clone();
        let dylib = |id| JitDylib { session: self.clone(), id };
        for manager in managers.iter().rev() {
            catching_panics(|| match notification {
                Notification::Removed { dylib: id, key } => manager.remove(&dylib(id), ResourceKey(key)),
                Notification::Transferred { dylib: id, to, from } => {
                    manager.transfer(&dylib(id), ResourceKey(to), ResourceKey(from));
                }
            });
        }
    }
}

impl ResourceTracker {
    /// The key that managers know this tracker by.
    #[must_use]
    pub fn key(&self) -> ResourceKey {
        ResourceKey(self.id())
    }
}

impl MaterializationResponsibility {
    /// Calls `file` with the key of the tracker that the unit belongs to now. If the tracker is
    /// removed or transferred meanwhile, managers are told so again afterwards: what `file` put
    /// under the key is not forgotten.
    ///
    /// # Errors
    ///
    /// When the tracker was removed.
    pub fn with_resource_key<R>(&self, file: impl FnOnce(ResourceKey) -> R) -> Result<R, Error> {
        let session = self.session().clone();
        let current = |state: &State| {
            let tracker = state.units.get(self.unit()).map(|unit| unit.tracker)?;
            Some((tracker, state.trackers.get(tracker)?.dylib))
        };
        let (key, dylib) = current(&session.state()).ok_or(Error::DefunctTracker)?;
        let result = file(ResourceKey(key));
        let now = {
            let mut state = session.state();
            let now = current(&state).map(|(tracker, _)| tracker);
            // In the same step: what happens to the tracker after this is told after this.
            match now {
                Some(now) if now == key => return Ok(result),
                Some(to) => state.notifications.push(Notification::Transferred { dylib, to, from: key }),
                None => state.notifications.push(Notification::Removed { dylib, key }),
            }
            now
        };
        session.notify_managers();
        now.map(|_| result).ok_or(Error::DefunctTracker)
    }
}
