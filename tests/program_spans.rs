//! Every phase of a program's object has a span. The only test of its process, as that of `jit-core`.
#![cfg(all(feature = "programs", target_os = "linux"))]

#[path = "../jit-core/tests/common/span_names.rs"]
mod span_names;
#[allow(dead_code, reason = "each test uses a part")]
mod toolchain;

use std::sync::Arc;

use orcane::linker::format::open;
use orcane::{Jit, Program};
use span_names::SpanNames;
use toolchain::{GCC, compile, directory};

#[test]
fn each_phase_of_an_object_has_a_span() {
    let directory = directory("program-spans");
    let inner = compile(&directory, &[GCC, "-fPIC"], "inner.c", "int inner(void) { return 4; }");
    let outer = "int inner(void); int outer(void) { return inner() + 1; }";
    let outer = compile(&directory, &[GCC, "-fPIC"], "outer.c", outer);
    let spans = SpanNames { of: "jit_", field: "object", names: Arc::default() };
    let names = Arc::clone(&spans.names);
    tracing::subscriber::with_default(spans, || {
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
