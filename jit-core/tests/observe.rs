//! A session shows what it holds and what it does.

mod common;
#[path = "common/dot.rs"]
mod dot;

use std::sync::Arc;

use common::add;
use jit_core::{DumpDirectory, Form, InMemoryCache};

const TWO: &str = "
    function %one() -> i64 system_v {
    block0:
        v0 = iconst.i64 1
        return v0
    }
    function %two() -> i64 system_v {
        fn0 = %one() -> i64 system_v
    block0:
        v0 = call fn0()
        return v0
    }
    function %broken() -> i64 system_v {
        fn0 = %missing() -> i64 system_v
    block0:
        v0 = call fn0()
        return v0
    }";

#[test]
fn the_dump_lists_symbols_with_their_states_and_needs() {
    let jit = common::jit();
    add(&jit, TWO);
    let before = jit.session().dump().to_string();
    assert!(before.contains("  one: never searched, from test"), "{before}");
    jit.lookup_address("two").unwrap();
    jit.lookup_address("broken").unwrap_err();

    let dump = jit.session().dump();
    let main = dump.dylibs.iter().find(|dylib| dylib.name == "main").unwrap();
    assert_eq!(main.link_order, ["main", "process"]);
    let two = main.symbols.iter().find(|symbol| symbol.name == "two").unwrap();
    assert_eq!(two.address, Some(jit.lookup_address("two").unwrap()));
    assert_eq!(two.needs, [("main".to_owned(), "one".to_owned(), true)]);

    let text = dump.to_string();
    assert!(text.contains("dylib 'main', searches main, process"), "{text}");
    assert!(text.contains("  two: ready at 0x") && text.contains("from test, needs main/one\n"), "{text}");
    let broken = text.lines().find(|line| line.starts_with("  broken")).unwrap();
    assert!(broken.contains("failed: ") && broken.contains("'missing'"), "{text}");
}

#[test]
fn the_symbol_of_an_address_is_told() {
    let jit = common::jit();
    let tracker = add(&jit, TWO);
    let [one, two] = ["one", "two"].map(|name| jit.lookup_address(name).unwrap());
    let told = |address| jit.symbol_at(address).map(|place| format!("{place} of {}", place.dylib));
    assert_eq!(told(one).as_deref(), Some("one+0x0 of main"));
    assert_eq!(told(two + 3).as_deref(), Some("two+0x3 of main"));
    // Neither what is compiled nor near anything.
    let local = 0;
    assert_eq!((told(std::ptr::from_ref(&local).addr() as u64), told(0), told(u64::MAX)), (None, None, None));
    // Redirectable functions lie elsewhere than their bodies.
    let mut module = jit.module("bodies").redirectable();
    common::define(&mut module, "function %f() -> i64 system_v { block0: v0 = iconst.i64 1 return v0 }");
    jit.redefine(module).unwrap();
    let stub = jit.lookup_address("f").unwrap();
    assert_eq!(told(stub + 8).as_deref(), Some("f+0x8 of main"));
    tracker.remove().unwrap();
    assert_eq!(told(one), None);
}

#[test]
fn the_graph_is_one_that_dot_reads() {
    let jit = common::jit();
    add(&jit, TWO);
    jit.define_closure("\"a\\b\"\n{}", || 1i64).unwrap();
    jit.lookup_address("two").unwrap();
    let graph = dot::read(&jit.session().dump().graphviz());
    assert_eq!(graph.clusters, ["main", "process"]);
    let needs = graph.between("main/two", "main/one");
    assert!(matches!(*needs, [attributes] if attributes.is_empty()), "{needs:?}");
    let broken = &graph.nodes["main/broken"];
    assert_eq!((&*broken["label"], &*broken["fillcolor"]), ("broken\nnever searched", "white"));
    assert_eq!(graph.nodes["main/two"]["fillcolor"], "palegreen");
    assert!(graph.nodes.contains_key("main/\"a\\b\"\n{}"), "{graph:?}");
}

#[test]
fn statistics_count_what_was_done_and_is_held() {
    let jit = common::jit();
    let tracker = add(&jit, TWO);
    jit.lookup_address("two").unwrap();
    let stats = jit.stats();
    assert_eq!((stats.compile.functions, stats.session.dylibs), (2, 2));
    assert!(stats.session.symbols >= 3 && stats.memory.allocations > 0);
    let text = stats.to_string();
    assert!(text.lines().next().unwrap().ends_with(" 2") && text.contains("time in the linker"), "{text}");
    tracker.remove().unwrap();
    assert!(jit.stats().session.symbols < stats.session.symbols);
}

#[test]
fn long_lookups_tell_how_far_they_are() {
    for threads in [0, 3] {
        let jit = jit_core::Jit::builder().compile_threads(threads).build().unwrap();
        let mut module = jit.module("chain");
        common::chain(&mut module, 100);
        jit.add_module(module).unwrap();
        let names: Vec<_> = (0..100).map(|index| format!("f{index}")).collect();
        let mut told = Vec::new();
        jit.prepare(&names, |progress| told.push((progress.ready, progress.total))).unwrap();
        assert_eq!(told, [(32, 100), (64, 100), (96, 100), (100, 100)], "{threads} threads");
        assert_eq!(jit.stats().compile.functions, 100, "{threads} threads");
    }
}

#[test]
fn a_long_lookup_ends_with_the_first_step_that_fails() {
    for threads in [0, 3] {
        let jit = jit_core::Jit::builder().compile_threads(threads).build().unwrap();
        let mut module = jit.module("chain");
        common::chain(&mut module, 100);
        jit.add_module(module).unwrap();
        let mut names: Vec<_> = (0..100).map(|index| format!("f{index}")).collect();
        names[40] = "missing".to_owned();
        let mut told = Vec::new();
        let error = jit.prepare(&names, |progress| told.push(progress.ready)).unwrap_err();
        assert!(error.to_string().contains("'missing'"), "{error}");
        assert_eq!(told, [32], "{threads} threads");
        jit.prepare(&[] as &[&str], |_| panic!("there is nothing to tell")).unwrap();
    }
}

#[test]
fn a_module_shows_the_code_of_a_function() {
    let jit = common::jit();
    let mut module = jit.module("shown");
    let ids = common::define(&mut module, TWO);
    let two = module.assembly(ids["two"]).unwrap();
    assert!(two.contains("call") && two.contains("ret"), "{two}");
    let error = module.assembly(ids["missing"]).unwrap_err().to_string();
    assert!(error.contains("is not defined in shown"), "{error}");
}

#[test]
fn dumps_show_a_symbol_on_its_way_into_memory() {
    use object::{Object as _, ObjectSection as _, ObjectSymbol as _};

    let directory = std::env::temp_dir().join(format!("orcane-dumps-{}", std::process::id()));
    let dumps = Arc::new(DumpDirectory::new(&directory).unwrap());
    let jit =
        jit_core::Jit::builder().dumps(dumps.clone()).object_cache(Arc::new(InMemoryCache::new())).build().unwrap();
    add(&jit, TWO);
    let address = jit.lookup_address("two").unwrap();
    let read = |form| std::fs::read(dumps.file("two", form)).unwrap();
    let text = |form| String::from_utf8(read(form)).unwrap();

    assert!(text(Form::Clif).starts_with("function u0:"), "{}", text(Form::Clif));
    assert!(text(Form::Assembly).contains("ret"), "{}", text(Form::Assembly));
    let graph = text(Form::Graph);
    assert!(graph.contains(" two:") && graph.contains(" one ") && !graph.contains(" one:"), "{graph}");
    let object = read(Form::Object);
    let object = object::File::parse(&*object).unwrap();
    let symbol = object.symbols().find(|symbol| symbol.name() == Ok("two")).unwrap();
    assert_eq!(symbol.address(), address);
    let code = object.section_by_name(".text").unwrap().data().unwrap().to_vec();
    // SAFETY: the function is there, and as long as its symbol says.
    let there = unsafe { std::slice::from_raw_parts(address as *const u8, symbol.size() as usize) };
    assert_eq!(code, there);
    // What nobody needed was not made.
    assert!(!dumps.file("broken", Form::Clif).exists());
    std::fs::remove_dir_all(directory).unwrap();
}

#[test]
fn dumps_of_any_name_have_a_file_of_their_own() {
    let directory = std::env::temp_dir().join(format!("orcane-dump-names-{}", std::process::id()));
    let dumps = DumpDirectory::new(&directory).unwrap();
    let file = |name: &str| {
        let file = dumps.file(name, Form::Clif);
        assert_eq!(file.parent(), Some(&*directory));
        file.file_name().unwrap().to_str().unwrap().to_owned()
    };
    assert_eq!(file("_ZN3foo3barE.llvm"), "_ZN3foo3barE.llvm.clif");
    assert_eq!(file("../escape"), "%2e.%2fescape.clif");
    let (a, b) = (format!("{}a", "é".repeat(500)), format!("{}b", "é".repeat(500)));
    assert!(file(&a) != file(&b) && file(&a).len() < 255);
    std::fs::remove_dir(directory).unwrap();
}
