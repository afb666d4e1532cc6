//! Call-through: trampolines for functions that are not compiled yet.

use std::fmt;
use std::sync::Arc;

use jit_core::{CallThrough, Error, FirstCall, LazyBody, LookupError, SymbolName};
use jit_linker::memory::MemoryManager;

use crate::trampoline::TrampolinePool;
use crate::{signal, stack};

/// Decides where a call goes whose function can't be had: is told the function and why, and gives
/// the address of a function of the same signature, or does not return. It runs on the thread that
/// calls, inside the call. A panic in it passes on to the caller, if that can be unwound.
pub type FailureHandler = Arc<dyn Fn(&SymbolName, &LookupError) -> u64 + Send + Sync>;

/// Points the slots of lazy functions at trampolines, one for each function and its own as long as
/// the function lives. The call that comes through it compiles the body, and later calls go to the
/// body directly. A thread that was on its way through the trampoline meanwhile compiles nothing
/// and goes on to the same body, which is why a trampoline is recycled with its function and
/// not before.
pub struct LazyCallThrough {
    trampolines: TrampolinePool,
    failure: FailureHandler,
}

impl LazyCallThrough {
    /// Calls whose function can't be had go to what `failure` gives.
    #[must_use]
    pub fn new(failure: FailureHandler) -> Self {
        Self { trampolines: TrampolinePool::default(), failure }
    }
}

impl Default for LazyCallThrough {
    /// With [`abort_on_failure`].
    fn default() -> Self {
        Self::new(Arc::new(abort_on_failure))
    }
}

impl FirstCall for LazyCallThrough {
    fn call_through(&self, memory: &Arc<dyn MemoryManager>, body: LazyBody) -> Result<CallThrough, Error> {
        let target = Target { body, failure: Arc::clone(&self.failure) };
        let trampoline = self.trampolines.allocate(memory, target)?;
        Ok(CallThrough { address: trampoline.address(), guard: Box::new(trampoline) })
    }
}

impl fmt::Debug for LazyCallThrough {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LazyCallThrough").field("trampolines", &self.trampolines).finish_non_exhaustive()
    }
}

/// The default [`FailureHandler`]: says on standard error which function could not be had and why,
/// and aborts the process.
pub fn abort_on_failure(function: &SymbolName, error: &LookupError) -> u64 {
    eprintln!("orcane: '{function}' was called and can't be compiled: {error}");
    std::process::abort()
}

/// What a trampoline stands for.
pub(crate) struct Target {
    body: LazyBody,
    failure: FailureHandler,
}

impl Target {
    /// Where the call is to go.
    pub(crate) fn resolve(&self) -> u64 {
        if let Some(address) = self.body.ready() {
            return address;
        }
        signal::refuse_in_handler(self.body.function());
        let resolved = stack::with_enough(|| self.body.resolve());
        match resolved.unwrap_or_else(|error| Err(self.body.failure(Error::Thread(Arc::new(error)).into()))) {
            Ok(address) => address,
            Err(error) => {
                tracing::debug!(function = self.body.function().as_str(), %error, "a first call failed");
                (self.failure)(self.body.function(), &error)
            }
        }
    }
}
