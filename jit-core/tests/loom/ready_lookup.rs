//! Lookups of ready symbols, beside a thread that has the session's lock and changes them.

use std::sync::LazyLock;

use jit_linker::{SymbolName, SymbolStringPool};
use loom::sync::Arc;
use loom::thread;

use crate::explore::{caught, check};
use crate::session::arena::Id;
use crate::session::published::{Entry, Published};
use crate::sync::{Ordering, TORN};

/// Of all runs of a scenario: a name's address is its hash, and the checker has to see the same every time.
static NAMES: LazyLock<SymbolStringPool> = LazyLock::new(SymbolStringPool::new);

const TORN_READ: &str = "half of a change was seen";

struct Dylib;

fn dylib(index: u32) -> Id<Dylib> {
    Id::new(index, 0)
}

fn session(dylibs: u32) -> Arc<Published> {
    let published = Arc::new(Published::default());
    (0..dylibs).for_each(|index| published.add_dylib(dylib(index)));
    published.complete();
    published
}

/// Defines a symbol in place `place`, ready at `address`, with a slot to match.
fn define(published: &Published, place: u32, owner: u32, name: &SymbolName, address: u64) {
    let Ok(cell) = published.insert(place, owner, name.clone()) else { panic!("{name} is there already") };
    cell.address.store(address, Ordering::Relaxed);
    published.set_slot(cell, Some(address + 1));
    cell.set_condition(1);
}

/// What is found is whole: the address and the slot of one definition.
fn whole(entry: Option<Entry>) -> Option<u64> {
    let entry = entry?;
    assert_eq!((entry.slot, entry.condition), (entry.address + 1, 1), "{TORN_READ}");
    Some(entry.address)
}

fn found(published: &Published, owner: u32, name: &SymbolName) -> Option<Option<u64>> {
    Some(whole(published.read(|published| published.find(dylib(owner), name))?))
}

/// A definition is seen with all that belongs to it, or not at all.
fn a_definition_while_it_is_looked_up() {
    let name = NAMES.intern("name");
    let published = session(1);
    let writer = {
        let (published, name) = (Arc::clone(&published), name.clone());
        thread::spawn(move || {
            define(&published, 0, 0, &name, 10);
            published.complete();
        })
    };
    assert!(matches!(found(&published, 0, &name), None | Some(None | Some(10))));
    writer.join().unwrap();
    assert_eq!(found(&published, 0, &name), Some(Some(10)));
}

/// The place of a removed symbol is used by another at once: its old name does not find that.
fn a_place_that_changes_hands() {
    let (old, new) = (NAMES.intern("old"), NAMES.intern("new"));
    let published = session(1);
    define(&published, 0, 0, &old, 10);
    published.complete();
    let writer = {
        let (published, new) = (Arc::clone(&published), new.clone());
        thread::spawn(move || {
            published.remove(0);
            define(&published, 0, 0, &new, 20);
            published.complete();
        })
    };
    assert!(matches!(found(&published, 0, &old), None | Some(None | Some(10))), "{TORN_READ}");
    writer.join().unwrap();
    assert_eq!(found(&published, 0, &old), Some(None));
    assert_eq!(found(&published, 0, &new), Some(Some(20)));
}

/// A symbol moves from the first dylib to the second in one step: a search through both finds it.
fn a_search_through_two_dylibs() {
    let name = NAMES.intern("name");
    let published = session(2);
    define(&published, 0, 1, &name, 10);
    published.complete();
    let writer = {
        let (published, name) = (Arc::clone(&published), name.clone());
        thread::spawn(move || {
            published.remove(0);
            define(&published, 1, 0, &name, 20);
            published.complete();
        })
    };
    let search = |published: &Published| (0..2).find_map(|index| published.find(dylib(index), &name));
    if let Some(entry) = published.read(search) {
        assert!(matches!(whole(entry), Some(10 | 20)), "lost on its way from one dylib to the other");
    }
    writer.join().unwrap();
}

/// The index is made anew while it is searched: what was ready stays ready.
fn an_index_that_grows() {
    let all: Vec<_> = ["a", "b", "c"].map(|name| NAMES.intern(name)).into();
    let published = session(1);
    for (place, name) in (0..2).zip(&all) {
        define(&published, place, 0, name, u64::from(place) * 10);
    }
    published.complete();
    let writer = {
        let (published, name) = (Arc::clone(&published), all[2].clone());
        thread::spawn(move || {
            published.reserve(4);
            define(&published, 2, 0, &name, 20);
            published.complete();
        })
    };
    assert!(matches!(found(&published, 0, &all[1]), None | Some(Some(10))));
    writer.join().unwrap();
    for (place, name) in (0..3).zip(&all) {
        assert_eq!(found(&published, 0, name), Some(Some(place * 10)));
    }
}

#[test]
fn a_definition_is_seen_whole_or_not_at_all() {
    check(a_definition_while_it_is_looked_up);
}

#[test]
fn a_place_that_is_used_again_does_not_answer_for_its_old_name() {
    check(a_place_that_changes_hands);
}

#[test]
fn a_search_sees_one_moment_of_all_its_dylibs() {
    check(a_search_through_two_dylibs);
}

#[test]
fn an_index_that_grows_loses_nothing() {
    check(an_index_that_grows);
}

/// Without the fence that puts a change's version before the change, a reader may see half of a
/// definition under the old version. The checker finds out.
#[test]
fn the_checker_finds_a_change_that_is_seen_before_its_version() {
    let message = caught(&TORN, a_place_that_changes_hands);
    assert!(message.contains(TORN_READ), "{message}");
}
