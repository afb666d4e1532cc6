//! Resource trackers: what is removed together.

use jit_linker::SymbolName;

use super::arena::Id;
use super::removal::RemovalPolicy;
use super::state::{Effects, Tracker};
use super::{AbsoluteSymbol, ExecutionSession, JitDylib, Shared};
use crate::error::Error;
use crate::sync::{Arc, Weak};

/// What is removed together: units and everything they have made.
///
/// A handle. When the last one is gone, what the tracker has goes over to the dylib's default
/// tracker: it can only be removed with that then.
///
/// ```
/// let jit = jit_core::Jit::new()?;
/// let tracker = jit.define_closure("hook", || 1i64)?;
/// assert!(jit.lookup_address("hook").is_ok());
/// tracker.remove()?;
/// assert!(jit.lookup_address("hook").is_err());
/// # Ok::<(), jit_core::Error>(())
/// ```
#[derive(Clone)]
pub struct ResourceTracker {
    session: ExecutionSession,
    handle: Arc<TrackerHandle>,
}

/// What the handles of a tracker share. Does not keep the session alive.
pub(crate) struct TrackerHandle {
    session: Weak<Shared>,
    id: Id<Tracker>,
}

impl Drop for TrackerHandle {
    fn drop(&mut self) {
        let Some(shared) = self.session.upgrade() else { return };
        let session = ExecutionSession { shared };
        session.state().release_tracker(self.id);
        if session.shared.managers.are_there() {
            session.notify_managers();
        }
    }
}

impl TrackerHandle {
    #[cfg(feature = "cranelift")]
    pub(crate) fn upgrade(self: &Arc<Self>) -> Option<ResourceTracker> {
        let session = ExecutionSession { shared: self.session.upgrade()? };
        Some(ResourceTracker { session, handle: Arc::clone(self) })
    }
}

impl ResourceTracker {
    pub(crate) fn new(session: ExecutionSession, id: Id<Tracker>) -> Self {
        let handle = Arc::new(TrackerHandle { session: Arc::downgrade(&session.shared), id });
        Self { session, handle }
    }

    pub(crate) fn id(&self) -> Id<Tracker> {
        self.handle.id
    }

    #[cfg(feature = "cranelift")]
    pub(crate) fn handle(&self) -> &Arc<TrackerHandle> {
        &self.handle
    }

    /// The session it belongs to.
    #[must_use]
    pub fn session(&self) -> &ExecutionSession {
        &self.session
    }

    /// The dylib it belongs to.
    ///
    /// # Errors
    ///
    /// When the tracker is defunct.
    pub fn dylib(&self) -> Result<JitDylib, Error> {
        let id = self.session.state().trackers.get(self.id()).ok_or(Error::DefunctTracker)?.dylib;
        Ok(JitDylib { session: self.session.clone(), id })
    }

    /// Whether its contents were transferred, or its dylib removed.
    #[must_use]
    pub fn is_defunct(&self) -> bool {
        self.session.state().trackers.get(self.id()).is_none()
    }

    /// As [`JitDylib::define_absolute`], removable with this tracker.
    ///
    /// # Errors
    ///
    /// As [`JitDylib::define_absolute`].
    pub fn define_absolute(&self, symbols: Vec<AbsoluteSymbol>) -> Result<(), Error> {
        let mut effects = Effects::default();
        let result = self.session.state().define_absolute(self.id(), symbols, &mut effects);
        self.session.perform(effects);
        result
    }

    /// Removes everything defined with it: symbols, code, and what was registered for it. What
    /// waits for one of the symbols fails, and what depends on them is
    /// [poisoned](RemovalPolicy::Poison). The tracker stays usable.
    ///
    /// # Errors
    ///
    /// When the tracker is defunct.
    pub fn remove(&self) -> Result<(), Error> {
        self.remove_with(RemovalPolicy::Poison)
    }

    /// As [`remove`](Self::remove); `policy` says what becomes of what depends on the symbols.
    ///
    /// # Errors
    ///
    /// When the tracker is defunct; when the policy is to [refuse](RemovalPolicy::Refuse), and
    /// something depends on one of the symbols: nothing is removed then.
    pub fn remove_with(&self, policy: RemovalPolicy) -> Result<(), Error> {
        let mut effects = Effects::default();
        let result = self.session.state().remove_units(self.id(), policy, &mut effects);
        self.session.perform(effects);
        result
    }

    /// Makes everything that was defined with it, also what is materializing, part of another
    /// tracker of the same dylib. This one is defunct then. Onto itself, nothing happens.
    ///
    /// # Errors
    ///
    /// When one of them is defunct, or they are of different dylibs.
    pub fn transfer_to(&self, other: &Self) -> Result<(), Error> {
        if self.session != other.session {
            return Err(Error::ForeignTracker);
        }
        let result = self.session.state().transfer(self.id(), other.id());
        if self.session.shared.managers.are_there() {
            self.session.notify_managers();
        }
        result
    }

    /// Keeps something until the tracker is removed.
    ///
    /// # Errors
    ///
    /// When the tracker is defunct: the resource has been dropped.
    pub fn hold(&self, resource: Box<dyn Send>) -> Result<(), Error> {
        let mut state = self.session.state();
        if let Some(tracker) = state.trackers.get_mut(self.id()) {
            tracker.resources.0.push(resource);
            return Ok(());
        }
        drop(state);
        drop(resource);
        Err(Error::DefunctTracker)
    }

    /// Has another tracker of the dylib count what is held with this one, also against its limit.
    #[cfg(feature = "cranelift")]
    pub(crate) fn count_against(&self, other: &Self) {
        self.session.state().count(self.id(), Some(other.id()));
    }

    /// Has the tracker that counts what is held with `other` count what is held with this one, if there is one.
    #[cfg(feature = "cranelift")]
    pub(crate) fn count_as(&self, other: &Self) {
        let mut state = self.session.state();
        let counted_by = state.trackers.get(other.id()).and_then(|other| other.counted_by);
        state.count(self.id(), counted_by);
    }

    /// Limits the bytes of code and data that may be held with this tracker. What is there
    /// already stays. Bodies of redirectable functions count as [`Jit::redefine`](crate::Jit::redefine) says.
    ///
    /// # Errors
    ///
    /// When the tracker is defunct.
    pub fn set_memory_limit(&self, bytes: Option<u64>) -> Result<(), Error> {
        self.session.state().trackers.get_mut(self.id()).ok_or(Error::DefunctTracker)?.memory_limit = bytes;
        Ok(())
    }

    /// The bytes of code and data held with this tracker.
    ///
    /// # Errors
    ///
    /// When the tracker is defunct.
    pub fn memory_used(&self) -> Result<u64, Error> {
        Ok(self.session.state().trackers.get(self.id()).ok_or(Error::DefunctTracker)?.memory_used)
    }

    /// The names defined with it.
    ///
    /// # Errors
    ///
    /// When the tracker is defunct.
    pub fn symbols(&self) -> Result<Vec<SymbolName>, Error> {
        let state = self.session.state();
        let tracker = state.trackers.get(self.id()).ok_or(Error::DefunctTracker)?;
        let symbols = tracker.units.iter().filter_map(|unit| state.units.get(*unit)).flat_map(|unit| &unit.symbols);
        Ok(symbols.filter_map(|symbol| Some(state.symbols.get(*symbol)?.name())).collect())
    }

    /// Whether it is what a name of its dylib is defined with; `None` if the name is not defined.
    #[cfg(feature = "cranelift")]
    pub(crate) fn is_definer(&self, name: &SymbolName) -> Result<Option<bool>, Error> {
        let state = self.session.state();
        let dylib = state.trackers.get(self.id()).ok_or(Error::DefunctTracker)?.dylib;
        let symbol = state.symbols.find(dylib, name).and_then(|symbol| state.symbols.get(symbol));
        Ok(symbol.map(|symbol| state.units.get(symbol.unit).is_some_and(|unit| unit.tracker == self.id())))
    }
}

impl std::fmt::Debug for ResourceTracker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("ResourceTracker").field(&self.handle.id).finish()
    }
}
