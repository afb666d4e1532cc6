//! What `perf` finds of compiled code.

#![cfg(target_os = "linux")]

mod common;
#[path = "common/jitdump.rs"]
mod jitdump;

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use cranelift_codegen::ir::{AbiParam, InstBuilder, SourceLoc, types};
use cranelift_module::{Linkage, Module};
use jit_core::{Jit, JitBuilder, Profiler, SourceText};

/// Compiles `f`, whose lines are known, and gives where it is.
fn compile(builder: JitBuilder) -> (Jit, u64) {
    let jit = builder.build().unwrap();
    let mut module = jit.module("profiled").source(SourceText::new("/src/prog.k", "one\ntwo\n"));
    let mut signature = module.make_signature();
    signature.returns.push(AbiParam::new(types::I64));
    let id = module.declare_function("f", Linkage::Export, &signature).unwrap();
    common::build(&mut module, id, |_, builder| {
        builder.set_srcloc(SourceLoc::new(4));
        let value = builder.ins().iconst(types::I64, 4);
        builder.ins().return_(&[value]);
    });
    jit.add_module(module).unwrap();
    let address = jit.lookup_address("f").unwrap();
    (jit, address)
}

#[test]
fn the_map_has_a_line_for_each_function() {
    let (_jit, address) = compile(Jit::builder().profiler(Profiler::PerfMap));
    let path = format!("/tmp/perf-{}.map", std::process::id());
    let map = std::fs::read_to_string(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    let lines: Vec<Vec<&str>> = map.lines().map(|line| line.splitn(3, ' ').collect()).collect();
    let line = lines.iter().find(|line| line[2] == "f").unwrap();
    assert_eq!(u64::from_str_radix(line[0], 16).unwrap(), address);
    assert!((1..100).contains(&u64::from_str_radix(line[1], 16).unwrap()));
}

#[test]
fn the_dump_has_code_lines_and_unwind_information() {
    let folder = tempfile::tempdir().unwrap();
    let (_jit, address) = compile(Jit::builder().profiler(Profiler::JitDump(folder.path().to_owned())));
    let path = folder.path().join(format!("jit-{}.dump", std::process::id()));
    let dump = jitdump::read(&std::fs::read(&path).unwrap());
    assert_eq!((dump.process, dump.functions.len()), (std::process::id(), 1));
    let function = dump.function("f");
    assert_eq!(function.address, address);
    // SAFETY: the code of the function, which is in memory as long as the JIT.
    let code = unsafe { std::slice::from_raw_parts(address as *const u8, function.code.len()) };
    assert_eq!(function.code, code);
    let lines = function.lines_of("/src/prog.k");
    assert!(!lines.is_empty() && lines.iter().all(|line| *line == 2), "{lines:?}");
    // At the return they are restored again.
    assert!(function.most_restored() > 0);

    // By this `perf record` knows of the file. Where the emulator has put it behind the program's data, it calls it the heap.
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let number = std::fs::metadata(&path).unwrap().ino().to_string();
    let mapping = maps.lines().find(|line| line.split_whitespace().nth(4) == Some(&number));
    let mapping = mapping.unwrap_or_else(|| panic!("{}, {number}, is not in\n{maps}", path.display()));
    assert_eq!(mapping.split_whitespace().nth(1), Some("r-xp"), "{mapping}");
    assert_eq!(mapping.split_whitespace().nth(2), Some("00000000"), "{mapping}");
}

/// What a JIT writes for profilers that was built without a word about them, in a process with this environment: its
/// output and whether it could be built.
fn by_environment(folder: &Path, value: &str) -> (String, bool) {
    let mut words = vec![std::env::current_exe().unwrap().display().to_string()];
    if cfg!(target_arch = "aarch64")
        && let Ok(runner) = std::env::var("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER")
    {
        words.splice(0..0, runner.split_whitespace().map(str::to_owned));
    }
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]).args(["--exact", "a_jit_in_an_environment", "--nocapture", "--test-threads", "1"]);
    command.env("ORCANE_PROFILER", value).env("JITDUMPDIR", folder).env(CHILD, "1");
    let output = command.output().unwrap();
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    (text, output.status.success())
}

/// Says to the test below that it is a child.
const CHILD: &str = "ORCANE_TEST_OF_PROFILERS";

/// In the processes that the next test starts: compiles with a JIT whose settings are the default ones. Alone, it
/// checks that nothing is written then.
#[test]
fn a_jit_in_an_environment() {
    if std::env::var_os(CHILD).is_some() {
        let (_jit, address) = compile(Jit::builder());
        println!("process {} address {address:x} end", std::process::id());
    } else {
        let folder = tempfile::tempdir().unwrap();
        let (output, success) = by_environment(folder.path(), "");
        assert!(success, "{output}");
        let process = output.split("process ").nth(1).and_then(|rest| rest.split(' ').next()).unwrap();
        assert!(!Path::new(&format!("/tmp/perf-{process}.map")).exists());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}

#[test]
fn the_environment_says_what_is_written_of_compiled_code() {
    let folder = tempfile::tempdir().unwrap();
    let word = |output: &str, before: &str| {
        let rest = output.split(before).nth(1).unwrap_or_else(|| panic!("no '{before}' in {output}"));
        rest.split(' ').next().unwrap().to_owned()
    };

    let (output, success) = by_environment(folder.path(), "perf-map");
    assert!(success, "{output}");
    let path = format!("/tmp/perf-{}.map", word(&output, "process "));
    let map = std::fs::read_to_string(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    let line = map.lines().find(|line| line.ends_with(" f")).unwrap_or_else(|| panic!("{map}"));
    assert!(line.starts_with(&format!("{} ", word(&output, "address "))), "{line}");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);

    let (output, success) = by_environment(folder.path(), "jitdump");
    assert!(success, "{output}");
    let path = folder.path().join(format!("jit-{}.dump", word(&output, "process ")));
    let dump = jitdump::read(&std::fs::read(path).unwrap());
    assert_eq!(format!("{:x}", dump.function("f").address), word(&output, "address "));

    let (output, success) = by_environment(folder.path(), "gprof");
    assert!(!success && output.contains("ORCANE_PROFILER is 'gprof', not 'perf-map' or 'jitdump'"), "{output}");
}
