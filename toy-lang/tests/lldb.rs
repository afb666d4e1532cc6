//! A program in LLDB, which reads what GDB reads.

use std::process::Command;

const PROGRAM: &str = "\
def helper(a b)
  var sum = a + b in
  sum * 2;

def work(x)
  var y = x + 1 in
    helper(x, y) + y;

work(3);
";

#[test]
fn a_breakpoint_stops_at_a_function_with_its_callers_and_variables() {
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("program.ks");
    std::fs::write(&program, PROGRAM).unwrap();
    let mut command = Command::new("lldb");
    command.args(["--no-lldbinit", "--batch"]);
    for line in [
        "settings set plugin.jit-loader.gdb.enable on",
        "breakpoint set --name helper",
        "run",
        "bt 3",
        "frame variable a b",
        "next",
        "frame variable sum",
        "up",
        "frame variable y",
        "continue",
    ] {
        command.args(["-o", line]);
    }
    let kaleidoscope = env!("CARGO_BIN_EXE_kaleidoscope");
    let output = command.args(["--", kaleidoscope, "-g"]).arg(&program).output().unwrap();
    let output = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let mut rest = &*output;
    for text in [
        "helper(a=3, b=4) at program.ks:2",
        "(lldb) bt 3",
        "frame #0: ",
        "`helper(a=3, b=4) at program.ks:2",
        "frame #1: ",
        "`work(",
        "at program.ks:7",
        "frame #2: ",
        "at program.ks:9",
        "(double) a = 3",
        "(double) b = 4",
        "(double) sum = 7",
        "(double) y = 4",
        "exited with status = 0",
    ] {
        let at = rest.find(text).unwrap_or_else(|| panic!("no '{text}' where it should be in\n{output}"));
        rest = &rest[at + text.len()..];
    }
}
