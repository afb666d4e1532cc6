//! What lazy functions cost that are never called, and that they leave nothing behind.

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use common::{Nullary, answer, at, builder, call, caller, constant, ready, redefine, scaled};
use jit_core::{Alias, BodyMaker, SymbolFlags};
use jit_lazy::LazyJit;

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
