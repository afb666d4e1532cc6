//! Turns compiled code into executable memory.
//!
//! A [`LinkGraph`] holds sections, blocks, symbols and edges; [`link::prepare`] takes it through
//! the pipeline (dead code, GOT and stubs, layout, allocation, fixups, finalization), pausing
//! where its host has to answer: for memory, and for the addresses of external symbols.
//!
//! This crate knows no session, no dylib and no intermediate representation, and can be used on
//! its own. Every instruction byte that Orcane writes by hand is encoded in [`arch`].
//!
//! # Features
//!
//! None changes the library. `compilers` and `archives` add tests that run compilers and download packages.

pub mod arch;
pub mod format;
pub mod graph;
pub mod link;
pub mod map;
pub mod memory;
mod name;
mod pass;
pub mod plugin;

pub use graph::LinkGraph;
pub use link::LinkError;
pub use name::{NonOwningSymbolName, SymbolName, SymbolStringPool};
