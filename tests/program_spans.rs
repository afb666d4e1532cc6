//! Every phase of a program's object has a span. The only test of its process, as that of `jit-core`.
#![cfg(all(feature = "programs", target_os = "linux"))]

#[allow(dead_code, reason = "each test uses a part")]
mod toolchain;

use std::sync::{Arc, Mutex};

use orcane::linker::format::open;
use orcane::{Jit, Program};
use toolchain::{GCC, compile, directory};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

/// Notes names of spans, each with its object.
struct Spans(Arc<Mutex<Vec<String>>>);

struct Object(String);

impl Visit for Object {
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "object" {
            self.0 += &format!(" {value}");
        }
    }

    fn record_debug(&mut self, _: &Field, _: &dyn std::fmt::Debug) {}
}

impl Subscriber for Spans {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_span() && metadata.target().starts_with("jit_")
    }

    fn new_span(&self, span: &Attributes<'_>) -> Id {
        let mut name = Object(span.metadata().name().to_owned());
        span.record(&mut name);
        let mut names = self.0.lock().unwrap();
        names.push(name.0);
        Id::from_u64(names.len() as u64)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn event(&self, _: &Event<'_>) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

#[test]
fn each_phase_of_an_object_has_a_span() {
    let directory = directory("program-spans");
    let inner = compile(&directory, &[GCC, "-fPIC"], "inner.c", "int inner(void) { return 4; }");
    let outer = "int inner(void); int outer(void) { return inner() + 1; }";
    let outer = compile(&directory, &[GCC, "-fPIC"], "outer.c", outer);
    let names = Arc::new(Mutex::new(Vec::new()));
    tracing::subscriber::with_default(Spans(Arc::clone(&names)), || {
        let jit = Jit::new().unwrap();
        let program = Program::new(jit.session().clone());
        for object in [&outer, &inner] {
            program.add_object(jit.main(), object, open(&directory.join(object)).unwrap()).unwrap();
        }
        program.lookup(jit.main(), "outer").unwrap();
    });
    let names = names.lock().unwrap();
    let place = |name: &str| names.iter().position(|one| one == name).unwrap_or_else(|| panic!("{name}: {names:?}"));
    for object in ["outer.o", "inner.o"] {
        let phases = ["read", "link", "finalize"].map(|phase| place(&format!("{phase} {object}")));
        assert!(phases.is_sorted(), "{names:?}");
    }
    assert!(place("read inner.o") < place("link outer.o"), "nothing is linked before it is needed");
    assert!(place("lookup") < place("materialize") && place("materialize") < place("link outer.o"), "{names:?}");
}
