//! Symbols that are others by another name.

use std::sync::Arc;

use jit_core::{Alias, Cause, DylibLookup, LookupKind, LookupSet, ReExports, SymbolFlags, SymbolLookup, SymbolState};

use crate::stage::{SIDE_EFFECTS, Stage, answered, ok};

fn alias(stage: &Stage, name: &str, aliasee: &str) -> Alias {
    Alias { name: stage.name(name), aliasee: stage.name(aliasee), flags: SymbolFlags::EXPORTED }
}

#[test]
fn core_13_an_alias_has_the_address_of_what_it_stands_for() {
    let stage = Stage::new();
    stage.define_absolute("foo", 1);
    let weak = Alias { flags: SymbolFlags::WEAK, ..alias(&stage, "replaced", "foo") };
    stage.dylib.define_aliases(vec![alias(&stage, "bar", "foo"), weak]).unwrap();
    assert_eq!(stage.address("bar"), Ok(1));
    stage.define_absolute("replaced", 2);
    assert_eq!(stage.address("replaced"), Ok(2));
    let error = stage.dylib.define_aliases(vec![alias(&stage, "foo", "bar")]).unwrap_err().to_string();
    let expected = "duplicate definition of 'foo' in dylib 'main' (first in absolute symbols, again in aliases)";
    assert_eq!(error, expected);
}

#[test]
fn core_14_an_alias_of_an_alias_leads_to_the_end() {
    let stage = Stage::new();
    stage.define("foo");
    stage.dylib.define_aliases(vec![alias(&stage, "baz", "bar"), alias(&stage, "bar", "foo")]).unwrap();
    let answer = stage.lookup(&["baz"], SymbolState::Ready);
    let foo = stage.take("foo");
    stage.resolve(&foo);
    // An alias is ready no sooner than what it stands for.
    assert_eq!(answered(&answer), None);
    assert_eq!(stage.state("baz"), Some(SymbolState::Emitted));
    foo.emit(&[]).unwrap();
    assert_eq!(answered(&answer), ok(&["baz"]));
    assert_eq!(stage.address("baz"), Ok(0x1000));
}

#[test]
fn core_15_a_re_exported_symbol_has_its_address_in_the_other_dylib() {
    let stage = Stage::new();
    let other = stage.session.create_dylib("other").unwrap();
    stage.define_absolute("foo", 1);
    other.re_export(&stage.dylib, DylibLookup::Exported, vec![alias(&stage, "bar", "foo")]).unwrap();
    let found = stage.session.lookup(&other.link_order(), stage.names(&["bar"])).unwrap();
    assert_eq!(found[0].definition.address, 1);
}

#[test]
fn core_16_one_re_export_does_not_materialize_its_sibling() {
    let stage = Stage::new();
    let other = stage.session.create_dylib("other").unwrap();
    stage.define("foo");
    stage.define("bar");
    let both = vec![alias(&stage, "foo", "foo"), alias(&stage, "bar", "bar")];
    other.re_export(&stage.dylib, DylibLookup::Exported, both).unwrap();
    let answer = stage.lookup_in(&other.link_order(), stage.names(&["foo"]), SymbolState::Ready);
    stage.finish("foo");
    assert_eq!(answered(&answer), ok(&["foo"]));
    assert_eq!(stage.state("bar"), Some(SymbolState::NeverSearched));
}

#[test]
fn core_17_a_generator_re_exports_what_passes_its_filter() {
    let stage = Stage::new();
    let other = stage.session.create_dylib("other").unwrap();
    stage.define_unit(&[("foo", SymbolFlags { callable: true, ..SymbolFlags::WEAK })]).unwrap();
    stage.define("bar");
    let filter = Arc::new(|name: &str| name != "bar");
    other.add_generator(Arc::new(ReExports::new(&stage.dylib, DylibLookup::Exported, Some(filter)))).unwrap();
    let set: LookupSet =
        ["foo", "bar", "baz"].into_iter().map(|name| (stage.name(name), SymbolLookup::WeaklyReferenced)).collect();
    let flags = stage.session.lookup_flags(LookupKind::Static, &other.link_order(), set).unwrap();
    let expected = SymbolFlags { callable: true, ..SymbolFlags::WEAK };
    assert_eq!(flags, [(stage.name("foo"), expected)]);
    assert_eq!(stage.state("foo"), Some(SymbolState::NeverSearched));
    let answer = stage.lookup_in(&other.link_order(), stage.names(&["foo"]), SymbolState::Ready);
    stage.finish("foo");
    assert_eq!(answered(&answer), ok(&["foo"]));
}

#[test]
fn gap_4_a_cycle_of_aliases_is_an_error_that_names_its_members() {
    let stage = Stage::new();
    stage
        .dylib
        .define_aliases(vec![alias(&stage, "a", "b"), alias(&stage, "b", "c"), alias(&stage, "c", "a")])
        .unwrap();
    stage.dylib.define_aliases(vec![alias(&stage, "tail", "b"), alias(&stage, "self", "self")]).unwrap();
    let error = stage.address("a").unwrap_err();
    assert!(error.contains("a cycle of aliases: 'c' -> 'a' -> 'b' -> 'c'"), "{error}");
    assert!(stage.address("tail").unwrap_err().contains("a cycle of aliases"));
    assert_eq!(
        stage.address("self").unwrap_err(),
        "symbol 'self' in dylib 'main': a cycle of aliases: 'self' -> 'self'"
    );
}

#[test]
fn gap_4_a_cycle_of_aliases_across_dylibs_is_an_error() {
    let stage = Stage::new();
    let other = stage.session.create_dylib("other").unwrap();
    other.re_export(&stage.dylib, DylibLookup::All, vec![alias(&stage, "there", "here")]).unwrap();
    stage.dylib.re_export(&other, DylibLookup::All, vec![alias(&stage, "here", "there")]).unwrap();
    let error = stage.address("here").unwrap_err();
    assert!(error.contains("a cycle of aliases: "), "{error}");
    assert!(error.contains("'there'"), "{error}");
}

#[test]
fn an_alias_of_side_effects_has_them_and_no_address() {
    let stage = Stage::new();
    stage.define_unit(&[("init", SIDE_EFFECTS)]).unwrap();
    let alias = Alias { flags: SIDE_EFFECTS, ..alias(&stage, "start", "init") };
    stage.dylib.define_aliases(vec![alias]).unwrap();
    let answer = stage.lookup_weakly(&["start"], SymbolState::Ready);
    stage.take("init").emit(&[]).unwrap();
    assert_eq!(answered(&answer), ok(&[]));
}

#[test]
fn an_alias_fails_with_what_it_stands_for() {
    let stage = Stage::new();
    stage.dylib.define_aliases(vec![alias(&stage, "bar", "missing")]).unwrap();
    let error = stage.session.lookup(&stage.order(), stage.names(&["bar"])).unwrap_err();
    assert!(matches!(&*error.failures[0].cause, Cause::Dependency { cause, .. } if matches!(**cause, Cause::NotFound)));
}

#[test]
fn a_long_chain_of_aliases_is_linear_from_either_end() {
    const LONG: usize = 20_000;
    for backwards in [false, true] {
        let stage = Stage::new();
        stage.define_absolute("a0", 7);
        let chain = (1..LONG).map(|index| alias(&stage, &format!("a{index}"), &format!("a{}", index - 1)));
        stage.dylib.define_aliases(chain.collect()).unwrap();
        let mut names: Vec<_> = (0..LONG).map(|index| stage.name(&format!("a{index}"))).collect();
        if backwards {
            names.reverse();
        }
        let found = stage.session.lookup(&stage.order(), names).unwrap();
        assert!(found.iter().all(|symbol| symbol.definition.address == 7));
    }
}
