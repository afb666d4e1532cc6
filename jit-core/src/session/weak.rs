//! Handles that do not keep their session alive, for what the session owns: an ordinary one there
//! would keep it for ever.

use super::arena::Id;
use super::state::{Dylib, Tracker};
use super::{ExecutionSession, JitDylib, ResourceTracker, Shared};
use crate::sync::{Arc, Weak};

/// A session, if it has not ended.
#[derive(Clone)]
struct WeakSession(Weak<Shared>);

impl WeakSession {
    fn upgrade(&self) -> Option<ExecutionSession> {
        Some(ExecutionSession { shared: self.0.upgrade()? })
    }
}

/// A dylib of a session that may have ended.
#[derive(Clone)]
pub(crate) struct WeakDylib {
    session: WeakSession,
    id: Id<Dylib>,
}

impl JitDylib {
    pub(crate) fn downgrade(&self) -> WeakDylib {
        WeakDylib { session: WeakSession(Arc::downgrade(&self.session.shared)), id: self.id }
    }
}

impl WeakDylib {
    pub(crate) fn upgrade(&self) -> Option<JitDylib> {
        Some(JitDylib { session: self.session.upgrade()?, id: self.id })
    }
}

/// A tracker of a session that may have ended.
pub(crate) struct WeakTracker {
    session: WeakSession,
    id: Id<Tracker>,
}

impl ResourceTracker {
    pub(crate) fn downgrade(&self) -> WeakTracker {
        WeakTracker { session: WeakSession(Arc::downgrade(&self.session.shared)), id: self.id }
    }
}

impl WeakTracker {
    pub(crate) fn upgrade(&self) -> Option<ResourceTracker> {
        Some(ResourceTracker { session: self.session.upgrade()?, id: self.id })
    }
}
