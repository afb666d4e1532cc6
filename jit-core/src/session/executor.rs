//! The process that runs the code.

use std::ffi::CStr;

use jit_linker::arch::Architecture;
use jit_linker::memory::MemoryManager;

use crate::sync::Arc;

/// The only way to touch the process that runs the code: its memory and its symbols.
pub trait ExecutorProcessControl: Send + Sync {
    /// What it runs.
    fn architecture(&self) -> Architecture;

    /// Where code and data go.
    fn memory(&self) -> &Arc<dyn MemoryManager>;

    /// The address of a symbol of the process and the libraries it has loaded.
    fn find_symbol(&self, name: &CStr) -> Option<u64>;
}

/// Code runs in this process.
pub struct InProcess {
    architecture: Architecture,
    memory: Arc<dyn MemoryManager>,
}

impl InProcess {
    /// Runs code for `architecture`, which has to be the host's for it to be called, in memory
    /// of `memory`.
    #[must_use]
    pub fn new(architecture: Architecture, memory: Arc<dyn MemoryManager>) -> Self {
        Self { architecture, memory }
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
        // SAFETY: `name` is NUL-terminated; `dlsym` reads nothing else and may be called from any
        // thread.
        let address = unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) };
        (!address.is_null()).then_some(address as u64)
    }
}
