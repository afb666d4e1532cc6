//! Every member of the static libraries of a distribution, and of Rust's own, can be linked.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use jit_linker::graph::{Definition, ObjectBytes};
use jit_linker::link::{self, TlsLocation};
use jit_linker::memory::{DetachedMemory, MemoryManager};
use jit_linker::{SymbolStringPool, format};
use object::read::archive::ArchiveFile;

/// The packages of Debian 12 that have static libraries of these: libc, libstdc++, libgcc_eh,
/// libcrypto, libgmp, libsqlite3, libz, libzstd, libpcre2.
const PACKAGES: [&str; 9] = [
    "libc6-dev",
    "libstdc++-12-dev",
    "libgcc-12-dev",
    "libssl-dev",
    "libgmp-dev",
    "libsqlite3-dev",
    "zlib1g-dev",
    "libzstd-dev",
    "libpcre2-dev",
];

#[derive(Default)]
struct Sweep {
    members: usize,
    /// By what is wrong, the members.
    failures: BTreeMap<String, Vec<String>>,
}

impl Sweep {
    fn archive(&mut self, path: &Path) {
        let bytes = ObjectBytes::from(std::fs::read(path).expect("the archive can be read"));
        let Ok(archive) = ArchiveFile::parse(&*bytes) else {
            // Some are a single object, and some a text that names other libraries.
            if bytes.starts_with(b"\x7fELF") {
                self.member(&path.display().to_string(), bytes);
            } else {
                assert!(bytes.starts_with(b"/*"), "{} is no library", path.display());
            }
            return;
        };
        for member in archive.members() {
            let member = member.expect("members are whole");
            let (start, size) = member.file_range();
            let object = bytes.slice(start as usize..(start + size) as usize).expect("members are in the archive");
            if object.starts_with(b"\x7fELF") {
                let name = format!("{}({})", path.display(), String::from_utf8_lossy(member.name()));
                self.member(&name, object);
            }
        }
    }

    fn member(&mut self, name: &str, object: ObjectBytes) {
        self.members += 1;
        if let Err(error) = link(name, object) {
            let error = error.to_string().replace(name, "it");
            self.failures.entry(error).or_default().push(name.to_owned());
        }
    }

    fn finish(self, least: usize) {
        assert!(self.failures.is_empty(), "{} kinds of failures: {:#?}", self.failures.len(), self.failures);
        assert!(self.members >= least, "there were only {} members", self.members);
    }
}

fn link(name: &str, object: ObjectBytes) -> Result<(), Box<dyn std::error::Error>> {
    let graph = format::parse(name, object, &SymbolStringPool::new())?;
    let memory: Arc<dyn MemoryManager> = Arc::new(DetachedMemory::at(0x40_0000));
    let mut allocated = link::prepare(graph)?.allocate(&memory)?;
    let externals: Vec<_> = allocated
        .graph()
        .symbols()
        .filter(|(_, symbol)| symbol.definition == Definition::External)
        .map(|(id, _)| id)
        .collect();
    let location = TlsLocation { module: 1, offset: 0, thread_pointer_offset: Some(0x100), descriptor: None };
    for symbol in externals {
        allocated.resolve(symbol, 0x1000_0000, None);
        allocated.resolve_thread_local(symbol, location);
    }
    allocated.set_thread_local_storage(location);
    allocated.fix_up()?;
    Ok(())
}

/// All files below a folder with one of the extensions.
fn files(folder: &Path, extensions: &[&str]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        let extension = path.extension().unwrap_or_default();
        if path.is_symlink() {
            continue;
        }
        if path.is_dir() {
            found.extend(files(&path, extensions));
        } else if extensions.iter().any(|wanted| extension == *wanted) {
            found.push(path);
        }
    }
    found
}

fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?} can't be run: {error}"));
    assert!(output.status.success(), "{command:?}:\n{}", String::from_utf8_lossy(&output.stderr));
}

fn distribution(architecture: &str) {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("archives").join(architecture);
    std::fs::create_dir_all(&folder).expect("the folder can be made");
    let packages: Vec<_> = PACKAGES.iter().map(|package| format!("{package}:{architecture}")).collect();
    let wanted = files(&folder, &["deb"]).len() < PACKAGES.len();
    if wanted {
        run(Command::new("apt-get").arg("download").args(packages).current_dir(&folder));
    }
    for package in files(&folder, &["deb"]) {
        run(Command::new("dpkg-deb").arg("-x").arg(package).arg(folder.join("root")));
    }
    let mut sweep = Sweep::default();
    for archive in files(&folder.join("root"), &["a"]) {
        sweep.archive(&archive);
    }
    for object in files(&folder.join("root"), &["o"]) {
        let bytes = std::fs::read(&object).expect("the object can be read");
        sweep.member(&object.display().to_string(), bytes.into());
    }
    sweep.finish(5_000);
}

#[test]
fn the_static_libraries_of_debian_for_x86_64_link() {
    distribution("amd64");
}

#[test]
fn the_static_libraries_of_debian_for_aarch64_link() {
    distribution("arm64");
}

#[test]
fn the_libraries_of_rust_link() {
    let output = Command::new("rustc").args(["--print", "sysroot"]).output().expect("rustc is there");
    let sysroot = String::from_utf8(output.stdout).expect("the path is UTF-8");
    let mut sweep = Sweep::default();
    for archive in files(&Path::new(sysroot.trim()).join("lib/rustlib"), &["rlib"]) {
        sweep.archive(&archive);
    }
    sweep.finish(100);
}
