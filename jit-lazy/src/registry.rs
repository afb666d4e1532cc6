//! Which trampoline stands for which function, process-wide: an index is all that a trampoline
//! can say. The upper part of it says which block, the lower which function of that.

use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use jit_core::seam::LazyFunctions;

use crate::call_through::Target;
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
    // SAFETY: it is what such a piece of code told, in which a call is.
    if let Some(target) = unsafe { counted(told) } {
        return target;
    }
    let index = told as u32;
    let target = read().targets.get((index / LazyFunctions::LEN) as usize).cloned().flatten();
    match target.and_then(|target| target.resolve(index % LazyFunctions::LEN)) {
        Some(address) => address,
        None => called_after_removal(index),
    }
}

fn called_after_removal(index: u32) -> ! {
    eprintln!("orcane: a lazy function was called after it was removed (trampoline {index})");
    std::process::abort()
}

fn read() -> RwLockReadGuard<'static, Registry> {
    TARGETS.read().unwrap_or_else(PoisonError::into_inner)
}

fn write() -> RwLockWriteGuard<'static, Registry> {
    TARGETS.write().unwrap_or_else(PoisonError::into_inner)
}
