//! Linking: objects beside LLVM's JITLink, and Mach-O beside ELF of one source. Only the linkers: no session, and every
//! external symbol at one address.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use orcane::linker::graph::ObjectBytes;
use orcane::linker::link;
use orcane::linker::memory::{MemoryManager, SlabManager};
use orcane::linker::{SymbolStringPool, format};
use workloads::link::{LINK, LINK_WITH_MEMORY, peak_memory};
use workloads::median;

use crate::Result;
use crate::bars::Bar;
use crate::measure::{collected, interleaved};

/// Copies of SQLite in the large object, which make it one of 50 MB and more than 70,000 sections.
const COPIES: usize = 24;
const ROUNDS: usize = 15;

/// Does what a process does that links an object: see [`workloads::link`].
pub(crate) fn child(arguments: &[String]) -> Result<String> {
    workloads::link::run(arguments, ObjectBytes::from, link_once)
}

/// Links an object into memory of its own, with every external symbol at one address, and gives the memory back.
fn link_once(object: &ObjectBytes) -> Result<()> {
    let memory: Arc<dyn MemoryManager> = Arc::new(SlabManager::new()?);
    let graph = format::parse("object", object.clone(), &SymbolStringPool::new())?;
    let mut allocated = link::prepare(graph)?.allocate(&memory)?;
    for symbol in allocated.externals() {
        allocated.resolve(symbol, workloads::link::external(), None);
    }
    drop(allocated.fix_up()?.finalize()?);
    Ok(())
}

/// A linker's program, and how often it links an object for one time.
#[derive(Clone, Copy)]
struct Linker {
    program: &'static str,
    repeat: u32,
}

impl Linker {
    fn command(self, launcher: &[&str], mode: &str, object: &Path, last: &str) -> Result<(String, String)> {
        let program = std::env::current_exe()?.with_file_name(self.program).display().to_string();
        let object = object.display().to_string();
        run(&[launcher, &[&*program, mode, &object, last]].concat())
    }

    /// Instructions of a link.
    fn instructions(self, object: &Path) -> Result<f64> {
        let callgrind = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", "--smc-check=all"];
        let count = |rounds| collected(&self.command(&callgrind, LINK, object, rounds)?.1);
        Ok((count("3")? - count("1")?) as f64 / 2.0)
    }

    /// Nanoseconds of a link.
    fn time(self, object: &Path) -> Result<f64> {
        Ok(self.command(&[], LINK, object, &self.repeat.to_string())?.0.trim().parse()?)
    }

    /// Bytes of memory that a link has at most, beside the object.
    fn memory(self, object: &Path, small: &Path) -> Result<f64> {
        let mut command = Command::new(std::env::current_exe()?.with_file_name(self.program));
        Ok(peak_memory(command.arg(LINK_WITH_MEMORY).args([object, small]))? as f64)
    }
}

fn run(words: &[&str]) -> Result<(String, String)> {
    let output = Command::new(words[0]).args(&words[1..]).output().map_err(|error| format!("{}: {error}", words[0]))?;
    let [out, error] = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    if output.status.success() { Ok((out, error)) } else { Err(format!("{words:?}: {error}").into()) }
}

/// The bars: SQLite as one object, a section a function, many times in one object, and as Mach-O.
pub(crate) fn measure() -> Result<Vec<Bar>> {
    let objects = Objects::make()?;
    let mut bars = Vec::new();
    for (object, name, throughput, repeat) in [
        (&objects.plain, "SQLite", 2.0, 30),
        (&objects.sections, "SQLite, a section a function", 2.0, 20),
        (&objects.lua, "Lua", 1.0, 100),
        (&objects.large, "50 MB of sections", 5.0, 3),
    ] {
        let [ours, llvm] = ["benches", "llvm-peer"].map(|program| Linker { program, repeat });
        let times = interleaved(ROUNDS, [&|| ours.time(object), &|| llvm.time(object)])?;
        let ratio = median(times.iter().map(|[ours, llvm]| llvm / ours));
        bars.push(Bar::at_least(throughput, format!("link {name}: JITLink's time / Orcane's"), ratio));
        for (linker, index) in [("Orcane", 0), ("JITLink", 1)] {
            let time = median(times.iter().map(|times| times[index] / 1e3));
            bars.push(Bar::reported(format!("link {name}, {linker}: us"), time));
        }
        let instructions = ours.instructions(object)?;
        let what = format!("link {name}: million instructions");
        bars.push(match name {
            "SQLite, a section a function" => Bar::at_most(40.0, what, instructions / 1e6),
            _ => Bar::reported(what, instructions / 1e6),
        });
        let ratio = llvm.instructions(object)? / instructions;
        bars.push(Bar::reported(format!("link {name}: JITLink's instructions / Orcane's"), ratio));
        let memory =
            interleaved(ROUNDS, [&|| ours.memory(object, &objects.small), &|| llvm.memory(object, &objects.small)])?;
        let memory = median(memory.iter().map(|[ours, llvm]| ours / llvm));
        bars.push(Bar::at_most(0.5, format!("link {name}: peak memory / JITLink's"), memory));
    }
    let ours = Linker { program: "benches", repeat: 30 };
    let times = interleaved(ROUNDS, [&|| ours.time(&objects.macho), &|| ours.time(&objects.elf)])?;
    let ratio = median(times.iter().map(|[macho, elf]| macho / elf));
    bars.push(Bar::at_most(1.2, "link SQLite: time as Mach-O / as ELF", ratio));
    let ratio = ours.instructions(&objects.macho)? / ours.instructions(&objects.elf)?;
    bars.push(Bar::reported("link SQLite: instructions as Mach-O / as ELF", ratio));
    Ok(bars)
}

/// A little of all that the others have, and one large block, for which linkers may have code of its own.
const SMALL: &str = r#"
extern int other(int);
static int zero[64];
int data[4] = {1};
const char *text = "text";
int small(int n) {
    __asm__(".skip 0x20000, 0x90");
    return other(n) + zero[n & 63]++ + data[n & 3] + *text;
}
"#;

/// The objects, made by compilers.
struct Objects {
    small: PathBuf,
    plain: PathBuf,
    sections: PathBuf,
    lua: PathBuf,
    large: PathBuf,
    elf: PathBuf,
    macho: PathBuf,
}

impl Objects {
    fn make() -> Result<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let folder = root.join("target/tmp/bench-objects");
        std::fs::create_dir_all(&folder)?;
        let path = |name: &str| folder.join(name).display().to_string();
        let source = source_of(&root, "libsqlite3-sys", "sqlite3/sqlite3.c")?.display().to_string();
        let clang = |options: &[&str], source: &str, object: &str| {
            run(&[&["clang-22", "-O2", "-fPIC", "-w", "-c", source, "-o", &path(object)], options].concat())
        };
        std::fs::write(path("small.c"), SMALL)?;
        clang(&[], &path("small.c"), "small.o")?;
        clang(&[], &source, "plain.o")?;
        clang(&["-ffunction-sections"], &source, "sections.o")?;
        let mut parts = Vec::new();
        for file in std::fs::read_dir(source_of(&root, "lua-src", "lua-5.4.9")?)? {
            let file = file?.path();
            let name = file.file_stem().and_then(|name| name.to_str()).unwrap_or_default();
            // The two others are commands.
            if file.extension().is_some_and(|extension| extension == "c") && !["lua", "luac"].contains(&name) {
                let object = format!("lua-{name}.o");
                clang(&[], &file.display().to_string(), &object)?;
                parts.push(path(&object));
            }
        }
        let parts: Vec<_> = parts.iter().map(String::as_str).collect();
        run(&[&["ld", "-r", "-o", &path("lua.o")], &parts[..]].concat())?;
        let mut copies = Vec::new();
        for copy in 0..COPIES {
            let (prefix, object) = (format!("--prefix-symbols=copy{copy}_"), path(&format!("copy{copy}.o")));
            run(&["llvm-objcopy-22", &prefix, &path("sections.o"), &object])?;
            copies.push(object);
        }
        let copies: Vec<_> = copies.iter().map(String::as_str).collect();
        run(&[&["ld", "-r", "--unique", "-o", &path("large.o")], &copies[..]].concat())?;
        copies.iter().try_for_each(std::fs::remove_file)?;
        let zig = zig(&root)?;
        for (target, object) in [("x86_64-linux-gnu", "elf.o"), ("x86_64-macos", "macho.o")] {
            // What both systems have.
            let options = ["-DSQLITE_OS_OTHER=1", "-DSQLITE_THREADSAFE=0", "-DSQLITE_OMIT_LOAD_EXTENSION"];
            let command = [&*zig, "cc", "-target", target, "-O2", "-fPIC", "-fno-sanitize=all", "-fno-stack-protector"];
            let files = ["-DSQLITE_WITHOUT_ZONEMALLOC", "-w", "-c", &source, "-o", &path(object)];
            run(&[&command[..], &options, &files].concat())?;
        }
        let [small, plain, sections, lua, large, elf, macho] =
            ["small.o", "plain.o", "sections.o", "lua.o", "large.o", "elf.o", "macho.o"].map(|name| folder.join(name));
        Ok(Self { small, plain, sections, lua, large, elf, macho })
    }
}

/// A source that a crate has, which the tests use.
fn source_of(root: &Path, package: &str, path: &str) -> Result<PathBuf> {
    let manifest = root.join("tests/programs/Cargo.toml").display().to_string();
    let (metadata, _) = run(&[env!("CARGO"), "metadata", "--format-version", "1", "--manifest-path", &manifest])?;
    let mut paths = metadata.split("\"manifest_path\":\"").skip(1).filter_map(|rest| rest.split('"').next());
    let manifest = paths.find(|path| path.contains(&format!("/{package}-")));
    let manifest = manifest.ok_or_else(|| format!("{package} is not there"))?;
    Ok(Path::new(manifest).with_file_name(path))
}

/// Zig, which has macOS's headers: the tests use it too.
fn zig(root: &Path) -> Result<String> {
    let folder = root.join("target/tmp/zig-0.17.1");
    let zig = folder.join("ziglang/zig");
    if !zig.exists() {
        let folder = folder.display().to_string();
        let install = ["python3", "-m", "pip", "install", "--quiet", "--no-deps", "--upgrade", "--target", &folder];
        run(&[&install[..], &["ziglang==0.17.1"]].concat())?;
    }
    Ok(zig.display().to_string())
}
