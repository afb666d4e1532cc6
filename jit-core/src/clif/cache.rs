//! Object caches: compiled functions that need not be compiled again.

use std::borrow::Cow;
use std::hash::Hasher;
use std::sync::atomic::{AtomicU64, Ordering};

use cranelift_codegen::control::ControlPlane;
use cranelift_codegen::incremental_cache::CacheKvStore;
use cranelift_codegen::isa::TargetIsa;
use cranelift_codegen::{CodegenError, Context};
use rustc_hash::{FxHashMap, FxHasher};

use crate::sync::{Arc, Mutex, lock};

/// Keeps compiled functions.
///
/// It is asked before every compile and told of every function that was compiled. A key stands for
/// the function's CLIF as it goes to the compiler, the instruction set with all its settings, and
/// the compiler's version; not for the names of what the function refers to, so that two functions
/// that differ in those alone share an entry. What the bytes mean is nobody else's business: they
/// can be kept in a file. Bytes that are not what was inserted count as a miss.
///
/// Calls come from any thread, several at a time, with no lock held.
///
/// ```
/// use std::sync::Arc;
///
/// use jit_core::{InMemoryCache, Jit};
///
/// let cache = Arc::new(InMemoryCache::new());
/// for _ in 0..2 {
///     let jit = Jit::builder().object_cache(cache.clone()).build()?;
///     jit.define_closure("double", |n: i64| 2 * n)?;
///     jit.lookup_address("double")?;
/// }
/// assert!(!cache.is_empty());
/// # Ok::<(), jit_core::Error>(())
/// ```
pub trait ObjectCache: Send + Sync {
    /// What was inserted under `key`, if it is still there.
    fn get(&self, key: &[u8]) -> Option<Arc<[u8]>>;

    /// Keeps a compiled function, or does not.
    fn insert(&self, key: &[u8], object: &[u8]);
}

type Objects = FxHashMap<Box<[u8]>, Arc<[u8]>>;

/// Keeps everything, in memory.
#[derive(Default)]
pub struct InMemoryCache {
    objects: Mutex<Objects>,
}

impl InMemoryCache {
    /// An empty cache.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// How many functions it holds.
    #[must_use]
    pub fn len(&self) -> usize {
        lock(&self.objects).len()
    }

    /// Whether it holds none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl ObjectCache for InMemoryCache {
    fn get(&self, key: &[u8]) -> Option<Arc<[u8]>> {
        lock(&self.objects).get(key).cloned()
    }

    fn insert(&self, key: &[u8], object: &[u8]) {
        lock(&self.objects).insert(Box::from(key), Arc::from(object));
    }
}

/// How often a cache had what was asked for.
#[derive(Default)]
pub(crate) struct CacheCounters {
    pub(crate) hits: AtomicU64,
    pub(crate) misses: AtomicU64,
}

/// Compiles what the context holds, or takes it from the cache.
pub(crate) fn compile(
    context: &mut Context,
    isa: &dyn TargetIsa,
    control: &mut ControlPlane,
    cache: Option<&dyn ObjectCache>,
    counters: &CacheCounters,
) -> Result<(), CodegenError> {
    let Some(cache) = cache else {
        return context.compile(isa, control).map(drop).map_err(|error| error.inner);
    };
    let compiled = context.compile_with_cache(isa, &mut Store(cache), control);
    let (_, hit) = compiled.map_err(|error| error.inner)?;
    let counter = if hit { &counters.hits } else { &counters.misses };
    counter.fetch_add(1, Ordering::Relaxed);
    Ok(())
}

/// An object cache, as Cranelift wants it.
struct Store<'a>(&'a dyn ObjectCache);

/// Bytes of the check that precedes an object.
const CHECK: usize = 8;

/// Cranelift believes what it reads.
fn check(object: &[u8]) -> [u8; CHECK] {
    let mut hasher = FxHasher::default();
    hasher.write(object);
    hasher.write_usize(object.len());
    hasher.finish().to_le_bytes()
}

/// Cranelift's key covers the function and the instruction set.
fn key(cranelift: &[u8]) -> Vec<u8> {
    [cranelift_codegen::VERSION.as_bytes(), cranelift].concat()
}

impl CacheKvStore for Store<'_> {
    fn get(&self, cranelift: &[u8]) -> Option<Cow<'_, [u8]>> {
        let stored = self.0.get(&key(cranelift))?;
        let (expected, object) = stored.split_first_chunk::<CHECK>()?;
        (check(object) == *expected).then(|| Cow::Owned(object.to_vec()))
    }

    fn insert(&mut self, cranelift: &[u8], object: Vec<u8>) {
        self.0.insert(&key(cranelift), &[&check(&object)[..], &object].concat());
    }
}
