//! Objects that no tool writes, made byte by byte.

use std::path::Path;
use std::time::{Duration, Instant};

use jit_linker::arch::Architecture;
use jit_linker::format::archive::Archive;
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

/// A symbol: its name's offset in the string table, its type, its value.
type RawSymbol = (u32, u8, u64);

const EXTERNAL: u8 = 0x01;
const ABSOLUTE: u8 = 0x02;
const INDIRECT: u8 = 0x0a;

/// What a section's header says of the file: the section's type and size, and where it and its relocations are.
#[derive(Clone, Copy, Default)]
struct RawSection {
    kind: u32,
    size: u32,
    start: u32,
    relocations: u32,
    relocation_count: u32,
}

/// Where the contents of an object with so many sections start.
fn contents_start(sections: usize) -> u32 {
    32 + 72 + 80 * sections as u32 + 24
}

/// An object for x86-64.
fn object(sections: &[RawSection], contents: &[u8], symbols: &[RawSymbol], names: &[u8]) -> Vec<u8> {
    let start = contents_start(sections.len());
    let segment_size = 72 + 80 * sections.len() as u32;
    let header = [0xfeed_facf, 0x0100_0007, 3, 1, 2, segment_size + 24, 0x2000, 0];
    let segment = [0x19, segment_size, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7, 7, sections.len() as u32, 0];
    let mut bytes: Vec<u8> = header.into_iter().chain(segment).flat_map(u32::to_le_bytes).collect();
    let mut address = 0u64;
    for (section, number) in sections.iter().zip(0..) {
        bytes.extend_from_slice(format!("{:\0<16}{:\0<16}", format!("__s{number}"), "__DATA").as_bytes());
        bytes.extend([address, section.size.into()].into_iter().flat_map(u64::to_le_bytes));
        let fields = [section.start, 0, section.relocations, section.relocation_count, section.kind, 0, 0, 0];
        bytes.extend(fields.into_iter().flat_map(u32::to_le_bytes));
        address += u64::from(section.size);
    }
    let symbols_start = start + contents.len() as u32;
    let names_start = symbols_start + 16 * symbols.len() as u32;
    let table = [2, 24, symbols_start, symbols.len() as u32, names_start, names.len() as u32];
    bytes.extend(table.into_iter().flat_map(u32::to_le_bytes));
    bytes.extend_from_slice(contents);
    for (name, kind, value) in symbols {
        bytes.extend_from_slice(&name.to_le_bytes());
        bytes.extend_from_slice(&[*kind, 0, 0, 0]);
        bytes.extend_from_slice(&value.to_le_bytes());
    }
    bytes.extend_from_slice(names);
    bytes
}

/// A universal file of 28 bytes, with one part of all of it.
fn part_of_itself(architecture: Architecture) -> Vec<u8> {
    let cpu = if architecture == Architecture::Aarch64 { 0x0100_000c } else { 0x0100_0007 };
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

/// So many names, each with its offset.
fn names(count: usize) -> (Vec<u8>, Vec<u32>) {
    let mut names = vec![0];
    let mut offsets = Vec::new();
    for number in 0..count {
        offsets.push(names.len() as u32);
        names.extend_from_slice(format!("_s{number}\0").as_bytes());
    }
    (names, offsets)
}

#[test]
fn a_chain_of_indirect_symbols_is_followed_once() {
    const LENGTH: usize = 64_000;
    let (names, offsets) = names(LENGTH + 1);
    let indirect = |pair: &[u32]| (pair[0], INDIRECT | EXTERNAL, pair[1].into());
    let mut symbols: Vec<RawSymbol> = offsets.windows(2).map(indirect).collect();
    symbols.push((offsets[LENGTH], EXTERNAL, 0));
    let start = Instant::now();
    let graph = parse(object(&[], &[], &symbols, &names)).expect("it is well-formed");
    assert!(start.elapsed() < Duration::from_secs(10), "it takes {:?}", start.elapsed());
    assert_eq!(graph.aliases().len(), LENGTH);
    assert!(graph.aliases().iter().all(|(_, target)| **target == *format!("s{LENGTH}")));
}

#[test]
fn a_circle_of_indirect_symbols_is_malformed() {
    let (names, offsets) = names(3);
    let indirect = |from: usize, to: usize| (offsets[from], INDIRECT | EXTERNAL, offsets[to].into());
    let symbols = [indirect(0, 1), indirect(1, 2), indirect(2, 1)];
    assert_eq!(refused(object(&[], &[], &symbols, &names)), "symbol 0 stands for itself");
}

const STRINGS: u32 = 2;
const OVERLAP: &str = "sections overlap";
const LONG_NAMES: &str = "the names are much longer than the tables they are in";

/// An object whose names are so many ends of one of a length.
fn with_ends_as_names(count: u32, length: usize) -> Vec<u8> {
    let names = [&b"\0"[..], &b"_".repeat(length), b"\0"].concat();
    let symbols: Vec<RawSymbol> = (0..count).map(|end| (1 + end, ABSOLUTE | EXTERNAL, end.into())).collect();
    object(&[], &[], &symbols, &names)
}

#[test]
fn names_that_are_the_ends_of_one_are_malformed_once_they_are_much_longer_than_the_file() {
    assert_eq!(refused(with_ends_as_names(20_000, 100_000)), LONG_NAMES);
    let graph = parse(with_ends_as_names(20, 100)).expect("linkers let names share their ends");
    assert_eq!(graph.symbols().count(), 20);
}

#[test]
fn names_of_an_archive_that_are_the_ends_of_one_are_malformed_too() {
    let archive = |members: &[(&str, Vec<u8>)]| {
        let mut bytes = b"!<arch>\n".to_vec();
        for (name, member) in members {
            let header = format!("{name:<16}{:<12}{:<6}{:<6}{:<8}{:<10}`\n", 0, 0, 0, 644, member.len());
            bytes.extend_from_slice(header.as_bytes());
            bytes.extend_from_slice(member);
        }
        Archive::parse(Path::new("test.a"), bytes.into())
    };
    // Pairs of a name's offset and a member's, and the names.
    let index = |count: u32, length: u32| {
        let pairs = (0..count).flat_map(|end| [end, 8]);
        let words = [8 * count].into_iter().chain(pairs).chain([length + 1]);
        let mut index: Vec<u8> = words.flat_map(u32::to_le_bytes).collect();
        index.resize(index.len() + length as usize, b'_');
        index.resize(index.len() + 1, 0);
        index.resize(index.len().next_multiple_of(2), 0);
        index
    };
    for member in [("__.SYMDEF", index(20_000, 100_000)), ("member.o", with_ends_as_names(20_000, 100_000))] {
        let error = archive(&[member]).expect_err("it is malformed").to_string();
        assert!(error.ends_with(LONG_NAMES), "{error}");
    }
    for member in [("__.SYMDEF", index(20, 100)), ("member.o", with_ends_as_names(20, 100))] {
        assert_eq!(archive(&[member]).expect("linkers let names share their ends").members().len(), 1);
    }
}

#[test]
fn names_that_indirect_symbols_stand_for_are_counted_too() {
    let names = [&b"\0"[..], &b"_".repeat(100_000), b"\0"].concat();
    let symbols: Vec<RawSymbol> = (0..20_000).map(|end| (100_000, INDIRECT | EXTERNAL, 1 + end)).collect();
    assert_eq!(refused(object(&[], &[], &symbols, &names)), LONG_NAMES);
}

#[test]
fn sections_over_the_same_bytes_are_malformed() {
    let strings = b"a\0b\0".repeat(1000);
    let size = strings.len() as u32;
    let sections = |count: usize| {
        vec![RawSection { kind: STRINGS, size, start: contents_start(count), ..RawSection::default() }; count]
    };
    assert_eq!(refused(object(&sections(250), &strings, &[], &[])), OVERLAP);
    parse(object(&sections(1), &strings, &[], &[])).expect("one section has its bytes for itself");
}

#[test]
fn sections_that_share_a_table_of_relocations_are_malformed() {
    // A pointer of 8 bytes to the external symbol 0.
    let relocations = [0, 0x0e00_0000u32].map(u32::to_le_bytes).as_flattened().repeat(1000);
    let contents = [&[0; 8 * 250], &relocations[..]].concat();
    let object = |count: usize| {
        let start = contents_start(count);
        let section = |number| RawSection {
            size: 8,
            start: start + 8 * number,
            relocations: start + 8 * 250,
            relocation_count: 1000,
            kind: 0,
        };
        let sections: Vec<_> = (0..count as u32).map(section).collect();
        object(&sections, &contents, &[(1, EXTERNAL, 0)], b"\0_x\0")
    };
    assert_eq!(refused(object(250)), OVERLAP);
    assert_eq!(parse(object(1)).expect("one section has its table for itself").edges().len(), 1000);
}
