//! What is nested beyond reason is an error, and what is only long is not. Never does a stack overflow.

mod support;

use support::{Ran, kaleidoscope};
use toy_lang::diagnostic::Source;
use toy_lang::engine::EngineOptions;
use toy_lang::parser::MAX_DEPTH;
use toy_lang::session::Session;

const DEEP: usize = 100_000;

fn run(program: &str) -> Ran {
    kaleidoscope(&["-"], program)
}

#[track_caller]
fn assert_too_deep(program: &str) {
    for arguments in [&["-"][..], &["--emit", "llvm-ir", "-"], &[]] {
        let ran = kaleidoscope(arguments, program);
        assert!(ran.err.contains("nested too deeply"), "{:.300}", ran.err);
        assert!(ran.err.len() < 1000, "the message is as long as the program");
        assert_eq!(ran.out, "");
    }
}

#[test]
fn nested_parentheses() {
    assert_too_deep(&format!("{}1{}", "(".repeat(DEEP), ")".repeat(DEEP)));
}

#[test]
fn unclosed_parentheses() {
    assert_too_deep(&"(".repeat(DEEP));
}

#[test]
fn chains_of_unary_operators() {
    assert_too_deep(&format!("def unary!(v) v; {}1", "!".repeat(DEEP)));
}

#[test]
fn nested_conditionals() {
    assert_too_deep(&format!("{}1{}", "if 1 then ".repeat(DEEP), " else 2".repeat(DEEP)));
    assert_too_deep(&format!("{}7", "if 0 then 1 else ".repeat(DEEP)));
}

#[test]
fn nested_calls_loops_and_variables() {
    assert_too_deep(&format!("def f(x) x; {}1{}", "f(".repeat(DEEP), ")".repeat(DEEP)));
    assert_too_deep(&format!("{}1", "for i = 0, 0 in ".repeat(DEEP)));
    assert_too_deep(&format!("{}1", "var x in ".repeat(DEEP)));
}

#[test]
fn rising_precedences() {
    let operators: String = (1..=90).map(|i| format!("def binary{} {i} (a b) a;", operator(i))).collect();
    let expression: String = (0..90 * 30).map(|i| format!("1{}(", operator(i % 90 + 1))).collect();
    assert_too_deep(&format!("{operators}{expression}"));
}

fn operator(i: usize) -> char {
    char::from(b"!$%&:>?@[]^`{|}~\\'\""[i % 19])
}

#[test]
fn what_is_just_within_the_bound_works() {
    let depth = MAX_DEPTH - 10;
    for program in [
        format!("{}7{}", "(".repeat(depth), ")".repeat(depth)),
        format!("def unary!(v) v; {}7", "!".repeat(depth)),
        format!("{}7", "if 0 then 1 else ".repeat(depth)),
        format!("def f(x) x; {}7{}", "f(".repeat(depth), ")".repeat(depth)),
        format!("{}7", "var x = 1 in ".repeat(depth)),
    ] {
        let ran = run(&program);
        assert_eq!(ran.out, "7\n", "{:.300}", ran.err);
    }
}

/// On a thread of the size that a library's user may well have.
#[test]
fn every_stage_needs_little_stack() {
    let depth = MAX_DEPTH - 10;
    for program in [
        format!("{}7{}", "(".repeat(depth), ")".repeat(depth)),
        format!("def unary!(v) v; {}7", "!".repeat(depth)),
        format!("{}7", "if 0 then 1 else ".repeat(depth)),
        format!("def f(x) x; {}7{}", "f(".repeat(depth), ")".repeat(depth)),
        format!("{}7", "var x = 1 in ".repeat(depth)),
        // Register allocation takes time that grows with the cube of this depth.
        format!("{}7", "for i = 0, 0 in ".repeat(depth / 8)),
    ] {
        let stages = move || {
            let mut session = Session::new(EngineOptions::default()).unwrap();
            let items = session.read(&Source::new("test", program)).unwrap();
            assert!(!toy_lang::llvm_ir::emit(&items).is_empty());
            for item in &items {
                session.execute(item).unwrap();
            }
        };
        std::thread::Builder::new().stack_size(1 << 20).spawn(stages).unwrap().join().unwrap();
    }
}

#[test]
fn a_long_chain_of_operators_works() {
    let ran = run(&vec!["1"; DEEP].join("+"));
    assert_eq!(ran.out, format!("{DEEP}\n"), "{:.300}", ran.err);
}

#[test]
fn a_long_chain_of_user_defined_operators_works() {
    let ran = run(&format!("def binary|(a b) a + b; {}", vec!["1"; 10_000].join("|")));
    assert_eq!(ran.out, "10000\n", "{:.300}", ran.err);
}

#[test]
fn many_functions_work() {
    let functions: String = (1..2000).map(|i| format!("def f{i}(x) f{}(x) + 1;\n", i - 1)).collect();
    let ran = run(&format!("def f0(x) x;\n{functions}f1999(1);"));
    assert_eq!(ran.out, "2000\n", "{:.300}", ran.err);
}
