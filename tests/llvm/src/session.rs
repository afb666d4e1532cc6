//! LLVM's `ExecutionSession` without a JIT around it, dispatching in place.

use std::ffi::c_char;
use std::ptr;

use llvm_sys::error::LLVMErrorRef;

use crate::error::{Error, check};

#[repr(C)]
struct RawSession(std::ffi::c_void);
#[repr(C)]
struct RawNames(std::ffi::c_void);

unsafe extern "C" {
    fn orcane_llvm_session_create(result: *mut *mut RawSession) -> LLVMErrorRef;
    fn orcane_llvm_session_end(session: *mut RawSession) -> LLVMErrorRef;
    fn orcane_llvm_names_create() -> *mut RawNames;
    fn orcane_llvm_names_reserve(names: *mut RawNames, count: usize);
    fn orcane_llvm_names_free(names: *mut RawNames);
    fn orcane_llvm_names_intern(session: *mut RawSession, names: *mut RawNames, text: *const c_char, length: usize);
    fn orcane_llvm_session_define(session: *mut RawSession, names: *mut RawNames, address: u64) -> LLVMErrorRef;
    fn orcane_llvm_session_lookup(session: *mut RawSession, names: *mut RawNames, index: usize) -> u64;
    fn orcane_llvm_session_lookup_text(session: *mut RawSession, text: *const c_char, length: usize) -> u64;
    fn orcane_llvm_session_cycle(
        session: *mut RawSession,
        text: *const c_char,
        length: usize,
        address: u64,
    ) -> LLVMErrorRef;
}

/// A session with one dylib and a list of interned names.
#[derive(Debug)]
pub struct Session {
    session: *mut RawSession,
    names: *mut RawNames,
    count: usize,
}

// SAFETY: LLVM's session locks whatever it changes; the list of names is changed through `&mut` only.
unsafe impl Sync for Session {}

impl Session {
    /// A new session.
    ///
    /// # Errors
    ///
    /// When LLVM can't make one.
    pub fn new() -> Result<Self, Error> {
        let mut session = ptr::null_mut();
        // SAFETY: the session is written on success.
        unsafe { check(orcane_llvm_session_create(&raw mut session))? };
        // SAFETY: makes an empty list.
        Ok(Self { session, names: unsafe { orcane_llvm_names_create() }, count: 0 })
    }

    /// Makes room for names.
    pub fn reserve(&mut self, count: usize) {
        // SAFETY: changes the list's capacity.
        unsafe { orcane_llvm_names_reserve(self.names, count) };
    }

    /// Interns a name, which has the next index.
    pub fn intern(&mut self, name: &str) {
        // SAFETY: LLVM copies the text.
        unsafe { orcane_llvm_names_intern(self.session, self.names, name.as_ptr().cast(), name.len()) };
        self.count += 1;
    }

    /// Defines all interned names as absolute symbols, at `address` and the next ones.
    ///
    /// # Errors
    ///
    /// When one is defined already.
    pub fn define_all(&self, address: u64) -> Result<(), Error> {
        // SAFETY: both live as long as `self`.
        unsafe { check(orcane_llvm_session_define(self.session, self.names, address)) }
    }

    /// The address of the name with an index, or 0.
    ///
    /// # Panics
    ///
    /// When no name has that index.
    #[must_use]
    pub fn lookup(&self, index: usize) -> u64 {
        assert!(index < self.count);
        // SAFETY: the index is within the list.
        unsafe { orcane_llvm_session_lookup(self.session, self.names, index) }
    }

    /// The address of a name, or 0.
    #[must_use]
    pub fn lookup_text(&self, name: &str) -> u64 {
        // SAFETY: LLVM copies the text.
        unsafe { orcane_llvm_session_lookup_text(self.session, name.as_ptr().cast(), name.len()) }
    }

    /// Defines a symbol with a tracker of its own, looks it up, and removes it.
    ///
    /// # Errors
    ///
    /// When it is defined already.
    pub fn cycle(&self, name: &str, address: u64) -> Result<(), Error> {
        // SAFETY: LLVM copies the text.
        unsafe { check(orcane_llvm_session_cycle(self.session, name.as_ptr().cast(), name.len(), address)) }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // SAFETY: both were made by the shim, and nobody uses them afterwards. Names go before their pool.
        unsafe {
            orcane_llvm_names_free(self.names);
            _ = check(orcane_llvm_session_end(self.session));
        }
    }
}
