//! The hook for tiers: what a body is at first, and how it becomes what it was defined as.

use cranelift_codegen::ir;
use cranelift_codegen::isa::OwnedTargetIsa;
use jit_linker::SymbolName;
use jit_linker::memory::MemoryManager;

use super::body::BodySource;
use super::places::Body;
use super::table::FunctionTable;
use crate::clif::ClifTransform;
use crate::error::{Error, LookupError};
use crate::session::Priority;
use crate::sync::{Arc, Weak};

/// What redirectable functions are compiled as at first: given to
/// [`JitBuilder::first_tier`](crate::JitBuilder::first_tier).
pub trait FirstTier: Send + Sync {
    /// What compiles them: for the same target as the JIT's own.
    fn isa(&self) -> &OwnedTargetIsa;

    /// Changes a function, if it has to, before it is compiled at the first tier. `body` names this body of
    /// `function` to [`Promoter::promote`]. What is returned lives as long as the code.
    ///
    /// # Errors
    ///
    /// Why it can't be: the function has failed to compile then.
    fn transform(
        &self,
        function: &SymbolName,
        body: &SymbolName,
        func: &mut ir::Function,
    ) -> Result<Box<dyn FirstTierBody>, String>;

    /// What is done to a function before it is compiled again, in addition to what its module asks for: to be asked once a
    /// module. By default nothing.
    fn second_tier(&self) -> Option<Arc<dyn ClifTransform>> {
        None
    }

    /// Is given what promotes functions, and the memory for code that it needs beside theirs, before any is compiled.
    ///
    /// # Errors
    ///
    /// Why it can't start: there will be no JIT then.
    fn start(&self, promoter: Promoter, memory: &Arc<dyn MemoryManager>) -> Result<(), Error>;
}

/// A function that is to be compiled at the first tier.
pub trait FirstTierBody: Send + Sync {
    /// Where calls of it are to go, when its code is at an address: there, if nothing has to be done at each call. Is
    /// told once, before the first call.
    fn entry(&self, code: u64) -> u64 {
        code
    }
}

/// Replaces bodies of the first tier.
#[derive(Clone)]
pub struct Promoter {
    pub(super) table: Weak<FunctionTable>,
}

impl Promoter {
    /// Compiles a function as it was defined, after what others wait for, and makes calls go there. Waits for
    /// that. False if the function has a newer body than `body`, or one of the two is gone.
    ///
    /// # Errors
    ///
    /// When it can't be compiled: calls go to the first tier's body still.
    pub fn promote(&self, function: &SymbolName, body: &SymbolName) -> Result<bool, LookupError> {
        let Some(table) = self.table.upgrade() else { return Ok(false) };
        // Dylibs may have functions of one name; bodies' names are different.
        let hot = table.named(function).into_iter().find_map(|(id, newest)| {
            let dylib = newest.source.dylib()?.upgrade()?;
            (newest.source.body_name(dylib.session(), newest.item) == *body).then_some((id, newest, dylib))
        });
        let Some((id, newest, dylib)) = hot else { return Ok(false) };
        let session = dylib.session();
        // An error means that the function was removed.
        let Ok(Some(name)) = newest.source.define_promoted(session, newest.item) else { return Ok(false) };
        let Some(order) = newest.source.order() else { return Ok(false) };
        let found = match session.lookup_at(Priority::Ahead, order, name) {
            // A newer body took its place meanwhile, and it was removed.
            Err(_) if table.body(id).is_none_or(|other| !other.is_same(&newest)) => return Ok(false),
            found => found?.pop(),
        };
        let Some(found) = found else { return Ok(false) };
        let promoted = BodySource::Promoted { from: Arc::clone(&newest.source), item: newest.item };
        let promoted = Body { source: Arc::new(promoted), item: 0 };
        Ok(table.promote(session, id, &newest, &promoted, &found).is_some())
    }
}
