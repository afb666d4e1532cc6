//! Lookups that wait, and how they are answered.

use jit_linker::SymbolName;
use smallvec::SmallVec;

use super::ExecutionSession;
use super::arena::Id;
use super::dispatch::{self, Priority};
use super::lookup::{LookupKind, LookupSet};
use super::search;
use super::state::{Dylib, Unit};
use super::symbol::{SymbolDef, SymbolFlags, SymbolId, SymbolState};
use crate::error::{Cause, LookupError, SymbolFailure};
use crate::sync::thread::ThreadId;
use crate::sync::{Arc, Mutex, lock};

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
    /// Not there, which whoever asked said they can do without.
    Missing(SymbolFailure),
    Failed(SymbolFailure),
}

/// What is known of each name of a query, in their order. Most have one.
pub(crate) type Outcomes = SmallVec<[Outcome; 1]>;

/// What became of each name of a query, in their order.
pub(crate) type Answers = Vec<Result<FoundSymbol, SymbolFailure>>;

/// What happens when a query is answered.
pub(crate) enum Completion {
    /// All or nothing: answered as soon as one symbol fails.
    All(Box<dyn FnOnce(Result<Vec<FoundSymbol>, LookupError>) + Send>),
    /// Answered once each symbol has been found or has failed, in the order of the names.
    Each(Box<dyn FnOnce(Answers) + Send>),
    /// As [`All`](Self::All), for a thread that waits, which takes the answer from the [`Control`].
    Thread(ExecutionSession),
}

/// What a lookup asks for.
pub(crate) struct Request {
    pub(crate) names: LookupSet,
    pub(crate) required: SymbolState,
    pub(crate) kind: LookupKind,
    pub(crate) priority: Priority,
    /// The unit that cannot go on before the answer.
    pub(crate) owner: Option<Owner>,
    /// Others that go on with it.
    pub(crate) others: Vec<Id<Unit>>,
}

/// Who waits for an answer.
#[derive(Clone, Copy)]
pub(crate) enum Owner {
    /// A thread that materializes the unit.
    Thread(Id<Unit>),
    /// A continuation of the unit's.
    Continuation(Id<Unit>),
    /// A continuation that has the unit's responsibility.
    Holder(Id<Unit>),
    /// An alias that is this unit.
    Alias(SymbolId, Id<Unit>),
}

/// A lookup from its start to its answer, which is given once: by whoever takes the completion.
pub(crate) struct Control {
    pub(crate) request: Request,
    /// The generators that it was started inside of, by address.
    pub(crate) inside: Vec<usize>,
    /// Its session, by address.
    session: usize,
    /// The unit whose code started it.
    pub(crate) started_by: Option<Id<Unit>>,
    /// The thread that started it, if that runs tasks.
    pub(crate) runner: Option<ThreadId>,
    all: bool,
    /// No code of the user's runs when it is answered.
    pub(crate) is_threads: bool,
    progress: Mutex<Progress>,
}

struct Progress {
    completion: Option<Completion>,
    query: Option<Id<Query>>,
    /// The answer for a thread.
    answer: Option<Result<Vec<FoundSymbol>, LookupError>>,
}

impl Control {
    pub(crate) fn new(session: &ExecutionSession, request: Request, completion: Completion) -> Arc<Self> {
        let (session, started_by) = (session.address(), dispatch::current_unit(session));
        let is_threads = matches!(completion, Completion::Thread(_));
        let all = is_threads || matches!(completion, Completion::All(_));
        let progress = Mutex::new(Progress { completion: Some(completion), query: None, answer: None });
        let runner = dispatch::runner();
        Arc::new(Self { request, inside: search::inside(), session, started_by, runner, all, is_threads, progress })
    }

    /// The unit that it is for.
    pub(crate) fn unit(&self) -> Option<Id<Unit>> {
        self.request.owner.map(Owner::unit).or(self.started_by)
    }

    /// The units that it is for.
    pub(crate) fn units(&self) -> impl Iterator<Item = Id<Unit>> {
        self.unit().into_iter().chain(self.request.others.iter().copied())
    }

    /// The unit that it is for, and the session, by address.
    pub(crate) fn home(&self) -> Option<(usize, Id<Unit>)> {
        Some((self.session, self.unit()?))
    }

    /// Whether it has been answered, or is being.
    pub(crate) fn is_over(&self) -> bool {
        lock(&self.progress).completion.is_none()
    }

    pub(crate) fn entered(&self, query: Id<Query>) {
        lock(&self.progress).query = Some(query);
    }

    pub(crate) fn query(&self) -> Option<Id<Query>> {
        lock(&self.progress).query
    }

    /// Whether the answer is there that a thread waits for.
    pub(crate) fn is_answered(&self) -> bool {
        lock(&self.progress).answer.is_some()
    }

    /// Takes the answer that a thread has waited for.
    pub(crate) fn take_answer(&self) -> Option<Result<Vec<FoundSymbol>, LookupError>> {
        lock(&self.progress).answer.take()
    }

    /// Gives the answer, if nobody has. User code runs: no lock is held.
    pub(crate) fn answer(&self, outcomes: Outcomes) {
        let completion = lock(&self.progress).completion.take();
        match completion {
            Some(Completion::All(complete)) => complete(all_or_nothing(outcomes)),
            Some(Completion::Each(complete)) => {
                let outcomes = outcomes.into_iter().filter_map(|outcome| match outcome {
                    Outcome::Found(symbol) => Some(Ok(symbol)),
                    Outcome::Failed(failure) | Outcome::Missing(failure) => Some(Err(failure)),
                    Outcome::Waiting(_) => None,
                });
                complete(outcomes.collect());
            }
            Some(Completion::Thread(session)) => {
                let answer = all_or_nothing(outcomes);
                lock(&self.progress).answer = Some(answer);
                session.shared.dispatcher.wake();
            }
            None => {}
        }
    }
}

/// The symbols found, or everything that failed.
pub(crate) fn all_or_nothing(outcomes: Outcomes) -> Result<Vec<FoundSymbol>, LookupError> {
    let mut found = Vec::with_capacity(outcomes.len());
    let mut failures = Vec::new();
    for outcome in outcomes {
        match outcome {
            Outcome::Found(symbol) => found.push(symbol),
            Outcome::Failed(failure) => failures.push(failure),
            Outcome::Waiting(_) | Outcome::Missing(_) => {}
        }
    }
    if failures.is_empty() { Ok(found) } else { Err(LookupError { failures }) }
}

/// A lookup that has found its symbols and waits for them.
pub(crate) struct Query {
    pub(crate) control: Arc<Control>,
    /// At least what was asked for: somebody may have come to wait for its unit.
    pub(crate) priority: Priority,
    outstanding: usize,
    failed: bool,
    pub(crate) outcomes: Outcomes,
}

impl Query {
    pub(crate) fn new(control: Arc<Control>) -> Self {
        let outcomes = Outcomes::with_capacity(control.request.names.len());
        let priority = control.request.priority;
        Self { control, priority, outstanding: 0, failed: false, outcomes }
    }

    /// A lookup whose names have all failed alike.
    pub(crate) fn failed(control: Arc<Control>, dylib: Option<&Dylib>, cause: &Arc<Cause>) -> Self {
        let mut query = Self::new(Arc::clone(&control));
        for (name, _) in control.request.names.iter() {
            query.push(Outcome::Failed(failure(name.clone(), dylib, Arc::clone(cause))));
        }
        query
    }

    /// Whether the answer is settled.
    pub(crate) fn is_settled(&self) -> bool {
        self.outstanding == 0 || self.failed && self.control.all
    }

    /// Whether a name has failed.
    pub(crate) fn has_failed(&self) -> bool {
        self.failed
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

    /// Symbols that are waited for.
    pub(crate) fn outstanding(&self) -> impl Iterator<Item = (u32, SymbolId)> {
        self.outcomes.iter().zip(0..).filter_map(|(outcome, position)| match outcome {
            Outcome::Waiting(symbol) => Some((position, *symbol)),
            _ => None,
        })
    }

    /// Fails what is still waited for.
    pub(crate) fn fail_rest(&mut self, cause: &Arc<Cause>, dylib: impl Fn(SymbolId) -> String) {
        for (outcome, (name, _)) in self.outcomes.iter_mut().zip(self.control.request.names.iter()) {
            if let Outcome::Waiting(symbol) = outcome {
                let (name, dylib) = (name.clone(), dylib(*symbol));
                *outcome = Outcome::Failed(SymbolFailure { name, dylib, cause: Arc::clone(cause) });
                self.failed = true;
            }
        }
        self.outstanding = 0;
    }

    pub(crate) fn answer(self) {
        self.control.answer(self.outcomes);
    }
}

/// A failure of `name`, found or expected in `dylib`.
pub(crate) fn failure(name: SymbolName, dylib: Option<&Dylib>, cause: Arc<Cause>) -> SymbolFailure {
    SymbolFailure { name, dylib: dylib.map(|dylib| dylib.name.clone()).unwrap_or_default(), cause }
}
