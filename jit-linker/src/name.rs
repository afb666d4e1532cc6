//! Interned symbol names.

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::fmt;
use std::hash::{BuildHasher, Hash, Hasher};
use std::ops::Deref;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering, fence};
use std::sync::{Mutex, MutexGuard, PoisonError};

use hashbrown::HashTable;
use rustc_hash::FxBuildHasher;

/// What stands before a name's text. There may be millions of names: words would be half of what most of them take.
#[repr(C)]
struct Header {
    /// Handles of the name.
    count: AtomicU32,
    /// Of the text, in bytes.
    length: u32,
}

/// An interned name: a handle that keeps the name in its pool.
///
/// Two handles from one [`SymbolStringPool`] are equal exactly if their texts are, so they compare
/// and hash as one word. The order of handles is arbitrary, and fixed while they live.
pub struct SymbolName(NonNull<Header>);

// SAFETY: the text never changes, and the count is atomic.
unsafe impl Send for SymbolName {}
// SAFETY: as above.
unsafe impl Sync for SymbolName {}

impl SymbolName {
    fn new(text: &str) -> Self {
        let length = u32::try_from(text.len()).expect("a name is shorter than 4 GiB");
        let layout = Self::layout(length);
        // SAFETY: the layout has room for a header at least.
        let Some(header) = NonNull::new(unsafe { alloc(layout) }.cast::<Header>()) else { handle_alloc_error(layout) };
        // SAFETY: the memory is new, aligned for a header, and has room for the text behind it.
        unsafe {
            header.write(Header { count: AtomicU32::new(1), length });
            header.add(1).cast::<u8>().copy_from_nonoverlapping(NonNull::from(text).cast(), text.len());
        }
        Self(header)
    }

    fn layout(length: u32) -> Layout {
        let text = Layout::array::<u8>(length as usize);
        let whole = text.and_then(|text| Layout::new::<Header>().extend(text));
        whole.expect("a header and 4 GiB fit the address space").0
    }

    fn header(&self) -> &Header {
        // SAFETY: it lives as long as one of its handles, and is only shared.
        unsafe { self.0.as_ref() }
    }

    /// The name's text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        let length = self.header().length as usize;
        // SAFETY: `new`, the only constructor, copied so many bytes of a `str` behind the header, and nothing changes
        // them.
        unsafe { std::str::from_utf8_unchecked(NonNull::slice_from_raw_parts(self.0.add(1).cast(), length).as_ref()) }
    }

    fn text_hash(&self) -> u64 {
        hash(self)
    }

    fn address(&self) -> usize {
        self.0.addr().get()
    }

    /// Handles of the name.
    fn count(&self) -> usize {
        self.header().count.load(Ordering::Relaxed) as usize
    }
}

impl Clone for SymbolName {
    #[inline]
    fn clone(&self) -> Self {
        // Handles that were forgotten could bring the count around. Nobody gets from here to there at once.
        if self.header().count.fetch_add(1, Ordering::Relaxed) > u32::MAX / 2 {
            std::process::abort();
        }
        Self(self.0)
    }
}

impl Drop for SymbolName {
    #[inline]
    fn drop(&mut self) {
        let Header { count, length } = self.header();
        let length = *length;
        if count.fetch_sub(1, Ordering::Release) != 1 {
            return;
        }
        // What others did with their handles comes before.
        fence(Ordering::Acquire);
        // SAFETY: this was the last handle; `new` allocated it so.
        unsafe { dealloc(self.0.as_ptr().cast(), Self::layout(length)) };
    }
}

impl SymbolName {
    /// A handle that keeps nothing.
    #[must_use]
    pub fn non_owning(&self) -> NonOwningSymbolName {
        NonOwningSymbolName(self.0.as_ptr().cast_const().cast())
    }

    /// Takes the handle apart, without giving it up: what is left is one count of the name.
    #[must_use]
    pub fn into_raw(self) -> *const () {
        let name = std::mem::ManuallyDrop::new(self);
        name.0.as_ptr().cast_const().cast()
    }

    /// Puts a handle together again.
    ///
    /// # Safety
    ///
    /// `raw` comes from [`into_raw`](Self::into_raw), and one count of the name is the caller's to
    /// give.
    #[must_use]
    pub unsafe fn from_raw(raw: *const ()) -> Self {
        // SAFETY: as the caller says; `into_raw` gives no null.
        Self(unsafe { NonNull::new_unchecked(raw.cast_mut().cast()) })
    }

    /// Adds one count of a name: another handle may be put together from `raw`.
    ///
    /// # Safety
    ///
    /// `raw` comes from [`into_raw`](Self::into_raw), and a count of the name is left.
    pub unsafe fn retain(raw: *const ()) {
        // SAFETY: as the caller says; the count that was there stays there.
        let name = std::mem::ManuallyDrop::new(unsafe { Self::from_raw(raw) });
        std::mem::forget(SymbolName::clone(&name));
    }

    /// Takes one count of a name back.
    ///
    /// # Safety
    ///
    /// As [`from_raw`](Self::from_raw).
    pub unsafe fn release(raw: *const ()) {
        // SAFETY: as the caller says.
        drop(unsafe { Self::from_raw(raw) });
    }
}

/// A name that is only compared: it does not keep its text.
///
/// Equal to the handles of the name it was made from as long as that is in its pool, and hashed as
/// they are. When it is gone, another name may take its place.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct NonOwningSymbolName(*const ());

// SAFETY: the pointer is only compared, except by `unsafe` functions, whose callers vouch for the
// name, which can be used from any thread.
unsafe impl Send for NonOwningSymbolName {}
// SAFETY: as above.
unsafe impl Sync for NonOwningSymbolName {}

impl NonOwningSymbolName {
    /// A number that no other name has as long as this one is in its pool.
    #[must_use]
    pub fn addr(self) -> usize {
        self.0.addr()
    }

    /// The name's text.
    ///
    /// # Safety
    ///
    /// A handle of the name lives as long as the text is used.
    #[must_use]
    pub unsafe fn as_str<'a>(self) -> &'a str {
        // SAFETY: the name lives; the count is not ours, and stays as it is.
        let name = std::mem::ManuallyDrop::new(unsafe { SymbolName::from_raw(self.0) });
        let text = std::ptr::from_ref(name.as_str());
        // SAFETY: the text lies in the name, which lives as the caller says.
        unsafe { &*text }
    }

    /// A handle of the name.
    ///
    /// # Safety
    ///
    /// A handle of the name lives.
    #[must_use]
    pub unsafe fn upgrade(self) -> SymbolName {
        // SAFETY: a count is left, as the caller says, and one more is there to be given.
        unsafe {
            SymbolName::retain(self.0);
            SymbolName::from_raw(self.0)
        }
    }
}

impl Hash for NonOwningSymbolName {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_usize(self.0 as usize);
    }
}

impl PartialEq<SymbolName> for NonOwningSymbolName {
    fn eq(&self, other: &SymbolName) -> bool {
        *self == other.non_owning()
    }
}

impl PartialEq<NonOwningSymbolName> for SymbolName {
    fn eq(&self, other: &NonOwningSymbolName) -> bool {
        self.non_owning() == *other
    }
}

impl fmt::Debug for NonOwningSymbolName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NonOwningSymbolName({:p})", self.0)
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
///
/// ```
/// let names = jit_linker::SymbolStringPool::new();
/// let name = names.intern("main");
/// assert_eq!(name.as_str(), "main");
/// // Names are compared as pointers.
/// assert_eq!(name, names.intern("main"));
/// assert_ne!(name, names.intern("start"));
/// ```
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
    ///
    /// # Panics
    ///
    /// When the text has 4 GiB or more.
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
            names.retain(|name| name.count() > 1);
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
                map.entry(name, &(name.count() - 1));
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

    #[test]
    fn pool_05_a_non_owning_handle_compares_converts_and_probes() {
        let pool = SymbolStringPool::new();
        let (name, other) = (pool.intern("name"), pool.intern("other"));
        let copy = name.non_owning();
        let mut assigned = other.non_owning();
        assert_eq!(assigned, other);
        assert_eq!(other, assigned);
        assert_ne!(assigned, copy);
        assigned = copy;
        assert!(assigned == name && name == copy);
        // SAFETY: `name` lives.
        assert_eq!(unsafe { (copy.as_str(), copy.upgrade()) }, ("name", name.clone()));
        let map = std::collections::HashMap::from([(copy, 1), (other.non_owning(), 2)]);
        assert_eq!(map.get(&name.non_owning()), Some(&1));
    }

    #[test]
    fn pool_06_non_owning_handles_never_change_the_count() {
        let pool = SymbolStringPool::new();
        let name = pool.intern("name");
        let copies = [name.non_owning(); 3];
        let moved = copies;
        assert_eq!(format!("{pool:?}"), r#"{"name": 1}"#);
        drop(name);
        assert_eq!(moved.len(), 3);
        pool.clear_dead_entries();
        assert!(pool.is_empty());
    }

    #[test]
    fn pool_07_raw_references_balance() {
        let pool = SymbolStringPool::new();
        let counts = |count: usize| assert_eq!(format!("{pool:?}"), format!("{{\"name\": {count}}}"));
        let raw = pool.intern("name").into_raw();
        counts(1);
        // SAFETY: `raw` holds one count; each step says which are there.
        unsafe {
            SymbolName::retain(raw);
            counts(2);
            let taken = SymbolName::from_raw(raw);
            counts(2);
            assert_eq!(&*taken, "name");
            drop(taken);
            counts(1);
            SymbolName::release(raw);
        }
        counts(0);
    }
}
