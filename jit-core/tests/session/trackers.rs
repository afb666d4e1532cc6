//! What is removed together, and who is told.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use jit_core::{
    DylibLookup, Error, JitDylib, MaterializationResponsibility, ResourceKey, ResourceManager, ResourceTracker,
    SearchOrder, SymbolDef, SymbolFlags, SymbolState,
};

use crate::stage::{Stage, answered, because, failed, logged, ok};

const STRONG: SymbolFlags = SymbolFlags::EXPORTED;

/// Files numbers under keys.
#[derive(Default)]
struct Manager {
    filed: Mutex<HashMap<ResourceKey, u32>>,
    log: Mutex<Vec<String>>,
}

impl Manager {
    fn install(stage: &Stage) -> Arc<Self> {
        let manager = Arc::new(Self::default());
        stage.session.register_resource_manager(Arc::clone(&manager) as Arc<dyn ResourceManager>);
        manager
    }

    fn file(&self, responsibility: &MaterializationResponsibility, number: u32) -> Result<(), Error> {
        responsibility.with_resource_key(|key| *self.filed.lock().unwrap().entry(key).or_default() += number)
    }

    fn filed(&self, tracker: &ResourceTracker) -> Option<u32> {
        self.filed.lock().unwrap().get(&tracker.key()).copied()
    }

    fn log(&self) -> Vec<String> {
        std::mem::take(&mut self.log.lock().unwrap())
    }
}

impl ResourceManager for Manager {
    fn remove(&self, _: &JitDylib, key: ResourceKey) {
        let filed = self.filed.lock().unwrap().remove(&key);
        self.log.lock().unwrap().push(format!("removed {filed:?}"));
    }

    fn transfer(&self, _: &JitDylib, to: ResourceKey, from: ResourceKey) {
        let mut filed = self.filed.lock().unwrap();
        let moved = filed.remove(&from);
        if let Some(moved) = moved {
            *filed.entry(to).or_default() += moved;
        }
        self.log.lock().unwrap().push(format!("transferred {moved:?}"));
    }
}

struct Scene {
    stage: Stage,
    manager: Arc<Manager>,
    tracker: ResourceTracker,
}

fn scene() -> Scene {
    let stage = Stage::new();
    let manager = Manager::install(&stage);
    let tracker = stage.dylib.create_tracker().unwrap();
    stage.define_in(&tracker, "foo", STRONG);
    Scene { stage, manager, tracker }
}

#[test]
fn rt_01_a_tracker_is_removed_before_its_unit_is_used() {
    let Scene { stage, manager, tracker } = scene();
    tracker.remove().unwrap();
    assert_eq!(stage.state("foo"), None);
    assert_eq!(manager.log(), ["removed None"]);
    assert_eq!(logged(&stage.log), ["foo dropped"]);
    assert_eq!(
        answered(&stage.lookup(&["foo"], SymbolState::Ready)),
        failed("symbol 'foo' in dylib 'main': not found")
    );
}

#[test]
fn rt_02_a_tracker_is_removed_after_its_unit_was_used() {
    let Scene { stage, manager, tracker } = scene();
    let answer = stage.lookup(&["foo"], SymbolState::Ready);
    let foo = stage.take("foo");
    manager.file(&foo, 7).unwrap();
    stage.resolve(&foo);
    foo.emit(&[]).unwrap();
    assert_eq!(answered(&answer), ok(&["foo"]));
    tracker.remove().unwrap();
    assert_eq!(manager.log(), ["removed Some(7)"]);
    assert_eq!(stage.state("foo"), None);
}

#[test]
fn rt_03_a_tracker_is_removed_while_its_unit_runs() {
    let Scene { stage, manager, tracker } = scene();
    let answer = stage.lookup(&["foo"], SymbolState::Ready);
    let foo = stage.take("foo");
    tracker.remove().unwrap();
    assert_eq!(answered(&answer), failed("symbol 'foo' in dylib 'main': removed"));
    assert!(matches!(manager.file(&foo, 7), Err(Error::DefunctTracker)));
    assert!(foo.resolve(&[(stage.name("foo"), SymbolDef::at(1))]).is_err());
    assert_eq!(stage.state("foo"), None);
    assert!(matches!(foo.emit(&[]), Err(Error::DefunctTracker)));
    assert!(manager.filed.lock().unwrap().is_empty());
}

#[test]
fn rt_03_what_is_filed_while_the_tracker_is_removed_is_not_forgotten() {
    let Scene { stage, manager, tracker } = scene();
    let _answer = stage.lookup(&["foo"], SymbolState::Ready);
    let foo = stage.take("foo");
    let result = foo.with_resource_key(|key| {
        tracker.remove().unwrap();
        manager.filed.lock().unwrap().insert(key, 7);
    });
    assert!(matches!(result, Err(Error::DefunctTracker)));
    assert_eq!(manager.log(), ["removed None", "removed Some(7)"]);
}

#[test]
fn rt_04_a_cleared_dylib_has_nothing_left() {
    let stage = Stage::new();
    let manager = Manager::install(&stage);
    ["foo", "bar"].iter().for_each(|name| stage.define(name));
    let other = stage.dylib.create_tracker().unwrap();
    stage.define_in(&other, "baz", STRONG);
    let answer = stage.lookup(&["foo", "bar"], SymbolState::Ready);
    for name in ["foo", "bar"] {
        let unit = stage.take(name);
        manager.file(&unit, 1).unwrap();
        stage.resolve(&unit);
        unit.emit(&[]).unwrap();
    }
    assert_eq!(answered(&answer), ok(&["foo", "bar"]));
    assert_eq!(manager.filed(&stage.dylib.default_tracker().unwrap()), Some(2));
    stage.dylib.clear().unwrap();
    assert!(manager.filed.lock().unwrap().is_empty());
    let statistics = stage.session.statistics();
    assert_eq!((statistics.symbols, statistics.units, statistics.dylibs), (0, 0, 1));
    stage.define("foo");
}

#[test]
fn rt_05_a_tracker_is_transferred_before_its_unit_is_used() {
    let Scene { stage, manager, tracker } = scene();
    let target = stage.dylib.create_tracker().unwrap();
    tracker.transfer_to(&target).unwrap();
    assert!(tracker.is_defunct());
    assert!(matches!(tracker.remove(), Err(Error::DefunctTracker)));
    let _answer = stage.lookup(&["foo"], SymbolState::Ready);
    let foo = stage.take("foo");
    manager.file(&foo, 7).unwrap();
    assert_eq!((manager.filed(&target), manager.filed(&tracker)), (Some(7), None));
    assert_eq!(target.symbols().unwrap(), stage.names(&["foo"]));
}

#[test]
fn rt_06_resources_merge_when_a_tracker_is_transferred() {
    let Scene { stage, manager, tracker } = scene();
    let target = stage.dylib.create_tracker().unwrap();
    stage.define_in(&target, "bar", STRONG);
    let _answer = stage.lookup(&["foo", "bar"], SymbolState::Ready);
    for (name, number) in [("foo", 3), ("bar", 4)] {
        let unit = stage.take(name);
        manager.file(&unit, number).unwrap();
        stage.resolve(&unit);
        unit.emit(&[]).unwrap();
    }
    tracker.transfer_to(&target).unwrap();
    assert_eq!(manager.filed(&target), Some(7));
    target.remove().unwrap();
    assert_eq!(manager.log(), ["transferred Some(3)", "removed Some(7)"]);
    assert_eq!((stage.state("foo"), stage.state("bar")), (None, None));
}

#[test]
fn rt_07_a_unit_sees_the_new_tracker_when_it_was_transferred_while_it_runs() {
    let Scene { stage, manager, tracker } = scene();
    let target = stage.dylib.create_tracker().unwrap();
    let answer = stage.lookup(&["foo"], SymbolState::Ready);
    let foo = stage.take("foo");
    manager.file(&foo, 1).unwrap();
    let filed = foo.with_resource_key(|key| {
        tracker.transfer_to(&target).unwrap();
        *manager.filed.lock().unwrap().entry(key).or_default() += 2;
    });
    filed.unwrap();
    manager.file(&foo, 4).unwrap();
    assert_eq!((manager.filed(&target), manager.filed(&tracker)), (Some(7), None));
    stage.resolve(&foo);
    foo.emit(&[]).unwrap();
    assert_eq!(answered(&answer), ok(&["foo"]));
}

#[test]
fn rt_08_a_tracker_that_nobody_holds_becomes_part_of_the_default_one() {
    let Scene { stage, manager, tracker } = scene();
    let _answer = stage.lookup(&["foo"], SymbolState::Ready);
    let foo = stage.take("foo");
    manager.file(&foo, 7).unwrap();
    drop(tracker.clone());
    assert!(manager.log().is_empty());
    drop(tracker);
    assert_eq!(manager.log(), ["transferred Some(7)"]);
    let default = stage.dylib.default_tracker().unwrap();
    assert_eq!(manager.filed(&default), Some(7));
    assert_eq!(default.symbols().unwrap(), stage.names(&["foo"]));
    assert_eq!(stage.session.statistics().trackers, 1);
    foo.fail(because("done"));
}

#[test]
fn trackers_of_two_dylibs_do_not_mix_and_a_transfer_to_oneself_is_nothing() {
    let Scene { stage, tracker, .. } = scene();
    let other = stage.session.create_dylib("other").unwrap().create_tracker().unwrap();
    assert!(matches!(tracker.transfer_to(&other), Err(Error::ForeignTracker)));
    tracker.transfer_to(&tracker.clone()).unwrap();
    assert!(!tracker.is_defunct());
    assert_eq!(tracker.dylib().unwrap(), stage.dylib);
}

#[test]
fn managers_are_told_newest_first() {
    struct Telling(&'static str, Arc<Mutex<Vec<&'static str>>>);
    impl ResourceManager for Telling {
        fn remove(&self, _: &JitDylib, _: ResourceKey) {
            self.1.lock().unwrap().push(self.0);
        }

        fn transfer(&self, _: &JitDylib, _: ResourceKey, _: ResourceKey) {}
    }
    let stage = Stage::new();
    let told = Arc::new(Mutex::new(Vec::new()));
    let managers = ["first", "second", "third"].map(|name| Arc::new(Telling(name, Arc::clone(&told))) as Arc<_>);
    managers.iter().for_each(|manager| stage.session.register_resource_manager(Arc::clone(manager)));
    stage.session.deregister_resource_manager(&managers[1]);
    stage.dylib.clear().unwrap();
    assert_eq!(*told.lock().unwrap(), ["third", "first"]);
}

#[test]
fn a_manager_that_panics_keeps_no_other_from_being_told() {
    struct Panicking;
    impl ResourceManager for Panicking {
        fn remove(&self, _: &JitDylib, _: ResourceKey) {
            panic!("made on purpose");
        }

        fn transfer(&self, _: &JitDylib, _: ResourceKey, _: ResourceKey) {}
    }
    let stage = Stage::new();
    let manager = Arc::new(Manager::default());
    let managers: [Arc<dyn ResourceManager>; 3] = [manager.clone(), Arc::new(Panicking), manager.clone()];
    managers.into_iter().for_each(|manager| stage.session.register_resource_manager(manager));
    stage.dylib.clear().unwrap();
    assert_eq!(manager.log(), ["removed None"; 2]);
}

#[test]
fn core_46_a_dylib_is_removed_with_a_lookup_in_flight() {
    let stage = Stage::new();
    let other = stage.session.create_dylib("other").unwrap();
    let tracker = other.default_tracker().unwrap();
    stage.define_in(&tracker, "idle", STRONG);
    stage.define_in(&tracker, "foo", STRONG);
    let order = SearchOrder::new().then(&other, DylibLookup::All);
    let answer = stage.lookup_in(&order, stage.names(&["foo"]), SymbolState::Ready);
    let foo = stage.take("foo");
    other.remove().unwrap();
    assert_eq!(answered(&answer), failed("symbol 'foo' in dylib 'other': removed"));
    assert_eq!(logged(&stage.log), ["foo dropped", "idle dropped"]);
    assert!(foo.resolve(&[(stage.name("foo"), SymbolDef::at(1))]).is_err());
    assert!(matches!(other.dfs_link_order(), Err(Error::DylibGone)));
    assert!(matches!(other.remove(), Err(Error::DylibGone)));
    assert!(matches!(tracker.define(vec![stage.unit(&[("bar", STRONG)])]), Err(Error::DefunctTracker)));
    foo.fail(because("too late"));
    let again = stage.session.create_dylib("other").unwrap();
    assert_ne!(again, other);
    assert_eq!(stage.session.dylib("other"), Some(again));
}
