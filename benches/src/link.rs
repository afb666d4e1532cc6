//! How a process that links an object reports.

use std::fs;
use std::hint::black_box;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use crate::Result;

/// The first argument of a process that links an object some times and prints the least nanoseconds of a link:
/// `child-link OBJECT ROUNDS`.
pub const LINK: &str = "child-link";
/// The first argument of one whose memory [`peak_memory`] watches: `child-link-with-memory OBJECT SMALL`, where a small
/// object with a little of everything is linked before, so that the linker's code and a heap are there.
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
        return watched(|| link(black_box(&bytes))).map(|()| String::new());
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

/// Does what [`peak_memory`] watches in the process that started this one.
///
/// # Errors
///
/// The work's, or the system's: there has to be such a process.
fn watched(work: impl FnOnce() -> Result<()>) -> Result<()> {
    trace(libc::PTRACE_TRACEME, 0)?;
    stop()?;
    work()?;
    stop()
}

fn stop() -> Result<()> {
    // SAFETY: it takes no pointers.
    succeeds(unsafe { libc::raise(libc::SIGSTOP) }.into())
}

/// Starts a process that links an object as [`LINK_WITH_MEMORY`] says: the bytes of memory that the link has at most.
///
/// The system's own record (`VmHWM`) would be some hundred kilobytes wrong, which is much of what is measured: it counts each
/// kind of memory in batches of 32 pages a processor. Memory only goes back by system calls, so there is never more of it than
/// when one begins, where the process is stopped and its pages are counted.
///
/// # Errors
///
/// When the process fails, or the system does not let it be watched.
pub fn peak_memory(command: &mut Command) -> Result<u64> {
    let mut child = command.stdout(Stdio::null()).spawn()?;
    let peak = watch(child.id());
    if peak.is_err() {
        // It may have ended.
        _ = child.kill();
    }
    let status = child.wait()?;
    let peak = peak?;
    if status.success() { Ok(peak) } else { Err(format!("{command:?}: {status}").into()) }
}

fn watch(process: u32) -> Result<u64> {
    let id = libc::pid_t::try_from(process)?;
    let (mut before, mut peak) = (None, 0);
    loop {
        let mut status = 0;
        // SAFETY: there is room for the status.
        succeeds(unsafe { libc::waitpid(id, &raw mut status, 0) }.into())?;
        if !libc::WIFSTOPPED(status) {
            return Err("the process ended before the link did".into());
        }
        let held = resident(process)?;
        peak = peak.max(held);
        match (libc::WSTOPSIG(status), before) {
            (libc::SIGTRAP, Some(_)) => {}
            (libc::SIGSTOP, None) => (before, peak) = (Some(held), held),
            (libc::SIGSTOP, Some(before)) => {
                trace(libc::PTRACE_DETACH, id)?;
                return Ok(peak - before);
            }
            (signal, _) => return Err(format!("the process was stopped by signal {signal}").into()),
        }
        trace(libc::PTRACE_SYSCALL, id)?;
    }
}

fn trace(request: libc::c_uint, process: libc::pid_t) -> Result<()> {
    let none = std::ptr::null_mut::<libc::c_void>();
    // SAFETY: the requests that are made here take no addresses.
    succeeds(unsafe { libc::ptrace(request, process, none, none) })
}

fn succeeds(result: libc::c_long) -> Result<()> {
    if result < 0 { Err(std::io::Error::last_os_error().into()) } else { Ok(()) }
}

/// Bytes of a process's memory, page by page.
fn resident(process: u32) -> Result<u64> {
    let text = fs::read_to_string(format!("/proc/{process}/smaps_rollup"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("Rss:")).ok_or("no Rss in smaps_rollup")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? * 1024)
}
