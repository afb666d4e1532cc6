//! Functions that outlive their session, and lookups that outlive their `LazyJit`.

mod common;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Mutex};
use std::thread;

use common::{Nullary, at, builder, caller, constant, redefine, scaled};
use jit_core::{LookupError, SymbolName};
use jit_lazy::{LazyJit, Tiering};

const FUNCTIONS: i64 = 200;

extern "C" fn substitute() -> i64 {
    -1
}

type Told = Arc<Mutex<Vec<String>>>;

/// What tells `told` which functions fail and why.
fn telling(told: &Told) -> impl Fn(&SymbolName, &LookupError) -> u64 + Send + Sync + 'static {
    let told = Arc::clone(told);
    move |function, error| {
        told.lock().unwrap().push(format!("{function}: {error}"));
        substitute as *const () as u64
    }
}

fn call_after_end(jit: LazyJit, told: &Told) {
    redefine(&jit, &[caller("outer", "inner"), constant("inner", 1), constant("uncalled", 2)].concat()).unwrap();
    let [outer, uncalled] = ["outer", "uncalled"].map(|name| jit.lookup::<Nullary>(name).unwrap());
    // SAFETY: the functions only compute, here and below.
    unsafe {
        for _ in 0..scaled(200_000, 2_000) {
            assert_eq!(outer.call(), 101);
        }
        jit.session().end();
        assert_eq!(told.lock().unwrap().len(), 0);
        for _ in 0..2 {
            assert_eq!((outer.call(), uncalled.call()), (99, 2));
        }
    }
    let refused = redefine(&jit, &constant("later", 3)).unwrap_err();
    assert_eq!(refused.to_string(), "the dylib is gone");
    let refused = jit.lookup_address("outer").unwrap_err();
    assert_eq!(refused.to_string(), "symbol 'outer': the session has ended");
    drop(jit);
    // SAFETY: as above.
    unsafe { assert_eq!((outer.call(), uncalled.call()), (99, 2)) };
    let told = told.lock().unwrap();
    assert_eq!(*told, ["inner: symbol 'inner': removed"; 3]);
}

#[test]
fn calls_after_the_end_of_the_session_go_where_the_handler_says() {
    let told = Told::default();
    call_after_end(builder().failure_handler(telling(&told)).build().unwrap(), &told);
}

#[test]
fn so_do_calls_of_functions_that_have_tiers() {
    let told = Told::default();
    call_after_end(builder().tiers(Tiering::default()).failure_handler(telling(&told)).build().unwrap(), &told);
}

#[test]
fn threads_may_call_while_the_session_ends() {
    for _ in 0..scaled(20, 2) {
        let told = Told::default();
        let jit = builder().failure_handler(telling(&told)).build().unwrap();
        let text =
            |index: i64| [caller(&format!("f{index}"), &format!("g{index}")), constant(&format!("g{index}"), index)];
        redefine(&jit, &(0..FUNCTIONS).flat_map(text).collect::<String>()).unwrap();
        let functions = (0..FUNCTIONS).map(|index| jit.lookup::<Nullary>(&format!("f{index}")).unwrap());
        // What they call is not compiled.
        let functions: Vec<_> = functions.collect();
        let (start, sound) = (Barrier::new(3), AtomicUsize::new(0));
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    start.wait();
                    for (function, value) in functions.iter().zip(0..) {
                        // SAFETY: the functions only compute.
                        let result = unsafe { function.call() };
                        assert!(result == 100 + value || result == 99, "{result} is not 100 and {value}");
                        sound.fetch_add(usize::from(result != 99), Ordering::Relaxed);
                    }
                });
            }
            start.wait();
            while sound.load(Ordering::Relaxed) < 20 && told.lock().unwrap().is_empty() {
                thread::yield_now();
            }
            jit.session().end();
        });
        assert_eq!(sound.load(Ordering::Relaxed) + told.lock().unwrap().len(), 2 * functions.len());
    }
}

#[test]
fn a_jit_may_be_dropped_while_threads_look_up() {
    for _ in 0..scaled(20, 2) {
        let told = Told::default();
        let jit = builder().failure_handler(telling(&told)).build().unwrap();
        let names: Vec<_> = (0..FUNCTIONS).map(|index| format!("f{index}")).collect();
        let text: String = names.iter().zip(0..).map(|(name, value)| constant(name, value)).collect();
        redefine(&jit, &text).unwrap();
        let (session, order) = (jit.session().clone(), jit.search_order());
        let (start, dropped) = (Barrier::new(3), AtomicBool::new(false));
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    start.wait();
                    for (name, value) in names.iter().zip(0..) {
                        let found = session.lookup(&order, session.intern(name));
                        let found = found.unwrap_or_else(|error| panic!("{name}: {error}"));
                        // SAFETY: the session lives, and the function only computes.
                        let result = unsafe { at(found[0].definition.address)() };
                        assert!(result == value, "{result} is not {value}, {}", dropped.load(Ordering::Relaxed));
                    }
                });
            }
            start.wait();
            thread::yield_now();
            drop(jit);
            dropped.store(true, Ordering::Relaxed);
        });
        assert!(told.lock().unwrap().is_empty(), "{told:?}");
    }
}
