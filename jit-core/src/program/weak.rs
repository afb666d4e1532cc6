//! Weak definitions that the process has as well: inline variables, type information, instances of templates.

use jit_linker::arch::Reach;
use jit_linker::graph::{Comdat, Definition, LinkGraph, Linkage, Scope, Symbol, SymbolId};
use rustc_hash::FxHashSet;

use crate::session::JitDylib;

/// Which definition of a weak symbol a program takes where the process, or a library that the program searches, has one
/// too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum WeakDefinitions {
    /// Of what is the same wherever it is defined, as C++'s inline variables and type information (COMDAT groups), the
    /// process's: as a dynamic loader does, there is one of each, and an exception's type is known on both sides. Any other
    /// weak definition is the program's own, as an executable's is, which a dynamic loader searches before all libraries:
    /// it may differ from a library's of the same name. Where the program's code can't reach it, because it
    /// is not position-independent or is compiled for an executable and far away, the program has its own.
    #[default]
    OfProcess,
    /// The program's own.
    Own,
}

/// Turns weak definitions of an object into references to the process's, where it has them.
pub(super) fn take_from_process(graph: &mut LinkGraph, dylib: &JitDylib) {
    // Mach-O says of each weak definition alone that there is to be one.
    let is_elf = graph.object().starts_with(b"\x7fELF");
    let grouped: FxHashSet<SymbolId> = graph.comdats().iter().flat_map(|comdat| &comdat.symbols).copied().collect();
    let is_weak = |id: SymbolId, symbol: &Symbol| {
        (grouped.contains(&id) || !is_elf)
            && symbol.linkage == Linkage::Weak
            && symbol.scope == Scope::Default
            && matches!(symbol.definition, Definition::Block { .. })
    };
    let weak: Vec<SymbolId> = graph.symbols().filter(|(id, symbol)| is_weak(*id, symbol)).map(|(id, _)| id).collect();
    if weak.is_empty() {
        return;
    }
    let generators = dylib.generators_in_order();
    let executor = dylib.session().executor();
    let memory = executor.memory().range();
    let mut reaches = vec![Reach::Anywhere; graph.symbols().count()];
    for edge in graph.edges() {
        let reach = &mut reaches[edge.target.index()];
        *reach = edge.kind.reach().max(*reach);
    }
    for symbol in weak {
        let Some(name) = graph.symbol_name(symbol) else { continue };
        let Some(address) = generators.iter().find_map(|generator| generator.address_outside(executor, name)) else {
            continue;
        };
        let can_reach = match reaches[symbol.index()] {
            Reach::Anywhere => true,
            Reach::Near => memory.as_ref().is_some_and(|memory| {
                // Not to the last byte: a symbol is more than its address.
                const NEAR: u64 = (1 << 31) - (1 << 26);
                memory.end.saturating_sub(address) < NEAR && address.saturating_sub(memory.start) < NEAR
            }),
            Reach::Low => address < 1 << 31,
            _ => false,
        };
        if can_reach {
            graph.make_external(symbol);
        }
    }
}

/// Whether nothing that others see is left of a group.
pub(super) fn is_taken(graph: &LinkGraph, group: &Comdat) -> bool {
    let mut symbols = group.symbols.iter().map(|symbol| graph.symbol(*symbol).definition);
    !group.symbols.is_empty() && symbols.all(|definition| definition == Definition::External)
}
