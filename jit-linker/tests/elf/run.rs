//! ELF objects of the system's compilers, linked and run.

use std::sync::Arc;

use jit_linker::LinkGraph;
use jit_linker::link::{self, LinkError, TlsLocation};
use jit_linker::memory::{DetachedMemory, MemoryManager, PageManager, SlabManager};

use crate::compiler::build;
use crate::support::{CC, link, parse};

/// The target of what runs here.
const TRIPLE: &str = if cfg!(target_arch = "aarch64") { "aarch64-linux-gnu" } else { "x86_64-linux-gnu" };

const PROGRAM: &str = r"
extern int outside(int);
extern int shared;
static int own = 5;
int common[4];
static int table(int n) {
    switch (n) {
    case 0: return 10;
    case 1: return own;
    case 2: return outside(1);
    case 3: return shared;
    case 4: return common[3];
    case 5: return 77;
    default: return -1;
    }
}
int (*volatile pointer)(int) = table;
int entry(int n) { return pointer(n) + (own += 1); }
";

extern "C" fn outside(argument: i32) -> i32 {
    argument + 100
}

static SHARED: i32 = 1234;

/// Compilers of this machine's architecture, and how they are told to make what can be loaded anywhere.
fn modes() -> Vec<Vec<&'static str>> {
    let compilers = [&[CC][..], &["clang-22", "-target", TRIPLE]];
    let models: &[&[&str]] = if cfg!(target_arch = "aarch64") {
        &[&["-fPIC"], &["-fpic"], &["-fPIC", "-fno-plt"], &["-fPIC", "-ffunction-sections", "-fdata-sections"]]
    } else {
        &[
            &["-fPIC"],
            &["-fPIC", "-fno-plt"],
            &["-fPIC", "-mcmodel=medium"],
            &["-fPIC", "-mcmodel=large"],
            &["-fPIC", "-ffunction-sections", "-fdata-sections"],
        ]
    };
    let mut modes = Vec::new();
    for compiler in compilers {
        for model in models {
            for level in ["-O0", "-O2"] {
                modes.push([compiler, model, &[level, "-g", "-w", "-c"]].concat());
            }
        }
    }
    modes
}

#[test]
fn what_compilers_make_for_anywhere_runs() {
    for mode in modes() {
        let object = build(&mode, "c", PROGRAM);
        let externals = |name: &str| match name {
            "outside" => Some(outside as *const () as u64),
            "shared" => Some(&raw const SHARED as u64),
            _ => None,
        };
        let linked = link(parse(object), &externals).unwrap_or_else(|error| panic!("{mode:?}: {error}"));
        let results: Vec<_> = (0..7).map(|n| linked.call("entry", n)).collect();
        assert_eq!(results, [16, 13, 109, 1243, 10, 88, 11], "{mode:?}");
    }
}

const STORAGE: &str = r#"
extern __thread int theirs; __thread int own = 3; static __thread long local[5]; static __thread short small;
extern int shared, function(int); extern void maybe(void) __attribute__((weak));
static int table[100]; const char *text = "a text"; double constant(double x) { return x * 1.5 + 0.25; }
int entry(int n) {
    if (maybe) maybe();
    switch (n) {
    case 0: return theirs++; case 1: return own; case 2: return local[n] + small++; case 3: return function(shared);
    case 4: return table[n]++; case 5: return text[n]; case 6: return (int)constant(n); default: return -1;
    }
}
"#;

/// Each code model, position-independent or not, and each model of thread-local storage.
#[test]
fn what_compilers_make_in_every_mode_links_near_address_zero() {
    let of_all: &[&[&str]] = &[
        &["-fPIC"],
        &["-fpic"],
        &["-fPIE"],
        &["-fno-pic"],
        &["-fno-pic", "-fno-plt"],
        &["-fPIC", "-ftls-model=local-dynamic"],
        &["-fPIC", "-ftls-model=initial-exec"],
        &["-fno-pic", "-ftls-model=local-exec"],
        &["-fno-pic", "-mcmodel=large", "-ftls-model=local-exec"],
    ];
    let gcc_x86_64: &[&[&str]] = &[
        &["-fPIC", "-mcmodel=large"],
        &["-fPIC", "-mcmodel=medium"],
        &["-fno-pic", "-mcmodel=medium"],
        &["-fPIC", "-mtls-dialect=gnu2"],
    ];
    let gcc_aarch64: &[&[&str]] = &[
        &["-fPIC", "-mcmodel=tiny"],
        &["-fPIE", "-mcmodel=tiny"],
        &["-fno-pic", "-mcmodel=tiny"],
        &["-fPIC", "-mtls-dialect=trad"],
    ];
    let clang_x86_64: &[&[&str]] =
        &[&["-fPIC", "-mcmodel=large"], &["-fPIC", "-mcmodel=medium"], &["-fPIC", "-mtls-dialect=gnu2"]];
    let clang_aarch64: &[&[&str]] =
        &[&["-fPIC", "-mcmodel=tiny"], &["-fPIE", "-mcmodel=tiny"], &["-fno-pic", "-mcmodel=tiny"]];
    let compilers: [(&[&str], &[&[&str]]); 4] = [
        (&["x86_64-linux-gnu-gcc"], gcc_x86_64),
        (&["aarch64-linux-gnu-gcc"], gcc_aarch64),
        (&["clang-22", "-target", "x86_64-linux-gnu"], clang_x86_64),
        (&["clang-22", "-target", "aarch64-linux-gnu"], clang_aarch64),
    ];
    for (compiler, more) in compilers {
        for options in of_all.iter().chain(more) {
            for level in ["-O0", "-O2"] {
                let command = [compiler, options, &[level, "-g", "-w", "-c"]].concat();
                let graph = parse(build(&command, "c", STORAGE));
                if let Err(error) = link_low(graph) {
                    panic!("{command:?}: {error}");
                }
            }
        }
    }
}

/// In the tiny code model, code and data are within 1 MiB: pages of one allocation can be, a slab's parts can't.
#[test]
fn the_tiny_code_model_has_code_and_data_in_neighbouring_pages() {
    const TEXT: &str = "static int own[3]; int shared = 5; const char *text = \"a text\";
        static _Thread_local int local = 3; int entry(int n) { own[n]++; local++; return shared + own[0] + text[n]; }";
    let gcc: &[&str] = &["aarch64-linux-gnu-gcc"];
    for compiler in [gcc, &["clang-22", "-target", "aarch64-linux-gnu"]] {
        for model in ["-fPIC", "-fPIE", "-fno-pic"] {
            for level in ["-O0", "-O2"] {
                let command = [compiler, &["-mcmodel=tiny", model, level, "-w", "-c"]].concat();
                let link = |memory: Arc<dyn MemoryManager>| {
                    let mut allocated = link::prepare(parse(build(&command, "c", TEXT)))?.allocate(&memory)?;
                    let storage =
                        TlsLocation { module: 1, offset: 0, thread_pointer_offset: Some(0x40), descriptor: None };
                    allocated.set_thread_local_storage(storage);
                    allocated.fix_up().map(drop)
                };
                let pages = link(Arc::new(PageManager::new()));
                pages.unwrap_or_else(|error| panic!("{command:?}: {error}"));
                let error = link(Arc::new(SlabManager::new().unwrap())).unwrap_err().to_string();
                assert!(error.contains("-mcmodel=small"), "{command:?}: {error}");
            }
        }
    }
}

fn link_low(graph: LinkGraph) -> Result<(), LinkError> {
    let memory: Arc<dyn MemoryManager> = Arc::new(DetachedMemory::at(0x1_0000));
    let mut allocated = link::prepare(graph)?.allocate(&memory)?;
    let location = TlsLocation { module: 1, offset: 0, thread_pointer_offset: Some(0x40), descriptor: None };
    for symbol in allocated.externals() {
        allocated.resolve(symbol, 0x2_0000, None);
        allocated.resolve_thread_local(symbol, location);
    }
    allocated.set_thread_local_storage(location);
    allocated.fix_up().map(drop)
}
