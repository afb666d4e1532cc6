//! The functions of the host that programs call. They write down what they see.

use std::cell::{Cell, RefCell};

use crate::bits;

/// A call that the host saw: which function, and the bits of its arguments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Event {
    pub(crate) function: &'static str,
    pub(crate) arguments: Vec<u64>,
}

thread_local! {
    static EVENTS: RefCell<Vec<Event>> = const { RefCell::new(Vec::new()) };
    static BUDGET: Cell<u32> = const { Cell::new(0) };
}

/// How often `tick` says that there is time left.
const BUDGET_OF_AN_ENTRY: u32 = 150;

/// Runs an entry, and gives what it gave and what the host saw.
pub(crate) fn record(entry: impl FnOnce() -> f64) -> (u64, Vec<Event>) {
    BUDGET.set(BUDGET_OF_AN_ENTRY);
    EVENTS.take();
    let value = entry();
    (bits(value), EVENTS.take())
}

fn note(function: &'static str, arguments: &[f64]) {
    let arguments = arguments.iter().copied().map(bits).collect();
    EVENTS.with_borrow_mut(|events| events.push(Event { function, arguments }));
}

/// One, until the budget of the entry is used up: what makes programs end.
pub(crate) extern "C" fn tick() -> f64 {
    note("tick", &[]);
    match BUDGET.get() {
        0 => 0.0,
        left => {
            BUDGET.set(left - 1);
            1.0
        }
    }
}

pub(crate) extern "C" fn host1(a: f64) -> f64 {
    note("host1", &[a]);
    a * 0.5 + 1.0
}

pub(crate) extern "C" fn host2(a: f64, b: f64) -> f64 {
    note("host2", &[a, b]);
    a - b
}

pub(crate) extern "C" fn host10(a: f64, b: f64, c: f64, d: f64, e: f64, f: f64, g: f64, h: f64, i: f64, j: f64) -> f64 {
    note("host10", &[a, b, c, d, e, f, g, h, i, j]);
    a + b * 2.0 - c + d * 3.0 - e + f * 5.0 - g + h * 7.0 - i + j * 11.0
}

/// Their names, arities and addresses.
pub(crate) fn functions() -> [(&'static str, usize, u64); 4] {
    [
        ("tick", 0, tick as *const () as u64),
        ("host1", 1, host1 as *const () as u64),
        ("host2", 2, host2 as *const () as u64),
        ("host10", 10, host10 as *const () as u64),
    ]
}

/// The functions of libm that programs call.
pub(crate) const LIBM: [(&str, usize); 11] = [
    ("sqrt", 1),
    ("floor", 1),
    ("fabs", 1),
    ("sin", 1),
    ("cos", 1),
    ("exp", 1),
    ("log", 1),
    ("tanh", 1),
    ("pow", 2),
    ("atan2", 2),
    ("fmod", 2),
];
