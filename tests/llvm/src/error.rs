//! LLVM's errors.

use std::ffi::CStr;
use std::fmt;

use llvm_sys::error::{LLVMDisposeErrorMessage, LLVMErrorRef, LLVMGetErrorMessage};

/// What LLVM says went wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error(pub(crate) String);

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Error {}

/// Takes what a function of LLVM returned: null is success.
///
/// # Safety
///
/// `error` must be LLVM's, and nobody else may use it.
pub(crate) unsafe fn check(error: LLVMErrorRef) -> Result<(), Error> {
    if error.is_null() {
        return Ok(());
    }
    // SAFETY: the caller hands over the error, and LLVM gives a string that ends with a zero, which is disposed of
    // once and not used afterwards.
    unsafe {
        let message = LLVMGetErrorMessage(error);
        let text = CStr::from_ptr(message).to_string_lossy().into_owned();
        LLVMDisposeErrorMessage(message);
        Err(Error(text))
    }
}
