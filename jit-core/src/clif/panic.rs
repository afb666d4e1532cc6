//! Panics while a function is compiled: Cranelift's, on CLIF that does not verify, and transforms'.

use std::panic::{AssertUnwindSafe, catch_unwind};

/// Runs `work`, and gives what it said if it panicked: what it was changing may be in any state then.
pub(super) fn caught<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|payload| {
        let text = payload.downcast_ref::<&str>().copied();
        text.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message").to_owned()
    })
}
