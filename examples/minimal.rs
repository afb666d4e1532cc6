//! The smallest program: compiles `add(a, b)` and calls it.

use orcane::Jit;
use orcane::cranelift::codegen::ir::{AbiParam, InstBuilder, types};
use orcane::cranelift::frontend::{FunctionBuilder, FunctionBuilderContext};
use orcane::cranelift::module::{Linkage, Module};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let jit = Jit::new()?;

    // A module is what a frontend fills: functions and data, nothing compiled yet.
    let mut module = jit.module("minimal");
    let mut context = module.make_context();
    context.func.signature.params.extend([AbiParam::new(types::I64); 2]);
    context.func.signature.returns.push(AbiParam::new(types::I64));
    let add = module.declare_function("add", Linkage::Export, &context.func.signature)?;

    let mut frontend = FunctionBuilderContext::new();
    let mut builder = FunctionBuilder::new(&mut context.func, &mut frontend);
    let block = builder.create_block();
    builder.append_block_params_for_function_params(block);
    builder.switch_to_block(block);
    builder.seal_block(block);
    let [left, right] = *builder.block_params(block) else { unreachable!("two parameters") };
    let sum = builder.ins().iadd(left, right);
    builder.ins().return_(&[sum]);
    builder.finalize(module.target_config());
    module.define_function(add, &mut context)?;
    jit.add_module(module)?;

    // The lookup compiles it. A signature other than the declared one would be an error.
    let add = jit.lookup::<unsafe extern "C" fn(i64, i64) -> i64>("add")?;
    // SAFETY: the function adds, and does nothing else.
    println!("20 + 22 = {}", unsafe { add.call(20, 22) });
    Ok(())
}
