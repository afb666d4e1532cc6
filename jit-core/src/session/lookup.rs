//! Where a lookup searches, and what it does on the way.

use jit_linker::SymbolName;

use super::arena::Id;
use super::query::{Completion, Query, failure};
use super::state::{Dylib, Effects};
use super::symbol::SymbolState;
use super::{ExecutionSession, JitDylib, Outcome};
use crate::error::{Cause, Error};
use crate::sync::{Arc, lock};

/// Which of a dylib's symbols a search sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DylibLookup {
    /// All of them.
    All,
    /// Those that are exported.
    Exported,
}

/// The dylibs that a lookup searches, in turn. The first that has a name answers for it.
#[derive(Clone, Debug, Default)]
pub struct SearchOrder(pub(crate) Vec<(Id<Dylib>, DylibLookup)>);

impl SearchOrder {
    /// An order that finds nothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends a dylib.
    #[must_use]
    pub fn then(mut self, dylib: &JitDylib, visibility: DylibLookup) -> Self {
        self.0.push((dylib.id, visibility));
        self
    }
}

impl ExecutionSession {
    /// Looks names up, and says what became of them through `completion`. Generators run on this
    /// thread, units where the dispatcher puts them.
    pub(crate) fn lookup_with(
        &self,
        order: &SearchOrder,
        names: Vec<SymbolName>,
        required: SymbolState,
        completion: Completion,
    ) {
        let mut query = Query::new(required, names.len(), completion);
        if let Err((missing, error)) = self.generate(order, &names) {
            let cause = Arc::new(error);
            let state = lock(&self.shared.state);
            let dylib = order.0.first().and_then(|(dylib, _)| state.dylibs.get(*dylib));
            for name in missing {
                query.push(Outcome::Failed(failure(name, dylib, Arc::clone(&cause))));
            }
            drop(state);
            query.answer();
            return;
        }
        let mut effects = Effects::default();
        lock(&self.shared.state).start_query(&order.0, names, query, &mut effects);
        self.perform(effects);
    }

    /// Gives the generators along `order` a chance to define the names that are missing when the
    /// search comes to them.
    fn generate(&self, order: &SearchOrder, names: &[SymbolName]) -> Result<(), (Vec<SymbolName>, Cause)> {
        for (position, (dylib, visibility)) in order.0.iter().enumerate() {
            let (generators, mut missing) = {
                let state = lock(&self.shared.state);
                let Some(entry) = state.dylibs.get(*dylib) else {
                    return Err((names.to_vec(), Cause::Session(Error::DylibGone)));
                };
                if entry.generators.is_empty() {
                    continue;
                }
                let missing: Vec<_> =
                    names.iter().filter(|name| state.find(&order.0[..=position], name).is_none()).cloned().collect();
                (entry.generators.clone(), missing)
            };
            let handle = JitDylib { session: self.clone(), id: *dylib };
            for generator in generators {
                if missing.is_empty() {
                    break;
                }
                if let Err(error) = generator.generate(&handle, *visibility, &missing) {
                    return Err((missing, Cause::Generator(error)));
                }
                let state = lock(&self.shared.state);
                missing.retain(|name| state.find(&order.0[..=position], name).is_none());
            }
        }
        Ok(())
    }
}
