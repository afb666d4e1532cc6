//! Real libraries as Mach-O, compiled with macOS's headers, which run on Linux as their ELF builds do.
//!
//! What they need of macOS's C library by another name is in `tests/programs/sources/darwin.c`; functions that take
//! variadic arguments as Apple's arm64 passes them, in `darwin_arm64.c`.
#![cfg(feature = "programs")]

#[allow(dead_code, reason = "each test uses a part")]
mod toolchain;

use std::path::Path;
use std::sync::LazyLock;

use toolchain::{C, GCC, directory, files, orcane, own, same_as_native, sources, told, tool};

/// Zig, which has macOS's headers: a package of PyPI, installed once into the target directory.
static ZIG: LazyLock<String> = LazyLock::new(|| {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("zig-0.17.1");
    let zig = folder.join("ziglang/zig");
    if !zig.exists() {
        let folder = folder.display().to_string();
        let install = ["python3", "-m", "pip", "install", "--quiet", "--no-deps", "--upgrade", "--target", &folder];
        tool(Path::new("."), &[&install[..], &["ziglang==0.17.1"]].concat());
    }
    zig.display().to_string()
});

/// Compiles each source by itself, and gives the objects' names.
fn compile(directory: &Path, compiler: &[&str], options: &[&str], sources: &[String]) -> Vec<String> {
    std::fs::create_dir_all(directory).unwrap();
    let object = |source: &String| {
        let object = format!("{}.o", source.rsplit('/').next().unwrap().trim_end_matches(".c"));
        tool(directory, &[compiler, options, &["-w", "-c", source, "-o", &object]].concat());
        directory.join(object).display().to_string()
    };
    sources.iter().map(object).collect()
}

/// Compares what a Mach-O build does with what an ELF build does, in the JIT and when the system runs it.
fn check(test: &str, options: &[&str], sources: &[String], arguments: &[&str]) {
    let directory = directory(&format!("macho-{test}"));
    let clang = [C[2], &["-O1", "-fPIC"]].concat();
    let elf = compile(&directory.join("elf"), &clang, options, sources);
    let target = format!("{}-macos", std::env::consts::ARCH);
    let zig = [&*ZIG, "cc", "-target", &target, "-O1", "-fno-sanitize=all", "-fno-stack-protector"];
    let mut macho = compile(&directory.join("macho"), &zig, options, sources);
    let mut shim = vec![own("darwin.c")];
    if cfg!(target_arch = "aarch64") {
        shim.push(own("darwin_arm64.c"));
    }
    macho.extend(compile(&directory, &[GCC, "-O1", "-fPIC"], &[], &shim));
    let run = |objects: &[String]| {
        let objects: Vec<_> = objects.iter().map(String::as_str).collect();
        told(&orcane(&directory, &[&["run"], &objects[..], &["--"], arguments].concat()))
    };
    let elf_files: Vec<_> = elf.iter().map(String::as_str).collect();
    same_as_native(&directory, &elf_files, &["-lm"], arguments);
    assert_eq!(run(&macho), run(&elf));
}

#[test]
fn sqlite_as_mach_o_does_what_it_does_as_elf() {
    let sqlite = sources("libsqlite3-sys").join("sqlite3");
    let include = format!("-I{}", sqlite.display());
    let options = [
        &*include,
        "-DSQLITE_OS_OTHER=1",
        "-DSQLITE_THREADSAFE=0",
        "-DSQLITE_OMIT_LOAD_EXTENSION",
        "-DSQLITE_WITHOUT_ZONEMALLOC",
    ];
    let files = [sqlite.join("sqlite3.c").display().to_string(), own("sqlite.c"), own("sqlite_system.c")];
    check("sqlite", &options, &files, &["x"]);
}

#[test]
fn lua_as_mach_o_does_what_it_does_as_elf() {
    let lua = sources("lua-src").join("lua-5.4.9");
    let include = format!("-I{}", lua.display());
    let left_out = ["lua.c", "luac.c", "linit.c", "liolib.c", "loadlib.c"];
    let files = [files(&lua, ".c", &left_out), vec![own("lua.c"), own("lua_libraries.c")]].concat();
    check("lua", &[&include], &files, &[&own("script.lua")]);
}

#[test]
fn zlib_as_mach_o_does_what_it_does_as_elf() {
    let zlib = sources("libz-sys").join("src/zlib");
    let include = format!("-I{}", zlib.display());
    check("zlib", &[&include, "-DHAVE_UNISTD_H"], &[files(&zlib, ".c", &[]), vec![own("zlib.c")]].concat(), &[]);
}
