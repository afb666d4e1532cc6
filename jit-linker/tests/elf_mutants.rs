//! Objects that nobody wrote on purpose: cut short, or changed where it hurts. Each gives a graph
//! or an error, in little time and memory.
//!
//! `ORCANE_MUTANTS` says how many mutants there are; the full test run asks for 100,000.

#![cfg(target_os = "linux")]

#[path = "elf/compiler.rs"]
mod compiler;

use std::alloc::{GlobalAlloc, Layout, System};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use compiler::build;
use jit_linker::graph::{Definition, ObjectBytes};
use jit_linker::link::{self, TlsLocation};
use jit_linker::memory::{DetachedMemory, MemoryManager};
use jit_linker::{SymbolStringPool, format};

/// Counts what is allocated.
struct Counting;

static IN_USE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: the system's allocator does the work.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let now = IN_USE.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        PEAK.fetch_max(now, Ordering::Relaxed);
        // SAFETY: the caller's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        IN_USE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Tests take turns, so that each sees its own memory.
static TURN: Mutex<()> = Mutex::new(());

/// What a session would grant. Zeros that an object asks for are not the reader's.
const MEMORY_LIMIT: usize = 1 << 20;

const PROGRAM: &str = r#"
extern int outside(int), shared; extern void maybe(void) __attribute__((weak));
__thread int own_tls = 7; static __thread char local_tls[9]; extern __thread int their_tls;
int common[4]; const char *const names[] = {"one", "two", "three"};
__attribute__((section("set"), used)) static int member = 3; extern int __start_set[], __stop_set[];
__attribute__((constructor(200))) static void early(void) { common[0] = 1; }
__attribute__((destructor)) static void late(void) { common[0] = 2; }
static int (*choose(void))(int) { return outside; }
int chosen(int) __attribute__((ifunc("choose")));
__attribute__((section(".text.group,\"axG\",%progbits,group,comdat#"), weak)) int grouped(int n) { return n * 2; }
int entry(int n) {
    switch (n) {
    case 0: return own_tls; case 1: return local_tls[3]++; case 2: return their_tls; case 3: return outside(shared);
    case 4: return names[common[1]][0]; case 5: return __stop_set - __start_set; case 6: return chosen(grouped(n));
    default: if (maybe) maybe(); return member;
    }
}
"#;

fn seeds() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for target in ["x86_64-linux-gnu", "aarch64-linux-gnu"] {
        for options in [&["-O2", "-fPIC", "-ffunction-sections"], &["-O0", "-fno-pic", "-g"]] {
            let command = [&["clang-22", "-w", "-target", target, "-c"][..], options].concat();
            seeds.push(build(&command, "c", PROGRAM));
        }
    }
    seeds
}

/// Reads and links, and checks what it took. Tells whether the result is a program.
fn link(object: &[u8]) -> bool {
    let before = IN_USE.load(Ordering::Relaxed);
    PEAK.store(before, Ordering::Relaxed);
    let start = Instant::now();
    let linked = try_link(object);
    assert!(start.elapsed() < Duration::from_secs(1), "it takes {:?}", start.elapsed());
    let peak = PEAK.load(Ordering::Relaxed).saturating_sub(before + MEMORY_LIMIT);
    assert!(peak <= 64 * object.len() + 0x8000, "{peak} bytes are used for {}", object.len());
    linked
}

fn try_link(object: &[u8]) -> bool {
    let object = ObjectBytes::from(object);
    let Ok(graph) = format::parse("mutant.o", object, &SymbolStringPool::new()) else { return false };
    let Ok(prepared) = link::prepare(graph) else { return false };
    if prepared.request().iter().map(|segment| segment.size).sum::<usize>() > MEMORY_LIMIT {
        return false;
    }
    let memory: Arc<dyn MemoryManager> = Arc::new(DetachedMemory::at(0x40_0000));
    let Ok(mut allocated) = prepared.allocate(&memory) else { return false };
    let externals: Vec<_> = allocated
        .graph()
        .symbols()
        .filter(|(_, symbol)| symbol.definition == Definition::External)
        .map(|(id, _)| id)
        .collect();
    let location = TlsLocation { module: 1, offset: 0, thread_pointer_offset: Some(64), descriptor: None };
    for symbol in externals {
        allocated.resolve(symbol, 0x50_0000, None);
        allocated.resolve_thread_local(symbol, location);
    }
    allocated.set_thread_local_storage(location);
    _ = allocated.dependences();
    allocated.fix_up().is_ok()
}

#[test]
fn an_object_that_ends_early_is_an_error_or_a_program() {
    let _turn = TURN.lock();
    for seed in seeds() {
        assert!(try_link(&seed), "the whole object is a program");
        let step = if cfg!(target_arch = "aarch64") { 17 } else { 1 };
        for end in (0..seed.len().min(64 << 10)).step_by(step) {
            catch_unwind(AssertUnwindSafe(|| link(&seed[..end]))).unwrap_or_else(|_| panic!("cut at {end:#x}"));
        }
    }
}

/// Numbers that are always the same.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit.max(1) as u64) as usize
    }

    /// A number that is often at some limit.
    fn interesting(&mut self, length: usize) -> u64 {
        let edge =
            [0, 1, 4, 8, 0xff, 0xffff, 0xff00, 0xfff1, 0xfff2, 0x7fff_ffff, 0xffff_ffff, length as u64, u64::MAX];
        match self.below(4) {
            0 => self.next(),
            1 => self.next() % (length as u64 + 16),
            2 => edge[self.below(edge.len())].wrapping_sub(self.next() % 3),
            _ => edge[self.below(edge.len())],
        }
    }
}

/// Changes fields of headers, symbols, relocations, groups and unwinding records, and bytes anywhere.
fn mutate(object: &mut Vec<u8>, random: &mut Random) {
    let length = object.len();
    let word = |object: &[u8], at: usize| {
        object.get(at..at + 8).and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_le_bytes) as usize
    };
    let headers = word(object, 0x28);
    let count = object.get(0x3c..0x3e).map_or(0, |bytes| usize::from(u16::from_le_bytes([bytes[0], bytes[1]])));
    for _ in 0..=random.below(4) {
        let value = random.interesting(length);
        let header = headers.wrapping_add(64 * random.below(count));
        let (at, size) = match random.below(6) {
            // A field of the file's header.
            0 => [(0x10, 2), (0x12, 2), (0x28, 8), (0x3a, 2), (0x3c, 2), (0x3e, 2)][random.below(6)],
            // A field of a section's header.
            1 | 2 => {
                let fields = [(0, 4), (4, 4), (8, 8), (24, 8), (32, 8), (40, 4), (44, 4), (48, 8), (56, 8)];
                let (field, size) = fields[random.below(fields.len())];
                (header.wrapping_add(field), size)
            }
            // A part of a table's entry.
            3 | 4 => {
                let start = word(object, header.wrapping_add(24));
                let entries = word(object, header.wrapping_add(32)) / 24;
                let fields = [(0, 4), (4, 1), (5, 1), (6, 2), (8, 8), (8, 4), (12, 4), (16, 8)];
                let (field, size) = fields[random.below(fields.len())];
                (start.wrapping_add(24 * random.below(entries)).wrapping_add(field), size)
            }
            _ => (random.below(length), 1),
        };
        if let Some(field) = at.checked_add(size).and_then(|end| object.get_mut(at..end)) {
            field.copy_from_slice(&value.to_le_bytes()[..size]);
        }
    }
    if random.below(16) == 0 {
        object.truncate(random.below(length));
    }
}

#[test]
fn a_mutant_is_an_error_or_a_program() {
    let _turn = TURN.lock();
    let count = std::env::var("ORCANE_MUTANTS").ok().and_then(|count| count.parse().ok());
    let count = count.unwrap_or(if cfg!(target_arch = "aarch64") { 500 } else { 10_000 });
    let seeds = seeds();
    let mut programs = 0;
    for index in 0..count {
        let mut random = Random(0x9e37_79b9_7f4a_7c15 ^ (index as u64 + 1).wrapping_mul(0x2545_f491_4f6c_dd1d));
        let mut object = seeds[random.below(seeds.len())].clone();
        mutate(&mut object, &mut random);
        let result = catch_unwind(AssertUnwindSafe(|| link(&object)));
        programs += usize::from(result.unwrap_or_else(|_| panic!("mutant {index}")));
    }
    assert!(programs > count / 20 && programs < count, "{programs} of {count} are programs");
}
