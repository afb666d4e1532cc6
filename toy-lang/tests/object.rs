//! Object files, linked with the system's linker and the runtime in C: they print what the JIT prints.

mod support;

use std::fs;

use support::{Ran, c_compiler, doubles, kaleidoscope, portable_examples, target_program};

const RUNTIME: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/runtime/runtime.c");

/// Emits an object from `program`, links it with `others` and runs it.
fn compiled(arguments: &[&str], program: &str, others: &[&str]) -> Ran {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    fs::write(path("program.ks"), program).unwrap();
    let (source, object, executable) = (path("program.ks"), path("program.o"), path("program"));
    let ran = kaleidoscope(&[arguments, &["--emit", "obj", "-o", &object, &source]].concat(), "");
    assert!(ran.success, "{}", ran.err);
    let linked = c_compiler().args(["-o", &executable, &object]).args(others).arg("-lm").output().unwrap();
    assert!(linked.status.success(), "{}", String::from_utf8_lossy(&linked.stderr));
    target_program(&executable).output().unwrap().into()
}

#[test]
fn examples_print_the_same_when_linked() {
    for level in ["none", "speed"] {
        for (path, expected) in portable_examples() {
            let program = fs::read_to_string(&path).unwrap();
            let ran = compiled(&["-O", level], &program, &[RUNTIME]);
            assert!(ran.success, "{}", path.display());
            assert_eq!(ran.out, expected, "{}", path.display());
        }
    }
}

#[test]
fn values_print_the_same_when_linked() {
    let (values, program) = doubles();
    let ran = compiled(&[], &program, &[RUNTIME]);
    assert_eq!(ran.out.lines().count(), values.len());
    for (line, value) in ran.out.lines().zip(values) {
        assert_eq!(line, toy_lang::number::shortest(value));
    }
}

#[test]
fn functions_of_a_program_without_expressions_are_exported() {
    let folder = tempfile::tempdir().unwrap();
    let main = folder.path().join("main.c");
    let text = r#"
        #include <stdio.h>
        double average(double, double);
        int main(void) { printf("%g\n", average(3.0, 4.0)); return 0; }
    "#;
    fs::write(&main, text).unwrap();
    let program = "def average(x y) x; def average(x y) (x + y) * 0.5;";
    let ran = compiled(&[], program, &[main.to_str().unwrap()]);
    assert_eq!(ran.out, "3.5\n");
}

#[test]
fn functions_may_have_the_names_of_the_c_library() {
    let program = "def main(x) x + 1; def printf(x) x * 2; def printd(x) 7; def strtod(a b) a; \
                   main(1); printf(4); printd(1); strtod(0.1, 2);";
    let ran = compiled(&[], program, &[RUNTIME]);
    assert_eq!(ran.out, "2\n8\n7\n0.1\n");
}

#[test]
fn a_function_is_a_librarys_until_the_program_defines_it() {
    for (program, expected) in [
        ("extern floor(x); def f(x) floor(x); f(1.5); def floor(x) 7; f(1.5); def floor(x) 8; f(1.5)", "1\n7\n8\n"),
        ("extern printd(x); def f(x) printd(x); f(1); def printd(x) 7; f(1)", "1.000000\n0\n7\n"),
        // Whoever is not called before has no need of a library.
        ("extern later(x); def f(x) later(x); def g(x) x; g(5); def later(x) x + 1; f(5)", "5\n6\n"),
        // The new body is what reaches it.
        ("extern cos(x); def f(x) 1; def g(x) f(x); g(0); def f(x) cos(x) * 5; g(0); def cos(x) 2; g(0)", "1\n5\n10\n"),
    ] {
        assert_eq!(kaleidoscope(&["-e", program], "").out, expected, "{program}");
        assert_eq!(compiled(&[], program, &[RUNTIME]).out, expected, "{program}");
    }
}

#[test]
fn a_function_that_is_never_reached_may_be_nowhere() {
    let program = "extern nowhere(x); extern printd(a b); def f(x) nowhere(x) + printd(x, x); def g(x) f(x); \
                   1; def f(x) x; g(2)";
    assert_eq!(kaleidoscope(&["-e", program], "").out, "1\n2\n");
    assert_eq!(compiled(&[], program, &[RUNTIME]).out, "1\n2\n");
}

#[test]
fn the_object_is_named_after_the_program() {
    let folder = tempfile::tempdir().unwrap();
    for (program, object) in [("answer.ks", "answer.o"), ("v1.2.ks", "v1.2.o"), ("v1.3.ks", "v1.3.o")] {
        fs::write(folder.path().join(program), "42").unwrap();
        let status = target_program(env!("CARGO_BIN_EXE_kaleidoscope"))
            .args(["--emit", "obj", program])
            .current_dir(&folder)
            .status()
            .unwrap();
        assert!(status.success());
        assert!(folder.path().join(object).is_file(), "{program}");
    }
}
