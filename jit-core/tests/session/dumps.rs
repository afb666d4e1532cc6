//! A session's dump says who waits for whom.

use jit_core::{MaterializationResponsibility, ObjectLayer, ObjectLinkingLayer, SymbolFlags, SymbolState};
use jit_linker::LinkGraph;
use jit_linker::arch::{Architecture, aarch64, x86_64};
use jit_linker::graph::{Edge, EdgeKind};
use jit_linker::memory::SegmentKind;

use crate::dot;
use crate::stage::{Custom, Stage, answered, ok};

/// The lines that are not about symbols or dylibs.
fn waits(stage: &Stage) -> Vec<String> {
    let text = stage.session.dump().to_string();
    text.lines().filter(|line| line.contains(" waits until ")).map(str::to_owned).collect()
}

fn dashed(stage: &Stage) -> Vec<(String, String, String)> {
    let graph = dot::read(&stage.session.dump().graphviz());
    let edges = graph.edges.into_iter().filter(|edge| edge.2.get("style").is_some_and(|style| style == "dashed"));
    edges.map(|(from, to, attributes)| (from, to, attributes["color"].clone())).collect()
}

fn arrow(from: &str, to: &str, color: &str) -> (String, String, String) {
    (from.to_owned(), to.to_owned(), color.to_owned())
}

#[test]
fn a_lookup_waits_for_what_has_no_address() {
    let stage = Stage::new();
    stage.define("foo");
    stage.define("bar");
    assert_eq!(waits(&stage), [""; 0]);
    let answer = stage.lookup(&["foo", "bar"], SymbolState::Ready);
    assert_eq!(waits(&stage), ["a lookup waits until main/foo, main/bar are ready"]);
    let arrows = ["main/foo", "main/bar"].map(|to| arrow("lookup_0", to, "blue"));
    assert_eq!(dashed(&stage), arrows);
    stage.finish("foo");
    assert_eq!(waits(&stage), ["a lookup waits until main/bar is ready"]);
    stage.finish("bar");
    assert_eq!(answered(&answer), ok(&["foo", "bar"]));
    assert_eq!((waits(&stage).len(), dashed(&stage).len()), (0, 0));
}

#[test]
fn what_is_emitted_waits_for_what_it_needs() {
    let stage = Stage::new();
    stage.define("foo");
    stage.define("bar");
    let answer = stage.lookup(&["foo"], SymbolState::Ready);
    let foo = stage.take("foo");
    stage.lookup(&["bar"], SymbolState::Resolved);
    let bar = stage.take("bar");
    stage.resolve(&bar);
    stage.resolve(&foo);
    stage.emit(foo, &["bar"]).unwrap();
    let text = stage.session.dump().to_string();
    assert!(text.contains("  foo: emitted at 0x1000, from unit of foo, needs main/bar (waits)\n"), "{text}");
    let needs = |stage: &Stage| {
        let graph = dot::read(&stage.session.dump().graphviz());
        graph.between("main/foo", "main/bar").iter().map(|edge| edge.get("style").cloned()).collect::<Vec<_>>()
    };
    assert_eq!(needs(&stage), [Some("bold".to_owned())]);
    bar.emit(&[]).unwrap();
    assert_eq!(answered(&answer), ok(&["foo"]));
    let text = stage.session.dump().to_string();
    assert!(text.contains("  foo: ready at 0x1000, from unit of foo, needs main/bar\n"), "{text}");
    assert_eq!(needs(&stage), [None]);
}

#[test]
fn a_link_waits_for_its_externals() {
    let stage = Stage::new();
    stage.define("variable");
    let architecture = stage.session.executor().architecture();
    let mut graph = LinkGraph::new("pointers.o", architecture);
    let target = graph.external(stage.name("variable"), 0);
    let block = graph.add_block(SegmentKind::Data, &[0; 8], 8).unwrap();
    let kind = match architecture {
        Architecture::Aarch64 => EdgeKind::Aarch64(aarch64::EdgeKind::Pointer64),
        _ => EdgeKind::X86_64(x86_64::EdgeKind::Pointer64),
    };
    graph.add_edge(Edge { block, offset: 0, kind, target, addend: 0 }).unwrap();
    graph.define(Some(stage.name("pointer")), block, 0, 8);
    ObjectLinkingLayer::new().add_graph(&stage.dylib.default_tracker().unwrap(), graph).unwrap();

    let answer = stage.lookup(&["pointer"], SymbolState::Ready);
    let expected = ["a lookup waits until main/pointer is ready", "pointers.o waits until main/variable is resolved"];
    let mut found = waits(&stage);
    found.sort();
    assert_eq!(found, expected);
    assert!(dashed(&stage).contains(&arrow("main/pointer", "main/variable", "blue")));
    stage.finish("variable");
    assert_eq!(answered(&answer), ok(&["pointer"]));
    assert_eq!(waits(&stage), [""; 0]);
}

#[test]
fn a_thread_waits_within_a_unit() {
    let stage = Stage::new();
    stage.define("slow");
    let unit = Custom(|responsibility: MaterializationResponsibility| {
        let session = responsibility.session().clone();
        session.lookup(&responsibility.link_order(), vec![session.intern("slow")]).unwrap();
        let name = responsibility.symbols()[0].name.clone();
        responsibility.resolve(&[(name, jit_core::SymbolDef::at(0x2000))]).unwrap();
        responsibility.emit(&[]).unwrap();
    });
    let definition = stage.definition(&[("fast", SymbolFlags::EXPORTED)], unit);
    stage.dylib.default_tracker().unwrap().define(vec![definition]).unwrap();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| stage.address("fast"));
        let expected = "unit of fast, which holds a thread, waits until main/slow is ready";
        while !stage.is_running("slow") || !waits(&stage).iter().any(|line| line == expected) {
            assert!(!waiting.is_finished());
            std::thread::yield_now();
        }
        assert!(dashed(&stage).contains(&arrow("main/fast", "main/slow", "red")));
        stage.finish("slow");
        assert_eq!(waiting.join().unwrap(), Ok(0x2000));
    });
    assert_eq!(waits(&stage), [""; 0]);
}
