//! Conversations, with input from a pipe: the same as at a terminal, without decoration.

mod support;

use support::kaleidoscope;

/// Asserts what a conversation prints. Errors are looked for in `errors`, in order.
#[track_caller]
fn assert_conversation(input: &str, output: &str, errors: &[&str]) {
    let ran = kaleidoscope(&[], input);
    assert_eq!(ran.out, output, "{}", ran.err);
    assert_eq!(ran.err.matches("Error:").count(), errors.len(), "{}", ran.err);
    let mut rest = ran.err.as_str();
    for error in errors {
        let at = rest.find(error).unwrap_or_else(|| panic!("{error}: {}", ran.err));
        rest = &rest[at..];
    }
    assert!(ran.success);
}

#[test]
fn lazy_functions_can_be_redefined() {
    let input = "def f(x) x+1\ndef g(x) f(x)*2\ng(3)\ndef f(x) x+100\ng(3)\ndef g(x) f(x)\ng(3)\n";
    let ran = kaleidoscope(&["--lazy", "--threads", "2"], input);
    assert_eq!(ran.out, "8\n206\n103\n", "{}", ran.err);
}

#[test]
fn errors_show_the_line_of_the_conversation() {
    let ran = kaleidoscope(&[], "1\n2; 3\n4; y\n");
    assert!(ran.err.contains("<stdin>:3:4 ") && ran.err.contains("3 │ 4; y"), "{}", ran.err);
}

#[test]
fn values_are_printed_line_by_line() {
    assert_conversation("1+2\ndef f(x) x*2\nf(4); f(5)\n", "3\n8\n10\n", &[]);
}

#[test]
fn an_item_may_span_lines() {
    assert_conversation("def f(x)\n  if x < 1 then\n\n    1\n  else # why not\n    2\nf(0)\nf(\n1\n)", "1\n2\n", &[]);
}

#[test]
fn callers_see_the_new_body() {
    let input = "def f(x) x+1\ndef g(x) f(x)*2\ng(3)\ndef f(x) x+100\ng(3)\ndef g(x) f(x)\ng(3)\n";
    assert_conversation(input, "8\n206\n103\n", &[]);
}

#[test]
fn a_recursive_function_calls_its_new_body() {
    assert_conversation(
        "def f(n) if n < 1 then 0 else 1 + f(n-1)\nf(5)\ndef f(n) if n < 1 then 0 else 2 + f(n-1)\nf(5)",
        "5\n10\n",
        &[],
    );
}

#[test]
fn a_function_may_be_defined_after_its_caller() {
    let input = "extern later(x)\ndef f(x) later(x) + 1\nf(1)\ndef later(x) x * 10\nf(1)\n";
    assert_conversation(input, "11\n", &["<stdin>:3:1 "]);
}

#[test]
fn a_definition_replaces_a_function_of_the_process_for_its_callers() {
    let input = "extern floor(x)\ndef f(x) floor(x)\nf(1.5)\ndef floor(x) 0-x\nf(1.5)\nfloor(1)\n";
    assert_conversation(input, "1\n-1.5\n-1\n", &[]);
}

#[test]
fn a_definition_replaces_a_function_of_the_runtime() {
    assert_conversation("extern printd(x)\nprintd(1)\ndef printd(x) x\nprintd(1)", "1.000000\n0\n1\n", &[]);
}

#[test]
fn a_body_that_waits_for_a_definition_leaves_its_callers_waiting() {
    let input = "def f(x) x\ndef g(x) f(x)\ng(1)\nextern h(x)\ndef f(x) h(x)\ng(2)\ndef h(x) x*10\ng(3)\n";
    assert_conversation(input, "1\n30\n", &["`h` is declared"]);
}

#[test]
fn the_conversation_goes_on_after_an_error() {
    let input = "1 +* 2\n3\nf(1)\n4\ndef f(x) y\nf(1)\ndef f(x) x\nf(5)\n";
    let errors = ["<stdin>:1:4 ", "<stdin>:3:1 ", "<stdin>:5:10 ", "<stdin>:6:1 "];
    assert_conversation(input, "3\n4\n5\n", &errors);
}

#[test]
fn an_operator_whose_definition_fails_is_not_defined() {
    assert_conversation(
        "def binary|(a b) c\n1 | 2\n3",
        "3\n",
        &["unknown variable `c`", "operator `|` is not defined"],
    );
}

#[test]
fn a_failed_redefinition_leaves_the_old_body() {
    assert_conversation(
        "def f(x) x\ndef f(x) y\ndef f(x z) x\nf(1)",
        "1\n",
        &["unknown variable", "can't change to 2"],
    );
}

#[test]
fn a_line_that_is_not_utf8_is_an_error_of_that_line() {
    let ran = kaleidoscope(&[], b"1\n\xff\xff\n2\n");
    assert_eq!(ran.out, "1\n2\n");
    assert!(ran.err.contains("<stdin>:2:1 "), "{}", ran.err);
}

#[test]
fn input_that_ends_too_early_is_an_error() {
    assert_conversation("1\ndef f(x)\n", "1\n", &["expected an expression, found the end"]);
}

#[test]
fn help_lists_the_commands() {
    let ran = kaleidoscope(&[], ":help\n");
    for command in [":help", ":defs", ":type", ":clif", ":asm", ":time", ":stats", ":quit"] {
        assert!(ran.out.contains(command), "{}", ran.out);
    }
}

#[test]
fn definitions_can_be_inspected() {
    let input =
        "extern sin(x)\ndef binary| 7 (a b) a\ndef f(x y) x\n:type f\n:type |\n:type binary |\n:defs\n:type g\n";
    let output = "def f(x y)\ndef binary| 7 (a b)\ndef binary| 7 (a b)\n\
                  def binary| 7 (a b)\ndef f(x y)\nextern sin(x)\n";
    assert_conversation(input, output, &["unknown function `g`"]);
}

#[test]
fn clif_and_machine_code_can_be_shown() {
    let ran = kaleidoscope(&[], "extern sin(x)\ndef f(x) sin(x) + 2\n:clif f\n:asm f\n:clif sin\n:asm\n");
    for text in ["; f(x)\n", "is sin\n", "fadd", "ret"] {
        assert!(ran.out.contains(text), "{text}: {}", ran.out);
    }
    assert!(ran.err.contains("`sin` is not defined"), "{}", ran.err);
    assert!(ran.err.contains("`:asm` needs the name of a function"), "{}", ran.err);
}

#[test]
fn times_are_shown_on_request() {
    let ran = kaleidoscope(&[], "1\n:time on\n2\n:time off\n3\n:time\n");
    let lines: Vec<_> = ran.out.lines().collect();
    assert_eq!([lines[0], lines[1], lines[3]], ["1", "2", "3"]);
    assert!(lines[2].starts_with("# ") && lines[2].contains(" ms"), "{}", lines[2]);
    assert!(ran.err.contains("`:time on` or `:time off`"), "{}", ran.err);
}

#[test]
fn statistics_are_shown() {
    let ran = kaleidoscope(&[], "def f(x) x\nf(1)\n:stats\n");
    assert!(ran.out.contains("functions compiled             2"), "{}", ran.out);
}

#[test]
fn quitting_ends_the_conversation() {
    assert_conversation("1\n:nonsense\n:quit\n2\n", "1\n", &["unknown command `:nonsense`"]);
}
