//! The hook for laziness: where a redirectable function's calls go before it has a body.

use std::fmt;

use jit_linker::SymbolName;
use jit_linker::memory::MemoryManager;

use crate::error::{Cause, Error, LookupError, SymbolFailure};
use crate::redirect::{self, BLOCK, Body, FunctionId, FunctionTable};
use crate::session::{ExecutionSession, JitDylib, Priority, SearchOrder, SymbolState, WeakDylib};
use crate::sync::{Arc, Weak};

/// Makes redirectable functions lazy: given to [`JitBuilder::first_call`], it is asked for
/// something to call that compiles a function, for a block of functions at a time.
///
/// [`JitBuilder::first_call`]: crate::JitBuilder::first_call
pub trait FirstCall: Send + Sync {
    /// Gives addresses to call instead of bodies: code in memory from `memory` that calls
    /// [`LazyBody::resolve`] on one of the functions and goes on at the address that gives, with
    /// every argument as it was passed. It may be called any number of times, from any thread.
    ///
    /// # Errors
    ///
    /// When there is no memory for it.
    fn call_through(&self, memory: &Arc<dyn MemoryManager>, functions: LazyFunctions) -> Result<CallThrough, Error>;
}

/// Something to call for each function of a block that has no body yet.
pub struct CallThrough {
    /// Where the first function's is.
    pub first: u64,
    /// Bytes from one function's to the next's.
    pub stride: u64,
    /// Keeps it alive: dropped when no code refers to the functions any more. It must not keep the
    /// session alive.
    pub guard: Box<dyn Send + Sync>,
}

impl CallThrough {
    pub(crate) fn address(&self, index: u32) -> u64 {
        self.first + u64::from(index) * self.stride
    }
}

impl fmt::Debug for CallThrough {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CallThrough({:#x})", self.first)
    }
}

/// A block of functions, whichever they are when one is called. Does not keep them alive.
#[derive(Clone)]
pub struct LazyFunctions {
    pub(crate) table: Weak<FunctionTable>,
    pub(crate) first: FunctionId,
}

impl LazyFunctions {
    /// How many.
    pub const LEN: u32 = BLOCK;

    /// The function at `index`, if there is one.
    #[must_use]
    pub fn body(&self, index: u32) -> Option<LazyBody> {
        let (table, id) = (self.table.upgrade()?, self.first + index);
        let body = table.body(id)?;
        Some(LazyBody::new(table, id, &body))
    }

    /// What is known of the function at `index`, without waiting for anybody: for signal handlers, which may have
    /// interrupted the thread that is changing it. `None` while a thread does, and if there is no such function.
    #[must_use]
    pub fn known(&self, index: u32) -> Option<LazyFunction> {
        self.table.upgrade()?.known(self.first + index)
    }
}

/// How far a lazy function is.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LazyFunction {
    /// It has a body, where calls go.
    Ready(u64),
    /// It has a name, and waits for its first call.
    Waiting(SymbolName),
}

impl fmt::Debug for LazyFunctions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LazyFunctions({}..)", self.first)
    }
}

/// The newest body of a redirectable function, whichever that is when it is wanted.
#[derive(Clone)]
pub struct LazyBody {
    table: Arc<FunctionTable>,
    id: FunctionId,
    function: SymbolName,
    signature: Option<SymbolName>,
    /// `None` if the function had been removed already.
    dylib: Option<WeakDylib>,
}

impl LazyBody {
    fn new(table: Arc<FunctionTable>, id: FunctionId, body: &Body) -> Self {
        let (function, signature) = (body.function().clone(), body.source.signature(body.item).cloned());
        Self { table, id, function, signature, dylib: body.source.dylib().cloned() }
    }

    /// The newest body. `None` if the function was removed and its place is another's.
    fn newest(&self) -> Option<Body> {
        self.table.body(self.id).filter(|body| self.is_of(body))
    }

    /// Whether a body, which is in the function's place, is the function's.
    fn is_of(&self, body: &Body) -> bool {
        let source = &body.source;
        let signatures = source.signature(body.item).zip(self.signature.as_ref());
        *body.function() == self.function
            && (source.dylib() == self.dylib.as_ref() || source.dylib().is_none())
            && signatures.is_none_or(|(one, other)| one == other)
    }

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
        self.resolve_at(Priority::Awaited)
    }

    /// As [`resolve`](Self::resolve), after what others wait for. Whoever comes to wait for this body meanwhile
    /// brings it forward.
    ///
    /// # Errors
    ///
    /// As [`resolve`](Self::resolve).
    pub fn resolve_ahead(&self) -> Result<u64, LookupError> {
        self.resolve_at(Priority::Ahead)
    }

    fn resolve_at(&self, priority: Priority) -> Result<u64, LookupError> {
        loop {
            let Some(body) = self.newest() else { return Err(self.failure(Cause::Removed)) };
            let found = self.define(&body).and_then(|Wanted { session, order, name }| {
                let found = match session.find_ready(order, &name) {
                    Some(found) => Some(found),
                    None => session
                        .lookup_at(priority, order, name)
                        .map_err(|error| redirect::of_functions(&session, error))?
                        .pop(),
                };
                let Some(found) = found else { return Ok(None) };
                let usable = self.table.publish(&session, self.id, &body, &found);
                usable.map(|usable| usable.then_some(found)).map_err(|ring| self.failure(ring))
            });
            match found {
                Ok(Some(found)) => return Ok(found.definition.address),
                Err(error) if self.newest().is_none_or(|newest| newest.is_same(&body)) => return Err(error),
                // A newer body took its place meanwhile, or what was found was removed.
                Ok(_) | Err(_) => {}
            }
        }
    }

    /// Has the newest body compiled, and calls go to it then, and waits for nothing. Failures are
    /// for whoever calls it.
    pub fn prepare(&self) {
        let Some(body) = self.newest() else { return };
        let Ok(Wanted { session, order, name }) = self.define(&body) else { return };
        let (table, id, body) = (Arc::downgrade(&self.table), self.id, body.clone());
        session.lookup_async(order, name, SymbolState::Ready, move |found| {
            let dylib = body.source.dylib().and_then(WeakDylib::upgrade);
            let (Some(table), Some(dylib)) = (table.upgrade(), dylib) else { return };
            if let Ok(Some(found)) = found.map(|mut found| found.pop()) {
                _ = table.publish(dylib.session(), id, &body, &found);
            }
        });
    }

    /// The redirectable functions that the body calls or takes the address of. None if it has been
    /// compiled, or is not CLIF.
    #[must_use]
    pub fn callees(&self) -> Vec<Self> {
        let Some(body) = self.newest() else { return Vec::new() };
        let names = body.source.callees(body.item);
        names.iter().filter_map(|name| self.named(name)).collect()
    }

    /// The functions whose newest bodies were defined together with this one's, itself among them.
    #[must_use]
    pub fn module(&self) -> Vec<Self> {
        let Some(body) = self.newest() else { return Vec::new() };
        let items = body.source.items();
        items.into_iter().filter_map(|item| self.named(body.source.function(item))).collect()
    }

    /// Another redirectable function of the same dylib.
    #[must_use]
    pub fn named(&self, function: &SymbolName) -> Option<Self> {
        let (id, body) = self.table.find(function, self.newest()?.source.dylib()?)?;
        Some(Self::new(Arc::clone(&self.table), id, &body))
    }

    /// Where calls go, if that is a body by now.
    #[must_use]
    pub fn ready(&self) -> Option<u64> {
        self.table.ready(self.id, |body| self.is_of(body))
    }

    /// That the body can't be had because of `cause`.
    #[must_use]
    pub fn failure(&self, cause: Cause) -> LookupError {
        let dylib = self.dylib().and_then(|dylib| dylib.name().ok()).unwrap_or_default();
        LookupError { failures: vec![SymbolFailure { name: self.function.clone(), dylib, cause: Arc::new(cause) }] }
    }

    /// The session it belongs to, if that has not ended.
    #[must_use]
    pub fn session(&self) -> Option<ExecutionSession> {
        Some(self.dylib()?.session().clone())
    }

    fn dylib(&self) -> Option<JitDylib> {
        self.dylib.as_ref()?.upgrade()
    }

    /// What to look up to have a body.
    fn define<'a>(&self, body: &'a Body) -> Result<Wanted<'a>, LookupError> {
        let Some((dylib, order)) = body.source.dylib().zip(body.source.order()) else {
            return Err(self.failure(Cause::Removed));
        };
        let Some(dylib) = dylib.upgrade() else { return Err(self.failure(Cause::SessionEnded)) };
        let session = dylib.session().clone();
        let name = body.source.define(&session, body.item).map_err(|error| self.failure(error.into()))?;
        Ok(Wanted { session, order, name })
    }
}

struct Wanted<'a> {
    session: ExecutionSession,
    order: &'a SearchOrder,
    name: SymbolName,
}

impl fmt::Debug for LazyBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("LazyBody").field(&self.function).finish()
    }
}
