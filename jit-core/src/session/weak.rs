//! A dylib that is not kept alive.

use super::arena::Id;
use super::state::Dylib;
use super::{ExecutionSession, JitDylib, Shared};
use crate::sync::{Arc, Weak};

/// A dylib, for what its session owns: an ordinary handle there would keep the session for ever.
#[derive(Clone)]
pub(crate) struct WeakDylib {
    shared: Weak<Shared>,
    id: Id<Dylib>,
}

impl JitDylib {
    pub(crate) fn downgrade(&self) -> WeakDylib {
        WeakDylib { shared: Arc::downgrade(&self.session.shared), id: self.id }
    }
}

impl WeakDylib {
    /// The dylib, unless the session has ended.
    pub(crate) fn upgrade(&self) -> Option<JitDylib> {
        let session = ExecutionSession { shared: self.shared.upgrade()? };
        Some(JitDylib { session, id: self.id })
    }
}
