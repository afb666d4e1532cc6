//! The command line.

mod support;

use std::fs;

use support::{doubles, kaleidoscope, value};

#[test]
fn a_program_that_forks_is_compiled_on_in_both_processes() {
    for threads in ["0", "2"] {
        let ran = kaleidoscope(&["--threads", threads, "-e", "extern fork(); fork(); def f(x) x+40; f(2)"], "");
        let answers = ran.out.lines().filter(|line| *line == "42").count();
        assert_eq!((answers, ran.err.as_str()), (2, ""), "{}", ran.out);
    }
}

#[test]
fn an_expression_is_evaluated() {
    assert_eq!(value("1+2"), "3");
    assert_eq!(value("def f(x) x * x; f(3); f(4)"), "9\n16");
}

#[test]
fn an_expression_may_begin_with_an_operator() {
    let ran = kaleidoscope(&["-e", "def unary-(v) 0-v;", "-e", "-1"], "");
    assert_eq!(ran.out, "-1\n", "{}", ran.err);
}

#[test]
fn files_and_expressions_are_one_program() {
    let folder = tempfile::tempdir().unwrap();
    let [first, second] = ["a.ks", "b.ks"].map(|name| folder.path().join(name).to_str().unwrap().to_owned());
    fs::write(&first, "def f(x) x + 1; f(1)").unwrap();
    fs::write(&second, "def g(x) f(x) * 2; g(1)").unwrap();
    let ran = kaleidoscope(&[&first, &second, "-e", "g(10)"], "");
    assert_eq!(ran.out, "2\n4\n22\n", "{}", ran.err);
}

#[test]
fn standard_input_can_be_a_file() {
    assert_eq!(kaleidoscope(&["-"], "1\n+ 2").out, "3\n");
}

#[test]
fn values_read_back_to_the_same_double() {
    let (values, program) = doubles();
    let ran = kaleidoscope(&["-"], program);
    assert_eq!(ran.out.lines().count(), values.len());
    for (line, value) in ran.out.lines().zip(values) {
        assert_eq!(line.parse::<f64>().unwrap().to_bits(), value.to_bits(), "{line}");
    }
}

#[test]
fn functions_of_up_to_the_greatest_number_of_parameters_work() {
    for count in [0, 1, 8, 9, 64, 255] {
        let parameters: Vec<_> = (0..count).map(|i| format!("p{i}")).collect();
        let arguments: Vec<_> = (0..count).map(|i| i.to_string()).collect();
        let sum = if count == 0 { "0".to_owned() } else { parameters.join("+") };
        let program = format!("def f({}) {sum}; f({})", parameters.join(" "), arguments.join(", "));
        assert_eq!(value(&program), (count * (count.max(1) - 1) / 2).to_string());
    }
}

#[test]
fn functions_of_the_process_are_found() {
    assert_eq!(value("extern atan2(y x); atan2(1, 1) * 4"), "3.141592653589793");
    assert_eq!(value("extern ldexp_is_nowhere(x); def f(x) ldexp_is_nowhere(x); 1"), "1");
}

#[test]
fn standard_output_that_is_closed_ends_the_command_quietly() {
    use std::process::Stdio;
    let mut child = support::target_program(env!("CARGO_BIN_EXE_kaleidoscope"))
        .args(["-e", "for i = 0, i < 1 in 1; 2; 3"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
}

#[test]
fn clif_can_be_emitted() {
    let ran = kaleidoscope(&["--emit", "clif", "-e", "extern sin(x); def f(x) sin(x); f(1)"], "");
    assert!(ran.out.contains("; f(x)\n"), "{}", ran.out);
    assert!(ran.out.contains("is sin\n"), "{}", ran.out);
    assert_eq!(ran.out.matches("\nfunction ").count(), 2, "{}", ran.out);
}

#[test]
fn llvm_ir_can_be_emitted() {
    let ran = kaleidoscope(&["--emit", "llvm-ir", "-o", "-", "-e", "extern sin(x); sin(0.1)"], "");
    assert!(ran.out.contains("call double @\"sin\"(double 0x3FB999999999999A) nobuiltin"), "{}", ran.out);
}

#[test]
fn statistics_go_to_standard_error() {
    let ran = kaleidoscope(&["--stats", "--threads", "1", "-e", "def f(x) x; f(1)"], "");
    assert_eq!(ran.out, "1\n");
    for text in ["functions compiled             2", "bytes of code", "bytes of data", "time to compile", "time to run"]
    {
        assert!(ran.err.contains(text), "{}", ran.err);
    }
}

#[test]
fn laziness_compiles_only_what_is_called() {
    let program = "def f(x) x; def g(x) x; def h(x) if x then f(x) else g(x); h(1)";
    for (option, compiled) in [("--eager", 4), ("--lazy", 3), ("--tiered", 3)] {
        let ran = kaleidoscope(&["--stats", option, "-e", program], "");
        assert_eq!(ran.out, "1\n");
        assert!(ran.err.contains(&format!("functions compiled {compiled:>13}\n")), "{option}: {}", ran.err);
    }
}

#[test]
fn lazily_no_clif_is_built_of_what_is_not_called() {
    // `never` calls what is called, and `h` calls what is not.
    let program = "def f(x) x; def g(x) x; def never(x) f(x); def h(x) if x then f(x) else g(x); h(1)";
    // Tiers begin with CLIF: it is compiled twice.
    for (option, lowered, compiled) in [("--eager", 5, 5), ("--lazy", 3, 3), ("--tiered", 5, 3)] {
        let ran = kaleidoscope(&["--stats", option, "-e", program], "");
        assert_eq!(ran.out, "1\n");
        for (what, count) in [("lowered", lowered), ("compiled", compiled)] {
            let line = format!("{:<20}{count:>12}\n", format!("functions {what}"));
            assert!(ran.err.contains(&line), "{option}: {}", ran.err);
        }
    }
}

#[test]
fn wrong_options_are_refused() {
    for arguments in [
        &["--emit", "wasm"][..],
        &["-O", "3"],
        &["--lazy", "--eager"],
        &["--lazy", "--tiered"],
        &["--threads", "many"],
        &["-o", "x"],
        &["--what"],
    ] {
        let ran = kaleidoscope(arguments, "");
        assert!(!ran.success && ran.err.starts_with("error:"), "{arguments:?}: {ran:?}");
    }
}

#[test]
fn a_file_that_cannot_be_read_or_written_is_named() {
    let ran = kaleidoscope(&["no/such/file.ks"], "");
    assert!(!ran.success && ran.err.starts_with("Error: cannot read no/such/file.ks: "), "{ran:?}");
    let ran = kaleidoscope(&["--emit", "obj", "-o", "no/such/file.o", "-e", "1"], "");
    assert!(!ran.success && ran.err.starts_with("Error: cannot write no/such/file.o: "), "{ran:?}");
}
