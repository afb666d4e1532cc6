//! What the program is made of, in the order in which it is named.

use std::collections::HashSet;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::ArgMatches;
use orcane::ArchiveScope;
use orcane::linker::SymbolStringPool;
use orcane::linker::arch::Architecture;
use orcane::linker::format::archive::{Archive, is_archive};
use orcane::linker::format::macho::slice;
use orcane::linker::format::needs_low_memory;
use orcane::linker::format::{open, parse};
use orcane::linker::graph::{EdgeKind, LinkGraph, ObjectBytes};
use orcane::linker::memory::{MemoryManager, PageManager, SlabManager};

use super::{Run, search};
use crate::Result;
use crate::link_command::add_members;

/// A file of the program.
pub(super) struct Input {
    pub(super) path: PathBuf,
    pub(super) kind: Kind,
    /// The dylib it goes to, if not `main`.
    pub(super) dylib: Option<String>,
}

/// What a file is.
pub(super) enum Kind {
    Object(ObjectBytes),
    Archive(ArchiveScope),
    Library,
    Clif(String),
}

impl Kind {
    /// Whether it defines something only when that is looked up.
    pub(super) fn is_searched(&self) -> bool {
        matches!(self, Self::Archive(_) | Self::Library)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Object(_) => "object",
            Self::Archive(_) => "archive",
            Self::Library => "library",
            Self::Clif(_) => "CLIF",
        })
    }
}

/// The files that the command line names, each in its dylib.
pub(super) fn gather(options: &Run, matches: &ArgMatches) -> Result<Vec<Input>> {
    let at = |id: &str| matches.indices_of(id).map(Iterator::collect::<Vec<_>>).unwrap_or_default();
    let mut named: Vec<(usize, PathBuf, ArchiveScope)> = Vec::new();
    for (id, files, scope) in [
        ("files", &options.files, ArchiveScope::AsDefined),
        ("hidden_archives", &options.hidden_archives, ArchiveScope::Hidden),
    ] {
        named.extend(at(id).into_iter().zip(files).map(|(index, file)| (index, file.clone(), scope)));
    }
    for (id, libraries, scope) in [
        ("libraries", &options.libraries, ArchiveScope::AsDefined),
        ("hidden_libraries", &options.hidden_libraries, ArchiveScope::Hidden),
    ] {
        for (index, name) in at(id).into_iter().zip(libraries) {
            let files = search::library(name, &options.directories, scope)?;
            named.extend(files.into_iter().map(|file| (index, file, scope)));
        }
    }
    named.sort_by_key(|(index, ..)| *index);
    let groups: Vec<_> = at("dylibs").into_iter().zip(&options.dylibs).collect();
    let mut inputs = Vec::with_capacity(named.len());
    for (index, path, scope) in named {
        let dylib = groups.iter().rev().find(|(start, _)| *start < index).map(|(_, name)| (*name).clone());
        let kind = match (kind(&path)?, scope) {
            (Kind::Archive(_), scope) => Kind::Archive(scope),
            (kind, ArchiveScope::AsDefined) => kind,
            (kind, _) => return Err(format!("{} is no archive: the {kind} can't be hidden", path.display()).into()),
        };
        inputs.push(Input { path, kind, dylib: dylib.filter(|name| name != "main") });
    }
    Ok(inputs)
}

fn kind(path: &Path) -> Result<Kind> {
    /// `e_type` of a shared object.
    const ET_DYN: u8 = 3;
    if !path.as_os_str().as_encoded_bytes().contains(&b'/') && !path.exists() && is_library_name(path) {
        // The dynamic loader knows where it is.
        return Ok(Kind::Library);
    }
    if path.extension().is_some_and(|extension| extension == "clif") {
        let text = std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
        return Ok(Kind::Clif(text));
    }
    let bytes = open(path)?;
    let bytes = match Architecture::host() {
        Some(host) => slice(&path.display().to_string(), &bytes, host)?,
        None => bytes,
    };
    Ok(match &*bytes {
        _ if is_archive(&bytes) => Kind::Archive(ArchiveScope::AsDefined),
        [0x7f, b'E', b'L', b'F', ..] if bytes.get(16) == Some(&ET_DYN) => Kind::Library,
        _ => Kind::Object(bytes),
    })
}

fn is_library_name(path: &Path) -> bool {
    path.to_string_lossy().contains(".so")
}

/// The memory that the program needs, if it is not the default: code that is not
/// position-independent has to be below 2 GiB, and code of AArch64's tiny model next to its data.
pub(super) fn memory(inputs: &[Input], entry: &str) -> Result<Option<Arc<dyn MemoryManager>>> {
    let names = SymbolStringPool::new();
    // What can't be read is told of when it is added.
    let objects = inputs.iter().filter_map(|input| match &input.kind {
        Kind::Object(bytes) => parse(&input.path.display().to_string(), bytes.clone(), &names).ok(),
        _ => None,
    });
    let mut graphs: Vec<_> = objects.collect();
    if graphs.iter().any(|graph| graph.edges().iter().any(|edge| edge.kind.is_tiny())) {
        return Ok(Some(Arc::new(PageManager::new())));
    }
    let is_low_program =
        |graphs: &[LinkGraph]| graphs.iter().any(|graph| graph.edges().iter().any(|edge| is_low(edge.kind)));
    if !is_low_program(&graphs) {
        let archives = inputs.iter().filter(|input| matches!(input.kind, Kind::Archive(_)));
        let archives: Vec<_> = archives.filter_map(|input| archive(&input.path)).collect();
        if !archives.iter().any(has_low_member) {
            return Ok(None);
        }
        // There are such members. Whether one is of the program is worth the work now.
        let mut root = LinkGraph::new("entry", Architecture::X86_64);
        root.external(names.intern(entry), 0);
        graphs.push(root);
        _ = add_members(&mut graphs, &archives, HashSet::new(), &names);
    }
    Ok(if is_low_program(&graphs) { Some(Arc::new(SlabManager::below_2_gib()?)) } else { None })
}

fn archive(path: &Path) -> Option<Archive> {
    let bytes = slice(&path.display().to_string(), &open(path).ok()?, Architecture::host()?).ok()?;
    Archive::parse(path, bytes).ok()
}

fn has_low_member(archive: &Archive) -> bool {
    let mut members = archive.members().into_iter();
    members.any(|id| archive.member(id).is_ok_and(|member| needs_low_memory(&member.object)))
}

/// Whether an address is stored in 32 bits.
fn is_low(kind: EdgeKind) -> bool {
    use orcane::linker::arch::x86_64::EdgeKind::{Pointer32, Pointer32Signed};
    matches!(kind, EdgeKind::X86_64(Pointer32 | Pointer32Signed))
}
