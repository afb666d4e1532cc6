//! What JIT'd code needs of the process it runs in: everything that is registered with it, as
//! pairs of action and undo.

#[cfg(feature = "cranelift")]
pub(crate) mod code;
#[cfg(feature = "cranelift")]
pub(crate) mod debug;
#[cfg(feature = "cranelift")]
pub mod exception;
pub(crate) mod initializers;
#[cfg(not(feature = "cranelift"))]
mod nobody;
#[cfg(feature = "cranelift")]
mod object_code;
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
use jit_linker::LinkGraph;
#[cfg(not(feature = "cranelift"))]
pub(crate) use nobody::{ObjectCode, Services};
#[cfg(feature = "cranelift")]
pub(crate) use object_code::ObjectCode;

#[cfg(feature = "cranelift")]
use crate::dump::{self, DumpSink};
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
    /// Whether anyone reads what compilers write into objects for debuggers.
    pub(crate) fn want_notes(&self) -> bool {
        self.debugger || self.profiler.as_ref().is_some_and(|profiler| profiler.wants_lines())
    }

    /// Shows a graph whose addresses are settled.
    pub(crate) fn show(&self, graph: &LinkGraph) {
        if let Some(sink) = &self.dumps {
            dump::show_graph(&**sink, graph);
        }
    }

    /// Those that can be told of objects: their code need not keep frame pointers, so their traps can't be caught.
    pub(crate) fn for_objects(&self) -> Self {
        Self { traps: false, ..self.clone() }
    }

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
