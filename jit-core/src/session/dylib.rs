//! Dylibs: tables of symbols, and the order in which they search each other.

use std::fmt;

use jit_linker::SymbolName;
use rustc_hash::FxHashSet;

use super::arena::Id;
use super::dispatch;
use super::lookup::{DylibLookup, SearchOrder};
use super::removal::RemovalPolicy;
use super::state::{Dylib, Effects};
use super::symbol::{SymbolDef, SymbolFlags};
use super::{ExecutionSession, ResourceTracker};
use crate::error::Error;

/// A table of symbols with a link order: where those it does not define are searched.
///
/// ```
/// use jit_core::Jit;
///
/// let jit = Jit::new()?;
/// // A dylib for each plugin, which sees what `main` has, and none of the others.
/// let plugin = jit.session().create_dylib("plugin")?;
/// plugin.set_link_order(&jit.main().link_order())?;
/// jit.define_closure("version", || 3i64)?;
///
/// let version = jit.lookup_in::<unsafe extern "C" fn() -> i64>(&plugin, "version")?;
/// // SAFETY: the session has compared the types, and the closure may be called.
/// assert_eq!(unsafe { version.call() }, 3);
/// plugin.remove()?;
/// # Ok::<(), jit_core::Error>(())
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct JitDylib {
    pub(crate) session: ExecutionSession,
    pub(crate) id: Id<Dylib>,
}

/// A symbol whose address is known.
#[derive(Clone, Debug)]
pub struct AbsoluteSymbol {
    /// Its name.
    pub name: SymbolName,
    /// Where it is.
    pub definition: SymbolDef,
    /// How it is defined.
    pub flags: SymbolFlags,
    /// The text of its calling signature, if it is to be checked.
    pub signature: Option<SymbolName>,
}

impl JitDylib {
    /// The session it belongs to.
    #[must_use]
    pub fn session(&self) -> &ExecutionSession {
        &self.session
    }

    /// Its name.
    ///
    /// # Errors
    ///
    /// When it was removed.
    pub fn name(&self) -> Result<String, Error> {
        Ok(self.session.state().dylibs.get(self.id).ok_or(Error::DylibGone)?.name.clone())
    }

    /// The order in which it looks for what its units need: itself first, unless that was changed.
    #[must_use]
    pub fn link_order(&self) -> SearchOrder {
        let state = self.session.state();
        let dylibs = state.dylibs.get(self.id).map(|dylib| dylib.link_order.clone());
        SearchOrder::of(&self.session, dylibs.unwrap_or_default())
    }

    /// Changes the link order. Lookups that have begun keep the one they began with.
    fn change_link_order(&self, change: impl FnOnce(&mut Vec<(Id<Dylib>, DylibLookup)>)) -> Result<(), Error> {
        let mut state = self.session.state();
        let order = &mut state.dylibs.get_mut(self.id).ok_or(Error::DylibGone)?.link_order;
        let mut changed = order.to_vec();
        change(&mut changed);
        *order = changed.into();
        Ok(())
    }

    /// Replaces the link order: itself, all of it, then `order`.
    ///
    /// # Errors
    ///
    /// When the dylib was removed, or one is another session's.
    pub fn set_link_order(&self, order: &SearchOrder) -> Result<(), Error> {
        order.check(&self.session)?;
        self.change_link_order(|own| {
            own.clear();
            own.push((self.id, DylibLookup::All));
            own.extend(order.dylibs.iter().filter(|(dylib, _)| *dylib != self.id));
        })
    }

    /// Replaces the link order by exactly this one, with itself or without.
    ///
    /// # Errors
    ///
    /// When the dylib was removed, or one is another session's.
    pub fn set_exact_link_order(&self, order: &SearchOrder) -> Result<(), Error> {
        order.check(&self.session)?;
        self.change_link_order(|own| *own = order.dylibs.to_vec())
    }

    /// Appends a dylib to the link order, if it is not there already.
    ///
    /// # Errors
    ///
    /// When the dylib was removed, or one is another session's.
    pub fn add_to_link_order(&self, other: &Self, visibility: DylibLookup) -> Result<(), Error> {
        self.extend_link_order(&SearchOrder::new().then(other, visibility))
    }

    /// Appends dylibs to the link order, in their order, those left out that are there already.
    ///
    /// # Errors
    ///
    /// When the dylib was removed, or one is another session's.
    pub fn extend_link_order(&self, order: &SearchOrder) -> Result<(), Error> {
        order.check(&self.session)?;
        self.change_link_order(|own| {
            for entry in &*order.dylibs {
                if !own.contains(entry) {
                    own.push(*entry);
                }
            }
        })
    }

    /// Puts one dylib into the link order in another's place, if that is there.
    ///
    /// # Errors
    ///
    /// When the dylib was removed, or one is another session's.
    pub fn replace_in_link_order(&self, old: &Self, new: &Self, visibility: DylibLookup) -> Result<(), Error> {
        self.session.check_own(old)?;
        self.session.check_own(new)?;
        self.change_link_order(|own| {
            own.iter_mut().filter(|(dylib, _)| *dylib == old.id).for_each(|entry| *entry = (new.id, visibility));
        })
    }

    /// Takes a dylib out of the link order.
    ///
    /// # Errors
    ///
    /// When the dylib was removed, or one is another session's.
    pub fn remove_from_link_order(&self, other: &Self) -> Result<(), Error> {
        self.session.check_own(other)?;
        self.change_link_order(|own| own.retain(|(dylib, _)| *dylib != other.id))
    }

    /// The dylibs that its link order leads to, itself first, depth first: each once.
    ///
    /// # Errors
    ///
    /// When one of them was removed.
    pub fn dfs_link_order(&self) -> Result<Vec<Self>, Error> {
        self.session.dfs_link_order(std::slice::from_ref(self))
    }

    /// The tracker of what is defined without one.
    ///
    /// # Errors
    ///
    /// When the dylib was removed.
    pub fn default_tracker(&self) -> Result<ResourceTracker, Error> {
        let id = self.session.state().dylibs.get(self.id).ok_or(Error::DylibGone)?.default_tracker;
        Ok(ResourceTracker::new(self.session.clone(), id))
    }

    /// A new tracker: what is defined with it can be removed with it.
    ///
    /// # Errors
    ///
    /// When the dylib was removed.
    pub fn create_tracker(&self) -> Result<ResourceTracker, Error> {
        let id = self.session.state().create_tracker(self.id)?;
        Ok(ResourceTracker::new(self.session.clone(), id))
    }

    /// Starts the units behind those of the names that this dylib has, and waits for none.
    pub fn demand(&self, names: &[SymbolName]) {
        let mut effects = Effects::default();
        let priority = dispatch::current_priority();
        let mut state = self.session.state();
        for name in names {
            if let Some(symbol) = state.find(&[(self.id, DylibLookup::All)], name) {
                state.demand(symbol, priority, &mut effects);
            }
        }
        drop(state);
        self.session.perform(effects);
    }

    /// Defines symbols whose addresses are known. They are ready at once.
    ///
    /// # Errors
    ///
    /// When one is defined already; none is defined then.
    pub fn define_absolute(&self, symbols: Vec<AbsoluteSymbol>) -> Result<(), Error> {
        self.default_tracker()?.define_absolute(symbols)
    }

    /// Removes some symbols by name, all or none, whichever tracker they belong to. A definition
    /// that was never needed is [discarded](super::MaterializationUnit::discard) from its unit;
    /// what depends on one that was is [poisoned](RemovalPolicy::Poison).
    ///
    /// # Errors
    ///
    /// When a name is not there, or is being materialized.
    pub fn remove_symbols(&self, names: &[SymbolName]) -> Result<(), Error> {
        let mut effects = Effects::default();
        let result = self.session.state().remove_names(self.id, names, &mut effects);
        self.session.perform(effects);
        result
    }

    /// Removes what all trackers have, and keeps the dylib with its generators and link order.
    ///
    /// # Errors
    ///
    /// When the dylib was removed.
    pub fn clear(&self) -> Result<(), Error> {
        self.clear_with(RemovalPolicy::Poison)
    }

    /// As [`clear`](Self::clear); `policy` says what becomes of what depends on the symbols.
    ///
    /// # Errors
    ///
    /// When the dylib was removed, or the policy [refuses](RemovalPolicy::Refuse).
    pub fn clear_with(&self, policy: RemovalPolicy) -> Result<(), Error> {
        let mut effects = Effects::default();
        let result = self.session.state().clear_dylib(self.id, policy, &mut effects);
        self.session.perform(effects);
        result
    }

    /// Removes the dylib with everything in it. Whoever waits for one of its symbols is told;
    /// link orders that it is in skip it from now on.
    ///
    /// # Errors
    ///
    /// When it was removed before.
    pub fn remove(&self) -> Result<(), Error> {
        self.remove_with(RemovalPolicy::Poison)
    }

    /// As [`remove`](Self::remove); `policy` says what becomes of what depends on the symbols.
    ///
    /// # Errors
    ///
    /// When it was removed before, or the policy [refuses](RemovalPolicy::Refuse).
    pub fn remove_with(&self, policy: RemovalPolicy) -> Result<(), Error> {
        self.session.state().may_remove_dylib(self.id, policy)?;
        if let Some(platform) = self.session.platform() {
            platform.teardown_dylib(self);
        }
        let mut effects = Effects::default();
        let result = self.session.state().remove_dylib(self.id, policy, &mut effects);
        self.session.perform(effects);
        result
    }
}

impl ExecutionSession {
    /// The dylibs that the link orders of `roots` lead to, themselves first, depth first: each
    /// once.
    ///
    /// # Errors
    ///
    /// When one of them was removed, or is another session's.
    pub fn dfs_link_order(&self, roots: &[JitDylib]) -> Result<Vec<JitDylib>, Error> {
        roots.iter().try_for_each(|root| self.check_own(root))?;
        let state = self.state();
        let mut seen = FxHashSet::default();
        let mut order = Vec::new();
        let mut work: Vec<_> = roots.iter().rev().map(|root| root.id).collect();
        while let Some(id) = work.pop() {
            if !seen.insert(id) {
                continue;
            }
            let dylib = state.dylibs.get(id).ok_or(Error::DylibGone)?;
            order.push(JitDylib { session: self.clone(), id });
            work.extend(dylib.link_order.iter().rev().map(|(dylib, _)| *dylib));
        }
        Ok(order)
    }

    /// As [`dfs_link_order`](Self::dfs_link_order), turned around: what others need comes before them, as
    /// far as there is no cycle.
    ///
    /// # Errors
    ///
    /// As [`dfs_link_order`](Self::dfs_link_order).
    pub fn reverse_dfs_link_order(&self, roots: &[JitDylib]) -> Result<Vec<JitDylib>, Error> {
        let mut order = self.dfs_link_order(roots)?;
        order.reverse();
        Ok(order)
    }
}

impl fmt::Debug for JitDylib {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("JitDylib").field(&self.id).finish()
    }
}
