//! The object linking layer, what is put on top of it, and who watches.

#![cfg(target_arch = "x86_64")]

mod graphs;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use graphs::{Made, call, session};
use jit_core::{
    Cause, DefinitionGenerator, Link, LinkPlugin, LookupState, ObjectLayer, ObjectLinkingLayer, ObjectOptions,
    ObjectTransformLayer, ResourceTracker, SymbolDeclaration, SymbolFlags, SymbolState,
};
use jit_linker::LinkGraph;
use jit_linker::arch::Architecture;
use jit_linker::graph::{Linkage, Scope, SymbolKind};
use jit_linker::memory::SegmentKind;
use jit_linker::plugin::{PassError, Passes};

#[test]
fn oll_01_hand_built_graphs_link_with_every_kind_of_definition() {
    let (session, main) = session();
    let other = session.create_dylib("other").unwrap();
    let layer = ObjectLinkingLayer::new();
    let mut made = Made::new(&session, "definitions");
    made.function("strong", 1);
    let weak = made.function("weak", 2);
    made.graph.set_linkage(weak, Linkage::Weak);
    let hidden = made.function("hidden", 3);
    made.graph.set_scope(hidden, Scope::Hidden);
    made.constant("number", 4);
    made.graph.define_absolute(session.intern("absolute"), 0x1234, 0);
    layer.add_graph(&main.default_tracker().unwrap(), made.graph).unwrap();

    let order = main.link_order();
    let look_up = |name: &str| session.lookup(&order, vec![session.intern(name)]).unwrap().remove(0);
    assert_eq!(call(look_up("strong").definition.address), 1);
    assert_eq!(call(look_up("weak").definition.address), 2);
    assert_eq!(call(look_up("hidden").definition.address), 3);
    assert_eq!(look_up("absolute").definition.address, 0x1234);
    assert!(look_up("strong").flags.callable && look_up("strong").flags.exported);
    assert!(!look_up("number").flags.callable);
    assert!(!look_up("hidden").flags.exported);

    other.add_to_link_order(&main, jit_core::DylibLookup::Exported).unwrap();
    let from_outside = |name: &str| session.lookup(&other.link_order(), vec![session.intern(name)]);
    assert!(from_outside("strong").is_ok());
    assert!(from_outside("hidden").is_err(), "its dylib alone sees it");
}

#[test]
fn graphs_refer_to_each_other_and_to_what_is_not_there() {
    let (session, main) = session();
    let layer = ObjectLinkingLayer::new();
    let tracker = main.default_tracker().unwrap();
    let mut user = Made::new(&session, "user");
    user.pointer("table", "provider", Linkage::Strong);
    user.pointer("optional", "nobody", Linkage::Weak);
    layer.add_graph(&tracker, user.graph).unwrap();
    let mut provider = Made::new(&session, "provider");
    provider.function("provider", 7);
    layer.add_graph(&tracker, provider.graph).unwrap();
    let word = |name: &str| {
        let found = session.lookup(&main.link_order(), vec![session.intern(name)]).unwrap();
        // SAFETY: a word of data, which nobody removes.
        unsafe { *std::ptr::with_exposed_provenance::<u64>(found[0].definition.address as usize) }
    };
    assert_eq!(call(word("table")), 7);
    assert_eq!(word("optional"), 0);

    let mut broken = Made::new(&session, "broken");
    broken.pointer("broken", "nobody", Linkage::Strong);
    layer.add_graph(&tracker, broken.graph).unwrap();
    let error = session.lookup(&main.link_order(), vec![session.intern("broken")]).unwrap_err();
    assert!(error.to_string().contains("depends on 'nobody'"), "{error}");
}

/// Keeps the lookups it is asked for.
#[derive(Clone, Default)]
struct Keeps(Arc<Mutex<Vec<LookupState>>>);

impl DefinitionGenerator for Keeps {
    fn try_to_generate(&self, lookup: LookupState) {
        self.0.lock().unwrap().push(lookup);
    }
}

/// How a link ends that has its memory and waits for a symbol.
type Loses = fn(&ResourceTracker, &Arc<dyn DefinitionGenerator>, Keeps);

#[test]
fn gap_7_an_allocation_that_is_lost_is_a_failure_and_gives_its_memory_back() {
    let ways: [(&str, Loses); 5] = [
        ("generator failed: it dropped the lookup", |_, _, kept| kept.0.lock().unwrap().clear()),
        ("its generator was removed", |tracker, generator, _| {
            tracker.dylib().unwrap().remove_generator(generator).unwrap();
        }),
        ("removed", |tracker, _, kept| {
            tracker.remove().unwrap();
            let lookup = kept.0.lock().unwrap().pop().unwrap();
            lookup.continue_lookup(Ok(()));
        }),
        ("the session has ended", |tracker, _, kept| {
            tracker.session().end();
            kept.0.lock().unwrap().clear();
        }),
        ("not found", |_, _, kept| {
            let lookup = kept.0.lock().unwrap().pop().unwrap();
            lookup.continue_lookup(Ok(()));
        }),
    ];
    for (expected, lose) in ways {
        let (session, main) = session();
        let kept = Keeps::default();
        let generator: Arc<dyn DefinitionGenerator> = Arc::new(kept.clone());
        main.add_generator(Arc::clone(&generator)).unwrap();
        let tracker = main.create_tracker().unwrap();
        let mut user = Made::new(&session, "user");
        user.pointer("user", "missing", Linkage::Strong);
        ObjectLinkingLayer::new().add_graph(&tracker, user.graph).unwrap();
        let (send, receive) = std::sync::mpsc::channel();
        let names = vec![session.intern("user")];
        session.lookup_async(&main.link_order(), names, SymbolState::Ready, move |found| {
            send.send(found.map(|_| ()).map_err(|error| error.to_string())).unwrap();
        });
        let allocations = || session.executor().memory().statistics().allocations;
        assert_eq!((allocations(), kept.0.lock().unwrap().len()), (1, 1));
        lose(&tracker, &generator, kept);
        let error = receive.try_recv().unwrap().unwrap_err();
        assert!(error.ends_with(expected), "{error}");
        assert_eq!(allocations(), 0, "{expected}");
    }
}

/// Adds a weak function to every graph.
struct AddsWeak(Arc<dyn Fn(&str) -> jit_core::SymbolName + Send + Sync>);

impl LinkPlugin for AddsWeak {
    fn configure(&self, _: &Link, _: &LinkGraph, passes: &mut Passes) {
        let name = (self.0)("late");
        passes.before_prune.push(Box::new(move |graph| {
            let block = graph.add_block(SegmentKind::Code, &graphs::returning(77), 16)?;
            let symbol = graph.define(Some(name), block, 0, 0);
            graph.set_linkage(symbol, Linkage::Weak);
            graph.set_kind(symbol, SymbolKind::Function);
            Ok(())
        }));
    }
}

#[test]
fn oll_02_weak_definitions_that_a_pass_adds_are_claimed() {
    let (session, main) = session();
    let layer = ObjectLinkingLayer::new();
    let names = session.clone();
    layer.add_plugin(Arc::new(AddsWeak(Arc::new(move |name| names.intern(name)))));
    for (name, value) in [("first", 1), ("second", 2)] {
        let mut made = Made::new(&session, name);
        made.function(name, value);
        layer.add_graph(&main.default_tracker().unwrap(), made.graph).unwrap();
    }
    let look_up = |name: &str| session.lookup(&main.link_order(), vec![session.intern(name)]);
    assert!(look_up("late").is_err(), "nothing is linked yet");
    look_up("first").unwrap();
    let late = look_up("late").unwrap()[0].definition.address;
    assert_eq!(call(late), 77);
    look_up("second").unwrap();
    assert_eq!(look_up("late").unwrap()[0].definition.address, late, "the first one stays");
}

#[derive(Default)]
struct Recorder {
    events: Mutex<Vec<String>>,
    fail_after_allocation: bool,
    fail_emitted: bool,
}

impl Recorder {
    fn note(&self, event: &str, link: &Link) {
        self.events.lock().unwrap().push(format!("{event} {}", link.graph()));
    }

    fn events(&self) -> Vec<String> {
        self.events.lock().unwrap().clone()
    }
}

impl LinkPlugin for Recorder {
    fn configure(&self, link: &Link, graph: &LinkGraph, passes: &mut Passes) {
        assert_eq!(link.graph(), graph.name());
        self.note("configure", link);
        if self.fail_after_allocation {
            passes.after_allocation.push(Box::new(|_| Err("refused by a pass".into())));
        }
    }

    fn loaded(&self, link: &Link, _: &LinkGraph) {
        self.note("loaded", link);
    }

    fn emitted(&self, link: &Link) -> Result<(), PassError> {
        self.note("emitted", link);
        if self.fail_emitted { Err("refused at the end".into()) } else { Ok(()) }
    }

    fn failed(&self, link: &Link, cause: &Cause) {
        assert!(cause.to_string().contains("refused"), "{cause}");
        self.note("failed", link);
    }

    fn removed(&self, link: &Link) {
        self.note("removed", link);
    }
}

#[test]
fn oll_03_an_error_after_allocation_abandons_the_memory_and_fails_the_symbols() {
    let failing = [
        (Recorder { fail_after_allocation: true, ..Recorder::default() }, vec!["configure made", "failed made"]),
        (
            Recorder { fail_emitted: true, ..Recorder::default() },
            vec!["configure made", "loaded made", "emitted made", "failed made"],
        ),
    ];
    for (recorder, expected) in failing {
        let (session, main) = session();
        let layer = ObjectLinkingLayer::new();
        let recorder = Arc::new(recorder);
        layer.add_plugin(Arc::clone(&recorder) as Arc<dyn LinkPlugin>);
        let mut made = Made::new(&session, "made");
        made.function("f", 1);
        layer.add_graph(&main.default_tracker().unwrap(), made.graph).unwrap();
        let error = session.lookup(&main.link_order(), vec![session.intern("f")]).unwrap_err();
        assert!(error.to_string().contains("refused"), "{error}");
        assert_eq!(session.executor().memory().statistics().allocations, 0);
        assert_eq!(recorder.events(), expected);
    }
}

#[test]
fn oll_04_a_removed_plugin_sees_no_later_link_and_dies_with_its_last_reference() {
    let (session, main) = session();
    let layer = ObjectLinkingLayer::new();
    let recorder = Arc::new(Recorder::default());
    let weak = Arc::downgrade(&recorder);
    let plugin: Arc<dyn LinkPlugin> = recorder.clone();
    layer.add_plugin(Arc::clone(&plugin));
    let tracker = main.create_tracker().unwrap();
    let link = |name: &str| {
        let mut made = Made::new(&session, name);
        made.function(name, 1);
        layer.add_graph(&tracker, made.graph).unwrap();
        session.lookup(&main.link_order(), vec![session.intern(name)]).unwrap();
    };
    link("seen");
    assert!(layer.remove_plugin(&plugin));
    assert!(!layer.remove_plugin(&plugin), "it is gone");
    link("unseen");
    tracker.remove().unwrap();
    assert_eq!(recorder.events(), ["configure seen", "loaded seen", "emitted seen", "removed seen"]);
    drop((plugin, recorder));
    assert!(weak.upgrade().is_none(), "nobody keeps it");
}

/// Panics when it is told of an event.
struct Panics(&'static str);

impl Panics {
    fn at(&self, event: &str) {
        assert_ne!(self.0, event, "made on purpose");
    }
}

impl LinkPlugin for Panics {
    fn configure(&self, _: &Link, _: &LinkGraph, passes: &mut Passes) {
        self.at("configure");
        if self.0 == "failed" {
            passes.after_allocation.push(Box::new(|_| Err("refused by a pass".into())));
        }
    }

    fn loaded(&self, _: &Link, _: &LinkGraph) {
        self.at("loaded");
    }

    fn emitted(&self, _: &Link) -> Result<(), PassError> {
        self.at("emitted");
        Ok(())
    }

    fn failed(&self, _: &Link, _: &Cause) {
        self.at("failed");
    }

    fn removed(&self, _: &Link) {
        self.at("removed");
    }
}

/// How many links began, and how many are over.
#[derive(Default)]
struct Balance {
    configured: AtomicUsize,
    ended: AtomicUsize,
}

impl LinkPlugin for Balance {
    fn configure(&self, _: &Link, _: &LinkGraph, _: &mut Passes) {
        self.configured.fetch_add(1, Ordering::Relaxed);
    }

    fn failed(&self, _: &Link, _: &Cause) {
        self.ended.fetch_add(1, Ordering::Relaxed);
    }

    fn removed(&self, _: &Link) {
        self.ended.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn a_plugin_that_panics_keeps_no_other_from_hearing_of_the_end() {
    for event in ["configure", "loaded", "emitted", "failed", "removed"] {
        let (session, main) = session();
        let layer = ObjectLinkingLayer::new();
        let balance = Arc::new(Balance::default());
        layer.add_plugin(balance.clone());
        layer.add_plugin(Arc::new(Panics(event)));
        layer.add_plugin(balance.clone());
        let tracker = main.create_tracker().unwrap();
        let mut made = Made::new(&session, "made");
        made.function("f", 1);
        layer.add_graph(&tracker, made.graph).unwrap();
        let found = session.lookup(&main.link_order(), session.intern("f"));
        match (event, found) {
            ("removed", found) => _ = found.unwrap(),
            ("failed", found) => assert!(found.unwrap_err().to_string().contains("refused by a pass")),
            (_, found) => assert!(found.unwrap_err().to_string().contains("made on purpose"), "{event}"),
        }
        tracker.remove().unwrap();
        let count = |count: &AtomicUsize| count.load(Ordering::Relaxed);
        // Who is not asked to take part any more hears nothing.
        let links = if event == "configure" { 1 } else { 2 };
        assert_eq!((count(&balance.configured), count(&balance.ended)), (links, links), "{event}");
        assert_eq!(session.executor().memory().statistics().allocations, 0, "{event}");
    }
}

#[test]
fn oll_05_absolute_symbols_of_a_graph_are_seen_by_plugins() {
    struct Sees(AtomicUsize);
    impl LinkPlugin for Sees {
        fn loaded(&self, _: &Link, graph: &LinkGraph) {
            let seen = graph.symbols().filter_map(|(_, symbol)| (symbol.address() == 0x7777).then_some(()));
            self.0.fetch_add(seen.count(), Ordering::Relaxed);
        }
    }
    let (session, main) = session();
    let layer = ObjectLinkingLayer::new();
    let sees = Arc::new(Sees(AtomicUsize::new(0)));
    layer.add_plugin(sees.clone());
    let mut graph = LinkGraph::new("absolute", session.executor().architecture());
    graph.define_absolute(session.intern("there"), 0x7777, 0);
    layer.add_graph(&main.default_tracker().unwrap(), graph).unwrap();
    let found = session.lookup(&main.link_order(), vec![session.intern("there")]).unwrap();
    assert_eq!(found[0].definition.address, 0x7777);
    assert_eq!(sees.0.load(Ordering::Relaxed), 1);
}

#[test]
fn a_graph_of_another_architecture_is_refused() {
    let (session, main) = session();
    let tracker = main.default_tracker().unwrap();
    let layer = ObjectLinkingLayer::new();
    let foreign = || {
        let mut graph = LinkGraph::new("foreign", Architecture::Aarch64);
        let block = graph.add_block(SegmentKind::Code, &[0; 4], 4).unwrap();
        graph.define(Some(session.intern("f")), block, 0, 0);
        graph
    };
    let error = layer.add_graph(&tracker, foreign()).unwrap_err();
    assert!(error.to_string().contains("foreign"), "{error}");
    // As a unit, it is refused when it is to be linked.
    tracker.define(vec![layer.unit(foreign())]).unwrap();
    let error = session.lookup(&main.link_order(), vec![session.intern("f")]).unwrap_err();
    assert!(error.to_string().contains("foreign"), "{error}");
}

fn declared(name: jit_core::SymbolName, flags: SymbolFlags) -> SymbolDeclaration {
    SymbolDeclaration { name, flags, signature: None }
}

#[test]
fn rtd_02_the_units_flags_override_the_objects() {
    for allowed in [false, true] {
        let (session, main) = session();
        let layer = ObjectLinkingLayer::new().with_options(ObjectOptions::default().override_flags(allowed));
        let mut made = Made::new(&session, "made");
        let symbol = made.function("f", 5);
        made.graph.set_scope(symbol, Scope::Hidden);
        let name = session.intern("f");
        let promised = vec![declared(name.clone(), SymbolFlags::FUNCTION)];
        layer.add_graph_as(&main.default_tracker().unwrap(), made.graph, promised).unwrap();
        match session.lookup(&main.link_order(), vec![name]) {
            Ok(found) => {
                assert!(allowed && found[0].flags.exported);
                assert_eq!(call(found[0].definition.address), 5);
            }
            Err(error) => assert!(!allowed && error.to_string().contains("other flags"), "{error}"),
        }
    }
}

#[test]
fn rtd_03_undeclared_definitions_are_claimed_where_that_is_enabled() {
    for allowed in [false, true] {
        let (session, main) = session();
        let layer = ObjectLinkingLayer::new().with_options(ObjectOptions::default().auto_claim(allowed));
        let mut made = Made::new(&session, "made");
        made.function("declared", 1);
        made.function("undeclared", 2);
        let promised = vec![declared(session.intern("declared"), SymbolFlags::FUNCTION)];
        layer.add_graph_as(&main.default_tracker().unwrap(), made.graph, promised).unwrap();
        let look_up = |name: &str| session.lookup(&main.link_order(), vec![session.intern(name)]);
        match look_up("declared") {
            Ok(_) => {
                assert!(allowed);
                assert_eq!(call(look_up("undeclared").unwrap()[0].definition.address), 2);
            }
            Err(error) => assert!(!allowed && error.to_string().contains("does not declare it"), "{error}"),
        }
    }
}

#[test]
fn what_is_declared_and_not_defined_is_an_error() {
    let (session, main) = session();
    let mut made = Made::new(&session, "made");
    made.function("there", 1);
    let promised = ["there", "missing"].map(|name| declared(session.intern(name), SymbolFlags::FUNCTION));
    let tracker = main.default_tracker().unwrap();
    ObjectLinkingLayer::new().add_graph_as(&tracker, made.graph, promised.to_vec()).unwrap();
    let error = session.lookup(&main.link_order(), vec![session.intern("there")]).unwrap_err();
    assert!(error.to_string().contains("'missing' is declared and not defined"), "{error}");
}

#[test]
fn a_weak_definition_that_lost_leads_to_the_one_that_won() {
    let (session, main) = session();
    let layer = ObjectLinkingLayer::new();
    let tracker = main.default_tracker().unwrap();
    let mut first = Made::new(&session, "first");
    let weak = first.function("shared", 1);
    first.graph.set_linkage(weak, Linkage::Weak);
    first.pointer_to("user", weak);
    layer.add_graph(&tracker, first.graph).unwrap();
    let mut second = Made::new(&session, "second");
    second.function("shared", 2);
    layer.add_graph(&tracker, second.graph).unwrap();
    let found = session.lookup(&main.link_order(), vec![session.intern("user")]).unwrap();
    // SAFETY: a word of data, which nobody removes.
    let shared = unsafe { *std::ptr::with_exposed_provenance::<u64>(found[0].definition.address as usize) };
    assert_eq!(call(shared), 2);
}

#[test]
fn transform_layers_stack_and_see_the_graph_outermost_first() {
    let (session, main) = session();
    let order = Arc::new(Mutex::new(Vec::new()));
    let note = |name: &'static str| {
        let order = Arc::clone(&order);
        move |_: &mut LinkGraph| {
            order.lock().unwrap().push(name);
            Ok(())
        }
    };
    let inner = ObjectTransformLayer::new(ObjectLinkingLayer::new()).on_graph(note("inner"));
    let outer = ObjectTransformLayer::new(inner).on_graph(note("outer"));
    let mut made = Made::new(&session, "made");
    made.function("f", 1);
    outer.add_graph(&main.default_tracker().unwrap(), made.graph).unwrap();
    assert!(order.lock().unwrap().is_empty(), "nothing is linked before it is looked up");
    session.lookup(&main.link_order(), vec![session.intern("f")]).unwrap();
    assert_eq!(*order.lock().unwrap(), ["outer", "inner"]);

    let refusing = ObjectTransformLayer::new(outer).on_graph(|graph| Err(format!("not {}", graph.name()).into()));
    let mut made = Made::new(&session, "g.o");
    made.function("g", 1);
    refusing.add_graph(&main.default_tracker().unwrap(), made.graph).unwrap();
    let error = session.lookup(&main.link_order(), vec![session.intern("g")]).unwrap_err();
    assert!(error.to_string().contains("not g.o"), "{error}");
}

/// The function that the process's unwinder knows at an address; 0 if it knows none.
fn known_at(address: u64) -> u64 {
    unsafe extern "C" {
        fn _Unwind_FindEnclosingFunction(pc: *mut std::ffi::c_void) -> *mut std::ffi::c_void;
    }
    // SAFETY: it only looks tables up.
    let start = unsafe { _Unwind_FindEnclosingFunction(std::ptr::with_exposed_provenance_mut(address as usize)) };
    start.addr() as u64
}

#[test]
fn unwinders_know_stubs_until_they_are_removed() {
    let (session, main) = session();
    let layer = ObjectLinkingLayer::new();
    // Out of reach of every branch: the jump goes by its stub.
    let far = jit_core::AbsoluteSymbol {
        name: session.intern("far"),
        definition: jit_core::SymbolDef::at(0x1000),
        flags: SymbolFlags::FUNCTION,
        signature: None,
    };
    main.define_absolute(vec![far]).unwrap();
    let mut made = Made::new(&session, "jumps");
    made.jump("jumps", "far");
    let tracker = main.create_tracker().unwrap();
    layer.add_graph(&tracker, made.graph).unwrap();
    let found = session.lookup(&main.link_order(), vec![session.intern("jumps")]).unwrap();
    let jump = found[0].definition.address;
    // SAFETY: the distance in the jump's instruction, which is there until the tracker is removed.
    let distance = unsafe { std::ptr::with_exposed_provenance::<i32>(jump as usize + 1).read_unaligned() };
    let stub = jump.wrapping_add_signed(i64::from(distance)) + 5;
    assert_eq!(known_at(stub + 1), stub);
    tracker.remove().unwrap();
    assert_eq!(known_at(stub + 1), 0);
}
