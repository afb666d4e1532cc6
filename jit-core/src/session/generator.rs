//! Definitions that are made when they are asked for.

use std::ffi::CString;
use std::path::Path;

use jit_linker::SymbolName;

use super::lookup::DylibLookup;
use super::search::LookupState;
use super::symbol::{SymbolDef, SymbolFlags};
use super::{AbsoluteSymbol, ExecutorProcessControl, JitDylib, LibraryHandle};
use crate::error::Error;
use crate::sync::Arc;

/// What goes wrong in a generator.
pub type GeneratorError = Box<dyn std::error::Error + Send + Sync>;

/// Defines symbols in a dylib when a lookup does not find them there.
///
/// Most generators implement [`generate`](Self::generate). One that has to wait for something
/// implements [`try_to_generate`](Self::try_to_generate), keeps the lookup, and continues it from
/// whichever thread has the answer.
///
/// A generator works for one lookup at a time; others that need it wait for their turn. A lookup
/// that it makes itself passes over it. No lock is held while it runs.
///
/// ```
/// use std::sync::Arc;
///
/// use jit_core::{AbsoluteSymbol, GeneratorError, Jit, JitDylib, SymbolDef, SymbolFlags, SymbolName};
///
/// // Registers of a machine: `r0` to `r15`, at addresses in a row.
/// let registers = |dylib: &JitDylib, names: &[SymbolName]| -> Result<(), GeneratorError> {
///     for name in names {
///         let number = name.strip_prefix('r').and_then(|digits| digits.parse::<u64>().ok());
///         if let Some(number) = number.filter(|number| *number < 16) {
///             dylib.define_absolute(vec![AbsoluteSymbol {
///                 name: name.clone(),
///                 definition: SymbolDef::at(0x1000 + 8 * number),
///                 flags: SymbolFlags::EXPORTED,
///                 signature: None,
///             }])?;
///         }
///     }
///     Ok(())
/// };
/// let jit = Jit::new()?;
/// jit.main().add_generator(Arc::new(registers))?;
/// assert_eq!(jit.lookup_address("r3")?, 0x1018);
/// assert!(jit.lookup_address("r16").is_err());
/// # Ok::<(), jit_core::Error>(())
/// ```
pub trait DefinitionGenerator: Send + Sync {
    /// Called with the names that `dylib` does not have. What it defines there is found; the
    /// other names go on to the next generator or dylib.
    ///
    /// # Errors
    ///
    /// An error fails the lookup. A name that can't be generated is no error.
    fn generate(&self, dylib: &JitDylib, visibility: DylibLookup, names: &[SymbolName]) -> Result<(), GeneratorError> {
        _ = (dylib, visibility, names);
        Ok(())
    }

    /// As [`generate`](Self::generate), which it calls, but free to keep the lookup.
    fn try_to_generate(&self, lookup: LookupState) {
        let result = self.generate(lookup.dylib(), lookup.visibility(), lookup.names());
        lookup.continue_lookup(result);
    }

    /// The address that a name has outside the session, if the generator stands for what is there: this process, or a
    /// library. Nothing is defined. [`Program`](crate::Program) asks so which weak definitions there are already.
    fn address_outside(&self, executor: &dyn ExecutorProcessControl, name: &SymbolName) -> Option<u64> {
        _ = (executor, name);
        None
    }
}

/// A function that makes definitions on demand is a generator.
impl<F> DefinitionGenerator for F
where
    F: Fn(&JitDylib, &[SymbolName]) -> Result<(), GeneratorError> + Send + Sync,
{
    fn generate(&self, dylib: &JitDylib, _: DylibLookup, names: &[SymbolName]) -> Result<(), GeneratorError> {
        self(dylib, names)
    }
}

/// Decides by name.
pub type SymbolFilter = Arc<dyn Fn(&str) -> bool + Send + Sync>;

/// How the platform spells the symbol of a C name in object files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mangling {
    /// As it is: ELF.
    #[default]
    None,
    /// With an underscore before it: Mach-O. Names without one are not C's.
    Underscore,
}

impl Mangling {
    /// The C name of a symbol, if it is one.
    #[must_use]
    pub fn demangle(self, symbol: &str) -> Option<&str> {
        match self {
            Self::None => Some(symbol),
            Self::Underscore => symbol.strip_prefix('_'),
        }
    }

    /// The symbol of a C name.
    #[must_use]
    pub fn mangle(self, name: &str) -> String {
        match self {
            Self::None => name.to_owned(),
            Self::Underscore => format!("_{name}"),
        }
    }
}

/// Which names a generator of library symbols answers for, and how they are spelled.
#[derive(Clone, Default)]
struct Names {
    filter: Option<SymbolFilter>,
    mangling: Mangling,
}

impl Names {
    /// What `find` knows of a name.
    fn find(&self, name: &SymbolName, find: impl Fn(&CString) -> Option<u64>) -> Option<u64> {
        if self.filter.as_ref().is_some_and(|filter| !filter(name)) {
            return None;
        }
        // A name with a NUL is no name the loader knows.
        find(&CString::new(self.mangling.demangle(name)?).ok()?)
    }

    /// Defines those of the names that `find` knows.
    fn define(
        &self,
        dylib: &JitDylib,
        names: &[SymbolName],
        find: impl Fn(&CString) -> Option<u64>,
    ) -> Result<(), GeneratorError> {
        let absolute = |name: &SymbolName| {
            let definition = SymbolDef::at(self.find(name, &find)?);
            // Whoever defines it meanwhile is right.
            Some(AbsoluteSymbol { name: name.clone(), definition, flags: SymbolFlags::WEAK, signature: None })
        };
        let found: Vec<_> = names.iter().filter_map(absolute).collect();
        if !found.is_empty() {
            dylib.define_absolute(found)?;
        }
        Ok(())
    }
}

/// Defines the symbols of this process: what the dynamic loader would find.
///
/// ```
/// use std::sync::Arc;
///
/// use jit_core::{Jit, ProcessAccess, ProcessSymbols};
///
/// // A dylib that sees two functions of the C library, and nothing else of the process.
/// let jit = Jit::builder().process_symbols(ProcessAccess::None).build()?;
/// let some = ProcessSymbols::new(Some(Arc::new(|name| matches!(name, "abs" | "labs"))));
/// jit.main().add_generator(Arc::new(some))?;
/// assert!(jit.lookup_address("labs").is_ok());
/// assert!(jit.lookup_address("system").is_err());
/// # Ok::<(), jit_core::Error>(())
/// ```
pub struct ProcessSymbols(Names);

impl ProcessSymbols {
    /// All symbols, or those that pass the filter.
    #[must_use]
    pub fn new(filter: Option<SymbolFilter>) -> Self {
        Self(Names { filter, mangling: Mangling::None })
    }

    /// Says how names are spelled; as they are, by default. The filter sees them mangled.
    #[must_use]
    pub fn mangling(mut self, mangling: Mangling) -> Self {
        self.0.mangling = mangling;
        self
    }
}

impl DefinitionGenerator for ProcessSymbols {
    fn generate(&self, dylib: &JitDylib, _: DylibLookup, names: &[SymbolName]) -> Result<(), GeneratorError> {
        let process = dylib.session().executor();
        self.0.define(dylib, names, |name| process.find_symbol(name))
    }

    fn address_outside(&self, executor: &dyn ExecutorProcessControl, name: &SymbolName) -> Option<u64> {
        self.0.find(name, |name| executor.find_symbol(name))
    }
}

/// Defines the symbols of one dynamic library, which it loads and never unloads: nobody knows who
/// still refers to it.
///
/// ```
/// use std::path::Path;
/// use std::sync::Arc;
///
/// use jit_core::{DynamicLibrarySymbols, Jit, ProcessAccess};
///
/// let jit = Jit::builder().process_symbols(ProcessAccess::None).build()?;
/// let library = DynamicLibrarySymbols::load(jit.session().executor(), Path::new("libc.so.6"), None)?;
/// jit.main().add_generator(Arc::new(library))?;
/// assert!(jit.lookup_address("labs").is_ok());
/// # Ok::<(), jit_core::Error>(())
/// ```
pub struct DynamicLibrarySymbols {
    library: LibraryHandle,
    names: Names,
}

impl DynamicLibrarySymbols {
    /// All symbols of the library at `path`, or those that pass the filter.
    ///
    /// # Errors
    ///
    /// When it can't be loaded.
    pub fn load(
        executor: &dyn ExecutorProcessControl,
        path: &Path,
        filter: Option<SymbolFilter>,
    ) -> Result<Self, Error> {
        let library = executor.load_library(path)?;
        Ok(Self { library, names: Names { filter, mangling: Mangling::None } })
    }

    /// Says how names are spelled; as they are, by default. The filter sees them mangled.
    #[must_use]
    pub fn mangling(mut self, mangling: Mangling) -> Self {
        self.names.mangling = mangling;
        self
    }
}

impl DefinitionGenerator for DynamicLibrarySymbols {
    fn generate(&self, dylib: &JitDylib, _: DylibLookup, names: &[SymbolName]) -> Result<(), GeneratorError> {
        let process = dylib.session().executor();
        self.names.define(dylib, names, |name| process.find_library_symbol(self.library, name))
    }

    fn address_outside(&self, executor: &dyn ExecutorProcessControl, name: &SymbolName) -> Option<u64> {
        self.names.find(name, |name| executor.find_library_symbol(self.library, name))
    }
}
