//! ELF objects of real assemblers and compilers: what is read, what is linked, what runs.

#![cfg(target_os = "linux")]

mod aarch64;
mod archive;
mod compiler;
mod detached;
mod indirect;
mod relocation;
mod run;
mod section;
mod support;
mod unwind;
mod x86_64;
