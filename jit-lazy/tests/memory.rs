//! What lazy functions cost that are never called, and that they leave nothing behind.

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use common::{Nullary, answer, at, builder, call, caller, constant, ready, redefine, scaled};
use jit_core::{Alias, BodyMaker, LookupError, SymbolFlags, SymbolName};
use jit_lazy::{LazyJit, Tiering};

/// Counts the bytes of the heap that are in use.
struct Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);

// SAFETY: passes everything on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LIVE.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: as the caller says.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as the caller says.
        unsafe { System.dealloc(block, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The tests count what all of the process has: one at a time.
static TURN: Mutex<()> = Mutex::new(());

/// Bytes in use: of the heap, and of executable memory and slots.
fn in_use(jit: &LazyJit) -> usize {
    LIVE.load(Ordering::Relaxed) + jit.memory_statistics().bytes.iter().sum::<usize>()
}

#[test]
fn lazy_08_define_call_remove_cycles_keep_memory_flat() {
    let _turn = TURN.lock().unwrap();
    let jit = builder().build().unwrap();
    let cycle = |number: usize| {
        // Names differ, as they would.
        let name = format!("f{}", number % 1000);
        let tracker = jit.redefine_with(vec![ready(&jit, &name)]).unwrap();
        let address = jit.lookup_address(&name).unwrap();
        // SAFETY: calls end up in `answer`.
        assert_eq!(unsafe { at(address)() }, 42);
        tracker.remove().unwrap();
        address
    };
    let address = cycle(0);
    (0..2000).for_each(|number| _ = cycle(number));
    let before = in_use(&jit);
    let count = scaled(1_000_000, 20_000);
    for number in 0..count {
        assert_eq!(cycle(number), address, "stubs are used again");
    }
    let grown = in_use(&jit).saturating_sub(before);
    assert!(grown < 4096, "{grown} bytes more after {count} cycles");
}

#[test]
fn lazy_08_so_do_cycles_of_re_exports_of_one_function() {
    let _turn = TURN.lock().unwrap();
    let jit = builder().build().unwrap();
    jit.define_function("answer", answer as extern "C" fn() -> i64).unwrap();
    let aliasee = jit.session().intern("answer");
    let cycle = |number: usize| {
        let name = format!("f{}", number % 1000);
        let alias = Alias { name: jit.session().intern(&name), aliasee: aliasee.clone(), flags: SymbolFlags::FUNCTION };
        let tracker = jit.lazy_re_exports(jit.main(), &jit.search_order(), vec![alias]).unwrap();
        // SAFETY: calls end up in `answer`.
        assert_eq!(unsafe { at(jit.lookup_address(&name).unwrap())() }, 42);
        tracker.remove().unwrap();
    };
    (0..2000).for_each(cycle);
    let before = in_use(&jit);
    (0..scaled(100_000, 20_000)).for_each(cycle);
    let grown = in_use(&jit).saturating_sub(before);
    assert!(grown < 4096, "{grown} bytes more");
}

#[test]
fn lazy_08_so_do_cycles_of_compiled_functions() {
    let _turn = TURN.lock().unwrap();
    let jit = builder().build().unwrap();
    let cycle = |number: i64| {
        let tracker = redefine(&jit, &format!("{}{}", constant("callee", number), caller("caller", "callee"))).unwrap();
        assert_eq!(call(&jit, "caller"), number + 100);
        tracker.remove().unwrap();
        assert!(jit.lookup::<Nullary>("callee").is_err());
    };
    (0..200).for_each(cycle);
    let before = in_use(&jit);
    (0..scaled(2000, 200) as i64).for_each(cycle);
    let grown = in_use(&jit).saturating_sub(before);
    assert!(grown < 4096, "{grown} bytes more");
}

#[test]
fn a_slot_is_not_used_again_while_something_is_linked_to_it() {
    let _turn = TURN.lock().unwrap();
    let jit = builder().failure_handler(|name, error| {
        assert_eq!(&**name, "callee");
        assert!(error.to_string().ends_with("removed"), "{error}");
        answer as *const () as u64
    });
    let jit = jit.build().unwrap();
    let callee = redefine(&jit, &constant("callee", 1)).unwrap();
    redefine(&jit, &caller("caller", "callee")).unwrap();
    assert_eq!(call(&jit, "caller"), 101);
    let address = jit.lookup_address("callee").unwrap();
    let caller = jit.lookup::<Nullary>("caller").unwrap();
    callee.remove().unwrap();
    redefine(&jit, &constant("other", 2)).unwrap();
    assert_ne!(jit.lookup_address("other").unwrap(), address);
    // SAFETY: the call of the function that was removed goes where the handler says.
    assert_eq!(unsafe { caller.call() }, 142);
}

#[test]
fn a_function_that_is_never_called_takes_200_bytes_at_most() {
    let _turn = TURN.lock().unwrap();
    let jit = builder().build().unwrap();
    let count = scaled(1_000_000, 20_000);
    // The texts of the names are the user's.
    let names: Vec<_> = (0..count).map(|number| jit.session().intern(&format!("f{number}"))).collect();
    let before = in_use(&jit);
    jit.redefine_with(names.iter().map(|name| ready(&jit, name)).collect()).unwrap();
    let last = &names[count - 1];
    // A pointer to what makes the body is the user's too.
    let own = in_use(&jit) - before - count * size_of::<BodyMaker>();
    let defined = own as f64 / count as f64;
    assert!(defined < 200.0, "{defined:.1} bytes a function");
    // SAFETY: the call ends up in `answer`.
    assert_eq!(unsafe { at(jit.lookup_address(last).unwrap())() }, 42);
    println!("{defined:.1} bytes a lazy function");
}

extern "C" fn refused() -> i64 {
    -1
}

#[test]
fn bodies_that_are_compiled_at_their_first_call_count_with_their_functions() {
    let _turn = TURN.lock().unwrap();
    let failures = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&failures);
    let handler = move |_: &SymbolName, error: &LookupError| {
        seen.lock().unwrap().push(error.to_string());
        refused as *const () as u64
    };
    let jit = builder().failure_handler(handler).build().unwrap();
    let tracker = redefine(&jit, &format!("{}{}", constant("f", 1), constant("g", 2))).unwrap();
    assert_eq!(call(&jit, "f"), 1);
    let one = tracker.memory_used().unwrap();
    assert!(one > 0);
    tracker.set_memory_limit(Some(one)).unwrap();
    assert_eq!(call(&jit, "g"), -1);
    let limit = format!("{one} more bytes would exceed the tracker's limit of {one} bytes");
    assert_eq!(*failures.lock().unwrap(), [format!("symbol 'g' in dylib 'main': {limit}")]);
    assert_eq!(tracker.memory_used().unwrap(), one);
    // The old body makes room for the new one, which is compiled when it is called.
    redefine(&jit, &constant("f", 3)).unwrap();
    assert_eq!(tracker.memory_used().unwrap(), 0);
    assert_eq!(call(&jit, "f"), 3);
    assert_eq!(tracker.memory_used().unwrap(), one);
    tracker.remove().unwrap();
    assert_eq!(tracker.memory_used().unwrap(), 0);
}

#[test]
fn bodies_of_both_tiers_count_with_their_functions() {
    let _turn = TURN.lock().unwrap();
    let jit = builder().tiers(Tiering::default().threshold(10)).build().unwrap();
    let tracker = redefine(&jit, &constant("f", 1)).unwrap();
    assert_eq!(call(&jit, "f"), 1);
    let first = tracker.memory_used().unwrap();
    assert!(first > 0);
    (0..20).for_each(|_| assert_eq!(call(&jit, "f"), 1));
    while jit.tier_statistics().promoted == 0 {
        std::thread::yield_now();
    }
    assert!(tracker.memory_used().unwrap() > first);
    tracker.remove().unwrap();
    assert_eq!(tracker.memory_used().unwrap(), 0);
}
