//! What Linux's `perf` reads of compiled code: a map of names, or a dump of code with lines and
//! unwind information (`tools/perf/Documentation/jit-interface.txt` and `jitdump-specification.txt`
//! of the kernel).
//!
//! Files are the process's: all JITs that write to the same one share it. What is removed stays
//! in them, as samples were taken of it.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use jit_linker::arch::Architecture;

use super::code::{LinkedCode, LinkedFunction};
use super::debug::lines::{self, Line};
use crate::sync::{Arc, Mutex, lock};

/// What is written for `perf`.
///
/// ```
/// use jit_core::{Jit, Profiler};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let folder = std::env::temp_dir();
/// let jit = Jit::builder().profiler(Profiler::JitDump(folder.clone())).build()?;
/// jit.define_closure("double", |n: i64| 2 * n)?;
/// jit.lookup_address("double")?;
/// let file = folder.join(format!("jit-{}.dump", std::process::id()));
/// assert_eq!(std::fs::read(&file)?[..4], 0x4a69_5444u32.to_ne_bytes());
/// # std::fs::remove_file(file)?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Profiler {
    /// What the environment variable `ORCANE_PROFILER` asks for, `perf-map` or `jitdump` (into
    /// the folder that `JITDUMPDIR` names, or the current one); nothing by default.
    #[default]
    Environment,
    /// Nothing.
    Off,
    /// Names of functions, to `/tmp/perf-PID.map`.
    PerfMap,
    /// Functions with code, lines and unwind information, to `jit-PID.dump` in a folder. They
    /// are joined with the samples by `perf inject --jit`; the samples must have been taken with
    /// `perf record -k mono`.
    JitDump(PathBuf),
}

impl Profiler {
    /// Opens the file.
    pub(crate) fn open(&self) -> io::Result<Option<Arc<Output>>> {
        match self {
            Self::Off => Ok(None),
            Self::PerfMap => {
                let path = format!("/tmp/perf-{}.map", std::process::id());
                Output::at(Path::new(&path), Format::Map).map(Some)
            }
            Self::JitDump(folder) => {
                let path = folder.join(format!("jit-{}.dump", std::process::id()));
                Output::at(&path, Format::Dump).map(Some)
            }
            Self::Environment => match std::env::var("ORCANE_PROFILER").as_deref() {
                Ok("perf-map") => Self::PerfMap.open(),
                Ok("jitdump") => {
                    let folder = std::env::var_os("JITDUMPDIR").map_or_else(|| PathBuf::from("."), PathBuf::from);
                    Self::JitDump(folder).open()
                }
                Ok(other) if !other.is_empty() => {
                    Err(io::Error::other(format!("ORCANE_PROFILER is '{other}', not 'perf-map' or 'jitdump'")))
                }
                _ => Ok(None),
            },
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Map,
    Dump,
}

/// A file that is being written.
#[derive(Debug)]
pub(crate) struct Output {
    format: Format,
    writing: Mutex<Writing>,
}

#[derive(Debug)]
struct Writing {
    file: File,
    /// The number of the next function.
    next: u64,
}

/// The files that this process writes.
static OUTPUTS: Mutex<Option<HashMap<PathBuf, Arc<Output>>>> = Mutex::new(None);

impl Output {
    fn at(path: &Path, format: Format) -> io::Result<Arc<Self>> {
        let mut outputs = lock(&OUTPUTS);
        let outputs = outputs.get_or_insert_default();
        if let Some(output) = outputs.get(path) {
            return Ok(Arc::clone(output));
        }
        let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path)?;
        if format == Format::Dump {
            file.write_all(&header())?;
            announce(&file)?;
        }
        let output = Arc::new(Self { format, writing: Mutex::new(Writing { file, next: 0 }) });
        outputs.insert(path.to_owned(), Arc::clone(&output));
        Ok(output)
    }

    /// Whether it is to know where in the source code comes from.
    pub(crate) fn wants_lines(&self) -> bool {
        self.format == Format::Dump
    }

    /// Writes what `perf` is to know of code, which is in place.
    pub(crate) fn tell(&self, code: &LinkedCode) {
        let mut writing = lock(&self.writing);
        let mut bytes = Vec::new();
        let lines = match self.format {
            Format::Map => Vec::new(),
            // SAFETY: the notes are where the code is, which whoever calls this holds.
            Format::Dump => unsafe { lines::of_notes(&code.notes) },
        };
        for function in &code.functions {
            match self.format {
                Format::Map => {
                    let LinkedFunction { start, size, name, .. } = function;
                    bytes.extend_from_slice(format!("{start:x} {size:x} {}\n", one_line(name)).as_bytes());
                }
                Format::Dump => {
                    add_lines(&mut bytes, code, function, &lines);
                    add_unwind(&mut bytes, code, function);
                    add_code(&mut bytes, function, writing.next);
                    writing.next += 1;
                }
            }
        }
        // At once: another process reads it, and this one may end at any time.
        if let Err(error) = writing.file.write_all(&bytes) {
            tracing::warn!(%error, "cannot write for the profiler");
        }
    }
}

/// A name without what ends it.
fn one_line(name: &str) -> String {
    name.replace(['\n', '\0'], " ")
}

const CODE_LOAD: u32 = 0;
const DEBUG_INFO: u32 = 2;
const UNWINDING_INFO: u32 = 4;

fn header() -> Vec<u8> {
    const MAGIC: u32 = 0x4a69_5444;
    const VERSION: u32 = 1;
    const SIZE: u32 = 40;
    let machine: u32 = match Architecture::host() {
        Some(Architecture::X86_64) => 62,
        _ => 183,
    };
    let mut header = Vec::new();
    for word in [MAGIC, VERSION, SIZE, machine, 0, std::process::id()] {
        header.extend_from_slice(&word.to_le_bytes());
    }
    header.extend_from_slice(&now().to_le_bytes());
    header.extend_from_slice(&0u64.to_le_bytes());
    header
}

/// Nanoseconds of the clock that samples are taken with.
fn now() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is written.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Maps the file executable, which is how `perf record` learns of it. The mapping stays.
fn announce(file: &File) -> io::Result<()> {
    use std::os::fd::AsRawFd;
    let protection = libc::PROT_READ | libc::PROT_EXEC;
    // SAFETY: a new mapping of a page that nobody uses.
    let mapping = unsafe { libc::mmap(std::ptr::null_mut(), 4096, protection, libc::MAP_PRIVATE, file.as_raw_fd(), 0) };
    if mapping == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn record(to: &mut Vec<u8>, id: u32, body: &[u8]) {
    const HEADER: usize = 16;
    to.extend_from_slice(&id.to_le_bytes());
    to.extend_from_slice(&((HEADER + body.len()) as u32).to_le_bytes());
    to.extend_from_slice(&now().to_le_bytes());
    to.extend_from_slice(body);
}

fn add_code(to: &mut Vec<u8>, function: &LinkedFunction, index: u64) {
    let mut body = Vec::new();
    // SAFETY: asks for the thread's number.
    let thread = unsafe { libc::gettid() };
    body.extend_from_slice(&std::process::id().to_le_bytes());
    body.extend_from_slice(&thread.to_le_bytes());
    for word in [function.start, function.start, u64::from(function.size), index] {
        body.extend_from_slice(&word.to_le_bytes());
    }
    body.extend_from_slice(one_line(&function.name).as_bytes());
    body.push(0);
    let code = std::ptr::with_exposed_provenance::<u8>(function.start as usize);
    // SAFETY: the code is in place and is not changed; whoever calls this holds its memory.
    body.extend_from_slice(unsafe { std::slice::from_raw_parts(code, function.size as usize) });
    record(to, CODE_LOAD, &body);
}

/// Adds where a function comes from: from its module's source, or of an object, among its `lines`.
fn add_lines(to: &mut Vec<u8>, code: &LinkedCode, function: &LinkedFunction, lines: &[Line]) {
    let mut body = function.start.to_le_bytes().to_vec();
    let count = body.len();
    body.extend_from_slice(&0u64.to_le_bytes());
    let mut entries = 0u64;
    let mut add = |address: u64, line: u32, file: &str| {
        body.extend_from_slice(&address.to_le_bytes());
        body.extend_from_slice(&line.to_le_bytes());
        body.extend_from_slice(&0u32.to_le_bytes());
        body.extend_from_slice(one_line(file).as_bytes());
        body.push(0);
        entries += 1;
    };
    if let Some(source) = &code.source {
        for (start, _, bits) in &function.details.lines {
            let (line, _) = source.position(*bits);
            add(function.start + u64::from(*start), line, &source.path().to_string_lossy());
        }
    }
    let place = |address| lines.partition_point(|line| line.address < address);
    for line in &lines[place(function.start)..place(function.start + u64::from(function.size))] {
        add(line.address, line.line, &line.file);
    }
    if entries > 0 {
        body[count..count + 8].copy_from_slice(&entries.to_le_bytes());
        record(to, DEBUG_INFO, &body);
    }
}

/// `.eh_frame` and after it `.eh_frame_hdr`, as they will lie behind the code in the file that
/// `perf inject` makes: from the next multiple of 8 on.
fn add_unwind(to: &mut Vec<u8>, code: &LinkedCode, function: &LinkedFunction) {
    const RELATIVE_4: u8 = 0x1b;
    const UNSIGNED_4: u8 = 0x03;
    const DATA_RELATIVE_4: u8 = 0x3b;
    let entry = code.frames.as_ref().and_then(|frames| frames.entry_at(function.start, RELATIVE_4));
    let Some((common, instructions)) = entry else { return };
    let distance = function.size.next_multiple_of(8) as i32;
    let mut frame = Vec::new();
    let entry = |to: &mut Vec<u8>, body: &[u8]| {
        let length = (body.len() as u32).next_multiple_of(4);
        to.extend_from_slice(&length.to_le_bytes());
        to.extend_from_slice(body);
        to.resize(to.len().next_multiple_of(4), 0);
    };
    entry(&mut frame, &[&[0; 4], &*common].concat());
    let at = frame.len() as i32;
    let mut body = Vec::new();
    body.extend_from_slice(&(at + 4).to_le_bytes());
    body.extend_from_slice(&(-(distance + at + 8)).to_le_bytes());
    body.extend_from_slice(&function.size.to_le_bytes());
    body.push(0);
    body.extend_from_slice(instructions);
    entry(&mut frame, &body);
    frame.extend_from_slice(&[0; 4]);
    frame.resize(frame.len().next_multiple_of(8), 0);

    let header = frame.len() as i32;
    let mut table = vec![1, RELATIVE_4, UNSIGNED_4, DATA_RELATIVE_4];
    for word in [-(header + 4), 1, -(distance + header), at - header] {
        table.extend_from_slice(&word.to_le_bytes());
    }
    let mut body = Vec::new();
    let size = (frame.len() + table.len()) as u64;
    for word in [size, table.len() as u64, 0] {
        body.extend_from_slice(&word.to_le_bytes());
    }
    body.extend_from_slice(&frame);
    body.extend_from_slice(&table);
    record(to, UNWINDING_INFO, &body);
}
