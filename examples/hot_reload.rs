//! Replaces a function while a compiled loop that calls it is running.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};

use orcane::cranelift::codegen::ir::{AbiParam, InstBuilder, types};
use orcane::cranelift::frontend::{FunctionBuilder, FunctionBuilderContext};
use orcane::cranelift::module::{Linkage, Module};
use orcane::{ClifModule, Jit};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// A module with `step() = value`. Its function is redirectable: calls of it can be sent elsewhere.
fn step(jit: &Jit, value: i64) -> Result<ClifModule> {
    let mut module = jit.module("step").redirectable();
    let mut context = module.make_context();
    context.func.signature.returns.push(AbiParam::new(types::I64));
    let id = module.declare_function("step", Linkage::Export, &context.func.signature)?;
    let mut frontend = FunctionBuilderContext::new();
    let mut builder = FunctionBuilder::new(&mut context.func, &mut frontend);
    let block = builder.create_block();
    builder.switch_to_block(block);
    builder.seal_block(block);
    let value = builder.ins().iconst(types::I64, value);
    builder.ins().return_(&[value]);
    builder.finalize(module.target_config());
    module.define_function(id, &mut context)?;
    Ok(module)
}

/// A module with `run() { while go_on(step()) != 0 {} }`.
fn run(jit: &Jit) -> Result<ClifModule> {
    let mut module = jit.module("run");
    let mut context = module.make_context();
    let run = module.declare_function("run", Linkage::Export, &context.func.signature)?;
    let mut signature = module.make_signature();
    signature.returns.push(AbiParam::new(types::I64));
    let step = module.declare_function("step", Linkage::Import, &signature)?;
    signature.params.push(AbiParam::new(types::I64));
    let go_on = module.declare_function("go_on", Linkage::Import, &signature)?;

    let mut frontend = FunctionBuilderContext::new();
    let mut builder = FunctionBuilder::new(&mut context.func, &mut frontend);
    let [start, again, end] = [(); 3].map(|()| builder.create_block());
    builder.switch_to_block(start);
    builder.ins().jump(again, &[]);
    builder.switch_to_block(again);
    let step = module.declare_func_in_func(step, builder.func);
    let call = builder.ins().call(step, &[]);
    let value = builder.inst_results(call)[0];
    let go_on = module.declare_func_in_func(go_on, builder.func);
    let call = builder.ins().call(go_on, &[value]);
    let condition = builder.inst_results(call)[0];
    builder.ins().brif(condition, again, &[], end, &[]);
    builder.switch_to_block(end);
    builder.ins().return_(&[]);
    builder.seal_all_blocks();
    builder.finalize(module.target_config());
    module.define_function(run, &mut context)?;
    Ok(module)
}

fn main() -> Result<()> {
    let jit = Jit::new()?;
    let (sender, values) = mpsc::channel();
    let (seen, stop) = (Mutex::new((0, sender)), Arc::new(AtomicBool::new(false)));
    let stopped = Arc::clone(&stop);
    // The loop tells the host each value, and the host tells us of those that are new.
    jit.define_closure("go_on", move |value: i64| -> i64 {
        let mut seen = seen.lock().unwrap_or_else(|error| error.into_inner());
        if seen.0 != value {
            seen.0 = value;
            _ = seen.1.send(value);
        }
        i64::from(!stopped.load(Ordering::Relaxed))
    })?;
    jit.redefine(step(&jit, 1)?)?;
    jit.add_module(run(&jit)?)?;
    let run = jit.lookup::<unsafe extern "C" fn()>("run")?;

    std::thread::scope(|scope| {
        // SAFETY: it calls `step` and `go_on`, and both have the signature that it declares.
        scope.spawn(|| unsafe { run.call() });
        let result = (1..=3).try_for_each(|version| {
            if version > 1 {
                // Compiled first, then all calls go to it. The old body goes when no thread is in it.
                jit.redefine(step(&jit, version)?)?;
            }
            println!("the loop sees {}", values.recv()?);
            Ok(())
        });
        stop.store(true, Ordering::Relaxed);
        result
    })
}
