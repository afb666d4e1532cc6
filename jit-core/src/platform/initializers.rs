//! Initializers and finalizers of linked objects: which there are, which have run, and what JIT'd
//! code has asked to be called at exit.
//!
//! A dylib is a component as the C++ ABI means it ("DSO object destruction API"): it has a handle
//! of its own, with which its code registers functions that are called when the dylib is closed
//! or the process exits. Functions are called with no lock held.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::ffi::{CString, c_char, c_int, c_void};
use std::ops::Range;
use std::ptr::null;
use std::sync::{Arc, Condvar, LazyLock, Mutex, Once, PoisonError, Weak};
use std::thread::{self, ThreadId};

use jit_linker::SymbolName;
use rustc_hash::FxHashMap;

use crate::sync::lock;

/// Functions that an object wants called, in its own order.
#[derive(Clone, Debug, Default)]
pub(crate) struct Functions {
    /// With their priorities: lower ones are called earlier.
    pub(crate) initializers: Vec<(u32, u64)>,
    /// With their priorities, in the order they are called.
    pub(crate) finalizers: Vec<(u32, u64)>,
}

/// A function registered with `__cxa_atexit`.
#[derive(Clone, Copy, Debug)]
struct Handler {
    function: u64,
    argument: u64,
}

#[derive(Debug, Default)]
struct Component {
    /// What has to be looked up to have an object with initializers linked.
    expected: Vec<SymbolName>,
    /// Objects that are linked and not initialized, by the order in which they were added.
    linked: BTreeMap<u64, Functions>,
    /// Finalizers of initialized objects, in the order they are called.
    finalizers: Vec<u64>,
    handlers: Vec<Handler>,
    running: Option<ThreadId>,
}

/// Arguments as the C library has them: an array of pointers that ends with a null.
#[derive(Debug)]
struct Arguments {
    strings: Vec<CString>,
    pointers: Vec<usize>,
}

#[derive(Debug, Default)]
struct State {
    components: FxHashMap<String, Component>,
    /// Names of components that have been initialized, in that order.
    initialized: Vec<String>,
    /// The last are in use; initializers may have kept the others.
    arguments: Vec<Arc<Arguments>>,
    handles: Vec<u64>,
    next: u64,
}

/// The initializers and finalizers of a session's dylibs, which go by their names.
#[derive(Debug, Default)]
pub(crate) struct Initializers {
    state: Mutex<State>,
    ended: Condvar,
}

/// A component of a program, by name.
type Named = (Weak<Initializers>, String);

/// Which component a handle is of.
static HANDLES: LazyLock<Mutex<FxHashMap<u64, Named>>> = LazyLock::new(Mutex::default);

impl Initializers {
    /// The arguments that initializers are called with, as those of `main`.
    pub(crate) fn set_arguments(&self, arguments: Vec<CString>) {
        let mut pointers: Vec<_> = arguments.iter().map(|argument| argument.as_ptr() as usize).collect();
        pointers.push(0);
        lock(&self.state).arguments.push(Arc::new(Arguments { strings: arguments, pointers }));
    }

    /// Code of a component calls it by `handle`, an address of its own (`__dso_handle`).
    pub(crate) fn bind(self: &Arc<Self>, component: &str, handle: u64) {
        lock(&self.state).handles.push(handle);
        lock(&HANDLES).insert(handle, (Arc::downgrade(self), component.to_owned()));
    }

    /// The number of an object that is added now.
    pub(crate) fn number(&self) -> u64 {
        let mut state = lock(&self.state);
        state.next += 1;
        state.next
    }

    /// An object has initializers; looking `symbol` up links it.
    pub(crate) fn expect(&self, component: &str, symbol: SymbolName) {
        lock(&self.state).components.entry(component.to_owned()).or_default().expected.push(symbol);
    }

    /// An object is linked: its functions are called at the next [`run`](Self::run).
    pub(crate) fn linked(&self, component: &str, number: u64, functions: Functions) {
        lock(&self.state).components.entry(component.to_owned()).or_default().linked.insert(number, functions);
    }

    /// Objects whose code is in `code` are gone: nothing there is called any more.
    pub(crate) fn forget(&self, component: &str, number: u64, code: &Range<u64>) {
        if let Some(entry) = lock(&self.state).components.get_mut(component) {
            entry.linked.remove(&number);
            entry.finalizers.retain(|function| !code.contains(function));
            entry.handlers.retain(|handler| !code.contains(&handler.function));
        }
    }

    /// What has to be looked up before [`run`](Self::run), once.
    pub(crate) fn take_expected(&self, component: &str) -> Vec<SymbolName> {
        let mut state = lock(&self.state);
        state.components.get_mut(component).map(|entry| std::mem::take(&mut entry.expected)).unwrap_or_default()
    }

    /// Whether a lookup has more to do before it answers: to link, to run, or to wait for another
    /// thread that does.
    pub(crate) fn is_due(&self, component: &str) -> bool {
        let state = lock(&self.state);
        state.components.get(component).is_some_and(|entry| {
            let elsewhere = entry.running.is_some_and(|thread| thread != thread::current().id());
            elsewhere || !entry.expected.is_empty() || !entry.linked.is_empty()
        })
    }

    /// Calls the initializers of what is linked, by priority and then in the order the objects
    /// were added. Another thread's run is waited for; the thread that runs them passes, with `false`.
    pub(crate) fn run(&self, component: &str) -> bool {
        let this = thread::current().id();
        let mut state = lock(&self.state);
        let linked = loop {
            let Some(entry) = state.components.get_mut(component) else { return true };
            match entry.running {
                Some(thread) if thread == this => return false,
                Some(_) => state = self.ended.wait(state).unwrap_or_else(PoisonError::into_inner),
                None if entry.linked.is_empty() => return true,
                None => {
                    entry.running = Some(this);
                    break std::mem::take(&mut entry.linked);
                }
            }
        };
        if !state.initialized.iter().any(|known| known == component) {
            state.initialized.push(component.to_owned());
        }
        let arguments = state.arguments.last().cloned();
        drop(state);
        let _ended = Ended { initializers: self, component };

        let mut initializers: Vec<_> = linked.values().flat_map(|functions| &functions.initializers).copied().collect();
        initializers.sort_by_key(|(priority, _)| *priority);
        let none = [null::<c_char>()];
        let (count, pointers) = match &arguments {
            Some(arguments) => (arguments.strings.len() as i32, arguments.pointers.as_ptr().cast()),
            None => (0, none.as_ptr()),
        };
        // What is initialized later is finalized earlier.
        let mut finalizers: Vec<_> =
            linked.values().rev().flat_map(|functions| &functions.finalizers).copied().collect();
        finalizers.sort_by_key(|(priority, _)| Reverse(*priority));
        if let Some(entry) = lock(&self.state).components.get_mut(component) {
            entry.finalizers.splice(0..0, finalizers.iter().map(|(_, function)| *function));
        }
        for (_, function) in initializers {
            // SAFETY: an initializer of code that is linked and whole; the arguments outlive it.
            unsafe { call_initializer(function, count, pointers) };
        }
        true
    }

    /// Calls what was registered for exit, the last first, and then the finalizers, of one
    /// component or of all: those initialized last first.
    pub(crate) fn finalize(&self, component: Option<&str>) {
        while let Some(component) = self.take_initialized(component) {
            while let Some(handler) = self.take_handler(&component) {
                // SAFETY: registered by code that is there still, for a call with this argument.
                unsafe { call_handler(handler) };
            }
            let finalizers =
                lock(&self.state).components.get_mut(&component).map(|entry| std::mem::take(&mut entry.finalizers));
            for function in finalizers.unwrap_or_default() {
                // SAFETY: a finalizer of code that is there still.
                unsafe { call_finalizer(function) };
            }
        }
    }

    fn take_initialized(&self, component: Option<&str>) -> Option<String> {
        let mut state = lock(&self.state);
        match component {
            None => state.initialized.pop().or_else(|| {
                // Handlers of what had no initializers.
                let mut components = state.components.iter();
                components.find(|(_, entry)| !entry.handlers.is_empty()).map(|(name, _)| name.clone())
            }),
            Some(name) => {
                let registered = state.components.get(name).is_some_and(|entry| !entry.handlers.is_empty());
                let position = state.initialized.iter().position(|known| known == name);
                position.map(|position| state.initialized.remove(position)).or(registered.then(|| name.to_owned()))
            }
        }
    }

    /// A handler may register others, which are called next.
    fn take_handler(&self, component: &str) -> Option<Handler> {
        lock(&self.state).components.get_mut(component)?.handlers.pop()
    }

    fn register(&self, component: &str, handler: Handler) {
        lock(&self.state).components.entry(component.to_owned()).or_default().handlers.push(handler);
    }
}

/// Ends a run, also one that panics.
struct Ended<'a> {
    initializers: &'a Initializers,
    component: &'a str,
}

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        if let Some(entry) = lock(&self.initializers.state).components.get_mut(self.component) {
            entry.running = None;
        }
        self.initializers.ended.notify_all();
    }
}

impl Drop for Initializers {
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        let mut handles = lock(&HANDLES);
        for handle in &state.handles {
            handles.remove(handle);
        }
    }
}

/// # Safety
///
/// `function` is an initializer that can be called, and `arguments` has `count` and a null.
unsafe fn call_initializer(function: u64, count: i32, arguments: *const *const c_char) {
    unsafe extern "C" {
        static environ: *const *const c_char;
    }
    type Initializer = unsafe extern "C-unwind" fn(i32, *const *const c_char, *const *const c_char);
    // SAFETY: the caller says what is there; an initializer that takes no arguments ignores them.
    // The environment is the C library's.
    unsafe {
        let function = std::mem::transmute::<*const (), Initializer>(function as *const ());
        function(count, arguments, environ);
    }
}

/// # Safety
///
/// `function` is a finalizer that can be called.
unsafe fn call_finalizer(function: u64) {
    // SAFETY: as the caller says.
    unsafe { std::mem::transmute::<*const (), unsafe extern "C-unwind" fn()>(function as *const ())() };
}

/// # Safety
///
/// The handler's function can be called with its argument.
unsafe fn call_handler(handler: Handler) {
    type Function = unsafe extern "C-unwind" fn(*mut c_void);
    // SAFETY: as the caller says.
    unsafe {
        let function = std::mem::transmute::<*const (), Function>(handler.function as *const ());
        function(handler.argument as *mut c_void);
    }
}

/// Stands for `__cxa_atexit` of the C++ ABI: `handle` tells whose the function is.
pub(crate) extern "C" fn register_at_exit(function: u64, argument: u64, handle: u64) -> i32 {
    let component = lock(&HANDLES).get(&handle).cloned();
    match component.and_then(|(initializers, name)| Some((initializers.upgrade()?, name))) {
        Some((initializers, name)) => {
            initializers.register(&name, Handler { function, argument });
            0
        }
        None => {
            unsafe extern "C" {
                fn __cxa_atexit(function: u64, argument: u64, handle: u64) -> i32;
            }
            // SAFETY: whoever has no handle of ours means the process's.
            unsafe { __cxa_atexit(function, argument, handle) }
        }
    }
}

/// Sees to it that what is open when the process exits is finalized.
pub(crate) fn finalize_at_exit(initializers: &Arc<Initializers>) {
    unsafe extern "C" {
        fn atexit(function: extern "C-unwind" fn()) -> c_int;
    }
    static LIVE: Mutex<Vec<Weak<Initializers>>> = Mutex::new(Vec::new());
    static ONCE: Once = Once::new();
    // What a finalizer throws is its program's matter.
    extern "C-unwind" fn finalize() {
        while let Some(initializers) = { lock(&LIVE).pop() } {
            if let Some(initializers) = initializers.upgrade() {
                initializers.finalize(None);
            }
        }
    }
    let mut live = lock(&LIVE);
    live.retain(|initializers| initializers.strong_count() > 0);
    live.push(Arc::downgrade(initializers));
    drop(live);
    ONCE.call_once(|| {
        // SAFETY: the function is never unloaded before the process ends.
        unsafe { atexit(finalize) };
    });
}
