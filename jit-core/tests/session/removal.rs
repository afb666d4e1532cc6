//! What becomes of those who depend on what is removed.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use jit_core::{Error, RemovalPolicy, SymbolFlags, SymbolState};

use crate::stage::{Stage, answered, failed, logged, ok};

const STRONG: SymbolFlags = SymbolFlags::EXPORTED;

#[test]
fn core_08_names_are_removed_all_or_none() {
    let stage = Stage::new();
    stage.define_unit(&[("never", STRONG), ("also", STRONG)]).unwrap();
    stage.define("running");
    stage.ready("done", &[]);
    let _answer = stage.lookup(&["running"], SymbolState::Ready);
    logged(&stage.log);
    let remove = |names: &[&str]| stage.dylib.remove_symbols(&stage.names(names));
    let before = stage.session.statistics();
    let error = remove(&["never", "unknown"]).unwrap_err();
    assert_eq!(error.to_string(), "not defined: 'unknown'");
    let error = remove(&["never", "running"]).unwrap_err();
    assert_eq!(error.to_string(), "being materialized: 'running'");
    assert_eq!(stage.session.statistics(), before);
    remove(&["never"]).unwrap();
    assert_eq!(logged(&stage.log), ["never without never"]);
    remove(&["also"]).unwrap();
    assert_eq!(logged(&stage.log), ["never without also", "never dropped"]);
    remove(&["done"]).unwrap();
    assert_eq!(stage.state("done"), None);
    stage.ready("done", &[]);
    drop(stage.take("running"));
}

/// `user` needs `used`, which belongs to a tracker; `far` needs `user`.
fn dependants() -> (Stage, jit_core::ResourceTracker) {
    let stage = Stage::new();
    let tracker = stage.dylib.create_tracker().unwrap();
    stage.ready_in(&tracker, "used", &[]);
    stage.ready("user", &["used"]);
    stage.ready("far", &["user"]);
    stage.ready("bystander", &[]);
    (stage, tracker)
}

#[test]
fn gap_6_by_default_what_depends_on_removed_code_is_poisoned() {
    let (stage, tracker) = dependants();
    tracker.remove().unwrap();
    for name in ["user", "far"] {
        let expected = format!("symbol '{name}' in dylib 'main': depends on 'used' in dylib 'main': removed");
        assert_eq!(stage.address(name), Err(expected));
    }
    assert_eq!(stage.address("bystander"), Ok(0x1000));
    // A new definition does not heal what is bound to the old one.
    stage.ready_in(&tracker, "used", &[]);
    assert!(stage.address("user").is_err());
    stage.dylib.remove_symbols(&stage.names(&["user"])).unwrap();
    stage.ready("user", &["used"]);
}

#[test]
fn gap_6_a_removal_is_refused_while_something_depends_on_it() {
    let (stage, tracker) = dependants();
    let error = tracker.remove_with(RemovalPolicy::Refuse).unwrap_err();
    assert_eq!(error.to_string(), "in use: 'used' by 'user'");
    assert_eq!(stage.address("user"), Ok(0x1000));
    stage.dylib.remove_symbols(&stage.names(&["far", "user"])).unwrap();
    tracker.remove_with(RemovalPolicy::Refuse).unwrap();
    assert_eq!(stage.state("used"), None);
    // What is removed together may depend on itself.
    stage.ready_in(&tracker, "a", &[]);
    stage.ready_in(&tracker, "b", &["a"]);
    tracker.remove_with(RemovalPolicy::Refuse).unwrap();
}

#[test]
fn gap_6_a_removal_takes_what_depends_on_it_along() {
    let (stage, tracker) = dependants();
    tracker.remove_with(RemovalPolicy::Cascade).unwrap();
    assert_eq!(["used", "user", "far"].map(|name| stage.state(name)), [None; 3]);
    assert_eq!(stage.address("bystander"), Ok(0x1000));
    let statistics = stage.session.statistics();
    assert_eq!((statistics.symbols, statistics.units, statistics.dependences), (1, 1, 0));
}

#[test]
fn a_unit_that_was_linked_with_removed_code_fails_when_it_is_emitted() {
    let (stage, tracker) = dependants();
    stage.define("late");
    let answer = stage.lookup(&["late"], SymbolState::Ready);
    let late = stage.take("late");
    let used = stage.found("used");
    tracker.remove().unwrap();
    stage.resolve(&late);
    assert!(matches!(late.emit(&[(stage.name("late"), used)]), Err(Error::UnsatisfiedDependency { .. })));
    assert_eq!(answered(&answer), failed("symbol 'late' in dylib 'main': depends on 'used': removed"));
}

/// Counts its drops.
struct Code(Arc<AtomicUsize>);

impl Drop for Code {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

#[test]
fn gap_14_code_stays_until_whoever_was_inside_has_left() {
    let stage = Stage::new();
    let freed = Arc::new(AtomicUsize::new(0));
    let tracker = stage.dylib.create_tracker().unwrap();
    let retire = || {
        tracker.hold(Box::new(Code(Arc::clone(&freed)))).unwrap();
        tracker.remove().unwrap();
    };
    let outer = stage.session.enter();
    retire();
    let inner = stage.session.enter();
    retire();
    assert_eq!(freed.load(Ordering::SeqCst), 0);
    drop(outer);
    drop(inner);
    assert_eq!(freed.load(Ordering::SeqCst), 2);
    retire();
    assert_eq!(freed.load(Ordering::SeqCst), 3);
}

#[test]
fn gap_14_all_of_it_goes_when_the_last_has_left() {
    let stage = Stage::new();
    let freed = Arc::new(AtomicUsize::new(0));
    let tracker = stage.dylib.create_tracker().unwrap();
    let inside = stage.session.enter();
    for _ in 0..3 {
        tracker.hold(Box::new(Code(Arc::clone(&freed)))).unwrap();
        tracker.remove().unwrap();
    }
    assert_eq!(freed.load(Ordering::SeqCst), 0);
    drop(inside);
    assert_eq!(freed.load(Ordering::SeqCst), 3);
}

#[test]
fn gap_14_scopes_that_overlap_for_ever_do_not_hold_everything_back() {
    let stage = Stage::new();
    let freed = Arc::new(AtomicUsize::new(0));
    let tracker = stage.dylib.create_tracker().unwrap();
    let mut scope = stage.session.enter();
    for _ in 0..100 {
        tracker.hold(Box::new(Code(Arc::clone(&freed)))).unwrap();
        tracker.remove().unwrap();
        // There is never a moment without a scope.
        scope = {
            let next = stage.session.enter();
            drop(scope);
            next
        };
    }
    assert!(freed.load(Ordering::SeqCst) >= 90, "{freed:?} of 100");
    drop(scope);
    assert_eq!(freed.load(Ordering::SeqCst), 100);
}

#[test]
fn cycles_of_define_look_up_and_remove_leave_the_tables_flat() {
    let stage = Stage::new();
    let cycle = || {
        let tracker = stage.dylib.create_tracker().unwrap();
        stage.ready_in(&tracker, "a", &[]);
        stage.ready_in(&tracker, "b", &["a"]);
        tracker.remove().unwrap();
    };
    cycle();
    let before = stage.session.statistics();
    (0..1_000).for_each(|_| cycle());
    assert_eq!(stage.session.statistics(), before);
}

#[test]
fn a_symbol_can_be_defined_again_once_it_was_removed() {
    let stage = Stage::new();
    let tracker = stage.dylib.create_tracker().unwrap();
    for _ in 0..2 {
        stage.define_in(&tracker, "foo", STRONG);
        let answer = stage.lookup(&["foo"], SymbolState::Ready);
        stage.finish("foo");
        assert_eq!(answered(&answer), ok(&["foo"]));
        tracker.remove().unwrap();
    }
}
