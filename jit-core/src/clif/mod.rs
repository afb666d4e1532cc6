//! CLIF in the session: the only place that knows Cranelift's compiler.

mod batch;
mod cache;
mod cfi;
mod inline;
mod layer;
mod libcall;
mod machine_code;
mod module;
mod optimize;
mod panic;
mod recursion;
mod references;
mod reloc;
mod rotate;
mod signature;
mod transform;

pub use cache::{InMemoryCache, ObjectCache};
pub use inline::InlineSmallFunctions;
pub(crate) use layer::ClifOptions;
pub use layer::{ClifLayer, CompileStatistics};
pub(crate) use layer::{Item, ModuleUnits};
pub use module::{ClifModule, CompileAt};
pub use rotate::may_loop;
pub(crate) use signature::describe;
pub use transform::{ClifTransform, ClifTransformLayer, FunctionTransform, ModuleLayer, TransformError};
