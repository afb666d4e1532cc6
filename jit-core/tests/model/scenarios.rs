//! Two or three threads each, at what a session is most often asked to do at once.

use std::future::Future;
use std::pin::Pin;
use std::sync::Mutex as StdMutex;
use std::task::{Context, Wake, Waker};

use crate::error::{Cause, Error};
use crate::session::*;
use crate::sync::{self, Arc, AtomicBool, AtomicUsize, Condvar, Mutex, Ordering, lock, thread};

/// Kept for as long as the defect is on: all others want the session whole.
static WHOLE: std::sync::RwLock<()> = std::sync::RwLock::new(());

const ROUNDS: usize = 250;

fn check(scenario: fn()) {
    let _whole = WHOLE.read().unwrap_or_else(std::sync::PoisonError::into_inner);
    shuttle::check_random(scenario, ROUNDS);
    shuttle::check_pct(scenario, ROUNDS, 3);
}

fn session(threads: usize) -> (ExecutionSession, JitDylib) {
    let architecture = jit_linker::arch::Architecture::host().unwrap();
    let memory = Arc::new(jit_linker::memory::PageManager::new());
    let dispatcher: Box<dyn TaskDispatcher> = match threads {
        0 => Box::new(InPlaceDispatcher::new()),
        threads => Box::new(ThreadPoolDispatcher::new(threads).unwrap()),
    };
    let session = ExecutionSession::new(Box::new(InProcess::new(architecture, memory)), dispatcher, None);
    let dylib = session.create_dylib("main").unwrap();
    (session, dylib)
}

type Work = Box<dyn FnOnce(MaterializationResponsibility) + Send>;

struct Unit {
    work: Work,
    discarded: Arc<AtomicUsize>,
}

impl MaterializationUnit for Unit {
    fn materialize(self: Box<Self>, responsibility: MaterializationResponsibility) {
        assert_eq!(self.discarded.load(Ordering::SeqCst), self.discarded.load(Ordering::SeqCst));
        (self.work)(responsibility);
    }

    fn discard(&mut self, _: &jit_linker::SymbolName) {
        thread::yield_now();
        self.discarded.fetch_add(1, Ordering::SeqCst);
    }
}

fn unit(session: &ExecutionSession, symbols: &[(&str, SymbolFlags)], work: Work) -> UnitDefinition {
    let symbols = symbols
        .iter()
        .map(|(name, flags)| SymbolDeclaration { name: session.intern(name), flags: *flags, signature: None })
        .collect();
    UnitDefinition { symbols, unit: Box::new(Unit { work, discarded: Arc::default() }), name: "unit".into() }
}

fn define(tracker: &ResourceTracker, name: &str, work: Work) {
    tracker.define(vec![unit(tracker.session(), &[(name, SymbolFlags::EXPORTED)], work)]).unwrap();
}

/// Resolves everything, and needs `needs`, without waiting.
fn linked(needs: &'static [&'static str]) -> Work {
    Box::new(move |responsibility| {
        let own = responsibility.symbols();
        let definitions: Vec<_> = own.iter().map(|own| (own.name.clone(), SymbolDef::at(1))).collect();
        if responsibility.resolve(&definitions).is_err() || needs.is_empty() {
            _ = responsibility.emit(&[]);
            return;
        }
        let session = responsibility.session().clone();
        let names: Vec<_> = needs.iter().map(|name| session.intern(name)).collect();
        let order = responsibility.link_order();
        session.lookup_async(&order, names, SymbolState::Resolved, move |found| match found {
            Ok(found) => {
                let needs: Vec<_> = found.into_iter().map(|found| (own[0].name.clone(), found)).collect();
                _ = responsibility.emit(&needs);
            }
            Err(error) => responsibility.fail(Cause::Other(error.into())),
        });
    })
}

/// Looks `needs` up and waits for it.
fn blocking(needs: &'static str) -> Work {
    Box::new(move |responsibility| {
        let session = responsibility.session().clone();
        match session.lookup(&responsibility.link_order(), vec![session.intern(needs)]) {
            Ok(_) => linked(&[])(responsibility),
            Err(error) => responsibility.fail(Cause::Other(error.into())),
        }
    })
}

fn failing() -> Work {
    Box::new(|responsibility| responsibility.fail(Cause::Other("root".into())))
}

fn look_up(dylib: &JitDylib, name: &str) -> Result<u64, String> {
    let session = dylib.session();
    let found = session.lookup(&dylib.link_order(), vec![session.intern(name)]);
    found.map(|found| found[0].definition.address).map_err(|error| error.to_string())
}

/// Runs both at once, the second on this thread.
fn both<A: Send + 'static, B>(first: impl FnOnce() -> A + Send + 'static, second: impl FnOnce() -> B) -> (A, B) {
    let first = thread::spawn(first);
    let second = second();
    (first.join().unwrap(), second)
}

#[test]
fn two_lookups_of_one_symbol_materialize_it_once() {
    fn scenario() {
        for threads in [0, 1] {
            let (session, dylib) = session(threads);
            let runs = Arc::new(AtomicUsize::new(0));
            let counted = Arc::clone(&runs);
            let work: Work = Box::new(move |responsibility| {
                counted.fetch_add(1, Ordering::SeqCst);
                linked(&[])(responsibility);
            });
            define(&dylib.default_tracker().unwrap(), "a", work);
            let other = dylib.clone();
            assert_eq!(both(move || look_up(&other, "a"), || look_up(&dylib, "a")), (Ok(1), Ok(1)));
            assert_eq!(runs.load(Ordering::SeqCst), 1);
            drop(session);
        }
    }
    check(scenario);
}

#[test]
fn a_lookup_ends_whenever_its_tracker_is_removed() {
    fn scenario() {
        let (session, dylib) = session(1);
        let tracker = dylib.create_tracker().unwrap();
        define(&tracker, "a", linked(&[]));
        let other = dylib.clone();
        let (removed, found) = both(move || tracker.remove(), || look_up(&other, "a"));
        removed.unwrap();
        assert!(matches!(&found, Ok(1)) || found.as_ref().is_err_and(|error| !error.contains("dropped")), "{found:?}");
        assert_eq!((session.statistics().symbols, session.statistics().lookups), (0, 0));
    }
    check(scenario);
}

#[test]
fn everybody_is_told_the_root_of_a_failure() {
    fn scenario() {
        let (_session, dylib) = session(1);
        let tracker = dylib.default_tracker().unwrap();
        define(&tracker, "a", linked(&["b"]));
        define(&tracker, "b", failing());
        let other = dylib.clone();
        let (a, b) = both(move || look_up(&other, "a"), || look_up(&dylib, "b"));
        assert!(a.unwrap_err().ends_with("root"));
        assert_eq!(b.unwrap_err(), "symbol 'b' in dylib 'main': root");
    }
    check(scenario);
}

#[test]
fn a_ring_that_is_entered_from_two_sides_becomes_ready() {
    fn scenario() {
        let (session, dylib) = session(2);
        let tracker = dylib.default_tracker().unwrap();
        define(&tracker, "a", linked(&["b"]));
        define(&tracker, "b", linked(&["a"]));
        let other = dylib.clone();
        assert_eq!(both(move || look_up(&other, "a"), || look_up(&dylib, "b")), (Ok(1), Ok(1)));
        let order = dylib.link_order();
        assert!(["a", "b"].iter().all(|name| session.ready_address(&order, &session.intern(name)) == Some(1)));
    }
    check(scenario);
}

#[test]
fn a_weak_definition_is_either_used_or_overridden() {
    fn scenario() {
        let (session, dylib) = session(0);
        let tracker = dylib.default_tracker().unwrap();
        tracker.define(vec![unit(&session, &[("a", SymbolFlags::WEAK)], linked(&[]))]).unwrap();
        let strong = AbsoluteSymbol {
            name: session.intern("a"),
            definition: SymbolDef::at(2),
            flags: SymbolFlags::EXPORTED,
            signature: None,
        };
        let other = dylib.clone();
        let (defined, found) = both(move || other.define_absolute(vec![strong]), || look_up(&dylib, "a"));
        match defined {
            Ok(()) => assert_eq!(found, Ok(2)),
            Err(Error::DuplicateDefinitions(_)) => assert_eq!(found, Ok(1)),
            Err(error) => panic!("{error}"),
        }
    }
    check(scenario);
}

#[test]
fn a_unit_is_not_run_before_it_was_told_what_to_leave_out() {
    fn scenario() {
        let (session, dylib) = session(1);
        let discarded = Arc::new(AtomicUsize::new(0));
        let seen = Arc::clone(&discarded);
        let work: Work = Box::new(move |responsibility| {
            let told = seen.load(Ordering::SeqCst);
            assert_eq!(responsibility.symbols().len() + told, 2);
            linked(&[])(responsibility);
        });
        let mut definition = unit(&session, &[("a", SymbolFlags::EXPORTED), ("b", SymbolFlags::WEAK)], Box::new(drop));
        definition.unit = Box::new(Unit { work, discarded });
        dylib.default_tracker().unwrap().define(vec![definition]).unwrap();
        let strong = AbsoluteSymbol {
            name: session.intern("b"),
            definition: SymbolDef::at(2),
            flags: SymbolFlags::EXPORTED,
            signature: None,
        };
        let other = dylib.clone();
        let (_, found) = both(move || other.define_absolute(vec![strong]), || look_up(&dylib, "a"));
        assert_eq!(found, Ok(1));
    }
    check(scenario);
}

/// Code that must not be freed while somebody is inside.
struct Code(Arc<AtomicBool>);

impl Drop for Code {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// A thread enters a scope, sees code that is there, and is inside of it while two others remove
/// it and something else.
fn code_outlives_its_callers() {
    let (session, dylib) = session(0);
    let freed = Arc::new(AtomicBool::new(false));
    let tracker = dylib.create_tracker().unwrap();
    let there = Arc::new(AtomicBool::new(true));
    tracker.hold(Box::new(Code(Arc::clone(&freed)))).unwrap();
    let caller = {
        let (session, freed, there) = (session.clone(), Arc::clone(&freed), Arc::clone(&there));
        thread::spawn(move || {
            let scope = session.enter();
            if there.load(Ordering::SeqCst) {
                // Where the code runs.
                for _ in 0..5 {
                    thread::yield_now();
                }
                assert!(!freed.load(Ordering::SeqCst), "code was freed while a thread was inside");
            }
            drop(scope);
        })
    };
    let other = {
        let session = session.clone();
        thread::spawn(move || drop(session.enter()))
    };
    there.store(false, Ordering::SeqCst);
    tracker.remove().unwrap();
    caller.join().unwrap();
    other.join().unwrap();
    assert!(freed.load(Ordering::SeqCst), "code was forgotten");
    assert_eq!(session.statistics().retired, 0);
}

#[test]
fn code_stays_while_a_thread_is_inside_and_goes_afterwards() {
    check(code_outlives_its_callers);
}

/// With the defect, an epoch ends while somebody is still in the one before. To try it by hand, make
/// `sync::is_broken` return true: the scenario above fails then.
#[test]
fn a_defect_in_the_scopes_is_found() {
    let _alone = WHOLE.write().unwrap_or_else(std::sync::PoisonError::into_inner);
    sync::BROKEN.store(true, Ordering::Relaxed);
    let result = std::panic::catch_unwind(|| shuttle::check_random(code_outlives_its_callers, 100 * ROUNDS));
    sync::BROKEN.store(false, Ordering::Relaxed);
    let panic = result.expect_err("the model checker sees nothing");
    let message = panic.downcast_ref::<String>().cloned().or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).into()));
    assert!(message.is_some_and(|message| message.contains("while a thread was inside")));
}

#[derive(Default)]
struct Keeping(Mutex<Vec<LookupState>>, Condvar);

impl DefinitionGenerator for Keeping {
    fn try_to_generate(&self, lookup: LookupState) {
        lock(&self.0).push(lookup);
        self.1.notify_all();
    }
}

impl Keeping {
    fn take(&self) -> LookupState {
        let mut kept = lock(&self.0);
        loop {
            match kept.pop() {
                Some(lookup) => return lookup,
                None => kept = sync::wait(&self.1, kept, None).0,
            }
        }
    }
}

/// Counts its answers.
fn start(dylib: &JitDylib, name: &str, answers: &Arc<AtomicUsize>) -> LookupHandle {
    let session = dylib.session();
    let answers = Arc::clone(answers);
    session.lookup_async(&dylib.link_order(), vec![session.intern(name)], SymbolState::Ready, move |_| {
        answers.fetch_add(1, Ordering::SeqCst);
    })
}

#[test]
fn a_suspended_lookup_is_answered_once_whoever_comes_first() {
    fn scenario() {
        let (_session, dylib) = session(0);
        let keeping = Arc::new(Keeping::default());
        dylib.add_generator(Arc::clone(&keeping) as Arc<dyn DefinitionGenerator>).unwrap();
        let answers = Arc::new(AtomicUsize::new(0));
        let handle = start(&dylib, "a", &answers);
        let lookup = keeping.take();
        both(move || handle.cancel(), || lookup.continue_lookup(Ok(())));
        assert_eq!(answers.load(Ordering::SeqCst), 1);
    }
    check(scenario);
}

#[test]
fn parked_lookups_go_on_when_their_generator_goes() {
    fn scenario() {
        let (session, dylib) = session(0);
        let keeping = Arc::new(Keeping::default());
        let generator = Arc::clone(&keeping) as Arc<dyn DefinitionGenerator>;
        dylib.add_generator(Arc::clone(&generator)).unwrap();
        let answers = Arc::new(AtomicUsize::new(0));
        start(&dylib, "a", &answers);
        start(&dylib, "b", &answers);
        let lookup = keeping.take();
        let other = dylib.clone();
        both(move || other.remove_generator(&generator).unwrap(), || lookup.continue_lookup(Ok(())));
        // The second may have come in before the generator went.
        drop(std::mem::take(&mut *lock(&keeping.0)));
        assert_eq!(answers.load(Ordering::SeqCst), 2);
        assert_eq!(session.statistics().lookups, 0);
    }
    check(scenario);
}

#[test]
fn every_lookup_is_told_that_the_session_has_ended() {
    fn scenario() {
        let (session, dylib) = session(1);
        define(&dylib.default_tracker().unwrap(), "a", linked(&[]));
        let other = dylib.clone();
        let (found, ()) = both(move || look_up(&other, "a"), || session.end());
        assert!(
            found.as_ref().is_ok() || found.as_ref().is_err_and(|error| error.contains("session has ended")),
            "{found:?}"
        );
        assert_eq!(session.statistics(), SessionStatistics::default());
    }
    check(scenario);
}

#[test]
fn one_thread_is_enough_for_units_that_wait_for_each_other() {
    fn scenario() {
        for threads in [0, 1] {
            let (_session, dylib) = session(threads);
            let tracker = dylib.default_tracker().unwrap();
            define(&tracker, "a", blocking("b"));
            define(&tracker, "b", blocking("c"));
            define(&tracker, "c", linked(&[]));
            let other = dylib.clone();
            assert_eq!(both(move || look_up(&other, "b"), || look_up(&dylib, "a")), (Ok(1), Ok(1)));
        }
    }
    check(scenario);
}

#[test]
fn a_cycle_of_waits_ends_however_it_closes() {
    fn scenario() {
        let (_session, dylib) = session(2);
        let tracker = dylib.default_tracker().unwrap();
        define(&tracker, "a", blocking("b"));
        define(&tracker, "b", blocking("a"));
        let other = dylib.clone();
        let (a, b) = both(move || look_up(&other, "a"), || look_up(&dylib, "b"));
        for error in [a.unwrap_err(), b.unwrap_err()] {
            assert!(error.contains("a cycle of waits"), "{error}");
        }
    }
    check(scenario);
}

#[derive(Default)]
struct Filing(StdMutex<Vec<ResourceKey>>);

impl ResourceManager for Filing {
    fn remove(&self, _: &JitDylib, key: ResourceKey) {
        self.0.lock().unwrap().retain(|other| *other != key);
    }

    fn transfer(&self, _: &JitDylib, to: ResourceKey, from: ResourceKey) {
        self.0.lock().unwrap().iter_mut().filter(|key| **key == from).for_each(|key| *key = to);
    }
}

#[test]
fn what_is_filed_goes_with_its_tracker_wherever_that_goes() {
    fn scenario() {
        let (session, dylib) = session(0);
        let filing = Arc::new(Filing::default());
        session.register_resource_manager(Arc::clone(&filing) as Arc<dyn ResourceManager>);
        let (from, to) = (dylib.create_tracker().unwrap(), dylib.create_tracker().unwrap());
        let file = Arc::clone(&filing);
        let work: Work = Box::new(move |responsibility| {
            _ = responsibility.with_resource_key(|key| {
                thread::yield_now();
                file.0.lock().unwrap().push(key);
            });
            linked(&[])(responsibility);
        });
        define(&from, "a", work);
        let other = dylib.clone();
        let target = to.clone();
        let transferred = move || {
            from.transfer_to(&target).unwrap();
            target.remove().unwrap();
        };
        let ((), found) = both(transferred, || look_up(&other, "a"));
        assert!(filing.0.lock().unwrap().is_empty(), "{found:?}");
    }
    check(scenario);
}

#[test]
fn what_is_given_back_is_materialized_for_whoever_comes() {
    fn scenario() {
        let (session, dylib) = session(1);
        let both_names = [("a", SymbolFlags::EXPORTED), ("b", SymbolFlags::EXPORTED)];
        let of = session.clone();
        let work: Work = Box::new(move |responsibility| {
            responsibility.replace(unit(&of, &[("b", SymbolFlags::EXPORTED)], linked(&[]))).unwrap();
            linked(&[])(responsibility);
        });
        dylib.default_tracker().unwrap().define(vec![unit(&session, &both_names, work)]).unwrap();
        let other = dylib.clone();
        assert_eq!(both(move || look_up(&other, "a"), || look_up(&dylib, "b")), (Ok(1), Ok(1)));
        session.end();
    }
    check(scenario);
}

/// Remembers that it was woken.
#[derive(Default)]
struct Bell(Mutex<bool>, Condvar);

impl Wake for Bell {
    fn wake(self: std::sync::Arc<Self>) {
        *lock(&self.0) = true;
        self.1.notify_all();
    }
}

#[test]
fn whoever_awaits_a_lookup_is_woken() {
    fn scenario() {
        let (session, dylib) = session(1);
        define(&dylib.default_tracker().unwrap(), "a", linked(&[]));
        let mut future = session.lookup_future(&dylib.link_order(), vec![session.intern("a")], SymbolState::Ready);
        loop {
            let bell = std::sync::Arc::new(Bell::default());
            let waker = Waker::from(std::sync::Arc::clone(&bell));
            if Pin::new(&mut future).poll(&mut Context::from_waker(&waker)).is_ready() {
                break;
            }
            let mut woken = lock(&bell.0);
            while !*woken {
                woken = sync::wait(&bell.1, woken, None).0;
            }
        }
    }
    check(scenario);
}

#[test]
fn code_that_depends_on_what_is_removed_is_never_ready_without_it() {
    fn scenario() {
        let (session, dylib) = session(1);
        let tracker = dylib.create_tracker().unwrap();
        define(&tracker, "used", linked(&[]));
        define(&dylib.default_tracker().unwrap(), "user", linked(&["used"]));
        let other = dylib.clone();
        let (found, removed) = both(move || look_up(&other, "user"), || tracker.remove());
        removed.unwrap();
        let user = session.intern("user");
        if found.is_ok() {
            assert_eq!(session.ready_address(&dylib.link_order(), &user), None);
        }
        assert!(look_up(&dylib, "user").is_err());
    }
    check(scenario);
}
