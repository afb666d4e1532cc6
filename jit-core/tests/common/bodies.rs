//! Bodies of redirectable functions, as text.

use jit_core::{Error, Jit, ResourceTracker};

use crate::common::define;

/// Gives functions new bodies.
pub(crate) fn redefine(jit: &Jit, text: &str) -> Result<ResourceTracker, Error> {
    let mut module = jit.module("bodies").redirectable();
    define(&mut module, text);
    jit.redefine(module)
}

pub(crate) fn constant(name: &str, value: i64) -> String {
    format!("function %{name}() -> i64 system_v {{ block0: v0 = iconst.i64 {value} return v0 }}")
}
