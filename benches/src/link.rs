//! Linking of objects that exist: SQLite, Lua, and one of fifty megabytes.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use orcane::linker::graph::ObjectBytes;
use orcane::{Jit, ObjectLayer};

use crate::Result;
use crate::bars::Bar;
use crate::measure::{median, nanoseconds};

/// The first argument of a process that links an object and prints the nanoseconds to a symbol's address.
pub(crate) const LINK: &str = "link";
const ROUNDS: usize = 5;

/// An object, and the symbol that is looked up in it.
struct Object {
    name: &'static str,
    path: PathBuf,
    symbol: &'static str,
}

/// From an object's file to the address of a symbol.
pub(crate) fn run(path: &str, symbol: &str) -> Result<u128> {
    let start = Instant::now();
    let jit = Jit::new()?;
    jit.object_layer().add(&jit.main().default_tracker()?, path, ObjectBytes::from(fs::read(path)?))?;
    jit.lookup_address(symbol)?;
    let elapsed = start.elapsed().as_nanos();
    std::mem::forget(jit);
    Ok(elapsed)
}

/// Links each by Orcane and by LLVM, in turns. `scale` is a part of the large one's size.
pub(crate) fn bars(scale: usize) -> Result<Vec<Bar>> {
    let folder = std::env::temp_dir().join(format!("orcane-link-{}", std::process::id()));
    fs::create_dir_all(&folder)?;
    let bars = objects(&folder, scale).and_then(|objects| objects.iter().map(compare).collect::<Result<Vec<_>>>());
    fs::remove_dir_all(&folder)?;
    Ok(bars?.into_iter().flatten().collect())
}

fn compare(object: &Object) -> Result<[Bar; 3]> {
    let path = object.path.to_str().ok_or("no such path")?;
    let (mut ours, mut llvm) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        ours.push(nanoseconds("benches", &[LINK, path, object.symbol])? / 1e6);
        llvm.push(nanoseconds("llvm-peer", &[LINK, path, object.symbol])? / 1e6);
    }
    let ratio = median(ours.iter().zip(&llvm).map(|(ours, llvm)| ours / llvm));
    let megabytes = fs::metadata(&object.path)?.len() as f64 / 1e6;
    let name = format!("link {}, {megabytes:.1} MB", object.name);
    Ok([
        Bar::reported(format!("{name}: Orcane, ms"), median(ours)),
        Bar::reported(format!("{name}: LLVM, ms"), median(llvm)),
        Bar::reported(format!("{name}: time / LLVM's"), ratio),
    ])
}

fn objects(folder: &Path, scale: usize) -> Result<Vec<Object>> {
    let sqlite = folder.join("sqlite.o");
    compile(&sources("libsqlite3-sys")?.join("sqlite3/sqlite3.c"), &sqlite)?;
    let lua = folder.join("lua.o");
    compile_lua(folder, &lua)?;
    let (text, large) = (folder.join("large.s"), folder.join("large.o"));
    fs::write(&text, large_source(130_000 / scale))?;
    compile(&text, &large)?;
    Ok(vec![
        Object { name: "SQLite", path: sqlite, symbol: "sqlite3_open" },
        Object { name: "Lua", path: lua, symbol: "luaL_newstate" },
        Object { name: "a large object", path: large, symbol: "f0" },
    ])
}

fn compile_lua(folder: &Path, result: &Path) -> Result<()> {
    let versions = fs::read_dir(sources("lua-src")?)?.filter_map(|entry| Some(entry.ok()?.path()));
    let is_version =
        |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("lua-5.4"));
    let sources = versions.into_iter().find(is_version).ok_or("there is no Lua 5.4")?;
    let mut objects = Vec::new();
    for entry in fs::read_dir(&sources)? {
        let path = entry?.path();
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        if path.extension().is_some_and(|extension| extension == "c") && name != "lua" && name != "luac" {
            objects.push(folder.join(format!("lua-{name}.o")));
            compile(&path, &objects[objects.len() - 1])?;
        }
    }
    succeed(Command::new("ld.lld-22").arg("-r").args(objects).arg("-o").arg(result))
}

fn compile(source: &Path, object: &Path) -> Result<()> {
    succeed(Command::new("clang-22").args(["-O1", "-fPIC", "-w", "-c"]).arg(source).arg("-o").arg(object))
}

fn succeed(command: &mut Command) -> Result<()> {
    let output = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr)).into())
}

/// The folder of a crate's sources, which Cargo has for the tests of real programs.
fn sources(name: &str) -> Result<PathBuf> {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/programs/Cargo.toml");
    let output =
        Command::new("cargo").args(["metadata", "--format-version", "1", "--manifest-path"]).arg(manifest).output()?;
    let text = String::from_utf8(output.stdout)?;
    let paths = text.split("\"manifest_path\":\"").skip(1).filter_map(|rest| rest.split('"').next());
    let mut found = paths.filter(|path| path.contains(&format!("/{name}-")));
    let manifest = found.next().ok_or_else(|| format!("{name} is not there"))?;
    Ok(Path::new(manifest).parent().ok_or("a manifest is in a folder")?.to_path_buf())
}

/// Assembler text of functions in sections of their own, each with calls, data and a name.
fn large_source(functions: usize) -> String {
    let mut text = String::new();
    for index in 0..functions {
        let [callee, other] = [(index * 7 + 1) % functions, (index * 13 + 5) % functions];
        _ = writeln!(
            text,
            ".section .text.f{index},\"ax\"\n.globl f{index}\n.type f{index},@function\nf{index}:\nmovq d{index}(%rip), %rax\n\
             testq %rax, %rax\nje f{callee}\ncall f{other}\n.fill 40,1,0x90\nret\n.size f{index},.-f{index}"
        );
    }
    text += ".data\n";
    for index in 0..functions {
        _ = writeln!(
            text,
            ".type d{index},@object\n.size d{index},8\nd{index}: .quad f{}",
            (index * 3 + 2) % functions
        );
    }
    text + ".section .note.GNU-stack,\"\",@progbits\n"
}
