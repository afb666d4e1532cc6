//! Where dylibs search.

use jit_core::{DylibLookup, Error, JitDylib, SearchOrder, SymbolFlags, SymbolState};

use crate::stage::{Stage, answered, failed, ok};

fn dylibs<const N: usize>(stage: &Stage, names: [&str; N]) -> [JitDylib; N] {
    names.map(|name| stage.session.create_dylib(name).unwrap())
}

fn names(dylibs: &[JitDylib]) -> String {
    dylibs.iter().map(|dylib| dylib.name().unwrap()).collect::<Vec<_>>().join(" ")
}

fn link(from: &JitDylib, to: &[&JitDylib]) {
    to.iter().for_each(|to| from.add_to_link_order(to, DylibLookup::Exported).unwrap());
}

#[test]
fn core_02_a_dylib_is_first_in_its_link_order_and_what_is_there_is_not_appended_again() {
    let stage = Stage::new();
    let [a, b, c] = dylibs(&stage, ["a", "b", "c"]);
    a.add_to_link_order(&c, DylibLookup::Exported).unwrap();
    let appended =
        SearchOrder::new().then(&b, DylibLookup::Exported).then(&c, DylibLookup::Exported).then(&c, DylibLookup::All);
    a.extend_link_order(&appended).unwrap();
    let expected = SearchOrder::new()
        .then(&a, DylibLookup::All)
        .then(&c, DylibLookup::Exported)
        .then(&b, DylibLookup::Exported)
        .then(&c, DylibLookup::All);
    assert_eq!(format!("{:?}", a.link_order()), format!("{expected:?}"));
}

#[test]
fn link_orders_are_set_replaced_and_removed_from() {
    let stage = Stage::new();
    let [a, b, c] = dylibs(&stage, ["a", "b", "c"]);
    for (dylib, address) in [(&a, 1), (&b, 2), (&c, 3)] {
        dylib.define_absolute(vec![stage.absolute("x", address, SymbolFlags::EXPORTED)]).unwrap();
    }
    let found = || {
        let found = stage.session.lookup(&a.link_order(), stage.names(&["x"]));
        found.map(|found| found[0].definition.address).ok()
    };
    let only_b = SearchOrder::new().then(&b, DylibLookup::Exported);
    a.set_link_order(&only_b).unwrap();
    assert_eq!(found(), Some(1));
    a.set_exact_link_order(&only_b).unwrap();
    assert_eq!(found(), Some(2));
    a.replace_in_link_order(&b, &c, DylibLookup::Exported).unwrap();
    assert_eq!(found(), Some(3));
    a.remove_from_link_order(&c).unwrap();
    assert_eq!(found(), None);
}

#[test]
fn the_same_name_in_two_dylibs_is_the_first_ones() {
    let stage = Stage::new();
    let [a, b] = dylibs(&stage, ["a", "b"]);
    link(&stage.dylib, &[&b, &a]);
    a.define_absolute(vec![stage.absolute("x", 1, SymbolFlags::EXPORTED)]).unwrap();
    b.define_absolute(vec![stage.absolute("x", 2, SymbolFlags::EXPORTED)]).unwrap();
    assert_eq!(stage.address("x"), Ok(2));
}

#[test]
fn core_43_a_tree_is_walked_depth_first() {
    let stage = Stage::new();
    let [a, b, c, d, e] = dylibs(&stage, ["a", "b", "c", "d", "e"]);
    link(&a, &[&b, &c]);
    link(&b, &[&d, &e]);
    assert_eq!(names(&a.dfs_link_order().unwrap()), "a b d e c");
    assert_eq!(names(&stage.session.dfs_link_order(&[b.clone(), a.clone()]).unwrap()), "b d e a c");
    assert_eq!(names(&stage.session.reverse_dfs_link_order(&[a]).unwrap()), "c e d b a");
}

#[test]
fn core_44_a_shared_dylib_is_walked_once() {
    let stage = Stage::new();
    let [a, b, c, d] = dylibs(&stage, ["a", "b", "c", "d"]);
    link(&a, &[&b, &c]);
    link(&b, &[&d]);
    link(&c, &[&d]);
    assert_eq!(names(&a.dfs_link_order().unwrap()), "a b d c");
}

#[test]
fn core_45_a_cycle_of_link_orders_ends() {
    let stage = Stage::new();
    let [a, b, c] = dylibs(&stage, ["a", "b", "c"]);
    link(&a, &[&b]);
    link(&b, &[&c]);
    link(&c, &[&a]);
    assert_eq!(names(&a.dfs_link_order().unwrap()), "a b c");
    assert_eq!(names(&b.dfs_link_order().unwrap()), "b c a");
    c.remove().unwrap();
    assert!(matches!(a.dfs_link_order(), Err(Error::DylibGone)));
}

#[test]
fn link_orders_change_while_lookups_run() {
    let stage = Stage::new();
    let [a, b] = dylibs(&stage, ["a", "b"]);
    a.define_absolute(vec![stage.absolute("x", 1, SymbolFlags::EXPORTED)]).unwrap();
    b.define_absolute(vec![stage.absolute("x", 2, SymbolFlags::EXPORTED)]).unwrap();
    link(&stage.dylib, &[&a]);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..2_000 {
                stage.dylib.replace_in_link_order(&a, &b, DylibLookup::Exported).unwrap();
                stage.dylib.replace_in_link_order(&b, &a, DylibLookup::Exported).unwrap();
            }
        });
        for _ in 0..2_000 {
            assert!(matches!(stage.address("x"), Ok(1 | 2)));
        }
    });
    assert_eq!(stage.address("x"), Ok(1));
}

#[test]
fn a_link_order_skips_a_dylib_that_was_removed() {
    let stage = Stage::new();
    let library = stage.session.create_dylib("library").unwrap();
    stage.dylib.add_to_link_order(&library, DylibLookup::Exported).unwrap();
    stage.define("foo");
    let order = SearchOrder::new().then(&library, DylibLookup::All);
    library.remove().unwrap();
    let answer = stage.lookup(&["foo"], SymbolState::Ready);
    stage.finish("foo");
    assert_eq!(answered(&answer), ok(&["foo"]));
    assert_eq!(stage.address("bar"), Err("symbol 'bar' in dylib 'main': not found".into()));
    // Where there is no other, it is what is wrong.
    let answer = stage.lookup_in(&order, stage.names(&["foo"]), SymbolState::Ready);
    assert_eq!(answered(&answer), failed("symbol 'foo': the dylib is gone"));
}
