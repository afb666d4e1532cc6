//! Objects that compilers have written: whole programs of them, linked when they are needed.

mod archive;
mod commons;
mod components;
mod gathered;
mod initial_values;
mod linking;
mod low;
mod needs;
mod unit;
mod weak;

pub use archive::ArchiveScope;
pub use components::{Program, ProgramOptions};
pub use weak::WeakDefinitions;
