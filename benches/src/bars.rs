//! The bars: what Orcane promises, beside what it reaches.

use std::fmt;
use std::process::Command;
use std::time::{Duration, Instant};

use orcane::OptLevel;

use crate::Result;
use crate::measure::{Run, interleaved};
use crate::subject::Subject;
use workloads::child::Times;
use workloads::median;

const ROUNDS: usize = 15;
const LEVELS: [(OptLevel, &str); 2] = [(OptLevel::None, "none"), (OptLevel::Speed, "speed")];
/// Ways to compile a module, and whether they do what cranelift-jit does: that compiles at definition, registers no
/// unwind tables, and keeps no CLIF until it is looked up.
const WAYS: [(Subject, &str, bool); 3] = [
    (Subject::OrcaneAtDefinition, "at definition", true),
    (Subject::OrcaneUnwinding, "at definition, with unwind tables", false),
    (Subject::Orcane(0), "at lookup", false),
];
const MEBIBYTE: f64 = (1 << 20) as f64;

enum Limit {
    AtMost(f64),
    AtLeast(f64),
    /// Promised is nothing: a figure to compare with.
    Reported,
}

/// A promise, and what was measured.
pub(crate) struct Bar {
    what: String,
    measured: f64,
    limit: Limit,
}

impl Bar {
    pub(crate) fn at_most(limit: f64, what: impl Into<String>, measured: f64) -> Self {
        Self { what: what.into(), measured, limit: Limit::AtMost(limit) }
    }

    pub(crate) fn at_least(limit: f64, what: impl Into<String>, measured: f64) -> Self {
        Self { what: what.into(), measured, limit: Limit::AtLeast(limit) }
    }

    pub(crate) fn reported(what: impl Into<String>, measured: f64) -> Self {
        Self { what: what.into(), measured, limit: Limit::Reported }
    }

    pub(crate) fn what(&self) -> &str {
        &self.what
    }

    pub(crate) fn measured(&self) -> f64 {
        self.measured
    }

    /// What was measured, as text.
    pub(crate) fn figure(&self) -> String {
        number(self.measured)
    }

    /// All of it, on a line.
    pub(crate) fn to_line(&self) -> String {
        let (kind, limit) = match self.limit {
            Limit::AtMost(limit) => ("<=", limit),
            Limit::AtLeast(limit) => (">=", limit),
            Limit::Reported => ("", 0.0),
        };
        format!("{}\t{}\t{kind}\t{limit}", self.what, self.measured)
    }

    /// What [`to_line`](Self::to_line) wrote.
    pub(crate) fn from_line(line: &str) -> Result<Self> {
        let [what, measured, kind, limit] = line.split('\t').collect::<Vec<_>>()[..] else {
            return Err(format!("no bar: {line}").into());
        };
        let limit = match kind {
            "<=" => Limit::AtMost(limit.parse()?),
            ">=" => Limit::AtLeast(limit.parse()?),
            _ => Limit::Reported,
        };
        Ok(Self { what: what.to_owned(), measured: measured.parse()?, limit })
    }

    /// What was promised, and a word if that is not reached.
    pub(crate) fn promise(&self) -> (String, &'static str) {
        let promise = match self.limit {
            Limit::AtMost(limit) => format!("≤ {}", number(limit)),
            Limit::AtLeast(limit) => format!("≥ {}", number(limit)),
            Limit::Reported => String::new(),
        };
        (promise, if self.is_met() { "" } else { "**missed**" })
    }

    pub(crate) fn is_met(&self) -> bool {
        match self.limit {
            Limit::AtMost(limit) => self.measured <= limit,
            Limit::AtLeast(limit) => self.measured >= limit,
            Limit::Reported => true,
        }
    }
}

impl fmt::Display for Bar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (sign, limit) = match self.limit {
            Limit::AtMost(limit) => ("<=", limit),
            Limit::AtLeast(limit) => (">=", limit),
            Limit::Reported => return write!(f, "{:<72} {:>12}", self.what, number(self.measured)),
        };
        let verdict = if self.is_met() { "" } else { "  MISSED" };
        write!(f, "{:<72} {:>12} {sign} {:>9}{verdict}", self.what, number(self.measured), number(limit))
    }
}

fn number(value: f64) -> String {
    if value.abs() >= 1000.0 { format!("{value:.0}") } else { format!("{value:.3}") }
}

/// Instructions and memory: the same on a busy machine as on an idle one.
pub(crate) fn exact(count: usize) -> Result<Vec<Bar>> {
    let mut bars = Vec::new();
    for (level, name) in LEVELS {
        let run = |subject| Run { subject, level, count };
        let instructions = |subject| -> Result<f64> { Ok(run(subject).instructions()? as f64) };
        let build = instructions(Subject::Build)?;
        let compile = instructions(Subject::Compile)?;
        let peer = instructions(Subject::CraneliftJit)?;
        let memory = |subject| -> Result<f64> { Ok(run(subject).peak_memory()? as f64) };
        let nothing = memory(Subject::Nothing)?;
        let peer_memory = memory(Subject::CraneliftJit)? - nothing;
        for (subject, way, is_same_work) in WAYS {
            let mut bar = |limit, what: &str, measured| {
                let limit = if is_same_work { Limit::AtMost(limit) } else { Limit::Reported };
                bars.push(Bar { what: format!("{count} functions, {name}, {way}: {what}"), measured, limit });
            };
            let ours = instructions(subject)?;
            bar(1.05, "instructions / cranelift-jit's", (ours - build) / (peer - build));
            bar(20_000.0, "instructions added to each", (ours - compile) / count as f64);
            bar(1.1, "peak memory / cranelift-jit's", (memory(subject)? - nothing) / peer_memory);
        }
    }
    let one = Run { subject: Subject::Orcane(0), level: OptLevel::Speed, count: 1 };
    bars.push(Bar::at_most(8.0, "one function: resident memory, MiB", one.peak_memory()? as f64 / MEBIBYTE));
    Ok(bars)
}

/// Times: ratios of what ran in the same round, and the median of them.
pub(crate) fn timed(count: usize) -> Result<Vec<Bar>> {
    let mut bars = cold_start()?;
    for (level, name) in LEVELS {
        let times = |subject| move || Run { subject, level, count }.times();
        let seconds = |times: Times| times.total.as_secs_f64();

        for (subject, when) in [(Subject::OrcaneAtDefinition, "at definition"), (Subject::Orcane(0), "at lookup")] {
            let rounds = interleaved(ROUNDS, [&times(Subject::Build), &times(Subject::CraneliftJit), &times(subject)])?;
            let ratios = rounds.iter().map(|round| {
                let [build, peer, ours] = round.map(seconds);
                (ours - build) / (peer - build)
            });
            let what = format!("{count} functions, {name}, {when}: time / cranelift-jit's");
            bars.push(Bar::at_most(1.15, what, median(ratios)));
        }

        let two_threads = times(Subject::Orcane(2));
        let one_thread = times(Subject::Orcane(0));
        let threads = || Ok(per_second(count, two_threads()?));
        let processes = || {
            std::thread::scope(|scope| {
                let other = scope.spawn(|| one_thread().map_err(|error| error.to_string()));
                let first = one_thread()?;
                let second = other.join().map_err(|_| "a process was not started")??;
                Ok(per_second(count, first) + per_second(count, second))
            })
        };
        let rounds = interleaved(ROUNDS, [&threads, &processes])?;
        let ratios = rounds.iter().map(|[threads, processes]| threads / processes);
        let what = format!("{count} functions, {name}: two threads / two processes");
        bars.push(Bar::at_least(0.9, what, median(ratios)));
    }
    bars.push(cycle()?);
    let empty = Run { subject: Subject::EmptyJit, level: OptLevel::Speed, count: 0 };
    let microseconds = empty.times()?.total.as_secs_f64() * 1e6;
    bars.push(Bar::at_most(50.0, "an empty `Jit`, created and dropped, us", microseconds));
    Ok(bars)
}

/// A function that is added, looked up and removed, as a REPL does with what is typed: what that adds to its
/// compilation.
fn cycle() -> Result<Bar> {
    let cycles = Run { subject: Subject::Cycle, level: OptLevel::None, count: 5_000 };
    let added = (0..ROUNDS).map(|_| Ok(cycles.times()?.callable.as_secs_f64() * 1e6)).collect::<Result<Vec<_>>>()?;
    Ok(Bar::at_most(10.0, "add, look up, remove one function: us added to the compile", median(added)))
}

/// Functions a second, from a module that is built to addresses.
fn per_second(count: usize, times: Times) -> f64 {
    count as f64 / times.callable.as_secs_f64()
}

/// `1 + 2` as a whole process: Kaleidoscope's, and LLVM's interpreter's on the same program.
fn cold_start() -> Result<Vec<Bar>> {
    let kaleidoscope = std::env::current_exe()?.with_file_name("kaleidoscope");
    if !kaleidoscope.exists() {
        return Err(format!("build {} first", kaleidoscope.display()).into());
    }
    let module = std::env::temp_dir().join(format!("orcane-cold-start-{}.ll", std::process::id()));
    let ir = Command::new(&kaleidoscope).args(["--emit", "llvm-ir", "-e", "1+2"]).output()?;
    if !ir.status.success() {
        return Err(String::from_utf8_lossy(&ir.stderr).into());
    }
    std::fs::write(&module, ir.stdout)?;
    let ours = || duration(Command::new(&kaleidoscope).args(["-e", "1+2"]));
    let llvm = || duration(Command::new("lli-22").arg(&module));
    // There is no `lli` that is linked with a static library: this one loads the shared library and does no more.
    let loading = || duration(Command::new("lli-22").arg("--version"));
    let rounds = interleaved(2 * ROUNDS, [&ours, &llvm, &loading]);
    std::fs::remove_file(&module)?;
    let rounds: Vec<_> = rounds?.into_iter().map(|round| round.map(|time| time.as_secs_f64() * 1e3)).collect();
    let median_of = |figure: &dyn Fn(&[f64; 3]) -> f64| median(rounds.iter().map(figure));
    Ok(vec![
        Bar::at_most(5.0, "cold start: `kaleidoscope -e 1+2`, ms", median_of(&|[ours, ..]| *ours)),
        Bar::reported("cold start: `lli-22` on the same program, ms", median_of(&|[_, llvm, _]| *llvm)),
        Bar::reported("cold start: `lli-22 --version`, ms", median_of(&|[.., loading]| *loading)),
        Bar::at_most(0.25, "cold start: time / lli-22's", median_of(&|[ours, llvm, _]| ours / llvm)),
        Bar::reported(
            "cold start: time / what lli-22 takes beyond `lli-22 --version`",
            median_of(&|[ours, llvm, loading]| ours / (llvm - loading)),
        ),
    ])
}

/// From the start of a process to its end.
fn duration(command: &mut Command) -> Result<Duration> {
    let start = Instant::now();
    let output = command.output()?;
    let duration = start.elapsed();
    if output.status.success() { Ok(duration) } else { Err(format!("{command:?}: {}", output.status).into()) }
}
