//! Functions as the reader of CLIF gives them, in a module, and calls of them with values of any type.

use std::collections::HashMap;

use orcane::cranelift::codegen::data_value::DataValue;
use orcane::cranelift::codegen::ir::{
    self, AbiParam, ArgumentPurpose, ExternalName, Function, InstBuilder, MemFlagsData, Signature, UserExternalName,
    UserFuncName,
};
use orcane::cranelift::frontend::{FunctionBuilder, FunctionBuilderContext};
use orcane::cranelift::module::{FuncId, Linkage, Module, default_libcall_names};
use orcane::{CallError, ClifModule, Jit};

use crate::Result;

/// Defines the file's functions, all exported. A name that the file does not define is imported.
pub(crate) fn define(module: &mut ClifModule, functions: Vec<Function>) -> Result<HashMap<String, FuncId>> {
    let mut ids = HashMap::new();
    for function in &functions {
        let name = function_name(&function.name);
        let id = module.declare_function(&name, Linkage::Export, &function.signature)?;
        if ids.insert(name.clone(), id).is_some() {
            return Err(format!("%{name} is defined twice").into());
        }
    }
    let mut context = module.make_context();
    for mut function in functions {
        let id = ids[&function_name(&function.name)];
        bind(module, &mut function, &mut ids)?;
        function.name = UserFuncName::user(0, id.as_u32());
        context.clear();
        context.func = function;
        module.define_function(id, &mut context)?;
    }
    Ok(ids)
}

/// Turns the names that a function calls into the module's.
fn bind(module: &mut ClifModule, function: &mut Function, ids: &mut HashMap<String, FuncId>) -> Result<()> {
    for func_ref in function.dfg.ext_funcs.keys().collect::<Vec<_>>() {
        let data = &function.dfg.ext_funcs[func_ref];
        let name = match &data.name {
            ExternalName::TestCase(name) => String::from_utf8_lossy(name.raw()).into_owned(),
            ExternalName::User(name) => user_name(&function.params.user_named_funcs()[*name]),
            ExternalName::LibCall(libcall) => default_libcall_names()(*libcall),
            ExternalName::KnownSymbol(symbol) => return Err(format!("no function is called {symbol}").into()),
        };
        let signature = function.dfg.signatures[data.signature].clone();
        let id = match ids.get(&name) {
            Some(id) => *id,
            None => module.declare_function(&name, Linkage::Import, &signature)?,
        };
        ids.insert(name, id);
        let colocated = module.declarations().get_function_decl(id).linkage.is_final();
        let name = function.declare_imported_user_function(UserExternalName { namespace: 0, index: id.as_u32() });
        let data = &mut function.dfg.ext_funcs[func_ref];
        data.name = ExternalName::user(name);
        data.colocated = colocated;
    }
    Ok(())
}

/// The symbol of a function: `%name` is `name`.
pub(crate) fn function_name(name: &UserFuncName) -> String {
    match name {
        UserFuncName::Testcase(name) => String::from_utf8_lossy(name.raw()).into_owned(),
        UserFuncName::User(name) => user_name(name),
    }
}

/// The symbol of a function that has numbers for a name, as CLIF writes it.
fn user_name(name: &UserExternalName) -> String {
    format!("u{}:{}", name.namespace, name.index)
}

/// Bytes of an argument or a result in the buffers: the widest type has as many.
pub(crate) const WIDTH: usize = 16;

type Call = unsafe extern "C" fn(*const [u8; WIDTH], *mut [u8; WIDTH]);

/// Calls a function through one that is made for it and has the name `caller`, which is free again afterwards. Where the
/// JIT catches traps, a trap is an error.
pub(crate) fn call(
    jit: &Jit,
    caller: &str,
    callee: &str,
    signature: &Signature,
    arguments: &[DataValue],
) -> Result<Vec<DataValue>> {
    let types = signature.params.iter().chain(&signature.returns);
    if let Some(param) = types.clone().find(|param| param.purpose != ArgumentPurpose::Normal) {
        return Err(format!("a parameter of purpose {} can't be passed from here", param.purpose).into());
    }
    if let Some(param) = types.clone().find(|param| param.value_type.bytes() as usize > WIDTH) {
        return Err(format!("values of type {} can't be passed from here", param.value_type).into());
    }
    if signature.params.len() != arguments.len() {
        return Err(format!("{callee} takes {} arguments, not {}", signature.params.len(), arguments.len()).into());
    }
    let mut module = jit.module(caller);
    define_caller(&mut module, caller, callee, signature)?;
    let tracker = jit.add_module(module)?;
    let results = jit.lookup::<Call>(caller).map(|function| {
        let mut buffer = vec![[0; WIDTH]; arguments.len()];
        for (argument, bytes) in arguments.iter().zip(&mut buffer) {
            argument.write_to_slice_ne(bytes);
        }
        let mut results = vec![[0; WIDTH]; signature.returns.len()];
        // SAFETY: the caller reads an argument from each element of the first buffer and writes a result to each of the
        // second, and they have as many. What the callee does is the duty of whoever wrote it.
        let called = unsafe { function.try_call(buffer.as_ptr(), results.as_mut_ptr()) };
        match called {
            Err(CallError::NotEnabled) => {
                // SAFETY: as before; nothing has been called.
                unsafe { function.call(buffer.as_ptr(), results.as_mut_ptr()) };
                Ok(results)
            }
            called => called.map(|()| results),
        }
    });
    tracker.remove()?;
    let returns = signature.returns.iter().zip(results??);
    Ok(returns.map(|(param, bytes)| DataValue::read_from_slice_ne(&bytes, param.value_type)).collect())
}

/// Defines a function that calls another with arguments from a buffer and leaves what it returns in a second one.
fn define_caller(module: &mut ClifModule, name: &str, callee: &str, signature: &Signature) -> Result<()> {
    let mut context = module.make_context();
    let pointer = module.target_config().pointer_type();
    context.func.signature.params.extend([AbiParam::new(pointer); 2]);
    let id = module.declare_function(name, Linkage::Export, &context.func.signature)?;
    let mut frontend = FunctionBuilderContext::new();
    let mut builder = FunctionBuilder::new(&mut context.func, &mut frontend);
    let block = builder.create_block();
    builder.append_block_params_for_function_params(block);
    builder.switch_to_block(block);
    builder.seal_block(block);
    let [arguments, results] = *builder.block_params(block) else { return Err("no buffers".into()) };
    let callee = module.declare_function(callee, Linkage::Import, signature)?;
    let callee = module.declare_func_in_func(callee, builder.func);
    // The buffers are aligned for bytes.
    let flags = MemFlagsData::new().with_notrap();
    let places = || (0..).step_by(WIDTH);
    let values: Vec<ir::Value> = signature
        .params
        .iter()
        .zip(places())
        .map(|(param, offset)| builder.ins().load(param.value_type, flags, arguments, offset))
        .collect();
    let call = builder.ins().call(callee, &values);
    for (value, offset) in builder.inst_results(call).to_vec().into_iter().zip(places()) {
        builder.ins().store(flags, value, results, offset);
    }
    builder.ins().return_(&[]);
    builder.finalize(module.target_config());
    module.define_function(id, &mut context)?;
    Ok(())
}
