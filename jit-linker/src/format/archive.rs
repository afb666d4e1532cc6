//! Archives of objects (`ar`), whole ones and thin ones.

use std::path::{Path, PathBuf};

use object::archive::{MAGIC, THIN_MAGIC};
use object::read::archive::{ArchiveFile, ArchiveOffset};
use object::{BinaryFormat, Object, ObjectSymbol};
use rustc_hash::FxHashMap;

use super::budget::Budget;
use super::{ParseError, macho};
use crate::graph::ObjectBytes;

/// Whether bytes begin as an archive does.
#[must_use]
pub fn is_archive(file: &[u8]) -> bool {
    file.starts_with(&MAGIC) || file.starts_with(&THIN_MAGIC)
}

/// Where in an archive a member is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MemberId(u64);

/// A member of an archive.
#[derive(Clone, Debug)]
pub struct Member {
    /// The archive's name, and the member's in parentheses.
    pub name: String,
    /// Its bytes.
    pub object: ObjectBytes,
}

/// An archive, with an index of the symbols that its members define.
///
/// ```
/// use std::path::Path;
///
/// use jit_linker::format::archive::Archive;
/// use jit_linker::graph::ObjectBytes;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// // What `ar` writes, with one member, that is no object.
/// let mut bytes = b"!<arch>\n".to_vec();
/// bytes.extend(format!("{:<16}{:<12}{:<6}{:<6}{:<8}{:<10}`\n", "notes/", 0, 0, 0, 644, 6).into_bytes());
/// bytes.extend(b"hello\n");
/// let archive = Archive::parse(Path::new("libnotes.a"), ObjectBytes::from(bytes))?;
/// assert!(archive.member_with("main").is_none());
/// for member in archive.members() {
///     println!("{}", archive.member(member)?.name);
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Archive {
    name: String,
    /// Where a thin archive's members are.
    directory: PathBuf,
    bytes: ObjectBytes,
    members: FxHashMap<Box<[u8]>, MemberId>,
}

impl Archive {
    /// Reads an archive. `path` is where it was read from: its name in errors, and where a thin
    /// archive's members are looked for.
    ///
    /// # Errors
    ///
    /// When it is malformed, or has no index and a member is malformed.
    pub fn parse(path: &Path, bytes: ObjectBytes) -> Result<Self, ParseError> {
        let name = path.display().to_string();
        let directory = path.parent().map(Path::to_path_buf).unwrap_or_default();
        let mut this = Self { name, directory, bytes, members: FxHashMap::default() };
        let bytes = this.bytes.clone();
        let archive = ArchiveFile::parse(&*bytes).map_err(|error| this.malformed(&error))?;
        match archive.symbols().map_err(|error| this.malformed(&error))? {
            Some(symbols) => {
                let budget = Budget::of(&bytes);
                for symbol in symbols {
                    let symbol = symbol.map_err(|error| this.malformed(&error))?;
                    budget.take_name(symbol.name()).map_err(|what| this.malformed(&what))?;
                    this.members.entry(symbol.name().into()).or_insert(MemberId(symbol.offset().0));
                }
            }
            None => this.index(&archive)?,
        }
        Ok(this)
    }

    /// Makes the index that an archive does not have.
    fn index(&mut self, archive: &ArchiveFile<'_>) -> Result<(), ParseError> {
        for member in archive.members() {
            let member = member.map_err(|error| self.malformed(&error))?;
            // A header is 60 bytes before the content, or stands alone.
            let (start, _) = member.file_range();
            let Some(header) = member.header() else { continue };
            let header = std::ptr::from_ref(header) as usize - self.bytes.as_ptr() as usize;
            debug_assert!(member.is_thin() || header < start as usize);
            let id = MemberId(header as u64);
            let Member { object, .. } = self.member(id)?;
            // What is no object has no symbols to offer.
            let Ok(file) = object::File::parse(&*object) else { continue };
            let budget = Budget::of(&object);
            for symbol in file.symbols().filter(|symbol| is_indexed(&file, symbol)) {
                if let Ok(name) = symbol.name_bytes() {
                    budget.take_name(name).map_err(|what| self.malformed(&what))?;
                    self.members.entry(name.into()).or_insert(id);
                }
            }
        }
        Ok(())
    }

    /// The first member that defines a symbol, which goes by its name in the source.
    #[must_use]
    pub fn member_with(&self, symbol: &str) -> Option<MemberId> {
        let [plain, mangled] = [symbol, &macho::symbol_name(symbol)].map(|name| self.members.get(name.as_bytes()));
        // The index has the names of the members' own format.
        let is_macho = |id: &MemberId| self.member(*id).is_ok_and(|member| macho::is_macho(&member.object));
        plain.filter(|id| !is_macho(id)).or_else(|| mangled.filter(|id| is_macho(id))).copied()
    }

    /// All members that define symbols, in their order.
    #[must_use]
    pub fn members(&self) -> Vec<MemberId> {
        let mut members: Vec<_> = self.members.values().copied().collect();
        members.sort_unstable();
        members.dedup();
        members
    }

    /// A member's bytes: a thin archive's are read from their file.
    ///
    /// # Errors
    ///
    /// When the archive is malformed, or the file can't be read.
    pub fn member(&self, id: MemberId) -> Result<Member, ParseError> {
        let archive = ArchiveFile::parse(&*self.bytes).map_err(|error| self.malformed(&error))?;
        let member = archive.member(ArchiveOffset(id.0)).map_err(|error| self.malformed(&error))?;
        let file = String::from_utf8_lossy(member.name()).into_owned();
        let name = format!("{}({file})", self.name);
        let object = if member.is_thin() {
            let path = self.directory.join(&file);
            let bytes =
                std::fs::read(&path).map_err(|error| self.malformed(&format!("{}: {error}", path.display())))?;
            ObjectBytes::from(bytes)
        } else {
            let (start, size) = member.file_range();
            let range = start as usize..start.saturating_add(size) as usize;
            self.bytes.slice(range).ok_or_else(|| self.malformed(&format!("{file} reaches beyond the file")))?
        };
        Ok(Member { name, object })
    }

    fn malformed(&self, what: &dyn std::fmt::Display) -> ParseError {
        ParseError::Malformed { object: self.name.clone(), what: what.to_string() }
    }
}

/// Whether a symbol belongs into an index: it need not be in a section, but may be a common one, an absolute one, or
/// one that stands for another. In Mach-O a common symbol is one without a section that has a value, its size.
fn is_indexed<'data>(file: &object::File<'data>, symbol: &impl ObjectSymbol<'data>) -> bool {
    let is_common = file.format() == BinaryFormat::MachO && symbol.address() != 0;
    symbol.is_global() && (!symbol.is_undefined() || is_common)
}
