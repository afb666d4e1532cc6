//! Lookups that wait.

use jit_linker::SymbolName;

use super::arena::Id;
use super::state::Dylib;
use super::symbol::{SymbolDef, SymbolFlags, SymbolId, SymbolState};
use crate::error::{Cause, LookupError, SymbolFailure};
use crate::sync::Arc;

/// A query's interest in one symbol.
#[derive(Clone, Copy)]
pub(crate) struct Waiter {
    pub(crate) query: Id<Query>,
    /// Which of the query's names.
    pub(crate) position: u32,
    pub(crate) required: SymbolState,
}

/// What a lookup found.
#[derive(Clone, Debug)]
pub struct FoundSymbol {
    /// The name it was looked up by.
    pub name: SymbolName,
    /// Where it is.
    pub definition: SymbolDef,
    /// How it was defined.
    pub flags: SymbolFlags,
    /// The text of its calling signature, where it is known.
    pub signature: Option<SymbolName>,
    pub(crate) id: SymbolId,
}

pub(crate) enum Outcome {
    Waiting(SymbolId),
    Found(FoundSymbol),
    Failed(SymbolFailure),
}

/// What became of each name of a query, in their order.
pub(crate) type Answers = Vec<Result<FoundSymbol, SymbolFailure>>;

/// What happens when a query is answered.
pub(crate) enum Completion {
    /// All or nothing: answered as soon as one symbol fails.
    All(Box<dyn FnOnce(Result<Vec<FoundSymbol>, LookupError>) + Send>),
    /// Answered once each symbol has been found or has failed, in the order of the names.
    Each(Box<dyn FnOnce(Answers) + Send>),
}

/// A lookup that has been started.
pub(crate) struct Query {
    pub(crate) required: SymbolState,
    outstanding: usize,
    failed: bool,
    outcomes: Vec<Outcome>,
    completion: Completion,
}

impl Query {
    pub(crate) fn new(required: SymbolState, names: usize, completion: Completion) -> Self {
        Self { required, outstanding: 0, failed: false, outcomes: Vec::with_capacity(names), completion }
    }

    /// Whether the answer is settled.
    pub(crate) fn is_settled(&self) -> bool {
        self.outstanding == 0 || self.failed && matches!(self.completion, Completion::All(_))
    }

    /// Adds what is known of the next name.
    pub(crate) fn push(&mut self, outcome: Outcome) {
        self.outstanding += usize::from(matches!(outcome, Outcome::Waiting(_)));
        self.failed |= matches!(outcome, Outcome::Failed(_));
        self.outcomes.push(outcome);
    }

    /// Settles a name that was waited for.
    pub(crate) fn settle(&mut self, position: u32, outcome: Outcome) {
        self.outstanding -= 1;
        self.failed |= matches!(outcome, Outcome::Failed(_));
        self.outcomes[position as usize] = outcome;
    }

    /// Gives the answer. User code runs: no lock is held.
    pub(crate) fn answer(self) {
        match self.completion {
            Completion::All(complete) => {
                let mut found = Vec::with_capacity(self.outcomes.len());
                let mut failures = Vec::new();
                for outcome in self.outcomes {
                    match outcome {
                        Outcome::Found(symbol) => found.push(symbol),
                        Outcome::Failed(failure) => failures.push(failure),
                        Outcome::Waiting(_) => {}
                    }
                }
                complete(if failures.is_empty() { Ok(found) } else { Err(LookupError { failures }) });
            }
            Completion::Each(complete) => {
                let outcomes = self.outcomes.into_iter().filter_map(|outcome| match outcome {
                    Outcome::Found(symbol) => Some(Ok(symbol)),
                    Outcome::Failed(failure) => Some(Err(failure)),
                    Outcome::Waiting(_) => None,
                });
                complete(outcomes.collect());
            }
        }
    }
}

/// A failure of `name`, found or expected in `dylib`.
pub(crate) fn failure(name: SymbolName, dylib: Option<&Dylib>, cause: Arc<Cause>) -> SymbolFailure {
    SymbolFailure { name, dylib: dylib.map(|dylib| dylib.name.clone()).unwrap_or_default(), cause }
}
