//! Compiles a thousand functions on all processors, tells how far it is, and calls them.

use std::num::NonZero;

use orcane::cranelift::codegen::ir::{AbiParam, InstBuilder, types};
use orcane::cranelift::frontend::{FunctionBuilder, FunctionBuilderContext};
use orcane::cranelift::module::{Linkage, Module};
use orcane::{ClifModule, Jit};

const FUNCTIONS: i64 = 1000;

/// `f0` to `f999`; `fN(x)` is N times x, plus one.
fn module(jit: &Jit) -> Result<ClifModule, Box<dyn std::error::Error>> {
    let mut module = jit.module("batch");
    let mut context = module.make_context();
    let mut frontend = FunctionBuilderContext::new();
    for number in 0..FUNCTIONS {
        context.func.signature.params.push(AbiParam::new(types::I64));
        context.func.signature.returns.push(AbiParam::new(types::I64));
        let id = module.declare_function(&format!("f{number}"), Linkage::Export, &context.func.signature)?;
        let mut builder = FunctionBuilder::new(&mut context.func, &mut frontend);
        let block = builder.create_block();
        builder.append_block_params_for_function_params(block);
        builder.switch_to_block(block);
        builder.seal_block(block);
        let x = builder.block_params(block)[0];
        let factor = builder.ins().iconst(types::I64, number);
        let product = builder.ins().imul(x, factor);
        let one = builder.ins().iconst(types::I64, 1);
        let sum = builder.ins().iadd(product, one);
        builder.ins().return_(&[sum]);
        builder.finalize(module.target_config());
        module.define_function(id, &mut context)?;
        module.clear_context(&mut context);
    }
    Ok(module)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let threads = std::thread::available_parallelism().map_or(1, NonZero::get);
    let jit = Jit::builder().compile_threads(threads).build()?;
    jit.add_module(module(&jit)?)?;

    let names: Vec<_> = (0..FUNCTIONS).map(|number| format!("f{number}")).collect();
    let mut told = 0;
    jit.prepare(&names, |progress| {
        let quarters = progress.ready * 4 / progress.total;
        if quarters > told {
            told = quarters;
            println!("{} % are ready", 25 * quarters);
        }
    })?;

    let mut sum = 0;
    for name in &names {
        let function = jit.lookup::<unsafe extern "C" fn(i64) -> i64>(name)?;
        // SAFETY: the function multiplies and adds.
        sum += unsafe { function.call(2) };
    }
    println!("{} functions were compiled; the sum is {sum}", jit.stats().compile.functions);
    Ok(())
}
