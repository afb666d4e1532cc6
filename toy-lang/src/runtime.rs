//! The functions that every program can declare `extern`, for code that runs in this process.
//!
//! They write to standard output, where the values of top-level expressions go as well. `runtime.c` has the same
//! functions for programs that are linked.

use std::cell::Cell;
use std::io::{self, Write};

use orcane::exception::{self, Exception};

/// How many arguments a function takes that every program can declare, if this is one.
pub fn arity(name: &str) -> Option<usize> {
    matches!(name, "printd" | "putchard").then_some(1)
}

/// Prints a number as C's `%f` does, and a newline; gives zero.
pub extern "C" fn printd(value: f64) -> f64 {
    let text = if value.is_nan() { "nan".to_owned() } else { format!("{value:.6}") };
    // There is no one to tell: the language has no errors.
    _ = writeln!(io::stdout(), "{text}");
    0.0
}

/// Prints the character of a code, of which the lowest eight bits count; gives zero.
pub extern "C" fn putchard(value: f64) -> f64 {
    _ = io::stdout().write_all(&[value as i64 as u8]);
    0.0
}

/// The symbols of what `throw` and `try` call. No function of the language has a point in its name.
pub const THROW: &str = "exception.throw";
/// See [`THROW`].
pub const CAUGHT: &str = "exception.caught";
/// See [`THROW`].
pub const UNCAUGHT: &str = "exception.uncaught";

/// The tag of the language's exceptions.
pub const TAG: u32 = 1;

/// Throws a number.
pub extern "C-unwind" fn throw(value: f64) -> f64 {
    exception::throw(TAG, value.to_bits());
    value
}

/// What was thrown; the exception ends.
///
/// # Safety
/// A handler of [`TAG`] has received the exception, and uses it for nothing else.
pub unsafe extern "C" fn caught(exception: *mut Exception) -> f64 {
    // SAFETY: as the caller says.
    unsafe {
        let value = f64::from_bits(exception::payload(exception));
        exception::delete(exception);
        value
    }
}

thread_local! {
    static LEFT: Cell<Option<f64>> = const { Cell::new(None) };
}

/// Notes that a top-level expression has thrown.
pub extern "C" fn uncaught(value: f64) -> f64 {
    LEFT.set(Some(value));
    0.0
}

/// What the last top-level expression of this thread has thrown, once.
pub fn take_uncaught() -> Option<f64> {
    LEFT.take()
}
