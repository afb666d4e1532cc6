//! An ELF file in memory that describes code which is somewhere else: what the GDB JIT interface
//! takes. Its sections say where they are; only what a debugger reads is in it.

use std::borrow::Cow;

use jit_linker::arch::Architecture;

use super::super::code::{LinkedCode, Note};
use super::dwarf;

const HEADER: usize = 64;
const SECTION_HEADER: usize = 64;
const SYMBOL: usize = 24;

const SHT_PROGBITS: u32 = 1;
const SHT_SYMTAB: u32 = 2;
const SHT_STRTAB: u32 = 3;
const SHT_NOBITS: u32 = 8;
const SHF_ALLOC: u64 = 2;
const SHF_EXECINSTR: u64 = 4;
const GLOBAL_FUNCTION: u8 = 1 << 4 | 2;
const SECTION_OF_FILE_SYMBOLS: u16 = 0xfff1;
const FILE: u8 = 4;

/// Where the section of code is in the table of sections.
const TEXT: u16 = 1;

struct Section {
    name: Cow<'static, str>,
    kind: u32,
    flags: u64,
    address: u64,
    size: u64,
    link: u32,
    info: u32,
    entry_size: u64,
    contents: Vec<u8>,
}

impl Section {
    fn new(name: impl Into<Cow<'static, str>>, kind: u32, contents: Vec<u8>) -> Self {
        let size = contents.len() as u64;
        Self { name: name.into(), kind, flags: 0, address: 0, size, link: 0, info: 0, entry_size: 0, contents }
    }
}

/// The file that describes some code.
pub(crate) fn describe(code: &LinkedCode) -> Vec<u8> {
    describe_with(code, Section::new(".text", SHT_NOBITS, Vec::new()))
}

/// The same, with the code in it, which is `bytes`.
pub(crate) fn contain(code: &LinkedCode, bytes: &[u8]) -> Vec<u8> {
    describe_with(code, Section::new(".text", SHT_PROGBITS, bytes.to_vec()))
}

fn describe_with(code: &LinkedCode, mut text: Section) -> Vec<u8> {
    (text.flags, text.address) = (SHF_ALLOC | SHF_EXECINSTR, code.range.start);
    text.size = code.range.end - code.range.start;
    let (symbols, strings) = symbols(code);
    let mut symtab = Section::new(".symtab", SHT_SYMTAB, symbols);
    (symtab.link, symtab.info, symtab.entry_size) = (3, 2, SYMBOL as u64);
    let mut sections = vec![text, symtab, Section::new(".strtab", SHT_STRTAB, strings)];
    // An object has its own.
    let has_frames = code.notes.iter().any(|note| note.has_address);
    if let Some(frames) = code.frames.as_ref().filter(|_| !has_frames) {
        sections.push(Section::new(".debug_frame", SHT_PROGBITS, debug_frame(frames.to_section())));
    }
    for (name, contents) in dwarf::sections(code) {
        sections.push(Section::new(name, SHT_PROGBITS, contents));
    }
    sections.extend(code.notes.iter().map(note));
    write(code.architecture, sections)
}

fn note(note: &Note) -> Section {
    // SAFETY: whoever tells of the code holds its memory.
    let contents = unsafe { note.contents() };
    let mut section = Section::new(note.name.clone(), SHT_PROGBITS, contents.to_vec());
    if note.has_address {
        (section.flags, section.address) = (SHF_ALLOC, note.range.start);
    }
    section
}

/// The symbol table, of which the first two entries are local, and its strings.
fn symbols(code: &LinkedCode) -> (Vec<u8>, Vec<u8>) {
    let mut strings = vec![0];
    let mut symbols = vec![0; SYMBOL];
    let mut add = |name: &str, kind: u8, section: u16, value: u64, size: u64| {
        symbols.extend_from_slice(&(strings.len() as u32).to_le_bytes());
        symbols.extend_from_slice(&[kind, 0]);
        symbols.extend_from_slice(&section.to_le_bytes());
        symbols.extend_from_slice(&value.to_le_bytes());
        symbols.extend_from_slice(&size.to_le_bytes());
        // A name ends at its first zero for whoever reads it.
        strings.extend(name.bytes().take_while(|byte| *byte != 0));
        strings.push(0);
    };
    add(&code.module, FILE, SECTION_OF_FILE_SYMBOLS, 0, 0);
    for function in &code.functions {
        add(&function.name, GLOBAL_FUNCTION, TEXT, function.start, u64::from(function.size));
    }
    (symbols, strings)
}

/// `.eh_frame` as `.debug_frame` (DWARF 4, 6.4.1): the id of a common entry is all ones, and what
/// refers to one gives its offset in the section.
fn debug_frame(mut section: Vec<u8>) -> Vec<u8> {
    let mut at = 0;
    while let Some(length) = section.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map(u32::from_le_bytes) {
        let field = at + 4;
        let Some(Ok(id)) = section.get(field..field + 4).map(<[u8; 4]>::try_from).filter(|_| length != 0) else {
            break;
        };
        let id = match u32::from_le_bytes(id) {
            0 => u32::MAX,
            distance => field as u32 - distance,
        };
        section[field..field + 4].copy_from_slice(&id.to_le_bytes());
        at += 4 + length as usize;
    }
    section.truncate(at);
    section
}

fn write(architecture: Architecture, mut sections: Vec<Section>) -> Vec<u8> {
    let mut names = vec![0];
    sections.push(Section::new(".shstrtab", SHT_STRTAB, Vec::new()));
    let name_offsets: Vec<u32> = sections
        .iter()
        .map(|section| {
            let offset = names.len() as u32;
            names.extend_from_slice(section.name.as_bytes());
            names.push(0);
            offset
        })
        .collect();
    if let Some(last) = sections.last_mut() {
        (last.size, last.contents) = (names.len() as u64, names);
    }

    let mut file = vec![0; HEADER];
    // The null section.
    let mut headers = vec![0; SECTION_HEADER];
    for (section, name) in sections.iter().zip(name_offsets) {
        file.resize(file.len().next_multiple_of(8), 0);
        let words = [section.flags, section.address, file.len() as u64, section.size];
        headers.extend_from_slice(&name.to_le_bytes());
        headers.extend_from_slice(&section.kind.to_le_bytes());
        words.iter().for_each(|word| headers.extend_from_slice(&word.to_le_bytes()));
        headers.extend_from_slice(&section.link.to_le_bytes());
        headers.extend_from_slice(&section.info.to_le_bytes());
        headers.extend_from_slice(&8u64.to_le_bytes());
        headers.extend_from_slice(&section.entry_size.to_le_bytes());
        file.extend_from_slice(&section.contents);
    }
    file.resize(file.len().next_multiple_of(8), 0);
    let table = file.len() as u64;
    file.extend_from_slice(&headers);
    let count = sections.len() as u16 + 1;
    file[..HEADER].copy_from_slice(&header(architecture, table, count));
    file
}

fn header(architecture: Architecture, section_headers: u64, sections: u16) -> [u8; HEADER] {
    /// Addresses are where things are.
    const ET_EXEC: u16 = 2;
    let machine: u16 = match architecture {
        Architecture::X86_64 => 62,
        _ => 183,
    };
    let mut header = [0; HEADER];
    // 64 bits, little-endian, version 1.
    header[..7].copy_from_slice(&[0x7f, b'E', b'L', b'F', 2, 1, 1]);
    header[16..18].copy_from_slice(&ET_EXEC.to_le_bytes());
    header[18..20].copy_from_slice(&machine.to_le_bytes());
    header[20..24].copy_from_slice(&1u32.to_le_bytes());
    header[40..48].copy_from_slice(&section_headers.to_le_bytes());
    header[52..54].copy_from_slice(&(HEADER as u16).to_le_bytes());
    header[58..60].copy_from_slice(&(SECTION_HEADER as u16).to_le_bytes());
    header[60..62].copy_from_slice(&sections.to_le_bytes());
    header[62..64].copy_from_slice(&(sections - 1).to_le_bytes());
    header
}
