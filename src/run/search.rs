//! Where libraries are: directories of the system and of its compiler, and scripts that stand for other files.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use orcane::ArchiveScope;
use orcane::linker::format::archive::is_archive;
use orcane::linker::format::macho::is_universal;

use crate::Result;

const ARCHITECTURE: &str = if cfg!(target_arch = "x86_64") { "x86_64" } else { "aarch64" };

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

/// Where they are for a cross compiler, and those of a distribution without multiarch.
const OTHER_SYSTEM: [&str; 2] = [
    "/usr/lib64",
    if cfg!(target_arch = "x86_64") { "/usr/x86_64-linux-gnu/lib" } else { "/usr/aarch64-linux-gnu/lib" },
];

/// Where GCC keeps what is its own: in a directory of its version, in one of the target.
const COMPILERS: [&str; 3] = ["/usr/lib/gcc", "/usr/lib64/gcc", "/usr/lib/gcc-cross"];

/// Scripts name scripts at most so deep.
const DEPTH: u32 = 4;

/// The directories in which libraries are looked for, after those of the command line.
fn directories() -> Vec<PathBuf> {
    let mut directories: Vec<_> = SYSTEM.iter().chain(&OTHER_SYSTEM).map(PathBuf::from).collect();
    directories.extend(compiler_directories());
    directories
}

/// Those of the compilers for this machine, the newest first.
fn compiler_directories() -> Vec<PathBuf> {
    let is_target = |name: &str| name.starts_with(&format!("{ARCHITECTURE}-")) && name.contains("linux");
    let targets = COMPILERS.iter().flat_map(|directory| entries(Path::new(directory)));
    let targets = targets.filter(|target| is_target(&target.file_name().unwrap_or_default().to_string_lossy()));
    let mut versions: Vec<_> = targets.flat_map(|target| entries(&target)).collect();
    let number = |path: &PathBuf| {
        let name = path.file_name().map(OsStr::to_string_lossy).unwrap_or_default();
        name.split('.').map(|part| part.parse::<u32>().unwrap_or(0)).collect::<Vec<_>>()
    };
    versions.sort_by_key(number);
    versions.reverse();
    versions
}

fn entries(directory: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

/// What compilers link with everything after all else, where it is installed: what processors can't do in one instruction
/// or have to be asked for, and what the C library does not share.
pub(super) fn compilers_archives() -> Vec<PathBuf> {
    let first = |name: &str, directories: Vec<PathBuf>| {
        directories.into_iter().map(|directory| directory.join(name)).find(|path| path.is_file())
    };
    [first("libgcc.a", compiler_directories()), first("libc_nonshared.a", directories())]
        .into_iter()
        .flatten()
        .collect()
}

/// The files of a library: a shared one rather than an archive in the same directory, unless it is to be hidden; or what a
/// script names that is there in its place.
pub(super) fn library(name: &str, own: &[PathBuf], scope: ArchiveScope) -> Result<Vec<PathBuf>> {
    let search = Search { directories: own.iter().cloned().chain(directories()).collect(), scope };
    let mut files = search.library(name, DEPTH)?;
    files.retain(|file| !is_the_processs(file));
    Ok(files)
}

/// Whether it is the C library or the loader. The process has its own, which everything finds; a second one, of another
/// compiler, would know nothing of its threads.
fn is_the_processs(file: &Path) -> bool {
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    name == "libc.so.6" || name.starts_with("ld-linux")
}

struct Search {
    directories: Vec<PathBuf>,
    scope: ArchiveScope,
}

impl Search {
    fn library(&self, name: &str, depth: u32) -> Result<Vec<PathBuf>> {
        let suffixes: &[_] = if self.scope == ArchiveScope::Hidden { &["a"] } else { &["so", "a"] };
        for directory in &self.directories {
            for suffix in suffixes {
                let path = directory.join(format!("lib{name}.{suffix}"));
                let Ok(bytes) = std::fs::read(&path) else { continue };
                if bytes.starts_with(b"\x7fELF") || is_archive(&bytes) || is_universal(&bytes) {
                    return Ok(vec![path]);
                }
                if let Some(script) = std::str::from_utf8(&bytes).ok().map(script).filter(|script| !script.is_empty()) {
                    return self.named(&path, &script, depth);
                }
            }
        }
        // Without the files for developers, there may be the library, with its version.
        for directory in &self.directories {
            let prefix = format!("lib{name}.so.");
            let is_version =
                |path: &PathBuf| path.file_name().is_some_and(|file| file.to_string_lossy().starts_with(&prefix));
            if let Some(path) = entries(directory).into_iter().filter(is_version).min() {
                return Ok(vec![path]);
            }
        }
        Err(format!("there is no library '{name}' (lib{name}.so, lib{name}.a)").into())
    }

    /// The files that a script names.
    fn named(&self, script: &Path, words: &[Word<'_>], depth: u32) -> Result<Vec<PathBuf>> {
        let depth = depth.checked_sub(1).ok_or_else(|| format!("{}: the script leads nowhere", script.display()))?;
        let mut files = Vec::new();
        for Word { text, is_optional } in words {
            let found = match text.strip_prefix("-l") {
                Some(name) => self.library(name, depth),
                None => self.file(script, text).map(|path| vec![path]),
            };
            match found {
                Ok(found) => files.extend(found),
                Err(_) if *is_optional => {}
                Err(error) => return Err(format!("{}: {error}", script.display()).into()),
            }
        }
        Ok(files)
    }

    fn file(&self, script: &Path, name: &str) -> Result<PathBuf> {
        let beside = script.parent().map(|directory| directory.join(name));
        let elsewhere = self.directories.iter().map(|directory| directory.join(name));
        let found = beside.into_iter().chain(elsewhere).find(|path| path.is_file());
        found.ok_or_else(|| format!("there is no '{name}'").into())
    }
}

/// A file, or a library as in `-lname`, that a script names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Word<'a> {
    text: &'a str,
    /// Whether it is only for programs that need it.
    is_optional: bool,
}

/// What a linker script names in `GROUP` and `INPUT` ("The GNU linker", 3.4.2).
fn script(text: &str) -> Vec<Word<'_>> {
    let mut words = Vec::new();
    // The commands whose parentheses are open.
    let mut open = Vec::new();
    let mut last = "";
    for token in tokens(text) {
        match token {
            "(" => open.push(last),
            ")" => _ = open.pop(),
            "AS_NEEDED" | "," | ";" => {}
            text if matches!(open.first(), Some(&("GROUP" | "INPUT"))) => {
                words.push(Word { text: text.trim_matches('"'), is_optional: open.contains(&"AS_NEEDED") });
            }
            _ => {}
        }
        last = token;
    }
    words
}

/// Words and marks, without comments.
fn tokens(mut text: &str) -> Vec<&str> {
    let mut tokens = Vec::new();
    loop {
        text = text.trim_start();
        if let Some(comment) = text.strip_prefix("/*") {
            text = comment.split_once("*/").map_or("", |(_, rest)| rest);
            continue;
        }
        let ends = |char: char| char.is_whitespace() || matches!(char, '(' | ')' | ',' | ';');
        let length = match text.find(ends) {
            Some(0) => 1,
            Some(length) => length,
            None if text.is_empty() => return tokens,
            None => text.len(),
        };
        let (token, rest) = text.split_at(length);
        tokens.push(token);
        text = rest;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_names_files_and_libraries() {
        let text = "/* GNU ld script (GROUP) */\nOUTPUT_FORMAT(elf64-x86-64)\nGROUP ( /lib/libc.so.6 -lgcc,AS_NEEDED (\"ld.so\" ) )INPUT(x.a)";
        let found: Vec<_> = script(text).iter().map(|word| (word.text, word.is_optional)).collect();
        assert_eq!(found, [("/lib/libc.so.6", false), ("-lgcc", false), ("ld.so", true), ("x.a", false)]);
        assert!(script("TARGET(elf) no script (").is_empty());
    }
}
