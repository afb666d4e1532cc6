//! The bars of compiled code's run time.

use std::cell::Cell;
use std::process::Command;

use orcane::{InlineSmallFunctions, Jit, OptLevel};
use workloads::programs::{MAIN, PROGRAMS, Program};
use workloads::quality::{self, QUALITY, RunTime};
use workloads::{self, median};

use crate::Result;
use crate::bars::Bar;
use crate::measure::in_turns;
use crate::subject::jit_module;

/// The code generators: the program that has each, and its name there.
pub(crate) const GENERATORS: [(&str, &str); 8] = [
    ("benches", "orcane-none"),
    ("benches", "orcane-speed"),
    ("benches", INLINING),
    ("benches", "cranelift-jit"),
    ("llvm-peer", "llvm-o0"),
    ("llvm-peer", "llvm-default"),
    ("llvm-peer", "llvm-o2-scalar"),
    ("llvm-peer", "llvm-o2"),
];
/// At `speed`, and with the inliner: LLVM's O2 has one too, its default code generation has none.
const INLINING: &str = "orcane-inlining";
/// Some programs run at one of two speeds, by where their memory and code come to lie.
const ROUNDS: usize = 15;

/// Compiles a program by one of those that are in this process, and runs it.
pub(crate) fn run(program: &str, generator: &str) -> Result<RunTime> {
    let program = Program::named(program)?;
    let level = match generator {
        "orcane-none" => OptLevel::None,
        "orcane-speed" | INLINING => OptLevel::Speed,
        "cranelift-jit" => return by_cranelift_jit(program),
        other => return Err(format!("no code generator {other}").into()),
    };
    let mut jit = Jit::builder().opt_level(level).verifier(false);
    if generator == INLINING {
        jit = jit.clif_transform(InlineSmallFunctions::default());
    }
    let jit = jit.build()?;
    let mut module = jit.module(program.name);
    program.define(&mut module)?;
    jit.add_module(module)?;
    Ok(quality::measure(program, jit.lookup_address(MAIN)?))
}

fn by_cranelift_jit(program: Program) -> Result<RunTime> {
    let mut module = jit_module(OptLevel::Speed)?;
    let main = program.define(&mut module)?;
    module.finalize_definitions()?;
    Ok(quality::measure(program, module.get_finalized_function(main) as u64))
}

/// A program's run times in microseconds: of each of [`GENERATORS`], round by round.
pub(crate) struct Row {
    pub(crate) program: &'static str,
    times: Vec<Vec<f64>>,
}

/// Runs everything everywhere.
pub(crate) fn all() -> Result<Vec<Row>> {
    PROGRAMS.iter().map(|program| row(program.name)).collect()
}

fn row(program: &'static str) -> Result<Row> {
    let first = Cell::new(None);
    let measure = |file: &'static str, generator: &'static str| {
        let first = &first;
        move || {
            let file = std::env::current_exe()?.with_file_name(file);
            let output = Command::new(file).args([QUALITY, program, generator]).output()?;
            if !output.status.success() {
                return Err(format!("{program}, {generator}: {}", String::from_utf8_lossy(&output.stderr)).into());
            }
            let RunTime { nanoseconds, result } = std::str::from_utf8(&output.stdout)?.parse()?;
            match first.replace(Some(result)) {
                Some(other) if other != result => {
                    Err(format!("{program} gives {result} by {generator}, {other} by another").into())
                }
                _ => Ok(nanoseconds / 1e3),
            }
        }
    };
    let measurements = GENERATORS.iter().map(|&(file, generator)| (ROUNDS, measure(file, generator)));
    Ok(Row { program, times: in_turns(&measurements.collect::<Vec<_>>())? })
}

impl Row {
    /// All of it, on a line.
    pub(crate) fn to_line(&self) -> String {
        let of_one = |times: &Vec<f64>| times.iter().map(f64::to_string).collect::<Vec<_>>().join(" ");
        format!("{}\t{}", self.program, self.times.iter().map(of_one).collect::<Vec<_>>().join("\t"))
    }

    /// What [`to_line`](Self::to_line) wrote.
    pub(crate) fn from_line(line: &str) -> Result<Self> {
        let mut fields = line.split('\t');
        let program = Program::named(fields.next().unwrap_or_default())?.name;
        let of_one = |times: &str| times.split(' ').map(str::parse).collect::<std::result::Result<Vec<f64>, _>>();
        let times = fields.map(of_one).collect::<std::result::Result<Vec<_>, _>>()?;
        if times.len() != GENERATORS.len() || times.iter().any(Vec::is_empty) {
            return Err(format!("no times of {} generators: {line}", GENERATORS.len()).into());
        }
        Ok(Self { program, times })
    }

    fn times(&self, generator: &str) -> &[f64] {
        GENERATORS.iter().position(|(_, name)| *name == generator).map_or(&[], |column| &self.times[column])
    }

    /// The median of each generator.
    pub(crate) fn microseconds(&self) -> impl Iterator<Item = f64> {
        self.times.iter().map(|times| median(times.iter().copied()))
    }

    /// The time of one generator over that of another, round by round.
    pub(crate) fn ratio(&self, ours: &str, theirs: &str) -> f64 {
        workloads::ratio(self.times(ours), self.times(theirs))
    }
}

/// The geometric mean over the programs of the time of one generator over that of another.
fn mean_ratio(rows: &[Row], ours: &str, theirs: &str) -> f64 {
    let sum: f64 = rows.iter().map(|row| row.ratio(ours, theirs).ln()).sum();
    (sum / rows.len() as f64).exp()
}

pub(crate) fn bars(rows: &[Row]) -> Vec<Bar> {
    let mut bars = vec![
        Bar::at_most(1.15, "run time, mean: speed / llvm-default", mean_ratio(rows, "orcane-speed", "llvm-default")),
        Bar::at_most(
            1.35,
            "run time, mean: speed / llvm-o2-scalar",
            mean_ratio(rows, "orcane-speed", "llvm-o2-scalar"),
        ),
        Bar::reported(
            "run time, mean: speed with inlining / llvm-o2-scalar",
            mean_ratio(rows, INLINING, "llvm-o2-scalar"),
        ),
        Bar::reported("run time, mean: speed with inlining / llvm-o2", mean_ratio(rows, INLINING, "llvm-o2")),
        Bar::reported("run time, mean: speed / cranelift-jit", mean_ratio(rows, "orcane-speed", "cranelift-jit")),
    ];
    for row in rows {
        let of_o0 = row.ratio("orcane-speed", "llvm-o0");
        bars.push(Bar::at_most(1.0, format!("run time, {}: speed / llvm-o0", row.program), of_o0));
        let of_o2 = row.ratio("orcane-speed", "llvm-o2-scalar");
        bars.push(Bar::reported(format!("run time, {}: speed / llvm-o2-scalar", row.program), of_o2));
    }
    bars
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_read_from_its_line_with_every_round() {
        let times: Vec<_> = (1..=GENERATORS.len()).map(|generator| vec![generator as f64, 2.5]).collect();
        let row = Row { program: PROGRAMS[0].name, times };
        let read = Row::from_line(&row.to_line()).unwrap();
        assert_eq!((read.program, &read.times), (row.program, &row.times));
        assert!(Row::from_line(PROGRAMS[0].name).is_err());
        // 2 / 1 in the first round, and as long in the second.
        let [(_, first), (_, second), ..] = GENERATORS;
        assert_eq!(read.ratio(second, first), 2.0);
    }
}
