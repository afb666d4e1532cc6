//! What debuggers and profilers are told of objects that compilers have written.
#![cfg(all(feature = "programs", target_os = "linux"))]

#[path = "../jit-core/tests/common/debugger_list.rs"]
mod debugger_list;
#[path = "../jit-core/tests/common/jitdump.rs"]
mod jitdump;
#[allow(dead_code, reason = "each test uses a part")]
mod toolchain;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};

use debugger_list::{files, turn};
use gimli::{AttributeValue, Dwarf, EndianSlice, LittleEndian};
use object::{Object, ObjectSection, ObjectSymbol};
use orcane::linker::format::open;
use orcane::linker::graph::{LinkGraph, SectionRole};
use orcane::{
    Debugger, DumpDirectory, Form, Jit, Link, LinkPlugin, ObjectLayer, ObjectLinkingLayer, ObjectOptions,
    ObjectTransformLayer, Profiler, Program, ProgramOptions, ResourceTracker,
};
use toolchain::{GCC, compile, directory, told};

/// Functions whose places are no multiples of their sections' alignment, and one that nobody needs.
const FUNCTIONS: &str = "
    static int unused(int n) { return n * 3; } int (*volatile never)(int);
    int one(int n) { return n + 1; }
    int two(int n) { return one(n) * 2; }
    __attribute__((aligned(64))) int three(int n) { return two(n) * 3; }
    int four(int n) { if (never) never = unused; return three(n) * 4; }
    int variable = 5;";

const NAMES: [&str; 4] = ["one", "two", "three", "four"];

/// What the information for debuggers says of where functions and variables are, by their names.
fn described(file: &object::File<'_>) -> BTreeMap<String, u64> {
    let load = |id: gimli::SectionId| {
        let section = file.section_by_name(id.name());
        let data = section.map(|section| section.data().unwrap()).unwrap_or_default();
        Ok::<_, gimli::Error>(EndianSlice::new(data, LittleEndian))
    };
    let dwarf = Dwarf::load(load).unwrap();
    let mut found = BTreeMap::new();
    let mut units = dwarf.units();
    while let Some(header) = units.next().unwrap() {
        let unit = dwarf.unit(header).unwrap();
        let mut entries = unit.entries();
        while let Some(entry) = entries.next_dfs().unwrap() {
            let Some(name) = entry.attr_value(gimli::DW_AT_name) else { continue };
            let Ok(name) = dwarf.attr_string(&unit, name) else { continue };
            let address = match entry.tag() {
                gimli::DW_TAG_subprogram => entry.attr_value(gimli::DW_AT_low_pc),
                _ => None,
            };
            let address = match address {
                Some(AttributeValue::Addr(address)) => address,
                Some(AttributeValue::DebugAddrIndex(index)) => dwarf.address(&unit, index).unwrap(),
                _ => continue,
            };
            found.insert(name.to_string_lossy().into_owned(), address);
        }
    }
    found
}

/// Both ways that an object goes into a session.
fn finds_functions(directory: &Path, object: &str) {
    let _turn = turn();
    let bytes = || open(&directory.join(object)).unwrap();

    let jit = Jit::new().unwrap();
    let program = Program::with_options(jit.session().clone(), ProgramOptions::default().debugger(Debugger::On));
    let add = || program.add_object(jit.main(), object, bytes()).unwrap();
    are_found(object, add, |name| program.lookup(jit.main(), name).unwrap());

    let jit = Jit::builder().debugger(Debugger::On).build().unwrap();
    are_found(object, || jit.add_object(object, bytes()).unwrap(), |name| jit.lookup_address(name).unwrap());

    let jit = Jit::builder().debugger(Debugger::On).build().unwrap();
    let add = || {
        let layer = ObjectTransformLayer::new(jit.object_layer().clone());
        let tracker = jit.main().create_tracker().unwrap();
        layer.add(&tracker, object, bytes()).unwrap();
        tracker
    };
    are_found(object, add, |name| jit.lookup_address(name).unwrap());
}

/// Links an object and checks that debuggers find its functions where they are, until it is removed.
fn are_found(object: &str, add: impl FnOnce() -> ResourceTracker, address: impl Fn(&str) -> u64) {
    assert_eq!(files().len(), 0, "nothing is linked");
    let tracker = add();
    assert_eq!(files().len(), 0, "nothing is needed");
    let expected: BTreeMap<_, _> = NAMES.iter().map(|name| ((*name).to_owned(), address(name))).collect();
    // SAFETY: the function has this type.
    let four = unsafe { std::mem::transmute::<usize, extern "C" fn(i32) -> i32>(expected["four"] as usize) };
    assert_eq!(four(1), 48);

    let files = files();
    let files: Vec<_> = files.iter().map(|file| object::File::parse(&**file).unwrap()).collect();
    let file = files.iter().find(|file| file.symbols().any(|symbol| symbol.name() == Ok("two"))).unwrap();
    let symbols: BTreeMap<_, _> =
        file.symbols().map(|symbol| (symbol.name().unwrap().to_owned(), symbol.address())).collect();
    let described = described(file);
    for (name, address) in &expected {
        assert_eq!((symbols.get(name), described.get(name)), (Some(address), Some(address)), "{object}: {name}");
    }
    let code = file.section_by_name(".text").unwrap();
    assert!(expected.values().all(|address| (code.address()..code.address() + code.size()).contains(address)));

    tracker.remove().unwrap();
    assert_eq!(debugger_list::files().len(), 0);
}

#[test]
fn e2e_18_e2e_19_debuggers_find_functions_of_elf_objects_where_they_are() {
    for options in [&["-gdwarf-4"][..], &["-gdwarf-5", "-ffunction-sections"], &["-gdwarf-5", "-O2", "-fno-inline"]] {
        for compiler in [&[GCC][..], &["clang-22", CLANG_TARGET]] {
            let directory = directory(&format!("debug-{}{}", compiler[0], options.concat()));
            let object = compile(&directory, &[compiler, &["-fPIC"], options].concat(), "functions.c", FUNCTIONS);
            finds_functions(&directory, &object);
        }
    }
}

#[test]
fn macho_14_ort_14_debuggers_find_functions_of_mach_o_objects_where_they_are() {
    for options in [&["-gdwarf-4", "-O0"][..], &["-gdwarf-5", "-O0"], &["-gdwarf-4", "-Oz", "-fno-inline"]] {
        let directory = directory(&format!("debug-macho{}", options.concat()));
        let object = compile(&directory, &[&["clang-22", MACHO_TARGET], options].concat(), "functions.c", FUNCTIONS);
        finds_functions(&directory, &object);
    }
}

const CLANG_TARGET: &str =
    if cfg!(target_arch = "aarch64") { "--target=aarch64-linux-gnu" } else { "--target=x86_64-linux-gnu" };
const MACHO_TARGET: &str =
    if cfg!(target_arch = "aarch64") { "--target=arm64-apple-macos11" } else { "--target=x86_64-apple-macos11" };

/// A debugger that starts a program of both formats stops in it and knows its callers.
#[test]
#[cfg(target_arch = "x86_64")]
fn e2e_19_gdb_stops_in_objects_and_knows_lines_and_callers() {
    let directory = directory("gdb");
    let inner = "int doubled(int number) {\n    int twice = number * 2;\n    return twice;\n}\n";
    let main = "int doubled(int);\nint main(void) {\n    return doubled(21) - 42;\n}\n";
    let inner = compile(&directory, &["clang-22", MACHO_TARGET, "-gdwarf-4", "-O0"], "inner.c", inner);
    let main = compile(&directory, &[GCC, "-g", "-O0", "-fPIC"], "main.c", main);
    // Without the option, `orcane` tells a debugger that is there when it starts.
    for option in [Some("--debugger"), None] {
        let mut command = Command::new("gdb");
        command.args(["-nx", "-batch", "-ex", "set breakpoint pending on", "-ex", "set pagination off"]);
        for line in ["break doubled", "run", "bt 2", "next", "print twice", "continue"] {
            command.args(["-ex", line]);
        }
        command.args(["--args", env!("CARGO_BIN_EXE_orcane"), "run"]).args(option).args([&main, &inner]);
        let (output, error, _) = told(&command.current_dir(&directory).output().unwrap());
        let mut rest = &*output;
        for text in [
            "inner.c:2",
            "#0  doubled (number=21) at inner.c:2",
            "in main () at main.c:3",
            "$1 = 42",
            "exited normally",
        ] {
            let at = rest.find(text).unwrap_or_else(|| panic!("{option:?}: no '{text}' next in\n{output}{error}"));
            rest = &rest[at + text.len()..];
        }
    }
}

/// The sections that a link has in memory, by role.
#[derive(Default)]
struct Sections(Mutex<Vec<(String, SectionRole)>>);

impl LinkPlugin for Sections {
    fn loaded(&self, _: &Link, graph: &LinkGraph) {
        let sections = graph.sections().map(|(id, section)| (graph.section_name(id).into_owned(), section.role));
        self.0.lock().unwrap().extend(sections);
    }
}

#[test]
fn rtd_01_sections_without_memory_are_in_memory_where_that_is_enabled() {
    let directory = directory("all-sections");
    let object = compile(&directory, &[GCC, "-g", "-fPIC"], "functions.c", FUNCTIONS);
    for enabled in [false, true] {
        let jit = Jit::new().unwrap();
        let sections = Arc::new(Sections::default());
        let layer = ObjectLinkingLayer::new().with_options(ObjectOptions::default().all_sections(enabled));
        layer.add_plugin(Arc::clone(&sections) as Arc<dyn LinkPlugin>);
        let bytes = open(&directory.join(&object)).unwrap();
        layer.add(&jit.main().default_tracker().unwrap(), "functions.o", bytes).unwrap();
        jit.lookup_address("two").unwrap();
        let notes = sections.0.lock().unwrap().iter().filter(|(_, role)| *role == SectionRole::Note).count();
        let information = sections.0.lock().unwrap().iter().any(|(name, _)| name == ".debug_info");
        assert_eq!((notes > 0, information), (enabled, enabled));
    }
}

/// What `perf` is to know of a program's objects.
#[test]
fn elf_15_profilers_are_told_of_the_functions_of_objects() {
    let directory = directory("perf");
    // Under a runner, the process that is started is another one.
    let main = "#include <stdio.h>\n#include <unistd.h>\nint count(int n) { return n + 1; }
        static int twice(int n) { return 2 * count(n); }
        int main(void) { printf(\"%d\", getpid()); return twice(1); }";
    let object = compile(&directory, &[GCC, "-g", "-O0", "-fPIC"], "main.c", main);
    let run = |profiler: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_orcane"));
        if cfg!(target_arch = "aarch64")
            && let Ok(runner) = std::env::var("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER")
        {
            let words: Vec<_> = runner.split_whitespace().collect();
            command = Command::new(words[0]);
            command.args(&words[1..]).arg(env!("CARGO_BIN_EXE_orcane"));
        }
        let command = command.args(["run", &object]).env("ORCANE_PROFILER", profiler).env("JITDUMPDIR", &directory);
        let (output, error, status) = told(&command.current_dir(&directory).output().unwrap());
        assert_eq!(status, Some(4), "{error}");
        output
    };
    let map = format!("/tmp/perf-{}.map", run("perf-map"));
    let text = std::fs::read_to_string(&map).unwrap();
    std::fs::remove_file(&map).unwrap();
    let names: Vec<_> = text.lines().filter_map(|line| line.split(' ').nth(2)).collect();
    assert!(["count", "twice", "main"].iter().all(|name| names.contains(name)), "{text}");

    let process = run("jitdump");
    let dump = directory.join(format!("jit-{process}.dump"));
    let dump = jitdump::read(&std::fs::read(dump).unwrap());
    assert_eq!(dump.process.to_string(), process);
    for (name, lines) in [("count", [3].as_slice()), ("twice", &[4]), ("main", &[5])] {
        let function = dump.function(name);
        let file = directory.join("main.c").display().to_string();
        let mut known = function.lines_of(&file);
        known.dedup();
        assert_eq!(known, lines, "{name}");
        // The return address, and where `twice` calls, the caller's frame pointer.
        assert!(function.most_restored() >= if name == "count" { 0 } else { 2 }, "{name}");
    }
}

/// What profilers and whoever looks at dumps are told of the objects that a JIT is given.
#[test]
fn elf_15_objects_of_a_jit_are_in_the_map_the_jitdump_and_the_dumps() {
    let directory = directory("jit-object");
    let object = compile(&directory, &[GCC, "-g", "-O0", "-fPIC"], "functions.c", FUNCTIONS);
    for profiler in [Profiler::PerfMap, Profiler::JitDump(directory.clone())] {
        let dumps = Arc::new(DumpDirectory::new(directory.join("dumps")).unwrap());
        let jit = Jit::builder().profiler(profiler.clone()).dumps(dumps.clone()).build().unwrap();
        jit.add_object(&object, open(&directory.join(&object)).unwrap()).unwrap();
        let expected = NAMES.map(|name| jit.lookup_address(name).unwrap());
        let found = if profiler == Profiler::PerfMap {
            let map = std::fs::read_to_string(format!("/tmp/perf-{}.map", std::process::id())).unwrap();
            let line = |name: &str| map.lines().find(|line| line.split(' ').nth(2) == Some(name)).map(str::to_owned);
            NAMES.map(|name| u64::from_str_radix(line(name).unwrap().split(' ').next().unwrap(), 16).unwrap())
        } else {
            let dump = directory.join(format!("jit-{}.dump", std::process::id()));
            let dump = jitdump::read(&std::fs::read(dump).unwrap());
            let source = directory.join("functions.c").display().to_string();
            NAMES.map(|name| {
                let function = dump.function(name);
                // SAFETY: the code of a function that is not removed.
                let code = unsafe { std::slice::from_raw_parts(function.address as *const u8, function.code.len()) };
                assert_eq!(function.code, code);
                let line = FUNCTIONS.lines().position(|line| line.contains(&format!(" {name}(int n)"))).unwrap() + 1;
                assert!(function.lines_of(&source).iter().all(|known| *known as usize == line), "{name}");
                assert!(!function.lines.is_empty() && function.unwind.is_some());
                function.address
            })
        };
        assert_eq!(found, expected);
        dumps_hold(&dumps, &expected);
    }
    _ = std::fs::remove_file(format!("/tmp/perf-{}.map", std::process::id()));
}

#[test]
fn symbols_of_a_program_are_dumped() {
    let directory = directory("program-dumps");
    let object = compile(&directory, &[GCC, "-O0", "-fPIC"], "functions.c", FUNCTIONS);
    let dumps = Arc::new(DumpDirectory::new(directory.join("dumps")).unwrap());
    let jit = Jit::new().unwrap();
    let program = Program::with_options(jit.session().clone(), ProgramOptions::default().dumps(dumps.clone()));
    program.add_object(jit.main(), &object, open(&directory.join(&object)).unwrap()).unwrap();
    assert_eq!(std::fs::read_dir(directory.join("dumps")).unwrap().count(), 0);
    let expected = NAMES.map(|name| program.lookup(jit.main(), name).unwrap());
    dumps_hold(&dumps, &expected);
    // A variable has a place in a graph, and is no code.
    assert!(dumps.file("variable", Form::Graph).exists() && !dumps.file("variable", Form::Object).exists());
}

/// Checks graph and object of each function, which is there, and removes them.
fn dumps_hold(dumps: &DumpDirectory, addresses: &[u64; 4]) {
    for (name, address) in NAMES.iter().zip(addresses) {
        let read = |form| std::fs::read(dumps.file(name, form)).unwrap();
        let graph = String::from_utf8(read(Form::Graph)).unwrap();
        assert!(graph.contains(&format!(" {name}:")), "{graph}");
        let object = read(Form::Object);
        let object = object::File::parse(&*object).unwrap();
        let symbol = object.symbols().find(|symbol| symbol.name() == Ok(name)).unwrap();
        assert_eq!(symbol.address(), *address);
        let code = object.section_by_name(".text").unwrap().data().unwrap();
        // SAFETY: the function is there, and as long as its symbol says.
        assert_eq!(code, unsafe { std::slice::from_raw_parts(*address as *const u8, symbol.size() as usize) });
        for form in [Form::Graph, Form::Object] {
            std::fs::remove_file(dumps.file(name, form)).unwrap();
        }
    }
}
