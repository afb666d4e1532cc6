//! What a session holds.

use super::ExecutionSession;

/// What a session holds at a moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct SessionStatistics {
    /// Dylibs.
    pub dylibs: usize,
    /// Symbols in their tables.
    pub symbols: usize,
    /// Units: waiting, being materialized, and those whose code is in memory.
    pub units: usize,
    /// Trackers, the default ones included.
    pub trackers: usize,
    /// Lookups that wait for symbols.
    pub lookups: usize,
    /// Dependences between symbols.
    pub dependences: usize,
    /// Removed things that wait until no thread is inside an execution scope.
    pub retired: usize,
}

impl ExecutionSession {
    /// What is held now.
    #[must_use]
    pub fn statistics(&self) -> SessionStatistics {
        let state = self.state();
        SessionStatistics {
            dylibs: state.dylibs.count(),
            symbols: state.symbols.count(),
            units: state.units.count(),
            trackers: state.trackers.count(),
            lookups: state.queries.count(),
            dependences: state.edges.count(),
            retired: self.shared.scopes.retired(),
        }
    }
}
