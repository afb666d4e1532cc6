//! Universal files: one file for several architectures, each a Mach-O object or an archive of them.

use object::macho::{CPU_SUBTYPE_ARM64E, CPU_SUBTYPE_MASK, CPU_TYPE_ARM64, CPU_TYPE_X86_64, FAT_MAGIC, FAT_MAGIC_64};
use object::read::macho::{FatArch, MachOFatFile32, MachOFatFile64};

use crate::arch::Architecture;
use crate::format::ParseError;
use crate::graph::ObjectBytes;

/// Whether bytes begin as a universal file does.
#[must_use]
pub fn is_universal(file: &[u8]) -> bool {
    file.starts_with(&FAT_MAGIC.to_be_bytes()) || file.starts_with(&FAT_MAGIC_64.to_be_bytes())
}

/// The part of a universal file that is for an architecture, and the whole of any other file.
/// `name` appears in errors.
///
/// # Errors
///
/// When the file is malformed, has no such part, or one that is a universal file too.
pub fn slice(name: &str, file: &ObjectBytes, architecture: Architecture) -> Result<ObjectBytes, ParseError> {
    if !is_universal(file) {
        return Ok(file.clone());
    }
    let malformed =
        |what: object::read::Error| ParseError::Malformed { object: name.to_owned(), what: what.to_string() };
    let data: &[u8] = file;
    let range = if file.starts_with(&FAT_MAGIC.to_be_bytes()) {
        choose(MachOFatFile32::parse(data).map_err(malformed)?.arches(), architecture)
    } else {
        choose(MachOFatFile64::parse(data).map_err(malformed)?.arches(), architecture)
    };
    let Some((start, size)) = range else {
        let what = format!("none of its parts is for {architecture}");
        return Err(ParseError::NotLinkable { object: name.to_owned(), what });
    };
    let end = start.checked_add(size).and_then(|end| usize::try_from(end).ok());
    let malformed =
        |what| ParseError::Malformed { object: name.to_owned(), what: format!("its part for {architecture} {what}") };
    let part = end.and_then(|end| file.slice(start as usize..end)).ok_or_else(|| malformed("ends beyond the file"))?;
    // Nor would it end: a part can be the file that it is in.
    if is_universal(&part) {
        return Err(malformed("is a universal file too"));
    }
    Ok(part)
}

/// As [`slice()`], for this process's architecture.
pub(crate) fn part_for_host(name: &str, file: ObjectBytes) -> Result<ObjectBytes, ParseError> {
    if !is_universal(&file) {
        return Ok(file);
    }
    let what = || ParseError::NotLinkable { object: name.to_owned(), what: "the host has no architecture".into() };
    slice(name, &file, Architecture::host().ok_or_else(what)?)
}

/// Where the part for an architecture is. One for arm64 goes before one for arm64e, whose pointers
/// are signed; of an architecture's other variants the first is taken, the most general.
fn choose(parts: &[impl FatArch], architecture: Architecture) -> Option<(u64, u64)> {
    let wanted = match architecture {
        Architecture::X86_64 => CPU_TYPE_X86_64,
        Architecture::Aarch64 => CPU_TYPE_ARM64,
    };
    let parts = parts.iter().filter(|part| part.cputype() == wanted);
    let is_signed = |part: &&_| {
        let part: &&_ = part;
        wanted == CPU_TYPE_ARM64 && FatArch::cpusubtype(*part) & !CPU_SUBTYPE_MASK == CPU_SUBTYPE_ARM64E
    };
    let part = parts.min_by_key(|part| is_signed(part))?;
    Some((part.offset().into(), part.size().into()))
}
