//! The session with units of the test's own.

use std::sync::{Arc, Mutex};

use jit_core::{
    Cause, ExecutionSession, FoundSymbol, InPlaceDispatcher, InProcess, JitDylib, MaterializationResponsibility,
    MaterializationUnit, SymbolDeclaration, SymbolDef, SymbolFlags, SymbolName, SymbolState, TaskDispatcher,
    ThreadPoolDispatcher, UnitDefinition,
};

/// Hands its responsibility to the test.
struct Recorded {
    name: String,
    running: Arc<Mutex<Vec<(String, MaterializationResponsibility)>>>,
}

impl MaterializationUnit for Recorded {
    fn materialize(self: Box<Self>, responsibility: MaterializationResponsibility) {
        self.running.lock().unwrap().push((self.name, responsibility));
    }

    fn discard(&mut self, _: &SymbolName) {}
}

/// A session whose units the test plays.
struct Stage {
    session: ExecutionSession,
    dylib: JitDylib,
    running: Arc<Mutex<Vec<(String, MaterializationResponsibility)>>>,
}

fn session(dispatcher: Box<dyn TaskDispatcher>) -> (ExecutionSession, JitDylib) {
    let architecture = jit_linker::arch::Architecture::host().unwrap();
    let memory = Arc::new(jit_linker::memory::PageManager::new());
    let session = ExecutionSession::new(Box::new(InProcess::new(architecture, memory)), dispatcher, None);
    let dylib = session.create_dylib("main").unwrap();
    (session, dylib)
}

impl Stage {
    fn new() -> Self {
        let (session, dylib) = session(Box::new(InPlaceDispatcher::new()));
        Self { session, dylib, running: Arc::default() }
    }

    fn define(&self, name: &str) {
        let declaration =
            SymbolDeclaration { name: self.session.intern(name), flags: SymbolFlags::EXPORTED, signature: None };
        let unit = Recorded { name: name.to_owned(), running: Arc::clone(&self.running) };
        let definition = UnitDefinition {
            symbols: [declaration].into_iter().collect(),
            unit: Box::new(unit),
            name: Arc::from(format!("unit of {name}")),
        };
        self.dylib.default_tracker().unwrap().define(vec![definition]).unwrap();
    }

    /// Starts a lookup, and gives what becomes of it.
    fn lookup(&self, names: &[&str], required: SymbolState) -> Arc<Mutex<Option<Result<usize, String>>>> {
        let answer = Arc::new(Mutex::new(None));
        let to = Arc::clone(&answer);
        let names: Vec<_> = names.iter().map(|name| self.session.intern(name)).collect();
        self.session.lookup_async(&self.dylib.link_order(), names, required, move |result| {
            *to.lock().unwrap() = Some(result.map(|found| found.len()).map_err(|error| error.to_string()));
        });
        answer
    }

    fn take(&self, name: &str) -> MaterializationResponsibility {
        let mut running = self.running.lock().unwrap();
        let position = running.iter().position(|(running, _)| running == name).unwrap();
        running.remove(position).1
    }

    fn resolve(&self, responsibility: &MaterializationResponsibility) {
        let name = responsibility.symbols()[0].name.clone();
        responsibility.resolve(&[(name, SymbolDef::at(0x1000))]).unwrap();
    }

    fn found(&self, name: &str) -> FoundSymbol {
        let names = vec![self.session.intern(name)];
        let order = self.dylib.link_order();
        self.session.lookup_in_state(&order, names, SymbolState::Resolved).unwrap().remove(0)
    }

    fn emit(&self, responsibility: MaterializationResponsibility, needs: &[&str]) -> Result<(), jit_core::Error> {
        let own = responsibility.symbols()[0].name.clone();
        let dependences: Vec<_> = needs.iter().map(|name| (own.clone(), self.found(name))).collect();
        responsibility.emit(&dependences)
    }

    fn state(&self, name: &str) -> SymbolState {
        self.session.symbol_state(&self.dylib, &self.session.intern(name)).unwrap().0
    }
}

#[test]
fn core_03_a_lookup_starts_its_unit_and_is_answered_once_it_is_emitted() {
    let stage = Stage::new();
    stage.define("foo");
    let answer = stage.lookup(&["foo"], SymbolState::Ready);
    let foo = stage.take("foo");
    assert_eq!(*answer.lock().unwrap(), None);
    stage.resolve(&foo);
    assert_eq!(*answer.lock().unwrap(), None);
    foo.emit(&[]).unwrap();
    assert_eq!(*answer.lock().unwrap(), Some(Ok(1)));
}

#[test]
fn core_04_an_empty_lookup_is_answered_at_once() {
    let stage = Stage::new();
    assert_eq!(*stage.lookup(&[], SymbolState::Ready).lock().unwrap(), Some(Ok(0)));
}

#[test]
fn core_18_a_symbol_that_depends_on_itself_becomes_ready() {
    let stage = Stage::new();
    stage.define("foo");
    let answer = stage.lookup(&["foo"], SymbolState::Ready);
    let foo = stage.take("foo");
    stage.resolve(&foo);
    stage.emit(foo, &["foo"]).unwrap();
    assert_eq!(*answer.lock().unwrap(), Some(Ok(1)));
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
        assert_eq!(*resolved.lock().unwrap(), Some(Ok(3)));
        for (name, unit) in order.iter().zip(units) {
            assert!(answers.iter().all(|answer| answer.lock().unwrap().is_none()), "{order:?}");
            let need = needs.iter().find(|need| need.0 == *name).unwrap().1;
            stage.emit(unit, &[need]).unwrap();
        }
        assert!(answers.iter().all(|answer| *answer.lock().unwrap() == Some(Ok(1))), "{order:?}");
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
    bar.fail(Cause::Other("no bar".into()));
    assert_eq!(*bar_answer.lock().unwrap(), Some(Err("symbol 'bar' in dylib 'main': no bar".into())));
    assert_eq!(*foo_answer.lock().unwrap(), None);
    stage.resolve(&foo);
    let name = foo.symbols()[0].name.clone();
    let error = foo.emit(&[(name, bar_found)]).unwrap_err().to_string();
    assert_eq!(error, "'foo' depends on 'bar', which failed: no bar");
    let expected = "symbol 'foo' in dylib 'main': depends on 'bar' in dylib 'main': no bar";
    assert_eq!(*foo_answer.lock().unwrap(), Some(Err(expected.into())));
    let later = stage.lookup(&["foo"], SymbolState::Ready);
    assert_eq!(*later.lock().unwrap(), Some(Err(expected.into())));
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
    baz.fail(Cause::Other("no baz".into()));
    let expected = "symbol 'foo' in dylib 'main': depends on 'baz' in dylib 'main': no baz";
    assert_eq!(*answer.lock().unwrap(), Some(Err(expected.into())));
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
    assert_eq!(*answer.lock().unwrap(), Some(Err("symbol 'foo' in dylib 'main': removed".into())));
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
    assert_eq!(stage.state("foo"), SymbolState::NeverSearched);
    let _answer = stage.lookup(&["foo"], SymbolState::Ready);
    assert_eq!(stage.state("foo"), SymbolState::Materializing);
    let foo = stage.take("foo");
    stage.resolve(&foo);
    assert_eq!(stage.state("foo"), SymbolState::Resolved);
    foo.emit(&[]).unwrap();
    assert_eq!(stage.state("foo"), SymbolState::Ready);
}
