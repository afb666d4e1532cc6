//! Calls through a slot, beside a thread that leads it elsewhere and drops what it led to.

use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::thread;

use crate::explore::{caught, check};
use crate::session::scope::ExecutionScopes;
use crate::sync::{AtomicUsize, Ordering, UNORDERED};

/// What the checker says of a call of what is being dropped.
const DROPPED_IN_A_CALL: &str = "Causality violation";

/// A function's bodies, one after the other, and the slot that calls go through.
struct Function {
    scopes: ExecutionScopes,
    /// Which of the bodies is called: stored with release, as `SlotBlock::store` does. A call is ordered after the load of
    /// where it goes, because it depends on that.
    slot: AtomicUsize,
    bodies: Vec<UnsafeCell<bool>>,
}

/// Removes a body from memory when it is dropped.
struct Memory(Arc<Function>, usize);

// SAFETY: the checker watches over the bodies.
unsafe impl Sync for Function {}
// SAFETY: as above.
unsafe impl Send for Function {}

impl Function {
    /// A function whose first body is there.
    fn new(bodies: usize) -> Arc<Self> {
        let bodies = (0..bodies).map(|body| UnsafeCell::new(body == 0)).collect();
        Arc::new(Self { scopes: ExecutionScopes::default(), slot: AtomicUsize::new(0), bodies })
    }

    /// Calls the body that the slot leads to, which it gives.
    fn call(&self) -> usize {
        let _scope = self.scopes.enter();
        let body = self.slot.load(Ordering::Acquire);
        // SAFETY: the checker sees whether somebody writes it meanwhile.
        assert!(self.bodies[body].with(|there| unsafe { *there }), "a body is whole when it is called");
        body
    }
}

/// Has calls go to a new body from now on, and drops the one before.
fn redefine(function: &Arc<Function>, body: usize) {
    // SAFETY: as above.
    function.bodies[body].with_mut(|there| unsafe { *there = true });
    function.slot.store(body, Ordering::Release);
    function.scopes.retire(Box::new(Memory(Arc::clone(function), body - 1)));
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: as above.
        self.0.bodies[self.1].with_mut(|there| unsafe { *there = false });
    }
}

/// The last body is called, and no other is left. That takes one more call: the checker knows no order of sequentially
/// consistent accesses beside fences, in which one of who leaves and who drops something sees the other.
fn nobody_calls_any_more(function: &Function, body: usize) {
    assert_eq!(function.call(), body);
    assert_eq!(function.scopes.retired(), 0, "what nobody is inside of is dropped");
}

fn a_call_while_the_function_is_redefined() {
    let function = Function::new(2);
    let caller = {
        let function = Arc::clone(&function);
        thread::spawn(move || function.call())
    };
    redefine(&function, 1);
    assert!(caller.join().unwrap() <= 1);
    nobody_calls_any_more(&function, 1);
}

/// A body that was called is never followed by an older one, though both are dropped in time.
fn two_calls_while_the_function_is_redefined_twice() {
    let function = Function::new(3);
    let caller = {
        let function = Arc::clone(&function);
        thread::spawn(move || [function.call(), function.call()])
    };
    redefine(&function, 1);
    redefine(&function, 2);
    assert!(caller.join().unwrap().is_sorted());
    nobody_calls_any_more(&function, 2);
}

/// Threads that come and go do not let each other's bodies be dropped.
fn calls_of_two_threads_while_the_function_is_redefined() {
    let function = Function::new(2);
    let callers = [(); 2].map(|()| {
        let function = Arc::clone(&function);
        thread::spawn(move || function.call())
    });
    redefine(&function, 1);
    callers.into_iter().for_each(|caller| assert!(caller.join().unwrap() <= 1));
    nobody_calls_any_more(&function, 1);
}

#[test]
fn a_body_is_whole_when_it_is_called_and_there_until_the_call_returns() {
    check(a_call_while_the_function_is_redefined);
}

#[test]
fn calls_follow_redefinitions_in_their_order() {
    check(two_calls_while_the_function_is_redefined_twice);
}

#[test]
fn calls_of_several_threads_hold_a_body_back() {
    check(calls_of_two_threads_while_the_function_is_redefined);
}

/// Without the fence between the store to the slot and the look at who is inside, a caller may be seen by nobody and see
/// the old body. The checker finds out.
#[test]
fn the_checker_finds_a_body_that_is_dropped_while_it_is_called() {
    let message = caught(&UNORDERED, a_call_while_the_function_is_redefined);
    assert!(message.contains(DROPPED_IN_A_CALL) || message.contains("a body is whole"), "{message}");
}
