//! LLVM as a generator of the code whose run time is compared.

use llvm_tests::{Level, Llvm, Module, Options};
use workloads::Result;
use workloads::programs::{MAIN, Program};
use workloads::quality::{RunTime, measure};
use workloads::to_llvm::translate;

pub(crate) fn run(program: &str, generator: &str) -> Result<RunTime> {
    let program = Program::named(program)?;
    let level = match generator {
        "llvm-o0" => Level::O0,
        "llvm-default" => Level::Default,
        "llvm-o2-scalar" => Level::O2Scalar,
        "llvm-o2" => Level::O2,
        other => return Err(format!("no code generator {other}").into()),
    };
    let config = cranelift_native::builder()?
        .finish(cranelift_codegen::settings::Flags::new(cranelift_codegen::settings::builder()))?;
    let text = translate(&program.functions(config.frontend_config()))?;
    let jit = Llvm::new(Options { level, lazy: false, threads: 0 })?;
    jit.add(Module::parse(&text)?)?;
    Ok(measure(program, jit.lookup(MAIN)?))
}
