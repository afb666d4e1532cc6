//! Link graphs in the session: the layer that links them, what can be put on top of it, and who
//! watches. Knows nothing of how a graph was made.

mod layer;
mod linking;
mod plugin;
mod transform;

pub(crate) use layer::check_architecture;
#[cfg(feature = "cranelift")]
pub(crate) use layer::definitions;
pub use layer::{ObjectLayer, ObjectLinkingLayer, ObjectOptions};
#[cfg(feature = "cranelift")]
pub(crate) use linking::dependency;
#[cfg(feature = "cranelift")]
pub(crate) use plugin::{Hooks, Watched};
pub use plugin::{Link, LinkPlugin};
pub use transform::ObjectTransformLayer;
