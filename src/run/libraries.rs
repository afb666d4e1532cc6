//! Libraries that the program uses: those that are named, and those that compilers take for granted.

use std::collections::HashSet;
use std::ffi::{CStr, CString, OsStr};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::{Arc, Mutex, Once, OnceLock, PoisonError};

use orcane::linker::format;
use orcane::linker::format::archive::{Archive, MemberId};
use orcane::{
    AbsoluteSymbol, DefinitionGenerator, DylibLookup, DynamicLibrarySymbols, ExecutorProcessControl, GeneratorError,
    JitDylib, Program, SymbolDef, SymbolFlags, SymbolName,
};

use super::search;
use crate::Result;

/// Has a dylib find the symbols of a library.
pub(super) fn add(dylib: &JitDylib, path: &Path) -> Result<()> {
    let symbols = DynamicLibrarySymbols::load(dylib.session().executor(), path, None)?;
    dylib.add_generator(std::sync::Arc::new(symbols))?;
    Ok(())
}

/// The libraries that compilers take for granted. They are loaded when a symbol is missing.
pub(super) struct RuntimeLibraries {
    once: Once,
}

const LIBRARIES: [&CStr; 3] = [c"libm.so.6", c"libgcc_s.so.1", c"libstdc++.so.6"];

impl Default for RuntimeLibraries {
    fn default() -> Self {
        Self { once: Once::new() }
    }
}

impl DefinitionGenerator for RuntimeLibraries {
    fn generate(
        &self,
        dylib: &JitDylib,
        _: DylibLookup,
        names: &[SymbolName],
    ) -> std::result::Result<(), GeneratorError> {
        let process = dylib.session().executor();
        let found = names.iter().filter_map(|name| {
            let definition = SymbolDef::at(self.address_outside(process, name)?);
            Some(AbsoluteSymbol { name: name.clone(), definition, flags: SymbolFlags::WEAK, signature: None })
        });
        dylib.define_absolute(found.collect())?;
        Ok(())
    }

    fn address_outside(&self, process: &dyn ExecutorProcessControl, name: &SymbolName) -> Option<u64> {
        self.once.call_once(|| {
            for library in LIBRARIES {
                // The executor knows then what thread-local variables it has. A system without one of them has no program
                // that needs it.
                _ = process.load_library(Path::new(OsStr::from_bytes(library.to_bytes())));
                // SAFETY: the name is a C string; the libraries are made to be loaded any time.
                unsafe { libc::dlopen(library.as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL) };
            }
        });
        process.find_symbol(&CString::new(name.as_str()).ok()?)
    }
}

/// The archives that compilers take for granted, for what nothing else defines. They are opened when a symbol is missing.
pub(super) struct CompilersArchives {
    program: Arc<Program>,
    archives: OnceLock<Vec<Archive>>,
    added: Mutex<HashSet<(usize, MemberId)>>,
}

impl CompilersArchives {
    pub(super) fn new(program: Arc<Program>) -> Self {
        Self { program, archives: OnceLock::new(), added: Mutex::default() }
    }

    /// A system without them, or with others than ours, has no program that needs them.
    fn open() -> Vec<Archive> {
        let archive = |path: &Path| Archive::parse(path, format::open(path).ok()?).ok();
        search::compilers_archives().iter().filter_map(|path| archive(path)).collect()
    }
}

impl DefinitionGenerator for CompilersArchives {
    fn generate(
        &self,
        dylib: &JitDylib,
        _: DylibLookup,
        names: &[SymbolName],
    ) -> std::result::Result<(), GeneratorError> {
        let archives = self.archives.get_or_init(Self::open);
        for name in names {
            let find = |(index, archive): (usize, &Archive)| Some((index, archive.member_with(name)?));
            let Some((index, id)) = archives.iter().enumerate().find_map(find) else { continue };
            if self.added.lock().unwrap_or_else(PoisonError::into_inner).insert((index, id)) {
                let member = archives[index].member(id)?;
                self.program.add_object(dylib, &member.name, member.object)?;
            }
        }
        Ok(())
    }
}
