//! Lazy functions that get new bodies.

mod common;

use std::cell::RefCell;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, OnceLock, Weak};

use common::clif::redirected_in_use;
use common::{Nullary, add, at, builder, call, caller, constant, jit, ready, redefine, scaled};
use jit_core::{
    AbsoluteSymbol, Alias, DylibLookup, Error, Jit, LazyBody, Platform, PlatformError, ReExports, ResourceTracker,
    SymbolDef, SymbolFlags, SymbolName, UnitDefinition,
};
use jit_lazy::LazyJit;

#[test]
fn a_body_that_was_not_called_is_replaced_without_being_compiled() {
    let jit = jit();
    redefine(&jit, &constant("f", 1)).unwrap();
    let address = jit.lookup_address("f").unwrap();
    redefine(&jit, &constant("f", 2)).unwrap();
    assert_eq!(jit.stats().compile.functions, 0);
    // SAFETY: the function only computes.
    assert_eq!(unsafe { at(address)() }, 2);
    assert_eq!(jit.stats().compile.functions, 1);
}

#[test]
fn a_body_that_was_called_is_replaced_at_the_next_call() {
    let jit = jit();
    redefine(&jit, &format!("{}{}", constant("callee", 1), caller("caller", "callee"))).unwrap();
    assert_eq!(call(&jit, "caller"), 101);
    redefine(&jit, &constant("callee", 2)).unwrap();
    assert_eq!(jit.stats().compile.functions, 2);
    assert_eq!(call(&jit, "caller"), 102);
    assert_eq!(call(&jit, "callee"), 2);
    assert_eq!(jit.stats().compile.functions, 3);
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
fn lazy_06_calls_during_redefinitions_see_bodies_in_order() {
    const LAST: i64 = 200;
    let jit = jit();
    redefine(&jit, &constant("f", 0)).unwrap();
    redefine(&jit, &caller("caller", "f")).unwrap();
    let function = jit.lookup::<Nullary>("caller").unwrap();
    let redefined = AtomicI64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let mut seen = 0;
                while seen < LAST {
                    // A call that begins after a redefinition has returned enters no older body.
                    let least = redefined.load(Ordering::Acquire).max(seen);
                    // SAFETY: the functions only compute.
                    let now = unsafe { function.call() } - 100;
                    assert!((least..=LAST).contains(&now), "{now} after {least}");
                    seen = now;
                }
            });
        }
        for value in 1..=LAST {
            redefine(&jit, &constant("f", value)).unwrap();
            redefined.store(value, Ordering::Release);
        }
    });
}

/// Functions of one module, whose values tell which each is and how new.
fn batch(count: i64, version: i64) -> String {
    (0..count).map(|index| constant(&format!("f{index}"), version * count + index)).collect()
}

#[test]
fn lazy_06_a_batch_redirects_functions_in_use_each_of_them_at_once() {
    const COUNT: i64 = 8;
    const LAST: i64 = 60;
    let jit = jit();
    redefine(&jit, &batch(COUNT, 0)).unwrap();
    let callers: String = (0..COUNT).map(|index| caller(&format!("caller{index}"), &format!("f{index}"))).collect();
    redefine(&jit, &callers).unwrap();
    let callers: Vec<_> = (0..COUNT).map(|index| jit.lookup::<Nullary>(&format!("caller{index}")).unwrap()).collect();
    redirected_in_use(&callers, LAST, |version| _ = redefine(&jit, &batch(COUNT, version)).unwrap());
}

#[test]
fn a_batch_one_of_which_is_refused_changes_nothing() {
    let jit = jit();
    redefine(&jit, &batch(3, 0)).unwrap();
    add(&jit, &constant("plain", 7));
    (0..2).for_each(|index| assert_eq!(call(&jit, &format!("f{index}")), index));
    let size = || (jit.memory_statistics().allocations, jit.session().statistics().symbols);
    let before = size();
    let other_type = "function %f1(i64) -> i64 system_v { block0(v0: i64): return v0 }";
    for refused in [other_type.to_owned(), constant("plain", 8)] {
        for text in [[constant("f0", 5), refused.clone()], [refused, constant("f0", 5)]] {
            let text = format!("{}{}{}", constant("new", 5), text.concat(), constant("f2", 5));
            let error = redefine(&jit, &text).map(|_| ()).unwrap_err();
            assert!(matches!(error, Error::Signature { .. } | Error::DuplicateDefinitions(_)), "{error}");
            (0..2).for_each(|index| assert_eq!(call(&jit, &format!("f{index}")), index));
            assert!(jit.lookup_address("new").is_err());
            assert_eq!(size(), before, "{error}");
        }
    }
    assert_eq!((call(&jit, "f2"), call(&jit, "plain")), (2, 7));
}

#[test]
fn lazy_02_the_address_is_the_same_always_and_from_everywhere() {
    let jit = builder().build().unwrap();
    let other = jit.session().create_dylib("other").unwrap();
    other.add_to_link_order(jit.main(), DylibLookup::Exported).unwrap();
    redefine(&jit, &constant("f", 1)).unwrap();
    let taken = "function %taken() -> i64 system_v {
            sig0 = () -> i64 system_v
            fn0 = %f sig0
        block0:
            v0 = func_addr.i64 fn0
            return v0
        }";
    redefine(&jit, taken).unwrap();
    let address = jit.lookup_address("f").unwrap();
    // Re-exported: under another name, by a generator under its own, and from the one from the other.
    let [f, g, h] = ["f", "g", "h"].map(|name| jit.session().intern(name));
    let named = |name: &SymbolName, aliasee: &SymbolName| {
        vec![Alias { name: name.clone(), aliasee: aliasee.clone(), flags: SymbolFlags::FUNCTION }]
    };
    let [alias, generated, far] = ["alias", "generated", "far"].map(|name| jit.session().create_dylib(name).unwrap());
    alias.re_export(jit.main(), DylibLookup::Exported, named(&g, &f)).unwrap();
    generated.add_generator(Arc::new(ReExports::new(jit.main(), DylibLookup::Exported, None))).unwrap();
    far.re_export(&generated, DylibLookup::Exported, named(&h, &f)).unwrap();
    let places = [(&other, &f), (&alias, &g), (&generated, &f), (&far, &h)];
    let check = |value| {
        assert_eq!(jit.lookup_address("f").unwrap(), address);
        assert_eq!(call(&jit, "taken") as u64, address);
        for (dylib, name) in places {
            let found = jit.session().lookup(&dylib.link_order(), vec![name.clone()]).unwrap();
            assert_eq!(found[0].definition.address, address, "{name}");
            if let Some(value) = value {
                // SAFETY: the function only computes.
                assert_eq!(unsafe { at(found[0].definition.address)() }, value, "{name}");
                // SAFETY: as above.
                assert_eq!(unsafe { jit.lookup_in::<Nullary>(dylib, name).unwrap().call() }, value, "{name}");
            }
        }
    };
    check(None);
    check(Some(1));
    redefine(&jit, &constant("f", 2)).unwrap();
    check(None);
    check(Some(2));
}

#[test]
fn an_old_body_gives_its_memory_back_though_others_of_its_module_stay() {
    let jit = jit();
    let text: String = (0..20).map(|index| constant(&format!("f{index}"), index)).collect();
    redefine(&jit, &text).unwrap();
    for index in 0..20 {
        assert_eq!(call(&jit, &format!("f{index}")), index);
    }
    let size = || (jit.memory_statistics().allocations, jit.session().statistics().symbols);
    let before = size();
    for value in 100..150 {
        redefine(&jit, &constant("f7", value)).unwrap();
        assert_eq!((call(&jit, "f7"), call(&jit, "f8")), (value, 8));
        assert_eq!(size(), before);
    }
    // One that was never called goes as well.
    redefine(&jit, &format!("{}{}", constant("new", 1), constant("newer", 2))).unwrap();
    let before = size();
    redefine(&jit, &constant("new", 3)).unwrap();
    assert_eq!(size(), before);
    assert_eq!((call(&jit, "new"), call(&jit, "newer")), (3, 2));
}

#[test]
fn a_body_that_is_held_is_never_another_functions_in_the_same_place() {
    let held = Arc::new(Mutex::new(None));
    let keep = Arc::clone(&held);
    let partition = move |body: &LazyBody| {
        keep.lock().unwrap().get_or_insert_with(|| body.clone());
        Vec::new()
    };
    let jit = builder().partition(partition).build().unwrap();
    let address = |name: &str| jit.lookup_address(name).unwrap();
    let f = redefine(&jit, &format!("{}{}", constant("f", 1), constant("g", 1))).unwrap();
    let place = address("f");
    call(&jit, "f");
    let held = held.lock().unwrap().take().unwrap();
    let ready = held.ready().unwrap();
    assert_eq!(held.resolve().unwrap(), ready);
    f.remove().unwrap();
    let removed = |what: &str| {
        let error = held.resolve().unwrap_err().to_string();
        assert!(error.ends_with(": removed"), "{what}: {error}");
        held.prepare();
        assert_eq!((held.ready(), held.callees().len(), held.module().len()), (None, 0, 0), "{what}");
        assert!(held.named(held.function()).is_none());
    };
    removed("nothing");
    // Another name, another signature, another dylib.
    let others = [
        "function %h() -> i64 system_v { block0: v0 = iconst.i64 7 return v0 }",
        "
        function %f(f64) -> f64 system_v { block0(v0: f64): return v0 }",
    ];
    for other in others {
        let name = if other.contains("%h") { "h" } else { "f" };
        // `g` may get the place as well.
        let taken = (0..2).map(|number| {
            let filler = constant(&format!("filler{number}"), 0);
            redefine(&jit, &if number == 0 { other.to_owned() } else { filler }).unwrap()
        });
        let taken: Vec<_> = taken.collect();
        let there = [name, "filler1"].map(address);
        assert!(there.contains(&place), "{there:x?}, not {place:#x}");
        // Its first call takes it to a body.
        there.map(common::at).into_iter().skip(usize::from(name == "f")).for_each(|function| {
            // SAFETY: they only compute.
            _ = unsafe { function() };
        });
        removed(other);
        taken.iter().for_each(|taken| taken.remove().unwrap());
    }
}

/// Holds a thread up that is about to define a body.
struct Holding;

thread_local! {
    /// Whom to tell, and who lets it go on.
    static HELD: RefCell<Option<(Sender<()>, Receiver<()>)>> = const { RefCell::new(None) };
}

impl Platform for Holding {
    fn adding(&self, _: &ResourceTracker, units: &[UnitDefinition]) -> Result<(), PlatformError> {
        let is_body = units.iter().flat_map(|unit| &unit.symbols).any(|symbol| symbol.name.contains("$orcane"));
        if is_body && let Some((told, go_on)) = HELD.take() {
            told.send(())?;
            go_on.recv()?;
        }
        Ok(())
    }
}

#[test]
fn a_body_that_two_threads_define_and_a_third_takes_back_is_no_error_of_either() {
    let jit = jit();
    redefine(&jit, &constant("f", 0)).unwrap();
    // Nobody else gets at a session of so many symbols while it is looked at as a whole.
    let symbol = |index| AbsoluteSymbol {
        name: jit.session().intern(&format!("other{index}")),
        definition: SymbolDef::at(1),
        flags: SymbolFlags::FUNCTION,
        signature: None,
    };
    jit.main().define_absolute((0..scaled(2_000, 200) as i64).map(symbol).collect()).unwrap();
    jit.session().set_platform(Some(Arc::new(Holding)));
    let end = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _end = OnDrop(&end);
        scope.spawn(|| {
            while !end.load(Ordering::Relaxed) {
                drop(jit.session().dump());
            }
        });
        for value in (1..=2 * scaled(150, 15) as i64).step_by(2) {
            redefine(&jit, &constant("f", value)).unwrap();
            let (told, is_told) = channel();
            let (go_on, may_go_on) = channel();
            let jit = &jit;
            let held = scope.spawn(move || {
                HELD.set(Some((told, may_go_on)));
                call_newest(jit)
            });
            is_told.recv().unwrap();
            assert_eq!(call_newest(jit).unwrap(), value);
            go_on.send(()).unwrap();
            redefine(jit, &constant("f", value + 1)).unwrap();
            let seen = held.join().unwrap();
            assert!(seen.as_ref().is_ok_and(|seen| [value, value + 1].contains(seen)), "{seen:?}");
        }
    });
}

/// Says that a test is over, however it ends.
struct OnDrop<'a>(&'a AtomicBool);

impl Drop for OnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn call_newest(jit: &Jit) -> Result<i64, Error> {
    let function = jit.lookup::<Nullary>("f")?;
    // SAFETY: the function only computes.
    Ok(unsafe { function.call() })
}

#[test]
fn a_platform_that_looks_up_the_function_whose_body_is_added_finds_it() {
    struct Looks(OnceLock<Weak<LazyJit>>, AtomicI64);
    impl Platform for Looks {
        fn adding(&self, _: &ResourceTracker, units: &[UnitDefinition]) -> Result<(), PlatformError> {
            let is_body = units.iter().flat_map(|unit| &unit.symbols).any(|symbol| symbol.name.starts_with("f$"));
            if is_body && self.1.fetch_add(1, Ordering::Relaxed) == 0 {
                let jit = self.0.get().and_then(Weak::upgrade).ok_or("no JIT")?;
                call_newest(&jit)?;
            }
            Ok(())
        }
    }
    let of_clif = |jit: &Jit| redefine(jit, &constant("f", 42));
    let of_a_unit = |jit: &Jit| jit.redefine_with(vec![ready(jit, "f")]);
    for define in [of_clif as fn(&Jit) -> _, of_a_unit] {
        let jit = Arc::new(jit());
        define(&jit).unwrap();
        let platform = Arc::new(Looks(OnceLock::from(Arc::downgrade(&jit)), AtomicI64::new(0)));
        jit.session().set_platform(Some(Arc::clone(&platform) as Arc<dyn Platform>));
        assert_eq!(call_newest(&jit).unwrap(), 42);
        assert_eq!(platform.1.load(Ordering::Relaxed), 2);
    }
}
