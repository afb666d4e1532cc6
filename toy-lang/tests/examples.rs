//! Each `examples/*.ks` prints what the `*.expected` beside it says, however it is run.

mod support;

use support::{examples, kaleidoscope};

#[track_caller]
fn check_all(arguments: &[&str]) {
    for (path, expected) in examples() {
        let mut arguments = arguments.to_vec();
        arguments.push(path.to_str().unwrap());
        let ran = kaleidoscope(&arguments, "");
        assert!(ran.success, "{arguments:?}: {}", ran.err);
        assert_eq!(ran.out, expected, "{arguments:?}");
    }
}

#[test]
fn examples_run() {
    check_all(&[]);
}

#[test]
fn examples_run_unoptimised() {
    check_all(&["-O", "none"]);
}

#[test]
fn examples_run_lazily() {
    check_all(&["--lazy"]);
}

#[test]
fn examples_run_tiered() {
    check_all(&["--tiered"]);
}

#[test]
fn examples_run_with_compile_threads() {
    check_all(&["--eager", "--threads", "2"]);
    check_all(&["--lazy", "--threads", "3"]);
}

#[test]
fn examples_run_line_by_line() {
    for (path, expected) in examples() {
        let ran = kaleidoscope(&[], std::fs::read(&path).unwrap());
        assert!(ran.err.is_empty(), "{}: {}", path.display(), ran.err);
        assert_eq!(ran.out, expected, "{}", path.display());
    }
}
