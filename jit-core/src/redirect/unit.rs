//! The units that define redirectable functions: their stubs, not their bodies.

use jit_linker::SymbolName;

use super::places::{Body, FunctionId};
use super::table::{FunctionIds, FunctionTable};
use crate::error::{Cause, Error};
use crate::session::{MaterializationResponsibility, MaterializationUnit};
use crate::sync::Arc;

/// Publishes the stubs, and keeps the functions as long as the unit is there.
fn define(
    responsibility: &MaterializationResponsibility,
    table: &Arc<FunctionTable>,
    functions: FunctionIds,
) -> Result<(), Error> {
    // None if they were removed; otherwise in the order they were declared in.
    let symbols = responsibility.symbols();
    let definitions: Vec<_> =
        symbols.iter().zip(functions.iter()).filter_map(|(own, id)| Some((own.id, table.definition(id)?))).collect();
    responsibility.hold(Box::new(functions))?;
    responsibility.session().resolve(&definitions)
}

/// A function whose newest body is made when it is first referred to.
pub(crate) struct EagerUnit {
    pub(crate) table: Arc<FunctionTable>,
    pub(crate) function: SymbolName,
    pub(crate) functions: FunctionIds,
}

impl MaterializationUnit for EagerUnit {
    fn materialize(self: Box<Self>, responsibility: MaterializationResponsibility) {
        let Self { table, function, functions } = *self;
        let Some(id) = functions.iter().next() else { return };
        let Some(body) = table.begin_to_use(id) else { return };
        match define(&responsibility, &table, functions) {
            Ok(()) => FirstUse { table, id, function }.look_up(body, responsibility),
            Err(error) => responsibility.fail(error.into()),
        }
    }

    fn discard(&mut self, _: &SymbolName) {}
}

/// A function that is not usable before calls go to its newest body.
struct FirstUse {
    table: Arc<FunctionTable>,
    id: FunctionId,
    function: SymbolName,
}

impl FirstUse {
    fn look_up(self, body: Body, responsibility: MaterializationResponsibility) {
        let session = responsibility.session().clone();
        let source = Arc::clone(&body.source);
        let Some(order) = source.order() else { return responsibility.fail(Cause::Removed) };
        let name = match source.define(&session, body.item) {
            Ok(name) => name,
            Err(error) => return self.fail(&body, &Arc::new(error.into()), responsibility),
        };
        let (of, owner) = (session.clone(), responsibility.owner());
        session.lookup_owned(order, name.into(), Some(owner), move |mut answers| match answers.pop() {
            Some(Ok(found)) => match self.table.publish(&of, self.id, &body, &found) {
                Ok(true) => _ = responsibility.emit(&[(self.function, found)]),
                // A newer body took its place meanwhile, or what was found was removed.
                Ok(false) => match self.newest(&body) {
                    Some(newest) => self.look_up(newest, responsibility),
                    None => responsibility.fail(Cause::Removed),
                },
                Err(ring) => self.fail(&body, &Arc::new(ring), responsibility),
            },
            Some(Err(failure)) => self.fail(&body, &failure.cause, responsibility),
            None => drop(responsibility),
        });
    }

    /// `body` can't be had because of `cause`. If it is not the newest any more, that does not matter.
    fn fail(self, body: &Body, cause: &Arc<Cause>, responsibility: MaterializationResponsibility) {
        match self.newest(body).filter(|newest| !newest.is_same(body)) {
            Some(newest) => self.look_up(newest, responsibility),
            None => responsibility.fail_with(cause),
        }
    }

    /// The function's newest body, of which `body` is an older one. None if it was removed: its place may be another's.
    fn newest(&self, body: &Body) -> Option<Body> {
        let newest = self.table.body(self.id)?;
        let is_ours = *newest.function() == self.function && newest.source.dylib() == body.source.dylib();
        is_ours.then_some(newest)
    }
}

/// Functions whose bodies are made when they are first called.
pub(crate) struct LazyUnit {
    pub(crate) table: Arc<FunctionTable>,
    pub(crate) functions: FunctionIds,
}

impl MaterializationUnit for LazyUnit {
    fn materialize(self: Box<Self>, responsibility: MaterializationResponsibility) {
        match define(&responsibility, &self.table, self.functions) {
            // An error means that they were removed meanwhile.
            Ok(()) => _ = responsibility.emit(&[]),
            Err(error) => responsibility.fail(error.into()),
        }
    }

    /// Another definition of a weak function won: this one is as if it had never been.
    fn discard(&mut self, name: &SymbolName) {
        self.functions.remove(name);
    }
}
