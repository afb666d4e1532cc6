//! Functions from files of CLIF, and a call of one of them.

use std::collections::HashMap;

use orcane::cranelift::codegen::ir::{
    self, AbiParam, ExternalName, Function, InstBuilder, MemFlagsData, Signature, Type, UserExternalName, UserFuncName,
    types,
};
use orcane::cranelift::frontend::{FunctionBuilder, FunctionBuilderContext};
use orcane::cranelift::module::{FuncId, Linkage, Module};
use orcane::{ClifModule, Jit, JitDylib, JitFn};

use super::Result;

/// What the function that is called from here is named.
const CALL: &str = "call from the command line";

/// The functions that files of CLIF define, by name.
#[derive(Default)]
pub(super) struct ClifFiles {
    functions: HashMap<String, Signature>,
}

/// A function that is compiled, and what it is called with.
pub(super) struct Call {
    function: JitFn<unsafe extern "C" fn(*const u64, *mut u64)>,
    arguments: Vec<u64>,
    returns: Vec<Type>,
}

impl ClifFiles {
    /// Adds the functions of a file to a dylib.
    pub(super) fn add(&mut self, jit: &Jit, dylib: &JitDylib, file: &str, text: &str, lazy: bool) -> Result<()> {
        let functions = cranelift_reader::parse_functions(text).map_err(|error| format!("{file}:{error}"))?;
        let mut module = jit.module(file);
        // Only functions of `main` can be redirected, and so be lazy.
        let lazy = lazy && dylib == jit.main();
        if lazy {
            module = module.redirectable();
        }
        for (name, id) in define(&mut module, functions)? {
            let declaration = module.declarations().get_function_decl(id);
            if declaration.linkage.is_definable() {
                self.functions.insert(name, declaration.signature.clone());
            }
        }
        if lazy { jit.redefine(module)? } else { jit.clif_layer().add(&dylib.create_tracker()?, module)? }
        Ok(())
    }

    /// A call of `entry` with arguments from the command line, if a file of CLIF defines it.
    pub(super) fn call(&self, jit: &Jit, entry: &str, arguments: &[String]) -> Result<Option<Call>> {
        let Some(signature) = self.functions.get(entry) else { return Ok(None) };
        let arguments = parse_arguments(signature, arguments)?;
        let mut module = jit.module(CALL);
        let entry = module.declare_function(entry, Linkage::Import, signature)?;
        define_call(&mut module, entry, signature)?;
        jit.add_module(module)?;
        let function = jit.lookup(CALL)?;
        let returns = signature.returns.iter().map(|param| param.value_type).collect();
        Ok(Some(Call { function, arguments, returns }))
    }
}

impl Call {
    /// Calls the function, and gives what it returns, printed.
    pub(super) fn call(&self) -> Vec<String> {
        let mut results = vec![0u64; self.returns.len()];
        // SAFETY: `define_call` reads a word an argument and writes a word a result, and the buffers
        // have as many. What the file's own functions do is the duty of whoever wrote them.
        unsafe { self.function.call(self.arguments.as_ptr(), results.as_mut_ptr()) };
        self.returns.iter().zip(results).map(|(value_type, word)| show(*value_type, word)).collect()
    }
}

/// Defines the file's functions, all exported. A name that the file does not define is imported.
fn define(module: &mut ClifModule, functions: Vec<Function>) -> Result<HashMap<String, FuncId>> {
    let mut ids = HashMap::new();
    for function in &functions {
        let name = function_name(&function.name)?;
        let id = module.declare_function(&name, Linkage::Export, &function.signature)?;
        if ids.insert(name.clone(), id).is_some() {
            return Err(format!("%{name} is defined twice").into());
        }
    }
    let mut context = module.make_context();
    for mut function in functions {
        let id = ids[&function_name(&function.name)?];
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
        let ExternalName::TestCase(name) = &data.name else {
            return Err("functions are called by names such as %name".into());
        };
        let name = String::from_utf8_lossy(name.raw()).into_owned();
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

fn function_name(name: &UserFuncName) -> Result<String> {
    match name {
        UserFuncName::Testcase(name) => Ok(String::from_utf8_lossy(name.raw()).into_owned()),
        UserFuncName::User(name) => Err(format!("the function {name} has no name such as %name").into()),
    }
}

/// Defines a function that calls another with arguments from a buffer and leaves what it returns
/// in a second one, a word each.
fn define_call(module: &mut ClifModule, callee: FuncId, signature: &Signature) -> Result<()> {
    let mut context = module.make_context();
    let pointer = module.target_config().pointer_type();
    context.func.signature.params.extend([AbiParam::new(pointer); 2]);
    let id = module.declare_function(CALL, Linkage::Export, &context.func.signature)?;
    let mut frontend = FunctionBuilderContext::new();
    let mut builder = FunctionBuilder::new(&mut context.func, &mut frontend);
    let block = builder.create_block();
    builder.append_block_params_for_function_params(block);
    builder.switch_to_block(block);
    builder.seal_block(block);
    let [arguments, results] = *builder.block_params(block) else { return Err("no buffers".into()) };
    let callee = module.declare_func_in_func(callee, builder.func);
    let flags = MemFlagsData::trusted();
    let values: Vec<ir::Value> = signature
        .params
        .iter()
        .zip(0..)
        .map(|(param, index)| builder.ins().load(param.value_type, flags, arguments, 8 * index))
        .collect();
    let call = builder.ins().call(callee, &values);
    for (value, index) in builder.inst_results(call).to_vec().into_iter().zip(0..) {
        builder.ins().store(flags, value, results, 8 * index);
    }
    builder.ins().return_(&[]);
    builder.finalize(module.target_config());
    module.define_function(id, &mut context)?;
    Ok(())
}

fn parse_arguments(signature: &Signature, arguments: &[String]) -> Result<Vec<u64>> {
    if signature.params.len() != arguments.len() {
        return Err(format!("the function takes {} arguments, not {}", signature.params.len(), arguments.len()).into());
    }
    if let Some(param) = signature.params.iter().chain(&signature.returns).find(|param| !is_word(param.value_type)) {
        return Err(format!("values of type {} can't be passed from here", param.value_type).into());
    }
    let parse = |(param, text): (&AbiParam, &String)| {
        let failed = || format!("'{text}' is no {}", param.value_type);
        Ok(match param.value_type {
            types::F32 => u64::from(text.parse::<f32>().map_err(|_| failed())?.to_bits()),
            types::F64 => text.parse::<f64>().map_err(|_| failed())?.to_bits(),
            integer => {
                let value = text.parse::<i128>().map_err(|_| failed())?;
                let bits = integer.bits();
                if !(-(1i128 << (bits - 1))..1i128 << bits).contains(&value) {
                    return Err(failed().into());
                }
                value as u64
            }
        })
    };
    signature.params.iter().zip(arguments).map(parse).collect()
}

fn is_word(value_type: Type) -> bool {
    matches!(value_type, types::I8 | types::I16 | types::I32 | types::I64 | types::F32 | types::F64)
}

fn show(value_type: Type, word: u64) -> String {
    match value_type {
        types::F32 => f32::from_bits(word as u32).to_string(),
        types::F64 => f64::from_bits(word).to_string(),
        integer => {
            let shift = 64 - integer.bits();
            ((word << shift).cast_signed() >> shift).to_string()
        }
    }
}
