//! The first half of a lookup: asking generators for what is missing along the search order.
//!
//! A search is a value that goes from generator to generator. A generator may keep it for as long
//! as it likes, in the shape of a [`LookupState`]; meanwhile other searches that need the same
//! generator are parked with it and taken up in their order.

use std::cell::RefCell;
use std::collections::VecDeque;

use jit_linker::SymbolName;
use rustc_hash::FxHashSet;
use smallvec::SmallVec;

use super::arena::Id;
use super::dispatch::{Priority, TaskKind};
use super::generator::{DefinitionGenerator, GeneratorError};
use super::lookup::{DylibLookup, LookupKind, SearchOrder};
use super::query::{Control, Query};
use super::state::{Dylib, Effects, Unit};
use super::unit::panic_message;
use super::{ExecutionSession, JitDylib};
use crate::error::{Cause, Error};
use crate::sync::{self, Arc, Mutex, lock};

/// A generator of a dylib, and the searches that want it.
pub(crate) struct GeneratorSlot {
    pub(crate) generator: Arc<dyn DefinitionGenerator>,
    gate: Mutex<Gate>,
}

#[derive(Default)]
struct Gate {
    /// The search that the generator works for.
    current: Option<Arc<Control>>,
    parked: VecDeque<Search>,
    removed: bool,
}

enum Entry {
    Granted(Search),
    Parked,
    Removed(Search),
}

impl GeneratorSlot {
    pub(crate) fn new(generator: Arc<dyn DefinitionGenerator>) -> Arc<Self> {
        Arc::new(Self { generator, gate: Mutex::default() })
    }

    fn enter(&self, search: Search) -> Entry {
        let mut gate = lock(&self.gate);
        if gate.removed {
            return Entry::Removed(search);
        }
        if search.out_of_turn.contains(&std::ptr::from_ref(self).addr()) {
            return Entry::Granted(search);
        }
        match &gate.current {
            // The one before left the gate to this search.
            Some(current) if Arc::ptr_eq(current, &search.control) => Entry::Granted(search),
            None => {
                gate.current = Some(Arc::clone(&search.control));
                Entry::Granted(search)
            }
            Some(_) => {
                gate.parked.push_back(search);
                Entry::Parked
            }
        }
    }

    /// The lookups that wait for their turn.
    pub(crate) fn parked(&self) -> Vec<Arc<Control>> {
        lock(&self.gate).parked.iter().map(|search| Arc::clone(&search.control)).collect()
    }

    /// Takes out a search that waits for its turn: it is to ask the generator without.
    pub(crate) fn unpark(self: &Arc<Self>, control: &Arc<Control>) -> Option<Search> {
        let mut gate = lock(&self.gate);
        let position = gate.parked.iter().position(|search| Arc::ptr_eq(&search.control, control))?;
        let mut search = gate.parked.remove(position)?;
        search.out_of_turn.push(address_of(self));
        Some(search)
    }

    /// Ends the turn of `control`, if it has it, and gives the search whose turn is next.
    fn leave(&self, control: &Arc<Control>) -> Option<Search> {
        let mut gate = lock(&self.gate);
        if !gate.current.as_ref().is_some_and(|current| Arc::ptr_eq(current, control)) {
            return None;
        }
        let mut next = gate.parked.pop_front();
        next.iter_mut().for_each(|next| next.has_turn = true);
        gate.current = next.as_ref().map(|search| Arc::clone(&search.control));
        next
    }

    /// Lets nobody in any more. Gives the search that is inside, and those that wait.
    pub(crate) fn close(&self) -> (Option<Arc<Control>>, VecDeque<Search>) {
        let mut gate = lock(&self.gate);
        gate.removed = true;
        (gate.current.take(), std::mem::take(&mut gate.parked))
    }
}

/// A lookup on its way along its search order.
pub(crate) struct Search {
    session: ExecutionSession,
    order: SearchOrder,
    control: Arc<Control>,
    /// The dylib it has come to.
    dylib: usize,
    /// Generators of that dylib that are done.
    done: Vec<Arc<GeneratorSlot>>,
    /// Whether a generator's turn may have been left to it.
    has_turn: bool,
    /// Generators that it asks without waiting for its turn, by address: that would wait for it.
    out_of_turn: Vec<usize>,
}

/// A generator to ask, and for what.
struct Step {
    slot: Arc<GeneratorSlot>,
    dylib: Id<Dylib>,
    visibility: DylibLookup,
    names: Vec<SymbolName>,
}

sync::thread_local! {
    /// The generators that the code which this thread runs is inside of, by address. What it looks up is, too.
    static INSIDE: RefCell<Vec<usize>> = const { RefCell::new(Vec::new()) };
}

pub(super) fn address_of(slot: &Arc<GeneratorSlot>) -> usize {
    Arc::as_ptr(slot) as usize
}

/// The generators that this thread is inside of.
pub(super) fn inside() -> Vec<usize> {
    INSIDE.with(|inside| inside.borrow().clone())
}

/// Takes this thread for one that is inside of these generators. Gives those it was inside of.
pub(super) fn set_inside(generators: Vec<usize>) -> Vec<usize> {
    INSIDE.with(|inside| inside.replace(generators))
}

impl Search {
    pub(crate) fn new(session: ExecutionSession, order: SearchOrder, control: Arc<Control>) -> Self {
        Self { session, order, control, dylib: 0, done: Vec::new(), has_turn: false, out_of_turn: Vec::new() }
    }

    /// As [`Control::home`].
    pub(crate) fn home(&self) -> Option<(usize, Id<Unit>)> {
        self.control.home()
    }

    /// Goes on until it is suspended, parked, or becomes a query.
    pub(crate) fn go_on(mut self) {
        loop {
            let step = match self.next_step() {
                Ok(Some(step)) => step,
                Ok(None) => return self.finish(),
                Err(cause) => return self.fail(cause),
            };
            let slot = Arc::clone(&step.slot);
            if self.control.inside.contains(&address_of(&slot)) {
                // The generator itself looks something up: it is not asked for that.
                self.done.push(slot);
                continue;
            }
            // Nobody can come to wait for another one.
            let may_be_awaited = self.control.unit().is_some() || !self.control.inside.is_empty();
            let session = self.session.clone();
            let search = match slot.enter(self) {
                Entry::Granted(search) => search,
                Entry::Parked if may_be_awaited => return session.resume_kept_up(),
                Entry::Parked => return,
                Entry::Removed(mut search) => {
                    search.done.push(slot);
                    self = search;
                    continue;
                }
            };
            match search.ask(step) {
                Some(search) => self = search,
                None => return,
            }
        }
    }

    /// The next generator that can define something that is missing.
    fn next_step(&mut self) -> Result<Option<Step>, Cause> {
        let mut left = SmallVec::<[_; 1]>::new();
        let step = {
            let state = self.session.state();
            loop {
                let Some(&(dylib, visibility)) = self.order.dylibs.get(self.dylib) else { break Ok(None) };
                let Some(entry) = state.dylibs.get(dylib) else {
                    if state.ended {
                        break Err(Cause::SessionEnded);
                    }
                    // It was removed: orders that it is in skip it.
                    self.done.clear();
                    self.dylib += 1;
                    continue;
                };
                let is_done = |slot: &Arc<GeneratorSlot>| self.done.iter().any(|done| Arc::ptr_eq(done, slot));
                let mut waiting = entry.generators.iter().filter(|slot| !is_done(slot)).peekable();
                if let Some(slot) = waiting.peek()
                    && !self.control.is_over()
                {
                    let searched = &self.order.dylibs[..=self.dylib];
                    // What the dylib has and hides is not for its generators to define.
                    let missing = |name: &&SymbolName| {
                        state.symbols.find(dylib, name).is_none() && state.find(searched, name).is_none()
                    };
                    let mut seen = FxHashSet::default();
                    let names = self.control.request.names.iter().map(|(name, _)| name);
                    let names: Vec<_> = names.filter(missing).filter(|name| seen.insert(*name)).cloned().collect();
                    if !names.is_empty() {
                        break Ok(Some(Step { slot: Arc::clone(slot), dylib, visibility, names }));
                    }
                }
                // A turn that was kept for this search and is not needed any more.
                if self.has_turn {
                    left.extend(waiting.cloned());
                }
                self.done.clear();
                self.dylib += 1;
            }
        };
        for slot in left {
            self.leave(&slot);
        }
        step
    }

    /// Ends this search's turn with a generator, and lets the next search have it.
    fn leave(&self, slot: &Arc<GeneratorSlot>) {
        if let Some(next) = slot.leave(&self.control) {
            resume(next);
        }
    }

    /// Asks a generator. Gives the search back if it has answered already.
    fn ask(self, step: Step) -> Option<Self> {
        let Step { slot, dylib, visibility, names } = step;
        let dylib = JitDylib { session: self.session.clone(), id: dylib };
        let kind = self.control.request.kind;
        let inside = self.control.inside.iter().copied().chain([address_of(&slot)]).collect();
        let turn = Arc::new(Mutex::new(Turn::Asked));
        let state = LookupState {
            kind,
            dylib,
            visibility,
            names,
            suspended: Some(Suspended { turn: Arc::clone(&turn), search: self, slot: Arc::clone(&slot) }),
        };
        let outer = set_inside(inside);
        let asked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| slot.generator.try_to_generate(state)));
        set_inside(outer);
        let mut turn = lock(&turn);
        match std::mem::replace(&mut *turn, Turn::Suspended) {
            Turn::Continued(search, result) => {
                drop(turn);
                let result = match asked {
                    Ok(()) => result,
                    Err(payload) => Err(Cause::Generator(panic_message(&*payload).into())),
                };
                search.continued(&slot, result)
            }
            Turn::Asked | Turn::Suspended => None,
        }
    }

    /// A generator has answered.
    fn continued(mut self, slot: &Arc<GeneratorSlot>, result: Result<(), Cause>) -> Option<Self> {
        self.leave(slot);
        if let Err(cause) = result {
            self.fail(cause);
            return None;
        }
        self.done.push(Arc::clone(slot));
        Some(self)
    }

    /// The dispatcher has dropped it.
    pub(crate) fn abandon(self) {
        let (ended, slots) = {
            let state = self.session.state();
            let dylib = self.order.dylibs.get(self.dylib).and_then(|(dylib, _)| state.dylibs.get(*dylib));
            (state.ended, dylib.map(|dylib| dylib.generators.clone()).unwrap_or_default())
        };
        // A turn that was kept for it.
        slots.iter().for_each(|slot| self.leave(slot));
        let cause = Arc::new(if ended { Cause::SessionEnded } else { Cause::Cancelled });
        Query::failed(Arc::clone(&self.control), None, &cause).answer();
    }

    fn finish(self) {
        self.query(None);
    }

    fn fail(self, cause: Cause) {
        self.query(Some(&Arc::new(cause)));
    }

    fn query(self, failure: Option<&Arc<Cause>>) {
        if self.control.is_over() {
            return;
        }
        let mut effects = Effects::default();
        self.session.state().start_query(&self.order.dylibs, &self.control, failure, &mut effects);
        self.session.perform(effects);
        if !self.control.inside.is_empty() {
            self.session.resume_kept_up();
        }
    }
}

/// Takes a search up again, as a task.
pub(crate) fn resume(search: Search) {
    let session = search.session.clone();
    let priority = match search.control.request.priority {
        Priority::Awaited => Priority::Awaited,
        Priority::Ahead => session.state().priority_of(&search.control),
    };
    session.shared.dispatcher.dispatch(vec![TaskKind::Search(Box::new(search)).with_priority(priority)]);
}

/// Where a generator is with a search.
enum Turn {
    /// Being asked.
    Asked,
    /// It kept the search and returned.
    Suspended,
    /// It has answered before it returned.
    Continued(Box<Search>, Result<(), Cause>),
}

struct Suspended {
    turn: Arc<Mutex<Turn>>,
    search: Search,
    slot: Arc<GeneratorSlot>,
}

impl Suspended {
    fn go_on(self, result: Result<(), Cause>) {
        let Self { turn, search, slot } = self;
        let mut turn = lock(&turn);
        if matches!(*turn, Turn::Asked) {
            *turn = Turn::Continued(Box::new(search), result);
            return;
        }
        drop(turn);
        if let Some(search) = search.continued(&slot, result) {
            resume(search);
        }
    }
}

/// A lookup in the hands of a generator, which decides when it goes on, and from which thread.
///
/// Dropped, it fails the lookup.
#[must_use = "dropped, it fails the lookup"]
pub struct LookupState {
    kind: LookupKind,
    dylib: JitDylib,
    visibility: DylibLookup,
    names: Vec<SymbolName>,
    suspended: Option<Suspended>,
}

impl LookupState {
    /// What the lookup is for.
    #[must_use]
    pub fn kind(&self) -> LookupKind {
        self.kind
    }

    /// The dylib to define symbols in.
    #[must_use]
    pub fn dylib(&self) -> &JitDylib {
        &self.dylib
    }

    /// Which of the dylib's symbols the lookup will see.
    #[must_use]
    pub fn visibility(&self) -> DylibLookup {
        self.visibility
    }

    /// The names that the dylib does not have.
    #[must_use]
    pub fn names(&self) -> &[SymbolName] {
        &self.names
    }

    /// Lets the lookup go on: what was defined meanwhile is found, the other names go on to the
    /// next generator or dylib. An error fails the lookup.
    pub fn continue_lookup(mut self, result: Result<(), GeneratorError>) {
        if let Some(suspended) = self.suspended.take() {
            suspended.go_on(result.map_err(Cause::Generator));
        }
    }
}

impl Drop for LookupState {
    fn drop(&mut self) {
        if let Some(suspended) = self.suspended.take() {
            suspended.go_on(Err(Cause::Generator("it dropped the lookup".into())));
        }
    }
}

impl std::fmt::Debug for LookupState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LookupState").field("names", &self.names).finish_non_exhaustive()
    }
}

impl JitDylib {
    /// Appends a generator.
    ///
    /// # Errors
    ///
    /// When the dylib was removed.
    pub fn add_generator(&self, generator: Arc<dyn DefinitionGenerator>) -> Result<(), Error> {
        let mut state = self.session.state();
        state.dylibs.get_mut(self.id).ok_or(Error::DylibGone)?.generators.push(GeneratorSlot::new(generator));
        state.symbols.published().set_generates(self.id, true);
        Ok(())
    }

    /// The generators of the dylibs in the link order, in that order.
    pub(crate) fn generators_in_order(&self) -> Vec<Arc<dyn DefinitionGenerator>> {
        let state = self.session.state();
        let order = state.dylibs.get(self.id).map(|dylib| &dylib.link_order[..]).unwrap_or_default();
        let dylibs = order.iter().filter_map(|(id, _)| state.dylibs.get(*id));
        dylibs.flat_map(|dylib| dylib.generators.iter().map(|slot| Arc::clone(&slot.generator))).collect()
    }

    /// Removes a generator. A lookup that it has suspended fails; those parked behind go on
    /// without it.
    ///
    /// # Errors
    ///
    /// When the dylib was removed.
    pub fn remove_generator(&self, generator: &Arc<dyn DefinitionGenerator>) -> Result<(), Error> {
        let slot = {
            let mut state = self.session.state();
            let generators = &mut state.dylibs.get_mut(self.id).ok_or(Error::DylibGone)?.generators;
            let position = generators.iter().position(|slot| Arc::ptr_eq(&slot.generator, generator));
            let removed = position.map(|position| generators.remove(position));
            let generates = !generators.is_empty();
            state.symbols.published().set_generates(self.id, generates);
            removed
        };
        if let Some(slot) = slot {
            self.session.close_generator(&slot, || Cause::GeneratorRemoved);
        }
        Ok(())
    }
}

impl ExecutionSession {
    /// Has searches go on that wait for the turn of one which waits for them.
    fn resume_kept_up(&self) {
        loop {
            let kept_up = self.state().search_kept_up();
            match kept_up.and_then(|(slot, search)| slot.unpark(&search)) {
                Some(search) => resume(search),
                None => return,
            }
        }
    }

    pub(crate) fn close_generator(&self, slot: &GeneratorSlot, cause: impl Fn() -> Cause) {
        let (current, parked) = slot.close();
        if let Some(control) = current {
            self.cancel(&control, cause());
        }
        parked.into_iter().for_each(resume);
    }
}
