//! `ObjectTransformLayer`: changes objects and graphs on their way to the linker.

use jit_linker::LinkGraph;
use jit_linker::graph::ObjectBytes;
use jit_linker::plugin::PassError;

use super::layer::{LayerHooks, ObjectLayer};
use super::plugin::GraphTransform;
use crate::error::{Cause, Error};
use crate::session::{ExecutionSession, MaterializationResponsibility};
use crate::sync::Arc;

type BytesTransform = Arc<dyn Fn(ObjectBytes) -> Result<ObjectBytes, PassError> + Send + Sync>;

/// A layer that changes what passes through it: the bytes of objects when they are added, and
/// graphs when they are about to be linked.
///
/// It is put on any object layer, itself included: what is added to the outer one is changed by it
/// first. Under a [`ClifLayer`](crate::ClifLayer) it changes the graphs of compiled code.
#[derive(Clone)]
pub struct ObjectTransformLayer<L> {
    base: L,
    bytes: Option<BytesTransform>,
    graph: Option<GraphTransform>,
}

impl<L: ObjectLayer> ObjectTransformLayer<L> {
    /// A layer that changes nothing.
    #[must_use]
    pub fn new(base: L) -> Self {
        Self { base, bytes: None, graph: None }
    }

    /// Changes the bytes of each object when it is added.
    #[must_use]
    pub fn on_bytes(
        mut self,
        transform: impl Fn(ObjectBytes) -> Result<ObjectBytes, PassError> + Send + Sync + 'static,
    ) -> Self {
        self.bytes = Some(Arc::new(transform));
        self
    }

    /// Changes each graph before it is linked: before what nobody needs is left out.
    #[must_use]
    pub fn on_graph(
        mut self,
        transform: impl Fn(&mut LinkGraph) -> Result<(), PassError> + Send + Sync + 'static,
    ) -> Self {
        self.graph = Some(Arc::new(transform));
        self
    }
}

impl<L: ObjectLayer> ObjectLayer for ObjectTransformLayer<L> {
    fn emit(&self, responsibility: MaterializationResponsibility, mut graph: LinkGraph) {
        match self.graph.as_ref().map_or(Ok(()), |transform| transform(&mut graph)) {
            Ok(()) => self.base.emit(responsibility, graph),
            Err(error) => responsibility.fail(Cause::Other(error)),
        }
    }

    fn read(&self, session: &ExecutionSession, name: &str, object: ObjectBytes) -> Result<LinkGraph, Error> {
        let object = match &self.bytes {
            Some(transform) => transform(object)
                .map_err(|source| Error::Transform { subject: name.to_owned(), source: Arc::from(source) })?,
            None => object,
        };
        self.base.read(session, name, object)
    }

    fn hooks(&self) -> LayerHooks {
        let hooks = self.base.hooks();
        match &self.graph {
            Some(transform) => hooks.before(Arc::clone(transform)),
            None => hooks,
        }
    }
}
