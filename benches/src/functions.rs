//! The functions that every subject compiles: a chain in which each has a loop, a branch with two outcomes that meet,
//! and a call of the one before.

use std::ops::Range;

use cranelift_codegen::Context;
use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::{AbiParam, FuncRef, InstBuilder, Value, types};
use cranelift_frontend::{FunctionBuilder, FunctionBuilderContext};
use cranelift_module::{FuncId, Linkage, Module};

use crate::Result;

/// How often each function's loop runs.
pub const TRIPS: i64 = 4;
/// What its loop multiplies by.
pub const FACTOR: i64 = 31;

/// The name of a function.
#[must_use]
pub fn name(index: usize) -> String {
    format!("f{index}")
}

/// Declares the functions, builds each, and hands it to `define`, which takes it out of the context.
/// All of them use one context, as a frontend would.
///
/// # Errors
///
/// The module's, and those of `define`.
pub fn generate<M: Module>(
    module: &mut M,
    count: usize,
    define: impl FnMut(&mut M, FuncId, &mut Context) -> Result<()>,
) -> Result<()> {
    generate_some(module, 0..count, define)
}

/// As [`generate`], those of some numbers. The one before the first is imported.
///
/// # Errors
///
/// The module's, and those of `define`.
pub fn generate_some<M: Module>(
    module: &mut M,
    numbers: Range<usize>,
    mut define: impl FnMut(&mut M, FuncId, &mut Context) -> Result<()>,
) -> Result<()> {
    let mut signature = module.make_signature();
    signature.params.push(AbiParam::new(types::I64));
    signature.returns.push(AbiParam::new(types::I64));
    let imported = numbers.start.checked_sub(1);
    let mut previous =
        imported.map(|index| module.declare_function(&name(index), Linkage::Import, &signature)).transpose()?;
    let mut ids = Vec::with_capacity(numbers.len());
    for index in numbers.clone() {
        ids.push(module.declare_function(&name(index), Linkage::Export, &signature)?);
    }

    let mut context = module.make_context();
    let mut frontend = FunctionBuilderContext::new();
    for (index, id) in numbers.zip(ids) {
        context.func.signature = signature.clone();
        let previous = previous.replace(id).map(|before| module.declare_func_in_func(before, &mut context.func));
        let mut builder = FunctionBuilder::new(&mut context.func, &mut frontend);
        build(&mut builder, index as i64, previous);
        builder.finalize(module.target_config());
        define(module, id, &mut context)?;
        module.clear_context(&mut context);
    }
    Ok(())
}

fn build(builder: &mut FunctionBuilder<'_>, index: i64, previous: Option<FuncRef>) {
    let entry = builder.create_block();
    builder.append_block_params_for_function_params(entry);
    builder.switch_to_block(entry);
    let argument = builder.block_params(entry)[0];
    let chosen = compute(builder, index, argument);
    builder.seal_all_blocks();
    let result = match previous {
        Some(previous) => {
            let call = builder.ins().call(previous, &[chosen]);
            builder.inst_results(call)[0]
        }
        None => chosen,
    };
    builder.ins().return_(&[result]);
}

/// What each computes of its argument: in a block that is current, and others.
pub fn compute(builder: &mut FunctionBuilder<'_>, index: i64, argument: Value) -> Value {
    let body = builder.create_block();
    let exit = builder.create_block();
    let odd = builder.create_block();
    let even = builder.create_block();
    let join = builder.create_block();
    let sum = builder.append_block_param(body, types::I64);
    let trip = builder.append_block_param(body, types::I64);
    let chosen = builder.append_block_param(join, types::I64);

    let zero = builder.ins().iconst(types::I64, 0);
    builder.ins().jump(body, &[argument.into(), zero.into()]);

    builder.switch_to_block(body);
    let constant = |builder: &mut FunctionBuilder<'_>, value: i64| -> Value { builder.ins().iconst(types::I64, value) };
    let factor = constant(builder, FACTOR);
    let product = builder.ins().imul(sum, factor);
    let index = constant(builder, index);
    let shifted = builder.ins().iadd(product, index);
    let mixed = builder.ins().bxor(shifted, trip);
    let one = constant(builder, 1);
    let next = builder.ins().iadd(trip, one);
    let trips = constant(builder, TRIPS);
    let more = builder.ins().icmp(IntCC::SignedLessThan, next, trips);
    builder.ins().brif(more, body, &[mixed.into(), next.into()], exit, &[]);

    builder.switch_to_block(exit);
    let lowest = builder.ins().band(mixed, one);
    builder.ins().brif(lowest, odd, &[], even, &[]);
    builder.switch_to_block(odd);
    let sum = builder.ins().iadd(mixed, index);
    builder.ins().jump(join, &[sum.into()]);
    builder.switch_to_block(even);
    let difference = builder.ins().isub(mixed, factor);
    builder.ins().jump(join, &[difference.into()]);
    builder.switch_to_block(join);
    chosen
}

/// What the last of `count` functions returns.
#[must_use]
pub fn expected(count: usize, argument: i64) -> i64 {
    (0..count as i64).rev().fold(argument, |argument, index| {
        let mixed = (0..TRIPS).fold(argument, |sum, trip| sum.wrapping_mul(FACTOR).wrapping_add(index) ^ trip);
        if mixed & 1 == 1 { mixed.wrapping_add(index) } else { mixed.wrapping_sub(FACTOR) }
    })
}
