//! Lazy re-exports: stubs whose first call looks up what they stand for.

use std::ffi::CString;
use std::ptr;

use llvm_sys::core::LLVMDisposeMessage;
use llvm_sys::orc2::lljit::{
    LLVMOrcLLJITGetExecutionSession, LLVMOrcLLJITGetMainJITDylib, LLVMOrcLLJITMangleAndIntern,
};
use llvm_sys::orc2::{
    LLVMJITSymbolFlags, LLVMJITSymbolGenericFlags, LLVMOrcCSymbolAliasMapEntry, LLVMOrcCSymbolAliasMapPair,
    LLVMOrcCreateLocalIndirectStubsManager, LLVMOrcCreateLocalLazyCallThroughManager, LLVMOrcIndirectStubsManagerRef,
    LLVMOrcJITDylibDefine, LLVMOrcLazyCallThroughManagerRef, LLVMOrcLazyReexports,
};

use llvm_sys::target_machine::LLVMGetDefaultTargetTriple;

use crate::error::{Error, check};
use crate::jit::Llvm;

/// What makes stubs in this process. It is not disposed of: stubs may be called as long as the process lives.
#[derive(Debug)]
pub struct Reexports<'a> {
    jit: &'a Llvm,
    calls: LLVMOrcLazyCallThroughManagerRef,
    stubs: LLVMOrcIndirectStubsManagerRef,
}

extern "C" fn failed() -> ! {
    eprintln!("a first call failed");
    std::process::abort()
}

impl<'a> Reexports<'a> {
    /// Stubs for a JIT.
    ///
    /// # Errors
    ///
    /// When LLVM has none for the host.
    pub fn new(jit: &'a Llvm) -> Result<Self, Error> {
        let mut calls = ptr::null_mut();
        // SAFETY: the triple is LLVM's own string, disposed of once; `calls` is written on success.
        let stubs = unsafe {
            let triple = LLVMGetDefaultTargetTriple();
            let session = LLVMOrcLLJITGetExecutionSession(jit.raw());
            let failed = failed as *const () as u64;
            let created = check(LLVMOrcCreateLocalLazyCallThroughManager(triple, session, failed, &raw mut calls));
            let stubs = LLVMOrcCreateLocalIndirectStubsManager(triple);
            LLVMDisposeMessage(triple);
            created?;
            stubs
        };
        Ok(Self { jit, calls, stubs })
    }

    /// Defines names that stand for `target`.
    ///
    /// # Errors
    ///
    /// When one is defined already.
    ///
    /// # Panics
    ///
    /// When there is a zero in a name.
    pub fn define(&self, names: &[String], target: &str) -> Result<(), Error> {
        let jit = self.jit.raw();
        let text = |name: &str| CString::new(name).expect("names have no zero in them");
        let target = text(target);
        let flags = || LLVMJITSymbolFlags {
            GenericFlags: LLVMJITSymbolGenericFlags::LLVMJITSymbolGenericFlagsExported as u8
                | LLVMJITSymbolGenericFlags::LLVMJITSymbolGenericFlagsCallable as u8,
            TargetFlags: 0,
        };
        // SAFETY: names end with a zero; each handle of a name goes to the map; the unit goes to the dylib.
        unsafe {
            let mut pairs: Vec<_> = names
                .iter()
                .map(|name| LLVMOrcCSymbolAliasMapPair {
                    Name: LLVMOrcLLJITMangleAndIntern(jit, text(name).as_ptr()),
                    Entry: LLVMOrcCSymbolAliasMapEntry {
                        Name: LLVMOrcLLJITMangleAndIntern(jit, target.as_ptr()),
                        Flags: flags(),
                    },
                })
                .collect();
            let main = LLVMOrcLLJITGetMainJITDylib(jit);
            let unit = LLVMOrcLazyReexports(self.calls, self.stubs, main, pairs.as_mut_ptr(), pairs.len());
            check(LLVMOrcJITDylibDefine(main, unit))
        }
    }
}
