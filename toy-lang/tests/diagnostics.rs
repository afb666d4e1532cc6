//! Each kind of mistake is named, at its place.

mod support;

use support::{error, kaleidoscope, value};

/// Asserts that the program is refused for this reason at this column.
#[track_caller]
fn assert_refused(program: &str, reason: &str, column: usize) {
    let message = error(program);
    assert!(message.contains(reason), "{program}: {message}");
    assert!(message.contains(&format!("<expression>:1:{column} ")), "{program}: {message}");
}

#[test]
fn unknown_names() {
    assert_refused("1 + f(2)", "unknown function `f`", 5);
    assert_refused("def f(x) x + y", "unknown variable `y`", 14);
    assert_refused("(var a in a) + a", "unknown variable `a`", 16);
    assert_refused("x = 1", "unknown variable `x`", 1);
    assert_refused("for i = i, 0 in 1", "unknown variable `i`", 9);
}

#[test]
fn arities() {
    assert_refused("def f(x) x; f(1, 2)", "`f` takes 1 argument, but 2 are given", 13);
    assert_refused("extern g(x y); g()", "`g` takes 2 arguments, but 0 are given", 16);
    assert_refused("def f(x) x; def f(x y) x", "`f` is declared with 1 parameter already", 17);
    assert_refused("extern sin(x y); def sin(x) x", "`sin` is declared with 2 parameters already", 22);
    assert_refused("def unary!(a b) a", "a unary operator has 1 operand, this one has 2", 11);
    assert_refused("def binary|(a) a", "a binary operator has 2 operands, this one has 1", 12);
    assert_refused("def f(x y x) x", "parameter `x` is there twice", 11);
}

#[test]
fn operators() {
    assert_refused("1 ^ 2", "binary operator `^` is not defined", 3);
    assert_refused("!1", "unary operator `!` is not defined", 1);
    assert_refused("(1 ^ 2)", "binary operator `^` is not defined", 4);
    assert_refused("def binary+(a b) a", "`+` is built in", 11);
    assert_refused("def binary= 9 (a b) a", "`=` is built in", 11);
    assert_refused("def unary;(a) a", "';' can't be an operator", 10);
    assert_refused("def binary| 0 (a b) a", "a precedence is a whole number from 1 to 100", 13);
    assert_refused("def binary| 1.5 (a b) a", "a precedence is a whole number from 1 to 100", 13);
    assert_refused("def binary| 101 (a b) a", "a precedence is a whole number from 1 to 100", 13);
}

#[test]
fn assignments() {
    assert_refused("1 = 2", "the left side of `=` must be a variable", 1);
    assert_refused("var a, b in a = b = 1", "the left side of `=` must be a variable", 13);
    assert_eq!(value("var a, b in a = (b = 1) + 1"), "2");
}

#[test]
fn numbers_and_characters() {
    assert_refused("1.2.3", "malformed number", 1);
    assert_refused("2 * 1e5", "malformed number", 5);
    assert_refused("1 + é", "unexpected character 'é'", 5);
    assert_eq!(value("1 # é"), "1");
}

#[test]
fn grammar() {
    assert_refused("def 1(x) x", "expected a function's name, found a number", 5);
    assert_refused("def f x", "expected `(` before the parameters, found a name", 7);
    assert_refused("def f(x, y) x", "expected a parameter's name or `)` (blanks separate parameters), found `,`", 8);
    assert_refused("if 1 else 2", "expected `then`, found `else`", 6);
    assert_refused("for i = 1 in 2", "expected `,` after the loop's first value, found `in`", 11);
    assert_refused("var 1 in 2", "expected a variable's name, found a number", 5);
    assert_refused("(1; 2)", "expected `)`, found `;`", 3);
    assert_refused("1 +", "expected an expression, found the end", 3);
    assert_refused(")", "expected an expression, found `)`", 1);
}

#[test]
fn a_declared_function_must_be_defined_before_it_runs() {
    let ran = kaleidoscope(&["-e", "extern nowhere(x); def f(x) nowhere(x); 1; f(2)"], "");
    assert_eq!((ran.out.as_str(), ran.success), ("1\n", false));
    assert!(ran.err.contains("`nowhere` is declared, but neither"), "{}", ran.err);
    assert!(ran.err.contains("<expression>:1:44 "), "{}", ran.err);
}

#[test]
fn a_function_of_the_runtime_must_be_declared_as_it_is() {
    let reason = "`printd` is declared with 2 parameters, but the runtime's, which is meant, takes 1";
    assert_refused("extern printd(a b); printd(1, 2)", reason, 21);
    assert_refused("extern printd(a b); def f(x) printd(x, x); f(1)", reason, 44);
    assert_refused("extern putchard(); putchard()", "`putchard` is declared with 0 parameters", 20);
    assert_eq!(value("extern printd(x); extern putchard(x); printd(1) + putchard(65)"), "1.000000\nA0");
    assert_eq!(value("extern printd(a b); def f(x) printd(x, x); def printd(a b) a + b; f(1)"), "2");
}

#[test]
fn what_an_emitted_program_has_itself_is_not_expected_of_a_library() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let emit = |kind: &str, programs: &[&str]| {
        let mut arguments = vec!["--emit", kind, "-o", out.to_str().unwrap()];
        arguments.extend(programs.iter().flat_map(|&program| ["-e", program]));
        kaleidoscope(&arguments, "")
    };
    for kind in ["llvm-ir", "obj"] {
        for (name, programs, place) in [
            ("main", &["extern main(); def f(x) main(); 1"][..], "1:25 "),
            ("main", &["extern main(); main(); def main() 2; main()"], "1:16 "),
            ("main", &["1;\n2;", "extern main();\ndef f(x)\n  main()"], "3:3 "),
            ("kaleidoscope_print", &["extern kaleidoscope_print(x); kaleidoscope_print(1)"], "1:31 "),
        ] {
            let ran = emit(kind, programs);
            let reason = format!("`{name}` is the emitted program's own");
            assert!(!ran.success && ran.err.contains(&reason), "{kind}: {programs:?}: {}", ran.err);
            assert!(ran.err.contains(&format!("<expression>:{place}")), "{kind}: {programs:?}: {}", ran.err);
            assert!(!out.exists(), "{kind}: {programs:?}");
        }
        let ran = emit(kind, &["extern printd(a b); printd(1, 2)"]);
        assert!(ran.err.contains("`printd` is declared with 2 parameters"), "{kind}: {}", ran.err);
        assert!(!out.exists(), "{kind}");
        for program in ["extern main(); 1", "extern main(); def f(x) main()", "extern main(); def main() 1; main()"] {
            assert!(emit(kind, &[program]).success, "{kind}: {program}");
            std::fs::remove_file(&out).unwrap();
        }
    }
}

#[test]
fn all_mistakes_of_a_program_are_reported_and_nothing_runs() {
    let message = error("1; def f(x) + ; def g(x) x; 2 2 = 3; def h(y y) y");
    assert_eq!(message.matches("Error:").count(), 3, "{message}");
    let message = error("1; f(1) + x; def g(x) y; g(1, 2)");
    assert_eq!(message.matches("Error:").count(), 4, "{message}");
}

#[test]
fn a_wrong_function_is_not_reported_again_where_it_is_called() {
    let message = error("def f(x) y; f(1); def unary!(x) y; !f(2)");
    assert_eq!(message.matches("Error:").count(), 2, "{message}");
}

#[test]
fn garbage_is_an_error() {
    for garbage in [&b"\xff\xfe"[..], b"\0\0", b"def \xc3", b"\x7fELF\x02\x01\x01", "\u{feff}1".as_bytes()] {
        for arguments in [&["-"][..], &["--emit", "clif"], &[]] {
            let ran = kaleidoscope(arguments, garbage);
            assert!(ran.err.contains("Error:") && ran.out.is_empty(), "{garbage:?}: {ran:?}");
        }
    }
}

#[test]
fn every_prefix_of_a_program_is_a_program_or_refused() {
    let program =
        "extern f(a); def binary| 5 (a b) if a < 1.5 then b else var x = 1, y in (for i = 0, i < 3, 2 in x = y);";
    for end in 0..program.len() {
        let ran = kaleidoscope(&["--emit", "clif", "-e", &program[..end]], "");
        assert!(ran.success || ran.err.starts_with("Error:"), "{end}: {ran:?}");
    }
}
