//! Programs in C, C++ and Rust as tests of the linker: see `tests/`.
