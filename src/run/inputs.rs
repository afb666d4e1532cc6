//! What the program is made of, in the order in which it is named.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::ArgMatches;
use orcane::linker::SymbolStringPool;
use orcane::linker::format::{open, parse};
use orcane::linker::graph::{EdgeKind, ObjectBytes};
use orcane::linker::memory::{MemoryManager, SlabManager};

use super::Run;
use crate::Result;

/// Where the system's libraries are.
const SYSTEM: [&str; 6] = [
    "/usr/local/lib",
    #[cfg(target_arch = "x86_64")]
    "/lib/x86_64-linux-gnu",
    #[cfg(target_arch = "x86_64")]
    "/usr/lib/x86_64-linux-gnu",
    #[cfg(not(target_arch = "x86_64"))]
    "/lib/aarch64-linux-gnu",
    #[cfg(not(target_arch = "x86_64"))]
    "/usr/lib/aarch64-linux-gnu",
    "/lib64",
    "/lib",
    "/usr/lib",
];

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
    Archive,
    Library,
    Clif(String),
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Object(_) => "object",
            Self::Archive => "archive",
            Self::Library => "library",
            Self::Clif(_) => "CLIF",
        })
    }
}

/// The files that the command line names, each in its dylib.
pub(super) fn gather(options: &Run, matches: &ArgMatches) -> Result<Vec<Input>> {
    let at = |id: &str| matches.indices_of(id).map(Iterator::collect::<Vec<_>>).unwrap_or_default();
    let mut named: Vec<(usize, Result<PathBuf>)> = Vec::new();
    named.extend(at("files").into_iter().zip(options.files.iter().map(|file| Ok(file.clone()))));
    let libraries = options.libraries.iter().map(|name| find_library(name, &options.directories));
    named.extend(at("libraries").into_iter().zip(libraries));
    named.sort_by_key(|(index, _)| *index);
    let groups: Vec<_> = at("dylibs").into_iter().zip(&options.dylibs).collect();
    let mut inputs = Vec::with_capacity(named.len());
    for (index, path) in named {
        let dylib = groups.iter().rev().find(|(start, _)| *start < index).map(|(_, name)| (*name).clone());
        let path = path?;
        let kind = kind(&path)?;
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
    Ok(match &*bytes {
        [b'!', b'<', b'a' | b't', b'r' | b'h', ..] => Kind::Archive,
        [0x7f, b'E', b'L', b'F', ..] if bytes.get(16) == Some(&ET_DYN) => Kind::Library,
        _ => Kind::Object(bytes),
    })
}

fn is_library_name(path: &Path) -> bool {
    path.to_string_lossy().contains(".so")
}

/// The file of a library: a shared one rather than an archive in the same directory.
fn find_library(name: &str, directories: &[PathBuf]) -> Result<PathBuf> {
    let candidates = |directory: &Path| ["so", "a"].map(|suffix| directory.join(format!("lib{name}.{suffix}")));
    for directory in directories.iter().map(PathBuf::as_path).chain(SYSTEM.iter().map(Path::new)) {
        for path in candidates(directory) {
            // What is text is for static linkers; the loader has the library itself.
            if std::fs::read(&path).is_ok_and(|bytes| bytes.starts_with(b"\x7fELF") || bytes.starts_with(b"!<")) {
                return Ok(path);
            }
        }
    }
    // Without the files for developers, there may be the library, with its version.
    for directory in directories.iter().map(PathBuf::as_path).chain(SYSTEM.iter().map(Path::new)) {
        let prefix = format!("lib{name}.so.");
        let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
        let mut versions: Vec<_> =
            entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix)).collect();
        versions.sort_by_key(std::fs::DirEntry::file_name);
        if let Some(entry) = versions.first() {
            return Ok(entry.path());
        }
    }
    Err(format!("there is no library '{name}' (lib{name}.so, lib{name}.a)").into())
}

/// The memory that the objects need, if it is not the default: code that is not
/// position-independent has to be below 2 GiB.
pub(super) fn memory(inputs: &[Input]) -> Result<Option<Arc<dyn MemoryManager>>> {
    let names = SymbolStringPool::new();
    for input in inputs {
        let Kind::Object(bytes) = &input.kind else { continue };
        // What can't be read is told of when it is added.
        let Ok(graph) = parse(&input.path.display().to_string(), bytes.clone(), &names) else { continue };
        if graph.edges().iter().any(|edge| is_low(edge.kind)) {
            return Ok(Some(Arc::new(SlabManager::below_2_gib()?)));
        }
    }
    Ok(None)
}

/// Whether an address is stored in 32 bits.
fn is_low(kind: EdgeKind) -> bool {
    use orcane::linker::arch::x86_64::EdgeKind::{Pointer32, Pointer32Signed};
    matches!(kind, EdgeKind::X86_64(Pointer32 | Pointer32Signed))
}
