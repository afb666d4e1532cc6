//! Two images of the same objects: what `orcane link` dumps, and what lld links.
//!
//! Both are at the same base but laid out in their own ways, so that an address means nothing by itself: what it leads to
//! is told as a section of an object and an offset in it.

use std::collections::HashMap;
use std::path::Path;

use object::{Architecture, Object, ObjectSection, ObjectSymbol, RelocationFlags, SectionFlags, SectionIndex, elf};

use crate::toolchain::{orcane, tool};

/// Of the first segment.
const BASE: u64 = 0x1000_0000;
/// Where the first of the symbols is said to be that no object defines. Within reach of everything.
const OUTSIDE: u64 = 0x1400_0000;

/// Names that a linker defines.
const OF_LINKERS: [&str; 2] = ["_GLOBAL_OFFSET_TABLE_", "_TLS_MODULE_BASE_"];

/// An object: its place among those that are linked together, and a section.
pub(crate) type Place = (usize, SectionIndex);

/// How lld links what it is compared with.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Linked {
    Program,
    /// In a program lld knows where thread-local variables are, and rewrites the code that asks for it; in a library not.
    Library,
}

/// What a word or two of the GOT are for code that reaches a thread-local variable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Words {
    /// Module and offset.
    Pair,
    /// The offset from the thread pointer.
    Offset,
    /// A resolver and its argument.
    Descriptor,
}

/// Where the template of thread-local variables is, and where threads have their copy.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Storage {
    pub(crate) start: u64,
    /// Of the copy, from the thread pointer.
    offset: i64,
}

impl Storage {
    /// The first module's, as "ELF Handling For Thread-Local Storage" has it: behind the thread pointer and two words, or
    /// before it.
    fn new(architecture: Architecture, start: u64, size: u64, align: u64) -> Self {
        let mask = align.max(1) - 1;
        let offset = match architecture {
            Architecture::Aarch64 => (16 + (start.wrapping_sub(16) & mask)).cast_signed(),
            _ => -(size + (start.wrapping_add(size).wrapping_neg() & mask)).cast_signed(),
        };
        Self { start, offset }
    }

    /// The place in the template that an offset from the thread pointer stands for.
    pub(crate) fn at(self, offset: i64) -> u64 {
        self.start.wrapping_add_signed(offset - self.offset)
    }

    pub(crate) fn offset_of(self, variable: u64) -> u64 {
        variable.wrapping_sub(self.start).wrapping_add_signed(self.offset)
    }
}

/// A linked image.
#[derive(Default)]
pub(crate) struct Image {
    pub(crate) name: &'static str,
    /// Where the sections of the objects are, and what is in them.
    pub(crate) sections: HashMap<Place, (u64, Vec<u8>)>,
    /// What the entries of the GOT hold, by address.
    pub(crate) got: HashMap<u64, u64>,
    /// What the words of the GOT are that lead to thread-local variables, by address, and to which place in the template.
    pub(crate) variables: HashMap<u64, (Words, u64)>,
    /// Of thread-local variables, if there are any.
    pub(crate) storage: Option<Storage>,
    /// Where the table begins that offsets count from: that of each object, or that of all.
    pub(crate) tables: Vec<u64>,
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
    // The linkers' own names for their tables.
    names.retain(|name| !name.is_empty() && !OF_LINKERS.contains(&&**name) && !defined.contains(name));
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
            let symbols = entries(map, "symbols");
            let symbols = symbols.iter().map(|entry| (text(entry, "name").to_owned(), number(entry, "address")));
            let symbols: HashMap<_, _> = symbols.collect();
            image.place_thread_locals(index, &objects[index], &sections, &symbols);
            let table = symbols.get("_GLOBAL_OFFSET_TABLE_").copied();
            image.symbols.extend(symbols);

            let segments = Segments::read(directory, index, map);
            for entry in entries(map, "got") {
                let address = number(entry, "address");
                image.add_entry(address, text(entry, "what"), segments.words(address));
            }
            let first = entries(map, "got").iter().map(|entry| number(entry, "address")).min();
            image.tables.push(first.or(table).unwrap_or(0));
            for entry in entries(map, "stubs").iter().filter(|entry| text(entry, "what") == "address") {
                image.stubs.insert(number(entry, "address"), number(entry, "target"));
            }
        }
        image
    }

    /// The sections of thread-local variables of an object are one in our graph: where each of them is in it, a symbol
    /// tells.
    fn place_thread_locals(
        &mut self,
        index: usize,
        object: &object::File<'_>,
        sections: &[&str],
        symbols: &HashMap<String, u64>,
    ) {
        let thread_local: Vec<_> = object.sections().filter(is_thread_local).collect();
        let Some(name) = thread_local.first().map(|section| section.name().unwrap()) else { return };
        let template = sections.iter().position(|entry| text(entry, "name") == name);
        let Some(template) = template.map(|at| sections[at]) else { return };
        let (start, size) = (number(template, "address"), number(template, "size"));
        let (_, content) = self.sections.remove(&(index, thread_local[0].index())).unwrap();
        for section in &thread_local {
            // Assemblers mark data in each section with one name, `$d`.
            let names = object.symbols().filter(|symbol| symbol.section_index() == Some(section.index()));
            let mut names = names.filter_map(|symbol| Some((symbol.name().ok()?.to_owned(), symbol.address())));
            let place = names.find_map(|(name, offset)| {
                let address = symbols.get(&name).filter(|_| !name.starts_with('$'))?;
                Some(address.wrapping_sub(offset))
            });
            let Some(place) = place else { continue };
            let bytes = &content[(place - start) as usize..][..section.size() as usize];
            self.sections.insert((index, section.index()), (place, bytes.to_vec()));
        }
        let align = thread_local.iter().map(|section| section.align()).max().unwrap_or(1);
        self.storage = Some(Storage::new(object.architecture(), start, size, align));
    }

    /// An entry of our GOT: what the map says that it is, and the words that are there.
    fn add_entry(&mut self, address: u64, what: &str, words: [u64; 2]) {
        let storage = || self.storage.expect("there is a template");
        let (kind, variable) = match what {
            "address" => {
                self.got.insert(address, words[0]);
                return;
            }
            "tls-offset" => (Words::Offset, storage().at(words[0].cast_signed())),
            // The one module has the number 1.
            "tls-pair" | "tls-module" if words[0] == 1 => (Words::Pair, storage().start.wrapping_add(words[1])),
            // A routine returns the argument.
            "tls-descriptor" if words[0] >= BASE => (Words::Descriptor, storage().at(words[1].cast_signed())),
            _ => panic!("the entry at {address:#x} is {what} and holds {words:x?}"),
        };
        self.variables.insert(address, (kind, variable));
    }

    /// What lld makes of them. It relaxes nothing and merges nothing, so that every field stands where it stood.
    pub(crate) fn lld(directory: &Path, files: &[&str], objects: &[object::File<'_>], linked: Linked) -> Self {
        let base = format!("--image-base={BASE:#x}");
        let definitions: Vec<_> =
            outside(objects).iter().map(|(name, address)| format!("--defsym={name}={address:#x}")).collect();
        let kind: &[&str] = match linked {
            Linked::Program => &["-static"],
            // Nothing is replaced by another's, and fields are what they would be at this address.
            Linked::Library => &["-shared", "-Bsymbolic", "--apply-dynamic-relocs"],
        };
        let options = [
            "ld.lld-22",
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
                .chain(kind.iter().copied())
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
        image.storage = template(&linked);
        for (address, relocation) in linked.dynamic_relocations().into_iter().flatten() {
            let RelocationFlags::Elf { r_type: kind } = relocation.flags() else { continue };
            let word = |address: u64| image.got.get(&address).copied().unwrap_or_default();
            let storage = || image.storage.expect("there is a template");
            let (words, offset) = match (linked.architecture(), kind) {
                (Architecture::X86_64, elf::R_X86_64_DTPMOD64) | (Architecture::Aarch64, elf::R_AARCH64_TLS_DTPMOD) => {
                    (Words::Pair, word(address + 8))
                }
                (Architecture::X86_64, elf::R_X86_64_TPOFF64) | (Architecture::Aarch64, elf::R_AARCH64_TLS_TPREL) => {
                    (Words::Offset, relocation.addend().cast_unsigned())
                }
                (Architecture::X86_64, elf::R_X86_64_TLSDESC) | (Architecture::Aarch64, elf::R_AARCH64_TLSDESC) => {
                    (Words::Descriptor, relocation.addend().cast_unsigned())
                }
                _ => continue,
            };
            image.variables.insert(address, (words, storage().start.wrapping_add(offset)));
        }
        // Where the symbol is that code measures from.
        let table = if linked.architecture() == Architecture::X86_64 { ".got.plt" } else { ".got" };
        let table = linked.section_by_name(table).map_or(0, |section| section.address());
        image.tables = vec![table; files.len()];
        image.symbols = linked.symbols().map(|symbol| (symbol.name().unwrap().to_owned(), symbol.address())).collect();
        image
    }
}

fn is_thread_local(section: &object::Section<'_, '_>) -> bool {
    matches!(section.flags(), SectionFlags::Elf { sh_flags } if sh_flags & u64::from(elf::SHF_TLS) != 0)
}

/// Where lld put the template.
fn template(linked: &object::File<'_>) -> Option<Storage> {
    let object::File::Elf64(file) = linked else { return None };
    let (endian, headers) = (file.endian(), file.elf_program_headers());
    let header = headers.iter().find(|header| header.p_type.get(endian) == elf::PT_TLS)?;
    let (start, size, align) = (header.p_vaddr.get(endian), header.p_memsz.get(endian), header.p_align.get(endian));
    Some(Storage::new(linked.architecture(), start, size, align))
}

/// The memory of one of our graphs.
struct Segments(Vec<(u64, Vec<u8>)>);

impl Segments {
    fn read(directory: &Path, index: usize, map: &str) -> Self {
        let read = |entry: &&str| {
            let file = directory.join(format!("dump/{index}.{}", text(entry, "kind")));
            Some((number(entry, "address"), std::fs::read(file).ok()?))
        };
        Self(entries(map, "segments").iter().filter_map(read).collect())
    }

    /// The word at an address and the next one, if there are.
    fn words(&self, address: u64) -> [u64; 2] {
        let holds = |(start, bytes): &&(u64, Vec<u8>)| (*start..start + bytes.len() as u64).contains(&address);
        let Some((start, bytes)) = self.0.iter().find(holds) else { panic!("nothing is at {address:#x}") };
        let bytes = &bytes[(address - start) as usize..];
        [0, 8].map(|at| bytes.get(at..at + 8).map_or(0, |word| u64::from_le_bytes(word.try_into().unwrap())))
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
