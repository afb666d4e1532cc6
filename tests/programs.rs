//! Real programs, compiled by real compilers: they do what they do when the system links them.
//! Their sources come from crates that bundle them (`tests/programs/Cargo.toml`).
#![cfg(feature = "programs")]

#[allow(dead_code, reason = "each test uses a part")]
mod toolchain;

use std::fmt::Write;

use toolchain::{C, CXX, compile, directory, files, own, same_as_native, sources, tool};

/// Compiles sources with each compiler, and compares the programs.
fn check(test: &str, options: &[&str], sources: &[String], arguments: &[&str]) {
    let sources: Vec<&str> = sources.iter().map(String::as_str).collect();
    for compiler in C {
        let directory = directory(&format!("{test}-{}{}", compiler[0], compiler[1]));
        tool(&directory, &[compiler, options, &["-w", "-c"], &sources].concat());
        let objects = files(&directory, ".o", &[]);
        let names: Vec<_> = objects.iter().map(|path| path.rsplit('/').next().unwrap()).collect();
        same_as_native(&directory, &names, &["-lm", "-lpthread", "-ldl"], arguments);
    }
}

#[test]
fn sqlite_runs_thousands_of_statements() {
    let sqlite = sources("libsqlite3-sys").join("sqlite3");
    let include = format!("-I{}", sqlite.display());
    let files = [sqlite.join("sqlite3.c").display().to_string(), own("sqlite.c")];
    check("sqlite", &[&include], &files, &["x"]);
}

#[test]
fn lua_runs_a_script() {
    let lua = sources("lua-src").join("lua-5.4.9");
    let include = format!("-I{}", lua.display());
    let files = [files(&lua, ".c", &["lua.c", "luac.c"]), vec![own("lua.c")]].concat();
    // Two files would have one name.
    let driver = directory("lua").join("driver.c");
    std::fs::copy(own("lua.c"), &driver).unwrap();
    let files = [&files[..files.len() - 1], &[driver.display().to_string()]].concat();
    check("lua", &[&include, "-DLUA_USE_POSIX"], &files, &[&own("script.lua")]);
}

#[test]
fn zlib_gives_back_what_it_has_compressed() {
    let zlib = sources("libz-sys").join("src/zlib");
    let include = format!("-I{}", zlib.display());
    check("zlib", &[&include, "-DHAVE_UNISTD_H"], &[files(&zlib, ".c", &[]), vec![own("zlib.c")]].concat(), &[]);
}

#[test]
fn zstd_gives_back_what_it_has_compressed() {
    let zstd = sources("zstd-sys").join("zstd/lib");
    let include = format!("-I{}", zstd.display());
    let mut sources = vec![own("zstd.c")];
    for part in ["common", "compress", "decompress"] {
        sources.extend(files(&zstd.join(part), ".c", &[]));
        if cfg!(target_arch = "x86_64") {
            sources.extend(files(&zstd.join(part), ".S", &[]));
        }
    }
    check("zstd", &[&include], &sources, &[]);
}

#[test]
fn ort_05_containers_streams_exceptions_and_static_objects() {
    for compiler in CXX {
        let directory = directory(&format!("cxx-{}{}", compiler[0], compiler[2]));
        tool(&directory, &[compiler, &["-c", &own("program.cc"), "-o", "program.o"]].concat());
        same_as_native(&directory, &["program.o"], &["-lpthread"], &["an argument"]);
    }
}

#[test]
fn a_rust_library_with_threads_and_panics() {
    let rustc = std::env::var("RUSTC").unwrap_or_else(|_| "rustc".to_owned());
    for options in [&["-Copt-level=0"][..], &["-Copt-level=2"], &["-Copt-level=2", "-Crelocation-model=pie"]] {
        let directory = directory("rust");
        let target = format!("--target={}-unknown-linux-gnu", std::env::consts::ARCH);
        let library = [&*rustc, &*target, "--edition=2024", "--crate-type=staticlib", "-o", "libprogram.a"];
        let library = [&library[..], options].concat();
        tool(&directory, &[&library[..], &[&own("staticlib.rs")]].concat());
        same_as_native(&directory, &["libprogram.a"], &["-lpthread", "-ldl", "-lm"], &["a", "b"]);
    }
}

/// More sections than the header of an object can count.
#[test]
fn elf_16_a_program_of_seventy_thousand_sections() {
    const FUNCTIONS: usize = 70_000;
    let mut text = String::new();
    for index in 0..FUNCTIONS {
        let number = index % 4000;
        let code = if cfg!(target_arch = "x86_64") {
            format!("leal {number}(%rdi), %eax\n ret")
        } else {
            format!("add w0, w0, #{number}\n ret")
        };
        writeln!(text, ".section .text.f{index},\"ax\"\nf{index}: {code}").unwrap();
    }
    text.push_str(".data\n.balign 8\n.globl table, count\ntable:\n");
    (0..FUNCTIONS).for_each(|index| writeln!(text, " .quad f{index}").unwrap());
    writeln!(text, "count: .long {FUNCTIONS}\n.section .note.GNU-stack,\"\"").unwrap();
    let main = "#include <stdio.h>\nextern int (*const table[])(int), count;
        int main(void) { unsigned sum = 0; for (int i = 0; i < count; i++) sum = sum * 31 + table[i](i);
            printf(\"%u of %d\\n\", sum, count); return 0; }";
    for compiler in C {
        let directory = directory(&format!("sections-{}{}", compiler[0], compiler[1]));
        let sections = compile(&directory, compiler, "sections.s", &text);
        let main = compile(&directory, compiler, "main.c", main);
        same_as_native(&directory, &[&main, &sections], &[], &[]);
    }
}
