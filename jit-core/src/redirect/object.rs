//! Objects whose functions are lazy: an object is linked at the first call into it.
//!
//! Each of its functions that other graphs see becomes a lazy function. Its body is the object's definition under
//! another name, so all of them become ready when one is called. Inside the object calls stay as they are: they go
//! to the body. What takes a function's address gets the one that everybody else gets.

use jit_linker::graph::{Definition, Edge, EdgeKind, LinkGraph, Linkage, Scope, SymbolId, SymbolKind};
use jit_linker::{SymbolName, arch};
use rustc_hash::{FxHashMap, FxHashSet};

use super::body::{Version, Versions};
use super::unit::LazyUnit;
use super::{BLOCK, BodySource, FunctionTable};
use crate::error::Error;
use crate::object;
use crate::session::{JitDylib, SymbolDeclaration, UnitDefinition};
use crate::sync::{Arc, Mutex};

/// Makes functions of objects lazy, in any dylib of a [`Jit`](crate::Jit)'s session: see
/// [`Jit::lazy_objects`](crate::Jit::lazy_objects).
#[derive(Clone)]
pub struct LazyObjects {
    pub(super) table: Arc<FunctionTable>,
    pub(super) versions: Arc<Mutex<Versions>>,
}

impl LazyObjects {
    /// Gives the units of a graph's lazy functions. The graph defines their bodies from now on, and what else it
    /// did: it is to be defined together with the units, by one tracker.
    ///
    /// # Errors
    ///
    /// When there is no memory for slots, or the graph is laid out already.
    pub(crate) fn divide(&self, dylib: &JitDylib, graph: &mut LinkGraph) -> Result<Vec<UnitDefinition>, Error> {
        let functions: Vec<_> = object::definitions(graph)
            .filter(|(id, ..)| is_function(graph, *id))
            .map(|(id, name, flags)| (id, SymbolDeclaration { name: name.clone(), flags, signature: None }))
            .collect();
        let version = Version::lasting(&self.versions);
        rename(
            graph,
            functions
                .iter()
                .map(|(id, function)| (*id, function.name.clone(), version.body_name(dylib.session(), &function.name))),
        )?;
        let declarations: Vec<_> = functions.into_iter().map(|(_, declaration)| declaration).collect();
        let names = declarations.iter().map(|declaration| declaration.name.clone()).collect();
        let dylib = dylib.downgrade();
        let source = BodySource::Object { order: dylib.order(), dylib, version, functions: names };
        let source = Arc::new(source);
        let unit: Arc<str> = Arc::from(graph.name());
        let blocks = declarations.chunks(BLOCK as usize).zip((0..).step_by(BLOCK as usize));
        let units = blocks.map(|(declarations, first)| {
            let items: Vec<_> = (first..first + declarations.len() as u32).collect();
            let functions = self.table.enter(&source, &items)?;
            Ok(UnitDefinition {
                symbols: declarations.iter().cloned().collect(),
                unit: Box::new(LazyUnit { table: Arc::clone(&self.table), functions }),
                name: Arc::clone(&unit),
            })
        });
        units.collect()
    }
}

impl std::fmt::Debug for LazyObjects {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LazyObjects").finish_non_exhaustive()
    }
}

/// Whether a symbol is certainly a function: its address is its stub's then, and nobody reads what is there.
fn is_function(graph: &LinkGraph, symbol: SymbolId) -> bool {
    let symbol = graph.symbol(symbol);
    symbol.kind == SymbolKind::Function && matches!(symbol.definition, Definition::Block { .. })
}

/// Gives functions the names of bodies, and has those who took their addresses refer to the functions.
fn rename(
    graph: &mut LinkGraph,
    functions: impl Iterator<Item = (SymbolId, SymbolName, SymbolName)>,
) -> Result<(), Error> {
    let mut stand_ins = FxHashMap::default();
    for (body, function, name) in functions {
        let is_weak = graph.symbol(body).linkage == Linkage::Weak;
        graph.rename(body, name);
        graph.set_binding(body, Linkage::Strong, Scope::Hidden);
        let stand_in = graph.external(function, 0);
        graph.set_kind(stand_in, SymbolKind::Function);
        stand_ins.insert(body, (stand_in, is_weak));
    }
    // The other half of a difference is what it was: they stay together.
    let differences: FxHashSet<_> =
        graph.edges().iter().filter(|edge| is_half(edge.kind)).map(|edge| (edge.block, edge.offset)).collect();
    let redirected: FxHashSet<_> = graph
        .edges()
        .iter()
        .filter(|edge| !differences.contains(&(edge.block, edge.offset)))
        .filter(|edge| stand_ins.get(&edge.target).is_some_and(|(_, is_weak)| leads_out(graph, edge, *is_weak)))
        .map(|edge| (edge.block, edge.offset, edge.target))
        .collect();
    let to = |edge: &Edge| {
        let is_redirected = redirected.contains(&(edge.block, edge.offset, edge.target));
        is_redirected.then(|| stand_ins.get(&edge.target).map(|(stand_in, _)| *stand_in)).flatten()
    };
    graph.retarget(to).map_err(|error| Error::Module(format!("{}: {error}", graph.name())))
}

/// Whether an edge means the function that everybody sees, rather than the body here. A weak one's body may be
/// another object's.
fn leads_out(graph: &LinkGraph, edge: &Edge, is_weak: bool) -> bool {
    graph.takes_address(edge) || is_weak && graph.is_call(edge)
}

fn is_half(kind: EdgeKind) -> bool {
    use arch::{aarch64, x86_64};
    matches!(
        kind,
        EdgeKind::X86_64(x86_64::EdgeKind::Subtract32 | x86_64::EdgeKind::Subtract64)
            | EdgeKind::Aarch64(aarch64::EdgeKind::Subtract32 | aarch64::EdgeKind::Subtract64)
    )
}
