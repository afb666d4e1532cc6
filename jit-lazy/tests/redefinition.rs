//! Lazy functions that get new bodies.

mod common;

use common::{Nullary, at, call, caller, constant, jit, redefine};

#[test]
fn a_body_that_was_not_called_is_replaced_without_being_compiled() {
    let jit = jit();
    redefine(&jit, &constant("f", 1)).unwrap();
    let address = jit.lookup_address("f").unwrap();
    redefine(&jit, &constant("f", 2)).unwrap();
    assert_eq!(jit.statistics().functions, 0);
    // SAFETY: the function only computes.
    assert_eq!(unsafe { at(address)() }, 2);
    assert_eq!(jit.statistics().functions, 1);
}

#[test]
fn a_body_that_was_called_is_replaced_at_the_next_call() {
    let jit = jit();
    redefine(&jit, &format!("{}{}", constant("callee", 1), caller("caller", "callee"))).unwrap();
    assert_eq!(call(&jit, "caller"), 101);
    redefine(&jit, &constant("callee", 2)).unwrap();
    assert_eq!(jit.statistics().functions, 2);
    assert_eq!(call(&jit, "caller"), 102);
    assert_eq!(call(&jit, "callee"), 2);
    assert_eq!(jit.statistics().functions, 3);
}

#[test]
fn the_address_stays_and_a_handle_keeps_its_body() {
    let jit = jit();
    redefine(&jit, &constant("f", 1)).unwrap();
    let address = jit.lookup_address("f").unwrap();
    let old = jit.lookup::<Nullary>("f").unwrap();
    redefine(&jit, &constant("f", 2)).unwrap();
    assert_eq!(jit.lookup_address("f").unwrap(), address);
    // SAFETY: the functions only compute.
    assert_eq!(unsafe { (old.call(), at(address)()) }, (1, 2));
}

#[test]
fn old_bodies_give_their_memory_back() {
    let jit = jit();
    let allocations = |value| {
        redefine(&jit, &constant("f", value)).unwrap();
        assert_eq!(call(&jit, "f"), value);
        jit.memory_statistics().allocations
    };
    let first = allocations(0);
    for value in 1..50 {
        assert_eq!(allocations(value), first);
    }
}

#[test]
fn calls_during_redefinitions_see_bodies_in_order() {
    const LAST: i64 = 200;
    let jit = jit();
    redefine(&jit, &constant("f", 0)).unwrap();
    redefine(&jit, &caller("caller", "f")).unwrap();
    let function = jit.lookup::<Nullary>("caller").unwrap();
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let mut seen = 0;
                while seen < LAST {
                    // SAFETY: the functions only compute.
                    let now = unsafe { function.call() } - 100;
                    assert!((seen..=LAST).contains(&now), "{now} after {seen}");
                    seen = now;
                }
            });
        }
        for value in 1..=LAST {
            redefine(&jit, &constant("f", value)).unwrap();
        }
    });
}
