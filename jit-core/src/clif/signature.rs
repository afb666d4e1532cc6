//! The text of a calling signature: two functions may call each other if their texts are equal.

use std::fmt::Write;

use cranelift_codegen::ir::{AbiParam, ArgumentExtension, ArgumentPurpose, Signature};

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
    // Writing to a string can't fail.
    _ = write!(text, " {}", signature.call_conv);
    text
}

fn list(text: &mut String, params: &[AbiParam]) {
    for (index, param) in params.iter().enumerate() {
        if index > 0 {
            text.push_str(", ");
        }
        _ = write!(text, "{}", param.value_type);
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
