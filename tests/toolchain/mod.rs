//! Compilers of the system, and programs linked by the system's linker and by Orcane.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::LazyLock;

/// A directory of a test's own, empty.
pub(crate) fn directory(test: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(test);
    _ = std::fs::remove_dir_all(&path);
    std::fs::create_dir_all(&path).unwrap();
    path
}

/// Runs a tool, which has to succeed.
pub(crate) fn tool(directory: &Path, words: &[&str]) {
    let output = Command::new(words[0]).args(&words[1..]).current_dir(directory).output();
    let output = output.unwrap_or_else(|error| panic!("{}: {error}", words[0]));
    assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Compiles a text and gives the object's name. The extension says which language it is in.
pub(crate) fn compile(directory: &Path, compiler: &[&str], file: &str, text: &str) -> String {
    std::fs::write(directory.join(file), text).unwrap();
    let object = format!("{}.o", file.split('.').next().unwrap());
    tool(directory, &[compiler, &["-c", file, "-o", &object]].concat());
    object
}

/// `orcane run` in a directory.
pub(crate) fn orcane(directory: &Path, arguments: &[&str]) -> Output {
    let mut words = runner();
    words.push(env!("CARGO_BIN_EXE_orcane").to_owned());
    Command::new(&words[0]).args(&words[1..]).args(arguments).current_dir(directory).output().unwrap()
}

/// Where programs of the target need an emulator, Cargo's own setting names it.
pub(crate) fn runner() -> Vec<String> {
    let runner = std::env::var("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER").unwrap_or_default();
    let runner = if cfg!(target_arch = "aarch64") { runner } else { String::new() };
    runner.split_whitespace().map(str::to_owned).collect()
}

/// What a program wrote and its status.
pub(crate) fn told(output: &Output) -> (String, String, Option<i32>) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (text(&output.stdout), text(&output.stderr), output.status.code())
}

/// Runs objects as Orcane links them and as the system does, and compares all that is seen of it.
pub(crate) fn same_as_native(directory: &Path, objects: &[&str], libraries: &[&str], arguments: &[&str]) {
    tool(directory, &[&[GXX], objects, &["-o", "native"], libraries].concat());
    let mut words = runner();
    words.push(directory.join("native").display().to_string());
    let native = Command::new(&words[0]).args(&words[1..]).args(arguments).current_dir(directory).output().unwrap();
    let native = told(&native);
    assert!(native.2.is_some() && !native.0.is_empty(), "{native:?}");
    let runtime = runtime();
    let runtime: Vec<&str> = runtime.iter().map(String::as_str).collect();
    let jit = told(&orcane(directory, &[&["run"], objects, &runtime, &["--"], arguments].concat()));
    assert_eq!(jit, native, "{objects:?}");
}

/// The part of the compiler's library that it links into each program: on AArch64, atomic operations.
pub(crate) fn runtime() -> Option<String> {
    if cfg!(target_arch = "x86_64") {
        return None;
    }
    let output = Command::new(GCC).arg("-print-libgcc-file-name").output().unwrap();
    Some(String::from_utf8(output.stdout).unwrap().trim().to_owned())
}

/// Compilers for the architecture of the tests, whichever the machine has.
pub(crate) const GCC: &str =
    if cfg!(target_arch = "aarch64") { "aarch64-linux-gnu-gcc" } else { "x86_64-linux-gnu-gcc" };
pub(crate) const GXX: &str =
    if cfg!(target_arch = "aarch64") { "aarch64-linux-gnu-g++" } else { "x86_64-linux-gnu-g++" };
const TARGET: &str =
    if cfg!(target_arch = "aarch64") { "--target=aarch64-linux-gnu" } else { "--target=x86_64-linux-gnu" };

/// What compilers make of C: the command of each, with its options.
pub(crate) const C: [&[&str]; 4] =
    [&[GCC, "-O0"], &[GCC, "-O2"], &["clang-22", "-O0", TARGET], &["clang-22", "-O2", TARGET]];

/// As [`C`], of C++.
pub(crate) const CXX: [&[&str]; 4] = [
    &[GXX, "-std=c++17", "-O0"],
    &[GXX, "-std=c++17", "-O2"],
    &["clang++-22", "-std=c++17", "-O0", TARGET],
    &["clang++-22", "-std=c++17", "-O2", TARGET],
];

/// Where the sources of the crates are.
static CRATES: LazyLock<String> = LazyLock::new(|| {
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/programs/Cargo.toml");
    let words = ["metadata", "--format-version", "1", "--manifest-path", manifest];
    let output = Command::new(env!("CARGO")).args(words).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
});

/// The directory of a crate's files.
pub(crate) fn sources(name: &str) -> PathBuf {
    let paths = CRATES.split("\"manifest_path\":\"").skip(1).map(|rest| &rest[..rest.find('"').unwrap()]);
    let is_it = |path: &&str| path.contains(&format!("/{name}-"));
    Path::new(paths.clone().find(is_it).unwrap_or_else(|| panic!("{name} is not there")))
        .parent()
        .unwrap()
        .to_path_buf()
}

/// A source file of ours.
pub(crate) fn own(file: &str) -> String {
    format!("{}/tests/programs/sources/{file}", env!("CARGO_MANIFEST_DIR"))
}

/// The files of a directory that end in `suffix`, without those that `leave_out` names.
pub(crate) fn files(directory: &Path, suffix: &str, leave_out: &[&str]) -> Vec<String> {
    let entries = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> = entries
        .filter(|path| path.to_string_lossy().ends_with(suffix))
        .filter(|path| !leave_out.contains(&&*path.file_name().unwrap().to_string_lossy()))
        .map(|path| path.display().to_string())
        .collect();
    files.sort();
    files
}
