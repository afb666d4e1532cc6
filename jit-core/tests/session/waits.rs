//! Units that wait for each other: a cycle is an error that names it, and what somebody waits for comes first.

use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use jit_core::{
    AbsoluteSymbol, Alias, Cause, DefinitionGenerator, FoundSymbol, LookupError, LookupState,
    MaterializationResponsibility, Priority, SymbolDef, SymbolFlags, SymbolName, SymbolState, Task, TaskDispatcher,
    ThreadPoolDispatcher, UnitDefinition,
};

use crate::stage::{Custom, Log, Stage, answered, declare, failed, logged, ok};

const STRONG: SymbolFlags = SymbolFlags::EXPORTED;
const PATIENCE: Duration = Duration::from_secs(20);

fn define(stage: &Stage, name: &str, materialize: impl FnOnce(MaterializationResponsibility) + Send + 'static) {
    let unit = stage.definition(&[(name, STRONG)], Custom(materialize));
    stage.dylib.default_tracker().unwrap().define(vec![unit]).unwrap();
}

fn succeed(responsibility: MaterializationResponsibility) {
    let symbols = responsibility.symbols();
    let definitions: Vec<_> = symbols.iter().map(|own| (own.name.clone(), SymbolDef::at(0x1000))).collect();
    responsibility.resolve(&definitions).unwrap();
    responsibility.emit(&[]).unwrap();
}

/// Is defined when the others have come to a state, and fails with them.
fn after(needs: Vec<String>, required: SymbolState) -> impl FnOnce(MaterializationResponsibility) + Send {
    move |responsibility| {
        let names: Vec<_> = needs.iter().map(|name| responsibility.session().intern(name)).collect();
        let order = responsibility.link_order();
        responsibility.lookup_then(&order, names, required, |responsibility, found| match found {
            Ok(_) => succeed(responsibility),
            Err(error) => responsibility.fail(Cause::Other(error.into())),
        });
    }
}

/// As `after`, on a thread that waits.
fn blocking(needs: &'static str) -> impl FnOnce(MaterializationResponsibility) + Send {
    move |responsibility| {
        let session = responsibility.session().clone();
        match session.lookup(&responsibility.link_order(), vec![session.intern(needs)]) {
            Ok(_) => succeed(responsibility),
            Err(error) => responsibility.fail(Cause::Other(error.into())),
        }
    }
}

fn stages() -> [Stage; 3] {
    [
        Stage::new(),
        Stage::with(Box::new(ThreadPoolDispatcher::new(1).unwrap())),
        Stage::with(Box::new(ThreadPoolDispatcher::new(2).unwrap())),
    ]
}

/// What becomes of a lookup, which has to end.
fn end_of(stage: &Stage, name: &str) -> Result<(), String> {
    let (send, receive) = mpsc::channel();
    stage.session.lookup_async(&stage.order(), stage.names(&[name]), SymbolState::Ready, move |result| {
        send.send(result.map(|_| ()).map_err(|error| error.to_string())).unwrap();
    });
    receive.recv_timeout(PATIENCE).expect("it does not end")
}

#[test]
fn a_cycle_of_continuations_that_have_the_responsibility_is_an_error_that_names_it() {
    for required in [SymbolState::Resolved, SymbolState::Ready] {
        for (ring, members) in [(vec!["a"], vec!["'a' -> 'a'"]), (vec!["a", "b"], vec!["'a'", "'b'"])] {
            for stage in stages() {
                for (name, next) in ring.iter().zip(ring.iter().cycle().skip(1)) {
                    define(&stage, name, after(vec![(*next).to_owned()], required));
                }
                // It leads into the cycle, and is not on it.
                define(&stage, "user", after(vec!["a".to_owned()], required));
                let error = end_of(&stage, "user").unwrap_err();
                let cycle = error.split("a cycle of waits: ").nth(1).unwrap_or_else(|| panic!("{error}"));
                assert!(members.iter().all(|member| cycle.contains(member)) && !cycle.contains("user"), "{error}");
                assert_eq!(stage.session.statistics().lookups, 0);
            }
        }
    }
}

#[test]
fn a_unit_that_is_told_of_its_cycle_may_do_without() {
    for stage in stages() {
        define(&stage, "a", after(vec!["b".to_owned()], SymbolState::Ready));
        define(&stage, "b", |responsibility| {
            let (order, name) = (responsibility.link_order(), responsibility.session().intern("a"));
            responsibility.lookup_then(&order, vec![name], SymbolState::Ready, |responsibility, found| {
                assert!(found.unwrap_err().to_string().ends_with("a cycle of waits: 'a' -> 'b' -> 'a'"));
                succeed(responsibility);
            });
        });
        assert_eq!(end_of(&stage, "a"), Ok(()));
    }
}

#[test]
fn a_cycle_through_an_alias_a_thread_and_a_continuation_is_an_error() {
    for stage in stages() {
        let alias =
            |name: &str, aliasee: &str| Alias { name: stage.name(name), aliasee: stage.name(aliasee), flags: STRONG };
        define(&stage, "a", after(vec!["b".to_owned()], SymbolState::Ready));
        stage.dylib.define_aliases(vec![alias("b", "c")]).unwrap();
        define(&stage, "c", blocking("d"));
        stage.dylib.define_aliases(vec![alias("d", "a")]).unwrap();
        let error = end_of(&stage, "a").unwrap_err();
        assert!(error.contains("a cycle of waits: "), "{error}");
        assert!(["'a'", "'b'", "'c'", "'d'"].iter().all(|name| error.contains(name)), "{error}");

        define(&stage, "e", after(vec!["f".to_owned()], SymbolState::Resolved));
        stage.dylib.define_aliases(vec![alias("f", "e")]).unwrap();
        let error = end_of(&stage, "e").unwrap_err();
        assert!(error.contains("a cycle of waits: 'e' -> 'f' -> 'e'"), "{error}");
    }
}

#[test]
fn a_cycle_that_closes_with_what_a_symbol_needs_is_an_error_at_once() {
    let stage = Stage::new();
    ["a", "b", "c"].into_iter().for_each(|name| stage.define(name));
    let answer = stage.lookup(&["a", "b", "c"], SymbolState::Ready);
    let [a, b, c] = ["a", "b", "c"].map(|name| stage.take(name));
    [&b, &c].into_iter().for_each(|unit| stage.resolve(unit));
    // `a` is made when `b` is ready, which needs `c` and is needed by it; that will need `a`.
    after(vec!["b".to_owned()], SymbolState::Ready)(a);
    stage.emit(b, &["c"]).unwrap();
    assert_eq!(answered(&answer), None);
    let own = c.symbols()[0].name.clone();
    let flags = stage.session.lookup_in_state(&stage.order(), stage.names(&["a", "b"]), SymbolState::NeverSearched);
    let needs: Vec<_> = flags.unwrap().into_iter().map(|found| (own.clone(), found)).collect();
    _ = c.emit(&needs);
    let error = answered(&answer).unwrap().unwrap_err();
    assert!(error.contains("a cycle of waits: 'a' -> 'b' -> 'c' -> 'a'"), "{error}");
    assert_eq!(stage.session.statistics().lookups, 0);
}

#[test]
fn units_that_need_each_other_beside_one_that_waits_become_ready() {
    let stage = Stage::new();
    ["a", "b", "c"].into_iter().for_each(|name| stage.define(name));
    let answer = stage.lookup(&["a", "b", "c"], SymbolState::Ready);
    let [a, b, c] = ["a", "b", "c"].map(|name| stage.take(name));
    [&b, &c].into_iter().for_each(|unit| stage.resolve(unit));
    after(vec!["b".to_owned()], SymbolState::Ready)(a);
    stage.emit(b, &["c"]).unwrap();
    stage.emit(c, &["b"]).unwrap();
    assert_eq!(answered(&answer), ok(&["a", "b", "c"]));
}

#[test]
fn a_continuation_that_is_cancelled_or_whose_tracker_goes_has_its_responsibility_back() {
    let stage = Stage::new();
    let tracker = stage.dylib.create_tracker().unwrap();
    stage.define("never");
    for name in ["cancelled", "removed"] {
        stage.define_in(&tracker, name, STRONG);
    }
    let answers = ["cancelled", "removed"].map(|name| stage.lookup(&[name], SymbolState::Ready));
    let (send, receive) = mpsc::channel();
    let wait = |name: &str| {
        let send = send.clone();
        let (order, never) = (stage.order(), stage.names(&["never"]));
        stage.take(name).lookup_then(&order, never, SymbolState::Ready, move |responsibility, found| {
            send.send((responsibility.symbols().len(), found.map(|_| ()).map_err(|error| error.to_string()))).unwrap();
        })
    };
    wait("cancelled").cancel();
    let expected = "symbol 'never' in dylib 'main': the lookup was cancelled".to_owned();
    assert_eq!(receive.try_recv().unwrap(), (1, Err(expected)));
    assert_eq!(
        answered(&answers[0]),
        failed("symbol 'cancelled' in dylib 'main': unit of cancelled was dropped before it was materialized")
    );
    let _handle = wait("removed");
    tracker.remove().unwrap();
    assert_eq!(answered(&answers[1]), failed("symbol 'removed' in dylib 'main': removed"));
    stage.finish("never");
    assert_eq!(receive.try_recv().unwrap(), (0, Ok(())));
}

/// Whoever comes first in a chain, what is looked at to see that there is no cycle stays little.
#[test]
fn a_long_chain_of_units_that_wait_is_no_cycle_in_any_order() {
    const COUNT: usize = if cfg!(target_arch = "x86_64") { 30_000 } else { 3_000 };
    let mut orders: Vec<Vec<usize>> = vec![(0..COUNT).collect(), (0..COUNT).rev().collect()];
    // Every other one first, so that pieces are joined.
    orders.push((0..COUNT).step_by(2).chain((1..COUNT).step_by(2)).collect());
    orders.push((0..COUNT).map(|index| index * 7919 % COUNT).collect());
    for order in orders {
        let stage = Stage::new();
        let name = |index: usize| format!("s{index}");
        stage.define(&name(COUNT));
        for index in 0..COUNT {
            define(&stage, &name(index), after(vec![name(index + 1)], SymbolState::Ready));
        }
        let answers: Vec<_> = order.iter().map(|index| stage.lookup(&[&name(*index)], SymbolState::Ready)).collect();
        stage.finish(&name(COUNT));
        assert!(answers.iter().all(|answer| matches!(answered(answer), Some(Ok(_)))));
    }
}

#[test]
fn what_is_done_with_an_answer_is_the_units_that_has_asked() {
    for stage in stages() {
        stage.define_absolute("there", 1);
        // Waits in what is done with the answer, for what waits for it.
        define(&stage, "a", |responsibility| {
            let session = responsibility.session().clone();
            let (order, names) = (responsibility.link_order(), vec![session.intern("there")]);
            session.lookup_async(&order, names, SymbolState::Ready, |_| blocking("b")(responsibility));
        });
        define(&stage, "b", blocking("a"));
        let error = end_of(&stage, "a").unwrap_err();
        assert!(error.contains("a cycle of waits: "), "{error}");
        assert!(["'a'", "'b'"].iter().all(|name| error.contains(name)), "{error}");
    }
}

/// Keeps tasks until somebody waits, and then runs what is awaited before the others.
#[derive(Clone, Default)]
struct Queue(Arc<Mutex<Vec<Task>>>);

impl Queue {
    fn run_next(&self) -> bool {
        let task = {
            let mut tasks = self.0.lock().unwrap();
            let place = tasks.iter().position(|task| task.priority() == Priority::Awaited).unwrap_or(0);
            if tasks.is_empty() { None } else { Some(tasks.remove(place)) }
        };
        task.map(Task::run).is_some()
    }
}

impl TaskDispatcher for Queue {
    fn dispatch(&self, tasks: Vec<Task>) {
        self.0.lock().unwrap().extend(tasks);
    }

    fn wait(&self, done: &dyn Fn() -> bool, deadline: Option<Instant>) {
        while !done() && deadline.is_none_or(|deadline| Instant::now() < deadline) {
            assert!(self.run_next(), "nobody would ever do it");
        }
    }

    fn wake(&self) {}
}

/// Units that log that they run, behind three that nobody waits for.
fn queued() -> (Stage, Queue, impl Fn(&'static str, &'static [&'static str]), Log) {
    let queue = Queue::default();
    let stage = Stage::with(Box::new(queue.clone()));
    let log = Log::default();
    let (session, dylib, to) = (stage.session.clone(), stage.dylib.clone(), Arc::clone(&log));
    let define = move |name: &'static str, needs: &'static [&'static str]| {
        let to = Arc::clone(&to);
        let work = after(needs.iter().map(|name| (*name).to_owned()).collect(), SymbolState::Ready);
        let unit = Custom(move |responsibility| {
            to.lock().unwrap().push(name.to_owned());
            work(responsibility);
        });
        let symbols = [declare(&session, name, STRONG)].into_iter().collect();
        let unit = UnitDefinition { symbols, unit: Box::new(unit), name: Arc::from(name) };
        dylib.default_tracker().unwrap().define(vec![unit]).unwrap();
    };
    ["x", "y", "z"].into_iter().for_each(|name| define(name, &[]));
    (stage, queue, define, log)
}

#[test]
fn what_a_unit_that_has_begun_waits_for_comes_first_once_somebody_waits_for_it() {
    let (stage, queue, define, log) = queued();
    define("needed", &["further"]);
    define("further", &[]);
    stage.define("begun");
    drop(stage.lookup(&["begun"], SymbolState::Ready));
    assert!(queue.run_next());
    let begun = stage.take("begun");
    drop(stage.lookup(&["x", "y", "z"], SymbolState::Ready));
    after(vec!["needed".to_owned()], SymbolState::Ready)(begun);
    assert_eq!(logged(&log), [""; 0]);
    stage.address("begun").unwrap();
    assert_eq!(logged(&log), ["needed", "further"]);
}

#[test]
fn what_an_emitted_symbol_needs_comes_first_once_somebody_waits_for_it() {
    for awaited_before in [false, true] {
        let (stage, queue, define, log) = queued();
        define("needed", &["further"]);
        define("further", &[]);
        stage.define("begun");
        drop(stage.lookup(&["begun"], SymbolState::Ready));
        assert!(queue.run_next());
        let begun = stage.take("begun");
        drop(stage.lookup(&["x", "y", "z"], SymbolState::Ready));
        let needed =
            stage.session.lookup_in_state(&stage.order(), stage.names(&["needed"]), SymbolState::NeverSearched);
        let (own, needed) = (begun.symbols()[0].name.clone(), needed.unwrap().remove(0));
        stage.resolve(&begun);
        let mut begun = Some(begun);
        let mut emit = || begun.take().unwrap().emit(&[(own.clone(), needed.clone())]).unwrap();
        if awaited_before {
            let deadline = Instant::now();
            _ = stage.session.lookup_until(&stage.order(), stage.names(&["begun"]), deadline);
            emit();
        } else {
            emit();
        }
        stage.address("begun").unwrap();
        assert_eq!(logged(&log), ["needed", "further"]);
    }
}

#[test]
fn what_an_emitted_symbol_needs_and_nobody_asked_for_is_made() {
    let stage = Stage::new();
    stage.define("needed");
    stage.define("user");
    let answer = stage.lookup(&["user"], SymbolState::Ready);
    let user = stage.take("user");
    stage.resolve(&user);
    let needed = stage.session.lookup_in_state(&stage.order(), stage.names(&["needed"]), SymbolState::NeverSearched);
    let own = user.symbols()[0].name.clone();
    user.emit(&[(own, needed.unwrap().remove(0))]).unwrap();
    assert_eq!(answered(&answer), None);
    stage.finish("needed");
    assert_eq!(answered(&answer), ok(&["user"]));
}

#[test]
fn a_generator_that_waits_without_a_thread_is_asked_for_what_it_waits_for() {
    /// Makes names from `helper`, and `made` from nothing.
    struct Makes;
    impl DefinitionGenerator for Makes {
        fn try_to_generate(&self, lookup: LookupState) {
            let dylib = lookup.dylib().clone();
            let session = dylib.session().clone();
            let absolute = |name: &SymbolName| AbsoluteSymbol {
                name: name.clone(),
                definition: SymbolDef::at(7),
                flags: STRONG,
                signature: None,
            };
            let names: Vec<_> = lookup.names().to_vec();
            if names.iter().any(|name| &**name == "made") {
                dylib.define_absolute(names.iter().map(absolute).collect()).unwrap();
                return lookup.continue_lookup(Ok(()));
            }
            let order = dylib.link_order();
            let helper = vec![session.intern("helper")];
            session.lookup_async(&order, helper, SymbolState::Ready, move |_| {
                dylib.define_absolute(names.iter().map(absolute).collect()).unwrap();
                lookup.continue_lookup(Ok(()));
            });
        }
    }
    for stage in stages() {
        stage.dylib.add_generator(Arc::new(Makes)).unwrap();
        define(&stage, "helper", after(vec!["made".to_owned()], SymbolState::Ready));
        assert_eq!(end_of(&stage, "foo"), Ok(()));
    }
}

/// What a unit of a random program does with what it refers to.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Way {
    /// Has its address when they are ready, and needs them no more.
    Computed,
    /// The same, on a thread that waits.
    Blocking,
    /// Has its address when they have theirs, and needs them.
    Derived,
    /// Has its address at once, and needs them.
    Linked,
    /// Has its address at once, and is emitted when they are ready.
    Initialized,
    /// Another name of the first.
    Alias,
}

impl Way {
    const ALL: [Self; 6] =
        [Self::Computed, Self::Blocking, Self::Derived, Self::Linked, Self::Initialized, Self::Alias];

    fn required(self) -> SymbolState {
        match self {
            Self::Computed | Self::Blocking | Self::Initialized => SymbolState::Ready,
            Self::Derived | Self::Linked | Self::Alias => SymbolState::Resolved,
        }
    }

    fn is_resolved_first(self) -> bool {
        matches!(self, Self::Linked | Self::Initialized)
    }
}

type Program = Vec<(Way, Vec<usize>)>;

fn random_program(seed: u64) -> Program {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = move |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as usize % below
    };
    let count = 2 + next(7);
    (0..count)
        .map(|_| {
            let way = Way::ALL[next(Way::ALL.len())];
            let needs = if way == Way::Alias { 1 } else { next(3) };
            (way, (0..needs).map(|_| next(count)).collect())
        })
        .collect()
}

/// Which symbols become ready if everybody does what can be done.
fn ready_in_the_end(program: &Program) -> Vec<bool> {
    let mut states = vec![SymbolState::Materializing; program.len()];
    loop {
        let before = states.clone();
        for (unit, (way, needs)) in program.iter().enumerate() {
            let may_go_on = needs.iter().all(|need| states[*need] >= way.required());
            if (way.is_resolved_first() || may_go_on) && states[unit] < SymbolState::Resolved {
                states[unit] = SymbolState::Resolved;
            }
            if may_go_on && states[unit] < SymbolState::Emitted {
                states[unit] = SymbolState::Emitted;
            }
        }
        // Emitted symbols are ready but for those that need one that is not emitted.
        let mut ready: Vec<_> = states.iter().map(|state| *state >= SymbolState::Emitted).collect();
        loop {
            let needs_of = |unit: usize| match program[unit].0.required() {
                SymbolState::Resolved => program[unit].1.as_slice(),
                _ => &[],
            };
            let lost: Vec<_> = (0..program.len())
                .filter(|unit| ready[*unit] && needs_of(*unit).iter().any(|need| !ready[*need]))
                .collect();
            if lost.is_empty() {
                break;
            }
            lost.into_iter().for_each(|unit| ready[unit] = false);
        }
        for (unit, ready) in ready.iter().enumerate() {
            if *ready {
                states[unit] = SymbolState::Ready;
            }
        }
        if states == before {
            return ready;
        }
    }
}

fn run(way: Way, needs: Vec<String>, responsibility: MaterializationResponsibility) {
    let session = responsibility.session().clone();
    let order = responsibility.link_order();
    let names: Vec<_> = needs.iter().map(|name| session.intern(name)).collect();
    let own = responsibility.symbols()[0].name.clone();
    let definition = [(own.clone(), SymbolDef::at(0x1000))];
    let finish = move |responsibility: MaterializationResponsibility, found: Result<Vec<FoundSymbol>, LookupError>| {
        let found = match found {
            Ok(found) => found,
            Err(error) => return responsibility.fail(Cause::Other(error.into())),
        };
        if !way.is_resolved_first() {
            responsibility.resolve(&[(own.clone(), SymbolDef::at(0x1000))]).unwrap();
        }
        let needs = if way.required() == SymbolState::Resolved { found } else { Vec::new() };
        // An error means that something it needs has failed meanwhile.
        _ = responsibility.emit(&needs.into_iter().map(|found| (own.clone(), found)).collect::<Vec<_>>());
    };
    if way.is_resolved_first() {
        responsibility.resolve(&definition).unwrap();
    }
    if way == Way::Blocking {
        let found = session.lookup(&order, names);
        return finish(responsibility, found);
    }
    responsibility.lookup_then(&order, names, way.required(), finish);
}

#[test]
fn random_programs_of_units_that_wait_for_each_other_end_as_they_must() {
    const PROGRAMS: u64 = if cfg!(target_arch = "x86_64") { 400 } else { 40 };
    for seed in 0..PROGRAMS {
        let program = random_program(seed);
        let expected = ready_in_the_end(&program);
        for stage in stages() {
            let name = |unit: usize| format!("s{unit}");
            for (unit, (way, needs)) in program.iter().enumerate() {
                let needs: Vec<_> = needs.iter().map(|need| name(*need)).collect();
                if *way == Way::Alias {
                    let alias = Alias { name: stage.name(&name(unit)), aliasee: stage.name(&needs[0]), flags: STRONG };
                    stage.dylib.define_aliases(vec![alias]).unwrap();
                } else {
                    let way = *way;
                    define(&stage, &name(unit), move |responsibility| run(way, needs, responsibility));
                }
            }
            let (send, receive) = mpsc::channel();
            for unit in 0..program.len() {
                let send = send.clone();
                let names = stage.names(&[&name(unit)]);
                stage.session.lookup_async(&stage.order(), names, SymbolState::Ready, move |found| {
                    send.send((unit, found.map(|_| ()).map_err(|error| error.to_string()))).unwrap();
                });
            }
            for _ in 0..program.len() {
                let told = receive.recv_timeout(PATIENCE);
                let (unit, found) = told.unwrap_or_else(|_| panic!("program {seed} does not end: {program:?}"));
                assert_eq!(found.is_ok(), expected[unit], "s{unit} of program {seed}, {program:?}: {found:?}");
            }
            assert_eq!(stage.session.statistics().lookups, 0, "program {seed}");
        }
    }
}
