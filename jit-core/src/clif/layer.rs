//! `ClifLayer`: what compiles CLIF, and defines the units of modules.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use cranelift_codegen::Context;
use cranelift_codegen::isa::{OwnedTargetIsa, TargetIsa};

use super::cache::{CacheCounters, ObjectCache};
use super::module::ClifModule;
use super::packed::BoxedFunction;
use super::transform::ClifTransform;
use super::units::{Bodies, Entry, Item, ModuleDefinitions, ModuleUnits, Names, OwnedItem};
use crate::error::Error;
use crate::object::{Hooks, ObjectLayer, ObjectLinkingLayer};
use crate::platform::Services;
use crate::redirect::FirstTier;
use crate::session::{ExecutionSession, MaterializationResponsibility, ResourceTracker, SymbolDeclaration};
use crate::sync::thread::{self, ThreadId};
use crate::sync::{Arc, Mutex, lock};

/// Compiles and links CLIF, a function at a time, when it is looked up.
///
/// ```
/// # fn main() -> Result<(), jit_core::Error> {
/// let jit = jit_core::Jit::new()?;
/// let plugin = jit.session().create_dylib("plugin")?;
/// let tracker = plugin.create_tracker()?;
/// // To another dylib than `main`, to be removed with a tracker.
/// jit.clif_layer().add(&tracker, jit.module("functions of the plugin"))?;
/// tracker.remove()?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct ClifLayer {
    pub(crate) shared: Arc<LayerShared>,
}

pub(crate) struct LayerShared {
    pub(crate) isa: OwnedTargetIsa,
    pub(crate) contexts: Contexts,
    pub(crate) spent: Spent,
    pub(crate) hooks: Hooks,
    pub(crate) counters: Counters,
    pub(crate) services: Services,
    pub(crate) cache_counters: CacheCounters,
    pub(crate) options: ClifOptions,
}

/// From how many functions on a module's declarations take longer to free than another thread takes to come to it.
const LARGE: usize = 256;

/// How many contexts wait for their threads before one goes to another: threads end, and nobody says so.
const MAX_CONTEXTS: usize = 16;

/// Contexts between two batches: they keep their buffers, and each goes back to the thread from whose
/// heap those are.
#[derive(Default)]
pub(crate) struct Contexts(Mutex<Vec<(ThreadId, Box<Context>)>>);

/// A context for as long as a batch, taken when it is first asked for: what was compiled before needs none.
pub(crate) struct LentContext<'a> {
    from: &'a Contexts,
    context: Option<Box<Context>>,
}

impl LentContext<'_> {
    pub(crate) fn get(&mut self) -> &mut Context {
        self.context.get_or_insert_with(|| self.from.take())
    }

    /// Lets nobody have it after this: it may be in any state.
    pub(crate) fn discard(&mut self) {
        self.context = None;
    }
}

impl Drop for LentContext<'_> {
    fn drop(&mut self) {
        if let Some(context) = self.context.take() {
            lock(&self.from.0).push((thread::current().id(), context));
        }
    }
}

impl Contexts {
    pub(crate) fn lend(&self) -> LentContext<'_> {
        LentContext { from: self, context: None }
    }

    fn take(&self) -> Box<Context> {
        let here = thread::current().id();
        let mut contexts = lock(&self.0);
        let own = contexts.iter().position(|(thread, _)| *thread == here);
        match own.or_else(|| (contexts.len() >= MAX_CONTEXTS).then_some(0)) {
            Some(place) => contexts.remove(place).1,
            None => Box::new(Context::new()),
        }
    }
}

/// How a layer compiles.
#[derive(Default)]
pub(crate) struct ClifOptions {
    pub(crate) cache: Option<Arc<dyn ObjectCache>>,
    /// What is done to every module, beside what it was given on its way here.
    pub(crate) transforms: Vec<Arc<dyn ClifTransform>>,
}

/// Functions that were compiled and have to be freed, which compile threads do when nothing is left to compile. Whoever built
/// them allocated them: what a compile thread frees, its allocator may give it again, and where it grows that, it waits for
/// the heap of the one that built them.
#[derive(Default)]
pub(crate) struct Spent {
    functions: Mutex<Vec<BoxedFunction>>,
    /// Whether there are any. Changed under the lock.
    are_there: AtomicBool,
    freeing: AtomicBool,
}

impl Spent {
    /// Keeps `functions` to be freed later.
    pub(crate) fn keep(&self, functions: Vec<BoxedFunction>) {
        let mut kept = lock(&self.functions);
        kept.extend(functions);
        self.are_there.store(!kept.is_empty(), Ordering::SeqCst);
    }

    /// Frees what was kept, or leaves it to the thread that is about it.
    pub(crate) fn free(&self) {
        // That thread looks again after it has said that it is done: then what was left to it is there.
        while self.are_there.load(Ordering::SeqCst) && !self.freeing.swap(true, Ordering::SeqCst) {
            let functions = {
                let mut kept = lock(&self.functions);
                self.are_there.store(false, Ordering::SeqCst);
                std::mem::take(&mut *kept)
            };
            drop(functions);
            self.freeing.store(false, Ordering::SeqCst);
        }
    }
}

#[derive(Default)]
pub(crate) struct Counters {
    pub(crate) functions: AtomicU64,
    pub(crate) code_bytes: AtomicU64,
    pub(crate) data_bytes: AtomicU64,
    pub(crate) compile_nanoseconds: AtomicU64,
    pub(crate) link_nanoseconds: AtomicU64,
}

/// What a layer has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct CompileStatistics {
    /// Functions compiled or taken over as machine code.
    pub functions: u64,
    /// Bytes of their code.
    pub code_bytes: u64,
    /// Bytes of data objects and of the tables of the linker.
    pub data_bytes: u64,
    /// Time in Cranelift, over all threads.
    pub compile_time: Duration,
    /// Functions that the [object cache](crate::ObjectCache) had.
    pub cache_hits: u64,
    /// Functions that it was asked for and did not have.
    pub cache_misses: u64,
    /// Time in the linker, over all threads; waiting for other units is not counted.
    pub link_time: Duration,
}

impl ClifLayer {
    /// A layer that compiles for `isa`.
    ///
    /// # Errors
    ///
    /// When it does not generate position-independent code, which is what separately compiled
    /// units need.
    pub fn new(isa: OwnedTargetIsa) -> Result<Self, Error> {
        Self::over(isa, &ObjectLinkingLayer::new())
    }

    /// A layer that compiles for `isa` and links what it compiled as `base` links objects: with
    /// the plugins that are or will be added there, and what transform layers do to graphs.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new).
    pub fn over(isa: OwnedTargetIsa, base: &impl ObjectLayer) -> Result<Self, Error> {
        Self::with_options(isa, base, ClifOptions::default(), Services::default())
    }

    pub(crate) fn with_options(
        isa: OwnedTargetIsa,
        base: &impl ObjectLayer,
        options: ClifOptions,
        services: Services,
    ) -> Result<Self, Error> {
        if !isa.flags().is_pic() {
            return Err(Error::Target(format!("{} without position-independent code", isa.triple())));
        }
        let (contexts, spent, counters, cache_counters) = Default::default();
        let hooks = base.hooks().0;
        let shared = LayerShared { isa, contexts, spent, hooks, counters, cache_counters, options, services };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// The instruction set that modules have to be made for.
    #[must_use]
    pub fn isa(&self) -> &OwnedTargetIsa {
        &self.shared.isa
    }

    /// What was done so far.
    #[must_use]
    pub fn statistics(&self) -> CompileStatistics {
        let counters = &self.shared.counters;
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        CompileStatistics {
            functions: load(&counters.functions),
            code_bytes: load(&counters.code_bytes),
            data_bytes: load(&counters.data_bytes),
            compile_time: Duration::from_nanos(load(&counters.compile_nanoseconds)),
            cache_hits: load(&self.shared.cache_counters.hits),
            cache_misses: load(&self.shared.cache_counters.misses),
            link_time: Duration::from_nanos(load(&counters.link_nanoseconds)),
        }
    }

    /// Defines what the module defines, all or nothing. Nothing is compiled yet.
    ///
    /// # Errors
    ///
    /// When the module is for another target, declares a function or data object that it should
    /// define and does not, or defines a symbol that the dylib has.
    pub fn add(&self, tracker: &ResourceTracker, module: ClifModule) -> Result<(), Error> {
        let module = self.units(tracker.session(), module, None)?;
        tracker.define_each(ModuleDefinitions { module, besides: None })
    }

    /// As [`add`](Self::add), but for the module's redirectable functions: their bodies are defined
    /// by [`ModuleUnits::body`] when they are needed, at a first tier if there is one.
    pub(crate) fn add_redirectable(
        &self,
        tracker: &ResourceTracker,
        module: ClifModule,
        first_tier: Option<Arc<dyn FirstTier>>,
    ) -> Result<Arc<ModuleUnits>, Error> {
        let module = self.units(tracker.session(), module, first_tier)?;
        tracker.define_each(ModuleDefinitions { module: Arc::clone(&module), besides: None })?;
        Ok(module)
    }

    /// Materializes what a responsibility is for from a module that defines it. What the module
    /// defines besides becomes the unit's too, and is materialized with it.
    ///
    /// # Errors
    ///
    /// As [`add`](Self::add), and when the module does not define the unit's symbol. It has failed
    /// then.
    pub fn materialize(&self, responsibility: MaterializationResponsibility, module: ClifModule) -> Result<(), Error> {
        match self.split(&responsibility, module) {
            Ok((module, own, others)) => {
                for (item, responsibility) in others {
                    module.wait_for(item, responsibility);
                }
                module.wait_for(own, responsibility);
                Ok(())
            }
            Err(error) => {
                responsibility.fail(error.clone().into());
                Err(error)
            }
        }
    }

    /// The module, which of its functions is the one of a responsibility, and its others, each with
    /// a responsibility of its own.
    fn split(
        &self,
        responsibility: &MaterializationResponsibility,
        module: ClifModule,
    ) -> Result<(Arc<ModuleUnits>, Item, Vec<OwnedItem>), Error> {
        let module = self.units(responsibility.session(), module, None)?;
        let symbols = responsibility.symbols();
        let own = symbols.first().ok_or(Error::DefunctTracker)?;
        let index = module.functions.iter().position(|entry| entry.name == own.name && entry.defined);
        let item = Item::Function(index.ok_or_else(|| Error::UnexpectedDefinition(own.name.clone()))? as u32);
        let others = ModuleDefinitions { module: Arc::clone(&module), besides: Some(item) };
        let others = others
            .items()
            .map(|item| {
                let entry = module.entry(item);
                let Entry { name, signature, .. } = entry;
                let declaration =
                    SymbolDeclaration { name: name.clone(), flags: entry.flags(), signature: signature.clone() };
                let accepted = responsibility.define_materializing(vec![declaration])?;
                Ok((item, responsibility.delegate(&accepted)?))
            })
            .collect::<Result<_, Error>>()?;
        Ok((module, item, others))
    }

    fn units(
        &self,
        session: &ExecutionSession,
        mut module: ClifModule,
        first_tier: Option<Arc<dyn FirstTier>>,
    ) -> Result<Arc<ModuleUnits>, Error> {
        self.check_target(&module)?;
        for transform in &self.shared.options.transforms {
            module.begin(&**transform);
        }
        let second_tier = first_tier.as_ref().and_then(|tier| tier.second_tier());
        let second_tier = second_tier.map(|transform| transform.begin(&module));
        let names = Names::new(session, &module)?;
        // The declarations go first: a large module's are as large as what the session keeps.
        let ClifModule {
            name,
            functions,
            mut data,
            declarations,
            large,
            references,
            machine_code,
            source,
            transforms,
            variables,
            used,
            ..
        } = module;
        match functions.len() {
            LARGE.. => session.free(declarations),
            _ => drop(declarations),
        }
        data.resize_with(names.data.len(), || None);
        let bodies = Bodies {
            followed: Vec::new(),
            functions,
            references,
            data,
            machine_code,
            planned: Vec::new(),
            waiting: Vec::new(),
            scheduled: 0,
        };
        let defined = names.functions.iter().chain(&names.data).filter(|entry| entry.defined).count();
        Ok(Arc::new(ModuleUnits {
            layer: Arc::clone(&self.shared),
            name,
            added_by: thread::current().id(),
            functions: names.functions,
            data: names.data,
            defined,
            source,
            transforms,
            variables,
            large,
            used,
            bodies: Mutex::new(bodies),
            first_tier,
            second_tier,
        }))
    }

    fn check_target(&self, module: &ClifModule) -> Result<(), Error> {
        let (ours, theirs) = (&self.shared.isa, &module.isa);
        let same = Arc::ptr_eq(ours, theirs)
            || ours.triple() == theirs.triple()
                && ours.flags().to_string() == theirs.flags().to_string()
                && settings(&**ours).eq(settings(&**theirs));
        if same {
            return Ok(());
        }
        Err(Error::ForeignModule { module: theirs.triple().to_string(), session: ours.triple().to_string() })
    }
}

/// The settings that belong to one instruction set.
fn settings(isa: &dyn TargetIsa) -> impl Iterator<Item = (&'static str, String)> {
    isa.isa_flags().into_iter().map(|setting| (setting.name, setting.value_string()))
}
