//! The modules of thread-local storage that the dynamic loader has.

use std::ffi::{CStr, c_int, c_void};

use libc::{PT_TLS, dl_phdr_info};

/// The module that a thread-local variable is in.
pub(super) struct Module {
    pub(super) number: u64,
    /// Where in the module's storage the variable is.
    pub(super) offset: u64,
    /// The name that the loader has for the library; none for the program itself.
    pub(super) library: Option<String>,
}

struct Search {
    address: u64,
    found: Option<Module>,
}

/// The module that has storage at an address of the calling thread's.
pub(super) fn at(address: u64) -> Option<Module> {
    let mut search = Search { address, found: None };
    // SAFETY: the function is called before this returns, with what is given here.
    unsafe { libc::dl_iterate_phdr(Some(look), (&raw mut search).cast()) };
    search.found
}

/// # Safety
///
/// Called by the loader, with a [`Search`].
unsafe extern "C" fn look(info: *mut dl_phdr_info, _: usize, search: *mut c_void) -> c_int {
    // SAFETY: the loader's description of a library, and what `at` gave it.
    let (info, search) = unsafe { (&*info, &mut *search.cast::<Search>()) };
    // SAFETY: the library has as many program headers, at least one.
    let headers = unsafe { std::slice::from_raw_parts(info.dlpi_phdr, info.dlpi_phnum.into()) };
    let Some(storage) = headers.iter().find(|header| header.p_type == PT_TLS) else { return 0 };
    // A thread that has not used the module has no storage of it.
    let Some(offset) = search.address.checked_sub(info.dlpi_tls_data as u64) else { return 0 };
    if info.dlpi_tls_data.is_null() || offset >= storage.p_memsz {
        return 0;
    }
    // SAFETY: the loader's name of the library ends with a NUL.
    let name = (!info.dlpi_name.is_null()).then(|| unsafe { CStr::from_ptr(info.dlpi_name) });
    let library = name.and_then(|name| name.to_str().ok()).filter(|name| !name.is_empty()).map(str::to_owned);
    search.found = Some(Module { number: info.dlpi_tls_modid as u64, offset, library });
    1
}
