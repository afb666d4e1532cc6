//! Redirectable functions that are looked up, redefined and removed at once.

#[path = "common/bodies.rs"]
mod bodies;
mod common;

use std::cell::RefCell;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Instant;

use bodies::{constant, redefine};
use common::add;
use jit_core::{
    AbsoluteSymbol, FnPointer, Jit, MaterializationResponsibility, MaterializationUnit, OptLevel, RedirectableFunction,
    SymbolDef, SymbolFlags, SymbolName, SymbolState, Task, TaskDispatcher, ThreadPoolDispatcher,
};

type Nullary = extern "C" fn() -> i64;

/// Holds threads up that wait for what is compiled.
struct Holding(ThreadPoolDispatcher);

thread_local! {
    /// Whom to tell that this thread was told what it waited for, and who lets it go on.
    static HELD: RefCell<Option<(Sender<()>, Receiver<()>)>> = const { RefCell::new(None) };
}

impl TaskDispatcher for Holding {
    fn dispatch(&self, tasks: Vec<Task>) {
        self.0.dispatch(tasks);
    }

    fn wait(&self, done: &dyn Fn() -> bool, deadline: Option<Instant>) {
        self.0.wait(done, deadline);
        if let Some((told, go_on)) = HELD.take() {
            told.send(()).unwrap();
            go_on.recv().unwrap();
        }
    }

    fn wake(&self) {
        self.0.wake();
    }
}

/// Does `work` on a thread, and `meanwhile` when that has been told what it waited for and has done nothing with it.
fn hold<R: Send>(work: impl FnOnce() -> R + Send, meanwhile: impl FnOnce()) -> R {
    let (told, is_told) = channel();
    let (go_on, may_go_on) = channel();
    thread::scope(|scope| {
        let work = scope.spawn(|| {
            HELD.set(Some((told, may_go_on)));
            work()
        });
        is_told.recv().unwrap();
        meanwhile();
        go_on.send(()).unwrap();
        work.join().unwrap()
    })
}

extern "C" fn unusable() -> i64 {
    -1
}

fn jit() -> Jit {
    let dispatcher = Box::new(Holding(ThreadPoolDispatcher::new(2).unwrap()));
    let failure = (unusable as Nullary).address();
    Jit::builder().opt_level(OptLevel::None).dispatcher(dispatcher).failure_address(failure).build().unwrap()
}

/// Calls another function, or gives its address.
fn using(name: &str, callee: &str, instruction: &str) -> String {
    format!(
        "function %{name}() -> i64 system_v {{
            sig0 = () -> i64 system_v
            fn0 = %{callee} sig0
        block0:
            v0 = {instruction}
            return v0
        }}"
    )
}

#[test]
fn no_call_goes_to_a_new_body_that_needs_what_was_removed_since_it_was_compiled() {
    let jit = jit();
    redefine(&jit, &constant("f", 1)).unwrap();
    add(&jit, &using("caller", "f", "call fn0()"));
    let caller = jit.lookup::<unsafe extern "C" fn() -> i64>("caller").unwrap();
    // Nobody else gets at a session of so many symbols while it is looked at as a whole.
    let symbol = |index| AbsoluteSymbol {
        name: jit.session().intern(&format!("other{index}")),
        definition: SymbolDef::at((unusable as Nullary).address()),
        flags: SymbolFlags::FUNCTION,
        signature: None,
    };
    jit.main().define_absolute((0..20_000).map(symbol).collect()).unwrap();
    for _ in 0..4 {
        let needed = add(&jit, &constant("needed", 0));
        let (removed, busy, over) = (AtomicBool::new(false), AtomicBool::new(false), AtomicBool::new(false));
        thread::scope(|scope| {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    let was_removed = removed.load(Ordering::Acquire);
                    // SAFETY: the functions only compute.
                    let value = unsafe { caller.call() };
                    assert!(!was_removed || [1, -1].contains(&value), "the body that gives the address {value:#x}");
                }
            });
            let meanwhile = || {
                needed.remove().unwrap();
                removed.store(true, Ordering::Release);
                scope.spawn(|| {
                    while !over.load(Ordering::Relaxed) {
                        drop(jit.session().dump());
                        busy.store(true, Ordering::Relaxed);
                    }
                });
                while !busy.load(Ordering::Relaxed) {
                    thread::yield_now();
                }
            };
            hold(|| redefine(&jit, &using("f", "needed", "func_addr.i64 fn0")).unwrap(), meanwhile);
            over.store(true, Ordering::Relaxed);
        });
        // SAFETY: as above.
        assert_eq!(unsafe { caller.call() }, -1);
        redefine(&jit, &constant("f", 1)).unwrap();
    }
}

/// The value of a function that only computes and is there.
fn call(jit: &Jit, name: &str) -> i64 {
    let address = jit.lookup_address(name).unwrap();
    // SAFETY: the address of a function of this type.
    let function = unsafe { std::mem::transmute::<usize, Nullary>(address as usize) };
    function()
}

#[test]
fn a_function_that_is_first_looked_up_while_others_of_its_batch_are_compiled_gets_its_new_body() {
    let jit = jit();
    redefine(&jit, &format!("{}{}", constant("f", 1), constant("g", 1))).unwrap();
    jit.lookup_address("g").unwrap();
    let second = format!("{}{}", constant("f", 2), constant("g", 2));
    hold(|| redefine(&jit, &second).unwrap(), || _ = jit.lookup_address("f").unwrap());
    assert_eq!((call(&jit, "f"), call(&jit, "g")), (2, 2));
}

extern "C" fn one() -> i64 {
    1
}

/// A body that is [`one`], and waits before it is resolved and before it is emitted.
struct Slow {
    body: SymbolName,
    resolve: Receiver<()>,
    emit: Receiver<()>,
}

impl MaterializationUnit for Slow {
    fn materialize(self: Box<Self>, responsibility: MaterializationResponsibility) {
        self.resolve.recv().unwrap();
        // Errors mean that nobody wants it any more.
        _ = responsibility.resolve(&[(self.body.clone(), SymbolDef::at((one as Nullary).address()))]);
        self.emit.recv().unwrap();
        _ = responsibility.emit(&[]);
    }

    fn discard(&mut self, _: &SymbolName) {}
}

/// Defines `f` with a slow body. Gives what has that resolved, and what has it emitted.
fn define_slow(jit: &Jit) -> (Sender<()>, Sender<()>) {
    let ((may_resolve, resolve), (may_emit, emit)) = (channel(), channel());
    let body = |body: &SymbolName| Box::new(Slow { body: body.clone(), resolve, emit }) as Box<dyn MaterializationUnit>;
    let function = RedirectableFunction { name: jit.session().intern("f"), signature: None, body: Box::new(body) };
    jit.redefine_with(vec![function]).unwrap();
    (may_resolve, may_emit)
}

/// Waits until a symbol has come so far.
fn wait_for(jit: &Jit, name: &str, state: SymbolState) {
    let name = jit.session().intern(name);
    while jit.session().symbol_state(jit.main(), &name).is_none_or(|(now, _)| now < state) {
        thread::yield_now();
    }
}

#[test]
fn a_first_lookup_that_compiles_an_old_body_ends_with_the_new_one() {
    let jit = jit();
    let (resolve, emit) = define_slow(&jit);
    redefine(&jit, &constant("g", 1)).unwrap();
    jit.lookup_address("g").unwrap();
    let second = format!("{}{}", constant("f", 2), constant("g", 2));
    thread::scope(|scope| {
        let mut first = None;
        let meanwhile = || {
            first = Some(scope.spawn(|| jit.lookup_address("f")));
            wait_for(&jit, "f$orcane.0", SymbolState::Materializing);
        };
        hold(|| redefine(&jit, &second).unwrap(), meanwhile);
        resolve.send(()).unwrap();
        emit.send(()).unwrap();
        first.unwrap().join().unwrap().unwrap();
    });
    assert_eq!(call(&jit, "f"), 2);
}

#[test]
fn a_function_does_not_fail_because_its_first_body_is_replaced_before_it_is_ready() {
    let jit = jit();
    let (resolve, emit) = define_slow(&jit);
    thread::scope(|scope| {
        let first = scope.spawn(|| jit.lookup_address("f"));
        resolve.send(()).unwrap();
        wait_for(&jit, "f", SymbolState::Emitted);
        redefine(&jit, &constant("f", 2)).unwrap();
        emit.send(()).unwrap();
        first.join().unwrap().unwrap();
    });
    assert_eq!(call(&jit, "f"), 2);
}

#[test]
fn a_function_that_is_removed_while_it_is_redefined_does_not_get_in_the_way_of_another() {
    let jit = jit();
    let f = redefine(&jit, &constant("f", 1)).unwrap();
    jit.lookup_address("f").unwrap();
    let meanwhile = || {
        f.remove().unwrap();
        // In the place that `f` had.
        redefine(&jit, &constant("h", 7)).unwrap();
        jit.lookup_address("h").unwrap();
    };
    hold(|| redefine(&jit, &constant("f", 2)).unwrap(), meanwhile);
    assert_eq!(call(&jit, "h"), 7);
    assert!(jit.lookup_address("f").is_err());
}

#[test]
fn a_function_that_is_removed_as_it_is_found_is_not_mistaken_for_the_next_in_its_place() {
    let jit = jit();
    let f = redefine(&jit, &constant("f", 1)).unwrap();
    let meanwhile = || {
        f.remove().unwrap();
        redefine(&jit, &constant("h", 7)).unwrap();
        jit.lookup_address("h").unwrap();
    };
    let found = hold(|| jit.lookup::<unsafe extern "C" fn() -> i64>("f").map(drop), meanwhile);
    assert!(found.is_err());
}

#[test]
fn of_two_threads_that_define_a_function_first_the_second_redefines_it() {
    let jit = jit();
    for round in 0..200 {
        let (f, g) = (format!("f{round}"), format!("g{round}"));
        let text = |value| format!("{}{}", constant(&f, value), constant(&g, value));
        let start = Barrier::new(2);
        let define = |value| {
            start.wait();
            redefine(&jit, &text(value))
        };
        thread::scope(|scope| {
            let other = scope.spawn(|| define(1));
            let trackers = [define(2), other.join().unwrap()].map(|defined| defined.unwrap());
            let value = call(&jit, &f);
            assert_eq!((call(&jit, &g), [1, 2].contains(&value)), (value, true));
            // Calls go where later redefinitions say.
            redefine(&jit, &text(3)).unwrap();
            assert_eq!((call(&jit, &f), call(&jit, &g)), (3, 3));
            drop(trackers);
        });
    }
}
