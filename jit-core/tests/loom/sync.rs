//! The session's primitives, played by the model checker.

use std::sync::atomic::AtomicBool as Switch;

pub(crate) use loom::hint::spin_loop;
pub(crate) use loom::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};

/// As few as will do: the checker's stacks are small.
pub(crate) const PLACE_BITS: u32 = 8;

/// As short as it can be: the longer, the more the checker has to keep.
pub(crate) const SMALLEST_INDEX: usize = 4;

/// Set by the one test that wants a defect.
pub(crate) static TORN: Switch = Switch::new(false);

pub(crate) fn is_torn() -> bool {
    TORN.load(Ordering::Relaxed)
}
