//! Running the command, for the tests of this folder.

#![allow(dead_code, reason = "each test is a crate of its own and uses a part of this")]

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// What a command wrote and whether it succeeded.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Ran {
    pub(crate) out: String,
    pub(crate) err: String,
    pub(crate) success: bool,
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        Self {
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
            success: output.status.success(),
        }
    }
}

/// A setting of Cargo's for the target that these tests were compiled for; tests run with it in their environment.
fn cargo_setting(name: &str) -> Option<String> {
    let target = format!("{}_UNKNOWN_LINUX_GNU", std::env::consts::ARCH.to_uppercase());
    std::env::var(format!("CARGO_TARGET_{target}_{name}")).ok()
}

/// A program compiled for the target: an emulator runs it if one runs the tests.
pub(crate) fn target_program(path: &str) -> Command {
    let runner = cargo_setting("RUNNER").unwrap_or_default();
    let mut words = runner.split_whitespace().chain([path]);
    let mut command = Command::new(words.next().unwrap());
    command.args(words);
    command
}

/// The C compiler for the target: what Rust links with.
pub(crate) fn c_compiler() -> Command {
    Command::new(cargo_setting("LINKER").unwrap_or_else(|| "cc".to_owned()))
}

/// `kaleidoscope` with these arguments and this input.
pub(crate) fn kaleidoscope(arguments: &[&str], input: impl AsRef<[u8]>) -> Ran {
    let mut child = target_program(env!("CARGO_BIN_EXE_kaleidoscope"))
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // It may have ended before it has read all.
    _ = child.stdin.take().unwrap().write_all(input.as_ref());
    child.wait_with_output().unwrap().into()
}

/// The value that a program in an argument prints, and nothing else.
pub(crate) fn value(program: &str) -> String {
    let ran = kaleidoscope(&["-e", program], "");
    assert!(ran.success && ran.err.is_empty(), "{program}: {ran:?}");
    ran.out.trim_end().to_owned()
}

/// What is said of a wrong program.
pub(crate) fn error(program: &str) -> String {
    let ran = kaleidoscope(&["-e", program], "");
    assert!(!ran.success && ran.out.is_empty(), "{program}: {ran:?}");
    ran.err
}

/// The examples that don't need the JIT: the others have exceptions.
pub(crate) fn portable_examples() -> Vec<(PathBuf, String)> {
    let mut examples = examples();
    examples.retain(|(path, _)| path.file_stem() != Some("exceptions".as_ref()));
    examples
}

/// The examples: path and expected output.
pub(crate) fn examples() -> Vec<(PathBuf, String)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
    let mut examples: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "ks"))
        .map(|path| (fs::read_to_string(path.with_extension("expected")).unwrap(), path))
        .map(|(expected, path)| (path, expected))
        .collect();
    examples.sort();
    assert!(examples.len() >= 12);
    examples
}

/// Many doubles of all magnitudes, with the program that evaluates each.
pub(crate) fn doubles() -> (Vec<f64>, String) {
    let mut bits = 0x9E37_79B9_7F4A_7C15_u64;
    let mut values: Vec<f64> = vec![0.0, f64::MAX, f64::MIN_POSITIVE, 5e-324, 1e15, 1e16, 1e-4, 9.999e-5];
    values.extend((-1074..1024).step_by(7).map(|exponent| 2f64.powi(exponent)));
    while values.len() < 1000 {
        bits ^= bits << 13;
        bits ^= bits >> 7;
        bits ^= bits << 17;
        // Half of them of ordinary magnitude.
        let exponent = if bits & 1 == 0 { bits << 1 >> 53 } else { 1023 - 32 + (bits >> 40) % 64 };
        let value = f64::from_bits(exponent << 52 | bits << 12 >> 12);
        values.extend(Some(value).filter(|value| value.is_finite()));
    }
    // `Display` never writes an exponent.
    let program = values.iter().map(|value| format!("{value};\n")).collect();
    (values, program)
}
