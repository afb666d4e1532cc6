//! Thread-local variables of libraries, which a program's code refers to.

use std::ffi::{CStr, c_char, c_void};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jit_linker::arch::Architecture;
use jit_linker::format;
use rustc_hash::FxHashSet;

use super::Library;
use super::image::{Placement, SharedObject, Storage};

/// A library that was loaded for a program and has variables for others. It is never unloaded.
struct WithVariables {
    path: String,
    names: FxHashSet<String>,
    is_used: AtomicBool,
}

/// The libraries, in the order in which they were loaded.
static LIBRARIES: Mutex<Vec<Arc<WithVariables>>> = Mutex::new(Vec::new());

fn libraries() -> MutexGuard<'static, Vec<Arc<WithVariables>>> {
    LIBRARIES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes note of the thread-local variables of a library that `dlopen` has given.
pub(crate) fn note_library(handle: *mut c_void) {
    let Some(path) = path(handle) else { return };
    if libraries().iter().any(|library| library.path == path) {
        return;
    }
    // One that can't be read is as one without variables.
    let Ok(bytes) = format::open(Path::new(&path)) else { return };
    let names: FxHashSet<_> = format::thread_local_variables(&bytes).into_iter().collect();
    if !names.is_empty() {
        libraries().push(Arc::new(WithVariables { path, names, is_used: AtomicBool::new(false) }));
    }
}

/// Has a library's thread-local variables in the static block, if that has room, before one of them is looked up: code
/// that was compiled for an executable finds them nowhere else. Once somebody has the address of one, the loader leaves
/// them where they are.
pub(crate) fn before_first_use(architecture: Architecture, name: &CStr) {
    let Ok(name) = name.to_str() else { return };
    let is_first =
        |library: &&Arc<WithVariables>| library.names.contains(name) && !library.is_used.swap(true, Ordering::Relaxed);
    let first: Vec<_> = libraries().iter().filter(is_first).cloned().collect();
    for library in first {
        let storage = Storage::Variable { name, library: Some(&library.path) };
        let object = SharedObject::new(architecture, storage, Placement::Static);
        // Without room, they stay where they are.
        _ = Library::load(&object.bytes);
    }
}

/// The path that the loader knows a library by; none for the program itself.
fn path(handle: *mut c_void) -> Option<String> {
    /// The public head of the loader's entry (`link.h`).
    #[repr(C)]
    struct LinkMap {
        base: usize,
        name: *const c_char,
    }
    const RTLD_DI_LINKMAP: i32 = 2;
    let mut map = std::ptr::null::<LinkMap>();
    // SAFETY: the handle is live; the request writes one pointer.
    let result = unsafe { libc::dlinfo(handle, RTLD_DI_LINKMAP, (&raw mut map).cast()) };
    // SAFETY: the entry lives as long as the handle, and so does its name, which ends with a NUL.
    let name = unsafe { CStr::from_ptr(map.as_ref().filter(|_| result == 0)?.name) };
    Some(name.to_str().ok()?.to_owned()).filter(|name| !name.is_empty())
}
