//! When symbols become ready, and how far a failure goes.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use jit_core::{
    InPlaceDispatcher, MaterializationResponsibility, MaterializationUnit, SymbolDeclaration, SymbolDef, SymbolFlags,
    SymbolName, SymbolState, TaskDispatcher, ThreadPoolDispatcher, UnitDefinition,
};

use crate::stage::{Stage, answered, because, failed, ok, session};

#[test]
fn core_03_a_lookup_starts_its_unit_and_is_answered_once_it_is_emitted() {
    let stage = Stage::new();
    stage.define("foo");
    let answer = stage.lookup(&["foo"], SymbolState::Ready);
    let foo = stage.take("foo");
    assert_eq!(answered(&answer), None);
    stage.resolve(&foo);
    assert_eq!(answered(&answer), None);
    foo.emit(&[]).unwrap();
    assert_eq!(answered(&answer), ok(&["foo"]));
}

#[test]
fn core_04_an_empty_lookup_is_answered_at_once() {
    let stage = Stage::new();
    assert_eq!(answered(&stage.lookup(&[], SymbolState::Ready)), ok(&[]));
}

#[test]
fn core_18_a_symbol_that_depends_on_itself_becomes_ready() {
    let stage = Stage::new();
    stage.define("foo");
    let answer = stage.lookup(&["foo"], SymbolState::Ready);
    let foo = stage.take("foo");
    stage.resolve(&foo);
    stage.emit(foo, &["foo"]).unwrap();
    assert_eq!(answered(&answer), ok(&["foo"]));
}

#[test]
fn core_19_a_ring_becomes_ready_with_its_last_member() {
    for order in [["a", "b", "c"], ["a", "c", "b"], ["b", "a", "c"], ["b", "c", "a"], ["c", "a", "b"], ["c", "b", "a"]]
    {
        let stage = Stage::new();
        let needs = [("a", "b"), ("b", "c"), ("c", "a")];
        needs.iter().for_each(|(name, _)| stage.define(name));
        let answers: Vec<_> = order.iter().map(|name| stage.lookup(&[name], SymbolState::Ready)).collect();
        let resolved = stage.lookup(&order, SymbolState::Resolved);
        let units: Vec<_> = order.iter().map(|name| stage.take(name)).collect();
        units.iter().for_each(|unit| stage.resolve(unit));
        assert_eq!(answered(&resolved), ok(&order));
        for (name, unit) in order.iter().zip(units) {
            assert!(answers.iter().all(|answer| answered(answer).is_none()), "{order:?}");
            let need = needs.iter().find(|need| need.0 == *name).unwrap().1;
            stage.emit(unit, &[need]).unwrap();
        }
        for (name, answer) in order.iter().zip(&answers) {
            assert_eq!(answered(answer), ok(&[name]), "{order:?}");
        }
    }
}

#[test]
fn core_20_a_failure_reaches_its_own_query_and_then_the_dependants() {
    let stage = Stage::new();
    stage.define("foo");
    stage.define("bar");
    let foo_answer = stage.lookup(&["foo"], SymbolState::Ready);
    let bar_answer = stage.lookup(&["bar"], SymbolState::Ready);
    let (foo, bar) = (stage.take("foo"), stage.take("bar"));
    stage.resolve(&bar);
    let bar_found = stage.found("bar");
    bar.fail(because("no bar"));
    assert_eq!(answered(&bar_answer), failed("symbol 'bar' in dylib 'main': no bar"));
    assert_eq!(answered(&foo_answer), None);
    stage.resolve(&foo);
    let name = foo.symbols()[0].name.clone();
    let error = foo.emit(&[(name, bar_found)]).unwrap_err().to_string();
    assert_eq!(error, "'foo' depends on 'bar', which failed: no bar");
    let expected = "symbol 'foo' in dylib 'main': depends on 'bar' in dylib 'main': no bar";
    assert_eq!(answered(&foo_answer), failed(expected));
    let later = stage.lookup(&["foo"], SymbolState::Ready);
    assert_eq!(answered(&later), failed(expected));
}

#[test]
fn core_22_an_emitted_symbol_fails_with_what_it_waits_for() {
    let stage = Stage::new();
    ["foo", "bar", "baz"].iter().for_each(|name| stage.define(name));
    let answer = stage.lookup(&["foo"], SymbolState::Ready);
    let _others = stage.lookup(&["bar", "baz"], SymbolState::Resolved);
    let [foo, bar, baz] = ["foo", "bar", "baz"].map(|name| stage.take(name));
    [&foo, &bar, &baz].into_iter().for_each(|unit| stage.resolve(unit));
    // Whichever of the two it watches.
    stage.emit(foo, &["bar", "baz"]).unwrap();
    baz.fail(because("no baz"));
    let expected = "symbol 'foo' in dylib 'main': depends on 'baz' in dylib 'main': no baz";
    assert_eq!(answered(&answer), failed(expected));
    drop(bar);
}

#[test]
fn rt_03_a_tracker_is_removed_while_its_unit_runs() {
    let stage = Stage::new();
    stage.define("foo");
    let answer = stage.lookup(&["foo"], SymbolState::Ready);
    let foo = stage.take("foo");
    let name = foo.symbols()[0].name.clone();
    stage.dylib.default_tracker().unwrap().remove().unwrap();
    assert_eq!(answered(&answer), failed("symbol 'foo' in dylib 'main': removed"));
    assert!(foo.resolve(&[(name, SymbolDef::at(1))]).is_err());
    assert!(foo.emit(&[]).is_err());
    assert!(stage.session.symbol_state(&stage.dylib, &stage.session.intern("foo")).is_none());
}

/// A unit that needs others, each looked up as a linker does.
struct Needy {
    needs: Vec<String>,
}

impl MaterializationUnit for Needy {
    fn materialize(self: Box<Self>, responsibility: MaterializationResponsibility) {
        let own = responsibility.symbols()[0].name.clone();
        responsibility.resolve(&[(own.clone(), SymbolDef::at(1))]).unwrap();
        let session = responsibility.session().clone();
        let names: Vec<_> = self.needs.iter().map(|name| session.intern(name)).collect();
        let order = responsibility.link_order();
        session.lookup_async(&order, names, SymbolState::Resolved, move |found| {
            let dependences: Vec<_> = found.unwrap().into_iter().map(|found| (own.clone(), found)).collect();
            responsibility.emit(&dependences).unwrap();
        });
    }

    fn discard(&mut self, _: &SymbolName) {}
}

/// Defines symbols that need each other, makes the first ready, and says how many are.
fn ready_after_lookup(dispatcher: Box<dyn TaskDispatcher>, needs: Vec<Vec<usize>>) -> usize {
    let (session, dylib) = session(dispatcher);
    let name = |index: &usize| format!("s{index}");
    let count = needs.len();
    let units = needs.into_iter().enumerate().map(|(index, needs)| {
        let flags = SymbolFlags::EXPORTED;
        let declaration = SymbolDeclaration { name: session.intern(&name(&index)), flags, signature: None };
        UnitDefinition {
            symbols: [declaration].into_iter().collect(),
            unit: Box::new(Needy { needs: needs.iter().map(name).collect() }),
            name: Arc::from("needy"),
        }
    });
    dylib.default_tracker().unwrap().define(units.collect()).unwrap();
    session.lookup(&dylib.link_order(), vec![session.intern("s0")]).unwrap();
    let ready =
        |index: &usize| session.symbol_state(&dylib, &session.intern(&name(index))).unwrap().0 == SymbolState::Ready;
    (0..count).filter(ready).count()
}

/// As many symbols as the machine does in a moment.
const MANY: usize = if cfg!(target_arch = "x86_64") { 100_000 } else { 3_000 };

fn on_small_stack(work: impl FnOnce() + Send + 'static) {
    std::thread::Builder::new().stack_size(256 << 10).spawn(work).unwrap().join().unwrap();
}

#[test]
fn long_chains_stars_and_rings_become_ready_on_a_small_stack() {
    on_small_stack(|| {
        for threads in [0, 2] {
            let dispatcher = || -> Box<dyn TaskDispatcher> {
                match threads {
                    0 => Box::new(InPlaceDispatcher::new()),
                    threads => Box::new(ThreadPoolDispatcher::new(threads).unwrap()),
                }
            };
            let chain = (0..MANY).map(|index| if index + 1 < MANY { vec![index + 1] } else { vec![] }).collect();
            assert_eq!(ready_after_lookup(dispatcher(), chain), MANY);
            let ring = (0..MANY).map(|index| vec![(index + 1) % MANY]).collect();
            assert_eq!(ready_after_lookup(dispatcher(), ring), MANY);
            let star = (0..MANY).map(|index| if index == 0 { (1..MANY).collect() } else { vec![] }).collect();
            assert_eq!(ready_after_lookup(dispatcher(), star), MANY);
        }
    });
}

#[test]
fn a_complete_graph_becomes_ready() {
    let count = if cfg!(target_arch = "x86_64") { 500 } else { 50 };
    let complete = (0..count).map(|_| (0..count).collect()).collect();
    assert_eq!(ready_after_lookup(Box::new(InPlaceDispatcher::new()), complete), count);
}

#[test]
fn a_unit_that_looks_up_and_waits_is_no_deadlock_on_one_thread() {
    struct Blocking;
    impl MaterializationUnit for Blocking {
        fn materialize(self: Box<Self>, responsibility: MaterializationResponsibility) {
            let session = responsibility.session().clone();
            let order = responsibility.link_order();
            session.lookup(&order, vec![session.intern("other")]).unwrap();
            let own = responsibility.symbols()[0].name.clone();
            responsibility.resolve(&[(own, SymbolDef::at(1))]).unwrap();
            responsibility.emit(&[]).unwrap();
        }

        fn discard(&mut self, _: &SymbolName) {}
    }
    let dispatchers: [Box<dyn TaskDispatcher>; 2] =
        [Box::new(InPlaceDispatcher::new()), Box::new(ThreadPoolDispatcher::new(1).unwrap())];
    for dispatcher in dispatchers {
        let (session, dylib) = session(dispatcher);
        let declare = |name: &str| {
            [SymbolDeclaration { name: session.intern(name), flags: SymbolFlags::EXPORTED, signature: None }]
        };
        let units = vec![
            UnitDefinition {
                symbols: declare("blocking").into_iter().collect(),
                unit: Box::new(Blocking),
                name: Arc::from("blocking"),
            },
            UnitDefinition {
                symbols: declare("other").into_iter().collect(),
                unit: Box::new(Needy { needs: vec![] }),
                name: Arc::from("other"),
            },
        ];
        dylib.default_tracker().unwrap().define(units).unwrap();
        session.lookup(&dylib.link_order(), vec![session.intern("blocking")]).unwrap();
    }
}

#[test]
fn the_state_of_a_symbol_follows_its_unit() {
    let stage = Stage::new();
    stage.define("foo");
    assert_eq!(stage.state("foo").unwrap(), SymbolState::NeverSearched);
    let _answer = stage.lookup(&["foo"], SymbolState::Ready);
    assert_eq!(stage.state("foo").unwrap(), SymbolState::Materializing);
    let foo = stage.take("foo");
    stage.resolve(&foo);
    assert_eq!(stage.state("foo").unwrap(), SymbolState::Resolved);
    foo.emit(&[]).unwrap();
    assert_eq!(stage.state("foo").unwrap(), SymbolState::Ready);
}

/// The processor time that this thread has used.
fn processor_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is one for it to write.
    assert_eq!(unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) }, 0);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Emits a ring of units in an order: all are ready with the last one, and none before. Gives the time that it takes.
fn time_to_emit_ring(order: &[usize]) -> Duration {
    let stage = Stage::new();
    let count = order.len();
    let names: Vec<_> = (0..count).map(|index| format!("s{index}")).collect();
    let units = names.iter().map(|name| stage.unit(&[(name, SymbolFlags::EXPORTED)])).collect();
    stage.dylib.default_tracker().unwrap().define(units).unwrap();
    let all = stage.names(&names.iter().map(String::as_str).collect::<Vec<_>>());
    let ready = Arc::new(AtomicUsize::new(0));
    for name in &all {
        let ready = Arc::clone(&ready);
        stage.session.lookup_async(&stage.order(), vec![name.clone()], SymbolState::Ready, move |found| {
            ready.fetch_add(found.unwrap().len(), Ordering::Relaxed);
        });
    }
    let mut units: Vec<_> = std::mem::take(&mut *stage.running.lock().unwrap());
    units.sort_by_key(|(name, _)| name[1..].parse::<usize>().unwrap());
    let mut units: Vec<_> = units.into_iter().map(|(_, unit)| Some(unit)).collect();
    units.iter().flatten().for_each(|unit| stage.resolve(unit));
    let found = stage.session.lookup_in_state(&stage.order(), all.clone(), SymbolState::Resolved).unwrap();
    let start = processor_time();
    for (emitted, &index) in order.iter().enumerate() {
        assert_eq!(ready.load(Ordering::Relaxed), 0, "after {emitted}");
        let need = (all[index].clone(), found[(index + 1) % count].clone());
        units[index].take().unwrap().emit(&[need]).unwrap();
    }
    let time = processor_time() - start;
    assert_eq!(ready.load(Ordering::Relaxed), count);
    time
}

#[test]
fn gap_12_ten_thousand_names_in_one_ring_become_ready_together() {
    const COUNT: usize = 10_000;
    let ring = (0..COUNT).map(|index| vec![(index + 1) % COUNT]).collect();
    assert_eq!(ready_after_lookup(Box::new(InPlaceDispatcher::new()), ring), COUNT);

    let orders: [fn(usize) -> Vec<usize>; 4] = [
        |count| (0..count).collect(),
        |count| (0..count).rev().collect(),
        |count| (0..count).step_by(2).chain((1..count).step_by(2)).collect(),
        |count| (0..count).map(|index| index * 7919 % count).collect(),
    ];
    for order in orders {
        let best = |count: usize| (0..3).map(|_| time_to_emit_ring(&order(count))).min().unwrap();
        let times = std::iter::repeat_with(|| (best(COUNT / 8), best(COUNT)));
        // Eight times as many take about eight times as long. What looked at all of them for each would take 64 times, and
        // whatever else the machine does, does not take a larger part of the longer one each time.
        let times: Vec<_> = times.take(5).take_while(|(small, large)| *large >= 24 * *small).collect();
        assert!(times.len() < 5, "{times:?}");
    }
}

#[test]
fn what_needs_a_removed_symbol_fails_and_names_that() {
    let stage = Stage::new();
    let tracker = stage.dylib.create_tracker().unwrap();
    stage.define("user");
    stage.define_in(&tracker, "removed", SymbolFlags::EXPORTED);
    let answer = stage.lookup(&["user"], SymbolState::Ready);
    drop(stage.lookup(&["removed"], SymbolState::Ready));
    stage.finish("removed");
    let (user, removed) = (stage.take("user"), stage.found("removed"));
    stage.resolve(&user);
    tracker.remove().unwrap();
    let own = user.symbols()[0].name.clone();
    let error = user.emit(&[(own, removed)]).unwrap_err().to_string();
    assert_eq!(error, "'user' depends on 'removed', which failed: removed");
    assert_eq!(answered(&answer), failed("symbol 'user' in dylib 'main': depends on 'removed': removed"));
}
