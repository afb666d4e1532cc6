//! Archives: members are added to a dylib when a lookup misses what they define.

use std::path::Path;

use jit_linker::SymbolName;
use jit_linker::arch::Architecture;
use jit_linker::format::archive::{Archive, MemberId};
use jit_linker::format::macho::slice;
use jit_linker::format::open;
use rustc_hash::FxHashSet;

use super::components::Shared;
use crate::error::Error;
use crate::session::{DefinitionGenerator, DylibLookup, JitDylib};
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

    fn add(&self, dylib: &JitDylib, member: MemberId) -> Result<(), Error> {
        if !lock(&self.added).insert(member) {
            return Ok(());
        }
        let member = self.archive.member(member)?;
        self.program.add_object(dylib, &member.name, member.object, self.scope).map(drop)
    }
}

impl DefinitionGenerator for ArchiveMembers {
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
