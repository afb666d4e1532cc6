//! Lazy re-exports: stubs whose first call looks up what they stand for.

use std::ffi::{CString, c_void};
use std::marker::PhantomData;
use std::ptr;

use llvm_sys::core::LLVMDisposeMessage;
use llvm_sys::error::LLVMErrorRef;
use llvm_sys::orc2::lljit::{
    LLVMOrcLLJITGetExecutionSession, LLVMOrcLLJITGetMainJITDylib, LLVMOrcLLJITMangleAndIntern,
};
use llvm_sys::orc2::{
    LLVMJITSymbolFlags, LLVMJITSymbolGenericFlags, LLVMOrcCJITDylibSearchOrderElement, LLVMOrcCLookupSetElement,
    LLVMOrcCSymbolAliasMapEntry, LLVMOrcCSymbolAliasMapPair, LLVMOrcCSymbolMapPairs,
    LLVMOrcCreateLocalIndirectStubsManager, LLVMOrcCreateLocalLazyCallThroughManager, LLVMOrcExecutionSessionLookup,
    LLVMOrcIndirectStubsManagerRef, LLVMOrcJITDylibDefine, LLVMOrcJITDylibLookupFlags,
    LLVMOrcLazyCallThroughManagerRef, LLVMOrcLazyReexports, LLVMOrcLookupKind, LLVMOrcReleaseSymbolStringPoolEntry,
    LLVMOrcRetainSymbolStringPoolEntry, LLVMOrcSymbolLookupFlags, LLVMOrcSymbolStringPoolEntryRef,
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

    /// Interns names that are to stand for `target`.
    ///
    /// # Panics
    ///
    /// When there is a zero in a name.
    #[must_use]
    pub fn intern(&self, names: &[String], target: &str) -> Names<'a> {
        let intern = |name: &str| {
            let name = CString::new(name).expect("names have no zero in them");
            // SAFETY: the name ends with a zero, and LLVM copies it.
            unsafe { LLVMOrcLLJITMangleAndIntern(self.jit.raw(), name.as_ptr()) }
        };
        Names { names: names.iter().map(|name| intern(name)).collect(), target: intern(target), jit: PhantomData }
    }

    /// Defines names, and looks them all up: as ready, stubs and all.
    ///
    /// # Errors
    ///
    /// When one is defined already.
    pub fn create(&self, names: &Names<'a>) -> Result<(), Error> {
        let flags = || LLVMJITSymbolFlags {
            GenericFlags: LLVMJITSymbolGenericFlags::LLVMJITSymbolGenericFlagsExported as u8
                | LLVMJITSymbolGenericFlags::LLVMJITSymbolGenericFlagsCallable as u8,
            TargetFlags: 0,
        };
        let own = |name| {
            // SAFETY: the handle is `names`'s; whoever it is given to has it as one more.
            unsafe { LLVMOrcRetainSymbolStringPoolEntry(name) };
            name
        };
        let mut outcome = Outcome(Err(Error("the lookup has not ended".to_owned())));
        // SAFETY: each handle of a name goes to the map or the set; the unit goes to the dylib. Without compile threads the
        // lookup has ended when the call returns, so that `outcome` outlives it.
        unsafe {
            let mut pairs: Vec<_> = names
                .names
                .iter()
                .map(|&name| LLVMOrcCSymbolAliasMapPair {
                    Name: own(name),
                    Entry: LLVMOrcCSymbolAliasMapEntry { Name: own(names.target), Flags: flags() },
                })
                .collect();
            let main = LLVMOrcLLJITGetMainJITDylib(self.jit.raw());
            let unit = LLVMOrcLazyReexports(self.calls, self.stubs, main, pairs.as_mut_ptr(), pairs.len());
            check(LLVMOrcJITDylibDefine(main, unit))?;
            let mut symbols: Vec<_> = names
                .names
                .iter()
                .map(|&name| LLVMOrcCLookupSetElement {
                    Name: own(name),
                    LookupFlags: LLVMOrcSymbolLookupFlags::LLVMOrcSymbolLookupFlagsRequiredSymbol,
                })
                .collect();
            let mut order = LLVMOrcCJITDylibSearchOrderElement {
                JD: main,
                JDLookupFlags: LLVMOrcJITDylibLookupFlags::LLVMOrcJITDylibLookupFlagsMatchAllSymbols,
            };
            LLVMOrcExecutionSessionLookup(
                LLVMOrcLLJITGetExecutionSession(self.jit.raw()),
                LLVMOrcLookupKind::LLVMOrcLookupKindStatic,
                &raw mut order,
                1,
                symbols.as_mut_ptr(),
                symbols.len(),
                looked_up,
                (&raw mut outcome).cast(),
            );
        }
        outcome.0
    }
}

/// Interned names, and what they are to stand for.
#[derive(Debug)]
pub struct Names<'a> {
    names: Vec<LLVMOrcSymbolStringPoolEntryRef>,
    target: LLVMOrcSymbolStringPoolEntryRef,
    /// Which has their pool.
    jit: PhantomData<&'a Llvm>,
}

impl Drop for Names<'_> {
    fn drop(&mut self) {
        for &name in self.names.iter().chain([&self.target]) {
            // SAFETY: the handle is ours, and the JIT that has the pool is alive.
            unsafe { LLVMOrcReleaseSymbolStringPoolEntry(name) };
        }
    }
}

/// What came of a lookup.
struct Outcome(Result<(), Error>);

extern "C" fn looked_up(error: LLVMErrorRef, _: LLVMOrcCSymbolMapPairs, _: usize, outcome: *mut c_void) {
    // SAFETY: `create` gives its own, which nobody else uses during the lookup; the error is given to keep.
    unsafe { (*outcome.cast::<Outcome>()).0 = check(error) };
}
