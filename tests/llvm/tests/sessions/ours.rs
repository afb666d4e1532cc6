//! A history through Orcane's session.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use orcane::linker::arch::Architecture;
use orcane::linker::memory::PageManager;
use orcane::{
    Alias, Cause, DylibLookup, Error, ExecutionSession, InPlaceDispatcher, InProcess, JitDylib, LookupError, LookupSet,
    MaterializationResponsibility, MaterializationUnit, ResourceTracker, SearchOrder, SymbolDeclaration, SymbolDef,
    SymbolFailure, SymbolFlags, SymbolLookup, SymbolName, SymbolState, UnitDefinition,
};

use crate::history::Step;

pub(crate) struct Player {
    session: ExecutionSession,
    dylibs: Vec<JitDylib>,
    trackers: Vec<ResourceTracker>,
    units: u64,
    /// What is known of each tracker.
    past: Vec<Past>,
    /// Names in dylibs of which a tracker had a definition, which another has replaced before the tracker was removed.
    outlived: Vec<(usize, String)>,
    /// Whether something was defined through a tracker that had been removed.
    reuses: bool,
    /// What each dylib searches, from itself on.
    links: Vec<Vec<usize>>,
    /// The lookups of units that have not found all in this step.
    unfound: Arc<Mutex<Vec<Unfound>>>,
    /// What units asked for together with what was hidden from them.
    lost: BTreeSet<String>,
}

/// A unit's lookup that has not found all.
struct Unfound {
    dylib: usize,
    asked: Vec<SymbolName>,
    missing: Vec<SymbolName>,
}

/// What a tracker went through.
#[derive(Default)]
struct Past {
    dylib: usize,
    /// The names that it has had definitions of.
    had: Vec<String>,
    was_removed: bool,
}

/// An answer. Of a failure it says all, where LLVM says the first it comes to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) text: String,
    /// The whole error.
    pub(crate) detail: String,
    /// Whether a symbol failed, be others missing or not.
    pub(crate) has_failed: bool,
    /// The names in searched dylibs whose first definition's tracker was removed after another had taken its place.
    pub(crate) outlives: Vec<String>,
    /// The same in any dylib, where what is searched may lead.
    pub(crate) outlived: Vec<String>,
    /// Whether something was defined through a tracker that had been removed.
    pub(crate) reuses: bool,
    /// Whether something was removed that a symbol needed.
    pub(crate) because_of_removal: bool,
    /// Whether a re-export has failed because nothing had the name it is for.
    pub(crate) dangles: bool,
    /// The names that are missing because a dylib hides them, or have failed where the search went on to, if others were
    /// asked for with them.
    pub(crate) hides: Vec<String>,
    /// What units have asked for, until now, together with what was hidden from them.
    pub(crate) lost: Vec<String>,
    /// Whether what was removed had failed before.
    pub(crate) was_failed: bool,
}

impl From<&str> for Answer {
    fn from(text: &str) -> Self {
        Self { text: text.to_owned(), ..Self::default() }
    }
}

fn visibility(all: bool) -> DylibLookup {
    if all { DylibLookup::All } else { DylibLookup::Exported }
}

fn flags(text: &str) -> SymbolFlags {
    SymbolFlags {
        exported: text.contains('e'),
        weak: text.contains('w'),
        common: text.contains('c'),
        ..SymbolFlags::HIDDEN
    }
}

impl Player {
    pub(crate) fn new() -> Self {
        let executor = InProcess::new(Architecture::host().unwrap(), Arc::new(PageManager::new()));
        let session = ExecutionSession::new(Box::new(executor), Box::new(InPlaceDispatcher::new()), None);
        let (dylibs, trackers, past, outlived) = Default::default();
        let (links, unfound, lost) = Default::default();
        Self { session, dylibs, trackers, units: 0, past, outlived, reuses: false, links, unfound, lost }
    }

    fn tracker(&self, dylib: usize, tracker: Option<usize>) -> ResourceTracker {
        tracker.map_or_else(|| self.dylibs[dylib].default_tracker().unwrap(), |tracker| self.trackers[tracker].clone())
    }

    pub(crate) fn play(&mut self, step: &Step) -> Answer {
        let answer = self.answer(step);
        self.note_lost();
        let outlived = self.outlived.iter().map(|(_, name)| name.clone()).collect();
        Answer { reuses: self.reuses, lost: self.lost.iter().cloned().collect(), outlived, ..answer }
    }

    /// Notes what was asked for together with what a dylib hides.
    fn note_lost(&mut self) {
        let unfound = std::mem::take(&mut *self.unfound.lock().unwrap_or_else(PoisonError::into_inner));
        for Unfound { dylib, asked, missing } in unfound {
            let has = |name| self.links[dylib].iter().any(|&other| self.has(other, name));
            if asked.len() > 1 && missing.iter().any(has) {
                self.lost.extend(asked.iter().map(|name| name.as_str().to_owned()));
            }
        }
    }

    fn has(&self, dylib: usize, name: &SymbolName) -> bool {
        self.session.symbol_state(&self.dylibs[dylib], name).is_some()
    }

    /// Notes that a tracker was given definitions, which it has if that was well.
    fn note<'a>(&mut self, tracker: Option<usize>, names: impl Iterator<Item = &'a String>, given: &Answer) {
        let Some(past) = tracker.map(|tracker| &mut self.past[tracker]) else { return };
        self.reuses |= past.was_removed;
        if given.text == "ok" {
            past.had.extend(names.cloned());
        }
    }

    fn answer(&mut self, step: &Step) -> Answer {
        match step {
            Step::Dylib => {
                self.links.push(vec![self.dylibs.len()]);
                self.dylibs.push(self.session.create_dylib(&name_of(self.dylibs.len())).unwrap());
                "ok".into()
            }
            Step::Link { dylib, other, all } => {
                self.links[*dylib].push(*other);
                answer(self.dylibs[*dylib].add_to_link_order(&self.dylibs[*other], visibility(*all)))
            }
            Step::Tracker { dylib } => {
                self.trackers.push(self.dylibs[*dylib].create_tracker().unwrap());
                self.past.push(Past { dylib: *dylib, ..Past::default() });
                "ok".into()
            }
            Step::Remove { tracker } => {
                let result = self.trackers[*tracker].remove();
                let past = &mut self.past[*tracker];
                past.was_removed = true;
                let (dylib, had) = (past.dylib, std::mem::take(&mut past.had));
                let is_there = |name: &String| self.has(dylib, &self.session.intern(name));
                let outlived: Vec<_> = had.into_iter().filter(is_there).map(|name| (dylib, name)).collect();
                self.outlived.extend(outlived);
                answer(result)
            }
            Step::Clear { dylib } => {
                self.past.iter_mut().filter(|past| past.dylib == *dylib).for_each(|past| past.was_removed = true);
                answer(self.dylibs[*dylib].clear())
            }
            Step::Erase { dylib, name } => {
                let outlives = self.outlives(&[(*dylib, true)]);
                let (dylib, name) = (&self.dylibs[*dylib], self.session.intern(name));
                let was_failed = self.session.symbol_state(dylib, &name).is_some_and(|(_, cause)| cause.is_some());
                Answer { was_failed, outlives, ..answer(dylib.remove_symbols(&[name])) }
            }
            Step::Define { dylib, tracker, mode, symbols, needs } => {
                self.units += 1;
                let addresses = 256 * self.units..;
                let names = symbols.iter().map(|(name, _)| name);
                let symbols: Vec<_> = symbols
                    .iter()
                    .zip(addresses)
                    .map(|((name, of), at)| (self.session.intern(name), flags(of), at))
                    .collect();
                let needs = needs.iter().map(|name| self.session.intern(name)).collect();
                let declarations = symbols.iter().map(|(name, flags, _)| SymbolDeclaration {
                    name: name.clone(),
                    flags: *flags,
                    signature: None,
                });
                let definition = UnitDefinition {
                    symbols: declarations.collect(),
                    unit: Box::new(Unit {
                        addresses: symbols.iter().map(|(name, _, at)| (name.clone(), *at)).collect(),
                        needs,
                        mode,
                        dylib: *dylib,
                        unfound: Arc::clone(&self.unfound),
                    }),
                    name: "unit".into(),
                };
                let defined = answer(self.tracker(*dylib, *tracker).define(vec![definition]));
                self.note(*tracker, names, &defined);
                Answer { outlives: self.outlives(&[(*dylib, true)]), ..defined }
            }
            Step::Alias { dylib, tracker, name, flags: of, source, aliasee, all } => {
                let own = name;
                let [name, aliasee] = [name, aliasee].map(|name| self.session.intern(name));
                let order = SearchOrder::new().then(&self.dylibs[*source], visibility(*all));
                let alias = Alias { name, aliasee, flags: flags(of) };
                let defined = answer(self.tracker(*dylib, *tracker).define_aliases(&order, vec![alias]));
                self.note(*tracker, std::iter::once(own), &defined);
                Answer { outlives: self.outlives(&[(*dylib, true)]), ..defined }
            }
            Step::Lookup { order: dylibs, names } => {
                let order = dylibs
                    .iter()
                    .fold(SearchOrder::new(), |order, (dylib, all)| order.then(&self.dylibs[*dylib], visibility(*all)));
                let names = names.iter().fold(LookupSet::new(), |set, (name, required)| {
                    let lookup = if *required { SymbolLookup::Required } else { SymbolLookup::WeaklyReferenced };
                    set.with(self.session.intern(name), lookup)
                });
                let is_alone = names.len() == 1;
                let outlives = self.outlives(dylibs);
                match self.session.lookup(&order, names) {
                    Ok(found) => {
                        let mut found: Vec<_> = found
                            .iter()
                            .map(|symbol| format!(" {}={}", symbol.name.as_str(), symbol.definition.address))
                            .collect();
                        found.sort();
                        Answer { text: format!("found{}", found.concat()), outlives, ..Answer::default() }
                    }
                    Err(error) => {
                        let hides = if is_alone { Vec::new() } else { self.hides(dylibs, &error) };
                        Answer { hides, outlives, ..failure(&error) }
                    }
                }
            }
        }
    }

    /// The names that were replaced before their first definition's tracker was removed, in the dylibs that are searched.
    fn outlives(&self, order: &[(usize, bool)]) -> Vec<String> {
        let searched = |dylib: usize| order.iter().any(|(other, _)| *other == dylib);
        self.outlived.iter().filter(|(dylib, _)| searched(*dylib)).map(|(_, name)| name.clone()).collect()
    }

    /// The names that a searched dylib has and hides, of those that are missing, or have failed in a later one.
    fn hides(&self, order: &[(usize, bool)], error: &LookupError) -> Vec<String> {
        let is_hidden = |failure: &&SymbolFailure| {
            let is_missing = matches!(*failure.cause, Cause::NotFound);
            let mut hiding = order.iter().take_while(|(dylib, _)| is_missing || name_of(*dylib) != failure.dylib);
            hiding.any(|(dylib, _)| self.has(*dylib, &failure.name))
        };
        error.failures.iter().filter(is_hidden).map(|failure| failure.name.as_str().to_owned()).collect()
    }
}

fn name_of(dylib: usize) -> String {
    format!("d{dylib}")
}

fn not_found(error: &LookupError) -> impl Iterator<Item = &SymbolName> {
    let missing = error.failures.iter().filter(|failure| matches!(*failure.cause, Cause::NotFound));
    missing.map(|failure| &failure.name)
}

fn answer(result: Result<(), Error>) -> Answer {
    match result {
        Ok(()) => "ok".into(),
        Err(Error::DuplicateDefinitions(_)) => "duplicate".into(),
        Err(Error::DefunctTracker) => "defunct".into(),
        Err(Error::SymbolsBusy(_)) => "busy".into(),
        Err(Error::SymbolsNotFound(names)) => missing(names.iter().map(|name| name.as_str().to_owned()).collect()),
        Err(error) => Answer { text: error.to_string(), ..Answer::default() },
    }
}

fn missing(mut names: Vec<String>) -> Answer {
    names.sort();
    Answer { text: format!("missing {}", names.join(" ")), ..Answer::default() }
}

fn failure(error: &LookupError) -> Answer {
    let (not_found, failed): (Vec<_>, Vec<_>) =
        error.failures.iter().partition(|failure| matches!(*failure.cause, Cause::NotFound));
    let because_of_removal = failed.iter().any(|failure| removed(&failure.cause));
    let dangles = failed.iter().any(
        |failure| matches!(&*failure.cause, Cause::Dependency { cause, .. } if matches!(**cause, Cause::NotFound)),
    );
    let names: Vec<_> = not_found.iter().map(|failure| failure.name.as_str().to_owned()).collect();
    let answer = if names.is_empty() { "failed".into() } else { missing(names) };
    Answer { has_failed: !failed.is_empty(), because_of_removal, dangles, detail: error.to_string(), ..answer }
}

fn removed(cause: &Cause) -> bool {
    match cause {
        Cause::Removed => true,
        Cause::Dependency { cause, .. } => removed(cause),
        // What a unit has looked up.
        Cause::Session(Error::Lookup(error)) => error.failures.iter().any(|failure| removed(&failure.cause)),
        _ => false,
    }
}

struct Unit {
    addresses: Vec<(SymbolName, u64)>,
    needs: Vec<SymbolName>,
    mode: &'static str,
    dylib: usize,
    unfound: Arc<Mutex<Vec<Unfound>>>,
}

impl MaterializationUnit for Unit {
    fn materialize(self: Box<Self>, own: MaterializationResponsibility) {
        let Self { addresses, needs, mode, dylib, unfound } = *self;
        let failed = || Cause::Other("as the history says".into());
        if mode == "fails" {
            return own.fail(failed());
        }
        let names: Vec<_> = own.symbols().into_iter().map(|symbol| symbol.name).collect();
        let definitions: Vec<_> = addresses
            .into_iter()
            .filter(|(name, _)| names.contains(name))
            .map(|(name, at)| (name, SymbolDef::at(at)))
            .collect();
        own.resolve(&definitions).unwrap();
        if mode == "fails-late" {
            return own.fail(failed());
        }
        let (session, order) = (own.session().clone(), own.link_order());
        session.lookup_async(&order, needs.clone(), SymbolState::Resolved, move |found| match found {
            Ok(found) => {
                let pairs =
                    names.iter().flat_map(|name| found.iter().map(move |needed| (name.clone(), needed.clone())));
                // If one that it needs has failed, this has failed with it.
                _ = own.emit(&pairs.collect::<Vec<_>>());
            }
            Err(error) => {
                let missing = not_found(&error).cloned().collect();
                unfound.lock().unwrap_or_else(PoisonError::into_inner).push(Unfound { dylib, asked: needs, missing });
                own.fail(Cause::Session(error.into()));
            }
        });
    }

    fn discard(&mut self, name: &SymbolName) {
        self.addresses.retain(|(own, _)| own != name);
    }
}
