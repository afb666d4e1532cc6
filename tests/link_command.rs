//! `orcane inspect` and `orcane link`, on objects for a machine that need not be this one.

#![cfg(all(feature = "cli", target_os = "linux"))]

use std::path::Path;
use std::process::{Command, Output};

fn orcane(arguments: &[&str], folder: &Path) -> Output {
    // Where programs of the target need an emulator, Cargo's own setting names it.
    let runner = std::env::var("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER").unwrap_or_default();
    let runner = if cfg!(target_arch = "aarch64") { runner } else { String::new() };
    let mut words = runner.split_whitespace().chain([env!("CARGO_BIN_EXE_orcane")]);
    let mut command = Command::new(words.next().expect("there is at least the command"));
    command.args(words).args(arguments).current_dir(folder).output().expect("the command can be run")
}

fn compile(folder: &Path, name: &str, source: &str) {
    std::fs::write(folder.join(name).with_extension("c"), source).expect("the folder can be written to");
    let arguments = ["-target", "aarch64-linux-gnu", "-O1", "-c", "-fno-asynchronous-unwind-tables"];
    let status = Command::new("clang-22").args(arguments).arg(format!("{name}.c")).current_dir(folder).status();
    assert!(status.expect("clang is there").success());
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("it is UTF-8")
}

#[test]
fn objects_are_linked_at_an_address_with_a_map_of_what_is_where() {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("link_command");
    std::fs::create_dir_all(&folder).expect("a folder can be made");
    let folder = &*folder;
    compile(
        folder,
        "caller",
        "extern int callee(int), outside(void);\nint main(void) { return callee(1) + outside(); }\n",
    );
    compile(folder, "callee", "int callee(int n) { return n + 1; }\n");

    let output = orcane(&["inspect", "caller.o"], folder);
    let graph = text(&output.stdout);
    for line in ["graph \"caller.o\" AArch64", "main: function", "Branch26 callee +0", "external outside"] {
        assert!(graph.contains(line), "there is no '{line}' in:\n{graph}");
    }

    let link = ["link", "--no-exec", "--triple", "aarch64-unknown-linux-gnu", "--base", "0x10000000"];
    let files = ["caller.o", "callee.o"];
    let output = orcane(&[&link[..], &files].concat(), folder);
    assert!(!output.status.success());
    assert!(text(&output.stderr).contains("caller.o: outside is undefined"), "{}", text(&output.stderr));

    let outputs = ["--define", "outside=0x10003000", "--map", "map.json", "--dump", "dump"];
    let output = orcane(&[&link[..], &outputs, &files].concat(), folder);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let map = std::fs::read_to_string(folder.join("map.json")).expect("the map is written");
    let address = |name: &str| -> u64 {
        let entry = format!("{{\"name\":\"{name}\",\"address\":");
        let rest = map.split(&*entry).nth(1).unwrap_or_else(|| panic!("there is no {name} in {map}"));
        rest.split(',').next().and_then(|number| number.parse().ok()).expect("an address is a number")
    };
    assert_eq!(address("main"), 0x1000_0000);
    let code = std::fs::read_dir(folder.join("dump")).expect("the folder is made");
    let code = code.flatten().find(|file| {
        file.file_name().to_string_lossy().starts_with("0.") && file.file_name().to_string_lossy().ends_with(".text")
    });
    let code = std::fs::read(code.expect("the section is written").path()).expect("it can be read");
    let segment = std::fs::read(folder.join("dump/0.Code")).expect("the segment is written");
    assert!(segment.starts_with(&code));
    let branches: Vec<_> = code
        .chunks_exact(4)
        .map(|word| u32::from_le_bytes(word.try_into().expect("four bytes")))
        .enumerate()
        .filter(|(_, word)| word >> 26 == 0b100101)
        .map(|(index, word)| {
            let distance = i64::from((word << 6).cast_signed() >> 4);
            (0x1000_0000 + 4 * index as u64).wrapping_add_signed(distance)
        })
        .collect();
    assert_eq!(branches, [address("callee"), 0x1000_3000]);
}

#[test]
fn the_largest_of_several_commons_is_linked() {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("link_commons");
    std::fs::create_dir_all(&folder).expect("a folder can be made");
    let folder = &*folder;
    compile(folder, "small", "int x[1] __attribute__((common)); int main(void) { return x[0]; }\n");
    compile(folder, "large", "int x[16] __attribute__((common)); int *get(void) { return x; }\n");
    for files in [["small.o", "large.o"], ["large.o", "small.o"]] {
        let output = orcane(&[&["link", "--no-exec", "--map", "map.json"][..], &files].concat(), folder);
        assert!(output.status.success(), "{}", text(&output.stderr));
        let map = std::fs::read_to_string(folder.join("map.json")).expect("the map is written");
        let entries = map.split("{\"name\":\"x\",").skip(1).map(|entry| entry.split('}').next().unwrap_or(entry));
        let entries: Vec<_> = entries.collect();
        // Where it is, and where the other object finds it.
        assert!(matches!(entries[..], [one, other] if one == other && one.ends_with("\"size\":64")), "{entries:?}");
    }
}

#[test]
fn bounds_of_a_section_that_several_files_have_are_an_error() {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("link_bounds");
    std::fs::create_dir_all(&folder).expect("a folder can be made");
    let folder = &*folder;
    let own = "__attribute__((used, section(\"list\"))) static long own = 1;\n";
    compile(folder, "asks", &format!("{own}extern long __start_list[]; long *start = __start_list;\n"));
    compile(folder, "other", own);
    let output = orcane(&["link", "--no-exec", "asks.o"], folder);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let output = orcane(&["link", "--no-exec", "other.o", "asks.o"], folder);
    let error = text(&output.stderr);
    assert!(!output.status.success() && error.contains("asks.o") && error.contains("'list'"), "{error}");
}

#[test]
fn a_section_whose_name_is_longer_than_a_files_is_written() {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("link_long_name");
    std::fs::create_dir_all(&folder).expect("a folder can be made");
    let folder = &*folder;
    let name = format!(".text.{}", "long".repeat(100));
    compile(folder, "long", &format!("__attribute__((section(\"{name}\"))) int main(void) {{ return 0; }}\n"));
    let output = orcane(&["link", "--no-exec", "--dump", "dump", "long.o"], folder);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let files = std::fs::read_dir(folder.join("dump")).expect("the folder is made");
    let is_it = |name: String| name.starts_with("0.") && name.contains(".text.longlong");
    assert!(files.flatten().any(|file| is_it(file.file_name().to_string_lossy().into_owned())));
}
