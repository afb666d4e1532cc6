//! Handles that do not keep their session alive, for what the session owns: an ordinary one there
//! would keep it for ever.

#[cfg(feature = "cranelift")]
use super::ResourceTracker;
use super::arena::Id;
#[cfg(feature = "cranelift")]
use super::lookup::{DylibLookup, SearchOrder};
use super::state::Dylib;
#[cfg(feature = "cranelift")]
use super::tracker::TrackerHandle;
use super::{ExecutionSession, JitDylib, Shared};
use crate::sync::{Arc, Weak};

/// A dylib of a session that may have ended.
#[derive(Clone)]
pub(crate) struct WeakDylib {
    session: Weak<Shared>,
    id: Id<Dylib>,
}

impl JitDylib {
    pub(crate) fn downgrade(&self) -> WeakDylib {
        WeakDylib { session: Arc::downgrade(&self.session.shared), id: self.id }
    }
}

impl PartialEq for WeakDylib {
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id && self.session.ptr_eq(&other.session)
    }
}

impl WeakDylib {
    /// Searches it alone.
    #[cfg(feature = "cranelift")]
    pub(crate) fn order(&self) -> SearchOrder {
        SearchOrder::of_any([(self.id, DylibLookup::All)])
    }

    pub(crate) fn upgrade(&self) -> Option<JitDylib> {
        Some(JitDylib { session: ExecutionSession { shared: self.session.upgrade()? }, id: self.id })
    }
}

/// A tracker of a session that may have ended. It is a handle like any other as long as it has not.
#[cfg(feature = "cranelift")]
pub(crate) struct WeakTracker(Arc<TrackerHandle>);

#[cfg(feature = "cranelift")]
impl ResourceTracker {
    pub(crate) fn downgrade(&self) -> WeakTracker {
        WeakTracker(Arc::clone(self.handle()))
    }
}

#[cfg(feature = "cranelift")]
impl WeakTracker {
    pub(crate) fn upgrade(&self) -> Option<ResourceTracker> {
        self.0.upgrade()
    }
}
