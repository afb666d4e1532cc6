//! What JIT'd code needs of the process it runs in: everything that is registered with it, as
//! pairs of action and undo.

#[cfg(feature = "cranelift")]
pub(crate) mod code;
#[cfg(feature = "cranelift")]
pub(crate) mod debug;
#[cfg(feature = "cranelift")]
pub mod exception;
pub(crate) mod initializers;
#[cfg(feature = "cranelift")]
pub(crate) mod object_code;
#[cfg(feature = "cranelift")]
pub(crate) mod perf;
#[cfg(target_os = "linux")]
pub(crate) mod thread_local;
#[cfg(feature = "cranelift")]
pub(crate) mod tls;
#[cfg(any(target_os = "linux", target_arch = "aarch64"))]
pub(crate) mod tlsdesc;
#[cfg(feature = "cranelift")]
pub(crate) mod trap;
pub(crate) mod unwind;

#[cfg(feature = "cranelift")]
use crate::dump::DumpSink;
#[cfg(feature = "cranelift")]
use crate::sync::Arc;

/// Who is told of code when it has been linked.
#[cfg(feature = "cranelift")]
#[derive(Clone)]
pub(crate) struct Services {
    /// The process's unwinder.
    pub(crate) unwinding: bool,
    /// The handler of traps.
    pub(crate) traps: bool,
    /// Debuggers.
    pub(crate) debugger: bool,
    /// Profilers.
    pub(crate) profiler: Option<Arc<perf::Output>>,
    /// Whoever wants to see what becomes of symbols.
    pub(crate) dumps: Option<Arc<dyn DumpSink>>,
}

#[cfg(feature = "cranelift")]
impl Default for Services {
    fn default() -> Self {
        Self { unwinding: true, traps: false, debugger: false, profiler: None, dumps: None }
    }
}

#[cfg(feature = "cranelift")]
impl std::fmt::Debug for Services {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Services").field("debugger", &self.debugger).finish_non_exhaustive()
    }
}

#[cfg(feature = "cranelift")]
impl Services {
    /// Whether anyone wants to know how frames are unwound.
    pub(crate) fn want_frames(&self) -> bool {
        self.unwinding || self.debugger || self.profiler.is_some()
    }

    /// Whether anyone wants to know more than that.
    pub(crate) fn want_code(&self) -> bool {
        self.traps || self.debugger || self.profiler.is_some() || self.dumps.is_some()
    }

    /// Tells of code. What is given is to be dropped before the code's memory is used again.
    pub(crate) fn register(&self, code: code::LinkedCode) -> Box<dyn Send + Sync> {
        if let Some(profiler) = &self.profiler {
            profiler.tell(&code);
        }
        if let Some(dumps) = &self.dumps {
            // SAFETY: the code was linked, and whoever has it tells of it before it goes back.
            unsafe { debug::dump(&**dumps, &code) };
        }
        let code = Arc::new(code);
        // The last that were told are undone first.
        let debugger = self.debugger.then(|| debug::register(&code));
        Box::new((debugger, self.traps.then(|| trap::register(&code))))
    }
}
