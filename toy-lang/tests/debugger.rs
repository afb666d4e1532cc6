//! A program in GDB: breakpoints, steps, backtraces and variables.

mod support;

use std::process::Command;

const PROGRAM: &str = "\
def helper(a b)
  var sum = a + b in
  sum * 2;

def work(x)
  var y = x + 1 in
    helper(x, y) + y;

def loop(n)
  var total = 0 in
    (for i = 1, i < n in
      total = total + i) + total;

work(3);
loop(4);
";

/// What GDB prints to a script, of the program.
fn gdb(commands: &[&str]) -> String {
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("program.ks");
    std::fs::write(&program, PROGRAM).unwrap();
    let mut command = Command::new("gdb");
    command.args(["-nx", "-batch", "-ex", "set breakpoint pending on", "-ex", "set pagination off"]);
    for line in commands {
        command.args(["-ex", line]);
    }
    let kaleidoscope = env!("CARGO_BIN_EXE_kaleidoscope");
    let output = command.args(["--args", kaleidoscope, "-g"]).arg(&program).output().unwrap();
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Checks that the texts appear, in this order.
fn in_order(output: &str, texts: &[&str]) {
    let mut rest = output;
    for text in texts {
        let at = rest.find(text).unwrap_or_else(|| panic!("no '{text}' where it should be in\n{output}"));
        rest = &rest[at + text.len()..];
    }
}

#[test]
fn a_breakpoint_stops_at_a_function_with_its_callers_and_variables() {
    let output = gdb(&["break helper", "run", "bt 3", "print a", "print b", "step", "print sum", "up", "print y"]);
    in_order(
        &output,
        &[
            "program.ks:2",
            "var sum = a + b in",
            "#0  helper (a=3, b=4) at ",
            "#1  ",
            " in work (x=<optimized out>) at ",
            "program.ks:7",
            "#2  ",
            "$1 = 3",
            "$2 = 4",
            "3\t  sum * 2;",
            "$3 = 7",
            "in work (x=<optimized out>) at ",
            "$4 = 4",
        ],
    );
}

#[test]
fn a_breakpoint_stops_at_a_line_each_time_round() {
    let output = gdb(&["break program.ks:12", "run", "print i", "continue", "print i", "continue", "print i"]);
    in_order(&output, &["program.ks:12", "$1 = 1", "program.ks:12", "$2 = 2", "program.ks:12", "$3 = 3"]);
}

#[test]
fn a_step_off_a_breakpoint_computes_what_the_program_does() {
    let output = gdb(&["break program.ks:6", "break program.ks:3", "run", "continue", "continue"]);
    in_order(&output, &["program.ks:6", "program.ks:3", "\n18\n", "exited normally"]);
}

#[test]
fn the_program_runs_to_its_end_and_its_functions_are_withdrawn() {
    let output = gdb(&["break work", "run", "delete", "continue"]);
    in_order(&output, &["program.ks:6", "\n18\n", "exited normally"]);
}
