//! The functions that every program can declare `extern`, for code that runs in this process.
//!
//! They write to standard output, where the values of top-level expressions go as well. `runtime.c` has the same
//! functions for programs that are linked.

use std::io::{self, Write};

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
