//! Code that was compiled for macOS, running on Linux: their C ABIs agree but for variadic functions.

use std::collections::HashMap;
use std::sync::Arc;

use jit_linker::graph::{Definition, Linkage, Scope, Symbol, SymbolKind};
use jit_linker::link::{self, TlsLocation};
use jit_linker::memory::{MemoryManager, SlabManager};
use jit_linker::{LinkGraph, SymbolStringPool};

use crate::compiler::build;
use crate::support::{CC, link, parse};
use crate::{HOST, compile};

const PROGRAM: &str = r#"
extern int outside(int);
extern int shared;
extern int missing(int) __attribute__((weak_import));
static int own = 5;
int common[4];
__attribute__((weak)) int weak(int n) { return n * 2; }
static const char *text(int n) { return n ? "hello" : "Orcane"; }
static int table(int n) {
    switch (n) {
    case 0: return 10;
    case 1: return own;
    case 2: return outside(1);
    case 3: return shared;
    case 4: return common[3];
    case 5: return text(n)[1];
    case 6: return missing ? missing(n) : weak(n);
    default: return (int)(n * 1.5);
    }
}
int (*volatile pointer)(int) = table;
int main(int n) { return pointer(n) + (own += 1); }
"#;

extern "C" fn outside(argument: i32) -> i32 {
    argument + 100
}

static SHARED: i32 = 1234;

fn externals(name: &str) -> Option<u64> {
    match name {
        "outside" => Some(outside as *const () as u64),
        "shared" => Some(&raw const SHARED as u64),
        _ => None,
    }
}

#[test]
fn a_compiled_object_runs_and_goes_by_its_names_in_the_source() {
    for level in ["-O0", "-O2", "-Oz"] {
        let linked = link(parse(compile(HOST, level, PROGRAM)), &externals).expect("it links");
        let results: Vec<_> = (0..8).map(|n| linked.call("main", n)).collect();
        assert_eq!(results, [16, 13, 109, 1243, 10, 112, 24, 23], "{level}");
    }
}

#[test]
fn a_mach_o_and_an_elf_object_call_each_other() {
    const DOWN: &str = "
        extern int up(int);
        int down(int n) { return n <= 0 ? 1 : n + up(n - 1); }";
    const UP: &str = "
        extern int down(int);
        int up(int n) { return n <= 0 ? 2 : n * 10 + down(n - 1); }";
    let objects = [compile(HOST, "-O1", DOWN), build(&[CC, "-c", "-fPIC", "-O1"], "c", UP)];
    let memory: Arc<dyn MemoryManager> = Arc::new(SlabManager::new().expect("there is address space"));
    let mut linked: Vec<_> = objects
        .into_iter()
        .map(|object| link::prepare(parse(object)).expect("it fits").allocate(&memory).expect("there is memory"))
        .collect();
    let address = |this: &link::Allocated, name: &str| {
        this.graph().find_symbol(name).map(|id| (id, this.address(id))).expect("both know both")
    };
    let (down, up) = (address(&linked[0], "down").1, address(&linked[1], "up").1);
    let (up_here, down_here) = (address(&linked[0], "up").0, address(&linked[1], "down").0);
    linked[0].resolve(up_here, up, None);
    linked[1].resolve(down_here, down, None);
    let code: Vec<_> =
        linked.into_iter().map(|this| this.fix_up().expect("near").finalize().expect("it is mapped")).collect();
    let function = std::ptr::with_exposed_provenance::<()>(down as usize);
    // SAFETY: `down` has this type, and its code and `up`'s live until the end.
    let function = unsafe { std::mem::transmute::<*const (), extern "C" fn(i32) -> i32>(function) };
    assert_eq!(function(3), 3 + 20 + 1 + 2);
    drop(code);
}

/// A harness for another object: it calls what that keeps to itself, and takes the place of a function that it shows.
#[test]
fn macho_24_a_harness_calls_and_interposes_global_and_private_functions() {
    const TESTED: &str = "
        __attribute__((noinline)) static int kept(int n) { return n + 1; }
        __attribute__((noinline)) int shown(int n) { return n * 10; }
        __attribute__((noinline, visibility(\"hidden\"))) int hidden(int n) { return n * 100; }
        int tested(int n) { return kept(n) + shown(n) + hidden(n); }";
    const HARNESS: &str = "
        extern int kept(int), hidden(int), tested(int);
        int shown(int n) { return 5000 + n; }
        int test(int n) { return kept(n) * 100000 + tested(n); }";
    // Whoever interposes comes first; the functions are calls, not inlined, at this level.
    let [tested, harness] = [TESTED, HARNESS].map(|source| parse(compile(HOST, "-O1", source)));
    let defines = |graph: &LinkGraph, name: &str| {
        let known = |symbol: &Symbol| symbol.scope != Scope::Local && symbol.definition != Definition::External;
        graph.symbols().any(|(id, symbol)| known(symbol) && graph.symbol_name(id).is_some_and(|found| **found == *name))
    };
    let missing = |graphs: [&LinkGraph; 2]| {
        let [tested, harness] = graphs;
        let needed = harness.symbols().filter(|(_, symbol)| symbol.definition == Definition::External);
        let needed: Vec<_> = needed.map(|(id, _)| harness.symbol_label(id).into_owned()).collect();
        needed.into_iter().filter(|name| !defines(tested, name)).collect::<Vec<_>>()
    };
    assert_eq!(missing([&tested, &harness]), ["kept"], "the first link fails");

    let names = SymbolStringPool::new();
    let exposed = |mut graph: LinkGraph| {
        let local: Vec<_> = graph.symbols().filter(|(_, symbol)| symbol.kind == SymbolKind::Function).collect();
        let local: Vec<_> = local.into_iter().map(|(id, _)| (id, graph.symbol_label(id).into_owned())).collect();
        for (symbol, label) in local {
            // A local symbol has its name in the object only.
            graph.rename(symbol, names.intern(label.strip_prefix('_').unwrap_or(&label)));
            graph.set_binding(symbol, Linkage::Strong, Scope::Default);
        }
        let shown = graph.find_symbol("shown").expect("it is there");
        graph.make_external(shown);
        graph
    };
    let tested = exposed(tested);
    assert_eq!(missing([&tested, &harness]), [""; 0]);
    let memory: Arc<dyn MemoryManager> = Arc::new(SlabManager::new().expect("there is address space"));
    let mut linked = [tested, harness]
        .map(|graph| link::prepare(graph).expect("it fits").allocate(&memory).expect("there is memory"));
    let addresses: HashMap<_, _> = linked
        .iter()
        .flat_map(|this| this.graph().symbols().map(move |(id, symbol)| (this, id, symbol)))
        .filter(|(_, _, symbol)| symbol.definition != Definition::External && symbol.scope != Scope::Local)
        .map(|(this, id, _)| (this.graph().symbol_label(id).into_owned(), this.address(id)))
        .collect();
    for this in &mut linked {
        for symbol in this.externals() {
            let name = this.graph().symbol_label(symbol).into_owned();
            this.resolve(symbol, addresses[&name], None);
        }
    }
    let code = linked.map(|this| this.fix_up().expect("near").finalize().expect("it is mapped"));
    let function = std::ptr::with_exposed_provenance::<()>(addresses["test"] as usize);
    // SAFETY: `test` has this type, and its code and the other's live until the end.
    let function = unsafe { std::mem::transmute::<*const (), extern "C" fn(i32) -> i32>(function) };
    assert_eq!(function(2), 3 * 100_000 + 3 + 5002 + 200);
    drop(code);
}

/// What `__tls_get_addr` takes.
#[repr(C)]
struct Index {
    module: u64,
    offset: u64,
}

/// Where a thread has its copies, and what they are made of.
mod storage {
    use std::cell::RefCell;
    use std::sync::OnceLock;

    pub(super) static TEMPLATE: OnceLock<Vec<u8>> = OnceLock::new();
    pub(super) const MODULE: u64 = 0x1234;
    pub(super) const START: u64 = 0x40;

    thread_local! {
        static COPY: RefCell<Box<[u64]>> = RefCell::new(copy());
    }

    fn copy() -> Box<[u64]> {
        let template = TEMPLATE.get().expect("it is known before code runs");
        let words = template.chunks(8).map(|chunk| {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            u64::from_ne_bytes(word)
        });
        words.collect()
    }

    pub(super) extern "C" fn get(index: &super::Index) -> *mut u8 {
        assert_eq!(index.module, MODULE);
        COPY.with_borrow_mut(|copy| copy.as_mut_ptr().cast::<u8>().wrapping_add((index.offset - START) as usize))
    }
}

#[test]
fn macho_51_thread_locals_are_found_through_the_thunk() {
    const SOURCE: &str = "
        __thread int counter = 7;
        static __thread long zero;
        static __thread char text[12] = \"thread\";
        int bump(int n) { zero += n; text[1] = 'H'; return counter += n; }
        int look(int n) { return (int)zero * 1000 + counter + text[1]; }";
    let memory: Arc<dyn MemoryManager> = Arc::new(SlabManager::new().expect("there is address space"));
    let graph = parse(compile(HOST, "-O2", SOURCE));
    let mut allocated = link::prepare(graph).expect("it fits").allocate(&memory).expect("there is memory");
    crate::support::resolve(&mut allocated, &|name| {
        (name == "__tls_get_addr").then_some(storage::get as *const () as u64)
    });
    allocated.set_thread_local_storage(TlsLocation {
        module: storage::MODULE,
        offset: storage::START,
        thread_pointer_offset: None,
        descriptor: None,
    });
    let section = allocated.graph().section_with(jit_linker::graph::SectionRole::ThreadLocal).expect("there is one");
    let range = allocated.section_range(section);
    let function = |name: &str| {
        let symbol = allocated.graph().find_symbol(name).expect("it is there");
        let code = std::ptr::with_exposed_provenance::<()>(allocated.address(symbol) as usize);
        // SAFETY: the functions have this type, and run while the code is there.
        unsafe { std::mem::transmute::<*const (), extern "C" fn(i32) -> i32>(code) }
    };
    let (bump, look) = (function("bump"), function("look"));
    let _code = allocated.fix_up().expect("everything is near").finalize().expect("it is mapped");
    // SAFETY: the template is in memory that is final.
    let template = unsafe {
        let start = std::ptr::with_exposed_provenance::<u8>(range.start as usize);
        std::slice::from_raw_parts(start, (range.end - range.start) as usize)
    };
    storage::TEMPLATE.set(template.to_vec()).expect("nobody else sets it");
    assert_eq!((bump(3), bump(4), look(0)), (10, 14, 7000 + 14 + 72));
    let other = std::thread::spawn(move || (look(0), bump(1), look(0))).join().expect("it does not panic");
    assert_eq!(other, (7 + 104, 8, 1000 + 8 + 72));
    assert_eq!(look(0), 7000 + 14 + 72);
}
