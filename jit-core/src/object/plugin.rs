//! Plugins: who takes part in every link of a layer, and is told what became of it.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use jit_linker::LinkGraph;
use jit_linker::plugin::{PassError, Passes};

use crate::error::Cause;
use crate::session::{JitDylib, WeakDylib, contain};
use crate::sync::{Arc, Mutex, lock};

/// Takes part in every link of the layers it was added to.
///
/// For one link, [`configure`](Self::configure) comes first, then [`loaded`](Self::loaded); it ends
/// with [`emitted`](Self::emitted) or [`failed`](Self::failed), and what was emitted with
/// [`removed`](Self::removed). Links run at the same time, on any thread, and no lock is held.
///
/// ```
/// use std::sync::Arc;
/// use std::sync::atomic::{AtomicUsize, Ordering};
///
/// use jit_core::{Jit, Link, LinkPlugin};
/// use jit_linker::LinkGraph;
/// use jit_linker::plugin::{PassError, Passes};
///
/// /// Counts links, and edges of what is linked.
/// #[derive(Default)]
/// struct Count {
///     links: AtomicUsize,
///     edges: Arc<AtomicUsize>,
/// }
///
/// impl LinkPlugin for Count {
///     fn configure(&self, _: &Link, _: &LinkGraph, passes: &mut Passes) {
///         let edges = Arc::clone(&self.edges);
///         passes.after_prune.push(Box::new(move |graph| {
///             edges.fetch_add(graph.edges().len(), Ordering::Relaxed);
///             Ok(())
///         }));
///     }
///
///     fn emitted(&self, _: &Link) -> Result<(), PassError> {
///         self.links.fetch_add(1, Ordering::Relaxed);
///         Ok(())
///     }
/// }
///
/// let jit = Jit::new()?;
/// let count = Arc::new(Count::default());
/// jit.object_layer().add_plugin(count.clone());
/// jit.define_closure("double", |n: i64| 2 * n)?;
/// jit.lookup_address("double")?;
/// assert_eq!(count.links.load(Ordering::Relaxed), 1);
/// # Ok::<(), jit_core::Error>(())
/// ```
pub trait LinkPlugin: Send + Sync {
    /// Adds passes to a link that is about to begin. A pass that fails ends the link.
    fn configure(&self, link: &Link, graph: &LinkGraph, passes: &mut Passes) {
        _ = (link, graph, passes);
    }

    /// The graph's addresses are settled, and about to be published.
    fn loaded(&self, link: &Link, graph: &LinkGraph) {
        _ = (link, graph);
    }

    /// The code is final, and about to become ready.
    ///
    /// # Errors
    ///
    /// An error fails the link.
    fn emitted(&self, link: &Link) -> Result<(), PassError> {
        _ = link;
        Ok(())
    }

    /// The link failed, or all that depended on it was given up. Its memory goes back. Who panics in a link is told, too.
    fn failed(&self, link: &Link, cause: &Cause) {
        _ = (link, cause);
    }

    /// What was emitted was removed, nothing runs in it any more, and its memory is about to go
    /// back. A link keeps its identity when its tracker's contents are transferred to another.
    fn removed(&self, link: &Link) {
        _ = link;
    }
}

/// One link, as its plugins know it.
#[derive(Clone)]
pub struct Link {
    number: u64,
    graph: Arc<str>,
    dylib: WeakDylib,
}

impl Link {
    /// A number that no other link of the process has.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.number
    }

    /// The name of the graph.
    #[must_use]
    pub fn graph(&self) -> &str {
        &self.graph
    }

    /// The dylib that the code goes to; `None` once the session has ended: what is emitted does not keep it.
    #[must_use]
    pub fn dylib(&self) -> Option<JitDylib> {
        self.dylib.upgrade()
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").field("number", &self.number).field("graph", &self.graph).finish_non_exhaustive()
    }
}

type PluginList = Arc<[Arc<dyn LinkPlugin>]>;

/// The plugins of a layer.
#[derive(Default)]
pub(crate) struct Plugins {
    list: Mutex<Option<PluginList>>,
    /// Whether there are any: a link that nobody watches asks no more than this.
    any: AtomicBool,
}

impl Plugins {
    pub(crate) fn add(&self, plugin: Arc<dyn LinkPlugin>) {
        self.change(|plugins| plugins.push(plugin));
    }

    /// Whether it was there.
    pub(crate) fn remove(&self, plugin: &Arc<dyn LinkPlugin>) -> bool {
        let is_it = |other: &Arc<dyn LinkPlugin>| std::ptr::addr_eq(Arc::as_ptr(other), Arc::as_ptr(plugin));
        let mut found = None;
        self.change(|plugins| found = plugins.iter().position(is_it).map(|index| plugins.remove(index)));
        found.is_some()
    }

    fn change(&self, change: impl FnOnce(&mut Vec<Arc<dyn LinkPlugin>>)) {
        let mut list = lock(&self.list);
        let mut plugins = list.as_deref().map(<[_]>::to_vec).unwrap_or_default();
        change(&mut plugins);
        self.any.store(!plugins.is_empty(), Ordering::Release);
        let old = std::mem::replace(&mut *list, (!plugins.is_empty()).then(|| plugins.into()));
        drop(list);
        // The last reference to a plugin may be in it: its destructor is user code.
        drop(old);
    }

    fn current(&self) -> Option<PluginList> {
        if self.any.load(Ordering::Acquire) { lock(&self.list).clone() } else { None }
    }
}

/// Changes a graph before it is linked.
pub(crate) type GraphTransform = Arc<dyn Fn(&mut LinkGraph) -> Result<(), PassError> + Send + Sync>;

/// What a layer does to each graph, beside linking it.
#[derive(Clone, Default)]
pub(crate) struct Hooks {
    pub(crate) plugins: Arc<Plugins>,
    /// Those nearest to the linker last.
    pub(crate) transforms: Vec<GraphTransform>,
}

impl Hooks {
    /// What is to be done in the link of `graph`; `None` if nothing.
    pub(crate) fn begin(&self, dylib: impl FnOnce() -> Option<JitDylib>, graph: &LinkGraph) -> Option<Watched> {
        let plugins = self.plugins.current();
        if plugins.is_none() && self.transforms.is_empty() {
            return None;
        }
        static NUMBERS: AtomicU64 = AtomicU64::new(0);
        let number = NUMBERS.fetch_add(1, Ordering::Relaxed);
        let link = Link { number, graph: Arc::from(graph.name()), dylib: dylib()?.downgrade() };
        let plugins = plugins.unwrap_or_default();
        let mut watched = Watched { passes: Passes::default(), plugins, configured: 0, link };
        for transform in self.transforms.iter().map(Arc::clone) {
            watched.passes.before_prune.push(Box::new(move |graph| transform(graph)));
        }
        for plugin in watched.plugins.iter() {
            watched.configured += 1;
            plugin.configure(&watched.link, graph, &mut watched.passes);
        }
        Some(watched)
    }
}

/// A link that somebody takes part in. If it goes without a word, because of a panic too, it has failed.
pub(crate) struct Watched {
    passes: Passes,
    /// Those that have not been told of its end.
    plugins: PluginList,
    /// How many of them know of it.
    configured: usize,
    link: Link,
}

impl Watched {
    /// The passes, the first time.
    pub(crate) fn take_passes(&mut self) -> Passes {
        std::mem::take(&mut self.passes)
    }

    pub(crate) fn loaded(&self, graph: &LinkGraph) {
        self.plugins.iter().for_each(|plugin| plugin.loaded(&self.link, graph));
    }

    pub(crate) fn failed(mut self, cause: &Cause) {
        self.tell_failed(cause);
    }

    fn tell_failed(&mut self, cause: &Cause) {
        let plugins = std::mem::take(&mut self.plugins);
        let know = plugins.iter().take(self.configured);
        know.for_each(|plugin| contain(|| plugin.failed(&self.link, cause)));
    }

    /// Tells of the end of a link. What is given has to live as long as the code: dropped, it
    /// tells of its removal.
    pub(crate) fn emitted(mut self) -> Result<Box<Emitted>, Arc<Cause>> {
        let refused = self.plugins.iter().find_map(|plugin| plugin.emitted(&self.link).err());
        match refused {
            None => Ok(Box::new(Emitted { plugins: std::mem::take(&mut self.plugins), link: self.link.clone() })),
            Some(error) => {
                let cause = Arc::new(Cause::Other(error));
                self.failed(&cause);
                Err(cause)
            }
        }
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        if !self.plugins.is_empty() {
            let unit = self.link.graph().to_owned();
            self.tell_failed(&Cause::Abandoned { unit });
        }
    }
}

/// What a plugin was told is there.
pub(crate) struct Emitted {
    plugins: PluginList,
    link: Link,
}

impl Drop for Emitted {
    fn drop(&mut self) {
        self.plugins.iter().for_each(|plugin| contain(|| plugin.removed(&self.link)));
    }
}
