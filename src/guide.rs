//! The guide's chapters as documentation tests: `cargo test` compiles and runs every code block.

macro_rules! chapters {
    ($($name:ident $file:literal,)*) => {$(
        #[doc = include_str!(concat!("../docs/", $file))]
        mod $name {}
    )*};
}

chapters! {
    introduction "introduction.md",
    first_function "first-function.md",
    language "language.md",
    from_cranelift_jit "from-cranelift-jit.md",
    laziness "laziness.md",
    threads "threads.md",
    replacing_code "replacing-code.md",
    objects "objects.md",
    errors "errors.md",
    debugging "debugging.md",
    unit "unit.md",
    generator "generator.md",
    plugin "plugin.md",
    memory "memory.md",
    linker "linker.md",
    orc "orc.md",
    architecture "architecture.md",
}
