//! What objects need that are not linked yet: which members of archives are part of the program. They are added before
//! anything is linked, so that what all of them have is known: initializers with their priorities, sizes of commons.

use jit_linker::SymbolName;
use jit_linker::graph::{Definition, LinkGraph, Linkage};
use rustc_hash::FxHashSet;

use super::commons::commons;
use super::components::Shared;
use crate::error::Error;
use crate::session::{ExecutionSession, JitDylib, LookupKind, LookupSet, SearchOrder, SymbolLookup};
use crate::sync::lock;

/// What one object needs of others.
#[derive(Debug)]
pub(super) struct Needs {
    component: String,
    /// What it refers to; not what it can do without, which brings no member of an archive in.
    names: Vec<SymbolName>,
    /// Its commons, for which a member is taken that has a value.
    commons: Vec<SymbolName>,
}

impl Needs {
    pub(super) fn of(component: &str, graph: &LinkGraph) -> Self {
        let externals = graph.symbols().filter(|(_, symbol)| symbol.definition == Definition::External);
        let required = externals.filter(|(_, symbol)| symbol.linkage != Linkage::Weak);
        let names = required.filter_map(|(id, _)| graph.symbol_name(id).cloned());
        let aliasees = graph.aliases().iter().map(|(_, aliasee)| aliasee.clone());
        Self {
            component: component.to_owned(),
            names: names.chain(aliasees).collect(),
            commons: commons(graph).map(|(_, name, _)| name.clone()).collect(),
        }
    }
}

impl Shared {
    /// Adds the members of archives that objects need which are not linked yet, and what those need.
    ///
    /// # Errors
    ///
    /// When a member can't be read or added.
    pub(super) fn add_members(&self, session: &ExecutionSession) -> Result<(), Error> {
        while self.has_archives() {
            let round = std::mem::take(&mut *lock(&self.needs));
            if round.is_empty() {
                break;
            }
            for needs in round.into_values() {
                self.satisfy(session, needs)?;
            }
        }
        Ok(())
    }

    /// Adds the member of an archive that defines a name which somebody looks up.
    ///
    /// # Errors
    ///
    /// As [`add_members`](Self::add_members).
    pub(super) fn add_member_with(&self, dylib: &JitDylib, name: &SymbolName) -> Result<(), Error> {
        if self.has_archives() {
            let name = LookupSet::new().with(name.clone(), SymbolLookup::WeaklyReferenced);
            dylib.session().lookup_flags(LookupKind::Static, &dylib.link_order(), name)?;
        }
        Ok(())
    }

    /// Of the names that an object can do without, those that nothing defines: the members of archives that would are no
    /// part of the program.
    pub(super) fn absent(
        &self,
        session: &ExecutionSession,
        order: &SearchOrder,
        names: impl Iterator<Item = SymbolName>,
    ) -> FxHashSet<SymbolName> {
        let archives = self.archives_of(None);
        let mut absent: FxHashSet<_> =
            names.filter(|name| archives.iter().any(|archive| archive.may_define(name))).collect();
        if !absent.is_empty() {
            let names = absent.iter().map(|name| (name.clone(), SymbolLookup::WeaklyReferenced)).collect::<LookupSet>();
            // What fails here fails again when they are looked up.
            match session.lookup_flags(LookupKind::DlSym, order, names) {
                Ok(found) => found.iter().for_each(|(name, _)| _ = absent.remove(name)),
                Err(_) => absent.clear(),
            }
        }
        absent
    }

    /// Has generators define what an object needs. Nothing is linked.
    fn satisfy(&self, session: &ExecutionSession, needs: Needs) -> Result<(), Error> {
        let Some(dylib) = session.dylib(&needs.component) else { return Ok(()) };
        let mut known = FxHashSet::default();
        let mut names = LookupSet::new();
        for name in needs.names {
            if known.insert(name.clone()) {
                // Whether it has to be there is said when it is linked.
                names.push(name, SymbolLookup::WeaklyReferenced);
            }
        }
        if !names.is_empty() {
            session.lookup_flags(LookupKind::Static, &dylib.link_order(), names)?;
        }
        for archive in self.archives_of(Some(&needs.component)) {
            for name in &needs.commons {
                archive.add_value(&dylib, name)?;
            }
        }
        Ok(())
    }
}
