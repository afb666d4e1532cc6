//! Who defines a name when several want to.

use std::sync::Arc;

use jit_core::{Error, Platform, PlatformError, ResourceTracker, SymbolFlags, SymbolState, UnitDefinition};

use crate::stage::{COMMON, Stage, answered, logged, ok};

const WEAK: SymbolFlags = SymbolFlags::WEAK;
const STRONG: SymbolFlags = SymbolFlags::EXPORTED;

#[test]
fn core_24_a_unit_whose_weak_names_are_all_overridden_is_destroyed() {
    let stage = Stage::new();
    stage.define_unit(&[("weak", WEAK)]).unwrap();
    assert!(logged(&stage.log).is_empty());
    stage.define_absolute("weak", 7);
    assert_eq!(logged(&stage.log), ["weak without weak", "weak dropped"]);
    assert_eq!(stage.address("weak"), Ok(7));
}

#[test]
fn core_25_an_overridden_weak_name_is_discarded_and_its_unit_defines_the_rest() {
    let stage = Stage::new();
    stage.define_unit(&[("foo", STRONG), ("bar", WEAK)]).unwrap();
    stage.define_absolute("bar", 7);
    assert_eq!(logged(&stage.log), ["foo without bar"]);
    assert_eq!(stage.address("bar"), Ok(7));
    assert!(!stage.is_running("foo"));
    let answer = stage.lookup(&["foo", "bar"], SymbolState::Ready);
    let unit = stage.take("foo");
    assert_eq!(unit.symbols().iter().map(|own| own.name.to_string()).collect::<Vec<_>>(), ["foo"]);
    stage.resolve(&unit);
    unit.emit(&[]).unwrap();
    assert_eq!(answered(&answer), ok(&["foo", "bar"]));
}

#[test]
fn core_26_of_two_weak_definitions_the_first_wins() {
    for flags in [WEAK, COMMON] {
        let stage = Stage::new();
        stage.define_unit(&[("bar", flags)]).unwrap();
        stage.define_unit(&[("foo", STRONG), ("bar", flags)]).unwrap();
        assert_eq!(logged(&stage.log), ["foo without bar"]);
        let answer = stage.lookup(&["bar"], SymbolState::Ready);
        stage.finish("bar");
        assert_eq!(answered(&answer), ok(&["bar"]));
        assert!(!stage.is_running("foo"));
    }
}

#[test]
fn core_27_a_weak_name_that_is_bound_cannot_be_replaced() {
    let stage = Stage::new();
    stage.dylib.define_absolute(vec![stage.absolute("weak", 1, WEAK)]).unwrap();
    assert_eq!(stage.address("weak"), Ok(1));
    let error = stage.define_unit(&[("weak", STRONG)]).unwrap_err();
    assert!(matches!(&error, Error::DuplicateDefinitions(names) if names.len() == 1), "{error}");
    assert_eq!(stage.address("weak"), Ok(1));
}

#[test]
fn core_42_a_weak_name_that_is_being_materialized_is_the_definition() {
    let stage = Stage::new();
    stage.define_unit(&[("weak", WEAK)]).unwrap();
    let answer = stage.lookup(&["weak"], SymbolState::Ready);
    let error = stage.define_unit(&[("weak", STRONG)]).unwrap_err().to_string();
    let expected = "duplicate definition of 'weak' in dylib 'main' (first in unit of weak, again in unit of weak)";
    assert_eq!(error, expected);
    stage.finish("weak");
    assert_eq!(answered(&answer), ok(&["weak"]));
    // What was weak is the definition, and shows as such.
    let found = stage.session.lookup(&stage.order(), stage.names(&["weak"])).unwrap();
    assert!(found[0].flags.is_strong());
}

#[test]
fn absolute_symbols_are_defined_all_or_none() {
    // One that is taken, one twice, and two in the place of a weak one.
    for names in [["new", "weak", "taken", "other"], ["new", "weak", "other", "new"], ["weak", "new", "weak", "other"]]
    {
        let stage = Stage::new();
        stage.define_absolute("taken", 1);
        stage.dylib.define_absolute(vec![stage.absolute("weak", 2, WEAK)]).unwrap();
        let before = stage.session.statistics();
        let symbols = names.iter().zip(10..).map(|(name, address)| stage.absolute(name, address, STRONG));
        let error = stage.dylib.define_absolute(symbols.collect()).unwrap_err();
        assert!(matches!(&error, Error::DuplicateDefinitions(duplicates) if duplicates.len() == 1), "{error}");
        assert_eq!(stage.session.statistics(), before, "{names:?}");
        assert_eq!((stage.address("taken"), stage.address("weak")), (Ok(1), Ok(2)));
        assert!(stage.address("new").is_err() && stage.address("other").is_err());
    }
}

#[test]
fn a_weak_absolute_symbol_gives_way_until_it_is_used() {
    let stage = Stage::new();
    stage.dylib.define_absolute(vec![stage.absolute("a", 1, WEAK), stage.absolute("b", 2, WEAK)]).unwrap();
    assert_eq!(stage.address("a"), Ok(1));
    stage.define_absolute("b", 3);
    assert_eq!(stage.address("b"), Ok(3));
}

#[test]
fn gap_11_a_duplicate_definition_lists_all_names_and_both_places() {
    let stage = Stage::new();
    stage.define_unit(&[("one", STRONG), ("two", STRONG)]).unwrap();
    let units =
        vec![stage.unit(&[("three", STRONG), ("two", STRONG)]), stage.unit(&[("one", STRONG), ("three", STRONG)])];
    let error = stage.dylib.default_tracker().unwrap().define(units).unwrap_err().to_string();
    assert_eq!(
        error,
        "duplicate definition of 'two' in dylib 'main' (first in unit of one, again in unit of three), \
         'one' in dylib 'main' (first in unit of one, again in unit of one), \
         'three' in dylib 'main' (first in unit of three, again in unit of one)"
    );
    assert_eq!(stage.state("three"), None);
    assert_eq!(logged(&stage.log), ["three dropped", "one dropped"]);
}

#[test]
fn core_09_a_discarded_initializer_symbol_is_none_any_more() {
    let stage = Stage::new();
    let init = SymbolFlags { side_effects_only: true, weak: true, ..STRONG };
    let tracker = stage.dylib.default_tracker().unwrap();
    tracker.define(vec![stage.unit_with_initializer(&[("foo", STRONG), ("init", init)], "init")]).unwrap();
    tracker.define(vec![stage.unit_with_initializer(&[("bar", STRONG), ("bar.init", init)], "bar.init")]).unwrap();
    stage.dylib.remove_symbols(&stage.names(&["init"])).unwrap();
    assert_eq!(logged(&stage.log), ["foo without init"]);
    let _answer = stage.lookup(&["foo", "bar"], SymbolState::Ready);
    let (foo, bar) = (stage.take("foo"), stage.take("bar"));
    assert_eq!(foo.initializer(), None);
    assert_eq!(foo.symbols().len(), 1);
    assert_eq!(bar.initializer(), Some(stage.name("bar.init")));
}

#[test]
fn gap_1_an_override_survives_the_tracker_of_what_it_replaced() {
    let stage = Stage::new();
    let (a, b) = (stage.dylib.create_tracker().unwrap(), stage.dylib.create_tracker().unwrap());
    stage.define_in(&a, "foo", WEAK);
    stage.define_in(&b, "foo", STRONG);
    a.remove().unwrap();
    let answer = stage.lookup(&["foo"], SymbolState::Ready);
    stage.finish("foo");
    assert_eq!(answered(&answer), ok(&["foo"]));
    b.remove().unwrap();
    assert_eq!(stage.state("foo"), None);
}

struct Refusing;

impl Platform for Refusing {
    fn adding(&self, _: &ResourceTracker, units: &[UnitDefinition]) -> Result<(), PlatformError> {
        Err(format!("no {}", units[0].symbols[0].name).into())
    }

    fn setup_dylib(&self, dylib: &jit_core::JitDylib) -> Result<(), PlatformError> {
        Err(format!("no {}", dylib.name()?).into())
    }
}

#[test]
fn gap_3_what_a_platform_refuses_leaves_the_tables_as_they_were() {
    let stage = Stage::new();
    stage.define_unit(&[("weak", WEAK)]).unwrap();
    let before = stage.session.statistics();
    stage.session.set_platform(Some(Arc::new(Refusing)));
    let error = stage.define_unit(&[("foo", STRONG), ("weak", STRONG)]).unwrap_err().to_string();
    assert_eq!(error, "refused by the platform: no foo");
    assert_eq!(stage.session.create_dylib("other").unwrap_err().to_string(), "refused by the platform: no other");
    assert_eq!(stage.session.statistics(), before);
    assert_eq!(logged(&stage.log), ["foo dropped"]);
    stage.session.set_platform(None);
    let answer = stage.lookup(&["weak"], SymbolState::Ready);
    stage.finish("weak");
    assert_eq!(answered(&answer), ok(&["weak"]));
}

#[test]
fn names_are_freed_when_nothing_uses_them() {
    let stage = Stage::new();
    let tracker = stage.dylib.create_tracker().unwrap();
    stage.define_in(&tracker, "short lived", STRONG);
    tracker.remove().unwrap();
    stage.session.names().clear_dead_entries();
    assert!(stage.session.names().is_empty(), "{:?}", stage.session.names());
}
