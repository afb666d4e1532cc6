//! Every phase of a unit has a span. The only test of its process: whether a span is wanted is remembered for all
//! threads, and asked anew while other tests' threads come to it.

mod common;

use std::sync::{Arc, Mutex};

use jit_core::ObjectLayer;
use jit_linker::LinkGraph;
use jit_linker::graph::ObjectBytes;
use jit_linker::memory::SegmentKind;
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

/// Notes the names of spans that are entered, in order.
struct Spans(Arc<Mutex<Vec<&'static str>>>, Mutex<Vec<&'static str>>);

impl Subscriber for Spans {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_span() && metadata.target().starts_with("jit_")
    }

    fn new_span(&self, span: &Attributes<'_>) -> Id {
        let mut names = self.1.lock().unwrap();
        names.push(span.metadata().name());
        Id::from_u64(names.len() as u64)
    }

    fn enter(&self, span: &Id) {
        let name = self.1.lock().unwrap()[span.into_u64() as usize - 1];
        self.0.lock().unwrap().push(name);
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn event(&self, _: &Event<'_>) {}
    fn exit(&self, _: &Id) {}
}

#[test]
fn each_phase_has_a_span() {
    let entered = Arc::new(Mutex::new(Vec::new()));
    tracing::subscriber::with_default(Spans(Arc::clone(&entered), Mutex::default()), || {
        let jit = common::jit();
        let mut module = jit.module("chain");
        common::chain(&mut module, 2);
        jit.add_module(module).unwrap();
        jit.lookup_address("f1").unwrap();
    });
    let of_clif = entered.lock().unwrap();
    let count = |name| of_clif.iter().filter(|entered| **entered == name).count();
    assert_eq!(count("compile"), 2, "{of_clif:?}");
    assert_eq!(count("materialize"), 2, "{of_clif:?}");
    assert!(count("lookup") >= 1 && count("link") >= 1 && count("link") == count("finalize"), "{of_clif:?}");
    let first = |name| of_clif.iter().position(|entered| *entered == name);
    assert!(first("lookup") < first("materialize") && first("compile") < first("link"), "{of_clif:?}");
}

#[test]
fn an_objects_phases_have_spans_too() {
    let entered = Arc::new(Mutex::new(Vec::new()));
    tracing::subscriber::with_default(Spans(Arc::clone(&entered), Mutex::default()), || {
        let jit = common::jit();
        let mut graph = LinkGraph::new("graph", jit.session().executor().architecture());
        let block = graph.add_block(SegmentKind::Data, &[0; 8], 8).unwrap();
        graph.define(Some(jit.session().intern("variable")), block, 0, 8);
        jit.object_layer().add_graph(&jit.main().create_tracker().unwrap(), graph).unwrap();
        jit.lookup_address("variable").unwrap();
        jit.add_object("not an object", ObjectBytes::from(vec![1])).unwrap_err();
    });
    assert_eq!(*entered.lock().unwrap(), ["lookup", "materialize", "link", "finalize", "read"]);
}
