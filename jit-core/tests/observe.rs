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
