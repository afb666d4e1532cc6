//! What trackers count of redirectable functions: the memory of their bodies.

#[path = "common/bodies.rs"]
mod bodies;
mod common;

use std::sync::{Arc, Mutex};

use bodies::{constant, redefine};
use common::{define, jit};
use cranelift_module::{DataDescription, Linkage, Module};
use jit_core::{
    Error, Jit, MaterializationResponsibility, MaterializationUnit, RedirectableFunction, ResourceTracker, SymbolDef,
    SymbolName,
};

fn call(jit: &Jit, name: &str) -> i64 {
    let function = jit.lookup::<unsafe extern "C" fn() -> i64>(name).unwrap();
    // SAFETY: the functions of these tests only compute.
    unsafe { function.call() }
}

fn used(tracker: &ResourceTracker) -> u64 {
    tracker.memory_used().unwrap()
}

#[test]
fn a_tracker_counts_the_bodies_of_its_functions() {
    let jit = jit();
    let first = redefine(&jit, &format!("{}{}", constant("f", 1), constant("g", 1))).unwrap();
    assert_eq!(used(&first), 0);
    assert_eq!(call(&jit, "f"), 1);
    let one = used(&first);
    assert!(one > 0);
    assert_eq!(call(&jit, "g"), 1);
    assert_eq!(used(&first), 2 * one);
    for value in 2..10 {
        let again = redefine(&jit, &constant("f", value)).unwrap();
        assert_eq!(call(&jit, "f"), value);
        assert_eq!((used(&first), used(&again)), (2 * one, 0));
    }
    first.remove().unwrap();
    assert_eq!(used(&first), 0);
}

#[test]
fn what_a_new_function_is_defined_with_counts_with_it() {
    let jit = jit();
    let first = redefine(&jit, &constant("f", 1)).unwrap();
    assert_eq!(call(&jit, "f"), 1);
    let mut module = jit.module("more").redirectable();
    define(&mut module, &format!("{}{}", constant("f", 2), constant("g", 2)));
    let table = module.declare_data("table", Linkage::Export, true, false).unwrap();
    let mut data = DataDescription::new();
    data.define_zeroinit(10_000);
    module.define_data(table, &data).unwrap();
    let second = jit.redefine(module).unwrap();
    assert_eq!(used(&first), 0);
    let with_f = used(&second);
    assert!(with_f > 0);
    jit.lookup_address("table").unwrap();
    assert!(used(&second) >= with_f + 10_000);
    second.set_memory_limit(Some(used(&second))).unwrap();
    let error = jit.lookup_address("g").unwrap_err().to_string();
    assert!(error.contains("would exceed the tracker's limit"), "{error}");
}

#[test]
fn a_redefinition_beyond_the_limit_is_refused_and_the_old_body_stays() {
    let jit = jit();
    let tracker = redefine(&jit, &constant("f", 1)).unwrap();
    assert_eq!(call(&jit, "f"), 1);
    let one = used(&tracker);
    // Old and new are there at once for a moment.
    let limit = 2 * one - 1;
    tracker.set_memory_limit(Some(limit)).unwrap();
    for _ in 0..3 {
        let error = redefine(&jit, &constant("f", 2)).unwrap_err().to_string();
        let expected = format!("{one} more bytes would exceed the tracker's limit of {limit} bytes");
        assert_eq!(error, format!("symbol 'f' in dylib 'main': {expected}"));
        assert_eq!((call(&jit, "f"), used(&tracker)), (1, one));
    }
    tracker.set_memory_limit(Some(2 * one)).unwrap();
    redefine(&jit, &constant("f", 2)).unwrap();
    assert_eq!((call(&jit, "f"), used(&tracker)), (2, one));
}

#[test]
fn a_transfer_takes_along_what_is_counted() {
    let jit = jit();
    let tracker = redefine(&jit, &constant("f", 1)).unwrap();
    assert_eq!(call(&jit, "f"), 1);
    let one = used(&tracker);
    let other = jit.main().create_tracker().unwrap();
    tracker.transfer_to(&other).unwrap();
    assert_eq!(used(&other), one);
    redefine(&jit, &constant("f", 2)).unwrap();
    assert_eq!((call(&jit, "f"), used(&other)), (2, one));
    other.set_memory_limit(Some(one)).unwrap();
    assert!(redefine(&jit, &constant("f", 3)).is_err());
    // Nobody has a handle any more: it is the dylib's then.
    drop((tracker, other));
    let default = jit.main().default_tracker().unwrap();
    assert_eq!(used(&default), one);
    redefine(&jit, &constant("f", 4)).unwrap();
    assert_eq!((call(&jit, "f"), used(&default)), (4, one));
    default.remove().unwrap();
    assert_eq!(used(&default), 0);
}

/// A body that takes so many bytes, as it says.
struct Charging(SymbolName, u64, Arc<Mutex<Vec<Error>>>);

extern "C" fn answer() -> i64 {
    42
}

impl MaterializationUnit for Charging {
    fn materialize(self: Box<Self>, responsibility: MaterializationResponsibility) {
        if let Err(error) = responsibility.charge(self.1) {
            self.2.lock().unwrap().push(error.clone());
            return responsibility.fail(error.into());
        }
        let address = (answer as extern "C" fn() -> i64) as usize as u64;
        responsibility.resolve(&[(self.0, SymbolDef::at(address))]).unwrap();
        responsibility.emit(&[]).unwrap();
    }

    fn discard(&mut self, _: &SymbolName) {}
}

#[test]
fn bodies_that_units_make_are_counted_too() {
    let jit = jit();
    let errors = Arc::default();
    let charging = |bytes| {
        let errors = Arc::clone(&errors);
        let body = move |body: &SymbolName| Box::new(Charging(body.clone(), bytes, errors)) as _;
        jit.redefine_with(vec![RedirectableFunction {
            name: jit.session().intern("f"),
            signature: None,
            body: Box::new(body),
        }])
    };
    let tracker = charging(1000).unwrap();
    jit.lookup_address("f").unwrap();
    assert_eq!(used(&tracker), 1000);
    tracker.set_memory_limit(Some(2999)).unwrap();
    charging(2000).unwrap_err();
    assert_eq!((used(&tracker), errors.lock().unwrap().len()), (1000, 1));
    charging(1999).unwrap();
    assert_eq!(used(&tracker), 1999);
    tracker.remove().unwrap();
    assert_eq!(used(&tracker), 0);
}
