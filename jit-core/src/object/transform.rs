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
///
/// ```
/// use jit_core::{Jit, ObjectLayer, ObjectTransformLayer};
/// use jit_linker::LinkGraph;
/// use jit_linker::memory::SegmentKind;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let jit = Jit::new()?;
/// let session = jit.session();
/// # let mut graph = LinkGraph::new("table", session.executor().architecture());
/// # let block = graph.add_block(SegmentKind::ReadOnly, &42u64.to_le_bytes(), 8)?;
/// # graph.define(Some(session.intern("answer")), block, 0, 8);
/// // Refuses what is not from the right place.
/// let checked = ObjectTransformLayer::new(jit.object_layer().clone()).on_graph(|graph| match graph.name() {
///     "table" => Err("tables are not linked here".into()),
///     _ => Ok(()),
/// });
/// checked.add_graph(&jit.main().create_tracker()?, graph)?;
/// let error = jit.lookup_address("answer").unwrap_err();
/// assert!(error.to_string().contains("tables are not linked here"), "{error}");
/// # Ok(())
/// # }
/// ```
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
