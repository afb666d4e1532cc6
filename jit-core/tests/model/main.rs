//! The session under a model checker: its sources, compiled once more with primitives that
//! `shuttle` schedules. Each scenario runs under a number of random schedules, and again under
//! schedules that change threads at few, well distributed places.

#![allow(dead_code, unused_imports, unreachable_pub, reason = "the sources of a library, of which a part is used")]

#[path = "../../src/error.rs"]
mod error;
mod scenarios;
#[path = "../../src/session/mod.rs"]
mod session;
mod sync;
