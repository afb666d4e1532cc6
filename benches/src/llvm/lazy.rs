//! Laziness: LLLazyJIT on a program most of which is not called, and the stubs of lazy re-exports.

use std::fmt::Write;
use std::hint::black_box;
use std::time::Instant;

use llvm_tests::reexports::Reexports;
use llvm_tests::{Level, Llvm, Module, Options};
use workloads::Result;
use workloads::functions::{FACTOR, TRIPS, name};
use workloads::steady;

/// Prints the nanoseconds from a program that is built to its result, and the result.
pub(crate) const PROGRAM: &str = "program";
/// Prints nanoseconds: creating a stub, its first call, a later call through it, a direct call.
pub(crate) const CALLS: &str = "calls";

/// Of how many functions one is called.
const CALLED: usize = 100;

type Unary = unsafe extern "C" fn(i64) -> i64;

/// As `workloads::functions` builds one that calls no other.
fn function(index: usize, text: &mut String) -> Result<()> {
    Ok(writeln!(
        text,
        "define i64 @{name}(i64 %a) {{
        e: br label %b
        b: %s = phi i64 [ %a, %e ], [ %m, %b ]
           %t = phi i64 [ 0, %e ], [ %n, %b ]
           %p = mul i64 %s, {FACTOR}
           %h = add i64 %p, {index}
           %m = xor i64 %h, %t
           %n = add i64 %t, 1
           %c = icmp slt i64 %n, {TRIPS}
           br i1 %c, label %b, label %x
        x: %l = and i64 %m, 1
           %o = icmp ne i64 %l, 0
           br i1 %o, label %odd, label %even
        odd: %u = add i64 %m, {index}
           br label %j
        even: %v = sub i64 %m, {FACTOR}
           br label %j
        j: %r = phi i64 [ %u, %odd ], [ %v, %even ]
           ret i64 %r }}",
        name = name(index),
    )?)
}

/// A function that calls one in [`CALLED`], each with what the one before gave.
fn main_function(count: usize, text: &mut String) -> Result<()> {
    writeln!(text, "define i64 @main_function(i64 %a) {{")?;
    let mut last = "%a".to_owned();
    for index in (0..count).step_by(CALLED) {
        writeln!(text, "%r{index} = call i64 @{}(i64 {last})", name(index))?;
        last = format!("%r{index}");
    }
    Ok(writeln!(text, "ret i64 {last} }}")?)
}

pub(crate) fn program(shape: &str, count: usize) -> Result<String> {
    let mut texts = vec![String::new()];
    for index in 0..count {
        let mut text = String::new();
        function(index, &mut text)?;
        match shape {
            "one-module" => texts[0].push_str(&text),
            _ => texts.push(text),
        }
    }
    if shape != "one-module" {
        for index in (0..count).step_by(CALLED) {
            writeln!(texts[0], "declare i64 @{}(i64)", name(index))?;
        }
    }
    main_function(count, &mut texts[0])?;
    let modules = texts.iter().map(|text| Module::parse(text)).collect::<std::result::Result<Vec<_>, _>>()?;
    let start = Instant::now();
    let jit = Llvm::new(Options { level: Level::O0, lazy: true, threads: 0 })?;
    modules.into_iter().try_for_each(|module| jit.add(module))?;
    // SAFETY: the address of a function of this type.
    let function = unsafe { std::mem::transmute::<u64, Unary>(jit.lookup("main_function")?) };
    // SAFETY: it only computes.
    let result = unsafe { function(7) };
    let took = start.elapsed();
    // Its destruction is not what is measured, and takes long.
    std::mem::forget(jit);
    Ok(format!("{} {result}", took.as_nanos()))
}

extern "C" fn increment(value: i64) -> i64 {
    value + 1
}

pub(crate) fn calls(count: usize) -> Result<String> {
    let jit = Llvm::new(Options { level: Level::Default, lazy: false, threads: 0 })?;
    jit.define("increment", increment as *const () as u64)?;
    let stubs = Reexports::new(&jit)?;
    let names: Vec<_> = (0..count).map(name).collect();
    // As in `lazy`, names are interned before.
    let interned = stubs.intern(&names, "increment");
    let start = Instant::now();
    stubs.create(&interned)?;
    let created = start.elapsed();
    let addresses = names.iter().map(|name| jit.lookup(name)).collect::<std::result::Result<Vec<_>, _>>()?;
    let start = Instant::now();
    for address in &addresses {
        // SAFETY: calls end up in `increment`, which only computes.
        black_box(unsafe { std::mem::transmute::<u64, Unary>(*address)(1) });
    }
    let called = start.elapsed();

    let stub = stubs.intern(&["stub".to_owned()], "callee");
    let loop_of = |name: &str, callee: &str| {
        format!(
            "define i64 @{name}(i64 %count) {{
            e: br label %l
            l: %left = phi i64 [ %count, %e ], [ %rest, %l ]
               %r = call i64 @{callee}(i64 %left)
               %rest = sub i64 %left, 1
               %c = icmp ne i64 %rest, 0
               br i1 %c, label %l, label %x
            x: ret i64 %count }}\n"
        )
    };
    let [through_stub, directly] =
        [["through_stub", "stub"], ["directly", "callee"]].map(|[own, callee]| loop_of(own, callee));
    let callee = "define i64 @callee(i64 %a) noinline { ret i64 %a }\n";
    jit.add(Module::parse(&format!("{callee}declare i64 @stub(i64)\n{through_stub}{directly}"))?)?;
    stubs.create(&stub)?;
    let loop_of = |name: &str| -> Result<steady::Loop> {
        // SAFETY: the address of a function of this type.
        Ok(unsafe { std::mem::transmute::<u64, Unary>(jit.lookup(name)?) })
    };
    let loops = [loop_of("through_stub")?, loop_of("directly")?];
    // SAFETY: they call a function that returns its argument; the JIT is alive.
    let [through_stub, directly] = unsafe {
        // The first call of the stub is no later one.
        loops.iter().for_each(|function| _ = function(1));
        steady::calls(loops)
    };
    let each = |took: std::time::Duration| took.as_secs_f64() * 1e9 / count as f64;
    let told = format!("{} {} {through_stub} {directly}", each(created), each(called));
    drop((interned, stub));
    std::mem::forget(jit);
    Ok(told)
}
