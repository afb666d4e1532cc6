//! Spans that nobody wants cost nothing. The only test of its process: whether they are wanted is asked of the process.

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering};

use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: the system's, with a counter beside it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: as the caller says.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: as the caller says.
        unsafe { System.dealloc(block, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

static ASKED: AtomicUsize = AtomicUsize::new(0);
static MADE: AtomicUsize = AtomicUsize::new(0);

/// Wants everything or nothing.
struct Wants(bool);

impl Subscriber for Wants {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        if metadata.target().starts_with("jit_") {
            ASKED.fetch_add(1, Ordering::Relaxed);
        }
        self.0
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        MADE.fetch_add(1, Ordering::Relaxed);
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn event(&self, _: &Event<'_>) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

const FUNCTIONS: usize = 1000;

/// The allocations that compiling a thousand functions takes, one lookup each.
fn compile() -> usize {
    let jit = common::jit();
    let mut module = jit.module("chain");
    common::chain(&mut module, FUNCTIONS);
    jit.add_module(module).unwrap();
    let before = ALLOCATIONS.get();
    for index in 0..FUNCTIONS {
        jit.lookup_address(&format!("f{index}")).unwrap();
    }
    ALLOCATIONS.get() - before
}

#[test]
fn spans_that_nobody_wants_are_never_made() {
    // What is made once for the process is there then.
    compile();
    let alone = compile();
    assert!(alone > FUNCTIONS);

    // Who wants none is asked once for each place where one could be made.
    let (asked, refused) = tracing::subscriber::with_default(Wants(false), || {
        compile();
        let asked = ASKED.load(Ordering::Relaxed);
        (asked, compile())
    });
    assert!((1..50).contains(&asked), "{asked}");
    assert_eq!((ASKED.load(Ordering::Relaxed), MADE.load(Ordering::Relaxed)), (asked, 0));
    assert_eq!(refused, alone);

    // There are as many as there are phases, if they are wanted.
    tracing::subscriber::with_default(Wants(true), compile);
    assert!(MADE.load(Ordering::Relaxed) > 2 * FUNCTIONS);
}
