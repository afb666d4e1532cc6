//! Small functions that call themselves, until their fuel is used up: those that take in a round of themselves.

use cranelift_codegen::ir::{
    AbiParam, ExtFuncData, ExternalName, Function, InstBuilder, Signature, UserFuncName, types,
};
use cranelift_codegen::isa::{CallConv, TargetFrontendConfig};
use cranelift_codegen::settings;
use cranelift_frontend::{FunctionBuilder, FunctionBuilderContext};

use crate::choices::Choices;
use crate::generate::{any_type, without_nan};
use crate::operations;

/// The function `fINDEX`: it takes fuel and a value, and gives a value.
pub(crate) fn function(choices: &mut Choices<'_>, index: usize, config: TargetFrontendConfig) -> Function {
    let of = any_type(choices);
    let mut signature = Signature::new(CallConv::SystemV);
    signature.params.extend([AbiParam::new(types::I64), AbiParam::new(of)]);
    signature.returns.push(AbiParam::new(of));
    let name = format!("f{index}");
    let mut function = Function::with_name_signature(UserFuncName::testcase(&name), signature.clone());
    let mut scratch = FunctionBuilderContext::new();
    let mut builder = FunctionBuilder::new(&mut function, &mut scratch);
    let [entry, again, end] = [(); 3].map(|()| builder.create_block());
    let signature = builder.import_signature(signature);
    let colocated = choices.below(2) == 0;
    let name = ExternalName::testcase(&name);
    let own = builder.import_function(ExtFuncData { name, signature, colocated, patchable: false });

    builder.append_block_params_for_function_params(entry);
    builder.switch_to_block(entry);
    let &[fuel, value] = builder.block_params(entry) else { unreachable!() };
    let calls = 1 + choices.below(3);
    // Whoever calls it gives it any number.
    let most = builder.ins().iconst(types::I64, if calls == 1 { 15 } else { 3 });
    let fuel = builder.ins().band(fuel, most);
    if choices.below(2) == 0 {
        builder.ins().brif(fuel, again, &[], end, &[]);
    } else {
        let is_empty = builder.ins().icmp_imm_s(cranelift_codegen::ir::condcodes::IntCC::Equal, fuel, 0);
        builder.ins().brif(is_empty, end, &[], again, &[]);
    }

    builder.switch_to_block(again);
    let one = builder.ins().iconst(types::I64, 1);
    let less = builder.ins().isub(fuel, one);
    let mut result = operations::unary(choices, &mut builder, of, value);
    for _ in 0..calls {
        let argument = operations::binary(choices, &mut builder, of, [result, value]);
        let call = builder.ins().call(own, &[less, argument]);
        let given = builder.inst_results(call)[0];
        // A call whose result is all there is to return, or one to compute with.
        result = match choices.below(3) {
            0 => given,
            _ => operations::binary(choices, &mut builder, of, [given, result]),
        };
    }
    let result = without_nan(&mut builder, result);
    builder.ins().return_(&[result]);

    builder.switch_to_block(end);
    let value = without_nan(&mut builder, value);
    builder.ins().return_(&[value]);
    builder.seal_all_blocks();
    builder.finalize(config);
    cranelift_codegen::verify_function(&function, &settings::Flags::new(settings::builder()))
        .unwrap_or_else(|errors| panic!("{errors}\n{function}"));
    function
}
