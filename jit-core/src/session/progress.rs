//! Long lookups that tell how far they are.

use super::{ExecutionSession, SearchOrder, SymbolState};
use crate::error::LookupError;
use jit_linker::SymbolName;

/// How far a lookup of many symbols is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Progress {
    /// Symbols that are ready.
    pub ready: usize,
    /// Symbols that were asked for.
    pub total: usize,
}

/// Symbols that are reported together: as many as a layer compiles at a time.
const STEP: usize = 32;

impl ExecutionSession {
    /// Makes symbols ready, and tells how far it is after every few of them, on this thread.
    ///
    /// # Errors
    ///
    /// For the first symbols that can't be had, the root cause. What has begun goes on.
    pub fn lookup_with_progress(
        &self,
        order: &SearchOrder,
        names: &[SymbolName],
        mut progress: impl FnMut(Progress),
    ) -> Result<(), LookupError> {
        // Every thread has a step to work on, and one to go on with. A single one is this one.
        let ahead = match self.shared.dispatcher.concurrency() {
            0 | 1 => 0,
            threads => threads.saturating_mul(2),
        };
        let mut begun = names.chunks(STEP).skip(1);
        let begin = |step: &[SymbolName]| {
            // Who waits for the step below is told what became of it.
            self.lookup_async(order, step.to_vec(), SymbolState::Ready, drop);
        };
        begun.by_ref().take(ahead).for_each(begin);
        let mut ready = 0;
        for step in names.chunks(STEP) {
            self.lookup(order, step.to_vec())?;
            if ahead > 0 {
                begun.by_ref().take(1).for_each(begin);
            }
            ready += step.len();
            progress(Progress { ready, total: names.len() });
        }
        Ok(())
    }
}
