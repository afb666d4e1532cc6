//! What is done behind a call's back has spans. The only test of its process: the threads that do it are asked what the
//! process wants to know.

mod common;

use std::sync::{Arc, Mutex};

use common::{at, constant, redefine};
use jit_core::{Jit, OptLevel};
use jit_lazy::{LazyJitBuilder, Tiering};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

/// Notes the names of this crate's spans, each with its function.
#[derive(Clone, Default)]
struct Spans(Arc<Mutex<Vec<String>>>);

struct Function(String);

impl Visit for Function {
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "function" {
            self.0 += value;
        }
    }

    fn record_debug(&mut self, _: &Field, _: &dyn std::fmt::Debug) {}
}

impl Subscriber for Spans {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_span() && metadata.target().starts_with("jit_lazy")
    }

    fn new_span(&self, span: &Attributes<'_>) -> Id {
        let mut name = Function(format!("{} of ", span.metadata().name()));
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

/// Waits for a span, and says how often there was one.
fn count(spans: &Spans, name: &str) -> usize {
    let start = std::time::Instant::now();
    loop {
        let count = spans.0.lock().unwrap().iter().filter(|one| *one == name).count();
        if count > 0 {
            return count;
        }
        assert!(start.elapsed().as_secs() < 60, "no '{name}' in {:?}", spans.0.lock().unwrap());
        std::thread::yield_now();
    }
}

#[test]
fn first_calls_promotions_and_what_is_compiled_ahead_have_spans() {
    let spans = Spans::default();
    tracing::subscriber::set_global_default(spans.clone()).unwrap();

    let jit = LazyJitBuilder::new(Jit::builder().opt_level(OptLevel::Speed))
        .tiers(Tiering::default().threshold(10))
        .build()
        .unwrap();
    redefine(&jit, &constant("f", 7)).unwrap();
    let f = at(jit.lookup_address("f").unwrap());
    assert_eq!(spans.0.lock().unwrap().len(), 0);
    for _ in 0..20 {
        // SAFETY: the function only computes.
        assert_eq!(unsafe { f() }, 7);
    }
    assert_eq!((count(&spans, "first call of f"), count(&spans, "promote of f")), (1, 1));

    // What nobody calls is compiled by nobody else.
    let jit = common::builder().ahead_threads(1).build().unwrap();
    let callees = format!("{}{}", constant("called", 1), constant("likely", 2));
    let both = "
        function %outer(i64) -> i64 system_v {
            sig0 = () -> i64 system_v
            fn0 = %called sig0
            fn1 = %likely sig0
        block0(v0: i64):
            brif v0, block1, block2
        block1:
            v1 = call fn1()
            return v1
        block2:
            v2 = call fn0()
            return v2
        }";
    redefine(&jit, &format!("{both}{callees}")).unwrap();
    // SAFETY: the address of a function of this type.
    let outer = unsafe {
        std::mem::transmute::<usize, unsafe extern "C" fn(i64) -> i64>(jit.lookup_address("outer").unwrap() as usize)
    };
    // SAFETY: the functions only compute.
    assert_eq!(unsafe { outer(0) }, 1);
    assert_eq!((count(&spans, "first call of outer"), count(&spans, "ahead of likely")), (1, 1));
}
