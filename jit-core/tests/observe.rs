//! A session shows what it holds and what it does.

mod common;

use common::add;

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
fn the_graph_is_one_that_dot_reads() {
    let jit = common::jit();
    add(&jit, TWO);
    jit.lookup_address("two").unwrap();
    let graph = jit.session().dump().graphviz();
    assert!(graph.starts_with("digraph session {\n") && graph.ends_with("}\n"), "{graph}");
    assert_eq!(graph.matches('{').count(), graph.matches('}').count());
    assert!(graph.contains("\"main/two\" -> \"main/one\";"), "{graph}");
    assert!(graph.contains("\"main/broken\" [label=\"broken\\nnever searched\", fillcolor=white];"), "{graph}");
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
