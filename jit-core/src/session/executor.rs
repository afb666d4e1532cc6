//! The process that runs the code.

use std::ffi::{CStr, CString};
use std::path::Path;

use jit_linker::arch::Architecture;
use jit_linker::memory::MemoryManager;

use crate::error::Error;
use crate::sync::{Arc, Mutex, lock};

/// A dynamic library that an executor has loaded. It stays loaded. What the number means is the
/// executor's to know; one that it never gave names no library.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LibraryHandle(pub u64);

/// The only way to touch the process that runs the code: its memory and its symbols.
///
/// ```
/// use std::ffi::CStr;
/// use std::sync::Arc;
///
/// use jit_core::{ExecutionSession, ExecutorProcessControl, InPlaceDispatcher, InProcess, ProcessSymbols};
/// use jit_linker::arch::Architecture;
/// use jit_linker::memory::{MemoryManager, PageManager};
///
/// /// This process, with a function of its own instead of the C library's.
/// struct WithOwnExit(InProcess);
///
/// extern "C" fn exit(status: i32) {
///     println!("the program is done, with {status}");
/// }
///
/// impl ExecutorProcessControl for WithOwnExit {
///     fn architecture(&self) -> Architecture {
///         self.0.architecture()
///     }
///
///     fn memory(&self) -> &Arc<dyn MemoryManager> {
///         self.0.memory()
///     }
///
///     fn find_symbol(&self, name: &CStr) -> Option<u64> {
///         if name == c"exit" { Some(exit as *const () as u64) } else { self.0.find_symbol(name) }
///     }
/// }
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let architecture = Architecture::host().ok_or("no code is made for this machine")?;
/// let executor = WithOwnExit(InProcess::new(architecture, Arc::new(PageManager::new())));
/// let session = ExecutionSession::new(Box::new(executor), Box::new(InPlaceDispatcher::new()), None);
/// let process = session.create_dylib("process")?;
/// process.add_generator(Arc::new(ProcessSymbols::new(None)))?;
/// let found = session.lookup(&process.link_order(), vec![session.intern("exit")])?;
/// assert_eq!(found[0].definition.address, exit as *const () as u64);
/// # Ok(())
/// # }
/// ```
pub trait ExecutorProcessControl: Send + Sync {
    /// What it runs.
    fn architecture(&self) -> Architecture;

    /// Where code and data go.
    fn memory(&self) -> &Arc<dyn MemoryManager>;

    /// The address of a symbol of the process and the libraries it has loaded.
    fn find_symbol(&self, name: &CStr) -> Option<u64>;

    /// Loads a dynamic library.
    ///
    /// # Errors
    ///
    /// When there is none at `path`, or it can't be loaded.
    fn load_library(&self, path: &Path) -> Result<LibraryHandle, Error> {
        Err(Error::Library { path: path.display().to_string(), message: "the executor loads no libraries".into() })
    }

    /// The address of a symbol of a library or of what that was linked with.
    fn find_library_symbol(&self, library: LibraryHandle, name: &CStr) -> Option<u64> {
        _ = (library, name);
        None
    }
}

/// Code runs in this process.
pub struct InProcess {
    architecture: Architecture,
    memory: Arc<dyn MemoryManager>,
    /// What `dlopen` gave; handles are places in it.
    libraries: Mutex<Vec<usize>>,
}

impl InProcess {
    /// Runs code for `architecture`, which has to be the host's for it to be called, in memory
    /// of `memory`.
    #[must_use]
    pub fn new(architecture: Architecture, memory: Arc<dyn MemoryManager>) -> Self {
        Self { architecture, memory, libraries: Mutex::default() }
    }
}

impl ExecutorProcessControl for InProcess {
    fn architecture(&self) -> Architecture {
        self.architecture
    }

    fn memory(&self) -> &Arc<dyn MemoryManager> {
        &self.memory
    }

    fn find_symbol(&self, name: &CStr) -> Option<u64> {
        #[cfg(target_os = "linux")]
        crate::platform::thread_local::before_first_use(self.architecture, name);
        // SAFETY: `name` is NUL-terminated; `dlsym` reads nothing else and may be called from any
        // thread.
        let address = unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) };
        (!address.is_null()).then_some(address as u64)
    }

    fn load_library(&self, path: &Path) -> Result<LibraryHandle, Error> {
        let refused = |message: String| Error::Library { path: path.display().to_string(), message };
        let name = CString::new(path.as_os_str().as_encoded_bytes()).map_err(|error| refused(error.to_string()))?;
        // SAFETY: `name` is NUL-terminated. What the library's initializers do is its business, as
        // it is for every program that is linked with it.
        let library = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
        if library.is_null() {
            // SAFETY: `dlerror` gives null or a text that is valid until this thread's next call
            // of the loader.
            let message = unsafe {
                let text = libc::dlerror();
                if text.is_null() { None } else { Some(CStr::from_ptr(text).to_string_lossy().into_owned()) }
            };
            return Err(refused(message.unwrap_or_else(|| "it can't be loaded".into())));
        }
        #[cfg(target_os = "linux")]
        crate::platform::thread_local::note_library(library);
        let mut libraries = lock(&self.libraries);
        libraries.push(library as usize);
        Ok(LibraryHandle(libraries.len() as u64 - 1))
    }

    fn find_library_symbol(&self, library: LibraryHandle, name: &CStr) -> Option<u64> {
        let library = *lock(&self.libraries).get(usize::try_from(library.0).ok()?)?;
        #[cfg(target_os = "linux")]
        crate::platform::thread_local::before_first_use(self.architecture, name);
        // SAFETY: `library` comes from `dlopen` and was never closed; `name` is NUL-terminated.
        let address = unsafe { libc::dlsym(library as *mut libc::c_void, name.as_ptr()) };
        (!address.is_null()).then_some(address as u64)
    }
}
