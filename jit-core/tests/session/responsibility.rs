//! What a unit can do with its responsibility.

use std::sync::{Arc, Mutex};

use jit_core::{Error, SymbolDef, SymbolDependenceGroup, SymbolFlags, SymbolState};

use crate::stage::{Stage, answered, because, declare, failed, ok};

const STRONG: SymbolFlags = SymbolFlags::EXPORTED;

#[test]
fn core_28_a_name_added_while_materializing_needs_no_materialization() {
    let stage = Stage::new();
    stage.define("foo");
    let answer = stage.lookup(&["foo"], SymbolState::Ready);
    let foo = stage.take("foo");
    let accepted = foo.define_materializing(vec![declare(&stage.session, "bar", STRONG)]).unwrap();
    assert_eq!(accepted, stage.names(&["bar"]));
    stage.resolve(&foo);
    foo.emit(&[]).unwrap();
    assert_eq!(answered(&answer), ok(&["foo"]));
    assert_eq!(stage.address("bar"), Ok(0x2000));
    assert!(stage.running.lock().unwrap().is_empty());
}

#[test]
fn late_definitions_are_all_or_none_and_weak_ones_give_way() {
    let stage = Stage::new();
    stage.define("foo");
    stage.define_absolute("there", 1);
    let _answer = stage.lookup(&["foo"], SymbolState::Ready);
    let foo = stage.take("foo");
    let declared = |name, flags| declare(&stage.session, name, flags);
    let error = foo.define_materializing(vec![declared("new", STRONG), declared("there", STRONG)]).unwrap_err();
    assert!(matches!(error, Error::DuplicateDefinitions(names) if names.len() == 1));
    assert_eq!(stage.state("new"), None);
    let weak = vec![declared("new", SymbolFlags::WEAK), declared("there", SymbolFlags::WEAK)];
    assert_eq!(foo.define_materializing(weak).unwrap(), stage.names(&["new"]));
    assert_eq!(stage.state("new"), Some(SymbolState::Materializing));
}

#[test]
fn core_37_a_late_definition_after_the_removal_is_refused() {
    let stage = Stage::new();
    let tracker = stage.dylib.create_tracker().unwrap();
    stage.define_in(&tracker, "foo", STRONG);
    let answer = stage.lookup(&["foo"], SymbolState::Ready);
    let foo = stage.take("foo");
    tracker.remove().unwrap();
    let error = foo.define_materializing(vec![declare(&stage.session, "bar", STRONG)]).unwrap_err();
    assert!(matches!(error, Error::DefunctTracker));
    assert_eq!(answered(&answer), failed("symbol 'foo' in dylib 'main': removed"));
    assert_eq!(stage.state("bar"), None);
    foo.fail(because("nobody cares"));
}

#[test]
fn gap_2_a_late_definition_goes_with_the_tracker_of_its_unit() {
    let stage = Stage::new();
    let tracker = stage.dylib.create_tracker().unwrap();
    stage.define_in(&tracker, "foo", STRONG);
    let _answer = stage.lookup(&["foo"], SymbolState::Ready);
    let foo = stage.take("foo");
    foo.define_materializing(vec![declare(&stage.session, "bar", STRONG)]).unwrap();
    stage.resolve(&foo);
    foo.emit(&[]).unwrap();
    assert_eq!(tracker.symbols().unwrap(), stage.names(&["foo", "bar"]));
    tracker.remove().unwrap();
    assert_eq!((stage.state("foo"), stage.state("bar")), (None, None));
}

#[test]
fn core_40_only_requested_symbols_are_listed_and_what_is_given_back_runs_later() {
    let stage = Stage::new();
    stage.define_unit(&[("foo", STRONG), ("bar", STRONG)]).unwrap();
    let answer = stage.lookup(&["foo"], SymbolState::Ready);
    let unit = stage.take("foo");
    assert_eq!(unit.requested_symbols(), stage.names(&["foo"]));
    unit.replace(stage.unit(&[("bar", STRONG)])).unwrap();
    assert!(!stage.is_running("bar"));
    stage.resolve(&unit);
    unit.emit(&[]).unwrap();
    assert_eq!(answered(&answer), ok(&["foo"]));
    let later = stage.lookup(&["bar"], SymbolState::Ready);
    stage.finish("bar");
    assert_eq!(answered(&later), ok(&["bar"]));
}

#[test]
fn what_is_given_back_and_waited_for_runs_at_once() {
    let stage = Stage::new();
    stage.define_unit(&[("foo", STRONG), ("bar", STRONG)]).unwrap();
    let answer = stage.lookup(&["foo", "bar"], SymbolState::Ready);
    let unit = stage.take("foo");
    assert_eq!(unit.requested_symbols().len(), 2);
    unit.replace(stage.unit(&[("bar", STRONG)])).unwrap();
    stage.finish("bar");
    assert_eq!(answered(&answer), None);
    stage.resolve(&unit);
    unit.emit(&[]).unwrap();
    assert_eq!(answered(&answer), ok(&["foo", "bar"]));
    let foreign = stage.unit(&[("elsewhere", STRONG)]);
    stage.define_unit(&[("baz", STRONG)]).unwrap();
    let _answer = stage.lookup(&["baz"], SymbolState::Ready);
    let error = stage.take("baz").replace(foreign).unwrap_err();
    assert!(matches!(error, Error::UnexpectedDefinition(name) if &*name == "elsewhere"));
}

#[test]
fn core_41_a_delegated_part_resolves_and_emits_by_itself() {
    let stage = Stage::new();
    stage.define_unit(&[("foo", STRONG), ("bar", STRONG)]).unwrap();
    let answer = stage.lookup(&["foo", "bar"], SymbolState::Ready);
    let foo = stage.take("foo");
    let bar = foo.delegate(&stage.names(&["bar"])).unwrap();
    assert_eq!(foo.symbols().len(), 1);
    stage.resolve(&foo);
    stage.resolve(&bar);
    foo.emit(&[]).unwrap();
    assert_eq!(answered(&answer), None);
    bar.emit(&[]).unwrap();
    assert_eq!(answered(&answer), ok(&["foo", "bar"]));
}

#[test]
fn a_delegated_part_that_is_dropped_fails_its_own_symbols_only() {
    let stage = Stage::new();
    stage.define_unit(&[("foo", STRONG), ("bar", STRONG)]).unwrap();
    let [foo_answer, bar_answer] = ["foo", "bar"].map(|name| stage.lookup(&[name], SymbolState::Ready));
    let foo = stage.take("foo");
    drop(foo.delegate(&stage.names(&["bar"])).unwrap());
    assert_eq!(
        answered(&bar_answer),
        failed("symbol 'bar' in dylib 'main': unit of foo was dropped before it was materialized")
    );
    stage.resolve(&foo);
    foo.emit(&[]).unwrap();
    assert_eq!(answered(&foo_answer), ok(&["foo"]));
}

#[test]
fn addresses_are_published_in_several_steps_and_only_once() {
    let stage = Stage::new();
    stage.define_unit(&[("foo", STRONG), ("bar", STRONG)]).unwrap();
    let answer = stage.lookup(&["foo"], SymbolState::Resolved);
    let unit = stage.take("foo");
    let [foo, bar, baz] = ["foo", "bar", "baz"].map(|name| (stage.name(name), SymbolDef::at(1)));
    unit.resolve(std::slice::from_ref(&foo)).unwrap();
    assert_eq!(answered(&answer), ok(&["foo"]));
    assert!(matches!(unit.resolve(&[bar.clone(), foo]), Err(Error::UnexpectedDefinition(_))));
    assert!(matches!(unit.resolve(&[bar.clone(), baz]), Err(Error::UnexpectedDefinition(_))));
    assert_eq!(stage.state("bar"), Some(SymbolState::Materializing));
    let error = unit.emit(&[]).unwrap_err().to_string();
    assert_eq!(error, "'bar' was emitted without an address");
    assert_eq!(stage.state("foo"), Some(SymbolState::Ready));
}

#[test]
fn dependence_groups_say_who_of_a_unit_needs_what() {
    let stage = Stage::new();
    stage.define_unit(&[("a", STRONG), ("b", STRONG), ("c", STRONG)]).unwrap();
    stage.define("d");
    let ready = |names: &[&str]| stage.lookup(names, SymbolState::Ready);
    let [a, b, c] = ["a", "b", "c"].map(|name| ready(&[name]));
    let _d = stage.lookup(&["d"], SymbolState::Resolved);
    let (unit, d) = (stage.take("a"), stage.take("d"));
    stage.resolve(&unit);
    stage.resolve(&d);
    let group = SymbolDependenceGroup { symbols: stage.names(&["a", "b"]), dependences: vec![stage.found("d")] };
    unit.emit_groups(&[group]).unwrap();
    assert_eq!(answered(&c), ok(&["c"]));
    assert_eq!((answered(&a), answered(&b)), (None, None));
    d.emit(&[]).unwrap();
    assert_eq!((answered(&a), answered(&b)), (ok(&["a"]), ok(&["b"])));
}

#[test]
fn what_a_unit_holds_is_dropped_with_its_code() {
    struct Noted(Arc<Mutex<bool>>);
    impl Drop for Noted {
        fn drop(&mut self) {
            *self.0.lock().unwrap() = true;
        }
    }
    let stage = Stage::new();
    let dropped = Arc::new(Mutex::new(false));
    let tracker = stage.dylib.create_tracker().unwrap();
    stage.define_in(&tracker, "foo", STRONG);
    let _answer = stage.lookup(&["foo"], SymbolState::Ready);
    let foo = stage.take("foo");
    foo.hold(Box::new(Noted(Arc::clone(&dropped)))).unwrap();
    stage.resolve(&foo);
    foo.emit(&[]).unwrap();
    assert!(!*dropped.lock().unwrap());
    let scope = stage.session.enter();
    tracker.remove().unwrap();
    assert!(!*dropped.lock().unwrap());
    assert_eq!(stage.session.statistics().retired, 1);
    drop(scope);
    assert!(*dropped.lock().unwrap());
}
