//! Where and when work is done, and what happens when it can't be.

use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, mpsc};
use std::time::{Duration, Instant};

use jit_core::{
    InPlaceDispatcher, LookupState, MaterializationResponsibility, Priority, SymbolDef, SymbolFlags, SymbolState, Task,
    TaskDispatcher, ThreadPoolDispatcher,
};

use crate::stage::{Custom, Stage, answered, failed};

const STRONG: SymbolFlags = SymbolFlags::EXPORTED;

fn define_custom(stage: &Stage, name: &str, work: impl FnOnce(MaterializationResponsibility) + Send + 'static) {
    let definition = stage.definition(&[(name, STRONG)], Custom(work));
    stage.dylib.default_tracker().unwrap().define(vec![definition]).unwrap();
}

fn succeed(responsibility: MaterializationResponsibility, address: u64) {
    let own = responsibility.symbols()[0].name.clone();
    responsibility.resolve(&[(own, SymbolDef::at(address))]).unwrap();
    responsibility.emit(&[]).unwrap();
}

/// Looks up `needs` and waits, then defines its symbol one further.
fn blocking(needs: &'static str) -> impl FnOnce(MaterializationResponsibility) + Send {
    move |responsibility| {
        let session = responsibility.session().clone();
        match session.lookup(&responsibility.link_order(), vec![session.intern(needs)]) {
            Ok(found) => succeed(responsibility, found[0].definition.address + 1),
            Err(error) => responsibility.fail(jit_core::Cause::Other(error.into())),
        }
    }
}

fn stages() -> Vec<Stage> {
    let mut stages = vec![Stage::new()];
    stages.extend([1, 2].map(|threads| Stage::with(Box::new(ThreadPoolDispatcher::new(threads).unwrap()))));
    stages
}

#[test]
fn task_01_a_task_in_place_has_run_when_dispatch_returns() {
    let dispatcher = InPlaceDispatcher::new();
    let (send, receive) = mpsc::channel();
    dispatcher.dispatch(vec![Task::new(Priority::Ahead, move || send.send(std::thread::current().id()).unwrap())]);
    assert_eq!(receive.try_recv().unwrap(), std::thread::current().id());
}

#[test]
fn task_02_a_pool_runs_a_task_elsewhere_and_its_end_waits_for_it() {
    let pool = ThreadPoolDispatcher::new(1).unwrap();
    let (send, receive) = mpsc::channel();
    let (start, started) = mpsc::channel::<()>();
    // Owns what can only be moved.
    let owned = Box::new(42);
    pool.dispatch(vec![Task::new(Priority::Ahead, move || {
        start.send(()).unwrap();
        std::thread::sleep(Duration::from_millis(50));
        send.send((std::thread::current().id(), owned)).unwrap();
    })]);
    started.recv().unwrap();
    drop(pool);
    let (thread, owned) = receive.try_recv().unwrap();
    assert_ne!(thread, std::thread::current().id());
    assert_eq!(*owned, 42);
}

#[test]
fn a_pool_runs_as_many_tasks_at_a_time_as_it_has_threads_however_they_come() {
    const SIZE: usize = 4;
    let pool = Arc::new(ThreadPoolDispatcher::new(SIZE).unwrap());
    let (met, meetings) = mpsc::channel();
    // Each ends when all have begun.
    let tasks = || {
        let (begun, met) = (Arc::new(AtomicUsize::new(0)), met.clone());
        (0..SIZE).map(move |_| {
            let (begun, met) = (Arc::clone(&begun), met.clone());
            Task::new(Priority::Ahead, move || {
                begun.fetch_add(1, Ordering::SeqCst);
                let deadline = Instant::now() + Duration::from_secs(20);
                while begun.load(Ordering::SeqCst) < SIZE && Instant::now() < deadline {
                    std::thread::sleep(Duration::from_millis(1));
                }
                met.send((begun.load(Ordering::SeqCst), std::thread::current().id())).unwrap();
            })
        })
    };
    let meet = || {
        let threads = meetings.iter().take(SIZE).map(|(begun, thread)| {
            assert_eq!(begun, SIZE);
            thread
        });
        threads.collect::<HashSet<_>>()
    };
    // One by one, while no thread is there but the first.
    tasks().for_each(|task| pool.dispatch(vec![task]));
    let threads = meet();
    assert_eq!(threads.len(), SIZE);
    pool.dispatch(tasks().collect());
    assert_eq!(meet(), threads);
    let (for_task, inner) = (Arc::clone(&pool), tasks().collect::<Vec<_>>());
    pool.dispatch(vec![Task::new(Priority::Ahead, move || for_task.dispatch(inner))]);
    assert_eq!(meet(), threads);
    // All at once.
    let fresh = ThreadPoolDispatcher::new(SIZE).unwrap();
    fresh.dispatch(tasks().collect());
    assert_eq!(meet().len(), SIZE);
}

#[test]
fn core_39_lookups_are_right_with_a_thread_for_each_task() {
    /// A dispatcher as a user may write one.
    #[derive(Default)]
    struct ThreadEach {
        running: Mutex<usize>,
        bell: Condvar,
    }
    struct Shared(Arc<ThreadEach>);
    impl TaskDispatcher for Shared {
        fn dispatch(&self, tasks: Vec<Task>) {
            for task in tasks {
                let shared = Arc::clone(&self.0);
                *shared.running.lock().unwrap() += 1;
                std::thread::spawn(move || {
                    task.run();
                    *shared.running.lock().unwrap() -= 1;
                    shared.bell.notify_all();
                });
            }
        }

        fn wait(&self, done: &dyn Fn() -> bool, deadline: Option<Instant>) {
            let mut running = self.0.running.lock().unwrap();
            while !done() {
                let Some(deadline) = deadline else {
                    running = self.0.bell.wait(running).unwrap();
                    continue;
                };
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return;
                }
                running = self.0.bell.wait_timeout(running, left).unwrap().0;
            }
        }

        fn wake(&self) {
            drop(self.0.running.lock().unwrap());
            self.0.bell.notify_all();
        }
    }
    let stage = Stage::with(Box::new(Shared(Arc::default())));
    define_custom(&stage, "a", |responsibility| succeed(responsibility, 1));
    define_custom(&stage, "b", blocking("a"));
    define_custom(&stage, "c", blocking("b"));
    assert_eq!(stage.address("c"), Ok(3));
    assert_eq!(stage.address("a"), Ok(1));
}

#[test]
fn gap_10_a_unit_that_looks_up_another_and_waits_ends_on_one_thread() {
    for stage in stages() {
        define_custom(&stage, "a", |responsibility| succeed(responsibility, 1));
        define_custom(&stage, "b", blocking("a"));
        define_custom(&stage, "c", blocking("b"));
        assert_eq!(stage.address("c"), Ok(3));
    }
}

#[test]
fn gap_10_a_task_that_waits_for_the_one_beneath_is_no_deadlock() {
    for stage in stages() {
        // `a` waits for `b`; meanwhile `c` runs, which waits for `a`.
        define_custom(&stage, "b", |responsibility| succeed(responsibility, 1));
        define_custom(&stage, "a", blocking("b"));
        define_custom(&stage, "c", blocking("a"));
        let found = stage.session.lookup(&stage.order(), stage.names(&["a", "c", "b"])).unwrap();
        assert_eq!(found.iter().map(|symbol| symbol.definition.address).collect::<Vec<_>>(), [2, 3, 1]);
    }
}

#[test]
fn gap_10_a_cycle_of_waits_is_an_error_that_names_it() {
    for stage in stages() {
        define_custom(&stage, "a", blocking("b"));
        define_custom(&stage, "b", blocking("c"));
        define_custom(&stage, "c", blocking("a"));
        let error = stage.address("a").unwrap_err();
        assert!(error.contains("a cycle of waits: "), "{error}");
        for name in ["'a'", "'b'", "'c'"] {
            assert!(error.contains(name), "{error}");
        }
    }
}

#[test]
fn gap_10_a_cycle_through_a_continuation_is_an_error_too() {
    for stage in stages() {
        define_custom(&stage, "a", blocking("b"));
        define_custom(&stage, "b", |responsibility| {
            let session = responsibility.session().clone();
            responsibility.resolve(&[(session.intern("b"), SymbolDef::at(1))]).unwrap();
            let names = vec![session.intern("a")];
            let order = responsibility.link_order();
            _ = order;
            let own = Arc::new(Mutex::new(None));
            let to = Arc::clone(&own);
            responsibility.lookup_externals(names, move |answers| {
                let responsibility: Option<MaterializationResponsibility> = to.lock().unwrap().take();
                let Some(responsibility) = responsibility else { return };
                match answers.into_iter().next().unwrap() {
                    Ok(found) => responsibility.emit(&[(session.intern("b"), found)]).unwrap(),
                    Err(failure) => responsibility.fail(jit_core::Cause::Other(failure.to_string().into())),
                }
            });
            // In place, the answer comes after this; in a pool, this may be too late: dropped, it
            // fails just as well.
            *own.lock().unwrap() = Some(responsibility);
        });
        let error = stage.address("a").unwrap_err();
        assert!(error.contains("a cycle of waits: ") || error.contains("dropped"), "{error}");
    }
}

#[test]
fn what_somebody_waits_for_comes_first() {
    let stage = Stage::with(Box::new(ThreadPoolDispatcher::new(1).unwrap()));
    let log = Arc::new(Mutex::new(Vec::new()));
    let (open, gate) = mpsc::channel::<()>();
    let (enter, entered) = mpsc::channel();
    // Keeps the only thread busy until everything is queued.
    define_custom(&stage, "gate", move |responsibility| {
        enter.send(()).unwrap();
        gate.recv().unwrap();
        succeed(responsibility, 1);
    });
    let names = ["a", "b", "c", "wanted", "d"];
    for name in names {
        let log = Arc::clone(&log);
        define_custom(&stage, name, move |responsibility| {
            log.lock().unwrap().push(name);
            succeed(responsibility, 1);
        });
    }
    let (send, done) = mpsc::channel();
    stage.session.lookup_async(&stage.order(), stage.names(&["gate"]), SymbolState::Ready, |_| {});
    entered.recv().unwrap();
    stage
        .session
        .lookup_async(&stage.order(), stage.names(&names), SymbolState::Ready, move |_| send.send(()).unwrap());
    std::thread::scope(|scope| {
        scope.spawn(|| stage.address("wanted").unwrap());
        // It has asked once its lookup waits beside the two others.
        while stage.session.statistics().lookups < 3 {
            std::thread::yield_now();
        }
        open.send(()).unwrap();
    });
    done.recv().unwrap();
    assert_eq!(*log.lock().unwrap(), ["wanted", "a", "b", "c", "d"]);
}

#[test]
fn tasks_that_a_dispatcher_drops_fail_what_they_were_for() {
    struct Dropping;
    impl TaskDispatcher for Dropping {
        fn dispatch(&self, tasks: Vec<Task>) {
            drop(tasks);
        }

        fn wait(&self, done: &dyn Fn() -> bool, _: Option<Instant>) {
            assert!(done(), "nobody would ever do it");
        }

        fn wake(&self) {}
    }
    let stage = Stage::with(Box::new(Dropping));
    stage.define("foo");
    let expected = "symbol 'foo' in dylib 'main': unit of foo was dropped before it was materialized";
    assert_eq!(stage.address("foo"), Err(expected.into()));
}

#[test]
fn gap_16_a_session_that_ends_tells_everybody() {
    struct Kept(Arc<Mutex<Vec<LookupState>>>);
    impl jit_core::DefinitionGenerator for Kept {
        fn try_to_generate(&self, lookup: LookupState) {
            self.0.lock().unwrap().push(lookup);
        }
    }
    let stage = Stage::with(Box::new(ThreadPoolDispatcher::new(2).unwrap()));
    let other = stage.session.create_dylib("other").unwrap();
    let kept = Arc::new(Mutex::new(Vec::new()));
    other.add_generator(Arc::new(Kept(Arc::clone(&kept)))).unwrap();
    let freed = Arc::new(AtomicUsize::new(0));
    struct Code(Arc<AtomicUsize>);
    impl Drop for Code {
        fn drop(&mut self) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }
    stage.dylib.default_tracker().unwrap().hold(Box::new(Code(Arc::clone(&freed)))).unwrap();
    stage.define("compiling");
    let (send, receive) = mpsc::channel();
    let orders = [(stage.order(), "compiling"), (other.link_order(), "suspended"), (other.link_order(), "parked")];
    for (order, name) in orders {
        let send = send.clone();
        stage.session.lookup_async(&order, stage.names(&[name]), SymbolState::Ready, move |result| {
            send.send((name, result.unwrap_err().to_string())).unwrap();
        });
    }
    std::thread::scope(|scope| {
        let blocked = scope.spawn(|| stage.address("compiling"));
        while !stage.is_running("compiling") || stage.session.statistics().lookups < 2 {
            std::thread::yield_now();
        }
        let call = stage.session.enter();
        stage.session.end();
        assert!(blocked.join().unwrap().unwrap_err().contains("the session has ended"));
        assert_eq!(freed.load(Ordering::SeqCst), 0, "a call is in flight");
        drop(call);
        assert_eq!(freed.load(Ordering::SeqCst), 1);
    });
    let told: std::collections::HashMap<_, _> = (0..3).map(|_| receive.recv().unwrap()).collect();
    assert!(told["compiling"].ends_with("the session has ended"), "{told:?}");
    assert!(told["suspended"].ends_with("its generator was removed"), "{told:?}");
    assert!(told["parked"].ends_with("the session has ended"), "{told:?}");
    let compiling = stage.take("compiling");
    assert!(compiling.emit(&[]).is_err());
    assert!(stage.session.create_dylib("new").is_err());
    let late = stage.lookup(&["compiling"], SymbolState::Ready);
    while answered(&late).is_none() {
        std::thread::yield_now();
    }
    assert_eq!(answered(&late), failed("symbol 'compiling': the session has ended"));
    kept.lock().unwrap().clear();
}
