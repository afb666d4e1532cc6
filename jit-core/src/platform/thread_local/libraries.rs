//! Thread-local variables of libraries, which a program's code refers to.

use std::ffi::{CStr, c_char, c_void};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jit_linker::arch::Architecture;
use jit_linker::format;
use jit_linker::link::TlsLocation;
use rustc_hash::FxHashSet;

use super::image::{Placement, SharedObject, Storage};
use super::{__tls_get_addr, Library, ThreadLocalError, ask};

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

/// Where a thread-local variable of this program or of a library it has loaded is. `address` is one of its copies: if it
/// is this thread's, it tells one of several variables of a name from the others.
///
/// # Errors
///
/// When there is none of that name.
pub(crate) fn variable_of_process(
    architecture: Architecture,
    name: &str,
    address: u64,
) -> Result<TlsLocation, ThreadLocalError> {
    let not_there = |reason: String| ThreadLocalError::NotThreadLocal { name: name.to_owned(), reason };
    if name.contains('\0') {
        return Err(not_there("the name has a NUL".to_owned()));
    }
    let libraries = libraries().clone();
    let mut found = Vec::new();
    for library in libraries.iter().filter(|library| library.names.contains(name)) {
        // What was asked stays true without the object that asked: the library has the variable.
        if let Ok(answer) = ask(architecture, Storage::Variable { name, library: Some(&library.path) })? {
            found.push(answer.location);
        }
    }
    if found.len() != 1 {
        match ask(architecture, Storage::Variable { name, library: None })? {
            Ok(answer) => found.push(answer.location),
            Err(reason) if found.is_empty() => return Err(not_there(reason)),
            Err(_) => {}
        }
    }
    // SAFETY: the pair is of a module that stays.
    let is_it =
        |location: &&TlsLocation| unsafe { __tls_get_addr(&[location.module, location.offset]) } as u64 == address;
    let several = (found.len() > 1).then(|| found.iter().find(is_it)).flatten();
    several.or(found.first()).copied().ok_or_else(|| not_there("it was not found".to_owned()))
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
