//! Object files, read into link graphs.
//!
//! ```no_run
//! use jit_linker::{SymbolStringPool, format, graph::ObjectBytes};
//!
//! let names = SymbolStringPool::new();
//! let object = ObjectBytes::from(std::fs::read("sqlite3.o")?);
//! let graph = format::parse("sqlite3.o", object, &names)?;
//! println!("{graph}");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! The input need not be well-formed. Content is not copied: the graph holds on to the bytes.

pub mod archive;
mod budget;
mod eh_frame;
mod elf;
pub mod macho;

use std::path::Path;

pub use self::elf::{needs_low_memory, thread_local_variables};

use crate::graph::{GraphError, LinkGraph, ObjectBytes};
use crate::name::SymbolStringPool;

/// Reads a relocatable object into a graph, whatever its format. `name` appears in errors. Of a universal file, the part
/// for this process's architecture is read; [`macho::slice()`] takes another's.
///
/// # Errors
///
/// When the format is not one of ours, it is not a relocatable object for an architecture of ours, is malformed, or has
/// a relocation that is not supported; the error says where.
pub fn parse(name: &str, object: ObjectBytes, names: &SymbolStringPool) -> Result<LinkGraph, ParseError> {
    parse_with(name, object, names, ParseOptions::default())
}

/// What of an object becomes part of its graph.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ParseOptions {
    /// Whether sections that a program takes no memory for are in it all the same, as
    /// [notes](crate::graph::SectionRole::Note): debugging information, unless it is compressed.
    pub all_sections: bool,
}

impl ParseOptions {
    /// Sets [`all_sections`](Self::all_sections).
    #[must_use]
    pub fn all_sections(mut self, enable: bool) -> Self {
        self.all_sections = enable;
        self
    }
}

/// As [`parse`], with a say in what becomes part of the graph.
///
/// # Errors
///
/// As [`parse`].
pub fn parse_with(
    name: &str,
    object: ObjectBytes,
    names: &SymbolStringPool,
    options: ParseOptions,
) -> Result<LinkGraph, ParseError> {
    let _span = tracing::debug_span!("read", object = name).entered();
    let object = macho::part_for_host(name, object)?;
    if u32::try_from(object.len()).is_err() {
        let source = GraphError::TooLarge { size: object.len() as u64 };
        return Err(ParseError::Graph { object: name.to_owned(), source });
    }
    if object.starts_with(b"\x7fELF") {
        return elf::parse_with(name, object, names, options);
    }
    if macho::is_macho(&object) {
        return macho::parse_with(name, object, names, options);
    }
    let is_bitcode = LLVM_BITCODE.iter().any(|magic| object.starts_with(magic));
    let object = name.to_owned();
    Err(match is_bitcode {
        true => ParseError::NotLinkable { object, what: "it is LLVM's intermediate code (-flto)".to_owned() },
        false => ParseError::Unrecognized { object },
    })
}

/// How bitcode begins, as it is and in its wrapper for Darwin.
const LLVM_BITCODE: [&[u8]; 2] = [b"BC\xc0\xde", b"\xde\xc0\x17\x0b"];

/// What readers return, a relocation a time: an error is rare, and too large to be carried around.
type Parsed<T> = Result<T, Box<ParseError>>;

/// The bytes of a file.
///
/// # Errors
///
/// When it can't be read.
pub fn open(path: &Path) -> Result<ObjectBytes, ParseError> {
    let unreadable = |error: std::io::Error| ParseError::Unreadable { path: path.into(), what: error.to_string() };
    Ok(ObjectBytes::from(std::fs::read(path).map_err(unreadable)?))
}

/// Why an object can't be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ParseError {
    /// The file can't be read.
    #[error("{}: {what}", path.display())]
    Unreadable {
        /// The file.
        path: Box<Path>,
        /// The system's answer.
        what: String,
    },
    /// Neither ELF nor another format of ours.
    #[error("{object} is not an object file of a known format")]
    Unrecognized {
        /// The object's name.
        object: String,
    },
    /// Executables and shared libraries are loaded, not linked; big-endian and 32-bit code is not ours.
    #[error("{object} is not a relocatable object for x86-64 or AArch64: {what}")]
    NotLinkable {
        /// The object's name.
        object: String,
        /// What it is.
        what: String,
    },
    /// Something in it contradicts its format.
    #[error("{object} is malformed: {what}")]
    Malformed {
        /// The object's name.
        object: String,
        /// What is wrong, and where.
        what: String,
    },
    /// A relocation that we don't have.
    #[error("in {object}: unsupported relocation {relocation} at {section}+{offset:#x}")]
    UnsupportedRelocation {
        /// The object's name.
        object: String,
        /// The section that is relocated.
        section: String,
        /// The place's offset in the section.
        offset: u64,
        /// The relocation's number in the format's numbering.
        relocation: u32,
    },
    /// A section of a kind that we don't have.
    #[error("in {object}: section {section} {what}")]
    UnsupportedSection {
        /// The object's name.
        object: String,
        /// The section's name.
        section: String,
        /// What it is or has.
        what: String,
    },
    /// Code for arm64e, whose pointers are signed when they are stored.
    #[error("in {object}: authenticated pointer at {section}+{offset:#x}; arm64e is not supported, compile for arm64")]
    AuthenticatedPointer {
        /// The object's name.
        object: String,
        /// The section the pointer is in.
        section: String,
        /// Its offset in the section.
        offset: u64,
    },
    /// It is too large, or too much aligned, for a graph.
    #[error("in {object}: {source}")]
    Graph {
        /// The object's name.
        object: String,
        /// What is wrong.
        source: GraphError,
    },
}
