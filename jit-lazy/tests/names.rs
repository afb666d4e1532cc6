//! Names that only a module has, aliases, and what becomes of them when functions are compiled one by one.

mod common;

use common::{call, caller, constant, jit, redefine};
use cranelift_codegen::ir::{AbiParam, InstBuilder, types};
use cranelift_frontend::{FunctionBuilder, FunctionBuilderContext};
use cranelift_module::{DataDescription, FuncId, Linkage, Module};
use jit_core::{Alias, ClifModule, SymbolFlags};

/// `name` returns what `callee` returns, plus the number that is in data of no name.
fn add(module: &mut ClifModule, name: &str, linkage: Linkage, number: i64, callee: Option<FuncId>) -> FuncId {
    let mut data = DataDescription::new();
    data.define(number.to_le_bytes().into());
    data.set_align(8);
    let unnamed = module.declare_anonymous_data(false, false).unwrap();
    module.define_data(unnamed, &data).unwrap();
    let mut signature = module.make_signature();
    signature.returns.push(AbiParam::new(types::I64));
    let function = module.declare_function(name, linkage, &signature).unwrap();
    let mut context = module.make_context();
    context.func.signature = signature;
    let mut scratch = FunctionBuilderContext::new();
    let mut builder = FunctionBuilder::new(&mut context.func, &mut scratch);
    let block = builder.create_block();
    builder.switch_to_block(block);
    builder.seal_block(block);
    let unnamed = module.declare_data_in_func(unnamed, builder.func);
    let address = builder.ins().symbol_value(types::I64, unnamed);
    let mut value = builder.ins().load(types::I64, cranelift_codegen::ir::MemFlagsData::trusted(), address, 0);
    if let Some(callee) = callee {
        let callee = module.declare_func_in_func(callee, builder.func);
        let call = builder.ins().call(callee, &[]);
        let result = builder.inst_results(call)[0];
        value = builder.ins().iadd(value, result);
    }
    builder.ins().return_(&[value]);
    builder.finalize(module.target_config());
    module.define_function(function, &mut context).unwrap();
    function
}

#[test]
fn e2e_12_e2e_30_unnamed_data_and_private_functions_stay_their_modules_own() {
    let jit = jit();
    for (entry, number) in [("first", 1), ("second", 100)] {
        let mut module = jit.module(entry).redirectable();
        // Both modules have one of this name.
        let private = add(&mut module, "private", Linkage::Local, number, None);
        add(&mut module, entry, Linkage::Export, 10 * number, Some(private));
        jit.redefine(module).unwrap();
    }
    assert_eq!(jit.stats().compile.functions, 0);
    assert_eq!((call(&jit, "first"), call(&jit, "second")), (11, 1100));
    assert!(jit.lookup_address("private").is_err());
}

#[test]
fn e2e_22_an_alias_of_a_function_that_is_not_compiled_is_called() {
    let jit = jit();
    redefine(&jit, &constant("f", 7)).unwrap();
    let [name, aliasee] = ["other", "f"].map(|name| jit.session().intern(name));
    jit.main().define_aliases(vec![Alias { name, aliasee, flags: SymbolFlags::FUNCTION }]).unwrap();
    redefine(&jit, &caller("user", "other")).unwrap();
    assert_eq!(jit.lookup_address("other").unwrap(), jit.lookup_address("f").unwrap());
    assert_eq!(jit.stats().compile.functions, 0);
    assert_eq!((call(&jit, "user"), call(&jit, "other")), (107, 7));
    redefine(&jit, &constant("f", 8)).unwrap();
    assert_eq!((call(&jit, "user"), call(&jit, "other")), (108, 8));
}
