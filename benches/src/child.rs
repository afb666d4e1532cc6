//! What a process that runs one subject prints.

use std::fs::File;
use std::io::Read;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::Result;

/// The first argument of a process that runs a subject and prints its [`Times`].
pub const CHILD: &str = "child";
/// As [`CHILD`], but prints peak memory, whose sampling would disturb the time.
pub const CHILD_WITH_MEMORY: &str = "child-with-memory";

/// As [`CHILD`], but prints the memory that is held when it is done: the subject keeps what it made.
pub const CHILD_WITH_HELD_MEMORY: &str = "child-with-held-memory";

/// Whether a process was started to run a subject.
#[must_use]
pub fn is_child(mode: &str) -> bool {
    [CHILD, CHILD_WITH_MEMORY, CHILD_WITH_HELD_MEMORY].contains(&mode)
}

/// How long a subject took.
#[derive(Clone, Copy, Debug, Default)]
pub struct Times {
    /// From nothing to every function callable.
    pub total: Duration,
    /// The part after the last function was built and defined.
    pub callable: Duration,
}

/// Runs a subject, and gives what the process that was started as `mode` prints: nanoseconds, or bytes.
///
/// # Errors
///
/// The subject's, or the system's.
pub fn report(mode: &str, subject: impl FnOnce() -> Result<Times>) -> Result<String> {
    if mode == CHILD_WITH_MEMORY {
        let (result, peak) = with_peak_memory(subject);
        result?;
        return Ok(peak?.to_string());
    }
    let Times { total, callable } = subject()?;
    if mode == CHILD_WITH_HELD_MEMORY {
        // SAFETY: it takes no pointers.
        unsafe { libc::malloc_trim(0) };
        return Ok(memory()?.to_string());
    }
    Ok(format!("{} {}", total.as_nanos(), callable.as_nanos()))
}

fn with_peak_memory<T>(work: impl FnOnce() -> T) -> (T, Result<u64>) {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let sampler = scope.spawn(|| {
            let mut peak = 0;
            while !done.load(Ordering::Acquire) {
                peak = peak.max(memory().map_err(|error| error.to_string())?);
                std::thread::sleep(Duration::from_millis(1));
            }
            Ok::<_, String>(peak)
        });
        let result = work();
        let last = memory();
        done.store(true, Ordering::Release);
        let sampled = sampler.join().unwrap_or_else(|_| Err("the sampler panicked".to_owned()));
        let peak = sampled.map_err(Into::into).and_then(|peak| Ok(peak.max(last?)));
        (result, peak)
    })
}

/// Bytes of this process, shared ones by their part. Allocates nothing: it would show in what it measures.
///
/// # Errors
///
/// When the system does not say.
pub fn memory() -> Result<u64> {
    let mut buffer = [0; 2048];
    let length = File::open("/proc/self/smaps_rollup")?.read(&mut buffer)?;
    let text = std::str::from_utf8(&buffer[..length])?;
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:")).ok_or("no Pss in smaps_rollup")?;
    let kibibytes: u64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kibibytes * 1024)
}
