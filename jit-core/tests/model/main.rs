//! The session under a model checker: its sources, compiled once more with primitives that
//! `shuttle` schedules. Each scenario runs under a number of random schedules, and again under
//! schedules that change threads at few, well distributed places.

#![allow(dead_code, unused_imports, unreachable_pub, reason = "the sources of a library, of which a part is used")]

#[path = "../../src/error.rs"]
mod error;
/// The process's libraries: no model has any.
mod platform {
    pub(crate) mod thread_local {
        use std::ffi::{CStr, c_void};

        use jit_linker::arch::Architecture;

        pub(crate) fn note_library(_: *mut c_void) {}

        pub(crate) fn before_first_use(_: Architecture, _: &CStr) {}
    }
}
mod scenarios;
#[path = "../../src/session/mod.rs"]
mod session;
mod sync;
