//! Looking symbols up: what a lookup asks for, and the ways to wait for it.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use jit_linker::SymbolName;
use smallvec::{SmallVec, smallvec};

use super::arena::Id;
use super::definition::FETCHED;
use super::dispatch::{self, Priority};
use super::published::{Cell, Published};
use super::query::{Completion, Control, FoundSymbol, Owner, Query, Request};
use super::search::{self, Search};
use super::state::{Dylib, Effects, Unit};
use super::symbol::{Condition, SymbolFlags, SymbolState};
use super::{ExecutionSession, JitDylib, unit};
use crate::error::{Cause, Error, LookupError, SymbolFailure};
use crate::sync::{Arc, AtomicU64, Mutex, Ordering, lock};

/// Which of a dylib's symbols a search sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DylibLookup {
    /// All of them.
    All,
    /// Those that are exported.
    Exported,
}

/// What a lookup is for. Generators may tell the two apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LookupKind {
    /// As a linker does, which may pull definitions in from archives.
    #[default]
    Static,
    /// As `dlsym` does: only what is loaded already.
    DlSym,
}

/// Whether a lookup can do without a symbol.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SymbolLookup {
    /// Missing, it fails the lookup.
    #[default]
    Required,
    /// Missing, it is left out of what the lookup gives.
    WeaklyReferenced,
}

/// The dylibs that a lookup searches, in turn. The first that has a name answers for it.
///
/// ```
/// use jit_core::{AbsoluteSymbol, DylibLookup, Jit, SearchOrder, SymbolDef, SymbolFlags};
///
/// let jit = Jit::new()?;
/// let session = jit.session();
/// let [first, second] = [session.create_dylib("first")?, session.create_dylib("second")?];
/// for (dylib, address, flags) in [(&first, 0x1000, SymbolFlags::HIDDEN), (&second, 0x2000, SymbolFlags::EXPORTED)] {
///     let (name, definition) = (session.intern("limit"), SymbolDef::at(address));
///     dylib.define_absolute(vec![AbsoluteSymbol { name, definition, flags, signature: None }])?;
/// }
/// let limit = |order: SearchOrder| session.lookup(&order, vec![session.intern("limit")]).map(|found| found[0].definition.address);
/// let [all, exported] = [DylibLookup::All, DylibLookup::Exported];
/// assert_eq!(limit(SearchOrder::new().then(&first, all).then(&second, exported))?, 0x1000);
/// // The first has it for itself.
/// assert_eq!(limit(SearchOrder::new().then(&first, exported).then(&second, exported))?, 0x2000);
/// # Ok::<(), jit_core::Error>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct SearchOrder {
    pub(crate) dylibs: LinkOrder,
    /// The number of the session that they are of, if there are any.
    session: Option<u64>,
}

/// The dylibs of an order. Every lookup has one, and most of them the same.
pub(crate) type LinkOrder = std::sync::Arc<[(Id<Dylib>, DylibLookup)]>;

/// What stands for dylibs of several sessions.
const SEVERAL: u64 = 0;

impl SearchOrder {
    /// An order of dylibs of one session.
    pub(super) fn of(session: &ExecutionSession, dylibs: LinkOrder) -> Self {
        Self { dylibs, session: Some(session.shared.number) }
    }

    /// An order of dylibs of the session that it is used with.
    #[cfg(feature = "cranelift")]
    pub(super) fn of_any(dylibs: impl Into<LinkOrder>) -> Self {
        Self { dylibs: dylibs.into(), session: None }
    }

    fn is_foreign(&self, session: &ExecutionSession) -> bool {
        self.session.is_some_and(|number| number != session.shared.number)
    }

    /// Fails if a dylib belongs to another session.
    pub(crate) fn check(&self, session: &ExecutionSession) -> Result<(), Error> {
        if self.is_foreign(session) { Err(Error::ForeignDylib) } else { Ok(()) }
    }

    /// An order that finds nothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends a dylib. All have to be of one session: what uses an order with another one's says so.
    #[must_use]
    pub fn then(mut self, dylib: &JitDylib, visibility: DylibLookup) -> Self {
        let number = dylib.session.shared.number;
        self.session = Some(if self.session.is_none_or(|other| other == number) { number } else { SEVERAL });
        self.dylibs = self.dylibs.iter().copied().chain([(dylib.id, visibility)]).collect();
        self
    }
}

/// The names that a lookup asks for, each required or weakly referenced.
///
/// A name, or a `Vec` of names, is a set in which all are required.
///
/// ```
/// use jit_core::{Jit, LookupSet, SymbolLookup};
///
/// let jit = Jit::new()?;
/// let names = LookupSet::new()
///     .with(jit.session().intern("abs"), SymbolLookup::Required)
///     .with(jit.session().intern("no such function"), SymbolLookup::WeaklyReferenced);
/// let found = jit.session().lookup(&jit.search_order(), names)?;
/// assert_eq!(found.len(), 1);
/// assert_eq!(found[0].name.as_str(), "abs");
/// # Ok::<(), jit_core::Error>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct LookupSet {
    names: SmallVec<[SymbolName; 1]>,
    /// Positions of the names that are weakly referenced, ascending.
    weak: Vec<u32>,
}

impl LookupSet {
    /// A set without names.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a name.
    #[must_use]
    pub fn with(mut self, name: SymbolName, lookup: SymbolLookup) -> Self {
        self.push(name, lookup);
        self
    }

    /// Adds a name.
    pub fn push(&mut self, name: SymbolName, lookup: SymbolLookup) {
        if lookup == SymbolLookup::WeaklyReferenced {
            // A name takes more than a byte: 2^32 of them are more than a lookup can be given.
            self.weak.push(self.names.len() as u32);
        }
        self.names.push(name);
    }

    /// How many names there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.names.len()
    }

    /// Whether there is no name.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// The names in their order.
    pub fn iter(&self) -> impl Iterator<Item = (&SymbolName, SymbolLookup)> {
        let mut weak = self.weak.iter().copied().peekable();
        self.names.iter().zip(0..).map(move |(name, position)| match weak.next_if_eq(&position) {
            Some(_) => (name, SymbolLookup::WeaklyReferenced),
            None => (name, SymbolLookup::Required),
        })
    }
}

impl From<SymbolName> for LookupSet {
    fn from(name: SymbolName) -> Self {
        Self { names: smallvec![name], weak: Vec::new() }
    }
}

impl From<Vec<SymbolName>> for LookupSet {
    fn from(names: Vec<SymbolName>) -> Self {
        Self { names: names.into(), weak: Vec::new() }
    }
}

impl FromIterator<(SymbolName, SymbolLookup)> for LookupSet {
    fn from_iter<I: IntoIterator<Item = (SymbolName, SymbolLookup)>>(names: I) -> Self {
        let mut set = Self::new();
        names.into_iter().for_each(|(name, lookup)| set.push(name, lookup));
        set
    }
}

/// A lookup that was started and not waited for. Dropping it changes nothing.
pub struct LookupHandle {
    session: ExecutionSession,
    control: Arc<Control>,
}

impl LookupHandle {
    /// Ends the lookup, if it has not ended: it fails with [`Cause::Cancelled`]. The units it
    /// started go on.
    pub fn cancel(&self) {
        self.session.cancel(&self.control, Cause::Cancelled);
    }
}

impl std::fmt::Debug for LookupHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LookupHandle").field("over", &self.control.is_over()).finish_non_exhaustive()
    }
}

/// How long a thread that others may wait for waits before it looks whether they do, at first and at last.
const FIRST_LOOK: Duration = Duration::from_millis(10);
const LAST_LOOK: Duration = Duration::from_secs(1);

/// How a thread waits for a lookup.
struct Wait {
    deadline: Option<Instant>,
    priority: Priority,
}

impl Wait {
    const FOR_EVER: Self = Self { deadline: None, priority: Priority::Awaited };
}

#[derive(Default)]
struct Answer {
    result: Option<Result<Vec<FoundSymbol>, LookupError>>,
    waker: Option<Waker>,
}

/// A lookup as a future, for any executor. The session's dispatcher does the work, whether it is
/// polled or not. Dropped, it cancels the lookup.
#[must_use = "a future does nothing for whoever does not await it"]
pub struct LookupFuture {
    handle: LookupHandle,
    answer: Arc<Mutex<Answer>>,
}

impl Future for LookupFuture {
    type Output = Result<Vec<FoundSymbol>, LookupError>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        // The executor's code, which may do anything, runs with no lock held.
        let waker = context.waker().clone();
        let mut answer = lock(&self.answer);
        match answer.result.take() {
            Some(result) => Poll::Ready(result),
            None => {
                let old = answer.waker.replace(waker);
                drop(answer);
                drop(old);
                Poll::Pending
            }
        }
    }
}

impl Drop for LookupFuture {
    fn drop(&mut self) {
        self.handle.cancel();
    }
}

impl std::fmt::Debug for LookupFuture {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LookupFuture").finish_non_exhaustive()
    }
}

impl ExecutionSession {
    /// Looks names up, makes them ready, and waits for them.
    ///
    /// # Errors
    ///
    /// For each symbol that can't be had, the root cause.
    pub fn lookup(&self, order: &SearchOrder, names: impl Into<LookupSet>) -> Result<Vec<FoundSymbol>, LookupError> {
        self.lookup_in_state(order, names, SymbolState::Ready)
    }

    /// As [`lookup`](Self::lookup), up to a state: resolved symbols have an address that must not
    /// be used yet.
    ///
    /// # Errors
    ///
    /// As [`lookup`](Self::lookup).
    pub fn lookup_in_state(
        &self,
        order: &SearchOrder,
        names: impl Into<LookupSet>,
        required: SymbolState,
    ) -> Result<Vec<FoundSymbol>, LookupError> {
        self.wait_for(LookupKind::Static, order, names.into(), required, Wait::FOR_EVER)
    }

    /// As [`lookup`](Self::lookup), for no longer than until `deadline`. A dispatcher without threads of its own runs units
    /// on this one meanwhile: what runs then is not interrupted.
    ///
    /// # Errors
    ///
    /// As [`lookup`](Self::lookup); [`Cause::DeadlineExceeded`] for what was not there in time.
    pub fn lookup_until(
        &self,
        order: &SearchOrder,
        names: impl Into<LookupSet>,
        deadline: Instant,
    ) -> Result<Vec<FoundSymbol>, LookupError> {
        let wait = Wait { deadline: Some(deadline), ..Wait::FOR_EVER };
        self.wait_for(LookupKind::Static, order, names.into(), SymbolState::Ready, wait)
    }

    /// As [`lookup`](Self::lookup), for somebody whom others may keep waiting.
    #[cfg(feature = "cranelift")]
    pub(crate) fn lookup_at(
        &self,
        priority: Priority,
        order: &SearchOrder,
        names: impl Into<LookupSet>,
    ) -> Result<Vec<FoundSymbol>, LookupError> {
        let wait = Wait { priority, ..Wait::FOR_EVER };
        self.wait_for(LookupKind::Static, order, names.into(), SymbolState::Ready, wait)
    }

    /// As [`lookup`](Self::lookup), without waiting: the dispatcher calls `complete`, exactly once.
    pub fn lookup_async(
        &self,
        order: &SearchOrder,
        names: impl Into<LookupSet>,
        required: SymbolState,
        complete: impl FnOnce(Result<Vec<FoundSymbol>, LookupError>) + Send + 'static,
    ) -> LookupHandle {
        let request = Request {
            names: names.into(),
            required,
            kind: LookupKind::Static,
            priority: dispatch::current_priority(),
            owner: None,
            others: Vec::new(),
        };
        let control = self.start(order, request, Completion::All(Box::new(complete)));
        LookupHandle { session: self.clone(), control }
    }

    /// As [`lookup`](Self::lookup), as a future.
    pub fn lookup_future(
        &self,
        order: &SearchOrder,
        names: impl Into<LookupSet>,
        required: SymbolState,
    ) -> LookupFuture {
        let answer: Arc<Mutex<Answer>> = Arc::default();
        let to = Arc::clone(&answer);
        let handle = self.lookup_async(order, names, required, move |result| {
            let waker = {
                let mut answer = lock(&to);
                answer.result = Some(result);
                answer.waker.take()
            };
            if let Some(waker) = waker {
                waker.wake();
            }
        });
        LookupFuture { handle, answer }
    }

    /// Gives the flags of those of the names that are defined, and materializes nothing.
    /// Generators are asked, though.
    ///
    /// # Errors
    ///
    /// When a required name is missing, or a generator fails.
    pub fn lookup_flags(
        &self,
        kind: LookupKind,
        order: &SearchOrder,
        names: impl Into<LookupSet>,
    ) -> Result<Vec<(SymbolName, SymbolFlags)>, LookupError> {
        let found = self.wait_for(kind, order, names.into(), SymbolState::NeverSearched, Wait::FOR_EVER)?;
        Ok(found.into_iter().map(|symbol| (symbol.name, symbol.flags)).collect())
    }

    /// Looks names up and writes each address to its place; 0 for a weakly referenced name that
    /// is missing.
    ///
    /// # Errors
    ///
    /// As [`lookup`](Self::lookup): no place is written then.
    pub fn lookup_and_record(
        &self,
        kind: LookupKind,
        order: &SearchOrder,
        places: &mut [(SymbolName, SymbolLookup, &mut u64)],
    ) -> Result<(), LookupError> {
        let set: LookupSet = places.iter().map(|(name, lookup, _)| (name.clone(), *lookup)).collect();
        let found = self.wait_for(kind, order, set, SymbolState::Ready, Wait::FOR_EVER)?;
        let mut found = found.iter().peekable();
        for (name, _, place) in places {
            **place = found.next_if(|symbol| symbol.name == *name).map_or(0, |symbol| symbol.definition.address);
        }
        Ok(())
    }

    /// As [`lookup_and_record`](Self::lookup_and_record), without waiting.
    pub fn lookup_and_record_async(
        &self,
        order: &SearchOrder,
        places: Vec<(SymbolName, SymbolLookup, Arc<AtomicU64>)>,
        complete: impl FnOnce(Result<(), LookupError>) + Send + 'static,
    ) -> LookupHandle {
        let set: LookupSet = places.iter().map(|(name, lookup, _)| (name.clone(), *lookup)).collect();
        self.lookup_async(order, set, SymbolState::Ready, move |found| {
            complete(found.map(|found| {
                let mut found = found.iter().peekable();
                for (name, _, place) in &places {
                    let symbol = found.next_if(|symbol| symbol.name == *name);
                    place.store(symbol.map_or(0, |symbol| symbol.definition.address), Ordering::Release);
                }
            }));
        })
    }

    /// Looks names up for somebody who cannot go on before: `complete` is called once each has an address or has failed, in
    /// their order.
    pub(crate) fn lookup_owned(
        &self,
        order: &SearchOrder,
        names: LookupSet,
        owner: Option<Owner>,
        complete: impl FnOnce(Vec<Result<FoundSymbol, SymbolFailure>>) + Send + 'static,
    ) {
        self.lookup_owned_by_all(order, names, owner, Vec::new(), complete);
    }

    /// As [`lookup_owned`](Self::lookup_owned), for several units that go on together.
    pub(crate) fn lookup_owned_by_all(
        &self,
        order: &SearchOrder,
        names: LookupSet,
        owner: Option<Owner>,
        others: Vec<Id<Unit>>,
        complete: impl FnOnce(Vec<Result<FoundSymbol, SymbolFailure>>) + Send + 'static,
    ) {
        let request = Request {
            names,
            required: SymbolState::Resolved,
            kind: LookupKind::Static,
            priority: dispatch::current_priority(),
            owner,
            others,
        };
        self.start(order, request, Completion::Each(Box::new(complete)));
    }

    /// As [`lookup_async`](Self::lookup_async), for a unit whose responsibility `complete` has.
    pub(super) fn lookup_holding(
        &self,
        order: &SearchOrder,
        names: LookupSet,
        required: SymbolState,
        unit: Id<Unit>,
        complete: impl FnOnce(Result<Vec<FoundSymbol>, LookupError>) + Send + 'static,
    ) -> LookupHandle {
        let (kind, priority) = (LookupKind::Static, dispatch::current_priority());
        let owner = Some(Owner::Holder(unit));
        let request = Request { names, required, kind, priority, owner, others: Vec::new() };
        let control = self.start(order, request, Completion::All(Box::new(complete)));
        LookupHandle { session: self.clone(), control }
    }

    fn start(&self, order: &SearchOrder, request: Request, completion: Completion) -> Arc<Control> {
        let _span = tracing::debug_span!("lookup", names = ?request.names).entered();
        let control = Control::new(self, request, completion);
        if let Err(foreign) = order.check(self) {
            self.cancel(&control, Cause::Session(foreign));
            return control;
        }
        Search::new(self.clone(), order.clone(), Arc::clone(&control)).go_on();
        control
    }

    fn wait_for(
        &self,
        kind: LookupKind,
        order: &SearchOrder,
        names: LookupSet,
        required: SymbolState,
        Wait { deadline, priority }: Wait,
    ) -> Result<Vec<FoundSymbol>, LookupError> {
        if let Some(found) = self.find_at_once(order, &names, required) {
            return Ok(found);
        }
        // What a panic has dropped that this thread has caught will not come.
        if !std::thread::panicking() {
            unit::fail_abandoned(None);
        }
        let owner = dispatch::current_unit(self).map(Owner::Thread);
        let request = Request { names, required, kind, priority, owner, others: Vec::new() };
        let control = self.start(order, request, Completion::Thread(self.clone()));
        self.wait_for_answer(&control, deadline, &|| control.is_answered());
        // The wait is over, so the answer is there.
        control.take_answer().unwrap_or(Ok(Vec::new()))
    }

    /// Waits until a lookup of this thread's is answered.
    fn wait_for_answer(&self, control: &Arc<Control>, deadline: Option<Instant>, is_answered: &dyn Fn() -> bool) {
        // Whoever has something to do first may come to wait for this thread after it has begun to wait.
        let may_be_awaited = control.request.owner.is_some() || !control.inside.is_empty();
        let mut pause = FIRST_LOOK;
        loop {
            let look = may_be_awaited.then(|| Instant::now() + pause);
            self.shared.dispatcher.wait(is_answered, look.into_iter().chain(deadline).min());
            if is_answered() {
                return;
            }
            let cause = match deadline {
                Some(deadline) if deadline <= Instant::now() => Some(Cause::DeadlineExceeded),
                _ => self.state().closed_cycle(control),
            };
            if let Some(cause) = cause {
                // Here, and not as a task: threads that run those may be what this one waits for.
                if let Some(query) = self.end_lookup(control, cause) {
                    query.answer();
                }
                // Unless another thread is just about it.
                while !is_answered() {
                    self.shared.dispatcher.wait(is_answered, None);
                }
                return;
            }
            let kept_up = self.state().search_kept_up_by(control);
            pause = match kept_up.and_then(|(slot, search)| slot.unpark(&search)) {
                Some(search) => {
                    search::resume(search);
                    FIRST_LOOK
                }
                None => (2 * pause).min(LAST_LOOK),
            };
        }
    }

    /// What a lookup gives that has nothing to wait for and no generator to ask.
    fn find_at_once(&self, order: &SearchOrder, names: &LookupSet, required: SymbolState) -> Option<Vec<FoundSymbol>> {
        if order.is_foreign(self) {
            return None;
        }
        let count = names.len();
        self.read(|published| {
            let mut all = Vec::new();
            for names in names.names.chunks(FETCHED) {
                if let (Some((dylib, _)), 2..) = (order.dylibs.first(), names.len()) {
                    published.fetch(*dylib, names);
                }
                for name in names {
                    let found = find_there(published, order, name, required)?;
                    if all.is_empty() {
                        // Where the first is missing, nothing was allocated.
                        all.reserve_exact(count);
                    }
                    all.push(found);
                }
            }
            Some(all)
        })
    }

    /// The address of a symbol if it is ready now. Nothing is materialized or generated; no lock
    /// that other threads could hold is waited for while symbols are only looked up. None, too, where a
    /// [lookup](Self::lookup) would ask a generator for it first.
    #[must_use]
    pub fn ready_address(&self, order: &SearchOrder, name: &SymbolName) -> Option<u64> {
        if order.is_foreign(self) {
            return None;
        }
        let first = order.dylibs.first()?;
        // In a large table the time goes into waiting for memory. How many lookups the processor does at a time, of those
        // that follow each other, is a matter of how few instructions each has.
        match self.shared.published.try_read(|published| ready_at_home(published, first, name)) {
            Some(Some(address)) => Some(address),
            _ => self.ready_address_in_all(order, name),
        }
    }

    /// The ready address by a search of the whole order, however often changes disturb it.
    #[inline(never)]
    fn ready_address_in_all(&self, order: &SearchOrder, name: &SymbolName) -> Option<u64> {
        self.read(|published| {
            let (_, cell) = find(published, order, name)?;
            ready(cell, Condition::of(cell))
        })
    }

    /// A symbol, if it is ready now: as [`ready_address`](Self::ready_address).
    #[cfg(feature = "cranelift")]
    pub(crate) fn find_ready(&self, order: &SearchOrder, name: &SymbolName) -> Option<FoundSymbol> {
        if order.is_foreign(self) {
            return None;
        }
        self.read(|published| find_there(published, order, name, SymbolState::Ready))
    }

    /// What `read` sees at one moment: without the lock unless changes come so thick that a reader
    /// finds no moment between them.
    #[inline]
    fn read<R>(&self, read: impl Fn(&Published) -> R) -> R {
        self.shared.published.read(&read).unwrap_or_else(|| self.read_locked(read))
    }

    #[cold]
    fn read_locked<R>(&self, read: impl Fn(&Published) -> R) -> R {
        let _unchanging = self.state();
        read(&self.shared.published)
    }

    /// Ends a lookup that has not ended.
    pub(crate) fn cancel(&self, control: &Arc<Control>, cause: Cause) {
        let mut effects = Effects::default();
        effects.answers.extend(self.end_lookup(control, cause));
        self.perform(effects);
    }

    /// What is left to do for that: to answer.
    fn end_lookup(&self, control: &Arc<Control>, cause: Cause) -> Option<Query> {
        if control.is_over() {
            return None;
        }
        let cause = Arc::new(cause);
        let mut state = self.state();
        Some(match control.query().and_then(|id| state.take_query(id)) {
            Some(mut query) => {
                query.fail_rest(&cause, |symbol| state.dylib_name(symbol));
                query
            }
            None => Query::failed(Arc::clone(control), None, &cause),
        })
    }
}

/// The address of a symbol that is ready, that a search in `dylib` sees and that is where such a search begins.
#[inline]
fn ready_at_home(
    published: &Published,
    (dylib, visibility): &(Id<Dylib>, DylibLookup),
    name: &SymbolName,
) -> Option<u64> {
    let (cell, condition) = published.find_at_home(*dylib, name)?;
    let condition = Condition::from_bits(condition);
    if is_seen(condition, *visibility) { ready(cell, condition) } else { None }
}

#[inline]
fn ready(cell: &Cell, condition: Condition) -> Option<u64> {
    condition.is_there(SymbolState::Ready).then(|| cell.address.load(Ordering::Relaxed))
}

#[inline]
fn is_seen(condition: Condition, visibility: DylibLookup) -> bool {
    visibility == DylibLookup::All || condition.flags().exported
}

/// What a search in `order` ends at, if it has come as far as is required.
#[inline]
fn find_there(
    published: &Published,
    order: &SearchOrder,
    name: &SymbolName,
    required: SymbolState,
) -> Option<FoundSymbol> {
    let (place, cell) = find(published, order, name)?;
    let entry = published.entry(place, cell);
    let there = entry.condition().is_there(required) && !entry.condition().flags().side_effects_only;
    there.then(|| entry.found(name, published))
}

/// The definition of `name` that a search in `order` ends at: its place, and the cell there. None, too, if a generator would
/// be asked before.
#[inline]
fn find<'a>(published: &'a Published, order: &SearchOrder, name: &SymbolName) -> Option<(u32, &'a Cell)> {
    for (dylib, visibility) in &*order.dylibs {
        match published.find_cell(*dylib, name) {
            Some((place, cell)) if is_seen(Condition::of(cell), *visibility) => return Some((place, cell)),
            // What it has and hides is not for its generators to define.
            Some(_) => {}
            None if published.generates(*dylib) => return None,
            None => {}
        }
    }
    None
}
