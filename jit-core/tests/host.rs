//! Host functions, called from compiled code.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use common::{add, jit};

type Unary = unsafe extern "C" fn(i64) -> i64;

const CALLER: &str = "
    function %caller(i64) -> i64 system_v {
        sig0 = (i64) -> i64 system_v
        fn0 = %host sig0
    block0(v0: i64):
        v1 = call fn0(v0)
        return v1
    }";

#[test]
fn a_function_pointer_is_called() {
    extern "C" fn triple(x: i64) -> i64 {
        3 * x
    }
    let jit = jit();
    jit.define_function("host", triple as extern "C" fn(i64) -> i64).unwrap();
    add(&jit, CALLER);
    let caller = jit.lookup::<Unary>("caller").unwrap();
    // SAFETY: both functions only compute.
    assert_eq!(unsafe { caller.call(14) }, 42);
}

#[test]
fn a_closure_keeps_its_state_and_goes_with_its_tracker() {
    let sum = Arc::new(AtomicI64::new(0));
    let captured = Arc::clone(&sum);
    let jit = jit();
    let tracker = jit.define_closure("host", move |x: i64| captured.fetch_add(x, Ordering::Relaxed) + x).unwrap();
    add(&jit, CALLER);
    let caller = jit.lookup::<Unary>("caller").unwrap();
    // SAFETY: the functions only compute, and the closure is alive.
    let sums = unsafe { [caller.call(1), caller.call(2), caller.call(3)] };
    assert_eq!(sums, [1, 3, 6]);
    drop(caller);
    assert_eq!(Arc::strong_count(&sum), 2);
    tracker.remove().unwrap();
    assert_eq!(Arc::strong_count(&sum), 1);
}

#[test]
fn arguments_of_every_type_arrive() {
    let jit = jit();
    #[allow(clippy::too_many_arguments, reason = "more than there are registers")]
    fn digest(a: u8, b: i8, c: u16, d: i16, e: u32, f: i32, g: u64, h: f32) -> f64 {
        f64::from(a)
            + f64::from(b)
            + f64::from(c)
            + f64::from(d)
            + f64::from(e)
            + f64::from(f)
            + g as f64
            + f64::from(h)
    }
    jit.define_closure("digest", digest).unwrap();
    type Digest = unsafe extern "C" fn(u8, i8, u16, i16, u32, i32, u64, f32) -> f64;
    let function = jit.lookup::<Digest>("digest").unwrap();
    // SAFETY: the function only computes.
    let result = unsafe { function.call(200, -100, 60_000, -30_000, 4_000_000_000, -2_000_000_000, 1 << 40, 0.5) };
    assert_eq!(result, digest(200, -100, 60_000, -30_000, 4_000_000_000, -2_000_000_000, 1 << 40, 0.5));
}

#[test]
fn a_host_function_of_another_signature_than_declared_does_not_link() {
    extern "C" fn host(x: f64) -> f64 {
        x
    }
    let jit = jit();
    jit.define_function("host", host as extern "C" fn(f64) -> f64).unwrap();
    add(&jit, CALLER);
    let error = jit.lookup::<Unary>("caller").unwrap_err().to_string();
    assert_eq!(
        error,
        "symbol 'caller' in dylib 'main': depends on 'host' in dylib 'main': \
         'test' declares it as (i64) -> i64 system_v, it is defined as (f64) -> f64 system_v"
    );
}
