//! How frames are unwound is found without a walk over the files that the process has loaded, which takes the dynamic
//! linker's lock. The walks are counted here, for the whole program.
#![cfg(all(target_os = "linux", target_env = "gnu"))]

mod common;

use std::cell::Cell;
use std::ffi::{CStr, c_int, c_void};

use common::add;

thread_local! {
    static WALKS: Cell<u32> = const { Cell::new(0) };
}

/// The C library's function of a name, for the one of that name here.
fn next(name: &CStr) -> *mut c_void {
    WALKS.set(WALKS.get() + 1);
    // SAFETY: the name is a C string.
    let function = unsafe { libc::dlsym(libc::RTLD_NEXT, name.as_ptr()) };
    assert!(!function.is_null(), "{name:?}");
    function
}

type Visit = extern "C" fn(*mut c_void, usize, *mut c_void) -> c_int;

/// Takes the place of the C library's.
#[unsafe(no_mangle)]
extern "C" fn dl_iterate_phdr(visit: Visit, data: *mut c_void) -> c_int {
    // SAFETY: the function is of this type.
    let walk: extern "C" fn(Visit, *mut c_void) -> c_int = unsafe { std::mem::transmute(next(c"dl_iterate_phdr")) };
    walk(visit, data)
}

/// Takes the place of the C library's: its answer for a loaded file, without the lock.
#[unsafe(no_mangle)]
extern "C" fn _dl_find_object(address: *mut c_void, result: *mut c_void) -> c_int {
    // SAFETY: the function is of this type.
    let find: extern "C" fn(*mut c_void, *mut c_void) -> c_int =
        unsafe { std::mem::transmute(next(c"_dl_find_object")) };
    find(address, result)
}

/// Whether the unwinder knows a function, and how often it asked for loaded files.
fn find(function: u64) -> (bool, u32) {
    unsafe extern "C" {
        fn _Unwind_FindEnclosingFunction(pc: *mut c_void) -> *mut c_void;
    }
    WALKS.set(0);
    let inside = std::ptr::with_exposed_provenance_mut(function as usize + 1);
    // SAFETY: it only looks tables up.
    let start = unsafe { _Unwind_FindEnclosingFunction(inside) };
    (start.addr() as u64 == function, WALKS.get())
}

#[test]
fn compiled_functions_are_found_without_a_walk() {
    let jit = common::jit();
    add(&jit, "function %one() -> i64 system_v {\nblock0:\n    v0 = iconst.i64 1\n    return v0\n}");
    let one = jit.lookup_address("one").unwrap();
    assert_eq!(find(one), (true, 0));
    // A function of this program's is found by one, which shows that they are counted.
    let (known, walks) = find(find as fn(u64) -> _ as *const () as u64);
    assert!(known && walks > 0, "{walks}");
}

#[test]
fn loaded_files_are_all_that_the_dynamic_linker_knows() {
    let jit = common::jit();
    add(&jit, "function %one() -> i64 system_v {\nblock0:\n    v0 = iconst.i64 1\n    return v0\n}");
    let one = jit.lookup_address("one").unwrap();
    let mut info = std::mem::MaybeUninit::<libc::Dl_info>::zeroed();
    // SAFETY: only asks; the answer is written where there is room.
    let found = unsafe { libc::dladdr(std::ptr::with_exposed_provenance(one as usize), info.as_mut_ptr()) };
    assert_eq!(found, 0);
    assert_eq!(jit.symbol_at(one).unwrap().to_string(), "one+0x0");
}
