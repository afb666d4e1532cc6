//! Mach-O objects of real assemblers and compilers: what is read, what is linked, what runs.

#![cfg(target_os = "linux")]

#[path = "../elf/archive.rs"]
mod archive;
mod arm64;
#[path = "../elf/compiler.rs"]
mod compiler;
mod difference;
mod handmade;
mod linking;
mod object;
mod relocation;
mod run;
#[path = "../elf/support.rs"]
#[allow(dead_code, reason = "the tests of ELF need more of it")]
mod support;
mod unwind;
mod x86_64;

use compiler::build;

/// Compiles C for macOS.
fn compile(target: &str, level: &str, source: &str) -> Vec<u8> {
    build(&["clang-22", "-c", level, "-ffreestanding", "-target", target], "c", source)
}

/// Assembles for macOS.
fn assemble(target: &str, source: &str) -> Vec<u8> {
    build(&["clang-22", "-c", "-target", target], "s", source)
}

/// The target of clang whose code runs here.
const HOST: &str = if cfg!(target_arch = "aarch64") { ARM64 } else { X86_64 };
const X86_64: &str = "x86_64-apple-macos11";
const ARM64: &str = "arm64-apple-macos11";
