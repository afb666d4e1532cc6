//! Slots that code is linked to, which must not become another function's as long as it is there.

use super::ExecutionSession;
use crate::sync::{Arc, lock};

/// Keeps slots, and the stubs that go with them, from being used again until what it gives is dropped.
/// It must not keep the session alive.
pub(crate) type KeepSlots = Arc<dyn Fn(Vec<u64>) -> Option<Box<dyn Send + Sync>> + Send + Sync>;

impl ExecutionSession {
    /// Says who has the slots of this session's functions.
    #[cfg(feature = "cranelift")]
    pub(crate) fn set_slots(&self, keep: KeepSlots) {
        *lock(&self.shared.slots) = Some(keep);
    }

    /// Keeps the slots of what code was linked to: the code is to hold what this gives.
    pub(crate) fn keep_slots(&self, slots: Vec<u64>) -> Option<Box<dyn Send + Sync>> {
        if slots.is_empty() {
            return None;
        }
        let keep = lock(&self.shared.slots).clone()?;
        keep(slots)
    }
}
