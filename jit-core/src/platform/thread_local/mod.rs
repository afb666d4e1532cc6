//! Thread-local variables of linked objects, kept by the C library.
//!
//! A [`ThreadLocalStorage`] is a shared object made in memory that has nothing but a thread-local
//! segment. Loading it makes the dynamic loader give storage to every thread, those that run
//! already included, and tell where it is: the module that `__tls_get_addr` takes, and the offset
//! from the thread pointer if the storage found room in the static block.

mod descriptor;
mod image;
mod libraries;
mod module;

use std::ffi::{CStr, CString, c_void};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, FromRawFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use jit_linker::arch::Architecture;
use jit_linker::link::{ThreadLocalImage, TlsLocation};

pub(crate) use self::descriptor::of_mach_o;
use self::image::{Placement, SharedObject, Storage};
pub(crate) use self::libraries::{before_first_use, note_library};

/// Why the dynamic loader gives no thread-local storage.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum ThreadLocalError {
    /// The system has no memory for the shared object.
    #[error("cannot make a shared object for thread-local variables: {0}")]
    System(#[from] io::Error),
    /// The loader refused.
    #[error("the dynamic loader gives no thread-local storage: {0}")]
    Loader(String),
    /// An object defines the name, as something else.
    #[error("'{name}' is no thread-local variable of an object")]
    OfNoObject {
        /// The name.
        name: String,
    },
    /// The loader makes no stacks executable.
    #[error("{0}")]
    Stack(String),
    /// No library has a thread-local variable of the name.
    #[error("no library has a thread-local variable '{name}': {reason}")]
    NotThreadLocal {
        /// The name.
        name: String,
        /// What the loader said.
        reason: String,
    },
}

/// Storage of which every thread has a copy. It goes when this is dropped: nobody may use a copy
/// from then on.
#[derive(Debug)]
pub(crate) struct ThreadLocalStorage {
    /// Loaded as long as the storage is there.
    _library: Library,
    location: TlsLocation,
}

impl ThreadLocalStorage {
    /// Storage of as many bytes as the image has, with its values, in every thread: those that run already are given
    /// them here, and nobody could change them there later.
    ///
    /// It is in the static block if that has room: about 1.6 KiB beyond what the program and its
    /// libraries take, unless the environment says otherwise (`GLIBC_TUNABLES`).
    ///
    /// # Errors
    ///
    /// When the system or the dynamic loader refuses.
    pub(crate) fn new(architecture: Architecture, image: &ThreadLocalImage) -> Result<Self, ThreadLocalError> {
        let ThreadLocalImage { bytes, align, .. } = image;
        let used = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        // A segment without bytes is none.
        let storage = Storage::Own { image: &bytes[..used], size: (bytes.len() as u64).max(1), align: *align };
        let Answer { library, location } = ask(architecture, storage)?.map_err(ThreadLocalError::Loader)?;
        Ok(Self { _library: library, location })
    }

    /// Where its first byte is.
    #[must_use]
    pub(crate) fn location(&self) -> TlsLocation {
        self.location
    }
}

/// Where a thread-local variable of this program or of a library it has loaded is. `here` is the address of the calling
/// thread's copy, where that is known: it tells the variables of libraries apart.
///
/// # Errors
///
/// When there is none of that name, or what is at the address is not thread-local.
pub(crate) fn variable_of_process(
    architecture: Architecture,
    name: &str,
    here: Option<u64>,
) -> Result<TlsLocation, ThreadLocalError> {
    let not_there = |reason: String| ThreadLocalError::NotThreadLocal { name: name.to_owned(), reason };
    if name.contains('\0') {
        return Err(not_there("the name has a NUL".to_owned()));
    }
    let Some(here) = here else {
        // What was asked stays true without the object that asked: the library has the variable.
        let answer = ask(architecture, Storage::Variable { name, library: None })?.map_err(not_there)?;
        return Ok(answer.location);
    };
    let Some(module) = module::at(here) else { return Err(not_there(NOT_IN_STORAGE.to_owned())) };
    let asked = ask(architecture, Storage::Variable { name, library: module.library.as_deref() })?;
    let is_it = |location: &TlsLocation| (location.module, location.offset) == (module.number, module.offset);
    // The loader may know another of that name. Of this one it is not known then whether it is in the static block.
    Ok(asked.ok().map(|answer| answer.location).filter(is_it).unwrap_or_else(|| TlsLocation {
        module: module.number,
        offset: module.offset,
        thread_pointer_offset: None,
        descriptor: Some(descriptor::new(module.number, module.offset)),
    }))
}

/// Has the dynamic loader make the stacks of all threads executable, as for a library that says it needs that.
///
/// # Errors
///
/// When the system or the loader refuses.
pub(crate) fn make_stacks_executable(architecture: Architecture) -> Result<(), ThreadLocalError> {
    let object = SharedObject::new(architecture, Storage::ExecutableStack, Placement::Dynamic);
    // They stay so without the object that asked.
    Library::load(&object.bytes)?.map(drop).map_err(ThreadLocalError::Stack)
}

const NOT_IN_STORAGE: &str = "what it has of that name is one for all threads";

unsafe extern "C" {
    fn __tls_get_addr(pair: *const [u64; 2]) -> *mut u8;
}

struct Answer {
    library: Library,
    location: TlsLocation,
}

/// Tries the static block, and then anywhere. Gives the loader's reason if it refuses both.
fn ask(architecture: Architecture, storage: Storage<'_>) -> io::Result<Result<Answer, String>> {
    let mut reason = String::new();
    for placement in [Placement::Static, Placement::Dynamic] {
        let object = SharedObject::new(architecture, storage, placement);
        match Library::load(&object.bytes)? {
            Ok(library) => {
                let [module, offset, thread_pointer_offset] = library.words(object.answers);
                let is_static = placement == Placement::Static;
                let descriptor = (!is_static).then(|| descriptor::new(module, offset));
                let location = TlsLocation {
                    module,
                    offset,
                    thread_pointer_offset: is_static.then_some(thread_pointer_offset.cast_signed()),
                    descriptor,
                };
                return Ok(Ok(Answer { library, location }));
            }
            Err(refused) => reason = refused,
        }
    }
    Ok(Err(reason))
}

/// A shared object that was loaded from memory.
#[derive(Debug)]
struct Library {
    handle: NonNull<c_void>,
    /// Where it is loaded.
    base: usize,
}

// SAFETY: a handle of `dlopen` can be used from any thread.
unsafe impl Send for Library {}
// SAFETY: as above.
unsafe impl Sync for Library {}

impl Library {
    /// Loads an object of ours. The inner error is the loader's message.
    fn load(object: &[u8]) -> io::Result<Result<Self, String>> {
        let mut file = memory_file()?;
        file.write_all(object)?;
        let path = unique_path(file.as_raw_fd());
        // SAFETY: the path is NUL-terminated; the object has no code to run.
        let handle = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
        let Some(handle) = NonNull::new(handle) else {
            // SAFETY: the message is NUL-terminated and this thread's until its next call.
            let message = unsafe { libc::dlerror().as_ref().map(|message| CStr::from_ptr(message)) };
            let message = message.map(|message| message.to_string_lossy().into_owned()).unwrap_or_default();
            // The path means nothing to anybody.
            let rest = message.strip_prefix(&*path.to_string_lossy()).unwrap_or(&message);
            return Ok(Err(rest.trim_start_matches(": ").to_owned()));
        };
        let mut library = Self { handle, base: 0 };
        library.base = library.loaded_at()?;
        Ok(Ok(library))
    }

    fn loaded_at(&self) -> io::Result<usize> {
        /// The public head of the loader's entry (`link.h`).
        #[repr(C)]
        struct LinkMap {
            base: usize,
        }
        const RTLD_DI_LINKMAP: i32 = 2;
        let mut map = std::ptr::null::<LinkMap>();
        // SAFETY: the handle is live; the request writes one pointer.
        let result = unsafe { libc::dlinfo(self.handle.as_ptr(), RTLD_DI_LINKMAP, (&raw mut map).cast()) };
        // SAFETY: the entry lives as long as the handle.
        let map = unsafe { map.as_ref() }.filter(|_| result == 0);
        map.map(|map| map.base).ok_or_else(|| io::Error::other("the loader does not know its own library"))
    }

    fn base(&self) -> *mut u8 {
        std::ptr::with_exposed_provenance_mut(self.base)
    }

    /// Three words of the loaded object.
    fn words(&self, offset: usize) -> [u64; 3] {
        // SAFETY: the words are in the loaded segment, aligned, and written by the loader before
        // `dlopen` returned.
        unsafe { self.base().add(offset).cast::<[u64; 3]>().read() }
    }
}

impl Drop for Library {
    fn drop(&mut self) {
        // SAFETY: opened once, closed once; whoever drops the storage vouches for the copies.
        unsafe { libc::dlclose(self.handle.as_ptr()) };
    }
}

fn memory_file() -> io::Result<File> {
    // SAFETY: the name is a C string.
    let descriptor = unsafe { libc::memfd_create(c"jit-tls".as_ptr(), libc::MFD_CLOEXEC) };
    if descriptor < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just opened, and nobody else knows it.
    Ok(unsafe { File::from_raw_fd(descriptor) })
}

/// A path to an open file that no earlier object was loaded by: the loader takes equal names for
/// the same object, and descriptors are used again. A number is written in ways to spell a slash.
fn unique_path(descriptor: i32) -> CString {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let mut path = b"/proc/self/fd/".to_vec();
    let mut number = NEXT.fetch_add(1, Ordering::Relaxed);
    while number > 0 {
        path.extend_from_slice(if number & 1 == 1 { b"./" } else { b"/" });
        number >>= 1;
    }
    path.extend_from_slice(descriptor.to_string().as_bytes());
    // Slashes, points and digits.
    CString::new(path).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;

    use super::*;

    pub(super) fn host() -> Architecture {
        Architecture::host().unwrap()
    }

    pub(super) fn thread_pointer() -> u64 {
        let pointer: u64;
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the ABI keeps the thread pointer at the start of what FS points to.
        unsafe {
            std::arch::asm!("mov {}, fs:0", out(reg) pointer, options(nostack, readonly, preserves_flags));
        }
        #[cfg(target_arch = "aarch64")]
        // SAFETY: reads a register.
        unsafe {
            std::arch::asm!("mrs {}, tpidr_el0", out(reg) pointer, options(nostack, nomem, preserves_flags));
        }
        pointer
    }

    /// Where the calling thread has its copy.
    pub(super) fn copy_of_this_thread(location: TlsLocation) -> *mut u8 {
        // SAFETY: the pair is of a module that is loaded.
        unsafe { __tls_get_addr(&[location.module, location.offset]) }
    }

    /// The calling thread's copy, as general-dynamic code finds it.
    fn copy(location: TlsLocation) -> *mut u64 {
        let start = copy_of_this_thread(location);
        if let Some(offset) = location.thread_pointer_offset {
            assert_eq!(start as u64, thread_pointer().wrapping_add_signed(offset));
        }
        start.cast()
    }

    /// Two words of the calling thread's copy; they are set to others.
    fn swap(location: TlsLocation) -> [u64; 2] {
        let copy = copy(location);
        // SAFETY: the tests' storages are larger than two words.
        unsafe {
            let old = [copy.read(), copy.add(1).read()];
            copy.write(7);
            old
        }
    }

    fn storage(words: [u64; 2], size: usize, align: u64) -> ThreadLocalStorage {
        ThreadLocalStorage::new(host(), &image(words, size, align)).unwrap()
    }

    pub(super) fn image(words: [u64; 2], size: usize, align: u64) -> ThreadLocalImage {
        let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        bytes.resize(size, 0);
        ThreadLocalImage { bytes, align, depends_on_externals: false }
    }

    #[test]
    fn elf_36_threads_older_and_younger_than_the_storage_have_their_own_copy() {
        let (ask, asked) = mpsc::channel::<TlsLocation>();
        let older = thread::spawn(move || asked.into_iter().map(swap).collect::<Vec<_>>());
        let small = storage([1, 2], 64, 16);
        let large = storage([3, 4], 1 << 20, 4096);
        assert!(small.location().thread_pointer_offset.is_some());
        assert_eq!(large.location().thread_pointer_offset, None);
        assert_eq!(copy(large.location()) as u64 % 4096, 0);
        for location in [small.location(), large.location(), small.location()] {
            ask.send(location).unwrap();
        }
        drop(ask);
        assert_eq!(older.join().unwrap(), [[1, 2], [3, 4], [7, 2]]);
        for (storage, expected) in [(&small, [1, 2]), (&large, [3, 4])] {
            let location = storage.location();
            assert_eq!(swap(location), expected);
            assert_eq!(thread::spawn(move || swap(location)).join().unwrap(), expected);
            assert_eq!(swap(location)[0], 7);
        }
    }

    #[test]
    fn storage_comes_and_goes() {
        for round in 0..300 {
            let storage = storage([round, 5], 256, 8);
            assert_eq!(swap(storage.location()), [round, 5]);
        }
    }

    #[test]
    fn a_library_variable_is_found_where_its_library_has_it() {
        let location = variable_of_process(host(), "errno", None).unwrap();
        // SAFETY: `errno` of this thread.
        assert_eq!(copy(location) as u64, unsafe { libc::__errno_location() } as u64);
        // SAFETY: as above.
        let here = unsafe { libc::__errno_location() } as u64;
        let same = variable_of_process(host(), "errno", Some(here)).unwrap();
        assert_eq!((same.module, same.offset), (location.module, location.offset));
        assert_eq!(same.thread_pointer_offset, location.thread_pointer_offset);
        let function = libc::getpid as *const () as u64;
        let error = variable_of_process(host(), "getpid", Some(function)).unwrap_err().to_string();
        assert!(error.contains("'getpid'") && error.contains("one for all threads"), "{error}");
        let error = variable_of_process(host(), "no_such_variable", None).unwrap_err().to_string();
        assert!(error.contains("no_such_variable") && !error.contains("/proc"), "{error}");
    }
}
