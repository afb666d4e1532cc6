//! The run time of compiled code: how each code generator runs the same programs.

use std::fmt;
use std::time::Instant;

use crate::Result;
use crate::programs::{MEMORY, Program};

/// The first argument of a process that runs a program and prints its [`RunTime`].
pub const QUALITY: &str = "quality";

/// What running a program gave.
#[derive(Clone, Copy, Debug)]
pub struct RunTime {
    /// The least of several runs, in nanoseconds.
    pub nanoseconds: f64,
    /// What the program computed.
    pub result: i64,
}

/// Runs `main` of a program, at an address, several times.
#[must_use]
pub fn measure(program: Program, main: u64) -> RunTime {
    // SAFETY: `Program::functions` gives `main` this signature; who compiled it keeps it alive.
    let main = unsafe { std::mem::transmute::<usize, extern "C" fn(i64, *mut u8) -> i64>(main as usize) };
    let mut memory = vec![0u64; MEMORY / 8];
    let mut best = RunTime { nanoseconds: f64::INFINITY, result: 0 };
    for _ in 0..7 {
        let start = Instant::now();
        let result = main(program.size, memory.as_mut_ptr().cast());
        best = RunTime { nanoseconds: best.nanoseconds.min(start.elapsed().as_nanos() as f64), result };
    }
    best
}

impl fmt::Display for RunTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.nanoseconds, self.result)
    }
}

impl std::str::FromStr for RunTime {
    type Err = Box<dyn std::error::Error>;

    fn from_str(text: &str) -> Result<Self> {
        let (nanoseconds, result) = text.trim().split_once(' ').ok_or("expected two numbers")?;
        Ok(Self { nanoseconds: nanoseconds.parse()?, result: result.parse()? })
    }
}
