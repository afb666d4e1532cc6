//! Functions from a file of CLIF, and a call of one of them.

use std::path::Path;

use orcane::Jit;
use orcane::cranelift::codegen::data_value::DataValue;
use orcane::cranelift::codegen::ir::{AbiParam, Signature, Type, types};
use orcane::cranelift::module::Module;

use crate::{Result, clif_module};

/// What the function that is called from here is named.
const CALL: &str = "call from the command line";

/// Calls `entry` of a file, and gives what it returns, printed.
pub(crate) fn run(jit: &Jit, file: &Path, entry: &str, arguments: &[String]) -> Result<Vec<String>> {
    let text = std::fs::read_to_string(file).map_err(|error| format!("{}: {error}", file.display()))?;
    let functions = cranelift_reader::parse_functions(&text).map_err(|error| format!("{}:{error}", file.display()))?;
    let mut module = jit.module(&file.display().to_string());
    let ids = clif_module::define(&mut module, functions)?;
    let entry_id = *ids.get(entry).ok_or_else(|| format!("{}: no function %{entry}", file.display()))?;
    let signature = module.declarations().get_function_decl(entry_id).signature.clone();
    let arguments = parse_arguments(&signature, arguments)?;
    jit.add_module(module)?;
    let results = clif_module::call(jit, CALL, entry, &signature, &arguments)?;
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
