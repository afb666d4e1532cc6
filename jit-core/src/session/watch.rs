//! Who is told that code must not be called any more.

use smallvec::SmallVec;

#[cfg(feature = "cranelift")]
use super::ExecutionSession;
use crate::sync::Arc;

/// Somebody who calls code, or has it called. It must not keep the session alive.
pub(crate) trait Watch: Send + Sync {
    /// A symbol has failed, or was removed or poisoned by a removal. No lock is held.
    fn unusable(&self);

    /// Whether it has to be told still. The session's lock is held.
    #[cfg_attr(not(feature = "cranelift"), expect(dead_code, reason = "only functions that can be redirected watch"))]
    fn is_needed(&self) -> bool;
}

pub(crate) type Watches = SmallVec<[Arc<dyn Watch>; 1]>;

#[cfg(feature = "cranelift")]
impl ExecutionSession {
    /// Watches a symbol. False if it has failed or is gone already.
    pub(crate) fn watch(&self, symbol: super::symbol::SymbolId, watch: Arc<dyn Watch>) -> bool {
        let mut state = self.state();
        let there = state.symbols.get(symbol).is_some_and(|symbol| symbol.failure().is_none());
        if there {
            let watches = state.watches.entry(symbol).or_default();
            if watches.len() == watches.capacity() {
                // A symbol may outlive any number of those who watch it.
                watches.retain(|watch| watch.is_needed());
                if watches.len() > watches.capacity() / 2 {
                    watches.reserve(watches.len());
                }
            }
            watches.push(watch);
        }
        there
    }
}
