//! Objects made by the system's compilers and assemblers.

use std::process::Command;

/// Runs a compiler or assembler on `source`, and returns the object it wrote.
pub(crate) fn build(command: &[&str], extension: &str, source: &str) -> Vec<u8> {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let (input, output) = (folder.path().join("input").with_extension(extension), folder.path().join("output.o"));
    std::fs::write(&input, source).expect("the source can be written");
    run(Command::new(command[0]).args(&command[1..]).arg("-o").arg(&output).arg(&input));
    std::fs::read(&output).expect("the compiler wrote an object")
}

/// Runs a command that has to succeed.
pub(crate) fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?} can't be run: {error}"));
    assert!(output.status.success(), "{command:?}:\n{}", String::from_utf8_lossy(&output.stderr));
}
