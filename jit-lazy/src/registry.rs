//! Which trampoline stands for which function, process-wide: an index is all that a trampoline
//! can say. The upper part of it says which block, the lower which function of that.

use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, TryLockError};
use std::thread;

use jit_core::seam::{LazyFunction, LazyFunctions};

use crate::call_through::Target;
use crate::errno;
use crate::signal::{self, Handler};
use crate::tier::counted;

static TARGETS: RwLock<Registry> = RwLock::new(Registry { targets: Vec::new(), free: Vec::new() });

struct Registry {
    /// What blocks of indices stand for.
    targets: Vec<Option<Arc<Target>>>,
    /// Blocks that were given back.
    free: Vec<u32>,
}

/// The indices of a block of functions. Dropped, they stand for nothing any more.
pub(crate) struct Indices {
    block: u32,
}

impl Indices {
    /// `None` when all 2³² are taken.
    pub(crate) fn reserve(target: Target) -> Option<Self> {
        let target = Some(Arc::new(target));
        let mut registry = write();
        let block = match registry.free.pop() {
            Some(block) => {
                registry.targets[block as usize] = target;
                block
            }
            None => {
                let block = registry.targets.len() as u32;
                if block > u32::MAX / LazyFunctions::LEN {
                    return None;
                }
                registry.targets.push(target);
                block
            }
        };
        Some(Self { block })
    }

    /// The first function's.
    pub(crate) fn first(&self) -> u32 {
        self.block * LazyFunctions::LEN
    }
}

impl Drop for Indices {
    fn drop(&mut self) {
        let mut registry = write();
        registry.free.push(self.block);
        let target = registry.targets[self.block as usize].take();
        drop(registry);
        // Not with the lock held: it may be the last to refer to a user's handler.
        drop(target);
    }
}

/// Where a call is to go that came through a trampoline, which tells its index, or through an entry whose counter has
/// run out. Called by the re-entry routine.
pub(crate) extern "C-unwind" fn resolve(told: u64) -> u64 {
    errno::keep(|| target_of(told))
}

fn target_of(told: u64) -> u64 {
    // SAFETY: it is what such a piece of code told, in which a call is.
    if let Some(target) = unsafe { counted(told) } {
        return target;
    }
    let index = told as u32;
    // First of all: what the handler has interrupted may hold the locks that are taken here.
    if let Some(handler) = signal::handler() {
        return resolve_in_handler(index, &handler);
    }
    let target = read().target(index).cloned();
    match target.and_then(|target| target.resolve(index % LazyFunctions::LEN)) {
        Some(address) => address,
        None => called_after_removal(index),
    }
}

/// As [`target_of`], in a signal handler: goes to a body that is ready, and refuses what is not.
fn resolve_in_handler(index: u32, handler: &Handler) -> u64 {
    /// Other threads give their locks back by then. The interrupted one does not.
    const TRIES: u32 = 10_000;
    for _ in 0..TRIES {
        let known = try_read().and_then(|registry| registry.target(index)?.known(index % LazyFunctions::LEN));
        match known {
            Some(LazyFunction::Ready(address)) => return address,
            Some(LazyFunction::Waiting(function)) => signal::refuse(Some(&function), handler),
            _ => thread::yield_now(),
        }
    }
    signal::refuse(None, handler)
}

fn called_after_removal(index: u32) -> ! {
    eprintln!("orcane: a lazy function was called after it was removed (trampoline {index})");
    std::process::abort()
}

impl Registry {
    fn target(&self, index: u32) -> Option<&Arc<Target>> {
        self.targets.get((index / LazyFunctions::LEN) as usize)?.as_ref()
    }
}

fn try_read() -> Option<RwLockReadGuard<'static, Registry>> {
    match TARGETS.try_read() {
        Ok(registry) => Some(registry),
        Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
        Err(TryLockError::WouldBlock) => None,
    }
}

fn read() -> RwLockReadGuard<'static, Registry> {
    TARGETS.read().unwrap_or_else(PoisonError::into_inner)
}

fn write() -> RwLockWriteGuard<'static, Registry> {
    TARGETS.write().unwrap_or_else(PoisonError::into_inner)
}
