//! Interned symbol names.

use std::fmt;
use std::hash::{BuildHasher, Hash, Hasher};
use std::ops::Deref;
use std::sync::{Mutex, MutexGuard, PoisonError};

use hashbrown::HashTable;
use rustc_hash::FxBuildHasher;
use triomphe::ThinArc;

/// An interned name: a handle that keeps the name in its pool.
///
/// Two handles from one [`SymbolStringPool`] are equal exactly if their texts are, so they compare
/// and hash as one word. The order of handles is arbitrary, and fixed while they live.
#[derive(Clone)]
pub struct SymbolName(ThinArc<(), u8>);

impl SymbolName {
    fn new(text: &str) -> Self {
        Self(ThinArc::from_header_and_slice((), text.as_bytes()))
    }

    /// The name's text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        // SAFETY: `new`, the only constructor, copies the bytes of a `str`, and nothing changes
        // them.
        unsafe { std::str::from_utf8_unchecked(&self.0.slice) }
    }

    fn text_hash(&self) -> u64 {
        hash(self)
    }

    fn address(&self) -> usize {
        self.0.as_ptr() as usize
    }
}

impl Deref for SymbolName {
    type Target = str;

    fn deref(&self) -> &str {
        self.as_str()
    }
}

impl PartialEq for SymbolName {
    fn eq(&self, other: &Self) -> bool {
        self.address() == other.address()
    }
}

impl Eq for SymbolName {}

impl PartialOrd for SymbolName {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for SymbolName {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.address().cmp(&other.address())
    }
}

impl Hash for SymbolName {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_usize(self.address());
    }
}

impl fmt::Display for SymbolName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self)
    }
}

impl fmt::Debug for SymbolName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

/// Not kept in the names: it is cheaper to compute again when a table grows.
fn hash(text: &str) -> u64 {
    FxBuildHasher.hash_one(text)
}

/// Shards by bits of the hash that the tables do not use: threads that intern different names seldom meet.
const SHARDS: usize = 16;

/// The set of names that a session uses, each stored once.
#[derive(Default)]
pub struct SymbolStringPool {
    shards: [Mutex<HashTable<SymbolName>>; SHARDS],
}

impl SymbolStringPool {
    /// An empty pool.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The handle of `text`, the same for the same text as long as a handle lives.
    pub fn intern(&self, text: &str) -> SymbolName {
        let hash = hash(text);
        let mut names = lock(&self.shards[(hash >> 32) as usize % SHARDS]);
        names
            .entry(hash, |name| name.as_str() == text, SymbolName::text_hash)
            .or_insert_with(|| SymbolName::new(text))
            .get()
            .clone()
    }

    /// Forgets the names that nothing refers to any more.
    pub fn clear_dead_entries(&self) {
        for shard in &self.shards {
            let mut names = lock(shard);
            names.retain(|name| ThinArc::strong_count(&name.0) > 1);
            names.shrink_to_fit(SymbolName::text_hash);
        }
    }

    /// Whether the pool holds no name at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.shards.iter().all(|shard| lock(shard).is_empty())
    }
}

/// A poisoned shard is whole: no user code runs while it is locked, and an insertion that could
/// not get memory has changed nothing.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl fmt::Debug for SymbolStringPool {
    /// Lists each name with the number of its handles.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut map = f.debug_map();
        for shard in &self.shards {
            for name in lock(shard).iter() {
                map.entry(name, &(ThinArc::strong_count(&name.0) - 1));
            }
        }
        map.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pool_01_equal_strings_give_equal_handles() {
        let pool = SymbolStringPool::new();
        let first = pool.intern("symbol");
        let second = pool.intern(&String::from("symbol"));
        let other = pool.intern("other");
        assert_eq!(first, second);
        assert_ne!(first, other);
        assert!((first < other) != (other < first));
    }

    #[test]
    fn pool_02_a_handle_yields_its_text() {
        assert_eq!(&*SymbolStringPool::new().intern("naïve"), "naïve");
    }

    #[test]
    fn pool_03_a_sweep_keeps_names_that_have_a_handle() {
        let pool = SymbolStringPool::new();
        let kept = pool.intern("kept");
        drop(pool.intern("dropped"));
        pool.clear_dead_entries();
        assert_eq!(format!("{pool:?}"), r#"{"kept": 1}"#);
        drop(kept);
        pool.clear_dead_entries();
        assert!(pool.is_empty());
    }

    #[test]
    fn pool_04_the_dump_lists_each_name_with_its_count() {
        let pool = SymbolStringPool::new();
        let name = pool.intern("name");
        let _again = name.clone();
        assert_eq!(format!("{pool:?}"), r#"{"name": 2}"#);
    }
}
