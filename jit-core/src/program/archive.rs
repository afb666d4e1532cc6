//! Archives: members are added to a dylib when a lookup misses what they define.

use std::path::Path;

use jit_linker::SymbolName;
use jit_linker::arch::Architecture;
use jit_linker::format::archive::{Archive, MemberId};
use jit_linker::format::macho::slice;
use jit_linker::format::{open, parse};
use rustc_hash::FxHashSet;

use super::components::Shared;
use crate::error::Error;
use crate::session::{DefinitionGenerator, DylibLookup, JitDylib, LookupKind, LookupState};
use crate::sync::{Arc, Mutex, lock};

/// Who sees what an archive defines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ArchiveScope {
    /// Whoever its objects say.
    AsDefined,
    /// At most the dylib that it is in.
    Hidden,
}

/// The members of an archive that nobody has needed yet.
pub(super) struct ArchiveMembers {
    archive: Archive,
    scope: ArchiveScope,
    program: Arc<Shared>,
    added: Mutex<FxHashSet<MemberId>>,
}

impl ArchiveMembers {
    pub(super) fn open(
        path: &Path,
        scope: ArchiveScope,
        program: Arc<Shared>,
        architecture: Architecture,
    ) -> Result<Self, Error> {
        let archive = Archive::parse(path, slice(&path.display().to_string(), &open(path)?, architecture)?)?;
        Ok(Self { archive, scope, program, added: Mutex::default() })
    }

    /// Adds the member that gives a common of another object a value, if there is one.
    pub(super) fn add_value(&self, dylib: &JitDylib, name: &SymbolName) -> Result<(), Error> {
        let Some(id) = self.archive.member_with(name).filter(|member| !lock(&self.added).contains(member)) else {
            return Ok(());
        };
        let member = self.archive.member(id)?;
        let session = dylib.session();
        let object = slice(&member.name, &member.object, session.executor().architecture())?;
        let graph = parse(&member.name, object, session.names())?;
        if graph.has_value(name) { self.add(dylib, id) } else { Ok(()) }
    }

    /// Whether there is a member that would define a name, if it were part of the program.
    pub(super) fn may_define(&self, name: &SymbolName) -> bool {
        self.archive.member_with(name).is_some_and(|member| !lock(&self.added).contains(&member))
    }

    fn add(&self, dylib: &JitDylib, member: MemberId) -> Result<(), Error> {
        if !lock(&self.added).insert(member) {
            return Ok(());
        }
        let member = self.archive.member(member)?;
        self.program.add_object(dylib, &member.name, member.object, self.scope).map(drop)
    }
}

impl DefinitionGenerator for ArchiveMembers {
    /// Only what a linker looks up brings members in.
    fn try_to_generate(&self, lookup: LookupState) {
        let result = match lookup.kind() {
            LookupKind::Static => self.generate(lookup.dylib(), lookup.visibility(), lookup.names()),
            LookupKind::DlSym => Ok(()),
        };
        lookup.continue_lookup(result);
    }

    fn generate(
        &self,
        dylib: &JitDylib,
        _: DylibLookup,
        names: &[SymbolName],
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        for name in names {
            if let Some(member) = self.archive.member_with(name) {
                self.add(dylib, member)?;
            }
        }
        Ok(())
    }
}
