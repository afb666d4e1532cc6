//! How it is measured: time, instructions and memory of a process that runs one subject.

use std::array;
use std::process::{Command, Output};
use std::str::FromStr;
use std::time::Duration;

use orcane::OptLevel;

use crate::Result;
use crate::subject::Subject;
use workloads::child::{CHILD, CHILD_WITH_HELD_MEMORY, CHILD_WITH_MEMORY, Times, report};

/// One subject at one size, to be run in a process of its own.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Run {
    pub(crate) subject: Subject,
    pub(crate) level: OptLevel,
    pub(crate) count: usize,
}

impl Run {
    pub(crate) fn from_arguments(arguments: &[String]) -> Result<Self> {
        let [subject, level, count] = arguments else { return Err("expected SUBJECT LEVEL COUNT".into()) };
        let level = match level.as_str() {
            "none" => OptLevel::None,
            "speed" => OptLevel::Speed,
            other => return Err(format!("no level {other}").into()),
        };
        Ok(Self { subject: subject.parse()?, level, count: count.parse()? })
    }

    /// What the process that was started as `mode` prints.
    pub(crate) fn report(self, mode: &str) -> Result<String> {
        report(mode, || self.subject.run(self.level, self.count))
    }

    /// Starts the subject's program after `launcher`, a command that runs a command.
    fn start(self, launcher: &[&str], mode: &str) -> Result<Output> {
        let level = if self.level == OptLevel::None { "none" } else { "speed" };
        let program = std::env::current_exe()?.with_file_name(self.subject.program());
        let mut command = match launcher {
            [] => Command::new(program),
            [launcher, arguments @ ..] => {
                let mut command = Command::new(launcher);
                command.args(arguments).arg(program);
                command
            }
        };
        let output = command.args([mode, self.subject.name(), level, &self.count.to_string()]).output()?;
        if !output.status.success() {
            return Err(format!("{self:?}: {}", String::from_utf8_lossy(&output.stderr)).into());
        }
        Ok(output)
    }

    pub(crate) fn times(self) -> Result<Times> {
        let output = self.start(&[], CHILD)?;
        let [total, callable] = numbers(&String::from_utf8(output.stdout)?)?;
        Ok(Times { total: Duration::from_nanos(total), callable: Duration::from_nanos(callable) })
    }

    /// The most memory that the process had at a time, in bytes of proportional set size: a page
    /// that is mapped twice counts once.
    pub(crate) fn peak_memory(self) -> Result<u64> {
        let [bytes] = numbers(&String::from_utf8(self.start(&[], CHILD_WITH_MEMORY)?.stdout)?)?;
        Ok(bytes)
    }

    /// The memory that the process holds when it is done, in bytes as above.
    pub(crate) fn held_memory(self) -> Result<u64> {
        let [bytes] = numbers(&String::from_utf8(self.start(&[], CHILD_WITH_HELD_MEMORY)?.stdout)?)?;
        Ok(bytes)
    }

    /// The instructions that the process executed, all threads together.
    pub(crate) fn instructions(self) -> Result<u64> {
        // Code is written through one mapping and run through another, which Valgrind sees only
        // if it checks all code for changes.
        let callgrind = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", "--smc-check=all"];
        let output = self.start(&callgrind, CHILD)?;
        collected(&String::from_utf8(output.stderr)?)
    }
}

/// The instructions that callgrind says it has seen.
pub(crate) fn collected(log: &str) -> Result<u64> {
    let collected = log.lines().find_map(|line| line.split_once("Collected : ")).ok_or("no count from callgrind")?;
    Ok(collected.1.trim().parse()?)
}

fn numbers<const N: usize>(text: &str) -> Result<[u64; N]> {
    let numbers = text.split_whitespace().map(u64::from_str).collect::<std::result::Result<Vec<_>, _>>()?;
    numbers.try_into().map_err(|_| format!("expected {N} numbers: {text}").into())
}

/// Takes each of several measurements once a round, each round beginning with another one.
pub(crate) fn interleaved<T: Copy + Default, const N: usize>(
    rounds: usize,
    measurements: [&dyn Fn() -> Result<T>; N],
) -> Result<Vec<[T; N]>> {
    (0..rounds)
        .map(|round| {
            let mut results = array::from_fn(|_| T::default());
            for turn in 0..N {
                let at = (round + turn) % N;
                results[at] = measurements[at]()?;
            }
            Ok(results)
        })
        .collect()
}

/// As [`interleaved`], of measurements each of which takes part in so many rounds, from the first on: what takes long in
/// fewer. Gives what each measured, round by round.
pub(crate) fn in_turns<T>(measurements: &[(usize, impl Fn() -> Result<T>)]) -> Result<Vec<Vec<T>>> {
    let mut results: Vec<_> = measurements.iter().map(|(rounds, _)| Vec::with_capacity(*rounds)).collect();
    let rounds = measurements.iter().map(|(rounds, _)| *rounds).max().unwrap_or(0);
    for round in 0..rounds {
        for turn in 0..measurements.len() {
            let at = (round + turn) % measurements.len();
            let (rounds, measure) = &measurements[at];
            if round < *rounds {
                results[at].push(measure()?);
            }
        }
    }
    Ok(results)
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    #[test]
    fn each_round_begins_with_another_and_what_takes_long_has_fewer() {
        let order = RefCell::new(Vec::new());
        let measure = |name: char| {
            let order = &order;
            move || {
                order.borrow_mut().push(name);
                Ok(order.borrow().len())
            }
        };
        let results = in_turns(&[(3, measure('a')), (1, measure('b')), (3, measure('c'))]).unwrap();
        assert_eq!(order.borrow().iter().collect::<String>(), "abccaca");
        assert_eq!(results, [vec![1, 5, 7], vec![2], vec![3, 4, 6]]);
    }
}
