//! The JIT interface of GDB, which LLDB reads as well ("JIT Compilation Interface" in GDB's
//! manual).
//!
//! The process has a list of files in memory that describe code. A debugger sets a breakpoint on
//! `__jit_debug_register_code`, and looks at the list when that is called.

mod dwarf;
mod elf;
pub(crate) mod lines;

use std::arch::global_asm;
use std::cell::UnsafeCell;
use std::ptr;

use super::code::LinkedCode;
use crate::dump::{DumpSink, Form};
use crate::sync::{Arc, Mutex, lock};

/// Whether debuggers are told of compiled code.
///
/// ```
/// use jit_core::{Debugger, Jit};
///
/// let jit = Jit::builder().debugger(Debugger::On).build()?;
/// jit.define_closure("double", |n: i64| 2 * n)?;
/// // GDB shows it in backtraces from now on.
/// jit.lookup_address("double")?;
/// # Ok::<(), jit_core::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Debugger {
    /// They are not.
    #[default]
    Off,
    /// They are, if one is attached to the process when the JIT is built.
    IfAttached,
    /// They are: one that is attached later finds what there is.
    On,
}

impl Debugger {
    /// Whether to tell of code.
    pub(crate) fn is_wanted(self) -> bool {
        match self {
            Self::Off => false,
            Self::On => true,
            Self::IfAttached => {
                let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
                let tracer = status.lines().find_map(|line| line.strip_prefix("TracerPid:"));
                tracer.is_some_and(|tracer| tracer.trim() != "0")
            }
        }
    }
}

/// `struct jit_code_entry`.
#[repr(C)]
struct Entry {
    next: *mut Entry,
    previous: *mut Entry,
    file: *const u8,
    size: u64,
}

/// `struct jit_descriptor`.
#[repr(C)]
struct Descriptor {
    version: u32,
    action: u32,
    relevant: *mut Entry,
    first: *mut Entry,
}

const REGISTER: u32 = 1;
const UNREGISTER: u32 = 2;

unsafe extern "C" {
    static __jit_debug_descriptor: DescriptorCell;
    fn __jit_debug_register_code();
}

#[repr(transparent)]
struct DescriptorCell(UnsafeCell<Descriptor>);

// Weak: another JIT in the process may have them too, and a debugger looks at one list only.
global_asm!(
    ".pushsection .text.__jit_debug_register_code, \"ax\", @progbits",
    ".weak __jit_debug_register_code",
    ".type __jit_debug_register_code, @function",
    "__jit_debug_register_code:",
    ".cfi_startproc",
    "ret",
    ".cfi_endproc",
    ".size __jit_debug_register_code, . - __jit_debug_register_code",
    ".popsection",
    ".pushsection .data.__jit_debug_descriptor, \"aw\", @progbits",
    ".p2align 3",
    ".weak __jit_debug_descriptor",
    ".type __jit_debug_descriptor, @object",
    "__jit_debug_descriptor:",
    ".long 1",
    ".long 0",
    ".quad 0",
    ".quad 0",
    ".size __jit_debug_descriptor, . - __jit_debug_descriptor",
    ".popsection",
);

/// Guards the descriptor and every entry that is in its list.
static LIST: Mutex<()> = Mutex::new(());

/// A file that debuggers know. Dropped, it is withdrawn.
pub(crate) struct Registration {
    entry: *mut Entry,
    _file: Box<[u8]>,
}

// SAFETY: the entry is changed with `LIST` locked only.
unsafe impl Send for Registration {}
// SAFETY: nothing can be done with a shared one.
unsafe impl Sync for Registration {}

/// Tells debuggers of code, which is in memory.
pub(crate) fn register(code: &LinkedCode) -> Registration {
    let file = elf::describe(code).into_boxed_slice();
    let (start, size) = (file.as_ptr(), file.len() as u64);
    let entry = Box::into_raw(Box::new(Entry { next: ptr::null_mut(), previous: ptr::null_mut(), file: start, size }));
    let _locked = lock(&LIST);
    let descriptor = unsafe_descriptor();
    // SAFETY: the lock is held, so nobody else uses the list; its entries are alive.
    unsafe {
        (*entry).next = (*descriptor).first;
        if let Some(next) = (*descriptor).first.as_mut() {
            next.previous = entry;
        }
        (*descriptor).first = entry;
        announce(descriptor, REGISTER, entry);
    }
    Registration { entry, _file: file }
}

/// Shows a sink the object of each function.
///
/// # Safety
///
/// The code is in memory.
pub(crate) unsafe fn dump(sink: &dyn DumpSink, code: &LinkedCode) {
    for function in code.functions.iter().filter(|function| sink.wants(&function.name, Form::Object)) {
        let range = function.start..function.start + u64::from(function.size);
        // SAFETY: it is there, as the caller says, and code is not written to.
        let bytes = unsafe { std::slice::from_raw_parts(function.start as *const u8, function.size as usize) };
        let alone = LinkedCode {
            architecture: code.architecture,
            module: Arc::clone(&code.module),
            range,
            functions: vec![function.clone()],
            source: code.source.clone(),
            frames: None,
            notes: Vec::new(),
        };
        sink.dump(&function.name, Form::Object, &elf::contain(&alone, bytes));
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let _locked = lock(&LIST);
        let descriptor = unsafe_descriptor();
        // SAFETY: the lock is held; the entry is in the list, and freed once, when it no longer is.
        unsafe {
            let Entry { next, previous, .. } = *self.entry;
            if let Some(next) = next.as_mut() {
                next.previous = previous;
            }
            match previous.as_mut() {
                Some(previous) => previous.next = next,
                None => (*descriptor).first = next,
            }
            announce(descriptor, UNREGISTER, self.entry);
            drop(Box::from_raw(self.entry));
        }
    }
}

fn unsafe_descriptor() -> *mut Descriptor {
    // SAFETY: defined above, or by another JIT as the interface says.
    unsafe { __jit_debug_descriptor.0.get() }
}

/// # Safety
///
/// The list is locked and whole.
unsafe fn announce(descriptor: *mut Descriptor, action: u32, entry: *mut Entry) {
    // SAFETY: as the caller says. The debugger reads memory, so what it is to see is written
    // for good; the call does nothing.
    unsafe {
        (&raw mut (*descriptor).relevant).write_volatile(entry);
        (&raw mut (*descriptor).action).write_volatile(action);
        __jit_debug_register_code();
    }
}
