//! Host functions, called from compiled code.

mod common;

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, mpsc};

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
fn a_handle_to_a_closure_keeps_it_while_the_name_is_gone() {
    let alive = Arc::new(AtomicI64::new(40));
    let captured = Arc::clone(&alive);
    let jit = jit();
    let tracker = jit.define_closure("host", move |x: i64| captured.load(Ordering::Relaxed) + x).unwrap();
    let host = jit.lookup::<Unary>("host").unwrap();
    tracker.remove().unwrap();
    assert_eq!(Arc::strong_count(&alive), 2);
    // SAFETY: the closure only computes, and lives as long as the handle.
    assert_eq!(unsafe { host.call(2) }, 42);
    drop(host);
    assert_eq!(Arc::strong_count(&alive), 1);
}

#[test]
fn a_closure_that_nobody_looked_up_goes_with_its_tracker() {
    let alive = Arc::new(());
    let captured = Arc::clone(&alive);
    let jit = jit();
    let tracker = jit.define_closure("host", move || Arc::strong_count(&captured) as i64).unwrap();
    assert_eq!(Arc::strong_count(&alive), 2);
    tracker.remove().unwrap();
    assert_eq!(Arc::strong_count(&alive), 1);
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

/// A function that calls `host` twice, so that it is still inside when the first call comes back.
const TWICE: &str = "
    function %twice(i64) -> i64 system_v {
        sig0 = (i64) -> i64 system_v
        fn0 = %host sig0
    block0(v0: i64):
        v1 = call fn0(v0)
        v2 = call fn0(v1)
        v3 = iconst.i64 1
        v4 = iadd v2, v3
        return v4
    }";

/// A `Jit` with `twice`, whose host function says that it was called and waits to be told to go on; the tracker of
/// `twice`, and what the two say.
fn with_a_call_inside() -> (jit_core::Jit, jit_core::ResourceTracker, mpsc::Receiver<()>, mpsc::Sender<()>) {
    let (inside, entered) = mpsc::channel();
    let (go_on, told) = mpsc::channel();
    let told = Mutex::new(told);
    let jit = jit();
    jit.define_closure("host", move |x: i64| {
        inside.send(()).unwrap();
        told.lock().unwrap().recv().unwrap();
        x + 20
    })
    .unwrap();
    let tracker = add(&jit, TWICE);
    (jit, tracker, entered, go_on)
}

/// Memory of the code in the process, if it is there.
fn is_mapped(address: u64) -> bool {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    maps.lines().any(|line| {
        let (range, rest) = line.split_once(' ').unwrap();
        let (start, end) = range.split_once('-').unwrap();
        let bounds = u64::from_str_radix(start, 16).unwrap()..u64::from_str_radix(end, 16).unwrap();
        bounds.contains(&address) && rest.as_bytes()[2] == b'x'
    })
}

#[test]
fn gap_14_a_handle_keeps_code_while_a_thread_runs_in_it() {
    let (jit, tracker, entered, go_on) = with_a_call_inside();
    let twice = jit.lookup::<Unary>("twice").unwrap();
    std::thread::scope(|scope| {
        // SAFETY: the functions only compute.
        let call = scope.spawn(|| unsafe { twice.call(1) });
        entered.recv().unwrap();
        tracker.remove().unwrap();
        assert!(jit.lookup::<Unary>("twice").is_err());
        assert!(is_mapped(twice.address()));
        go_on.send(()).unwrap();
        entered.recv().unwrap();
        go_on.send(()).unwrap();
        assert_eq!(call.join().unwrap(), 42);
    });
}

#[test]
fn gap_14_a_scope_keeps_code_while_a_thread_runs_in_it() {
    let (jit, tracker, entered, go_on) = with_a_call_inside();
    let address = jit.lookup_address("twice").unwrap();
    std::thread::scope(|scope| {
        let call = scope.spawn(|| {
            let _inside = jit.session().enter();
            // SAFETY: it has that signature, and the scope keeps it.
            unsafe { std::mem::transmute::<u64, Unary>(address)(1) }
        });
        entered.recv().unwrap();
        tracker.remove().unwrap();
        assert_eq!(jit.session().statistics().retired, 1);
        assert!(is_mapped(address));
        go_on.send(()).unwrap();
        entered.recv().unwrap();
        go_on.send(()).unwrap();
        assert_eq!(call.join().unwrap(), 42);
    });
    assert_eq!(jit.session().statistics().retired, 0);
}
