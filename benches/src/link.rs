//! How a process that links an object reports.

use std::fs;
use std::hint::black_box;
use std::path::Path;
use std::time::Instant;

use crate::Result;

/// The first argument of a process that links an object some times and prints the least nanoseconds of a link:
/// `child-link OBJECT ROUNDS`.
pub const LINK: &str = "child-link";
/// The first argument of one that prints the most memory that a link has beside the object: `child-link-with-memory OBJECT
/// SMALL`, where a small object is linked before, so that code and heap are there.
pub const LINK_WITH_MEMORY: &str = "child-link-with-memory";

/// Whether arguments are those of such a process.
#[must_use]
pub fn is_link(arguments: &[String]) -> bool {
    arguments.first().is_some_and(|mode| mode == LINK || mode == LINK_WITH_MEMORY)
}

/// Does what the arguments of the process say. An object's bytes become what `link` takes, once.
///
/// # Errors
///
/// The linker's, or the system's.
pub fn run<T>(
    arguments: &[String],
    object: impl Fn(Vec<u8>) -> T,
    mut link: impl FnMut(&T) -> Result<()>,
) -> Result<String> {
    let [mode, file, last] = arguments else { return Err("expected MODE OBJECT and ROUNDS or SMALL".into()) };
    let bytes = object(fs::read(file)?);
    if mode == LINK_WITH_MEMORY {
        link(&object(fs::read(Path::new(last))?))?;
        let before = memory("VmRSS:")?;
        // The most memory from now on.
        fs::write("/proc/self/clear_refs", "5")?;
        link(black_box(&bytes))?;
        return Ok((memory("VmHWM:")?.saturating_sub(before)).to_string());
    }
    let mut least = u128::MAX;
    for _ in 0..last.parse::<u32>()? {
        let start = Instant::now();
        link(black_box(&bytes))?;
        least = least.min(start.elapsed().as_nanos());
    }
    Ok(least.to_string())
}

/// The address that every external symbol of an object is said to have: one of the C library.
#[must_use]
pub fn external() -> u64 {
    libc::abort as *const () as u64
}

fn memory(field: &str) -> Result<u64> {
    let text = fs::read_to_string("/proc/self/status")?;
    let line = text.lines().find_map(|line| line.strip_prefix(field)).ok_or("no such field")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? * 1024)
}
