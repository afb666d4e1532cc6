//! JITLink without a session.

use std::ffi::c_char;

use llvm_sys::error::LLVMErrorRef;

use crate::error::{Error, check};

unsafe extern "C" {
    fn orcane_llvm_link(bytes: *const c_char, size: usize, external: u64) -> LLVMErrorRef;
}

/// Links an object into this process's memory, with every external symbol at one address, and gives the memory back.
///
/// # Errors
///
/// When LLVM does not read or link it.
pub fn link(object: &[u8], external: u64) -> Result<(), Error> {
    // SAFETY: the bytes live as long as the call, which keeps nothing; the error is ours.
    unsafe { check(orcane_llvm_link(object.as_ptr().cast(), object.len(), external)) }
}
