//! What JIT'd code needs of the process it runs in.

pub(crate) mod tls;
