//! Typed functions: handles to compiled ones, and host functions for compiled code to call.

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use cranelift_codegen::ir::{self, AbiParam, Signature, types};
use cranelift_codegen::isa::CallConv;
use jit_linker::memory::FinalizedAllocation;

use crate::platform::trap::{self, CallError, Registers};
use crate::session::ExecutionSession;

mod sealed {
    pub trait Sealed {}
}

/// A type that is passed in one register or stack slot of the C calling convention.
pub trait Scalar: sealed::Sealed + Copy + 'static {
    /// How CLIF describes a parameter or result of this type.
    fn param() -> AbiParam;

    /// Whether it is passed in a register for floating-point numbers.
    #[doc(hidden)]
    const IS_FLOAT: bool = false;

    /// What is in its register.
    #[doc(hidden)]
    fn to_register(self) -> u64;

    /// The value of a register.
    #[doc(hidden)]
    fn from_register(bits: u64) -> Self;
}

macro_rules! scalar {
    ($($type:ty => $param:expr),* $(,)?) => {$(
        impl sealed::Sealed for $type {}
        impl Scalar for $type {
            fn param() -> AbiParam {
                $param
            }

            fn to_register(self) -> u64 {
                self as u64
            }

            fn from_register(bits: u64) -> Self {
                bits as Self
            }
        }
    )*};
}

macro_rules! float {
    ($($type:ident, $bits:ident, $param:expr);*) => {$(
        impl sealed::Sealed for $type {}
        impl Scalar for $type {
            const IS_FLOAT: bool = true;

            fn param() -> AbiParam {
                $param
            }

            fn to_register(self) -> u64 {
                u64::from(self.to_bits())
            }

            fn from_register(bits: u64) -> Self {
                Self::from_bits(bits as $bits)
            }
        }
    )*};
}

scalar! {
    u8 => AbiParam::new(types::I8).uext(),
    i8 => AbiParam::new(types::I8).sext(),
    u16 => AbiParam::new(types::I16).uext(),
    i16 => AbiParam::new(types::I16).sext(),
    u32 => AbiParam::new(types::I32),
    i32 => AbiParam::new(types::I32),
    u64 => AbiParam::new(types::I64),
    i64 => AbiParam::new(types::I64),
    usize => AbiParam::new(pointer()),
    isize => AbiParam::new(pointer()),
}

float! {
    f32, u32, AbiParam::new(types::F32);
    f64, u64, AbiParam::new(types::F64)
}

impl<T: 'static> sealed::Sealed for *const T {}
impl<T: 'static> Scalar for *const T {
    fn param() -> AbiParam {
        AbiParam::new(pointer())
    }

    fn to_register(self) -> u64 {
        self.expose_provenance() as u64
    }

    fn from_register(bits: u64) -> Self {
        std::ptr::with_exposed_provenance(bits as usize)
    }
}

impl<T: 'static> sealed::Sealed for *mut T {}
impl<T: 'static> Scalar for *mut T {
    fn param() -> AbiParam {
        AbiParam::new(pointer())
    }

    fn to_register(self) -> u64 {
        self.expose_provenance() as u64
    }

    fn from_register(bits: u64) -> Self {
        std::ptr::with_exposed_provenance_mut(bits as usize)
    }
}

fn pointer() -> ir::Type {
    if cfg!(target_pointer_width = "64") { types::I64 } else { types::I32 }
}

/// What a function of the C calling convention returns: nothing or a [`Scalar`].
pub trait Returned: 'static {
    /// How CLIF describes it.
    fn params() -> Vec<AbiParam>;

    /// Takes it from the registers that a function has left.
    #[doc(hidden)]
    fn from_registers(integer: u64, float: u64) -> Self;
}

impl Returned for () {
    fn params() -> Vec<AbiParam> {
        Vec::new()
    }

    fn from_registers(_: u64, _: u64) -> Self {}
}

impl<T: Scalar> Returned for T {
    fn params() -> Vec<AbiParam> {
        vec![T::param()]
    }

    fn from_registers(integer: u64, float: u64) -> Self {
        T::from_register(if T::IS_FLOAT { float } else { integer })
    }
}

/// A function pointer of the C calling convention, `unsafe` or not.
pub trait FnPointer: sealed::Sealed + Copy + 'static {
    /// Its signature, with the calling convention that is C's on the target.
    fn signature(convention: CallConv) -> Signature;

    /// Where the function is.
    fn address(self) -> u64;

    /// A pointer to the function at `address`.
    ///
    /// # Safety
    ///
    /// A function of this type is there.
    unsafe fn at(address: u64) -> Self;
}

/// A host function with captured state: `Fn(A, ...) -> R`, of the types that [`Scalar`] covers,
/// callable from any thread. `Args` is the tuple of its arguments.
pub trait HostClosure<Args>: Send + Sync + 'static {
    /// Its signature, with the calling convention that is C's on the target.
    fn signature(convention: CallConv) -> Signature;

    /// A function that takes the closure's address before its arguments.
    fn entry() -> u64;
}

/// A handle to a compiled function. While it lives, the body it was looked up as stays in memory
/// and can be called, whatever becomes of its name.
///
/// ```
/// let jit = jit_core::Jit::new()?;
/// let tracker = jit.define_closure("next", |n: i32| n + 1)?;
/// let next = jit.lookup::<unsafe extern "C" fn(i32) -> i32>("next")?;
/// // SAFETY: the session has compared the types, and the closure may be called with what is less than the greatest number.
/// assert_eq!(unsafe { next.call(41) }, 42);
/// assert!(jit.lookup::<unsafe extern "C" fn(i64) -> i64>("next").is_err());
/// # drop(tracker);
/// # Ok::<(), jit_core::Error>(())
/// ```
pub struct JitFn<F> {
    address: u64,
    session: ExecutionSession,
    /// `None` for a function that no memory of ours holds.
    _code: Option<Arc<FinalizedAllocation>>,
    traps: bool,
    function: PhantomData<F>,
}

impl<F: FnPointer> JitFn<F> {
    pub(crate) fn new(
        address: u64,
        session: ExecutionSession,
        code: Option<Arc<FinalizedAllocation>>,
        traps: bool,
    ) -> Self {
        Self { address, session, _code: code, traps, function: PhantomData }
    }

    /// Where the body is.
    #[must_use]
    pub fn address(&self) -> u64 {
        self.address
    }

    /// The bare pointer.
    ///
    /// # Safety
    ///
    /// Where the session does not know the function's signature, it must be `F`'s. The pointer
    /// must not be called when the handle is gone, nor while what the function calls is being
    /// removed: no execution scope is open then. If `F` is safe to call, so must the function be.
    #[must_use]
    pub unsafe fn pointer(&self) -> F {
        // SAFETY: as the caller says.
        unsafe { F::at(self.address) }
    }
}

impl<F> fmt::Debug for JitFn<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JitFn").field("address", &format_args!("{:#x}", self.address)).finish_non_exhaustive()
    }
}

impl<F> Clone for JitFn<F> {
    fn clone(&self) -> Self {
        let Self { address, traps, .. } = *self;
        Self { address, session: self.session.clone(), _code: self._code.clone(), traps, function: PhantomData }
    }
}

macro_rules! pointer {
    ([$($qualifier:tt)*] ($($arg:ident $value:ident)*)) => {
        impl<R: Returned, $($arg: Scalar),*> sealed::Sealed for $($qualifier)* fn($($arg),*) -> R {}

        impl<R: Returned, $($arg: Scalar),*> FnPointer for $($qualifier)* fn($($arg),*) -> R {
            fn signature(convention: CallConv) -> Signature {
                Signature { params: vec![$($arg::param()),*], returns: R::params(), call_conv: convention }
            }

            fn address(self) -> u64 {
                self as *const () as u64
            }

            unsafe fn at(address: u64) -> Self {
                // SAFETY: a function pointer is an address; the caller says what is there.
                unsafe { std::mem::transmute::<*const (), Self>(address as *const ()) }
            }
        }

        impl<R: Returned, $($arg: Scalar),*> JitFn<$($qualifier)* fn($($arg),*) -> R> {
            /// Calls the function, inside an execution scope: what is removed meanwhile stays in
            /// memory until the call has returned.
            ///
            /// # Safety
            ///
            /// The function's code must be safe to run with these arguments, and where the session
            /// does not know its signature, that must be the handle's.
            #[allow(clippy::too_many_arguments, reason = "as many as the function has")]
            pub unsafe fn call(&self $(, $value: $arg)*) -> R {
                let _scope = self.session.enter();
                #[allow(unused_unsafe, reason = "half of the pointer types are safe to call")]
                // SAFETY: the handle is alive and a scope open; the rest is as the caller says.
                unsafe { self.pointer()($($value),*) }
            }

            /// As [`call`](Self::call); a trap is an error. It leads out of compiled code only: if
            /// there is a host function between this call and the trap, which has not called
            /// back by `try_call` itself, the trap is not caught.
            ///
            /// # Errors
            ///
            /// When the function trapped, or the JIT was built without
            /// [`traps`](crate::JitBuilder::traps) and nothing was called.
            ///
            /// # Safety
            ///
            /// As [`call`](Self::call).
            #[allow(clippy::too_many_arguments, reason = "as many as the function has")]
            pub unsafe fn try_call(&self $(, $value: $arg)*) -> Result<R, CallError> {
                if !self.traps {
                    return Err(CallError::NotEnabled);
                }
                let _scope = self.session.enter();
                let mut registers = Registers::default();
                $(registers.push($value.to_register(), $arg::IS_FLOAT);)*
                // SAFETY: the handle is alive and a scope open; the arguments are those of the
                // function's type; the rest is as the caller says.
                unsafe { trap::call(self.address, &mut registers)? };
                Ok(R::from_registers(registers.result(false), registers.result(true)))
            }
        }
    };
}

macro_rules! arity {
    ($($arg:ident $value:ident)*) => {
        pointer!([extern "C"] ($($arg $value)*));
        pointer!([unsafe extern "C"] ($($arg $value)*));
        pointer!([extern "C-unwind"] ($($arg $value)*));
        pointer!([unsafe extern "C-unwind"] ($($arg $value)*));

        impl<Closure, R: Returned, $($arg: Scalar),*> HostClosure<($($arg,)*)> for Closure
        where
            Closure: Fn($($arg),*) -> R + Send + Sync + 'static,
        {
            fn signature(convention: CallConv) -> Signature {
                Signature { params: vec![$($arg::param()),*], returns: R::params(), call_conv: convention }
            }

            fn entry() -> u64 {
                /// # Safety
                ///
                /// `closure` points to a live closure of the type.
                unsafe extern "C" fn enter<Closure: Fn($($arg),*) -> R, R, $($arg),*>(
                    closure: *const Closure,
                    $($value: $arg),*
                ) -> R {
                    // SAFETY: as the caller says.
                    unsafe { (*closure)($($value),*) }
                }
                enter::<Closure, R, $($arg),*> as *const () as u64
            }
        }
    };
}

arity!();
arity!(A a);
arity!(A a B b);
arity!(A a B b C c);
arity!(A a B b C c D d);
arity!(A a B b C c D d E e);
arity!(A a B b C c D d E e G g);
arity!(A a B b C c D d E e G g H h);
arity!(A a B b C c D d E e G g H h I i);
