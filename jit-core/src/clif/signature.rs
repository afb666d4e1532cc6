//! The text of a calling signature: two functions may call each other if their texts are equal.

use std::fmt::Write;

use cranelift_codegen::ir::{AbiParam, ArgumentExtension, ArgumentPurpose, Signature, Type, types};
use cranelift_codegen::isa::CallConv;

/// Stands in the place of a data object's signature: no function may be called by its name.
pub(crate) const DATA_OBJECT: &str = "data";

/// Types, extensions, purposes and calling convention, as CLIF writes them. No ABI of ours extends
/// values of 32 bits and more: there the extension is left out, whether a frontend says it or not.
pub(crate) fn describe(signature: &Signature) -> String {
    let mut text = String::with_capacity(32);
    text.push('(');
    list(&mut text, &signature.params);
    text.push(')');
    if !signature.returns.is_empty() {
        text.push_str(" -> ");
        list(&mut text, &signature.returns);
    }
    text.push(' ');
    match convention(signature.call_conv) {
        Some(name) => text.push_str(name),
        // Writing to a string can't fail.
        None => _ = write!(text, "{}", signature.call_conv),
    }
    text
}

fn list(text: &mut String, params: &[AbiParam]) {
    for (index, param) in params.iter().enumerate() {
        if index > 0 {
            text.push_str(", ");
        }
        match name_of(param.value_type) {
            Some(name) => text.push_str(name),
            None => _ = write!(text, "{}", param.value_type),
        }
        match param.extension {
            ArgumentExtension::Uext if param.value_type.bits() < 32 => text.push_str(" uext"),
            ArgumentExtension::Sext if param.value_type.bits() < 32 => text.push_str(" sext"),
            _ => {}
        }
        if param.purpose != ArgumentPurpose::Normal {
            _ = write!(text, " {}", param.purpose);
        }
    }
}

/// How CLIF writes a type that signatures are mostly made of: every module that is added has some described, and
/// formatting is slow.
fn name_of(value_type: Type) -> Option<&'static str> {
    Some(match value_type {
        types::I8 => "i8",
        types::I16 => "i16",
        types::I32 => "i32",
        types::I64 => "i64",
        types::I128 => "i128",
        types::F32 => "f32",
        types::F64 => "f64",
        _ => return None,
    })
}

/// How CLIF writes a calling convention that functions mostly have.
fn convention(call_conv: CallConv) -> Option<&'static str> {
    Some(match call_conv {
        CallConv::SystemV => "system_v",
        CallConv::Fast => "fast",
        CallConv::Tail => "tail",
        CallConv::AppleAarch64 => "apple_aarch64",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calling_conventions_are_written_as_clif_writes_them() {
        for call_conv in [CallConv::SystemV, CallConv::Fast, CallConv::Tail, CallConv::AppleAarch64] {
            assert_eq!(convention(call_conv), Some(&*call_conv.to_string()));
        }
        assert_eq!(convention(CallConv::WindowsFastcall), None);
    }

    #[test]
    fn types_are_written_as_clif_writes_them() {
        let known = [types::I8, types::I16, types::I32, types::I64, types::I128, types::F32, types::F64];
        for value_type in known {
            assert_eq!(name_of(value_type), Some(&*value_type.to_string()));
        }
        assert_eq!(name_of(types::F128), None);
        assert_eq!(name_of(types::I32X4), None);
    }
}
