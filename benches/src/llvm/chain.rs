//! The chain of functions, built with LLVM's IR builder and compiled by LLJIT.

use std::ffi::{CStr, CString};
use std::time::Instant;

use llvm_sys::LLVMIntPredicate;
use llvm_sys::core::*;
use llvm_sys::prelude::{LLVMContextRef, LLVMModuleRef, LLVMTypeRef, LLVMValueRef};
use llvm_tests::{Level, Llvm, Module, Options};
use workloads::Result;
use workloads::child::Times;
use workloads::functions::{FACTOR, TRIPS, expected, name};
use workloads::llvm::{LlvmLevel, LlvmSubject};

const UNNAMED: *const std::ffi::c_char = c"".as_ptr();

/// What every process costs that LLVM is linked to.
pub(crate) fn nothing() -> Times {
    Times::default()
}

pub(crate) fn run(subject: LlvmSubject, count: usize) -> Result<Times> {
    let start = Instant::now();
    let level = match subject.level {
        LlvmLevel::O0 => Level::O0,
        LlvmLevel::Default => Level::Default,
        LlvmLevel::O2 => Level::O2,
    };
    let jit = Llvm::new(Options { level, lazy: false, threads: subject.threads })?;
    let layout = jit.data_layout();
    let modules: Vec<_> = if subject.module_a_function {
        (0..count).map(|index| Module::build(|context| module(context, layout, index..index + 1))).collect()
    } else {
        vec![Module::build(|context| module(context, layout, 0..count))]
    };
    let built = Instant::now();
    modules.into_iter().try_for_each(|module| jit.add(module))?;
    if subject.module_a_function {
        // One by one from the last, LLVM's linker and dispatcher would call each other, as deep as the chain is long.
        jit.lookup_all((0..count).map(name))?;
    }
    let last = jit.lookup(&name(count - 1))?;
    let times = Times { total: start.elapsed(), callable: built.elapsed() };

    const ARGUMENT: i64 = 7;
    // SAFETY: `function` gives every function this signature, and the JIT is alive.
    let last = unsafe { std::mem::transmute::<u64, extern "C" fn(i64) -> i64>(last) };
    let (result, expected) = (last(ARGUMENT), expected(count, ARGUMENT));
    if result != expected {
        return Err(format!("{result} is not {expected}").into());
    }
    // Its destruction is not what is measured, and takes long.
    std::mem::forget(jit);
    Ok(times)
}

fn module(context: LLVMContextRef, layout: &CStr, functions: std::ops::Range<usize>) -> LLVMModuleRef {
    // SAFETY: every handle below is of this context, and used while it lives; names end with a zero.
    unsafe {
        let module = LLVMModuleCreateWithNameInContext(c"chain".as_ptr(), context);
        LLVMSetDataLayout(module, layout.as_ptr());
        let integer = LLVMInt64TypeInContext(context);
        let signature = LLVMFunctionType(integer, [integer].as_mut_ptr(), 1, 0);
        let declare = |index| {
            let name = CString::new(name(index)).unwrap_or_default();
            LLVMAddFunction(module, name.as_ptr(), signature)
        };
        let mut previous = functions.start.checked_sub(1).map(declare);
        for index in functions {
            let this = declare(index);
            function(context, signature, this, index, previous);
            previous = Some(this);
        }
        module
    }
}

/// As `workloads::functions` builds it with Cranelift.
///
/// # Safety
///
/// All must be of the context, and `signature` that of both functions.
unsafe fn function(
    context: LLVMContextRef,
    signature: LLVMTypeRef,
    this: LLVMValueRef,
    index: usize,
    previous: Option<LLVMValueRef>,
) {
    // SAFETY: as the caller promises; blocks and values are this function's.
    unsafe {
        let integer = LLVMInt64TypeInContext(context);
        let constant = |value: i64| LLVMConstInt(integer, value.cast_unsigned(), 1);
        let [entry, body, exit, odd, even, join] =
            [(); 6].map(|()| LLVMAppendBasicBlockInContext(context, this, UNNAMED));
        let builder = LLVMCreateBuilderInContext(context);

        LLVMPositionBuilderAtEnd(builder, entry);
        LLVMBuildBr(builder, body);

        LLVMPositionBuilderAtEnd(builder, body);
        let sum = LLVMBuildPhi(builder, integer, UNNAMED);
        let trip = LLVMBuildPhi(builder, integer, UNNAMED);
        let product = LLVMBuildMul(builder, sum, constant(FACTOR), UNNAMED);
        let shifted = LLVMBuildAdd(builder, product, constant(index as i64), UNNAMED);
        let mixed = LLVMBuildXor(builder, shifted, trip, UNNAMED);
        let next = LLVMBuildAdd(builder, trip, constant(1), UNNAMED);
        let more = LLVMBuildICmp(builder, LLVMIntPredicate::LLVMIntSLT, next, constant(TRIPS), UNNAMED);
        LLVMBuildCondBr(builder, more, body, exit);
        LLVMAddIncoming(sum, [LLVMGetParam(this, 0), mixed].as_mut_ptr(), [entry, body].as_mut_ptr(), 2);
        LLVMAddIncoming(trip, [constant(0), next].as_mut_ptr(), [entry, body].as_mut_ptr(), 2);

        LLVMPositionBuilderAtEnd(builder, exit);
        let lowest = LLVMBuildAnd(builder, mixed, constant(1), UNNAMED);
        let is_odd = LLVMBuildICmp(builder, LLVMIntPredicate::LLVMIntNE, lowest, constant(0), UNNAMED);
        LLVMBuildCondBr(builder, is_odd, odd, even);
        LLVMPositionBuilderAtEnd(builder, odd);
        let more = LLVMBuildAdd(builder, mixed, constant(index as i64), UNNAMED);
        LLVMBuildBr(builder, join);
        LLVMPositionBuilderAtEnd(builder, even);
        let less = LLVMBuildSub(builder, mixed, constant(FACTOR), UNNAMED);
        LLVMBuildBr(builder, join);

        LLVMPositionBuilderAtEnd(builder, join);
        let chosen = LLVMBuildPhi(builder, integer, UNNAMED);
        LLVMAddIncoming(chosen, [more, less].as_mut_ptr(), [odd, even].as_mut_ptr(), 2);
        let result = match previous {
            Some(previous) => LLVMBuildCall2(builder, signature, previous, [chosen].as_mut_ptr(), 1, UNNAMED),
            None => chosen,
        };
        LLVMBuildRet(builder, result);
        LLVMDisposeBuilder(builder);
    }
}
