//! Dylibs, trackers and symbols of one session in the hands of another: numbers there mean something else.

use std::sync::Arc;

use jit_core::{Alias, Cause, DylibLookup, Error, LookupError, ReExports, SearchOrder, SymbolFlags, SymbolState};

use crate::stage::{Stage, answered, failed};

const ALL: DylibLookup = DylibLookup::All;

/// Two sessions whose tables are alike, and differ in what they hold.
fn sessions() -> [Stage; 2] {
    let stages = [Stage::new(), Stage::new()];
    for (stage, address) in stages.iter().zip([0x1000, 0x2000]) {
        stage.define_absolute("there", address);
    }
    stages
}

fn is_refused<T>(result: Result<T, Error>) -> bool {
    matches!(result, Err(Error::ForeignDylib))
}

#[test]
fn a_link_order_takes_dylibs_of_its_session_only() {
    let [ours, theirs] = sessions();
    let (own, foreign) = (&ours.dylib, &theirs.dylib);
    let before = own.dfs_link_order().unwrap();
    assert!(is_refused(own.add_to_link_order(foreign, ALL)));
    assert!(is_refused(own.replace_in_link_order(own, foreign, ALL)));
    assert!(is_refused(own.replace_in_link_order(foreign, own, ALL)));
    assert!(is_refused(own.remove_from_link_order(foreign)));
    // Alone, or beside one of its own.
    for order in [foreign.link_order(), own.link_order().then(foreign, ALL), foreign.link_order().then(own, ALL)] {
        assert!(is_refused(own.set_link_order(&order)));
        assert!(is_refused(own.set_exact_link_order(&order)));
        assert!(is_refused(own.extend_link_order(&order)));
        assert!(is_refused(own.default_tracker().unwrap().define_aliases(&order, Vec::new())));
    }
    assert!(is_refused(ours.session.dfs_link_order(std::slice::from_ref(foreign))));
    assert!(is_refused(ours.session.reverse_dfs_link_order(&[own.clone(), foreign.clone()])));
    assert_eq!(own.dfs_link_order().unwrap(), before);
    assert_eq!(ours.address("there"), Ok(0x1000));
    // An empty order is anybody's.
    own.set_link_order(&SearchOrder::new()).unwrap();
    assert_eq!(ours.address("there"), Ok(0x1000));
}

#[test]
fn a_search_order_finds_nothing_in_another_session() {
    let [ours, theirs] = sessions();
    let expected = "symbol 'there': the dylib belongs to another session";
    let orders = [theirs.order(), ours.order().then(&theirs.dylib, ALL), theirs.order().then(&ours.dylib, ALL)];
    for order in orders {
        let names = || ours.names(&["there"]);
        let told = |result: Result<usize, LookupError>| assert_eq!(result.unwrap_err().to_string(), expected);
        told(ours.session.lookup(&order, names()).map(|found| found.len()));
        told(ours.session.lookup_flags(jit_core::LookupKind::Static, &order, names()).map(|found| found.len()));
        let answer = ours.lookup_in(&order, names(), SymbolState::Ready);
        assert_eq!(answered(&answer), failed(expected));
        assert_eq!(ours.session.ready_address(&order, &ours.name("there")), None);
    }
    assert!(ours.session.symbol_state(&theirs.dylib, &ours.name("there")).is_none());
    assert_eq!(ours.session.ready_address(&ours.order(), &ours.name("there")), Some(0x1000));
}

#[test]
fn another_sessions_symbols_are_not_re_exported() {
    let [ours, theirs] = sessions();
    let alias = Alias { name: ours.name("alias"), aliasee: ours.name("there"), flags: SymbolFlags::EXPORTED };
    assert!(is_refused(ours.dylib.re_export(&theirs.dylib, ALL, vec![alias])));
    assert_eq!(ours.state("alias"), None);
    theirs.define_absolute("missing", 1);
    ours.dylib.add_generator(Arc::new(ReExports::new(&theirs.dylib, ALL, None))).unwrap();
    let expected = "symbol 'missing' in dylib 'main': generator failed: the dylib belongs to another session";
    assert_eq!(ours.address("missing"), Err(expected.to_owned()));
}

#[test]
fn a_unit_that_needs_another_sessions_symbol_fails() {
    let [ours, theirs] = sessions();
    ours.define("user");
    let answer = ours.lookup(&["user"], SymbolState::Ready);
    let user = ours.take("user");
    ours.resolve(&user);
    let own = user.symbols()[0].name.clone();
    assert!(is_refused(user.emit(&[(own, theirs.found("there"))])));
    assert_eq!(answered(&answer), failed("symbol 'user' in dylib 'main': the dylib belongs to another session"));
    let (_, cause) = ours.session.symbol_state(&ours.dylib, &ours.name("user")).unwrap();
    assert!(matches!(&*cause.unwrap(), Cause::Session(Error::ForeignDylib)));
}
