//! Archives: members are added to a dylib when a lookup misses what they define.

use std::path::Path;

use jit_linker::SymbolName;
use jit_linker::format::archive::{Archive, MemberId};
use jit_linker::format::open;
use rustc_hash::FxHashSet;

use super::components::Shared;
use crate::error::Error;
use crate::session::{DefinitionGenerator, DylibLookup, JitDylib};
use crate::sync::{Arc, Mutex, lock};

/// The members of an archive that nobody has needed yet.
pub(super) struct ArchiveMembers {
    archive: Archive,
    program: Arc<Shared>,
    added: Mutex<FxHashSet<MemberId>>,
}

impl ArchiveMembers {
    pub(super) fn open(path: &Path, program: Arc<Shared>) -> Result<Self, Error> {
        let archive = Archive::parse(path, open(path)?)?;
        Ok(Self { archive, program, added: Mutex::default() })
    }

    fn add(&self, dylib: &JitDylib, member: MemberId) -> Result<(), Error> {
        if !lock(&self.added).insert(member) {
            return Ok(());
        }
        let member = self.archive.member(member)?;
        self.program.add_object(dylib, &member.name, member.object).map(drop)
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
