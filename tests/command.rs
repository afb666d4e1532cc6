//! The command `orcane`, run as a user runs it.
#![cfg(feature = "cli")]

use std::path::PathBuf;
use std::process::{Command, Output};

fn orcane(arguments: &[&str]) -> Output {
    // Where programs of the target need an emulator, Cargo's own setting names it.
    let runner = std::env::var("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER").unwrap_or_default();
    let runner = if cfg!(target_arch = "aarch64") { runner } else { String::new() };
    let mut words = runner.split_whitespace().chain([env!("CARGO_BIN_EXE_orcane")]);
    Command::new(words.next().unwrap()).args(words).args(arguments).output().unwrap()
}

fn file(name: &str, text: &str) -> PathBuf {
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::write(&path, text).unwrap();
    path
}

const HYPOTENUSE: &str = "
function %square(f64) -> f64 {
block0(v0: f64):
    v1 = fmul v0, v0
    return v1
}

function %main(f64, f64) -> f64 {
    sig0 = (f64) -> f64
    fn0 = %square sig0
block0(v0: f64, v1: f64):
    v2 = call fn0(v0)
    v3 = call fn0(v1)
    v4 = fadd v2, v3
    v5 = sqrt v4
    return v5
}";

#[test]
fn a_file_is_compiled_and_called() {
    let file = file("hypotenuse.clif", HYPOTENUSE);
    let output = orcane(&["run", file.to_str().unwrap(), "--", "3", "4"]);
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "5\n");
    assert!(output.status.success());
}

#[test]
fn another_entry_and_the_other_types() {
    let text = "function %narrow(i8, i16, i32, i64, f32) -> i8, f32 {
        block0(v0: i8, v1: i16, v2: i32, v3: i64, v4: f32):
            return v0, v4
        }";
    let file = file("narrow.clif", text);
    let output = orcane(&["run", "--entry", "narrow", file.to_str().unwrap(), "--", "-1", "2", "3", "4", "0.5"]);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "-1\n0.5\n");
}

#[test]
fn errors_are_told() {
    let good = file("errors.clif", HYPOTENUSE);
    let bad = file("bad.clif", "function %main() {");
    let good = good.to_str().unwrap();
    for (arguments, expected) in [
        (vec!["run", good], "the function takes 2 arguments, not 0"),
        (vec!["run", good, "--", "1", "x"], "'x' is no f64"),
        (vec!["run", good, "--entry", "none"], "none"),
        (vec!["run", bad.to_str().unwrap()], "bad.clif:1:"),
        (vec!["run", "/no/such/file"], "No such file"),
    ] {
        let output = orcane(&arguments);
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(message.starts_with("orcane: ") && message.contains(expected), "{arguments:?}: {message}");
        assert!(!output.status.success());
    }
}

#[test]
fn cranelifts_own_tests_run() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clif");
    let files = ["arithmetic", "calls", "elsewhere", "text-only"].map(|name| format!("{folder}/{name}.clif"));
    let output = orcane(&["clif-test", &files[0], &files[1], &files[2], &files[3]]);
    let expected = format!(
        "%wrap(-1, 2) -> -1\n{}: passed, 8 commands\n{}: passed, 4 commands\n{}: skipped, it is for other targets\n\
         {}: skipped, it has no `test run`\n",
        files[0], files[1], files[2], files[3]
    );
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    assert_eq!(String::from_utf8_lossy(&output.stdout), expected);
    assert!(output.status.success());
}

/// Tables, loops and recursion; slots and atomics; `set` for all targets that follow, targets that this build or this
/// host has not, and one whose extension few machines have.
#[test]
fn directives_of_cranelifts_own_tests_are_followed() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clif");
    let files = ["control", "memory", "extension"].map(|name| format!("{folder}/{name}.clif"));
    let output = orcane(&["clif-test", &files[0], &files[1], &files[2]]);
    let extension = if has_extension() { "passed, 1 commands" } else { "skipped, it is for other targets" };
    let expected = format!(
        "%cold(0) -> -1\n{}: passed, 13 commands\n{}: passed, 4 commands\n{}: {extension}\n",
        files[0], files[1], files[2]
    );
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    assert_eq!(String::from_utf8_lossy(&output.stdout), expected);
    assert!(output.status.success());
}

/// Whether the host has what `extension.clif` asks for.
fn has_extension() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::arch::is_x86_feature_detected!("avx512vbmi");
    #[cfg(not(target_arch = "x86_64"))]
    false
}

#[test]
fn failures_of_cranelifts_own_tests_are_told() {
    let constant = "function %one() -> i8 {\nblock0:\n    v0 = iconst.i8 1\n    return v0\n}\n";
    let wrong = file("wrong.clif", &format!("test run\n{constant}; run: %one() == 1\n; run: %one() == 2\n"));
    let malformed = file("malformed.clif", "test run\nfunction %one( {\n}");
    let option = file("option.clif", &format!("test run fast\n{constant}; run: %one() == 1\n"));
    for (path, expected) in [
        (&wrong, "wrong.clif: FAILED: eager: line 8: Failed test: run: %one() == 2, actual: 1"),
        (&malformed, "malformed.clif: FAILED: "),
        (&option, "option.clif: FAILED: `test run` has no options: "),
    ] {
        let output = orcane(&["clif-test", path.to_str().unwrap()]);
        let out = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(out.contains(expected), "{out}");
        assert_eq!(String::from_utf8_lossy(&output.stderr), "orcane: 1 of 1 files failed\n");
        assert!(!output.status.success());
    }
}

/// As in Cranelift, where the name that a command says is for whoever reads it: `floor` is a function of the C library.
#[test]
fn a_command_calls_the_function_above_it() {
    let text = "test run
function %my_floor(f64) -> f64 {
block0(v0: f64):
    v1 = ceil v0
    return v1
}
; run: %floor(0x1.8p0) == 0x1.0p1
function u0:3(i32) -> i32 {
block0(v0: i32):
    return v0
}
; run: %u0_3(4) == 4
function %three() -> i64 {
block0:
    v0 = iconst.i64 3
    return v0
}
; run
; print
";
    let path = file("above.clif", text);
    let output = orcane(&["clif-test", path.to_str().unwrap()]);
    let out = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(out.starts_with("%default() -> 3\n") && out.ends_with("above.clif: passed, 4 commands\n"), "{out}");
    assert!(output.status.success());
}

#[test]
fn a_command_that_says_only_run_fails_at_zero() {
    let zero = "function %zero() -> i64 {\nblock0:\n    v0 = iconst.i64 0\n    return v0\n}\n";
    let path = file("zero.clif", &format!("test run\n{zero}; run\n"));
    let output = orcane(&["clif-test", path.to_str().unwrap()]);
    let out = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(out.contains("zero.clif: FAILED: eager: line 7: Failed test: run: %default() != 0, actual: 0"), "{out}");
    assert!(!output.status.success());
}

#[test]
fn a_target_may_be_indented() {
    let one = "function %one() -> i8 {\nblock0:\n    v0 = iconst.i8 1\n    return v0\n}\n; run: %one() == 2\n";
    let path = file("indented.clif", &format!("test run\n\ttarget riscv64\n{one}"));
    let output = orcane(&["clif-test", path.to_str().unwrap()]);
    let out = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(out.ends_with("indented.clif: skipped, it is for other targets\n"), "{out}");
    assert!(output.status.success());
}

#[test]
fn functions_that_no_command_reaches_are_compiled() {
    let good = "function %good() -> i8 {\nblock0:\n    v0 = iconst.i8 1\n    return v0\n}\n; run: %good() == 1\n";
    let refused = "function %refused(i64) -> i32 {\nblock0(v0: i64):\n    return v0\n}\n";
    let dangling = "function %dangling() {\n    fn0 = %no_such_function()\nblock0:\n    call fn0()\n    return\n}\n";
    for (name, function, expected) in
        [("refused", refused, "FAILED: eager: %refused: "), ("dangling", dangling, "FAILED: eager: %dangling: ")]
    {
        let path = file(&format!("{name}.clif"), &format!("test run\n{good}{function}"));
        let output = orcane(&["clif-test", path.to_str().unwrap()]);
        let out = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(out.contains(expected), "{out}");
        assert!(!output.status.success());
    }
}

#[test]
fn a_test_that_runs_nothing_fails() {
    let one = "function %one() -> i8 {\nblock0:\n    v0 = iconst.i8 1\n    return v0\n}\n";
    for (name, functions) in
        [("none", String::new()), ("misspelt", format!("{one}; Run: %one() == 2\n; runs: %one()\n"))]
    {
        let path = file(&format!("{name}.clif"), &format!("test run\n{functions}"));
        let output = orcane(&["clif-test", path.to_str().unwrap()]);
        let out = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(out.contains(&format!("{name}.clif: FAILED: nothing to run")), "{out}");
        assert!(!output.status.success());
    }
}

#[test]
fn a_trap_fails_its_file_alone() {
    let traps = [
        ("division.clif", "    v0 = iconst.i64 0\n    v1 = udiv v0, v0\n    return v1\n", "integer division by zero"),
        ("user.clif", "    trap user7\n", "trap with code 7"),
        ("fault.clif", "    v0 = iconst.i64 0\n    v1 = load.i64 v0\n    return v1\n", "heap access out of bounds"),
    ];
    let files = traps.map(|(name, body, _)| {
        let text = format!("test run\nfunction %bad() -> i64 {{\nblock0:\n{body}}}\n; run: %bad() == 0\n");
        file(name, &text).into_os_string().into_string().unwrap()
    });
    let last = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clif/calls.clif");
    let output = orcane(&["clif-test", &files[0], &files[1], &files[2], last]);
    let out = String::from_utf8_lossy(&output.stdout).into_owned();
    for (path, (_, body, trap)) in files.iter().zip(traps) {
        let line = 5 + body.lines().count();
        let expected = format!("{path}: FAILED: eager: line {line}: {trap} in 'bad'\n");
        assert!(out.contains(&expected), "{expected}{out}");
    }
    assert!(out.ends_with(&format!("{last}: passed, 4 commands\n")), "{out}");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "orcane: 3 of 4 files failed\n");
    assert_eq!(output.status.code(), Some(1));
}
