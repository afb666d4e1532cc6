//! The units that define redirectable functions: their stubs, not their bodies.

use jit_linker::SymbolName;

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
        let Some(body) = table.body(id) else { return };
        if let Err(error) = define(&responsibility, &table, functions) {
            return responsibility.fail(error.into());
        }
        let session = responsibility.session().clone();
        let name = match body.source.define(&session, body.item) {
            Ok(name) => name,
            Err(error) => return responsibility.fail(error.into()),
        };
        let (of, source) = (session.clone(), Arc::clone(&body.source));
        let Some(order) = source.order() else { return responsibility.fail(Cause::Removed) };
        session.lookup_resolved(order, vec![name], move |mut answers| match answers.pop() {
            Some(Ok(found)) => {
                // If not, a newer body has been put in its place meanwhile, and is there already.
                table.publish(&of, id, &body, &found);
                _ = responsibility.emit(&[(function, found)]);
            }
            Some(Err(failure)) => responsibility.fail_with(&failure.cause),
            None => drop(responsibility),
        });
    }

    fn discard(&mut self, _: &SymbolName) {}
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
