//! What is done behind a call's back has spans. The only test of its process: the threads that do it are asked what the
//! process wants to know.

mod common;
#[path = "../../jit-core/tests/common/span_names.rs"]
mod span_names;

use std::sync::Arc;

use common::{at, constant, redefine};
use jit_core::{Jit, OptLevel};
use jit_lazy::{LazyJitBuilder, Tiering};
use span_names::SpanNames;

/// Waits for a span, and says how often there was one.
fn count(spans: &SpanNames, name: &str) -> usize {
    let start = std::time::Instant::now();
    loop {
        let count = spans.names.lock().unwrap().iter().filter(|one| *one == name).count();
        if count > 0 {
            return count;
        }
        assert!(start.elapsed().as_secs() < 60, "no '{name}' in {:?}", spans.names.lock().unwrap());
        std::thread::yield_now();
    }
}

#[test]
fn first_calls_promotions_and_what_is_compiled_ahead_have_spans() {
    let spans = SpanNames { of: "jit_lazy", field: "function", names: Arc::default() };
    tracing::subscriber::set_global_default(spans.clone()).unwrap();

    let jit = LazyJitBuilder::new(Jit::builder().opt_level(OptLevel::Speed))
        .tiers(Tiering::default().threshold(10))
        .build()
        .unwrap();
    redefine(&jit, &constant("f", 7)).unwrap();
    let f = at(jit.lookup_address("f").unwrap());
    assert_eq!(spans.names.lock().unwrap().len(), 0);
    for _ in 0..20 {
        // SAFETY: the function only computes.
        assert_eq!(unsafe { f() }, 7);
    }
    assert_eq!((count(&spans, "first call f"), count(&spans, "promote f")), (1, 1));

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
    assert_eq!((count(&spans, "first call outer"), count(&spans, "ahead likely")), (1, 1));
}
