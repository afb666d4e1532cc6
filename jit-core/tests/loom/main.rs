//! What is read without a lock, under a model checker that plays through what the memory model
//! allows: the sources themselves, compiled once more with `loom`'s atomics.

#![allow(dead_code, unused_imports, unreachable_pub, reason = "the sources of a library, of which a part is used")]

mod explore;
mod ready_lookup;
mod scopes;
#[path = "../../src/session"]
mod session {
    pub(crate) mod arena;
    mod grown;
    mod index;
    pub(crate) mod published;
    pub(crate) mod scope;
}
mod sync;
