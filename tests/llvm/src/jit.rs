//! LLJIT and LLLazyJIT.

use std::ffi::{CStr, CString, c_char};
use std::ptr;
use std::sync::Once;

use llvm_sys::core::{
    LLVMContextCreate, LLVMContextDispose, LLVMCreateMemoryBufferWithMemoryRangeCopy, LLVMDisposeMessage,
};
use llvm_sys::error::LLVMErrorRef;
use llvm_sys::ir_reader::LLVMParseIRInContext2;
use llvm_sys::orc2::lljit::{
    LLVMOrcDisposeLLJIT, LLVMOrcLLJITAddObjectFile, LLVMOrcLLJITGetDataLayoutStr, LLVMOrcLLJITGetExecutionSession,
    LLVMOrcLLJITGetMainJITDylib, LLVMOrcLLJITLookup, LLVMOrcLLJITMangleAndIntern, LLVMOrcLLJITRef,
};
use llvm_sys::orc2::{
    LLVMJITEvaluatedSymbol, LLVMJITSymbolFlags, LLVMJITSymbolGenericFlags, LLVMOrcAbsoluteSymbols,
    LLVMOrcCSymbolMapPair, LLVMOrcCreateNewThreadSafeContextFromLLVMContext, LLVMOrcCreateNewThreadSafeModule,
    LLVMOrcDisposeMaterializationUnit, LLVMOrcDisposeThreadSafeContext, LLVMOrcExecutionSessionSetErrorReporter,
    LLVMOrcJITDylibDefine, LLVMOrcThreadSafeModuleRef,
};
use llvm_sys::prelude::{LLVMContextRef, LLVMModuleRef};

use crate::error::{Error, check};

/// How well LLVM compiles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// The fast instruction selector and register allocator; the IR as it is.
    O0,
    /// LLJIT's own: code generation of `-O2`; the IR as it is.
    Default,
    /// Code generation and IR optimisation of `-O2`.
    O2,
    /// `-O2` that vectorises nothing.
    O2Scalar,
}

/// How an [`Llvm`] is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// How well it compiles.
    pub level: Level,
    /// Whether functions are compiled at their first call (LLLazyJIT).
    pub lazy: bool,
    /// Compile threads; none compiles on the thread that looks up.
    pub threads: u32,
}

#[repr(C)]
struct RawOptions {
    lazy: bool,
    code_generation: u32,
    optimise: bool,
    vectorise: bool,
    threads: u32,
}

unsafe extern "C" {
    fn orcane_llvm_initialise();
    fn orcane_llvm_jit_create(options: *const RawOptions, result: *mut LLVMOrcLLJITRef) -> LLVMErrorRef;
    fn orcane_llvm_jit_lookup_all(jit: LLVMOrcLLJITRef, names: *const *const c_char, count: usize) -> LLVMErrorRef;
    fn orcane_llvm_jit_add(jit: LLVMOrcLLJITRef, lazy: bool, module: LLVMOrcThreadSafeModuleRef) -> LLVMErrorRef;
}

/// An LLVM JIT with one dylib that sees the process's symbols.
#[derive(Debug)]
pub struct Llvm {
    jit: LLVMOrcLLJITRef,
    lazy: bool,
}

/// An IR module, in a context of its own.
#[derive(Debug)]
pub struct Module {
    context: LLVMContextRef,
    module: LLVMModuleRef,
}

impl Module {
    /// A module that `build` fills.
    pub fn build(build: impl FnOnce(LLVMContextRef) -> LLVMModuleRef) -> Self {
        // SAFETY: a new context, which the module is handed to the JIT with, or lives as long as the process.
        let context = unsafe { LLVMContextCreate() };
        Self { context, module: build(context) }
    }

    /// Parses IR text.
    ///
    /// # Errors
    ///
    /// What the parser says.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let mut module = ptr::null_mut();
        let mut message = ptr::null_mut();
        // SAFETY: the buffer is a copy, which the parser takes; the message is LLVM's own string if parsing failed,
        // disposed of once; the context is dropped only if no module is in it.
        unsafe {
            let context = LLVMContextCreate();
            let buffer =
                LLVMCreateMemoryBufferWithMemoryRangeCopy(text.as_ptr().cast(), text.len(), c"program".as_ptr());
            if LLVMParseIRInContext2(context, buffer, &raw mut module, &raw mut message) != 0 {
                let text = CStr::from_ptr(message).to_string_lossy().into_owned();
                LLVMDisposeMessage(message);
                LLVMContextDispose(context);
                return Err(Error(text));
            }
            Ok(Self { context, module })
        }
    }
}

fn initialise() {
    static ONCE: Once = Once::new();
    // SAFETY: registers the host's target, once.
    ONCE.call_once(|| unsafe { orcane_llvm_initialise() });
}

impl Llvm {
    /// A new JIT.
    ///
    /// # Errors
    ///
    /// When LLVM can't make one.
    pub fn new(options: Options) -> Result<Self, Error> {
        initialise();
        let raw = RawOptions {
            lazy: options.lazy,
            code_generation: if options.level == Level::O0 { 0 } else { 2 },
            optimise: matches!(options.level, Level::O2 | Level::O2Scalar),
            vectorise: options.level == Level::O2,
            threads: options.threads,
        };
        let mut jit = ptr::null_mut();
        // SAFETY: `raw` has the layout of the shim's structure, and `jit` is written on success.
        unsafe {
            check(orcane_llvm_jit_create(&raw const raw, &raw mut jit))?;
            // The reporter takes what also comes back as an error, and would print it.
            LLVMOrcExecutionSessionSetErrorReporter(LLVMOrcLLJITGetExecutionSession(jit), swallow, ptr::null_mut());
        }
        Ok(Self { jit, lazy: options.lazy })
    }

    pub(crate) fn raw(&self) -> LLVMOrcLLJITRef {
        self.jit
    }

    /// The text of the data layout that modules need.
    #[must_use]
    pub fn data_layout(&self) -> &CStr {
        // SAFETY: LLVM gives a string that lives as long as the JIT.
        unsafe { CStr::from_ptr(LLVMOrcLLJITGetDataLayoutStr(self.jit)) }
    }

    /// Adds a module to the dylib.
    ///
    /// # Errors
    ///
    /// When it defines what is defined already.
    pub fn add(&self, module: Module) -> Result<(), Error> {
        // SAFETY: the module and its context are handed over; the JIT was created with the same `lazy`.
        unsafe {
            let context = LLVMOrcCreateNewThreadSafeContextFromLLVMContext(module.context);
            let safe = LLVMOrcCreateNewThreadSafeModule(module.module, context);
            // The module keeps the context.
            LLVMOrcDisposeThreadSafeContext(context);
            check(orcane_llvm_jit_add(self.jit, self.lazy, safe))
        }
    }

    /// Adds a copy of an object file to the dylib.
    ///
    /// # Errors
    ///
    /// When it is no object, or defines what is defined already.
    pub fn add_object(&self, bytes: &[u8]) -> Result<(), Error> {
        // SAFETY: the buffer is a copy, which the JIT takes in any case; the dylib is the JIT's own.
        unsafe {
            let buffer =
                LLVMCreateMemoryBufferWithMemoryRangeCopy(bytes.as_ptr().cast(), bytes.len(), c"object".as_ptr());
            check(LLVMOrcLLJITAddObjectFile(self.jit, LLVMOrcLLJITGetMainJITDylib(self.jit), buffer))
        }
    }

    /// Defines a symbol at an address.
    ///
    /// # Errors
    ///
    /// When it is defined already.
    ///
    /// # Panics
    ///
    /// When there is a zero in the name.
    pub fn define(&self, name: &str, address: u64) -> Result<(), Error> {
        let name = CString::new(name).expect("names have no zero in them");
        // SAFETY: the map holds one pair, whose name is interned for it; the unit is disposed of if it was not taken.
        unsafe {
            let mut pair = LLVMOrcCSymbolMapPair {
                Name: LLVMOrcLLJITMangleAndIntern(self.jit, name.as_ptr()),
                Sym: LLVMJITEvaluatedSymbol {
                    Address: address,
                    Flags: LLVMJITSymbolFlags {
                        GenericFlags: LLVMJITSymbolGenericFlags::LLVMJITSymbolGenericFlagsExported as u8
                            | LLVMJITSymbolGenericFlags::LLVMJITSymbolGenericFlagsCallable as u8,
                        TargetFlags: 0,
                    },
                },
            };
            let unit = LLVMOrcAbsoluteSymbols(&raw mut pair, 1);
            let defined = check(LLVMOrcJITDylibDefine(LLVMOrcLLJITGetMainJITDylib(self.jit), unit));
            if defined.is_err() {
                LLVMOrcDisposeMaterializationUnit(unit);
            }
            defined
        }
    }

    /// Compiles and links what a symbol needs, and gives its address, which is valid as long as the JIT lives.
    ///
    /// # Errors
    ///
    /// What LLVM says it is missing.
    ///
    /// # Panics
    ///
    /// When there is a zero in the name.
    pub fn lookup(&self, name: &str) -> Result<u64, Error> {
        let name = CString::new(name).expect("names have no zero in them");
        let mut address = 0;
        // SAFETY: the name ends with a zero, and the address is written on success.
        unsafe { check(LLVMOrcLLJITLookup(self.jit, &raw mut address, name.as_ptr()))? };
        Ok(address)
    }

    /// Compiles and links what several symbols need, all at once.
    ///
    /// # Errors
    ///
    /// What LLVM says it is missing.
    ///
    /// # Panics
    ///
    /// When there is a zero in a name.
    pub fn lookup_all(&self, names: impl IntoIterator<Item = String>) -> Result<(), Error> {
        let names: Vec<_> =
            names.into_iter().map(|name| CString::new(name).expect("names have no zero in them")).collect();
        let pointers: Vec<_> = names.iter().map(|name| name.as_ptr()).collect();
        // SAFETY: each name ends with a zero, and lives until the call is over.
        unsafe { check(orcane_llvm_jit_lookup_all(self.jit, pointers.as_ptr(), pointers.len())) }
    }
}

extern "C" fn swallow(_: *mut std::ffi::c_void, error: LLVMErrorRef) {
    // SAFETY: the reporter is given the error to keep.
    _ = unsafe { check(error) };
}

impl Drop for Llvm {
    fn drop(&mut self) {
        // SAFETY: made by the shim, and nobody uses it afterwards.
        _ = unsafe { check(LLVMOrcDisposeLLJIT(self.jit)) };
    }
}
