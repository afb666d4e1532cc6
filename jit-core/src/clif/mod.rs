//! CLIF in the session: the only place that knows Cranelift's compiler.

mod batch;
mod cache;
mod cfi;
mod inline;
mod layer;
mod libcall;
mod linking;
mod machine_code;
mod module;
mod optimize;
mod packed;
mod panic;
mod recursion;
mod references;
mod reloc;
mod rotate;
mod signature;
mod transform;
mod units;

/// Stands in the names that only the session knows, of bodies and of what is local to a module: reserved, so that they
/// don't meet those of the user's symbols. What comes before it is the name as the user knows it.
pub(crate) const RESERVED: &str = "$orcane";

pub use cache::{InMemoryCache, ObjectCache};
pub use inline::InlineSmallFunctions;
pub(crate) use layer::ClifOptions;
pub use layer::{ClifLayer, CompileStatistics};
pub use module::{ClifModule, CompileAt};
pub use rotate::may_loop;
pub(crate) use signature::describe;
pub use transform::{ClifTransform, ClifTransformLayer, FunctionTransform, ModuleLayer, TransformError};
pub(crate) use units::{Item, ModuleUnits};
