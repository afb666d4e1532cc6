//! Objects that nobody wrote on purpose: cut short, or changed where it hurts. Each gives a graph
//! or an error, in little time and memory.
//!
//! `ORCANE_MUTANTS` says how many mutants there are, if not 100,000.

use std::alloc::{GlobalAlloc, Layout, System};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use jit_linker::arch::Architecture;
use jit_linker::format::archive::{Archive, is_archive};
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

/// Links an object, or each member of an archive.
fn try_link(file: &[u8]) -> bool {
    let file = ObjectBytes::from(file);
    let host = Architecture::host().expect("tests run on an architecture of ours");
    let part = match format::macho::slice("mutant.o", &file, host) {
        Ok(part) if is_archive(&part) => part,
        _ => return try_link_object(file),
    };
    let Ok(archive) = Archive::parse(Path::new("mutant.a"), part) else { return false };
    let members = archive.members();
    let link = |id| archive.member(id).is_ok_and(|member| try_link_object(member.object));
    !members.is_empty() && members.into_iter().all(link)
}

fn try_link_object(object: ObjectBytes) -> bool {
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
    _ = allocated.dependences(|_| true);
    allocated.fix_up().is_ok()
}

/// Cuts each seed short everywhere.
pub(crate) fn truncate(seeds: &[Vec<u8>]) {
    let _turn = TURN.lock();
    for seed in seeds {
        assert!(try_link(seed), "the whole object is a program");
        let step = if cfg!(target_arch = "aarch64") { 17 } else { 1 };
        for end in (0..seed.len().min(64 << 10)).step_by(step) {
            catch_unwind(AssertUnwindSafe(|| link(&seed[..end]))).unwrap_or_else(|_| panic!("cut at {end:#x}"));
        }
    }
}

/// Numbers that are always the same.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub(crate) fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit.max(1) as u64) as usize
    }

    /// A number that is often at some limit.
    pub(crate) fn interesting(&mut self, length: usize) -> u64 {
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

/// Links mutants of the seeds.
pub(crate) fn link_mutants(seeds: &[Vec<u8>], mutate: impl Fn(&mut Vec<u8>, &mut Random)) {
    let _turn = TURN.lock();
    let count = std::env::var("ORCANE_MUTANTS").ok().and_then(|count| count.parse().ok());
    let count = count.unwrap_or(if cfg!(target_arch = "aarch64") { 2_000 } else { 100_000 });
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
