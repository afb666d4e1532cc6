//! Thread-local variables of JIT'd code.
//!
//! The symbol of such a variable is its *descriptor*: two words that general-dynamic code takes
//! the address of. On x86-64 the code passes it to [`get_address`]; on AArch64 it calls the
//! descriptor's first word (ELF TLSDESC), which answers with an offset from the thread pointer.
//!
//! Each thread gets its block, a copy of the initial image, at its first access. A block lives
//! until its thread ends or its variable is removed.

use std::alloc::{Layout, LayoutError, alloc_zeroed, dealloc, handle_alloc_error};
use std::cell::RefCell;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use jit_linker::arch::Architecture;
use rustc_hash::FxHashMap;

use crate::sync::{Mutex, lock};

/// A thread-local variable.
pub(crate) struct Variable {
    storage: Arc<Storage>,
}

struct Storage {
    id: u64,
    layout: Layout,
    /// Bytes of the initial value.
    size: usize,
    /// Where the initial value is; 0 until it is linked.
    image: AtomicU64,
    blocks: Mutex<FxHashMap<u64, Block>>,
}

/// A thread's copy of a variable.
struct Block {
    start: NonNull<u8>,
    layout: Layout,
}

// SAFETY: a block is plain memory; whoever has its address is JIT'd code of the thread it is for.
unsafe impl Send for Block {}

impl Drop for Block {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout in `Storage::new_block`, and freed once.
        unsafe { dealloc(self.start.as_ptr(), self.layout) };
    }
}

static NEXT_VARIABLE: AtomicU64 = AtomicU64::new(0);
static NEXT_THREAD: AtomicU64 = AtomicU64::new(0);

/// A thread's blocks, by variable.
struct ThreadBlocks {
    thread: u64,
    blocks: FxHashMap<u64, (NonNull<u8>, Weak<Storage>)>,
    /// The number of blocks at which those of removed variables are looked for.
    sweep_at: usize,
}

impl Drop for ThreadBlocks {
    fn drop(&mut self) {
        for (_, storage) in self.blocks.values() {
            if let Some(storage) = storage.upgrade() {
                lock(&storage.blocks).remove(&self.thread);
            }
        }
    }
}

thread_local! {
    static BLOCKS: RefCell<ThreadBlocks> = RefCell::new(ThreadBlocks {
        thread: NEXT_THREAD.fetch_add(1, Ordering::Relaxed),
        blocks: FxHashMap::default(),
        sweep_at: 64,
    });
}

impl Variable {
    /// A variable of `size` bytes. Its address is part of its descriptor: it stays boxed.
    ///
    /// # Errors
    ///
    /// When no memory can have that size and alignment.
    pub(crate) fn new(size: usize, align: usize) -> Result<Box<Self>, LayoutError> {
        let storage = Storage {
            id: NEXT_VARIABLE.fetch_add(1, Ordering::Relaxed),
            layout: Layout::from_size_align(size.max(1), align)?,
            size,
            image: AtomicU64::new(0),
            blocks: Mutex::default(),
        };
        Ok(Box::new(Self { storage: Arc::new(storage) }))
    }

    /// Says where the initial value is. It must stay there as long as the variable.
    pub(crate) fn set_image(&self, address: u64) {
        self.storage.image.store(address, Ordering::Release);
    }

    /// The calling thread's copy.
    fn address(&self) -> *mut u8 {
        let id = self.storage.id;
        let found = BLOCKS.try_with(|blocks| {
            let blocks = &mut *blocks.borrow_mut();
            if let Some((start, _)) = blocks.blocks.get(&id) {
                return start.as_ptr();
            }
            if blocks.blocks.len() >= blocks.sweep_at {
                blocks.blocks.retain(|_, (_, storage)| storage.strong_count() > 0);
                blocks.sweep_at = (blocks.blocks.len() * 2).max(64);
            }
            let start = self.storage.block_of(blocks.thread);
            blocks.blocks.insert(id, (start, Arc::downgrade(&self.storage)));
            start.as_ptr()
        });
        // The thread is ending and its table is gone: a block of nobody, which goes with the
        // variable.
        found.unwrap_or_else(|_| self.storage.block_of(NEXT_THREAD.fetch_add(1, Ordering::Relaxed)).as_ptr())
    }
}

impl Storage {
    fn block_of(&self, thread: u64) -> NonNull<u8> {
        lock(&self.blocks).entry(thread).or_insert_with(|| self.new_block()).start
    }

    fn new_block(&self) -> Block {
        // SAFETY: the layout is not of size 0.
        let Some(start) = NonNull::new(unsafe { alloc_zeroed(self.layout) }) else { handle_alloc_error(self.layout) };
        let image = self.image.load(Ordering::Acquire) as *const u8;
        if !image.is_null() {
            // SAFETY: the image is `size` bytes of the variable's own linked memory, which lives
            // as long as the variable; the block is at least as large, and fresh.
            unsafe { image.copy_to_nonoverlapping(start.as_ptr(), self.size) };
        }
        Block { start, layout: self.layout }
    }
}

/// The bytes of a variable's descriptor.
pub(crate) fn descriptor(variable: &Variable) -> [u8; 16] {
    let variable = std::ptr::from_ref(variable) as u64;
    let words = match Architecture::host() {
        Some(Architecture::Aarch64) => [resolver_address(), variable],
        _ => [variable, 0],
    };
    let mut bytes = [0; 16];
    for (word, bytes) in words.into_iter().zip(bytes.chunks_exact_mut(8)) {
        bytes.copy_from_slice(&word.to_le_bytes());
    }
    bytes
}

/// What general-dynamic code on x86-64 calls: the pair of a variable and an offset in it.
#[repr(C)]
pub(crate) struct TlsIndex {
    variable: *const Variable,
    offset: u64,
}

/// Stands for `__tls_get_addr` of the ELF TLS specification.
///
/// # Safety
///
/// `index` is a descriptor made by [`descriptor`] whose variable is alive.
pub(crate) unsafe extern "C" fn get_address(index: *const TlsIndex) -> *mut u8 {
    // SAFETY: as the caller says.
    let (variable, offset) = unsafe { (&*(*index).variable, (*index).offset) };
    variable.address().wrapping_add(offset as usize)
}

#[cfg(not(target_arch = "aarch64"))]
fn resolver_address() -> u64 {
    0
}

#[cfg(target_arch = "aarch64")]
fn resolver_address() -> u64 {
    unsafe extern "C" {
        fn orcane_tlsdesc_resolver();
    }
    orcane_tlsdesc_resolver as *const () as u64
}

/// # Safety
///
/// `variable` is the second word of a descriptor made by [`descriptor`] whose variable is alive.
#[cfg(target_arch = "aarch64")]
unsafe extern "C" fn address_of_variable(variable: *const Variable) -> *mut u8 {
    // SAFETY: as the caller says.
    unsafe { &*variable }.address()
}

#[cfg(target_arch = "aarch64")]
super::tlsdesc::resolver!("orcane_tlsdesc_resolver", address_of_variable);
