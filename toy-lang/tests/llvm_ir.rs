//! The text of `--emit llvm-ir`, run by LLVM 22: it prints what the JIT prints. Needs `lli-22`.

mod support;

use std::fs;
use std::process::Command;

use support::{doubles, kaleidoscope, portable_examples};

fn run_by_llvm(program: &str, level: &str) -> String {
    let emitted = kaleidoscope(&["--emit", "llvm-ir", "-"], program);
    assert!(emitted.success, "{}", emitted.err);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("program.ll");
    fs::write(&path, emitted.out).unwrap();
    let ran = Command::new("lli-22").arg(level).arg(&path).output().expect("`lli-22`, of LLVM 22, can be run");
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    String::from_utf8_lossy(&ran.stdout).into_owned()
}

#[test]
fn examples_print_the_same_in_llvm() {
    for (path, expected) in portable_examples() {
        let program = fs::read_to_string(&path).unwrap();
        for level in ["-O0", "-O2"] {
            assert_eq!(run_by_llvm(&program, level), expected, "{}", path.display());
        }
    }
}

#[test]
fn values_print_the_same_in_llvm() {
    let (values, program) = doubles();
    let out = run_by_llvm(&program, "-O0");
    assert_eq!(out.lines().count(), values.len());
    for (line, value) in out.lines().zip(values) {
        assert_eq!(line, toy_lang::number::shortest(value));
    }
}

#[test]
fn functions_may_have_the_names_of_the_runtime() {
    let program = "def main(x) x + 1; def printf(x) x * 2; def printd(x) 7; def binary\" 5 (a b) a; def unary\\(v) 0-v; \
                   main(1); printf(4); printd(1); \\3 \" 2;";
    assert_eq!(run_by_llvm(program, "-O0"), "2\n8\n7\n-3\n");
}

#[test]
fn a_program_without_expressions_is_a_module_without_main() {
    let emitted = kaleidoscope(&["--emit", "llvm-ir", "-e", "extern printd(x); def f(x) printd(x);"], "");
    assert!(emitted.out.contains("declare double @\"printd\"(double)"), "{}", emitted.out);
    assert!(emitted.out.contains("define double @\"f\"(double %p0)"), "{}", emitted.out);
    assert!(!emitted.out.contains("@main"), "{}", emitted.out);
}
