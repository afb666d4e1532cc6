//! ELF relocatable objects, after the System V gABI and the psABIs of x86-64 and AArch64.
//!
//! Sections that take no memory in a program (debugging information, comments) are left out,
//! and with them their relocations, unless they are asked for.

mod aarch64;
mod group;
mod relocation;
mod section;
mod symbol;
mod unwind;
mod x86_64;

use std::collections::BTreeMap;
use std::num::NonZeroU32;

use object::elf::{
    ELFCLASS64, ELFDATA2LSB, EM_AARCH64, EM_X86_64, ET_REL, FileHeader64, PT_TLS, R_X86_64_32, R_X86_64_32S, Rela64,
    SHF_ALLOC, SHN_UNDEF, SHT_DYNSYM, SHT_SYMTAB, STB_LOCAL, STT_TLS, Sym64,
};
use object::read::SectionIndex;
use object::read::elf::{FileHeader, SectionHeader, SectionTable, SymbolTable};
use object::{LittleEndian, SymbolIndex};
use rustc_hash::FxHashMap;

use super::budget::Budget;
use super::{ParseError, ParseOptions, Parsed};
use crate::SymbolName;
use crate::arch::Architecture;
use crate::graph::{BlockId, GraphError, LinkGraph, ObjectBytes, SectionId, SymbolId, Text};
use crate::name::SymbolStringPool;

/// What we read: 64 bits, little-endian.
type Header = FileHeader64<LittleEndian>;

/// Reads an ELF relocatable object of less than 4 GiB.
pub(super) fn parse_with(
    name: &str,
    object: ObjectBytes,
    names: &SymbolStringPool,
    options: ParseOptions,
) -> Result<LinkGraph, ParseError> {
    let data: &[u8] = &object;
    let malformed =
        |what: object::read::Error| ParseError::Malformed { object: name.to_owned(), what: what.to_string() };
    let (header, architecture) = recognize(name, data)?;
    let sections = header.sections(LittleEndian, data).map_err(malformed)?;
    let symbols = sections.symbols(LittleEndian, data, SHT_SYMTAB).map_err(malformed)?;
    let mut reader = Reader {
        graph: LinkGraph::from_object(name, architecture, object.clone()),
        data,
        names,
        options,
        placed: vec![None; sections.len()],
        unwind_tables: BTreeMap::new(),
        named: FxHashMap::default(),
        symbol_ids: SymbolIds::new(symbols.len()),
        zero: None,
        budget: Budget::of(data),
        sections,
        symbols,
    };
    reader.graph.reserve_symbols(reader.symbols.len());
    reader.read().map_err(|error| *error)?;
    Ok(reader.graph)
}

/// Whether an object stores addresses in 32 bits, so that it has to be linked below 2 GiB. It is not read for that;
/// `false` if it can't be.
#[must_use]
pub fn needs_low_memory(object: &[u8]) -> bool {
    recognize("", object).is_ok_and(|(header, architecture)| {
        architecture == Architecture::X86_64 && stores_low_addresses(header, object).unwrap_or(false)
    })
}

/// The names of the thread-local variables that a shared library has for others; none if it can't be read.
#[must_use]
pub fn thread_local_variables(library: &[u8]) -> Vec<String> {
    let names = || -> object::read::Result<Vec<String>> {
        let header = Header::parse(library)?;
        let segments = header.program_headers(LittleEndian, library)?;
        if !segments.iter().any(|segment| segment.p_type.get(LittleEndian) == PT_TLS) {
            return Ok(Vec::new());
        }
        let symbols = header.sections(LittleEndian, library)?.symbols(LittleEndian, library, SHT_DYNSYM)?;
        let is_variable = |symbol: &&Sym64<LittleEndian>| {
            symbol.st_type() == STT_TLS
                && symbol.st_bind() != STB_LOCAL
                && symbol.st_shndx.get(LittleEndian) != SHN_UNDEF
        };
        let names = symbols.iter().filter(is_variable).map(|symbol| symbols.symbol_name(LittleEndian, symbol));
        names.map(|name| Ok(String::from_utf8_lossy(name?).into_owned())).collect()
    };
    names().unwrap_or_default()
}

fn stores_low_addresses(header: &Header, data: &[u8]) -> object::read::Result<bool> {
    let sections = header.sections(LittleEndian, data)?;
    for table in sections.iter() {
        let Some((relocations, _)) = table.rela(LittleEndian, data)? else { continue };
        let target = sections.section(SectionIndex(table.sh_info.get(LittleEndian) as usize))?;
        let is_loaded = target.sh_flags.get(LittleEndian) & u64::from(SHF_ALLOC) != 0;
        let kind = |relocation: &Rela64<LittleEndian>| relocation.r_type(LittleEndian, false);
        if is_loaded && relocations.iter().any(|one| matches!(kind(one), R_X86_64_32 | R_X86_64_32S)) {
            return Ok(true);
        }
    }
    Ok(false)
}

fn recognize<'data>(name: &str, data: &'data [u8]) -> Result<(&'data Header, Architecture), ParseError> {
    let refuse = |what: String| Err(ParseError::NotLinkable { object: name.to_owned(), what });
    match data.get(..6) {
        Some(ident) if ident[4] != ELFCLASS64 => return refuse("it is not of 64 bits".to_owned()),
        Some(ident) if ident[5] != ELFDATA2LSB => return refuse("it is big-endian".to_owned()),
        _ => {}
    }
    let header = Header::parse(data)
        .map_err(|error| ParseError::Malformed { object: name.to_owned(), what: error.to_string() })?;
    if header.e_type.get(LittleEndian) != ET_REL {
        return refuse("it is an executable or a shared library".to_owned());
    }
    match header.e_machine.get(LittleEndian) {
        EM_X86_64 => Ok((header, Architecture::X86_64)),
        EM_AARCH64 => Ok((header, Architecture::Aarch64)),
        machine => refuse(format!("its machine is {machine}")),
    }
}

/// An object on its way into a graph.
struct Reader<'data> {
    graph: LinkGraph,
    data: &'data [u8],
    names: &'data SymbolStringPool,
    options: ParseOptions,
    sections: SectionTable<'data, Header>,
    symbols: SymbolTable<'data, Header>,
    /// By section index: where its content is, if it is in memory.
    placed: Vec<Option<BlockId>>,
    /// By section index: those with unwinding records, which become many blocks.
    unwind_tables: BTreeMap<usize, SectionId>,
    /// Sections of the graph that all sections of one name or role share.
    named: FxHashMap<section::Key<'data>, SectionId>,
    /// By symbol index: the graph's symbol. Undefined symbols are added when they are referred to.
    symbol_ids: SymbolIds,
    /// The symbol at address 0 that a relocation without a symbol refers to.
    zero: Option<SymbolId>,
    budget: Budget,
}

/// The graph's symbols by those of the object, each one more than its id: half the memory of options.
struct SymbolIds(Vec<Option<NonZeroU32>>);

impl SymbolIds {
    fn new(count: usize) -> Self {
        Self(vec![None; count])
    }

    fn has(&self, index: SymbolIndex) -> bool {
        index.0 < self.0.len()
    }

    #[inline]
    fn get(&self, index: SymbolIndex) -> Option<SymbolId> {
        match self.0.get(index.0) {
            Some(Some(id)) => Some(SymbolId(id.get() - 1)),
            _ => None,
        }
    }

    fn set(&mut self, index: SymbolIndex, id: SymbolId) {
        self.0[index.0] = NonZeroU32::new(id.0 + 1);
    }
}

impl<'data> Reader<'data> {
    fn read(&mut self) -> Parsed<()> {
        self.add_sections()?;
        self.add_symbols()?;
        self.add_groups()?;
        self.add_relocations()
    }

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
    fn text(&self, slice: &'data [u8]) -> Text {
        let start = (slice.as_ptr() as usize).wrapping_sub(self.data.as_ptr() as usize);
        // An object's size fits 32 bits; the empty name of no table is anywhere.
        if start + slice.len() > self.data.len() {
            return Text::default();
        }
        Text { start: start as u32, length: slice.len() as u32 }
    }

    /// Counts bytes of the object that are read as one thing.
    fn claim(&self, size: u64) -> Parsed<()> {
        self.budget.take(size).map_err(|what| self.malformed(what))
    }

    fn section_name(&self, index: SectionIndex) -> Parsed<&'data [u8]> {
        let section = self.sections.section(index).map_err(|error| self.broken(error))?;
        let name = self.sections.section_name(LittleEndian, section).map_err(|error| self.broken(error))?;
        self.count_name(name)
    }

    fn symbol_name(&self, symbol: &Sym64<LittleEndian>) -> Parsed<&'data [u8]> {
        let name = self.symbols.symbol_name(LittleEndian, symbol).map_err(|error| self.broken(error))?;
        self.count_name(name)
    }

    fn count_name(&self, name: &'data [u8]) -> Parsed<&'data [u8]> {
        self.budget.take_name(name).map_err(|what| self.malformed(what))?;
        Ok(name)
    }

    /// A name that other graphs know a symbol by.
    fn intern(&self, name: &[u8], index: SymbolIndex) -> Parsed<SymbolName> {
        match std::str::from_utf8(name) {
            Ok("") => Err(self.malformed(format!("symbol {} is visible and has no name", index.0))),
            Ok(name) => Ok(self.names.intern(name)),
            Err(_) => Err(self.malformed(format!("the name of symbol {} is not UTF-8", index.0))),
        }
    }
}
