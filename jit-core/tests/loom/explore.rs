//! How scenarios are played.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{PoisonError, RwLock};

/// Kept for as long as a defect is on: all others want the code whole.
static WHOLE: RwLock<()> = RwLock::new(());

/// Plays a scenario on every schedule.
pub(crate) fn check(scenario: fn()) {
    let _whole = WHOLE.read().unwrap_or_else(PoisonError::into_inner);
    explore(scenario);
}

/// What the checker says of a scenario when a defect is on.
pub(crate) fn caught(defect: &AtomicBool, scenario: fn()) -> String {
    let _alone = WHOLE.write().unwrap_or_else(PoisonError::into_inner);
    defect.store(true, Ordering::Relaxed);
    let caught = std::panic::catch_unwind(|| explore(scenario));
    defect.store(false, Ordering::Relaxed);
    *caught.unwrap_err().downcast::<String>().unwrap()
}

fn explore(scenario: fn()) {
    let mut model = loom::model::Builder::new();
    // Three unforced switches of threads show what a reader and a writer can do to each other.
    model.preemption_bound = Some(3);
    model.check(scenario);
}
