//! The gate: instructions that workloads take, against those that are checked in.
//!
//! Instructions are the same on a busy machine as on an idle one. What differs by machine is held: the target is the
//! architecture's baseline and not the host's, the C library uses no extension, and the environment is empty. Each
//! workload is counted with its preparation and without its work, and the difference is its figure.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use crate::Result;
use crate::measure::collected;
use workloads::workload::WORKLOADS;

/// The first argument of a process that runs a workload.
pub(crate) const WORKLOAD: &str = "workload";
/// How much more than what is checked in is too much.
const TOLERANCE: f64 = 0.05;
const UPDATE: &str = "scripts/bench instructions --update";
/// So that functions of the C library are the same ones everywhere.
const TUNABLES: &str = "glibc.cpu.hwcaps=-AVX2,-AVX512F,-AVX512VL,-AVX512BW,-ERMS,-FSRM,-BMI2,-RTM";

fn file() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("instructions.txt")
}

/// Counts, and compares; fails when a workload takes more.
pub(crate) fn compare() -> Result<ExitCode> {
    let text = std::fs::read_to_string(file())?;
    let known = parse(&text)?;
    let found = count()?;
    let mut verdicts = Vec::new();
    println!("{:<16} {:>16} {:>16}", "instructions", "checked in", "now");
    for (name, now) in &found {
        let before = *known.get(*name).ok_or_else(|| format!("{name} is not checked in: {UPDATE}"))?;
        let change = *now as f64 / before as f64 - 1.0;
        let (is_kept, verdict) = verdict(change);
        verdicts.push(is_kept);
        println!("{name:<16} {before:>16} {now:>16} {:>+7.2} %{verdict}", change * 100.0);
    }
    if verdicts.into_iter().all(|kept| kept) {
        return Ok(ExitCode::SUCCESS);
    }
    let (before, now) = (text.lines().find_map(|line| line.strip_prefix("# With ")), versions()?);
    if before != Some(&now) {
        println!("The figures are of {}; this is {now}.", before.unwrap_or("other versions"));
    }
    println!(
        "A workload takes more than {:.0} % more. If that is what the change is worth: {UPDATE}",
        TOLERANCE * 100.0
    );
    Ok(ExitCode::FAILURE)
}

/// Whether a change is within the tolerance, and what is said of it.
fn verdict(change: f64) -> (bool, &'static str) {
    match change {
        _ if change > TOLERANCE => (false, "  REGRESSED"),
        _ if change < -TOLERANCE => (true, "  improved: check the new figures in"),
        _ => (true, ""),
    }
}

/// Counts, and makes that what is compared with.
pub(crate) fn update() -> Result<ExitCode> {
    let mut text = format!("# Instructions, written by `{UPDATE}`, on x86-64.\n# With {}\n", versions()?);
    for (name, now) in count()? {
        text += &format!("{name} {now}\n");
    }
    std::fs::write(file(), text)?;
    Ok(ExitCode::SUCCESS)
}

fn parse(text: &str) -> Result<BTreeMap<&str, u64>> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| {
            let (name, count) = line.split_once(' ').ok_or_else(|| format!("no figure: {line}"))?;
            Ok((name, count.parse()?))
        })
        .collect()
}

fn versions() -> Result<String> {
    let output = Command::new("rustc").arg("--version").output()?;
    let rustc = String::from_utf8(output.stdout)?;
    let rustc = rustc.split(" (").next().unwrap_or_default().trim();
    Ok(format!("{rustc}, Cranelift {}", cranelift_codegen::VERSION))
}

fn count() -> Result<Vec<(&'static str, u64)>> {
    if !cfg!(target_arch = "x86_64") {
        return Err("the figures are of x86-64".into());
    }
    let figure = |name| Ok((name, instructions(name, "work")?.saturating_sub(instructions(name, "prepare")?)));
    WORKLOADS.iter().map(|(name, _)| figure(*name)).collect()
}

fn instructions(name: &str, part: &str) -> Result<u64> {
    let program = std::env::current_exe()?;
    let mut command = Command::new("valgrind");
    command.args(["--tool=callgrind", "--callgrind-out-file=/dev/null", "--smc-check=all"]).arg(program);
    command.args([WORKLOAD, name, part]).env_clear().env("GLIBC_TUNABLES", TUNABLES);
    command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
    let output = command.output()?;
    let log = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        return Err(format!("{name}: {log}").into());
    }
    collected(&log)
}

/// Runs a workload, or only what it prepares.
pub(crate) fn run(name: &str, part: &str) -> Result<ExitCode> {
    let known = WORKLOADS.iter().find(|(known, _)| *known == name);
    let (_, prepare) = known.ok_or_else(|| format!("no workload {name}"))?;
    let work = prepare()?;
    if part == "work" {
        work()?;
    } else {
        std::mem::forget(work);
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn six_percent_more_is_too_much_and_less_is_told() {
        assert_eq!([0.06, 0.04, 0.0, -0.04, -0.06].map(|change| verdict(change).0), [false, true, true, true, true]);
        assert!(verdict(-0.06).1.contains("improved") && verdict(0.04).1.is_empty());
        assert!(parse("# comment\nname 12\n").is_ok_and(|known| known["name"] == 12));
        assert!(parse("name twelve").is_err() && parse("nothing").is_err());
    }
}
