//! Objects that compilers have written: whole programs of them, linked when they are needed.

mod archive;
mod linking;
mod program;
mod unit;

pub use program::Program;
