//! How failures reach those who wait, and nobody else.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use jit_core::{
    Cause, DefinitionGenerator, ExecutionSession, InPlaceDispatcher, InProcess, LookupError, LookupState,
    MaterializationResponsibility, SymbolDef, SymbolFlags, SymbolState, ThreadPoolDispatcher,
};

use crate::stage::{Custom, SIDE_EFFECTS, Stage, answered, because, failed, ok};

const STRONG: SymbolFlags = SymbolFlags::EXPORTED;

#[test]
fn core_01_a_reporter_that_owns_something_is_told_of_failures() {
    struct State(Vec<String>);
    let state = Arc::new(Mutex::new(State(Vec::new())));
    let to = Arc::clone(&state);
    let architecture = jit_linker::arch::Architecture::host().unwrap();
    let memory = Arc::new(jit_linker::memory::PageManager::new());
    let session = ExecutionSession::new(
        Box::new(InProcess::new(architecture, memory)),
        Box::new(InPlaceDispatcher::new()),
        Some(Box::new(move |symbol, cause| to.lock().unwrap().0.push(format!("{symbol}: {cause}")))),
    );
    let dylib = session.create_dylib("main").unwrap();
    let stage = Stage { session, dylib, running: Arc::default(), log: Arc::default() };
    stage.define_unit(&[("foo", STRONG), ("bar", STRONG)]).unwrap();
    let _answer = stage.lookup(&["foo"], SymbolState::Ready);
    stage.take("foo").fail(because("no"));
    assert_eq!(state.lock().unwrap().0, ["foo: no", "bar: no"]);
}

#[test]
fn core_21_emitting_what_depends_on_a_failed_symbol_is_an_error() {
    let stage = Stage::new();
    ["foo", "bar"].iter().for_each(|name| stage.define(name));
    let foo_answer = stage.lookup(&["foo"], SymbolState::Ready);
    let bar_answer = stage.lookup(&["bar"], SymbolState::Ready);
    let (foo, bar) = (stage.take("foo"), stage.take("bar"));
    stage.resolve(&bar);
    let needed = stage.found("bar");
    stage.resolve(&foo);
    bar.fail(because("no bar"));
    assert_eq!(answered(&foo_answer), None);
    let error = foo.emit(&[(stage.name("foo"), needed)]).unwrap_err().to_string();
    assert_eq!(error, "'foo' depends on 'bar', which failed: no bar");
    let expected = "symbol 'foo' in dylib 'main': depends on 'bar' in dylib 'main': no bar";
    assert_eq!(answered(&foo_answer), failed(expected));
    assert_eq!(answered(&bar_answer), failed("symbol 'bar' in dylib 'main': no bar"));
}

#[test]
fn core_23_a_failing_unit_fails_what_nobody_asked_for_too() {
    let stage = Stage::new();
    stage.define_unit(&[("foo", STRONG), ("bar", STRONG)]).unwrap();
    let answer = stage.lookup(&["foo"], SymbolState::Ready);
    stage.take("foo").fail(because("no"));
    assert_eq!(answered(&answer), failed("symbol 'foo' in dylib 'main': no"));
    assert_eq!(stage.address("bar"), Err("symbol 'bar' in dylib 'main': no".into()));
}

#[test]
fn core_34_a_unit_that_fails_before_it_resolves_fails_all_its_names() {
    let stage = Stage::new();
    stage.define_unit(&[("foo", STRONG), ("bar", STRONG)]).unwrap();
    let answer = stage.lookup(&["foo", "bar"], SymbolState::Resolved);
    stage.take("foo").fail(because("no"));
    // The lookup ends with the first failure.
    let (names, causes): (Vec<_>, Vec<_>) = ["foo", "bar"]
        .map(|name| stage.session.symbol_state(&stage.dylib, &stage.name(name)).unwrap())
        .into_iter()
        .map(|(state, cause)| (state, cause.unwrap().to_string()))
        .unzip();
    assert_eq!(causes, ["no", "no"]);
    assert_eq!(names, [SymbolState::Materializing; 2]);
    assert!(matches!(answered(&answer), Some(Err(error)) if error.contains("'foo' in dylib 'main': no")));
}

#[test]
fn core_35_a_unit_that_fails_after_it_resolved_fails_the_lookup_for_ready() {
    let stage = Stage::new();
    stage.define("foo");
    let ready = stage.lookup(&["foo"], SymbolState::Ready);
    let resolved = stage.lookup(&["foo"], SymbolState::Resolved);
    let foo = stage.take("foo");
    stage.resolve(&foo);
    foo.fail(because("no"));
    assert_eq!(answered(&resolved), ok(&["foo"]));
    assert_eq!(answered(&ready), failed("symbol 'foo' in dylib 'main': no"));
}

#[test]
fn core_36_one_failure_fails_the_lookup_of_both() {
    let stage = Stage::new();
    ["foo", "bar"].iter().for_each(|name| stage.define(name));
    let answer = stage.lookup(&["foo", "bar"], SymbolState::Resolved);
    let (foo, bar) = (stage.take("foo"), stage.take("bar"));
    stage.resolve(&foo);
    bar.fail(because("no"));
    assert_eq!(answered(&answer), failed("symbol 'bar' in dylib 'main': no"));
    foo.emit(&[]).unwrap();
    assert_eq!(stage.address("foo"), Ok(0x1000));
}

#[test]
fn core_47_an_error_outlives_its_session() {
    let error: LookupError = {
        let stage = Stage::new();
        let unit = stage.definition(&[("foo", STRONG)], Custom(drop));
        stage.dylib.default_tracker().unwrap().define(vec![unit]).unwrap();
        stage.session.lookup(&stage.order(), stage.names(&["foo"])).unwrap_err()
    };
    let expected = "symbol 'foo' in dylib 'main': unit of foo was dropped before it was materialized";
    assert_eq!(error.to_string(), expected);
    assert!(std::error::Error::source(&error).is_some());
}

#[test]
fn gap_11_every_waiter_gets_the_root_cause() {
    let stage = Stage::new();
    ["a", "b", "c"].iter().for_each(|name| stage.define(name));
    let answers: Vec<_> = ["a", "b", "c", "a"].iter().map(|name| stage.lookup(&[name], SymbolState::Ready)).collect();
    let [a, b, c] = ["a", "b", "c"].map(|name| stage.take(name));
    [&a, &b, &c].into_iter().for_each(|unit| stage.resolve(unit));
    stage.emit(a, &["b"]).unwrap();
    stage.emit(b, &["c"]).unwrap();
    c.fail(because("root"));
    let dependent = |name| failed(&format!("symbol '{name}' in dylib 'main': depends on 'c' in dylib 'main': root"));
    let expected = [dependent("a"), dependent("b"), failed("symbol 'c' in dylib 'main': root"), dependent("a")];
    assert_eq!(answers.iter().map(answered).collect::<Vec<_>>(), expected);
}

#[test]
fn gap_11_each_missing_failed_and_removed_symbol_has_its_own_cause() {
    let stage = Stage::new();
    ["failed", "removed"].iter().for_each(|name| stage.define(name));
    let _answer = stage.lookup(&["failed"], SymbolState::Ready);
    stage.take("failed").fail(because("no"));
    let error = stage.session.lookup(&stage.order(), stage.names(&["failed", "missing"])).unwrap_err();
    assert_eq!(error.to_string(), "symbol 'failed' in dylib 'main': no, symbol 'missing' in dylib 'main': not found");
    let answer = stage.lookup(&["removed"], SymbolState::Ready);
    stage.dylib.clear().unwrap();
    assert_eq!(answered(&answer), failed("symbol 'removed' in dylib 'main': removed"));
}

#[test]
fn gap_7_whatever_is_dropped_unfinished_is_a_failure_with_a_cause() {
    let stage = Stage::new();
    stage.define_unit(&[("foo", STRONG), ("init", SIDE_EFFECTS)]).unwrap();
    let answers = [stage.lookup(&["foo"], SymbolState::Ready), stage.lookup_weakly(&["init"], SymbolState::Ready)];
    let foo = stage.take("foo");
    // A continuation that is dropped with the responsibility in it.
    stage.define("never");
    let order = stage.order();
    let handle = stage.session.lookup_async(&order, stage.names(&["never"]), SymbolState::Ready, move |_| drop(foo));
    drop(stage.take("never"));
    drop(handle);
    let cause = "unit of foo was dropped before it was materialized";
    assert_eq!(answered(&answers[0]), failed(&format!("symbol 'foo' in dylib 'main': {cause}")));
    assert_eq!(answered(&answers[1]), failed(&format!("symbol 'init' in dylib 'main': {cause}")));
}

/// What somebody may do with a responsibility who means to finish and does not.
type Loses = fn(&Stage, MaterializationResponsibility);

#[test]
fn gap_7_a_responsibility_is_a_failure_wherever_and_however_far_it_is_lost() {
    const DROPPED: &str = "was dropped before it was materialized";
    let ways: [(&str, Loses); 11] = [
        (DROPPED, |_, unit| drop(unit)),
        (DROPPED, |stage, unit| {
            stage.resolve(&unit);
            drop(unit);
        }),
        (DROPPED, |stage, unit| {
            let symbol = |name: &str| crate::stage::declare(&stage.session, name, STRONG);
            assert_eq!(unit.define_materializing(vec![symbol("late")]).unwrap(), stage.names(&["late"]));
            drop(unit);
            let (_, cause) = stage.session.symbol_state(&stage.dylib, &stage.name("late")).unwrap();
            assert!(cause.unwrap().to_string().ends_with(DROPPED));
        }),
        // A part of it alone, and then the rest.
        (DROPPED, |stage, unit| {
            drop(unit.delegate(&stage.names(&["foo"])).unwrap());
            assert!(matches!(stage.session.symbol_state(&stage.dylib, &stage.name("bar")), Some((_, None))));
            drop(unit);
        }),
        (DROPPED, |stage, unit| {
            let order = stage.order();
            stage
                .session
                .lookup_async(&order, stage.names(&["never"]), SymbolState::Ready, move |_| drop(unit))
                .cancel();
        }),
        (DROPPED, |stage, unit| {
            unit.lookup_then(&stage.order(), stage.names(&["never"]), SymbolState::Ready, |_, _| ()).cancel();
        }),
        ("panicked: in a continuation", |stage, unit| {
            let complete = |unit, _: Result<_, _>| {
                let _unit: MaterializationResponsibility = unit;
                panic!("in a continuation");
            };
            unit.lookup_then(&stage.order(), stage.names(&["nobody"]), SymbolState::Ready, complete);
        }),
        ("panicked: in a task", |stage, unit| {
            stage.session.run(Box::new(move || {
                let _unit = unit;
                panic!("in a task");
            }));
        }),
        // A thread that the session knows nothing of.
        (DROPPED, |_, unit| {
            let lost = std::thread::spawn(move || {
                let _unit = unit;
                panic!("in a thread");
            });
            assert!(lost.join().is_err());
        }),
        (DROPPED, |_, unit| {
            let (send, _) = std::sync::mpsc::channel();
            assert!(send.send(unit).is_err());
        }),
        (DROPPED, |stage, unit| {
            let tracker = stage.dylib.create_tracker().unwrap();
            tracker.hold(Box::new(unit)).unwrap();
            tracker.remove().unwrap();
        }),
    ];
    for (place, (expected, lose)) in ways.into_iter().enumerate() {
        for threads in [0, 1] {
            let stage = match threads {
                0 => Stage::new(),
                count => Stage::with(Box::new(ThreadPoolDispatcher::new(count).unwrap())),
            };
            stage.define("never");
            stage.define_unit(&[("foo", STRONG), ("bar", STRONG), ("init", SIDE_EFFECTS)]).unwrap();
            let answers = [
                stage.lookup(&["foo"], SymbolState::Ready),
                stage.lookup(&["bar"], SymbolState::Ready),
                stage.lookup_weakly(&["init"], SymbolState::Ready),
            ];
            while !stage.is_running("foo") {
                std::thread::yield_now();
            }
            lose(&stage, stage.take("foo"));
            let end = Instant::now() + Duration::from_secs(20);
            for answer in answers {
                while answered(&answer).is_none() {
                    assert!(Instant::now() < end, "way {place} is never told");
                    std::thread::yield_now();
                }
                let error = answered(&answer).unwrap().unwrap_err();
                assert!(error.ends_with(&format!("unit of foo {expected}")), "way {place}: {error}");
            }
            // The session goes on.
            stage.define_absolute("there", 1);
            assert_eq!(stage.address("there"), Ok(1));
        }
    }
}

#[test]
fn gap_7_a_lookup_that_a_generator_loses_is_a_failure_and_the_next_goes_on() {
    type Lose = fn(LookupState);
    /// Leaves a lookup to what the test says.
    struct Loses(Lose);
    impl DefinitionGenerator for Loses {
        fn try_to_generate(&self, lookup: LookupState) {
            (self.0)(lookup);
        }
    }
    let ways: [(&str, Lose); 4] = [
        ("it dropped the lookup", drop),
        ("it dropped the lookup", |lookup| std::thread::spawn(move || drop(lookup)).join().unwrap()),
        ("in a generator", |lookup| {
            let _lookup = lookup;
            panic!("in a generator");
        }),
        ("it dropped the lookup", |lookup| {
            let lost = std::thread::spawn(move || {
                let _lookup = lookup;
                panic!("in a thread");
            });
            assert!(lost.join().is_err());
        }),
    ];
    for (expected, lose) in ways {
        let stage = Stage::new();
        stage.dylib.add_generator(Arc::new(Loses(lose))).unwrap();
        for name in ["one", "two"] {
            let error = stage.address(name).unwrap_err();
            assert_eq!(error, format!("symbol '{name}' in dylib 'main': generator failed: {expected}"));
        }
        assert_eq!(stage.session.statistics().lookups, 0);
    }
}

#[test]
fn gap_8_lookups_from_a_completion_work() {
    let stage = Stage::new();
    stage.define_absolute("foo", 1);
    stage.define_absolute("bar", 2);
    let (send, receive) = std::sync::mpsc::channel();
    let session = stage.session.clone();
    let (order, names) = (stage.order(), stage.names(&["bar"]));
    stage.session.lookup_async(&stage.order(), stage.names(&["foo"]), SymbolState::Ready, move |_| {
        send.send(session.lookup(&order, names).unwrap()[0].definition.address).unwrap();
    });
    assert_eq!(receive.recv().unwrap(), 2);
}

#[test]
fn gap_8_lookups_from_discard_work() {
    struct Asking(ExecutionSession, Arc<Mutex<Vec<Result<u64, String>>>>);
    impl jit_core::MaterializationUnit for Asking {
        fn materialize(self: Box<Self>, responsibility: jit_core::MaterializationResponsibility) {
            let own = responsibility.symbols()[0].name.clone();
            responsibility.resolve(&[(own, SymbolDef::at(9))]).unwrap();
            responsibility.emit(&[]).unwrap();
        }

        fn discard(&mut self, _: &jit_core::SymbolName) {
            let main = self.0.dylib("main").unwrap();
            for name in ["base", "rest"] {
                let found = self.0.lookup(&main.link_order(), vec![self.0.intern(name)]);
                let found = found.map(|found| found[0].definition.address).map_err(|error| error.to_string());
                self.1.lock().unwrap().push(found);
            }
        }
    }
    let stage = Stage::new();
    let found = Arc::new(Mutex::new(Vec::new()));
    stage.define_absolute("base", 1);
    let unit = Asking(stage.session.clone(), Arc::clone(&found));
    let definition = stage.definition(&[("weak", SymbolFlags::WEAK), ("rest", STRONG)], unit);
    stage.dylib.default_tracker().unwrap().define(vec![definition]).unwrap();
    stage.define_absolute("weak", 2);
    // What the unit itself has to define can't be waited for in it.
    let cycle = "symbol 'rest' in dylib 'main': a cycle of waits: 'rest' -> 'rest'".to_owned();
    assert_eq!(*found.lock().unwrap(), [Ok(1), Err(cycle)]);
    assert_eq!(stage.address("rest"), Ok(9));
    stage.session.end();
}

#[test]
fn gap_15_success_and_failure_are_told_by_the_same_rule() {
    // Answers are tasks: they come after the task that caused them, never inside of it.
    let stage = Stage::new();
    let log = Arc::new(Mutex::new(Vec::new()));
    stage.define("foo");
    stage.define("bar");
    let _answers: Vec<_> = ["foo", "bar", "missing"]
        .into_iter()
        .map(|name| {
            let log = Arc::clone(&log);
            stage.session.lookup_async(&stage.order(), stage.names(&[name]), SymbolState::Ready, move |result| {
                log.lock().unwrap().push(format!("{name} {}", result.is_ok()));
            })
        })
        .collect();
    assert_eq!(*log.lock().unwrap(), ["missing false"]);
    let (foo, bar) = (stage.take("foo"), stage.take("bar"));
    let to = Arc::clone(&log);
    let (foo_name, session) = (stage.name("foo"), stage.session.clone());
    let work = move || {
        foo.resolve(&[(foo_name, SymbolDef::at(1))]).unwrap();
        foo.emit(&[]).unwrap();
        to.lock().unwrap().push("after emit".to_owned());
        bar.fail(Cause::Other("no".into()));
        to.lock().unwrap().push("after fail".to_owned());
        drop(session);
    };
    stage.session.run(Box::new(work));
    assert_eq!(*log.lock().unwrap(), ["missing false", "after emit", "after fail", "foo true", "bar false"]);
}
