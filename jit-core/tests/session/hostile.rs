//! What users' code does and had better not: whoever waits is told all the same, and the session goes on.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use jit_core::{
    Cause, DefinitionGenerator, Error, ErrorReporter, ExecutionSession, InPlaceDispatcher, InProcess, JitDylib,
    LookupState, MaterializationResponsibility, Platform, RemovalPolicy, ResourceTracker, SymbolDef, SymbolFlags,
    SymbolState, Task, TaskDispatcher, ThreadPoolDispatcher,
};

use crate::stage::{Custom, Stage, answered, because, failed};

const STRONG: SymbolFlags = SymbolFlags::EXPORTED;
const PATIENCE: Duration = Duration::from_secs(20);

/// Fails if `test` does not end.
fn within_patience<R: Send + 'static>(test: impl FnOnce() -> R + Send + 'static) -> R {
    let (send, receive) = mpsc::channel();
    std::thread::spawn(move || send.send(catch_unwind(AssertUnwindSafe(test))));
    match receive.recv_timeout(PATIENCE).expect("it does not end") {
        Ok(result) => result,
        Err(payload) => std::panic::resume_unwind(payload),
    }
}

fn dispatchers() -> [Box<dyn TaskDispatcher>; 2] {
    [Box::new(InPlaceDispatcher::new()), Box::new(ThreadPoolDispatcher::new(1).unwrap())]
}

fn stage_with_reporter(dispatcher: Box<dyn TaskDispatcher>, reporter: ErrorReporter) -> Stage {
    let architecture = jit_linker::arch::Architecture::host().unwrap();
    let memory = Arc::new(jit_linker::memory::PageManager::new());
    let executor = Box::new(InProcess::new(architecture, memory));
    let session = ExecutionSession::new(executor, dispatcher, Some(reporter));
    let dylib = session.create_dylib("main").unwrap();
    Stage { session, dylib, running: Arc::default(), log: Arc::default() }
}

fn define(stage: &Stage, name: &str, materialize: impl FnOnce(MaterializationResponsibility) + Send + 'static) {
    let unit = stage.definition(&[(name, STRONG)], Custom(materialize));
    stage.dylib.default_tracker().unwrap().define(vec![unit]).unwrap();
}

/// Defines all that a responsibility is for.
fn done(responsibility: MaterializationResponsibility) {
    let symbols = responsibility.symbols();
    let definitions: Vec<_> = symbols.iter().map(|own| (own.name.clone(), SymbolDef::at(0x1000))).collect();
    responsibility.resolve(&definitions).unwrap();
    responsibility.emit(&[]).unwrap();
}

#[test]
fn a_panic_that_the_unit_catches_fails_its_symbols() {
    for dispatcher in dispatchers() {
        let error = within_patience(|| {
            let stage = Stage::with(dispatcher);
            define(&stage, "foo", |responsibility| {
                let caught = catch_unwind(AssertUnwindSafe(move || {
                    let _mine = responsibility;
                    panic!("a defect of the front end");
                }));
                assert!(caught.is_err());
            });
            stage.address("foo")
        });
        assert_eq!(
            error,
            Err("symbol 'foo' in dylib 'main': unit of foo was dropped before it was materialized".into())
        );
    }
}

#[test]
fn a_unit_may_wait_for_what_a_panic_it_caught_has_dropped() {
    for dispatcher in dispatchers() {
        let error = within_patience(|| {
            let stage = Stage::with(dispatcher);
            let (send, receive) = mpsc::channel();
            define(&stage, "foo", move |responsibility| {
                let (session, order) = (responsibility.session().clone(), responsibility.link_order());
                _ = catch_unwind(AssertUnwindSafe(move || {
                    let _mine = responsibility;
                    panic!("a defect of the front end");
                }));
                let found = session.lookup(&order, vec![session.intern("foo")]);
                send.send(found.unwrap_err().to_string()).unwrap();
            });
            stage.address("foo").unwrap_err();
            receive.recv().unwrap()
        });
        assert!(error.contains("was dropped before it was materialized"), "{error}");
    }
}

#[test]
fn a_reporter_that_panics_keeps_no_answer_back() {
    for dispatcher in dispatchers() {
        within_patience(|| {
            let stage = stage_with_reporter(dispatcher, Box::new(|_, _| panic!("the reporter")));
            define(&stage, "foo", |responsibility| responsibility.fail(because("no")));
            define(&stage, "bar", |responsibility| {
                let _mine = responsibility;
                panic!("the unit");
            });
            define(&stage, "fine", done);
            assert_eq!(stage.address("foo"), Err("symbol 'foo' in dylib 'main': no".into()));
            assert_eq!(
                stage.address("bar"),
                Err("symbol 'bar' in dylib 'main': unit of bar panicked: the unit".into())
            );
            assert_eq!(stage.address("fine"), Ok(0x1000));
        });
    }
}

/// Panics when it is dropped, and counts that.
struct Bomb(Arc<AtomicUsize>);

impl Drop for Bomb {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::Relaxed);
        panic!("a resource");
    }
}

#[test]
fn resources_that_panic_when_they_are_dropped_keep_no_answer_back_and_no_other_resource() {
    within_patience(|| {
        let dropped = Arc::new(AtomicUsize::new(0));
        let bomb = || Box::new(Bomb(Arc::clone(&dropped)));
        let stage = Stage::new();
        let tracker = stage.dylib.create_tracker().unwrap();
        stage.define_in(&tracker, "foo", STRONG);
        let answer = stage.lookup(&["foo"], SymbolState::Ready);
        (0..3).for_each(|_| tracker.hold(bomb()).unwrap());
        tracker.remove().unwrap();
        assert_eq!(answered(&answer), failed("symbol 'foo' in dylib 'main': removed"));
        stage.running.lock().unwrap().clear();
        assert_eq!(dropped.load(Ordering::Relaxed), 3);
    });
}

#[test]
fn units_that_panic_when_they_are_dropped_keep_no_other_unit_nor_the_end_of_the_session() {
    within_patience(|| {
        let dropped = Arc::new(AtomicUsize::new(0));
        let stage = Stage::new();
        let define = |name: &&str| {
            let bomb = Bomb(Arc::clone(&dropped));
            define(&stage, name, move |responsibility| drop((bomb, responsibility)));
        };
        ["foo", "bar"].iter().for_each(define);
        stage.dylib.clear().unwrap();
        assert_eq!(dropped.load(Ordering::Relaxed), 2);
        ["foo", "bar"].iter().for_each(define);
        stage.session.end();
        assert_eq!(dropped.load(Ordering::Relaxed), 4);
    });
}

/// Takes the session's lock when it is dropped.
struct Owner(ResourceTracker);

impl Drop for Owner {
    fn drop(&mut self) {
        assert!(!self.0.is_defunct());
    }
}

#[test]
fn units_that_are_refused_are_dropped_without_the_lock() {
    within_patience(|| {
        let stage = Stage::new();
        stage.define_absolute("foo", 1);
        let owner = || Owner(stage.dylib.create_tracker().unwrap());
        let unit = |name: &str| {
            let owner = owner();
            stage.definition(&[(name, STRONG)], Custom(move |responsibility| drop((owner, responsibility))))
        };
        let default = stage.dylib.default_tracker().unwrap();
        assert!(matches!(default.define(vec![unit("foo")]), Err(Error::DuplicateDefinitions(_))));

        let other = stage.session.create_dylib("other").unwrap();
        let defunct = other.default_tracker().unwrap();
        other.remove().unwrap();
        assert!(matches!(defunct.define(vec![unit("bar")]), Err(Error::DefunctTracker)));

        stage.define("baz");
        let _answer = stage.lookup(&["baz"], SymbolState::Ready);
        let unit_of_baz = stage.take("baz");
        assert!(matches!(unit_of_baz.replace(unit("elsewhere")), Err(Error::UnexpectedDefinition(_))));
        unit_of_baz.fail(because("no"));
    });
}

#[test]
fn an_error_of_the_users_is_dropped_without_the_lock() {
    #[derive(Debug)]
    struct Failure(#[expect(dead_code, reason = "only dropped")] Arc<Mutex<Option<ResourceTracker>>>);
    impl std::fmt::Display for Failure {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("a failure")
        }
    }
    impl std::error::Error for Failure {}
    within_patience(|| {
        let stage = Stage::new();
        let tracker = stage.dylib.create_tracker().unwrap();
        stage.define_in(&tracker, "foo", STRONG);
        let answer = stage.lookup(&["foo"], SymbolState::Ready);
        let owned = Arc::new(Mutex::new(Some(stage.dylib.create_tracker().unwrap())));
        stage.take("foo").fail(Cause::Other(Box::new(Failure(owned))));
        assert_eq!(answered(&answer), failed("symbol 'foo' in dylib 'main': a failure"));
        tracker.remove().unwrap();
        assert_eq!(stage.state("foo"), None);
    });
}

/// Drops the next tasks it is told to, and runs the others in place.
struct Forgetful {
    inner: InPlaceDispatcher,
    drops_next: Arc<AtomicBool>,
}

impl TaskDispatcher for Forgetful {
    fn dispatch(&self, tasks: Vec<Task>) {
        if self.drops_next.swap(false, Ordering::SeqCst) {
            drop(tasks);
        } else {
            self.inner.dispatch(tasks);
        }
    }

    fn wait(&self, done: &dyn Fn() -> bool, deadline: Option<Instant>) {
        self.inner.wait(done, deadline);
    }

    fn wake(&self) {
        self.inner.wake();
    }
}

#[test]
fn a_search_that_the_dispatcher_drops_gives_its_turn_up() {
    struct Keeps(Arc<Mutex<Vec<LookupState>>>);
    impl DefinitionGenerator for Keeps {
        fn try_to_generate(&self, lookup: LookupState) {
            self.0.lock().unwrap().push(lookup);
        }
    }
    within_patience(|| {
        let drops_next = Arc::new(AtomicBool::new(false));
        let dispatcher = Forgetful { inner: InPlaceDispatcher::new(), drops_next: Arc::clone(&drops_next) };
        let stage = Stage::with(Box::new(dispatcher));
        let kept = Arc::default();
        stage.dylib.add_generator(Arc::new(Keeps(Arc::clone(&kept)))).unwrap();
        let next = || -> LookupState { kept.lock().unwrap().remove(0) };
        let [one, two, three] = ["one", "two", "three"].map(|name| stage.lookup(&[name], SymbolState::Ready));
        let first = next();
        drops_next.store(true, Ordering::SeqCst);
        first.continue_lookup(Ok(()));
        assert_eq!(answered(&one), failed("symbol 'one' in dylib 'main': not found"));
        assert_eq!(answered(&two), failed("symbol 'two': the lookup was cancelled"));
        next().continue_lookup(Ok(()));
        assert_eq!(answered(&three), failed("symbol 'three' in dylib 'main': not found"));
    });
}

#[test]
fn a_removed_tracker_is_what_a_late_definition_is_told_of() {
    let stage = Stage::new();
    let tracker = stage.dylib.create_tracker().unwrap();
    stage.define_in(&tracker, "foo", STRONG);
    let _answer = stage.lookup(&["foo"], SymbolState::Ready);
    let unit = stage.take("foo");
    tracker.remove().unwrap();
    let definition = (stage.name("foo"), SymbolDef::at(1));
    assert!(matches!(unit.resolve(&[definition]), Err(Error::DefunctTracker)));
}

#[test]
fn bytes_of_a_unit_that_failed_are_not_held() {
    let stage = Stage::new();
    let tracker = stage.dylib.create_tracker().unwrap();
    tracker.set_memory_limit(Some(1000)).unwrap();
    for name in ["foo", "bar"] {
        stage.define_in(&tracker, name, STRONG);
        let _answer = stage.lookup(&[name], SymbolState::Ready);
        let unit = stage.take(name);
        unit.charge(900).unwrap();
        assert_eq!(tracker.memory_used().unwrap(), 900);
        unit.fail(because("no"));
        assert_eq!(tracker.memory_used().unwrap(), 0);
    }
}

#[test]
fn more_bytes_than_there_are_numbers_are_refused() {
    let stage = Stage::new();
    let tracker = stage.dylib.create_tracker().unwrap();
    stage.define_in(&tracker, "foo", STRONG);
    let _answer = stage.lookup(&["foo"], SymbolState::Ready);
    let unit = stage.take("foo");
    unit.charge(u64::MAX).unwrap();
    assert!(matches!(unit.charge(1), Err(Error::MemoryLimit { needed: 1, limit: u64::MAX })));
    assert_eq!(tracker.memory_used().unwrap(), u64::MAX);
    unit.fail(because("no"));
    assert_eq!(tracker.memory_used().unwrap(), 0);
}

#[test]
fn a_platform_is_told_of_no_removal_that_is_refused() {
    struct Told(Arc<Mutex<Vec<String>>>);
    impl Platform for Told {
        fn teardown_dylib(&self, dylib: &JitDylib) {
            self.0.lock().unwrap().push(dylib.name().unwrap());
        }
    }
    let stage = Stage::new();
    let told = Arc::default();
    stage.session.set_platform(Some(Arc::new(Told(Arc::clone(&told)))));
    let library = stage.session.create_dylib("library").unwrap();
    let needed = library.default_tracker().unwrap();
    stage.define_in(&needed, "needed", STRONG);
    stage.dylib.add_to_link_order(&library, jit_core::DylibLookup::Exported).unwrap();
    let _answer = stage.lookup(&["needed"], SymbolState::Ready);
    stage.finish("needed");
    stage.ready("user", &["needed"]);
    assert!(matches!(library.remove_with(RemovalPolicy::Refuse), Err(Error::InUse(_))));
    assert_eq!(*told.lock().unwrap(), [""; 0]);
    library.remove().unwrap();
    assert_eq!(*told.lock().unwrap(), ["library"]);
}

#[test]
fn a_platform_is_told_of_each_dylib_when_the_session_ends() {
    struct Told(Arc<Mutex<Vec<String>>>);
    impl Platform for Told {
        fn teardown_dylib(&self, dylib: &JitDylib) {
            let session = dylib.session();
            // All that there is can be found yet, and nothing new comes.
            let found = session.lookup(&dylib.link_order(), vec![session.intern("there")]).map(|found| found.len());
            assert!(matches!(session.create_dylib("late"), Err(Error::SessionEnded)));
            self.0.lock().unwrap().push(format!("{} {:?}", dylib.name().unwrap(), found.ok()));
            if dylib.name().unwrap() == "second" {
                // What it does itself, and what it does wrong.
                session.dylib("gone").unwrap().remove().unwrap();
                session.end();
                panic!("the platform");
            }
        }
    }
    within_patience(|| {
        let stage = Stage::new();
        let told = Arc::default();
        stage.session.set_platform(Some(Arc::new(Told(Arc::clone(&told)))));
        stage.define_absolute("there", 1);
        stage.define("never");
        let answer = stage.lookup(&["never"], SymbolState::Ready);
        stage.session.create_dylib("gone").unwrap();
        stage.session.create_dylib("first").unwrap();
        stage.session.end();
        assert_eq!(*told.lock().unwrap(), ["first None", "gone None", "main Some(1)"]);
        assert_eq!(answered(&answer), failed("symbol 'never' in dylib 'main': the session has ended"));
        stage.session.end();
        assert_eq!(told.lock().unwrap().len(), 3);

        let stage = Stage::new();
        let told = Arc::default();
        stage.session.set_platform(Some(Arc::new(Told(Arc::clone(&told)))));
        stage.session.create_dylib("gone").unwrap();
        stage.session.create_dylib("second").unwrap();
        let answer = stage.lookup(&["missing"], SymbolState::Ready);
        assert!(answered(&answer).unwrap().is_err());
        stage.session.end();
        assert_eq!(*told.lock().unwrap(), ["second None", "gone None"]);
        assert!(stage.dylib.name().is_err());
        stage.running.lock().unwrap().clear();
    });
}

#[test]
fn a_cycle_that_closes_when_a_unit_is_emitted_is_an_error() {
    for threads in [0, 1, 2] {
        let error = within_patience(move || {
            let stage = match threads {
                0 => Stage::new(),
                count => Stage::with(Box::new(ThreadPoolDispatcher::new(count).unwrap())),
            };
            // Has its address, and waits for what is ready only when it is.
            define(&stage, "foo", |responsibility| {
                let (session, order) = (responsibility.session().clone(), responsibility.link_order());
                let own = responsibility.symbols()[0].name.clone();
                responsibility.resolve(&[(own, SymbolDef::at(1))]).unwrap();
                match session.lookup(&order, vec![session.intern("bar")]) {
                    Ok(_) => responsibility.emit(&[]).unwrap(),
                    Err(error) => responsibility.fail(Cause::Other(error.into())),
                }
            });
            define(&stage, "bar", |responsibility| {
                let session = responsibility.session().clone();
                let own = responsibility.symbols()[0].name.clone();
                responsibility.resolve(&[(own.clone(), SymbolDef::at(2))]).unwrap();
                let (order, names) = (responsibility.link_order(), vec![session.intern("foo")]);
                session.lookup_async(&order, names, SymbolState::Resolved, move |found| {
                    _ = responsibility.emit(&[(own, found.unwrap().remove(0))]);
                });
            });
            stage.address("foo")
        });
        assert!(error.clone().unwrap_err().contains("a cycle of waits: 'bar' -> 'foo'"), "{error:?}");
    }
}

#[test]
fn a_deadline_is_kept_while_all_threads_are_busy() {
    within_patience(|| {
        let stage = Stage::with(Box::new(ThreadPoolDispatcher::new(1).unwrap()));
        let (start, started) = mpsc::channel();
        let (end, ended) = mpsc::channel::<()>();
        define(&stage, "slow", move |responsibility| {
            start.send(()).unwrap();
            ended.recv().unwrap();
            done(responsibility);
        });
        let slow = stage.lookup(&["slow"], SymbolState::Ready);
        started.recv().unwrap();
        let deadline = Instant::now() + Duration::from_millis(50);
        let error = stage.session.lookup_until(&stage.order(), stage.names(&["slow"]), deadline).unwrap_err();
        assert_eq!(error.to_string(), "symbol 'slow' in dylib 'main': the deadline is over");
        assert_eq!(answered(&slow), None);
        end.send(()).unwrap();
        assert_eq!(stage.address("slow"), Ok(0x1000));
    });
}

#[test]
fn what_a_waiting_thread_was_given_is_done_when_it_leaves() {
    within_patience(|| while !leaves_with_a_task() {});
}

/// False if the waiting thread was not given the task: it did not wait yet.
fn leaves_with_a_task() -> bool {
    let stage = Arc::new(Stage::new());
    stage.define("foo");
    let (entered, enters) = mpsc::channel();
    let (go, goes) = mpsc::channel::<()>();
    let (release, released) = mpsc::channel::<()>();
    define(&stage, "bar", move |responsibility| {
        entered.send(std::thread::current().id()).unwrap();
        goes.recv().unwrap();
        done(responsibility);
    });
    define(&stage, "baz", move |responsibility| {
        released.recv().unwrap();
        done(responsibility);
    });
    let waiter = std::thread::spawn({
        let stage = Arc::clone(&stage);
        move || stage.address("foo")
    });
    while !stage.is_running("foo") {
        std::thread::yield_now();
    }
    let (send, answer) = mpsc::channel();
    let starter = std::thread::spawn({
        let stage = Arc::clone(&stage);
        move || {
            let names = stage.names(&["baz", "bar"]);
            stage.session.lookup_async(&stage.order(), names, SymbolState::Ready, move |found| {
                send.send(found.is_ok()).unwrap();
            });
        }
    });
    release.send(()).unwrap();
    let is_given = enters.recv().unwrap() == waiter.thread().id();
    if is_given {
        starter.join().unwrap();
    }
    // What the waiter waits for is there before it has done what it was given.
    stage.finish("foo");
    go.send(()).unwrap();
    assert_eq!(waiter.join().unwrap(), Ok(0x1000));
    assert_eq!(answer.recv(), Ok(true));
    is_given
}

#[test]
fn lookups_that_were_cancelled_leave_nothing_behind() {
    let stage = Stage::new();
    stage.define_unit(&[("foo", STRONG), ("bar", STRONG)]).unwrap();
    let look_up = |name: &str| {
        stage.session.lookup_async(&stage.order(), stage.names(&[name]), SymbolState::Ready, |found| _ = found)
    };
    let [first, second] = ["foo", "bar"].map(look_up);
    let unit = stage.take("foo");
    assert_eq!(unit.requested_symbols().len(), 2);
    first.cancel();
    assert_eq!(unit.requested_symbols(), stage.names(&["bar"]));
    for _ in 0..1000 {
        look_up("foo").cancel();
    }
    second.cancel();
    assert!(unit.requested_symbols().is_empty());
    // Nobody waits: the other unit is not run before somebody does.
    unit.replace(stage.unit(&[("foo", STRONG)])).unwrap();
    assert!(!stage.is_running("foo"));
    unit.fail(because("no"));
}
