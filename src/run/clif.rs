//! Functions from files of CLIF, and a call of one of them.

use std::collections::HashMap;

use orcane::cranelift::codegen::data_value::DataValue;
use orcane::cranelift::codegen::ir::{AbiParam, Signature, Type, types};
use orcane::cranelift::module::Module;
use orcane::{Jit, JitDylib};

use crate::{Result, clif_module};

/// What the function that is called from here is named.
const CALL: &str = "call from the command line";

/// The functions that files of CLIF define, by name.
#[derive(Default)]
pub(super) struct ClifFiles {
    functions: HashMap<String, Signature>,
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
        for (name, id) in clif_module::define(&mut module, functions)? {
            let declaration = module.declarations().get_function_decl(id);
            if declaration.linkage.is_definable() {
                self.functions.insert(name, declaration.signature.clone());
            }
        }
        if lazy {
            jit.redefine(module)?;
        } else {
            jit.clif_layer().add(&dylib.create_tracker()?, module)?;
        }
        Ok(())
    }

    /// The signature of a function that a file defines.
    pub(super) fn signature(&self, function: &str) -> Option<&Signature> {
        self.functions.get(function)
    }
}

/// Calls a function with arguments from the command line, and gives what it returns, printed.
pub(super) fn call(jit: &Jit, function: &str, signature: &Signature, arguments: &[String]) -> Result<Vec<String>> {
    let arguments = parse_arguments(signature, arguments)?;
    let results = clif_module::call(jit, CALL, function, signature, &arguments)?;
    Ok(results.iter().map(show).collect())
}

fn parse_arguments(signature: &Signature, arguments: &[String]) -> Result<Vec<DataValue>> {
    if signature.params.len() != arguments.len() {
        return Err(format!("the function takes {} arguments, not {}", signature.params.len(), arguments.len()).into());
    }
    if let Some(param) = signature.params.iter().chain(&signature.returns).find(|param| !is_word(param.value_type)) {
        return Err(format!("values of type {} can't be passed from here", param.value_type).into());
    }
    let parse = |(param, text): (&AbiParam, &String)| {
        let failed = || format!("'{text}' is no {}", param.value_type);
        Ok(match param.value_type {
            types::F32 => DataValue::F32(text.parse::<f32>().map_err(|_| failed())?.into()),
            types::F64 => DataValue::F64(text.parse::<f64>().map_err(|_| failed())?.into()),
            integer => {
                let value = text.parse::<i128>().map_err(|_| failed())?;
                let bits = integer.bits();
                if !(-(1i128 << (bits - 1))..1i128 << bits).contains(&value) {
                    return Err(failed().into());
                }
                DataValue::from_integer(value, integer).map_err(|_| failed())?
            }
        })
    };
    signature.params.iter().zip(arguments).map(parse).collect()
}

fn is_word(value_type: Type) -> bool {
    matches!(value_type, types::I8 | types::I16 | types::I32 | types::I64 | types::F32 | types::F64)
}

fn show(value: &DataValue) -> String {
    match value {
        DataValue::F32(value) => value.as_f32().to_string(),
        DataValue::F64(value) => value.as_f64().to_string(),
        integer => integer.to_string(),
    }
}
