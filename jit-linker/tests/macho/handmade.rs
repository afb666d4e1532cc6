//! Objects that no tool writes, made byte by byte.

use jit_linker::arch::Architecture;
use jit_linker::format::{self, ParseError};
use jit_linker::graph::ObjectBytes;
use jit_linker::{LinkGraph, SymbolStringPool};

fn parse(object: Vec<u8>) -> Result<LinkGraph, ParseError> {
    format::parse("test.o", object.into(), &SymbolStringPool::new())
}

fn refused(object: Vec<u8>) -> String {
    match parse(object).expect_err("it is malformed") {
        ParseError::Malformed { what, .. } => what,
        error => panic!("{error}"),
    }
}

/// A universal file of 28 bytes, with one part of all of it.
fn part_of_itself(architecture: Architecture) -> Vec<u8> {
    let cpu = match architecture {
        Architecture::X86_64 => 0x0100_0007,
        Architecture::Aarch64 => 0x0100_000c,
    };
    [0xcafe_babe, 1, cpu, 0, 0, 28, 0].into_iter().flat_map(u32::to_be_bytes).collect()
}

#[test]
fn a_universal_file_that_is_its_own_part_is_malformed() {
    let host = Architecture::host().expect("tests run on an architecture of ours");
    assert!(refused(part_of_itself(host)).ends_with("is a universal file too"));
    for architecture in [Architecture::X86_64, Architecture::Aarch64] {
        let file = ObjectBytes::from(part_of_itself(architecture));
        let error = format::macho::slice("test.o", &file, architecture).expect_err("it is malformed");
        assert!(matches!(error, ParseError::Malformed { .. }), "{error}");
    }
}
