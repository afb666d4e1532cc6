//! Objects that `cranelift-object` writes: random functions that call each other, and one that calls them all.

use std::sync::Arc;

use cranelift_codegen::Context;
use cranelift_codegen::ir::{
    AbiParam, ExternalName, FuncRef, Function, InstBuilder, MemFlagsData, Signature, StackSlotData, StackSlotKind,
    UserExternalName, UserFuncName, types,
};
use cranelift_codegen::isa::{self, CallConv, TargetIsa};
use cranelift_codegen::settings::{self, Configurable};
use cranelift_frontend::{FunctionBuilder, FunctionBuilderContext};
use cranelift_module::{DataDescription, DataId, FuncId, Linkage, Module, default_libcall_names};
use cranelift_object::{ObjectBuilder, ObjectModule};

use crate::choices::Choices;
use crate::generate;

/// Bytes of the data that arguments are read from.
const DATA: usize = 64;

/// An object that defines `run`, which gives a number that depends on all the others.
pub(crate) fn object(bytes: &[u8], level: &str, architecture: &str) -> Vec<u8> {
    let mut choices = Choices::new(bytes);
    let functions = generate::functions(&mut choices);
    let isa = target(level, architecture);
    let mut module = ObjectModule::new(ObjectBuilder::new(isa, "random", default_libcall_names()).unwrap());
    let ids: Vec<_> = functions
        .iter()
        .enumerate()
        .map(|(index, function)| {
            let linkage = *choices.of(&[Linkage::Export, Linkage::Local, Linkage::Hidden, Linkage::Preemptible]);
            module.declare_function(&format!("f{index}"), linkage, &function.signature).unwrap()
        })
        .collect();
    for (id, function) in ids.iter().zip(&functions) {
        let mut function = function.clone();
        function.name = UserFuncName::user(0, id.as_u32());
        name_callees(&mut function, &ids, &mut choices);
        module.define_function(*id, &mut Context::for_function(function)).unwrap();
    }
    let [data, table] = define_data(&mut module, &ids, &mut choices);
    define_run(&mut module, &ids, [data, table], &mut choices);
    module.finish().emit().unwrap()
}

fn target(level: &str, architecture: &str) -> Arc<dyn TargetIsa> {
    let mut flags = settings::builder();
    for (name, value) in [("is_pic", "true"), ("opt_level", level), ("enable_llvm_abi_extensions", "true")] {
        flags.set(name, value).unwrap();
    }
    // Little more than the baseline, so that some instructions are calls of libm.
    let mut builder = isa::lookup_by_name(&format!("{architecture}-unknown-linux-gnu")).unwrap();
    let features: &[&str] = if architecture == "x86_64" { &["has_sse3", "has_ssse3"] } else { &[] };
    features.iter().for_each(|feature| builder.enable(feature).unwrap());
    builder.finish(settings::Flags::new(flags)).unwrap()
}

/// Makes what is called by the name of a test case a function of the module, near or anywhere.
fn name_callees(function: &mut Function, ids: &[FuncId], choices: &mut Choices<'_>) {
    for callee in function.dfg.ext_funcs.keys().collect::<Vec<FuncRef>>() {
        let ExternalName::TestCase(name) = &function.dfg.ext_funcs[callee].name else { continue };
        let index: usize = name.to_string().trim_start_matches(['%', 'f']).parse().unwrap();
        let name = UserExternalName { namespace: 0, index: ids[index].as_u32() };
        let name = function.declare_imported_user_function(name);
        function.dfg.ext_funcs[callee].name = ExternalName::user(name);
        function.dfg.ext_funcs[callee].colocated = choices.below(2) == 0;
    }
}

/// Bytes, and a table of addresses: of bytes, then of functions.
fn define_data(module: &mut ObjectModule, functions: &[FuncId], choices: &mut Choices<'_>) -> [DataId; 2] {
    let linkage = *choices.of(&[Linkage::Local, Linkage::Export]);
    let data = module.declare_data("data", linkage, choices.below(2) == 0, false).unwrap();
    let mut description = DataDescription::new();
    description.define((0..DATA).map(|_| choices.below(256) as u8).collect());
    description.set_align(16);
    module.define_data(data, &description).unwrap();

    let table = module.declare_data("table", Linkage::Export, true, false).unwrap();
    let mut description = DataDescription::new();
    description.define(vec![0; 8 * (1 + functions.len())].into());
    let of_data = module.declare_data_in_data(data, &mut description);
    description.write_data_addr(0, of_data, 8 * choices.below(DATA / 8) as i64);
    for (index, function) in functions.iter().enumerate() {
        let function = module.declare_func_in_data(*function, &mut description);
        description.write_function_addr(8 * (1 + index as u32), function);
    }
    description.set_align(8);
    module.define_data(table, &description).unwrap();
    [data, table]
}

/// Calls each function by name and through the table, and mixes what they give.
fn define_run(module: &mut ObjectModule, functions: &[FuncId], [data, table]: [DataId; 2], choices: &mut Choices<'_>) {
    let mut signature = Signature::new(CallConv::SystemV);
    signature.returns.push(AbiParam::new(types::I64));
    let id = module.declare_function("run", Linkage::Export, &signature).unwrap();
    let mut context =
        Context::for_function(Function::with_name_signature(UserFuncName::user(0, id.as_u32()), signature));
    let mut scratch = FunctionBuilderContext::new();
    let mut builder = FunctionBuilder::new(&mut context.func, &mut scratch);
    let slot = builder.create_sized_stack_slot(StackSlotData::new(StackSlotKind::ExplicitSlot, 16, 4));
    let block = builder.create_block();
    builder.switch_to_block(block);
    let flags = MemFlagsData::new();
    let [data, table] = [data, table].map(|id| {
        let value = module.declare_data_in_func(id, builder.func);
        builder.ins().symbol_value(types::I64, value)
    });
    let pointer = builder.ins().load(types::I64, flags, table, 0);
    let mut hash = builder.ins().load(types::I64, flags, pointer, 0);
    for (index, function) in functions.iter().enumerate() {
        let callee = module.declare_func_in_func(*function, builder.func);
        builder.func.dfg.ext_funcs[callee].colocated = choices.below(2) == 0;
        let signature = builder.func.dfg.ext_funcs[callee].signature;
        let parameters = builder.func.dfg.signatures[signature].params.clone();
        for is_indirect in [false, true] {
            let arguments: Vec<_> = parameters
                .iter()
                .map(|parameter| {
                    let offset = 16 * choices.below(DATA / 16) as i32;
                    builder.ins().load(parameter.value_type, flags, data, offset)
                })
                .collect();
            let call = if is_indirect {
                let address = builder.ins().load(types::I64, flags, table, 8 * (1 + index as i32));
                builder.ins().call_indirect(signature, address, &arguments)
            } else {
                builder.ins().call(callee, &arguments)
            };
            for result in builder.inst_results(call).to_vec() {
                let zero = builder.ins().iconst(types::I64, 0);
                for offset in [0, 8] {
                    builder.ins().stack_store(types::I64, zero, slot, offset);
                }
                builder.ins().stack_store(types::I64, result, slot, 0);
                for offset in [0, 8] {
                    let word = builder.ins().stack_load(types::I64, types::I64, slot, offset);
                    hash = builder.ins().bxor(hash, word);
                    hash = builder.ins().imul_imm_s(hash, 0x100_0000_01b3);
                }
            }
        }
    }
    builder.ins().return_(&[hash]);
    builder.seal_all_blocks();
    builder.finalize(module.target_config());
    module.define_function(id, &mut context).unwrap();
}
