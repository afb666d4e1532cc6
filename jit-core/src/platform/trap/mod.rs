//! Traps of compiled code as errors of the call that ran into them.
//!
//! A call that catches traps is a `Scope`: it enters compiled code directly (`enter`), so that
//! between it and the trap there are frames of compiled code only. Where a host function is in
//! between, its frame would be skipped: then the trap is not caught, and whatever handler was
//! there before gets the signal.

mod enter;
mod places;
mod signal;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::ptr;
use std::sync::{PoisonError, RwLock};

use super::code::LinkedCode;
use crate::sync::Arc;
pub(crate) use enter::Registers;

/// Why compiled code can't go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum TrapKind {
    /// An integer division by zero.
    DivisionByZero,
    /// The quotient of the smallest integer and -1, or another overflow that traps.
    IntegerOverflow,
    /// A number without an integer, or of too large a one.
    BadConversionToInteger,
    /// An access beyond a heap, where the frontend says so.
    HeapOutOfBounds,
    /// The stack is full, or a frontend's own check says so.
    StackOverflow,
    /// A trap code of the frontend's.
    User(u8),
    /// An access of memory that is not there, where no trap was expected.
    MemoryFault {
        /// What was accessed, as far as the machine tells.
        address: u64,
    },
    /// An instruction that can't be executed, where no trap was expected.
    IllegalInstruction,
}

/// A trap of compiled code.
///
/// ```
/// # use jit_core::cranelift::codegen::ir::{AbiParam, InstBuilder, types};
/// # use jit_core::cranelift::frontend::{FunctionBuilder, FunctionBuilderContext};
/// # use jit_core::cranelift::module::{Linkage, Module};
/// use jit_core::{CallError, Jit, TrapKind};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let jit = Jit::builder().traps(true).build()?;
/// // `give_up` executes a trap instruction with the code 7.
/// # let mut module = jit.module("example");
/// # let mut context = module.make_context();
/// # let id = module.declare_function("give_up", Linkage::Export, &context.func.signature)?;
/// # let mut frontend = FunctionBuilderContext::new();
/// # let mut builder = FunctionBuilder::new(&mut context.func, &mut frontend);
/// # let block = builder.create_block();
/// # builder.switch_to_block(block);
/// # builder.seal_block(block);
/// # builder.ins().trap(jit_core::cranelift::codegen::ir::TrapCode::unwrap_user(7));
/// # builder.finalize(module.target_config());
/// # module.define_function(id, &mut context)?;
/// # jit.add_module(module)?;
/// let give_up = jit.lookup::<unsafe extern "C" fn()>("give_up")?;
/// // SAFETY: the function only traps, which leaves nothing behind.
/// let Err(CallError::Trap(trap)) = (unsafe { give_up.try_call() }) else { panic!("it traps") };
/// assert_eq!((trap.kind, trap.function.as_deref()), (TrapKind::User(7), Some("give_up")));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Trap {
    /// Why.
    pub kind: TrapKind,
    /// The function, if it is known.
    pub function: Option<String>,
    /// Where in the source, if the compiler was told.
    pub location: Option<SourceLocation>,
    /// The instruction's address.
    pub address: u64,
}

/// A place in a source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceLocation {
    /// What the frontend gave the compiler.
    pub bits: u32,
    /// File, line and column, if the module has a [`SourceText`](super::code::SourceText).
    pub position: Option<(PathBuf, u32, u32)>,
}

impl fmt::Display for TrapKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DivisionByZero => write!(f, "integer division by zero"),
            Self::IntegerOverflow => write!(f, "integer overflow"),
            Self::BadConversionToInteger => write!(f, "bad conversion to integer"),
            Self::HeapOutOfBounds => write!(f, "heap access out of bounds"),
            Self::StackOverflow => write!(f, "stack overflow"),
            Self::User(code) => write!(f, "trap with code {code}"),
            Self::MemoryFault { address } => write!(f, "memory fault at {address:#x}"),
            Self::IllegalInstruction => write!(f, "illegal instruction"),
        }
    }
}

impl fmt::Display for Trap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.kind)?;
        match &self.function {
            Some(function) => write!(f, " in '{function}'")?,
            None => write!(f, " at {:#x}", self.address)?,
        }
        match &self.location {
            Some(SourceLocation { position: Some((path, line, column)), .. }) => {
                write!(f, " ({}:{line}:{column})", path.display())
            }
            Some(SourceLocation { bits, .. }) => write!(f, " (source location {bits:#x})"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Trap {}

/// Why a call that catches traps has no result.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CallError {
    /// The function trapped.
    #[error(transparent)]
    Trap(#[from] Trap),
    /// The JIT was not built to catch traps: the function has not been called.
    #[error("this JIT was built without `traps`")]
    NotEnabled,
    /// The system refused the stack that signals are handled on: the function has not been called.
    #[error("no stack for signals: {0}")]
    SignalStack(Arc<io::Error>),
}

/// What the signal handler saw.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
struct Fault {
    signal: i32,
    pc: u64,
    address: u64,
}

/// A call that catches traps. `frame` comes first: machine code writes it.
#[repr(C)]
pub(crate) struct Scope {
    /// The frame of the routine that has entered compiled code.
    frame: u64,
    fault: Fault,
}

thread_local! {
    static INNERMOST: Cell<*mut Scope> = const { Cell::new(ptr::null_mut()) };
    static SIGNAL_STACK: Cell<Option<SignalStack>> = const { Cell::new(None) };
}

/// The thread's innermost scope.
fn innermost() -> Option<*mut Scope> {
    // Without a destructor, it can be used as long as the thread runs.
    let scope = INNERMOST.get();
    (!scope.is_null()).then_some(scope)
}

/// Makes the outer scope the innermost again, also when a panic passes.
struct Outer(*mut Scope);

impl Drop for Outer {
    fn drop(&mut self) {
        INNERMOST.set(self.0);
    }
}

/// Catches traps from now on.
pub(crate) fn enable() -> io::Result<()> {
    signal::install()
}

/// Calls a function with arguments in registers, where its results are left.
///
/// # Safety
///
/// As for calling `function`, of which `registers` holds the arguments. Its code is registered and
/// keeps frame pointers.
pub(crate) unsafe fn call(function: u64, registers: &mut Registers) -> Result<(), CallError> {
    SignalStack::ensure().map_err(|error| CallError::SignalStack(Arc::new(error)))?;
    let mut scope = Scope { frame: 0, fault: Fault::default() };
    let scope = &raw mut scope;
    let outer = Outer(INNERMOST.replace(scope));
    // SAFETY: as the caller says; the scope stays until after the call.
    let trapped = unsafe { enter::orcane_enter(registers, function, scope) } != 0;
    drop(outer);
    if !trapped {
        return Ok(());
    }
    // SAFETY: written by the handler on this thread, which has returned.
    let fault = unsafe { (*scope).fault };
    Err(describe(fault).into())
}

/// The functions whose traps are caught, by where their code begins.
static CODE: RwLock<BTreeMap<u64, Arc<LinkedCode>>> = RwLock::new(BTreeMap::new());

/// Code whose traps are caught. Dropped, they are not any more.
#[derive(Debug)]
pub(crate) struct Registration(Arc<LinkedCode>);

pub(crate) fn register(code: &Arc<LinkedCode>) -> Registration {
    CODE.write().unwrap_or_else(PoisonError::into_inner).insert(code.range.start, Arc::clone(code));
    places::PLACES.add(code.range.clone());
    Registration(Arc::clone(code))
}

impl Drop for Registration {
    fn drop(&mut self) {
        places::PLACES.remove(self.0.range.clone());
        CODE.write().unwrap_or_else(PoisonError::into_inner).remove(&self.0.range.start);
    }
}

fn describe(fault: Fault) -> Trap {
    let Fault { signal, pc, address } = fault;
    let code = {
        let all = CODE.read().unwrap_or_else(PoisonError::into_inner);
        all.range(..=pc).next_back().map(|(_, code)| Arc::clone(code))
    };
    let function = code.as_ref().and_then(|code| code.function_at(pc));
    let kind = match function.and_then(|function| function.trap_at(pc)) {
        _ if is_stack_fault(signal, address) => TrapKind::StackOverflow,
        Some(raw) => kind_of(raw),
        None if signal == libc::SIGFPE => TrapKind::DivisionByZero,
        None if signal == libc::SIGILL => TrapKind::IllegalInstruction,
        None => TrapKind::MemoryFault { address },
    };
    let location = function.and_then(|function| function.location_at(pc)).map(|bits| {
        let source = code.as_ref().and_then(|code| code.source.as_ref());
        let position = source.map(|source| {
            let (line, column) = source.position(bits);
            (source.path().to_owned(), line, column)
        });
        SourceLocation { bits, position }
    });
    Trap { kind, function: function.map(|function| function.name.to_string()), location, address: pc }
}

/// What a raw trap code of Cranelift's means.
#[cfg(feature = "cranelift")]
fn kind_of(raw: u8) -> TrapKind {
    use cranelift_codegen::ir::TrapCode;
    let Some(code) = std::num::NonZeroU8::new(raw).map(TrapCode::from_raw) else { return TrapKind::User(raw) };
    match code {
        TrapCode::STACK_OVERFLOW => TrapKind::StackOverflow,
        TrapCode::INTEGER_OVERFLOW => TrapKind::IntegerOverflow,
        TrapCode::HEAP_OUT_OF_BOUNDS => TrapKind::HeapOutOfBounds,
        TrapCode::INTEGER_DIVISION_BY_ZERO => TrapKind::DivisionByZero,
        TrapCode::BAD_CONVERSION_TO_INTEGER => TrapKind::BadConversionToInteger,
        _ => TrapKind::User(raw),
    }
}

/// Whether an access was to where this thread's stack ends.
fn is_stack_fault(signal: i32, address: u64) -> bool {
    /// A guard page, and what a frame of many pages may have stepped over; the system keeps as
    /// much free below the main thread's stack.
    const BELOW: u64 = 1 << 20;
    /// Guard pages may be within the bounds that the system tells.
    const ABOVE: u64 = 64 << 10;
    if signal != libc::SIGSEGV && signal != libc::SIGBUS {
        return false;
    }
    stack_end().is_some_and(|end| address >= end.saturating_sub(BELOW) && address < end + ABOVE)
}

/// The lowest address of this thread's stack.
fn stack_end() -> Option<u64> {
    // SAFETY: zeros are storage for attributes, which `pthread_getattr_np` initialises if it
    // succeeds, and which are destroyed once then.
    unsafe {
        let mut attributes: libc::pthread_attr_t = std::mem::zeroed();
        if libc::pthread_getattr_np(libc::pthread_self(), &mut attributes) != 0 {
            return None;
        }
        let (mut start, mut size) = (ptr::null_mut(), 0);
        let result = libc::pthread_attr_getstack(&attributes, &mut start, &mut size);
        libc::pthread_attr_destroy(&mut attributes);
        (result == 0).then_some(start as u64)
    }
}

/// An alternate stack for signals of a thread that had none: on its own, there is no room left
/// when it overflows.
struct SignalStack {
    /// `None` where somebody else has provided one.
    mapping: Option<*mut libc::c_void>,
}

impl SignalStack {
    const SIZE: usize = 64 << 10;

    /// Gives the thread one.
    fn ensure() -> io::Result<()> {
        let known = SIGNAL_STACK.try_with(|stack| {
            let known = stack.take();
            let is_known = known.is_some();
            stack.set(known);
            is_known
        });
        match known {
            Ok(true) => return Ok(()),
            Ok(false) => {}
            // The thread is ending: what it has must do.
            Err(_) => return Ok(()),
        }
        let stack = Self::install()?;
        SIGNAL_STACK.set(Some(stack));
        Ok(())
    }

    fn install() -> io::Result<Self> {
        // SAFETY: zeros are valid, and the call only asks.
        let mut present: libc::stack_t = unsafe { std::mem::zeroed() };
        // SAFETY: as above.
        if unsafe { libc::sigaltstack(ptr::null(), &mut present) } == 0 && present.ss_flags & libc::SS_DISABLE == 0 {
            return Ok(Self { mapping: None });
        }
        // SAFETY: an anonymous mapping at no address in particular.
        let start = unsafe {
            let protection = libc::PROT_READ | libc::PROT_WRITE;
            libc::mmap(ptr::null_mut(), Self::SIZE, protection, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0)
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let stack = Self { mapping: Some(start) };
        let new = libc::stack_t { ss_sp: start, ss_flags: 0, ss_size: Self::SIZE };
        // SAFETY: the mapping stays until it is no stack any more.
        if unsafe { libc::sigaltstack(&new, ptr::null_mut()) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(stack)
    }
}

impl Drop for SignalStack {
    fn drop(&mut self) {
        let Some(start) = self.mapping else { return };
        // SAFETY: mapped in `install`, with this size. If it is the thread's stack for signals
        // still, it is not after the first call.
        unsafe {
            let mut present: libc::stack_t = std::mem::zeroed();
            if libc::sigaltstack(ptr::null(), &mut present) == 0 && present.ss_sp == start {
                let none = libc::stack_t { ss_sp: ptr::null_mut(), ss_flags: libc::SS_DISABLE, ss_size: 0 };
                libc::sigaltstack(&none, ptr::null_mut());
            }
            libc::munmap(start, Self::SIZE);
        }
    }
}
