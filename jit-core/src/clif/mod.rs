//! CLIF in the session: the only place that knows Cranelift's compiler.

mod batch;
mod cfi;
mod layer;
mod libcall;
mod machine_code;
mod module;
mod reloc;
mod signature;

pub use layer::{ClifLayer, CompileStatistics};
pub use module::{ClifModule, CompileAt};
pub(crate) use signature::describe;
