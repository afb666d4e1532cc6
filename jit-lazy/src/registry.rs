//! Which trampoline stands for which function, process-wide: an index is all that a trampoline
//! can say.

use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::call_through::Target;

static TARGETS: RwLock<Registry> = RwLock::new(Registry { targets: Vec::new(), free: Vec::new() });

struct Registry {
    targets: Vec<Option<Arc<Target>>>,
    /// First indices of ranges that were given back.
    free: Vec<u32>,
}

/// A range of [`RANGE`] indices. Dropped, it is given back.
#[derive(Debug)]
pub(crate) struct Indices {
    first: u32,
}

/// Indices in a range: as many as a block has trampolines.
pub(crate) const RANGE: u32 = 128;

impl Indices {
    /// `None` when all 2³² are taken.
    pub(crate) fn reserve() -> Option<Self> {
        let mut registry = write();
        let first = match registry.free.pop() {
            Some(first) => first,
            None => {
                let first = u32::try_from(registry.targets.len()).ok().filter(|first| *first <= u32::MAX - RANGE)?;
                registry.targets.resize_with((first + RANGE) as usize, || None);
                first
            }
        };
        Some(Self { first })
    }

    /// The index at `position` of the range.
    pub(crate) fn at(&self, position: u32) -> u32 {
        debug_assert!(position < RANGE);
        self.first + position
    }
}

impl Drop for Indices {
    fn drop(&mut self) {
        write().free.push(self.first);
    }
}

/// Says what an index stands for, or that it stands for nothing.
pub(crate) fn set(index: u32, target: Option<Arc<Target>>) {
    let old = std::mem::replace(&mut write().targets[index as usize], target);
    // Not with the lock held: it may be the last to refer to a user's handler.
    drop(old);
}

/// Where the call that came through the trampoline `index` is to go. Called by the re-entry
/// routine.
pub(crate) extern "C-unwind" fn resolve(index: u32) -> u64 {
    let target = read().targets.get(index as usize).cloned().flatten();
    match target {
        Some(target) => target.resolve(),
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
