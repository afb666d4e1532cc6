//! Aliases and re-exports: symbols that are others by another name.

use jit_linker::SymbolName;
use smallvec::smallvec;

use super::generator::{DefinitionGenerator, GeneratorError, SymbolFilter};
use super::lookup::{DylibLookup, LookupKind, LookupSet, SearchOrder, SymbolLookup};
use super::query::Owner;
use super::search::LookupState;
use super::state::UnitDefinition;
use super::symbol::{SymbolDeclaration, SymbolFlags};
use super::unit::{MaterializationResponsibility, MaterializationUnit};
use super::{FoundSymbol, JitDylib, ResourceTracker};
use crate::error::{Cause, Error, LookupError, SymbolFailure};
use crate::sync::Arc;

/// A name for something that has another.
#[derive(Clone, Debug)]
pub struct Alias {
    /// The new name.
    pub name: SymbolName,
    /// What it stands for.
    pub aliasee: SymbolName,
    /// How the new name is defined.
    pub flags: SymbolFlags,
}

impl ResourceTracker {
    /// Defines other names for symbols that are found in `order`. Each is materialized by itself,
    /// when it is looked up. An alias has its aliasee's address; if it turns out to be an alias of
    /// itself, [its lookup fails](Cause::AliasCycle).
    ///
    /// # Errors
    ///
    /// When a strong alias meets another definition, a dylib of `order` is another session's, or the tracker is defunct: none
    /// is defined.
    pub fn define_aliases(&self, order: &SearchOrder, aliases: Vec<Alias>) -> Result<(), Error> {
        order.check(self.session())?;
        let unit_name: Arc<str> = Arc::from("aliases");
        let units = aliases
            .into_iter()
            .map(|Alias { name, aliasee, flags }| UnitDefinition {
                symbols: smallvec![SymbolDeclaration { name, flags, signature: None }],
                unit: Box::new(AliasUnit { aliasee, order: order.clone() }),
                name: Arc::clone(&unit_name),
            })
            .collect();
        self.define(units)
    }
}

impl JitDylib {
    /// Defines other names for symbols of this dylib.
    ///
    /// # Errors
    ///
    /// As [`ResourceTracker::define_aliases`].
    pub fn define_aliases(&self, aliases: Vec<Alias>) -> Result<(), Error> {
        self.default_tracker()?.define_aliases(&SearchOrder::new().then(self, DylibLookup::All), aliases)
    }

    /// Defines names here for symbols of another dylib.
    ///
    /// # Errors
    ///
    /// As [`ResourceTracker::define_aliases`].
    pub fn re_export(&self, source: &Self, visibility: DylibLookup, aliases: Vec<Alias>) -> Result<(), Error> {
        self.default_tracker()?.define_aliases(&SearchOrder::new().then(source, visibility), aliases)
    }
}

struct AliasUnit {
    aliasee: SymbolName,
    order: SearchOrder,
}

impl MaterializationUnit for AliasUnit {
    fn materialize(self: Box<Self>, responsibility: MaterializationResponsibility) {
        let Self { aliasee, order } = *self;
        // Gone already if there is none.
        let Some(own) = responsibility.symbols().pop() else { return responsibility.fail(Cause::Removed) };
        let without_address = responsibility.has_only_side_effects();
        let session = responsibility.session().clone();
        let lookup = if without_address { SymbolLookup::WeaklyReferenced } else { SymbolLookup::Required };
        let names = LookupSet::new().with(aliasee, lookup);
        let owner = Some(Owner::Alias(own.id, responsibility.unit()));
        session.lookup_owned(&order, names, owner, move |mut answers| match answers.pop() {
            Some(Ok(found)) => finish(responsibility, own.name, found),
            Some(Err(failure)) if without_address && matches!(*failure.cause, Cause::SideEffectsOnly) => {
                // An error means that it was removed meanwhile.
                _ = responsibility.emit(&[]);
            }
            Some(Err(failure)) => responsibility.fail_with(&because_of(failure)),
            None => drop(responsibility),
        });
    }

    fn discard(&mut self, _: &SymbolName) {}
}

/// A cycle is the cause as it stands: each of its members depends on itself.
fn because_of(SymbolFailure { name, dylib, cause }: SymbolFailure) -> Arc<Cause> {
    match &*cause {
        Cause::AliasCycle(_) | Cause::Dependency { .. } => cause,
        _ => Arc::new(Cause::Dependency { name, dylib, cause }),
    }
}

fn finish(responsibility: MaterializationResponsibility, name: SymbolName, found: FoundSymbol) {
    responsibility.adopt_signature(&found);
    let definition = found.definition.clone();
    // An error means that it was removed meanwhile: whoever waited has been told.
    if responsibility.resolve(&[(name.clone(), definition)]).is_ok() {
        _ = responsibility.emit(&[(name, found)]);
    }
}

impl MaterializationResponsibility {
    fn has_only_side_effects(&self) -> bool {
        let state = self.session().state();
        let symbols = state.responsibility(self.unit()).unwrap_or_default();
        symbols.iter().all(|id| state.symbols.get(*id).is_some_and(|symbol| symbol.flags().side_effects_only))
    }

    /// The only symbol is called as `found` is.
    fn adopt_signature(&self, found: &FoundSymbol) {
        let mut state = self.session().state();
        let Some(id) = state.responsibility(self.unit()).ok().and_then(|symbols| symbols.first().copied()) else {
            return;
        };
        state.symbols.set_signature(id, found.signature.clone());
        if let Some(mut symbol) = state.symbols.get_mut(id) {
            let flags = symbol.flags();
            symbol.set_flags(SymbolFlags { callable: flags.callable || found.flags.callable, ..flags });
        }
    }
}

/// Re-exports what is looked up and another dylib has.
///
/// ```
/// use std::sync::Arc;
///
/// use jit_core::{AbsoluteSymbol, DylibLookup, Jit, ReExports, SymbolDef, SymbolFlags};
///
/// let jit = Jit::new()?;
/// let inner = jit.session().create_dylib("inner")?;
/// let names = ["api_version", "internal"].map(|name| jit.session().intern(name));
/// inner.define_absolute(names.map(|name| AbsoluteSymbol {
///     name,
///     definition: SymbolDef::at(0x1000),
///     flags: SymbolFlags::EXPORTED,
///     signature: None,
/// }).into())?;
/// // `main` shows what begins with `api_`.
/// let filter = Arc::new(|name: &str| name.starts_with("api_"));
/// jit.main().add_generator(Arc::new(ReExports::new(&inner, DylibLookup::Exported, Some(filter))))?;
/// assert_eq!(jit.lookup_address("api_version")?, 0x1000);
/// assert!(jit.lookup_address("internal").is_err());
/// # Ok::<(), jit_core::Error>(())
/// ```
pub struct ReExports {
    source: JitDylib,
    visibility: DylibLookup,
    filter: Option<SymbolFilter>,
}

impl ReExports {
    /// Re-exports all symbols of `source`, or those that pass the filter.
    ///
    /// The generator keeps the session of `source` alive until it is removed, or that has ended.
    #[must_use]
    pub fn new(source: &JitDylib, visibility: DylibLookup, filter: Option<SymbolFilter>) -> Self {
        Self { source: source.clone(), visibility, filter }
    }

    fn define(&self, lookup: &LookupState) -> Result<(), GeneratorError> {
        if self.source.session() != lookup.dylib().session() {
            return Err(Error::ForeignDylib.into());
        }
        let wanted = lookup.names().iter().filter(|name| self.filter.as_ref().is_none_or(|filter| filter(name)));
        let set: LookupSet = wanted.map(|name| (name.clone(), SymbolLookup::WeaklyReferenced)).collect();
        if set.is_empty() {
            return Ok(());
        }
        let order = SearchOrder::new().then(&self.source, self.visibility);
        let found: Result<_, LookupError> = self.source.session().lookup_flags(LookupKind::Static, &order, set);
        let aliases: Vec<_> =
            found?.into_iter().map(|(name, flags)| Alias { aliasee: name.clone(), name, flags }).collect();
        Ok(lookup.dylib().default_tracker()?.define_aliases(&order, aliases)?)
    }
}

impl DefinitionGenerator for ReExports {
    fn try_to_generate(&self, lookup: LookupState) {
        let result = self.define(&lookup);
        lookup.continue_lookup(result);
    }
}
