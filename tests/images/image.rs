//! Two images of the same objects: what `orcane link` dumps, and what lld links.
//!
//! Both are at the same base but laid out in their own ways, so that an address means nothing by itself: what it leads to
//! is told as a section of an object and an offset in it.

use std::collections::HashMap;
use std::path::Path;

use object::{Object, ObjectSection, ObjectSymbol, SectionFlags, SectionIndex, elf};

use crate::toolchain::{orcane, tool};

/// Of the first segment.
const BASE: u64 = 0x1000_0000;
/// Where the first of the symbols is said to be that no object defines. Within reach of everything.
const OUTSIDE: u64 = 0x1400_0000;

/// An object: its place among those that are linked together, and a section.
pub(crate) type Place = (usize, SectionIndex);

/// A linked image.
#[derive(Default)]
pub(crate) struct Image {
    pub(crate) name: &'static str,
    /// Where the sections of the objects are, and what is in them.
    pub(crate) sections: HashMap<Place, (u64, Vec<u8>)>,
    /// What the entries of the GOT hold, by address.
    pub(crate) got: HashMap<u64, u64>,
    /// Where stubs lead, by address.
    pub(crate) stubs: HashMap<u64, u64>,
    /// Where symbols are that have no section in their object: commons.
    pub(crate) symbols: HashMap<String, u64>,
}

/// Whether a section is part of an image.
pub(crate) fn is_loaded(section: &object::Section<'_, '_>) -> bool {
    matches!(section.flags(), SectionFlags::Elf { sh_flags } if sh_flags & u64::from(elf::SHF_ALLOC) != 0)
}

/// The names that no object defines, each with an address of its own.
pub(crate) fn outside(objects: &[object::File<'_>]) -> Vec<(String, u64)> {
    let mut names = Vec::new();
    let mut defined = Vec::new();
    for symbol in objects.iter().flat_map(|object| object.symbols()) {
        let name = symbol.name().unwrap().to_owned();
        if !symbol.is_undefined() {
            defined.push(name);
        } else if !symbol.is_weak() {
            names.push(name);
        }
    }
    names.sort();
    names.dedup();
    // The linkers' own name for their tables.
    names.retain(|name| !name.is_empty() && name != "_GLOBAL_OFFSET_TABLE_" && !defined.contains(name));
    names.into_iter().enumerate().map(|(index, name)| (name, OUTSIDE + 64 * index as u64)).collect()
}

impl Image {
    /// What Orcane makes of the files.
    pub(crate) fn ours(directory: &Path, files: &[&str], objects: &[object::File<'_>]) -> Self {
        let base = format!("{BASE:#x}");
        let definitions: Vec<_> =
            outside(objects).iter().map(|(name, address)| format!("{name}={address:#x}")).collect();
        let define = definitions.iter().flat_map(|definition| ["--define", definition]);
        _ = std::fs::remove_dir_all(directory.join("dump"));
        let options = ["link", "--no-exec", "--base", &base, "--map", "map.json", "--dump", "dump"];
        let output =
            orcane(directory, &options.into_iter().chain(define).chain(files.iter().copied()).collect::<Vec<_>>());
        assert!(output.status.success(), "{files:?}: {}", String::from_utf8_lossy(&output.stderr));
        let map = std::fs::read_to_string(directory.join("map.json")).unwrap();
        let mut image = Self { name: "orcane link", ..Self::default() };
        for (index, map) in map.split("{\"graph\":").skip(1).enumerate() {
            let sections = entries(map, "sections");
            let mut taken = vec![false; sections.len()];
            for section in objects[index].sections().filter(is_loaded) {
                let name = section.name().unwrap();
                // Sections of one name are in the order of the object.
                let found = sections.iter().enumerate().find(|(at, entry)| !taken[*at] && text(entry, "name") == name);
                let Some((at, entry)) = found else { continue };
                taken[at] = true;
                let file = directory.join(format!("dump/{index}.{at}{}", name.replace('/', "_")));
                let bytes = std::fs::read(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
                image.sections.insert((index, section.index()), (number(entry, "address"), bytes));
            }
            let led = |of: &str| {
                entries(map, of)
                    .into_iter()
                    .filter(|entry| text(entry, "what") == "address")
                    .map(|entry| (number(entry, "address"), number(entry, "target")))
                    .collect::<Vec<_>>()
            };
            image.got.extend(led("got"));
            image.stubs.extend(led("stubs"));
            image.symbols.extend(
                entries(map, "symbols").iter().map(|entry| (text(entry, "name").to_owned(), number(entry, "address"))),
            );
        }
        image
    }

    /// What lld makes of them. It relaxes nothing and merges nothing, so that every field stands where it stood.
    pub(crate) fn lld(directory: &Path, files: &[&str], objects: &[object::File<'_>]) -> Self {
        let base = format!("--image-base={BASE:#x}");
        let definitions: Vec<_> =
            outside(objects).iter().map(|(name, address)| format!("--defsym={name}={address:#x}")).collect();
        let options = [
            "ld.lld-22",
            "-static",
            "-O0",
            "--no-relax",
            "--entry=main",
            "-zmax-page-size=4096",
            &base,
            "-Map=lld.map",
            "-o",
            "lld",
        ];
        tool(
            directory,
            &options
                .into_iter()
                .chain(definitions.iter().map(String::as_str))
                .chain(files.iter().copied())
                .collect::<Vec<_>>(),
        );
        let bytes = std::fs::read(directory.join("lld")).unwrap();
        let linked = object::File::parse(&*bytes).unwrap();
        let map = std::fs::read_to_string(directory.join("lld.map")).unwrap();
        let mut image = Self { name: "lld", ..Self::default() };
        for (index, (file, object)) in files.iter().zip(objects).enumerate() {
            // `VMA LMA Size Align FILE:(SECTION)`, in the order of the object for sections of one name. The unwind table
            // comes in pieces; the first is where it begins.
            let mut lines: Vec<(&str, u64, u64)> = map
                .lines()
                .filter_map(|line| {
                    let (left, section) = line.split_once(&format!(" {file}:("))?;
                    let section = section.strip_suffix(')')?;
                    let words: Vec<_> = left.split_whitespace().collect();
                    let field = |at: usize| u64::from_str_radix(words[at], 16).unwrap();
                    Some((section.strip_suffix("+0x0").unwrap_or(section), field(0), field(2)))
                })
                .collect();
            for section in object.sections().filter(is_loaded) {
                let Some(at) = lines.iter().position(|(name, ..)| *name == section.name().unwrap()) else { continue };
                let (_, address, size) = lines.remove(at);
                image.sections.insert((index, section.index()), (address, read(&linked, address, size)));
            }
        }
        for section in linked.sections().filter(|section| matches!(section.name(), Ok(".got" | ".got.plt"))) {
            let words =
                section.data().unwrap().chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().unwrap()));
            image.got.extend((section.address()..).step_by(8).zip(words));
        }
        image.symbols = linked.symbols().map(|symbol| (symbol.name().unwrap().to_owned(), symbol.address())).collect();
        image
    }
}

/// Bytes of an image; what is not in the file is zero.
fn read(linked: &object::File<'_>, address: u64, size: u64) -> Vec<u8> {
    let section = linked.sections().find(|section| {
        is_loaded(section) && (section.address()..section.address() + section.size().max(1)).contains(&address)
    });
    let data = section.and_then(|section| section.data_range(address, size).unwrap());
    data.map_or_else(|| vec![0; size as usize], <[u8]>::to_vec)
}

/// The objects of a list in the map of one graph.
fn entries<'m>(map: &'m str, list: &str) -> Vec<&'m str> {
    let (_, rest) = map.split_once(&format!("\"{list}\":[")).unwrap_or_else(|| panic!("no {list} in {map}"));
    let (list, _) = rest.split_once(']').unwrap();
    list.split('{').skip(1).collect()
}

fn text<'m>(entry: &'m str, key: &str) -> &'m str {
    let (_, rest) = entry.split_once(&format!("\"{key}\":\"")).unwrap_or_else(|| panic!("no {key} in {entry}"));
    rest.split('"').next().unwrap()
}

fn number(entry: &str, key: &str) -> u64 {
    let (_, rest) = entry.split_once(&format!("\"{key}\":")).unwrap_or_else(|| panic!("no {key} in {entry}"));
    let digits = rest.split(|char: char| !char.is_ascii_digit()).next().unwrap();
    digits.parse().unwrap_or_else(|_| panic!("{key} is no number in {entry}"))
}
