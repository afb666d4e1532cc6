//! Call-through: trampolines for functions that are not compiled yet.

use std::fmt;
use std::sync::Arc;

use jit_core::seam::{CallThrough, FirstCall, LazyFunction, LazyFunctions};
use jit_core::{Error, LazyBody, LookupError, SymbolName};
use jit_linker::memory::MemoryManager;

use crate::ahead::Ahead;
use crate::{stack, trampoline};

/// Decides where a call goes whose function can't be had: is told the function and why, and gives
/// the address of a function of the same signature, or does not return. It runs on the thread that
/// calls, inside the call. A panic in it passes on to the caller, if that can be unwound.
pub type FailureHandler = Arc<dyn Fn(&SymbolName, &LookupError) -> u64 + Send + Sync>;

/// What is compiled together with a function that is called for the first time: is given that, and
/// gives others, of the same JIT. Where there are [compile threads](jit_core::JitBuilder::compile_threads), the call
/// waits for its own function only; without, it is the calling thread that compiles, and the others come first. It runs
/// on the thread that calls, or on one that compiles for it; a panic in it passes on to the caller, if that can be
/// unwound.
pub type Partition = Arc<dyn Fn(&LazyBody) -> Vec<LazyBody> + Send + Sync>;

/// A first call compiles the function that is called, and no other. The default.
#[must_use]
pub fn one_function(_: &LazyBody) -> Vec<LazyBody> {
    Vec::new()
}

/// A first call compiles all that was defined together with the function.
#[must_use]
pub fn whole_module(called: &LazyBody) -> Vec<LazyBody> {
    called.module()
}

/// Points the slots of lazy functions at trampolines, one for each function and its own as long as
/// the function lives. The call that comes through it compiles the body, and later calls go to the
/// body directly. A thread that was on its way through the trampoline meanwhile compiles nothing
/// and goes on to the same body, which is why a trampoline is recycled with its function and
/// not before.
///
/// ```
/// use std::sync::Arc;
///
/// use jit_core::Jit;
/// use jit_lazy::{LazyCallThrough, abort_on_failure, one_function};
///
/// // What `LazyJit` is made of.
/// let call_through = LazyCallThrough::new(Arc::new(abort_on_failure), Arc::new(one_function));
/// let jit = Jit::builder().first_call(Arc::new(call_through)).build()?;
/// # drop(jit);
/// # Ok::<(), jit_core::Error>(())
/// ```
pub struct LazyCallThrough {
    policy: Arc<Policy>,
}

/// What is done at a first call beside compiling the function.
struct Policy {
    failure: FailureHandler,
    partition: Partition,
    ahead: Option<Ahead>,
}

impl LazyCallThrough {
    /// Calls whose function can't be had go to what `failure` gives. What `partition` gives is
    /// compiled with a function.
    #[must_use]
    pub fn new(failure: FailureHandler, partition: Partition) -> Self {
        Self { policy: Arc::new(Policy { failure, partition, ahead: None }) }
    }

    pub(crate) fn ahead(failure: FailureHandler, partition: Partition, ahead: Option<Ahead>) -> Self {
        Self { policy: Arc::new(Policy { failure, partition, ahead }) }
    }
}

impl Default for LazyCallThrough {
    /// With [`abort_on_failure`] and [`one_function`].
    fn default() -> Self {
        Self::new(Arc::new(abort_on_failure), Arc::new(one_function))
    }
}

impl FirstCall for LazyCallThrough {
    fn call_through(&self, memory: &Arc<dyn MemoryManager>, functions: LazyFunctions) -> Result<CallThrough, Error> {
        trampoline::make(memory, Target { functions, policy: Arc::clone(&self.policy) })
    }
}

impl fmt::Debug for LazyCallThrough {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LazyCallThrough").finish_non_exhaustive()
    }
}

/// The default [`FailureHandler`]: says on standard error which function could not be had and why,
/// and aborts the process.
pub fn abort_on_failure(function: &SymbolName, error: &LookupError) -> u64 {
    eprintln!("orcane: '{function}' was called and can't be compiled: {error}");
    std::process::abort()
}

/// What a block of trampolines stands for.
pub(crate) struct Target {
    functions: LazyFunctions,
    policy: Arc<Policy>,
}

impl Target {
    /// As [`resolve`](Self::resolve), without waiting for anybody.
    pub(crate) fn known(&self, index: u32) -> Option<LazyFunction> {
        self.functions.known(index)
    }

    /// Where the call of the function at `index` is to go; `None` if there is none.
    pub(crate) fn resolve(&self, index: u32) -> Option<u64> {
        let body = self.functions.body(index)?;
        if let Some(address) = body.ready() {
            return Some(address);
        }
        let _span = tracing::debug_span!("first call", function = body.function().as_str()).entered();
        let resolved = stack::with_enough(|| self.policy.resolve(&body));
        let resolved = resolved.unwrap_or_else(|error| Err(body.failure(Error::Thread(Arc::new(error)).into())));
        Some(resolved.unwrap_or_else(|error| {
            tracing::debug!(function = body.function().as_str(), %error, "a first call failed");
            (self.policy.failure)(body.function(), &error)
        }))
    }
}

impl Policy {
    fn resolve(&self, body: &LazyBody) -> Result<u64, LookupError> {
        let _waiting = self.ahead.as_ref().map(|ahead| ahead.look_at(body));
        let others = (self.partition)(body);
        // Begun first, so that all of a module are compiled in one batch.
        others.iter().filter(|other| other.function() != body.function()).for_each(LazyBody::prepare);
        body.resolve()
    }
}
