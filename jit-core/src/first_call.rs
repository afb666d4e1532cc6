//! The hook for laziness: where a redirectable function's calls go before it has a body.

use std::fmt;

use jit_linker::SymbolName;
use jit_linker::memory::MemoryManager;

use crate::error::{Cause, Error, LookupError, SymbolFailure};
use crate::redirect::Entry;
use crate::session::WeakDylib;
use crate::sync::{Arc, Weak};

/// Makes redirectable functions lazy: given to [`JitBuilder::first_call`], it is asked, when a
/// function is first referred to, for something to call that compiles the function.
///
/// [`JitBuilder::first_call`]: crate::JitBuilder::first_call
pub trait FirstCall: Send + Sync {
    /// Gives an address to call instead of a body: code in memory from `memory` that calls
    /// [`LazyBody::resolve`] and goes on at the address that gives, with every argument as it was
    /// passed. It may be called any number of times, from any thread.
    ///
    /// # Errors
    ///
    /// When there is no memory for it.
    fn call_through(&self, memory: &Arc<dyn MemoryManager>, body: LazyBody) -> Result<CallThrough, Error>;
}

/// Something to call that is not the body yet.
pub struct CallThrough {
    /// Where it is.
    pub address: u64,
    /// Keeps it alive: dropped when no code refers to the function any more. It must not keep the
    /// session alive.
    pub guard: Box<dyn Send + Sync>,
}

impl fmt::Debug for CallThrough {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CallThrough({:#x})", self.address)
    }
}

/// The newest body of a redirectable function, whichever that is when it is wanted. Does not keep
/// the function or its session alive.
#[derive(Clone)]
pub struct LazyBody {
    pub(crate) function: SymbolName,
    pub(crate) dylib: WeakDylib,
    pub(crate) entry: Weak<Entry>,
}

impl LazyBody {
    /// The function's name.
    #[must_use]
    pub fn function(&self) -> &SymbolName {
        &self.function
    }

    /// Compiles the newest body if that has not been done, makes calls go to it from now on, and
    /// gives its address. Of threads that want it at once, one compiles and the others wait.
    ///
    /// # Errors
    ///
    /// When the body can't be had. Calls still come here then: a later redefinition may help.
    pub fn resolve(&self) -> Result<u64, LookupError> {
        let (Some(dylib), Some(entry)) = (self.dylib.upgrade(), self.entry.upgrade()) else {
            return Err(self.gone());
        };
        loop {
            let body = entry.body_name();
            let found = dylib.session().lookup(&dylib.link_order(), vec![body.clone()]);
            match found.map(|mut found| found.pop()) {
                Ok(Some(found)) if entry.publish(dylib.session(), &found) => {
                    return Ok(found.definition.address);
                }
                Ok(None) => return Err(self.gone()),
                Err(error) if entry.body_name() == body => return Err(error),
                // A newer body took its place meanwhile.
                Ok(Some(_)) | Err(_) => {}
            }
        }
    }

    /// Where calls go, if that is a body by now. Takes no lock and allocates nothing.
    #[must_use]
    pub fn ready(&self) -> Option<u64> {
        self.entry.upgrade()?.ready()
    }

    /// That the body can't be had because of `cause`.
    #[must_use]
    pub fn failure(&self, cause: Cause) -> LookupError {
        let dylib = self.dylib.upgrade().and_then(|dylib| dylib.name().ok()).unwrap_or_default();
        LookupError { failures: vec![SymbolFailure { name: self.function.clone(), dylib, cause: Arc::new(cause) }] }
    }

    fn gone(&self) -> LookupError {
        self.failure(if self.dylib.upgrade().is_none() { Cause::SessionEnded } else { Cause::Removed })
    }
}

impl fmt::Debug for LazyBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("LazyBody").field(&self.function).finish()
    }
}
