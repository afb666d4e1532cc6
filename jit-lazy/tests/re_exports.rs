//! Functions that stand for others, which are looked up at the first call.

mod common;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use common::{Nullary, at, builder, call, constant, jit, redefine};
use jit_core::{
    AbsoluteSymbol, Alias, Cause, DylibLookup, Error, FnPointer, Jit, JitDylib, LookupError, Platform, PlatformError,
    ResourceTracker, SearchOrder, SymbolDef, SymbolFailure, SymbolFlags, SymbolName, UnitDefinition,
};

extern "C" fn one() -> i64 {
    1
}

extern "C" fn two() -> i64 {
    2
}

extern "C" fn failed() -> i64 {
    -1
}

fn in_dylib(dylib: &JitDylib) -> SearchOrder {
    SearchOrder::new().then(dylib, DylibLookup::All)
}

fn aliases(jit: &Jit, pairs: &[(&str, &str)]) -> Vec<Alias> {
    let name = |name: &str| jit.session().intern(name);
    let alias = |(new, old): &(&str, &str)| Alias { name: name(new), aliasee: name(old), flags: SymbolFlags::FUNCTION };
    pairs.iter().map(alias).collect()
}

/// Defines a host function, to be removed with what this gives.
fn host(jit: &Jit, dylib: &JitDylib, name: &str, function: extern "C" fn() -> i64) -> ResourceTracker {
    let tracker = dylib.create_tracker().unwrap();
    let symbol = AbsoluteSymbol {
        name: jit.session().intern(name),
        definition: SymbolDef::at(function.address()),
        flags: SymbolFlags::FUNCTION,
        signature: None,
    };
    tracker.define_absolute(vec![symbol]).unwrap();
    tracker
}

fn call_at(address: u64) -> i64 {
    // SAFETY: the functions of these tests have this type and only compute.
    unsafe { at(address)() }
}

#[test]
fn lazy_01_a_re_export_is_looked_up_at_its_first_call_and_then_called_directly() {
    let jit = jit();
    let library = jit.session().create_dylib("library").unwrap();
    let tracker = library.create_tracker().unwrap();
    let mut module = jit.module("library");
    common::clif::define(&mut module, &constant("f", 7));
    jit.clif_layer().add(&tracker, module).unwrap();
    jit.lazy_re_exports(jit.main(), &in_dylib(&library), aliases(&jit, &[("g", "f"), ("missing", "nothing")])).unwrap();
    let [g, missing] = ["g", "missing"].map(|name| jit.lookup_address(name).unwrap());
    assert_ne!(g, missing);
    assert_eq!(jit.stats().compile.functions, 0);
    assert_eq!((call_at(g), jit.stats().compile.functions), (7, 1));
    assert_eq!((call_at(g), jit.stats().compile.functions), (7, 1));
    assert_eq!(jit.lookup_address("g").unwrap(), g);
    let found = jit.session().lookup(&jit.search_order(), vec![jit.session().intern("g")]).unwrap();
    let slot = std::ptr::with_exposed_provenance::<u64>(found[0].definition.slot.unwrap() as usize);
    let f = jit.lookup_in::<Nullary>(&library, "f").unwrap();
    // SAFETY: a slot of a function that is there.
    assert_eq!(unsafe { *slot }, f.address());
    // A handle is to what the function stands for.
    assert_eq!(jit.lookup::<Nullary>("g").unwrap().address(), f.address());
}

#[test]
fn a_re_export_of_a_lazy_function_sees_its_redefinitions() {
    let jit = jit();
    redefine(&jit, &constant("f", 1)).unwrap();
    let user = jit.session().create_dylib("user").unwrap();
    jit.lazy_re_exports(&user, &in_dylib(jit.main()), aliases(&jit, &[("f", "f")])).unwrap();
    let found = jit.session().lookup(&in_dylib(&user), vec![jit.session().intern("f")]).unwrap();
    let f = found[0].definition.address;
    assert_eq!(jit.stats().compile.functions, 0);
    assert_eq!(call_at(f), 1);
    redefine(&jit, &constant("f", 2)).unwrap();
    assert_eq!((call_at(f), call(&jit, "f")), (2, 2));
}

#[test]
fn what_was_removed_is_looked_up_again() {
    let failures = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&failures);
    let handler = move |name: &jit_core::SymbolName, _: &jit_core::LookupError| {
        assert_eq!(name.as_str(), "g");
        count.fetch_add(1, Ordering::Relaxed);
        (failed as extern "C" fn() -> i64).address()
    };
    let jit = builder().failure_handler(handler).build().unwrap();
    let first = host(&jit, jit.main(), "f", one);
    jit.lazy_re_exports(jit.main(), &in_dylib(jit.main()), aliases(&jit, &[("g", "f")])).unwrap();
    let g = jit.lookup_address("g").unwrap();
    assert_eq!([call_at(g), call_at(g)], [1, 1]);
    first.remove().unwrap();
    assert_eq!([call_at(g), call_at(g)], [-1, -1]);
    assert_eq!(failures.load(Ordering::Relaxed), 2);
    let second = host(&jit, jit.main(), "f", two);
    assert_eq!(call_at(g), 2);
    second.remove().unwrap();
    assert_eq!(call_at(g), -1);
    assert_eq!(failures.load(Ordering::Relaxed), 3);
}

#[test]
fn a_re_export_can_be_redirected_and_a_function_become_one() {
    let jit = jit();
    host(&jit, jit.main(), "one", one);
    host(&jit, jit.main(), "two", two);
    let order = in_dylib(jit.main());
    jit.lazy_re_exports(jit.main(), &order, aliases(&jit, &[("g", "one")])).unwrap();
    let g = jit.lookup_address("g").unwrap();
    assert_eq!(call_at(g), 1);
    jit.lazy_re_exports(jit.main(), &order, aliases(&jit, &[("g", "two")])).unwrap();
    assert_eq!(call_at(g), 2);
    redefine(&jit, &constant("g", 3)).unwrap();
    assert_eq!(call_at(g), 3);
    jit.lazy_re_exports(jit.main(), &order, aliases(&jit, &[("g", "one")])).unwrap();
    assert_eq!((call_at(g), jit.lookup_address("g").unwrap()), (1, g));
}

#[test]
fn a_re_export_that_meets_another_definition_defines_none_and_leaves_nothing() {
    let jit = jit();
    host(&jit, jit.main(), "f", one);
    let order = in_dylib(jit.main());
    jit.lazy_re_exports(jit.main(), &order, aliases(&jit, &[("there", "f")])).unwrap();
    let allocations = jit.memory_statistics().allocations;
    for wrong in [[("a", "f"), ("f", "f")], [("a", "f"), ("a", "f")]] {
        let error = jit.lazy_re_exports(jit.main(), &order, aliases(&jit, &wrong)).unwrap_err();
        assert!(matches!(&error, Error::DuplicateDefinitions(duplicates) if duplicates.len() == 1), "{error}");
        assert!(jit.lookup_address("a").is_err());
    }
    jit.lazy_re_exports(jit.main(), &order, aliases(&jit, &[("a", "f")])).unwrap();
    assert_eq!((call(&jit, "a"), call(&jit, "there")), (1, 1));
    assert_eq!(jit.memory_statistics().allocations, allocations);
}

#[test]
fn a_re_export_takes_the_place_of_a_weak_definition_that_nobody_needed() {
    let jit = jit();
    let symbol = AbsoluteSymbol {
        name: jit.session().intern("g"),
        definition: SymbolDef::at((two as extern "C" fn() -> i64).address()),
        flags: SymbolFlags { weak: true, ..SymbolFlags::FUNCTION },
        signature: None,
    };
    jit.main().define_absolute(vec![symbol.clone()]).unwrap();
    host(&jit, jit.main(), "f", one);
    let order = in_dylib(jit.main());
    jit.lazy_re_exports(jit.main(), &order, aliases(&jit, &[("g", "f")])).unwrap();
    assert_eq!(call(&jit, "g"), 1);
    // A weak re-export gives way to what is there.
    let weak = SymbolFlags { weak: true, ..SymbolFlags::FUNCTION };
    let other = jit.session().create_dylib("other").unwrap();
    other.define_absolute(vec![AbsoluteSymbol { flags: SymbolFlags::FUNCTION, ..symbol }]).unwrap();
    let alias = Alias { flags: weak, ..aliases(&jit, &[("g", "f")]).remove(0) };
    jit.lazy_re_exports(&other, &order, vec![alias]).unwrap();
    let found = jit.session().lookup(&in_dylib(&other), vec![jit.session().intern("g")]).unwrap();
    assert_eq!(call_at(found[0].definition.address), 2);
}

#[test]
fn without_lazy_functions_a_re_export_is_looked_up_when_it_is() {
    let jit = Jit::builder().build().unwrap();
    let order = in_dylib(jit.main());
    jit.lazy_re_exports(jit.main(), &order, aliases(&jit, &[("g", "f")])).unwrap();
    assert!(jit.lookup_address("g").is_err());
    host(&jit, jit.main(), "f", one);
    jit.lazy_re_exports(jit.main(), &order, aliases(&jit, &[("g", "f")])).unwrap();
    assert_eq!(call(&jit, "g"), 1);
}

/// The members of the ring that an error speaks of.
fn ring(error: &LookupError) -> Vec<&str> {
    let [SymbolFailure { cause, .. }] = &*error.failures else { panic!("{error}") };
    let Cause::AliasCycle(members) = &**cause else { panic!("{error}") };
    members.iter().map(|name| name.as_str()).collect()
}

#[test]
fn re_exports_that_stand_for_one_another_are_errors_until_one_is_something_else() {
    for (pairs, members) in [(&[("x", "x")][..], &["x"][..]), (&[("x", "y"), ("y", "z"), ("z", "y")], &["y", "z"])] {
        let failures = Arc::new(Mutex::new(Vec::new()));
        let list = Arc::clone(&failures);
        let handler = move |_: &SymbolName, error: &LookupError| {
            list.lock().unwrap().push(error.clone());
            (failed as extern "C" fn() -> i64).address()
        };
        let jit = builder().failure_handler(handler).build().unwrap();
        jit.lazy_re_exports(jit.main(), &in_dylib(jit.main()), aliases(&jit, pairs)).unwrap();
        let Err(Error::Lookup(error)) = jit.lookup::<Nullary>("x") else { panic!("a ring was found") };
        assert_eq!(ring(&error), members);
        let x = jit.lookup_address("x").unwrap();
        assert_eq!([call_at(x), call_at(x)], [-1, -1]);
        for error in &*failures.lock().unwrap() {
            let mut found = ring(error);
            found.sort_unstable();
            assert_eq!(found, members);
        }
        assert_eq!(failures.lock().unwrap().len(), 2);
        redefine(&jit, &constant(members[0], 5)).unwrap();
        assert_eq!((call_at(x), call(&jit, "x")), (5, 5));
        // Once it is called, too, a ring is closed no more.
        let again: Vec<_> = pairs.iter().filter(|pair| pair.0 == members[0]).copied().collect();
        jit.lazy_re_exports(jit.main(), &in_dylib(jit.main()), aliases(&jit, &again)).unwrap();
        assert_eq!(call_at(x), -1);
    }
}

#[test]
fn without_lazy_functions_too_they_are_errors_and_what_is_in_use_stays() {
    let jit = Jit::builder().build().unwrap();
    let order = in_dylib(jit.main());
    let re_export = |pairs: &[_]| jit.lazy_re_exports(jit.main(), &order, aliases(&jit, pairs));
    re_export(&[("x", "y"), ("y", "x")]).unwrap();
    assert!(jit.lookup::<Nullary>("x").is_err());
    host(&jit, jit.main(), "f", one);
    re_export(&[("a", "f"), ("b", "a"), ("c", "b")]).unwrap();
    assert_eq!(call(&jit, "c"), 1);
    for (pairs, members) in [
        (&[("a", "a")][..], &["a"][..]),
        (&[("a", "c")], &["a", "c", "b"]),
        (&[("b", "f"), ("c", "a"), ("a", "c")], &["a", "c"]),
    ] {
        let Err(Error::Lookup(error)) = re_export(pairs) else { panic!("a ring was closed") };
        assert_eq!(ring(&error), members);
        assert_eq!(call(&jit, "c"), 1);
    }
    re_export(&[("c", "f"), ("b", "c"), ("a", "b")]).unwrap();
    assert_eq!(call(&jit, "a"), 1);
}

#[test]
fn a_platform_sees_lazy_functions_and_may_refuse_them() {
    struct NoneCalledBad;
    impl Platform for NoneCalledBad {
        fn adding(&self, _: &ResourceTracker, units: &[UnitDefinition]) -> Result<(), PlatformError> {
            let mut names = units.iter().flat_map(|unit| &unit.symbols).map(|symbol| symbol.name.as_str());
            if names.any(|name| name == "bad") { Err("it is bad".into()) } else { Ok(()) }
        }
    }
    let jit = jit();
    host(&jit, jit.main(), "f", one);
    jit.session().set_platform(Some(Arc::new(NoneCalledBad)));
    let order = in_dylib(jit.main());
    let error = jit.lazy_re_exports(jit.main(), &order, aliases(&jit, &[("good", "f"), ("bad", "f")])).unwrap_err();
    assert!(error.to_string().contains("it is bad"), "{error}");
    assert!(jit.lookup_address("good").is_err());
    jit.lazy_re_exports(jit.main(), &order, aliases(&jit, &[("good", "f")])).unwrap();
    assert_eq!(call(&jit, "good"), 1);
}

#[test]
fn gap_13_sixteen_threads_that_call_re_exports_at_once_have_one_body_compiled() {
    let jit = jit();
    let library = jit.session().create_dylib("library").unwrap();
    let mut module = jit.module("library");
    common::clif::define(&mut module, &constant("f", 7));
    jit.clif_layer().add(&library.create_tracker().unwrap(), module).unwrap();
    let names: Vec<_> = (0..64).map(|number| format!("g{number}")).collect();
    let pairs: Vec<_> = names.iter().map(|name| (name.as_str(), "f")).collect();
    jit.lazy_re_exports(jit.main(), &in_dylib(&library), aliases(&jit, &pairs)).unwrap();
    let addresses: Vec<_> = names.iter().map(|name| jit.lookup_address(name).unwrap()).collect();
    let barrier = std::sync::Barrier::new(16);
    std::thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| {
                barrier.wait();
                addresses.iter().for_each(|address| assert_eq!(call_at(*address), 7));
            });
        }
    });
    assert_eq!(jit.stats().compile.functions, 1);
}
