//! `LazyJit`: a `Jit` whose redirectable functions are lazy.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use jit_core::seam::{self, FirstTier};
use jit_core::{Error, Jit, JitBuilder, LazyBody, LookupError, OptLevel, SymbolName};

use crate::ahead::Ahead;
use crate::call_through::{FailureHandler, LazyCallThrough, Partition, abort_on_failure, one_function};
use crate::tier::{TierStatistics, Tiering, Tiers};

/// A [`Jit`] in which nothing is compiled before it is called.
///
/// Functions of [redirectable](jit_core::ClifModule::redirectable) modules, added by
/// [`Jit::redefine`], are compiled when they are first called, and when [`Jit::lookup`] asks for
/// them by name. An object, added by [`Jit::add_object`], is linked when one of its functions is. A redefined function
/// is compiled anew when it is next called. All else is as in `Jit`, which this dereferences to.
///
/// ```
/// use jit_lazy::LazyJit;
///
/// let jit = LazyJit::builder().build()?;
/// assert_eq!(jit.stats().compile.functions, 0);
/// # Ok::<(), jit_core::Error>(())
/// ```
pub struct LazyJit {
    jit: Jit,
    tiers: Option<Arc<Tiers>>,
}

impl LazyJit {
    /// A lazy JIT for the host, with everything at its default.
    ///
    /// # Errors
    ///
    /// As [`JitBuilder::build`].
    pub fn new() -> Result<Self, Error> {
        Self::builder().build()
    }

    /// Sets one up.
    pub fn builder() -> LazyJitBuilder {
        LazyJitBuilder::new(Jit::builder())
    }

    /// What became of functions since the start; nothing without [tiers](LazyJitBuilder::tiers).
    #[must_use]
    pub fn tier_statistics(&self) -> TierStatistics {
        self.tiers.as_ref().map(|tiers| tiers.statistics()).unwrap_or_default()
    }
}

impl fmt::Debug for LazyJit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("LazyJit").field(&self.jit).finish()
    }
}

impl Deref for LazyJit {
    type Target = Jit;

    fn deref(&self) -> &Jit {
        &self.jit
    }
}

impl From<LazyJit> for Jit {
    fn from(lazy: LazyJit) -> Self {
        lazy.jit
    }
}

/// Sets up a [`LazyJit`].
///
/// ```
/// use jit_core::{Jit, OptLevel};
/// use jit_lazy::{LazyJitBuilder, whole_module};
///
/// extern "C" fn missing() -> i64 {
///     -1
/// }
///
/// let jit = LazyJitBuilder::new(Jit::builder().opt_level(OptLevel::Speed))
///     // A first call has the rest of the module compiled as well, and calls of what can't be had go elsewhere.
///     .partition(whole_module)
///     .failure_handler(|name, error| {
///         eprintln!("{name}: {error}");
///         missing as *const () as u64
///     })
///     .build()?;
/// # drop(jit);
/// # Ok::<(), jit_core::Error>(())
/// ```
#[must_use]
pub struct LazyJitBuilder {
    jit: JitBuilder,
    failure: FailureHandler,
    partition: Partition,
    ahead: usize,
    tiering: Option<Tiering>,
}

impl LazyJitBuilder {
    /// Makes what `jit` sets up lazy.
    pub fn new(jit: JitBuilder) -> Self {
        Self { jit, failure: Arc::new(abort_on_failure), partition: Arc::new(one_function), ahead: 0, tiering: None }
    }

    /// Where calls go whose function can't be had: see [`FailureHandler`]. By default the process
    /// is [aborted](abort_on_failure).
    pub fn failure_handler(
        mut self,
        handler: impl Fn(&SymbolName, &LookupError) -> u64 + Send + Sync + 'static,
    ) -> Self {
        self.failure = Arc::new(handler);
        self
    }

    /// What is compiled together with a function when that is first called: by default
    /// [nothing](one_function), or [all of its module](crate::whole_module), or what a closure
    /// says.
    pub fn partition(mut self, partition: impl Fn(&LazyBody) -> Vec<LazyBody> + Send + Sync + 'static) -> Self {
        self.partition = Arc::new(partition);
        self
    }

    /// Compiles likely callees of what is called on this many threads, while no call waits. With 0,
    /// the default, nothing is compiled ahead.
    pub fn ahead_threads(mut self, threads: usize) -> Self {
        self.ahead = threads;
        self
    }

    /// Compiles functions quickly at first, without optimization, and anew as the JIT is set up to
    /// when they were called often, in the background. Functions that only their module knows are
    /// compiled once, and so is what is not CLIF: bodies that the user's units make, and objects.
    /// By default everything is.
    ///
    /// A loop that is running stays in its tier until its function is called again.
    pub fn tiers(mut self, tiering: Tiering) -> Self {
        self.tiering = Some(tiering);
        self
    }

    /// Builds it.
    ///
    /// # Errors
    ///
    /// As [`JitBuilder::build`].
    pub fn build(self) -> Result<LazyJit, Error> {
        let refused = |error| Error::Thread(Arc::new(error));
        let ahead = (self.ahead > 0).then(|| Ahead::new(self.ahead).map_err(refused)).transpose()?;
        let first_call = Arc::new(LazyCallThrough::ahead(self.failure, self.partition, ahead));
        let mut jit = self.jit.first_call(first_call);
        let tiers = match self.tiering {
            Some(tiering) => Some(Arc::new(Tiers::new(seam::isa_at(&jit, OptLevel::None)?, tiering)?)),
            None => None,
        };
        if let Some(tiers) = &tiers {
            jit = jit.first_tier(Arc::clone(tiers) as Arc<dyn FirstTier>);
        }
        Ok(LazyJit { jit: jit.build()?, tiers })
    }
}
