//! Who is told that code must not be called any more.

use smallvec::SmallVec;

#[cfg(feature = "cranelift")]
use super::ExecutionSession;
use crate::sync::Arc;

/// Called once a symbol has failed, or was removed or poisoned by a removal. No lock is held. It
/// must not keep the session alive.
pub(crate) type Watch = Arc<dyn Fn() + Send + Sync>;

pub(crate) type Watches = SmallVec<[Watch; 1]>;

#[cfg(feature = "cranelift")]
impl ExecutionSession {
    /// Watches a symbol. False if it has failed or is gone already.
    pub(crate) fn watch(&self, symbol: super::symbol::SymbolId, watch: Watch) -> bool {
        let mut state = self.state();
        let there = state.symbols.get(symbol).is_some_and(|symbol| symbol.failure().is_none());
        if there {
            state.watches.entry(symbol).or_default().push(watch);
        }
        there
    }
}
