//! What is counted by the gate and timed by criterion: deterministic, on one thread, and prepared apart.

use std::hint::black_box;

use cranelift_module::{Linkage, Module, default_libcall_names};
use cranelift_object::{ObjectBuilder, ObjectModule};
use orcane::lazy::LazyJitBuilder;
use orcane::linker::graph::ObjectBytes;
use orcane::{CompileAt, Jit, JitBuilder, ObjectLayer, OptLevel};
use target_lexicon::Triple;

use crate::Result;
use crate::functions::{expected, generate, name};
use crate::session::Table;
use crate::table::SymbolTable;

/// The part that is counted. It keeps what it makes until the process ends.
pub type Work = Box<dyn FnOnce() -> Result<()>>;

/// What a workload does first, and gives its work.
pub type Prepare = fn() -> Result<Work>;

const FUNCTIONS: usize = 1_000;
const SYMBOLS: usize = 10_000;
const CYCLES: usize = 1_000;
const CODE_CYCLES: usize = 100;
const ARGUMENT: i64 = 7;

/// All of them.
pub const WORKLOADS: [(&str, Prepare); 9] = [
    ("compile-none", || compile(OptLevel::None)),
    ("compile-speed", || compile(OptLevel::Speed)),
    ("link-object", link_object),
    ("lazy", lazy),
    ("first-jit", first_jit),
    ("define", define),
    ("lookup", lookup),
    ("cycle", cycle),
    ("code-cycle", code_cycle),
];

/// Of the baseline: what the host has beyond it would show in the figures.
fn builder(level: OptLevel) -> JitBuilder {
    Jit::builder().target(Triple::host()).opt_level(level).verifier(false)
}

/// Leaves it behind: its destruction is another matter.
fn keep<T>(value: T) {
    std::mem::forget(value);
}

fn check(address: u64, count: usize) -> Result<()> {
    // SAFETY: `generate` gave every function this signature, and what compiled it is kept.
    let function = unsafe { std::mem::transmute::<usize, extern "C" fn(i64) -> i64>(address as usize) };
    let (result, expected) = (function(ARGUMENT), expected(count, ARGUMENT));
    if result == expected { Ok(()) } else { Err(format!("{result} is not {expected}").into()) }
}

/// From a module that is built to the result of a call.
fn compile(level: OptLevel) -> Result<Work> {
    let jit = builder(level).build()?;
    let mut module = orcane::ClifModule::new("chain", jit.isa().clone(), CompileAt::Lookup);
    generate(&mut module, FUNCTIONS, |module, id, context| Ok(module.define_function(id, context)?))?;
    Ok(Box::new(move || {
        jit.add_module(module)?;
        check(jit.lookup_address(&name(FUNCTIONS - 1))?, FUNCTIONS)?;
        keep(jit);
        Ok(())
    }))
}

/// The same functions as an object.
fn link_object() -> Result<Work> {
    let jit = builder(OptLevel::None).build()?;
    let builder = ObjectBuilder::new(jit.isa().clone(), "chain", default_libcall_names())?;
    let mut module = ObjectModule::new(builder);
    generate(&mut module, FUNCTIONS, |module, id, context| Ok(module.define_function(id, context)?))?;
    let object = module.finish().emit()?;
    Ok(Box::new(move || {
        jit.object_layer().add(&jit.main().default_tracker()?, "chain", ObjectBytes::from(object))?;
        check(jit.lookup_address(&name(FUNCTIONS - 1))?, FUNCTIONS)?;
        keep(jit);
        Ok(())
    }))
}

/// As lazy functions, of which one in a hundred is called.
fn lazy() -> Result<Work> {
    const CALLED: usize = FUNCTIONS / 100;
    let jit = LazyJitBuilder::new(builder(OptLevel::Speed)).build()?;
    let mut module = jit.module("chain").redirectable();
    generate(&mut module, FUNCTIONS, |module, id, context| Ok(module.define_function(id, context)?))?;
    Ok(Box::new(move || {
        jit.redefine(module)?;
        check(jit.lookup_address(&name(CALLED - 1))?, CALLED)?;
        keep(jit);
        Ok(())
    }))
}

fn first_jit() -> Result<Work> {
    Ok(Box::new(|| {
        keep(builder(OptLevel::Speed).build()?);
        Ok(())
    }))
}

fn table() -> Result<Table> {
    let mut table = Table::new()?;
    table.reserve(SYMBOLS);
    (0..SYMBOLS).for_each(|index| table.intern(&name(index)));
    Ok(table)
}

fn define() -> Result<Work> {
    let mut table = table()?;
    Ok(Box::new(move || {
        table.define_all(1)?;
        keep(table);
        Ok(())
    }))
}

/// Of each symbol that is ready, by its interned name.
fn lookup() -> Result<Work> {
    let mut table = table()?;
    table.define_all(1)?;
    Ok(Box::new(move || {
        let found = (0..SYMBOLS).filter(|index| black_box(table.lookup(*index)) != 0).count();
        keep(table);
        if found == SYMBOLS { Ok(()) } else { Err(format!("{found} of {SYMBOLS} are ready").into()) }
    }))
}

/// Definition, lookup and removal of an absolute symbol.
fn cycle() -> Result<Work> {
    let table = table()?;
    Ok(Box::new(move || {
        (0..CYCLES).try_for_each(|_| table.cycle("cycle"))?;
        keep(table);
        Ok(())
    }))
}

/// The same of a function whose machine code is there already: what is linked, told of and taken back.
fn code_cycle() -> Result<Work> {
    let jit = builder(OptLevel::None).build()?;
    Ok(Box::new(move || {
        for _ in 0..CODE_CYCLES {
            let mut module = orcane::ClifModule::new("cycle", jit.isa().clone(), CompileAt::Definition);
            let signature = module.make_signature();
            let id = module.declare_function("f", Linkage::Export, &signature)?;
            module.define_function_bytes(id, 16, &[0; 64], &[])?;
            let tracker = jit.add_module(module)?;
            black_box(jit.lookup_address("f")?);
            tracker.remove()?;
        }
        keep(jit);
        Ok(())
    }))
}
