//! Mach-O relocatable objects for x86-64 and arm64.
//!
//! Symbols go by their names in the source, as ELF's do and as `dlsym` takes them: the Mach-O
//! symbol `_main` is `main` in the graph. One without the underscore gets the prefix `\u{1}`
//! instead, by which LLVM too says that a name is to be taken literally.

mod aarch64;
mod atom;
mod compact_unwind;
mod indirect;
mod initializer;
mod literal;
mod relocation;
mod section;
mod symbol;
mod thread_local;
mod universal;
mod unwind;
mod x86_64;

use std::borrow::Cow;
use std::ops::Range;

use object::LittleEndian;
use object::macho::{CPU_TYPE_ARM64, CPU_TYPE_X86_64, MH_MAGIC_64, MH_OBJECT, MH_SUBSECTIONS_VIA_SYMBOLS};
use object::macho::{MachHeader64, Relocation, Section64};
use object::read::macho::{MachHeader, Section as _, Segment, SymbolTable};
use object::{SymbolIndex, U32};

use self::atom::Atoms;
use super::budget::Budget;
use super::eh_frame::Record;
use super::{ParseError, ParseOptions, Parsed};
use crate::SymbolName;
use crate::arch::Architecture;
use crate::graph::{GraphError, LinkGraph, ObjectBytes, SymbolId, Text};
use crate::name::SymbolStringPool;

pub(crate) use self::section::{bound_of, segment_beside};
pub(super) use self::universal::part_for_host;
pub use self::universal::{is_universal, slice};

/// What we read: 64 bits, little-endian.
type Header = MachHeader64<LittleEndian>;

/// The most sections that a symbol can name: it has a byte for their number.
const MAX_SECTIONS: usize = 255;

/// Whether bytes begin as a Mach-O file for one architecture does, or a universal one.
#[must_use]
pub(crate) fn is_macho(object: &[u8]) -> bool {
    const KNOWN: [[u8; 4]; 4] =
        [[0xcf, 0xfa, 0xed, 0xfe], [0xce, 0xfa, 0xed, 0xfe], [0xfe, 0xed, 0xfa, 0xcf], [0xfe, 0xed, 0xfa, 0xce]];
    KNOWN.iter().any(|magic| object.starts_with(magic)) || is_universal(object)
}

/// The name that the source code has for a Mach-O symbol.
///
/// ```
/// use jit_linker::format::macho::source_name;
///
/// assert_eq!(source_name("_main"), "main");
/// assert_eq!(source_name("l_switch.table"), "\u{1}l_switch.table");
/// ```
#[must_use]
pub fn source_name(symbol: &str) -> Cow<'_, str> {
    match symbol.strip_prefix('_') {
        Some(name) => Cow::Borrowed(name),
        None => Cow::Owned(format!("\u{1}{symbol}")),
    }
}

/// The name that a Mach-O object has for a symbol of the source code: the reverse of [`source_name`].
#[must_use]
pub fn symbol_name(source: &str) -> Cow<'_, str> {
    match source.strip_prefix('\u{1}') {
        Some(name) => Cow::Borrowed(name),
        None => Cow::Owned(format!("_{source}")),
    }
}

/// Reads a Mach-O relocatable object for one architecture, of less than 4 GiB.
pub(super) fn parse_with(
    name: &str,
    object: ObjectBytes,
    names: &SymbolStringPool,
    options: ParseOptions,
) -> Result<LinkGraph, ParseError> {
    let data: &[u8] = &object;
    let (header, architecture) = recognize(name, data)?;
    let mut reader = Reader {
        graph: LinkGraph::from_object(name, architecture, object.clone()),
        data,
        names,
        options,
        has_subsections: header.flags(LittleEndian) & MH_SUBSECTIONS_VIA_SYMBOLS != 0,
        sections: Vec::new(),
        symbols: SymbolTable::default(),
        strings: &[],
        records: None,
        record_edges: 0..0,
        indirect: &[],
        atoms: Vec::new(),
        symbol_ids: Vec::new(),
        thunk: None,
        budget: Budget::of(data),
    };
    reader.read(header).map_err(|error| *error)?;
    Ok(reader.graph)
}

fn recognize<'data>(name: &str, data: &'data [u8]) -> Result<(&'data Header, Architecture), ParseError> {
    let refuse = |what: &str| Err(ParseError::NotLinkable { object: name.to_owned(), what: what.to_owned() });
    if !data.starts_with(&MH_MAGIC_64.to_le_bytes()) {
        return refuse("it is of 32 bits or big-endian");
    }
    let header = Header::parse(data, 0)
        .map_err(|error| ParseError::Malformed { object: name.to_owned(), what: error.to_string() })?;
    if header.filetype(LittleEndian) != MH_OBJECT {
        return refuse("it is an executable or a shared library");
    }
    match header.cputype(LittleEndian) {
        CPU_TYPE_X86_64 => Ok((header, Architecture::X86_64)),
        CPU_TYPE_ARM64 => Ok((header, Architecture::Aarch64)),
        cpu => refuse(&format!("its CPU type is {cpu:#x}")),
    }
}

/// An object on its way into a graph.
struct Reader<'data> {
    graph: LinkGraph,
    data: &'data [u8],
    names: &'data SymbolStringPool,
    options: ParseOptions,
    /// Whether a section can be taken apart at its symbols.
    has_subsections: bool,
    sections: Vec<&'data Section64<LittleEndian>>,
    symbols: SymbolTable<'data, Header>,
    /// The symbols' names.
    strings: &'data [u8],
    /// The records of the first `__eh_frame`, whose edges are added.
    records: Option<Vec<Record>>,
    /// Which edges, of those that relocations have become, are in `__eh_frame`.
    record_edges: Range<usize>,
    /// The symbols that pointers of the sections for indirect symbols stand for.
    indirect: &'data [U32<LittleEndian>],
    /// By section index: where its content is, if it is in memory.
    atoms: Vec<Option<Atoms>>,
    /// By symbol index: the graph's symbol. Undefined symbols are added when they are referred to.
    symbol_ids: Vec<Option<SymbolId>>,
    /// The code that thread-local variables are found with.
    thunk: Option<SymbolId>,
    budget: Budget,
}

impl<'data> Reader<'data> {
    fn read(&mut self, header: &'data Header) -> Parsed<()> {
        self.read_commands(header)?;
        self.add_sections()?;
        self.add_symbols()?;
        self.add_relocations()
    }

    fn read_commands(&mut self, header: &'data Header) -> Parsed<()> {
        let mut commands = header.load_commands(LittleEndian, self.data, 0).map_err(|error| self.broken(error))?;
        while let Some(command) = commands.next().map_err(|error| self.broken(error))? {
            if let Some((segment, sections)) = command.segment_64().map_err(|error| self.broken(error))? {
                let sections = segment.sections(LittleEndian, sections).map_err(|error| self.broken(error))?;
                self.sections.extend(sections);
            } else if let Some(table) = command.symtab().map_err(|error| self.broken(error))? {
                self.symbols = table.symbols(LittleEndian, self.data).map_err(|error| self.broken(error))?;
                let (start, size) = (table.stroff.get(LittleEndian) as usize, table.strsize.get(LittleEndian) as usize);
                self.strings = start.checked_add(size).and_then(|end| self.data.get(start..end)).unwrap_or_default();
            } else if let Some(table) = command.dysymtab().map_err(|error| self.broken(error))? {
                self.indirect = table.indirect_symbols(LittleEndian, self.data).map_err(|error| self.broken(error))?;
            }
        }
        match self.sections.len() {
            0..=MAX_SECTIONS => Ok(()),
            count => Err(self.malformed(format!("it has {count} sections, and symbols can name {MAX_SECTIONS}"))),
        }
    }

    #[cold]
    fn malformed(&self, what: impl Into<String>) -> Box<ParseError> {
        Box::new(ParseError::Malformed { object: self.graph.name().to_owned(), what: what.into() })
    }

    /// As [`malformed`](Self::malformed), for an error of the `object` crate.
    fn broken(&self, error: object::read::Error) -> Box<ParseError> {
        self.malformed(error.to_string())
    }

    fn graph_error(&self, source: GraphError) -> Box<ParseError> {
        Box::new(ParseError::Graph { object: self.graph.name().to_owned(), source })
    }

    /// The position in the object of a slice of it.
    fn text(&self, slice: &[u8]) -> Text {
        Text::of(self.data, slice)
    }

    /// Counts bytes of the object that are read as one thing.
    fn claim(&self, size: u64) -> Parsed<()> {
        self.budget.take(size).map_err(|what| self.malformed(what))
    }

    /// As [`claim`](Self::claim), for the relocations of a section.
    fn claim_relocations(&self, section: &Section64<LittleEndian>) -> Parsed<()> {
        self.claim(u64::from(section.nreloc(LittleEndian)) * size_of::<Relocation<LittleEndian>>() as u64)
    }

    /// A name that other graphs know a symbol by.
    fn intern(&self, name: &[u8], index: SymbolIndex) -> Parsed<SymbolName> {
        match std::str::from_utf8(name) {
            Ok("") => Err(self.malformed(format!("symbol {} is visible and has no name", index.0))),
            Ok(name) => Ok(self.names.intern(&source_name(name))),
            Err(_) => Err(self.malformed(format!("the name of symbol {} is not UTF-8", index.0))),
        }
    }
}
