//! Lazy functions from CLIF text.

#![allow(dead_code, reason = "each test file uses a part of it")]

#[path = "../../../jit-core/tests/common/mod.rs"]
pub(crate) mod clif;

use std::process::Command;

use jit_core::{
    Error, FnPointer, Jit, MaterializationResponsibility, MaterializationUnit, OptLevel, RedirectableFunction,
    ResourceTracker, SymbolDef, SymbolName,
};
use jit_lazy::{LazyJit, LazyJitBuilder};

pub(crate) type Nullary = unsafe extern "C" fn() -> i64;

pub(crate) fn builder() -> LazyJitBuilder {
    LazyJitBuilder::new(Jit::builder().opt_level(OptLevel::None).verifier(true))
}

pub(crate) fn jit() -> LazyJit {
    builder().build().unwrap()
}

/// Defines lazy functions, or gives them new bodies.
pub(crate) fn redefine(jit: &Jit, text: &str) -> Result<ResourceTracker, Error> {
    let mut module = jit.module("bodies").redirectable();
    clif::define(&mut module, text);
    jit.redefine(module)
}

/// Defines functions that are not lazy.
pub(crate) fn add(jit: &Jit, text: &str) {
    let mut module = jit.module("eager");
    clif::define(&mut module, text);
    jit.add_module(module).unwrap();
}

pub(crate) fn constant(name: &str, value: i64) -> String {
    format!("function %{name}() -> i64 system_v {{ block0: v0 = iconst.i64 {value} return v0 }}")
}

/// A function that calls another one and adds 100 to what it gives.
pub(crate) fn caller(name: &str, callee: &str) -> String {
    format!(
        "function %{name}() -> i64 system_v {{
            sig0 = () -> i64 system_v
            fn0 = %{callee} sig0
        block0:
            v0 = call fn0()
            v1 = iconst.i64 100
            v2 = iadd v0, v1
            return v2
        }}"
    )
}

/// Calls what compiled code would call: the function's address, which is looked up and not
/// compiled.
pub(crate) fn call(jit: &Jit, name: &str) -> i64 {
    let function = at(jit.lookup_address(name).unwrap());
    // SAFETY: the functions of these tests only compute.
    unsafe { function() }
}

/// What [`ready`] bodies are.
pub(crate) extern "C" fn answer() -> i64 {
    42
}

/// A body that is there already.
struct Ready(SymbolName);

impl MaterializationUnit for Ready {
    fn materialize(self: Box<Self>, responsibility: MaterializationResponsibility) {
        let definition = SymbolDef::at((answer as extern "C" fn() -> i64).address());
        if responsibility.resolve(&[(self.0, definition)]).is_ok() {
            responsibility.emit(&[]).unwrap();
        }
    }

    fn discard(&mut self, _: &SymbolName) {}
}

/// A lazy function whose body is [`answer`].
pub(crate) fn ready(jit: &Jit, name: &str) -> RedirectableFunction {
    RedirectableFunction {
        name: jit.session().intern(name),
        signature: None,
        body: Box::new(|body| Box::new(Ready(body.clone()))),
    }
}

pub(crate) fn at(address: u64) -> Nullary {
    // SAFETY: the address of a function of this type.
    unsafe { std::mem::transmute::<usize, Nullary>(address as usize) }
}

/// A command that runs these tests, through the emulator if they are emulated.
pub(crate) fn this_program() -> Command {
    let program = std::env::current_exe().unwrap();
    let runner = if cfg!(target_arch = "aarch64") { "CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER" } else { "" };
    let Ok(runner) = std::env::var(runner) else { return Command::new(program) };
    let mut words = runner.split_whitespace();
    let mut command = Command::new(words.next().unwrap());
    command.args(words).arg(program);
    command
}

/// How often to do something: `native` times, `emulated` times where that takes a hundred times as
/// long.
pub(crate) fn scaled(native: usize, emulated: usize) -> usize {
    if std::env::var_os("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER").is_some() { emulated } else { native }
}
