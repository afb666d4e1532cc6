//! `throw` and `try`: see `examples/exceptions.ks` for what they do. Here is what they must not do.

mod support;

use support::{error, kaleidoscope, value};

const MODES: [&[&str]; 4] = [&[], &["--lazy"], &["--tiered"], &["-O", "none", "--threads", "2"]];

#[test]
fn a_conversation_goes_on_after_what_nobody_catches() {
    let input = "1\nthrow 5\n2\ndef f(x) throw x + 1\nf(7)\ntry f(1) catch e 10 * e\n3\n";
    for mode in MODES {
        let ran = kaleidoscope(mode, input);
        assert_eq!(ran.out, "1\n2\n20\n3\n", "{mode:?}");
        let expected = "Error: nothing caught 5, which was thrown\nError: nothing caught 8, which was thrown\n";
        assert_eq!(ran.err, expected, "{mode:?}");
    }
}

#[test]
fn a_program_ends_with_what_nobody_catches() {
    for mode in MODES {
        let ran = kaleidoscope(&[mode, &["-e", "def f(x) throw x; f(3); 4"]].concat(), "");
        assert_eq!(ran.err, "Error: nothing caught 3, which was thrown\n", "{mode:?}");
        assert!(!ran.success && ran.out.is_empty(), "{mode:?}: {ran:?}");
    }
}

#[test]
fn a_function_that_is_replaced_throws_to_its_old_callers() {
    let program = "def f(x) x; def g(x) try f(x) catch e 100 + e; g(1); def f(x) throw x; g(1)";
    for mode in MODES {
        let ran = kaleidoscope(&[mode, &["-e", program]].concat(), "");
        assert_eq!((&*ran.out, &*ran.err), ("1\n101\n", ""), "{mode:?}");
    }
}

#[test]
fn any_double_can_be_thrown() {
    assert_eq!(value("try throw 0/0 catch e e"), value("0/0"));
    assert_eq!(value("try throw 1/0 catch e e"), "inf");
    assert_eq!(value("try 0-throw 0 catch e 1/e"), "inf");
}

#[test]
fn a_try_without_a_call_has_its_value() {
    assert_eq!(value("try 1 catch e 2"), "1");
    assert_eq!(value("var x = 3 in try x = 4 catch e x"), "4");
}

#[test]
fn what_is_not_an_exception_is_said() {
    assert!(error("try 1").contains("expected `catch`, found the end"));
    assert!(error("try 1 catch 2 3").contains("expected a name for what is caught, found a number"));
    assert!(error("try 1 catch e 2 : e").contains("operator `:` is not defined"));
    assert!(error("(try 1 catch e 2) + e").contains("unknown variable `e`"));
    assert!(error("try catch e 1").contains("expected `catch`, found a name"));
}

#[test]
fn the_words_of_exceptions_can_be_names() {
    assert_eq!(value("def try(x) x + 1; try(1)"), "2");
    assert_eq!(value("def throw(x) if x < 1 then 0 else throw(x - 1) + 2; throw(3)"), "6");
    assert_eq!(value("def catch(x) x; try catch(1) + 1 catch catch catch + 5; catch(3)"), "2\n3");
    assert_eq!(value("def f(try throw catch) try - throw * catch f(9, 2, 3)"), "3");
    assert_eq!(value("var try = 3, throw in (for catch = 0, catch < try in throw = throw + (catch)) + throw"), "6");
}

#[test]
fn a_variable_of_the_name_of_a_word_leaves_the_word_to_other_items() {
    assert_eq!(value("def f(throw) (throw) - 1; def g(try) try; try throw f(g(5)) catch e e * 10"), "40");
}

#[test]
fn a_definition_that_is_refused_leaves_the_word() {
    let ran = kaleidoscope(&[], "def throw(x) y\ntry throw (1) catch e e + 1\n");
    assert_eq!(ran.out, "2\n", "{}", ran.err);
}

#[test]
fn only_the_jit_has_exceptions() {
    for emit in ["llvm-ir", "obj"] {
        let ran = kaleidoscope(&["--emit", emit, "-o", "-", "-e", "1; try 2 catch e 3"], "");
        assert!(!ran.success && ran.out.is_empty(), "{emit}");
        assert!(ran.err.contains("`throw` and `try` need the JIT"), "{emit}: {}", ran.err);
    }
    let ran = kaleidoscope(&["--emit", "clif", "-e", "def f(x) x; try f(2) catch e 3"], "");
    assert!(ran.success && ran.out.contains("try_call"), "{ran:?}");
}
