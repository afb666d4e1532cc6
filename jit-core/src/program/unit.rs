//! An object as a unit of a dylib.

use jit_linker::SymbolName;
use jit_linker::graph::{Definition, LinkGraph, Linkage, Scope, SymbolId, SymbolKind};
use rustc_hash::FxHashMap;

use super::components::Groups;
use super::linking::Linking;
use crate::session::{
    MaterializationResponsibility, MaterializationUnit, SymbolDeclaration, SymbolFlags, UnitDefinition,
};
use crate::sync::Arc;

/// An object that nobody has needed yet.
pub(super) struct ObjectUnit {
    pub(super) graph: LinkGraph,
    /// What it has of its component.
    pub(super) groups: Groups,
    /// Its place among the program's objects.
    pub(super) number: u64,
    /// The symbols of the graph that the session knows.
    pub(super) defined: FxHashMap<SymbolName, SymbolId>,
    /// The symbol that stands for the object, which nobody else has: looking it up links the object.
    pub(super) whole: SymbolName,
}

impl ObjectUnit {
    pub(super) fn new(graph: LinkGraph, groups: Groups, number: u64, whole: SymbolName) -> Self {
        let visible = graph.symbols().filter(|(_, symbol)| {
            symbol.scope != Scope::Local && matches!(symbol.definition, Definition::Block { .. } | Definition::Absolute)
        });
        let defined = visible.filter_map(|(id, _)| Some((graph.symbol_name(id)?.clone(), id))).collect();
        Self { graph, groups, number, defined, whole }
    }

    /// The definitions that the unit promises.
    pub(super) fn definition(self) -> UnitDefinition {
        let name = Arc::from(self.graph.name());
        let symbols = self.defined.iter().map(|(name, id)| {
            let symbol = self.graph.symbol(*id);
            let flags = SymbolFlags {
                weak: symbol.linkage == Linkage::Weak,
                common: symbol.linkage == Linkage::Common,
                absolute: symbol.definition == Definition::Absolute,
                exported: matches!(symbol.scope, Scope::Default | Scope::Protected),
                callable: matches!(symbol.kind, SymbolKind::Function | SymbolKind::Resolver),
                ..SymbolFlags::HIDDEN
            };
            SymbolDeclaration { name: name.clone(), flags, signature: None }
        });
        let whole = SymbolDeclaration { name: self.whole.clone(), flags: SymbolFlags::HIDDEN, signature: None };
        UnitDefinition { symbols: symbols.chain([whole]).collect(), name, unit: Box::new(self) }
    }
}

impl MaterializationUnit for ObjectUnit {
    fn materialize(self: Box<Self>, responsibility: MaterializationResponsibility) {
        Linking::start(*self, responsibility);
    }

    fn discard(&mut self, name: &SymbolName) {
        if let Some(symbol) = self.defined.remove(name) {
            self.graph.make_external(symbol);
        }
    }
}
