//! Exceptions of compiled code: what CLIF's `try_call` catches.
//!
//! An exception has a tag and a payload of one word. [`throw`] raises it; a `try_call` whose
//! handlers name the tag, or have a default, receives two values: the exception, and whether it
//! has been *caught* (1) or only passes (0). It is either [`delete`]d, if it was caught, or passed
//! on by [`resume`]. What passes is what is not ours, a Rust panic or a C++ exception: a default
//! handler may clean up, and must then resume. Frames between are unwound as for a panic.
//!
//! The functions are the host's; a frontend makes them known by
//! [`Jit::define_function`](crate::Jit::define_function). An exception that no compiled function
//! catches must not reach a host function that catches panics: Rust ends the process then.
//!
//! ```
//! use jit_core::Jit;
//! use jit_core::cranelift::codegen::ir::{
//!     AbiParam, BlockArg, BlockCall, ExceptionTableData, ExceptionTableItem, ExceptionTag, InstBuilder, types,
//! };
//! use jit_core::cranelift::frontend::{FunctionBuilder, FunctionBuilderContext};
//! use jit_core::cranelift::module::{Linkage, Module};
//! use jit_core::exception::{self, Exception};
//!
//! const TAG: u32 = 1;
//!
//! extern "C-unwind" fn positive(number: i64) -> i64 {
//!     if number < 0 {
//!         exception::throw(TAG, number.unsigned_abs());
//!     }
//!     number
//! }
//!
//! unsafe extern "C" fn caught(exception: *mut Exception) -> u64 {
//!     // SAFETY: a handler calls this, once, with what it has received.
//!     unsafe {
//!         let payload = exception::payload(exception);
//!         exception::delete(exception);
//!         payload
//!     }
//! }
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let jit = Jit::new()?;
//! jit.define_function("positive", positive as extern "C-unwind" fn(i64) -> i64)?;
//! jit.define_function("caught", caught as unsafe extern "C" fn(*mut Exception) -> u64)?;
//!
//! // `attempt(n) { try { positive(n) } catch (exception) { caught(exception) } }`
//! let mut module = jit.module("attempt");
//! let mut context = module.make_context();
//! context.func.signature.params.push(AbiParam::new(types::I64));
//! context.func.signature.returns.push(AbiParam::new(types::I64));
//! let signature = context.func.signature.clone();
//! let id = module.declare_function("attempt", Linkage::Export, &signature)?;
//! let positive = module.declare_function("positive", Linkage::Import, &signature)?;
//! let caught = module.declare_function("caught", Linkage::Import, &signature)?;
//! let mut frontend = FunctionBuilderContext::new();
//! let mut builder = FunctionBuilder::new(&mut context.func, &mut frontend);
//! let [entry, after, landing] = [(); 3].map(|()| builder.create_block());
//! builder.append_block_params_for_function_params(entry);
//! let result = builder.append_block_param(after, types::I64);
//! // The exception, and whether it is caught: always, if the handler is for a tag.
//! let exception = builder.append_block_param(landing, types::I64);
//! builder.append_block_param(landing, types::I64);
//!
//! builder.switch_to_block(entry);
//! let number = builder.block_params(entry)[0];
//! let positive = module.declare_func_in_func(positive, builder.func);
//! let signature = builder.func.dfg.ext_funcs[positive].signature;
//! let pool = &mut builder.func.dfg.value_lists;
//! let returned = BlockCall::new(after, [BlockArg::TryCallRet(0)], pool);
//! let handled = BlockCall::new(landing, [BlockArg::TryCallExn(0), BlockArg::TryCallExn(1)], pool);
//! let handlers = [ExceptionTableItem::Tag(ExceptionTag::from_u32(TAG), handled)];
//! let table = builder.func.dfg.exception_tables.push(ExceptionTableData::new(signature, returned, handlers));
//! builder.ins().try_call(positive, &[number], table);
//!
//! builder.switch_to_block(after);
//! builder.ins().return_(&[result]);
//! builder.switch_to_block(landing);
//! let caught = module.declare_func_in_func(caught, builder.func);
//! let call = builder.ins().call(caught, &[exception]);
//! let payload = builder.inst_results(call)[0];
//! builder.ins().return_(&[payload]);
//! builder.seal_all_blocks();
//! builder.finalize(module.target_config());
//! module.define_function(id, &mut context)?;
//! jit.add_module(module)?;
//!
//! let attempt = jit.lookup::<unsafe extern "C-unwind" fn(i64) -> i64>("attempt")?;
//! // SAFETY: the function calls the two above, as they are.
//! assert_eq!(unsafe { (attempt.call(3), attempt.call(-7)) }, (3, 7));
//! # Ok(())
//! # }
//! ```

use std::ffi::c_void;

use super::unwind::HANDLER_WORDS;

/// `_Unwind_Exception` of the Itanium C++ ABI, level I, as wide as any platform has it.
#[repr(C, align(16))]
struct Header {
    class: u64,
    cleanup: Option<unsafe extern "C" fn(reason: i32, exception: *mut Exception)>,
    private: [u64; 6],
}

/// An exception of compiled code.
#[repr(C)]
pub struct Exception {
    header: Header,
    tag: u32,
    payload: u64,
}

/// Whose exceptions ours are.
const CLASS: u64 = u64::from_be_bytes(*b"ORCANE\0\0");

const CONTINUE_UNWIND: i32 = 8;
const HANDLER_FOUND: i32 = 6;
const INSTALL_CONTEXT: i32 = 7;
const FATAL_PHASE_1: i32 = 3;

const SEARCH_PHASE: i32 = 1;
const FORCED: i32 = 8;

/// The registers, by DWARF's numbers, in which a handler expects its two values: rax and rdx, or
/// x0 and x1.
const PAYLOAD_REGISTERS: [i32; 2] = [0, 1];

unsafe extern "C-unwind" {
    fn _Unwind_RaiseException(exception: *mut Exception) -> i32;
    fn _Unwind_Resume(exception: *mut Exception) -> !;
    fn _Unwind_Resume_or_Rethrow(exception: *mut Exception) -> i32;
}

unsafe extern "C" {
    fn _Unwind_GetIP(context: *mut c_void) -> usize;
    fn _Unwind_SetIP(context: *mut c_void, address: usize);
    fn _Unwind_SetGR(context: *mut c_void, register: i32, value: usize);
    fn _Unwind_GetRegionStart(context: *mut c_void) -> usize;
    fn _Unwind_GetLanguageSpecificData(context: *mut c_void) -> *const u32;
}

/// Raises an exception. If nobody catches it, the process ends.
pub extern "C-unwind" fn throw(tag: u32, payload: u64) {
    let header = Header { class: CLASS, cleanup: Some(free), private: [0; 6] };
    let exception = Box::into_raw(Box::new(Exception { header, tag, payload }));
    // SAFETY: a whole exception, which belongs to who catches it.
    let reason = unsafe { _Unwind_RaiseException(exception) };
    // Only if it can't be raised.
    eprintln!("an exception with tag {tag} can't be raised or is caught by nobody (reason {reason})");
    std::process::abort();
}

/// What was thrown with the tag.
///
/// # Safety
///
/// A handler of that tag received the exception as caught, and it has not been deleted.
pub unsafe extern "C" fn payload(exception: *const Exception) -> u64 {
    // SAFETY: as the caller says.
    unsafe { (*exception).payload }
}

/// Ends an exception.
///
/// # Safety
///
/// It was received as caught, and is not used any more.
pub unsafe extern "C" fn delete(exception: *mut Exception) {
    // SAFETY: made by `throw`, and given up by its only owner.
    drop(unsafe { Box::from_raw(exception) });
}

unsafe extern "C" fn free(_reason: i32, exception: *mut Exception) {
    // SAFETY: the unwinder gives it up.
    unsafe { delete(exception) };
}

/// Passes an exception on.
///
/// # Safety
///
/// The arguments are the two that a handler received, and the exception is not used any more.
pub unsafe extern "C-unwind" fn resume(exception: *mut Exception, caught: u64) {
    // SAFETY: as the caller says. What was caught begins anew: its handler is another now.
    unsafe {
        if caught == 0 {
            _Unwind_Resume(exception);
        }
        _Unwind_Resume_or_Rethrow(exception);
    }
    eprintln!("an exception that was passed on is caught by nobody");
    std::process::abort();
}

/// Where our routine is, for tables.
pub(crate) fn personality() -> u64 {
    find_handler as *const () as u64
}

/// Says whether a frame handles an exception, and goes there: the personality routine of functions
/// with handlers (Itanium C++ ABI, 2.5.2).
unsafe extern "C" fn find_handler(
    _version: i32,
    actions: i32,
    class: u64,
    exception: *mut Exception,
    context: *mut c_void,
) -> i32 {
    // SAFETY: the unwinder calls this with the context of one of our functions, whose table is
    // registered and stays as long as the function.
    let (table, start, offset) = unsafe {
        let start = _Unwind_GetRegionStart(context);
        (_Unwind_GetLanguageSpecificData(context), start, _Unwind_GetIP(context).wrapping_sub(start))
    };
    if table.is_null() {
        return CONTINUE_UNWIND;
    }
    let is_ours = class == CLASS && actions & FORCED == 0;
    // SAFETY: of our class, so it was made by `throw`.
    let tag = if is_ours { Some(unsafe { (*exception).tag }) } else { None };
    // SAFETY: a table is a word, its length and as many handlers.
    let handlers = unsafe {
        let count = *table.add(1) as usize;
        std::slice::from_raw_parts(table.add(2).cast::<[u32; HANDLER_WORDS]>(), count)
    };
    let handler = handlers.iter().filter(|handler| handler[0] as usize == offset).find(|handler| match handler[1] {
        DEFAULT => true,
        of => tag == Some(handler[2]) && of == TAGGED,
    });
    let Some([_, _, _, target]) = handler else { return CONTINUE_UNWIND };
    if actions & SEARCH_PHASE != 0 {
        return if is_ours { HANDLER_FOUND } else { CONTINUE_UNWIND };
    }
    let Some(landing) = start.checked_add(*target as usize) else { return FATAL_PHASE_1 };
    // SAFETY: the context is the unwinder's; Cranelift's handlers take two words.
    unsafe {
        _Unwind_SetGR(context, PAYLOAD_REGISTERS[0], exception.expose_provenance());
        _Unwind_SetGR(context, PAYLOAD_REGISTERS[1], usize::from(is_ours));
        _Unwind_SetIP(context, landing);
    }
    INSTALL_CONTEXT
}

/// A handler of exceptions with a tag.
pub(crate) const TAGGED: u32 = 0;
/// A handler of every exception.
pub(crate) const DEFAULT: u32 = 1;
