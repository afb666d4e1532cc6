//! Functions as text: their CLIF, and the machine code that becomes of it.

use std::fmt::Write;

use cranelift_codegen::binemit::CodeOffset;
use cranelift_codegen::control::ControlPlane;
use cranelift_codegen::ir::{self, ExternalName, UserExternalName};
use cranelift_codegen::{Context, FinalizedRelocTarget};
use cranelift_frontend::FunctionBuilderContext;
use cranelift_module::{FuncId, Module, ModuleError};
use iced_x86::{Decoder, DecoderOptions, Formatter, Instruction, NasmFormatter};

use crate::ast::{Expr, Item, Parameter};
use crate::lower::{LowerError, Symbols, lower};

/// The CLIF of all functions and top-level expressions of a program, in order. `module` is only declared in.
///
/// # Errors
/// As [`lower`].
pub fn program_clif<M: Module>(module: &mut M, items: &[Item]) -> Result<String, LowerError> {
    let mut text = String::new();
    for item in items {
        let clif = match item {
            Item::Definition(function) => {
                clif(module, &function.prototype.to_string(), &function.prototype.parameters, &function.body)?
            }
            Item::Expression(expression) => clif(module, "a top-level expression", &[], expression)?,
            Item::Extern(_) => continue,
        };
        if !text.is_empty() {
            text.push('\n');
        }
        text.push_str(&clif);
    }
    Ok(text)
}

/// The CLIF of a function, headed by `title`. `module` is only declared in.
///
/// # Errors
/// As [`lower`].
pub fn clif<M: Module>(
    module: &mut M,
    title: &str,
    parameters: &[Parameter],
    body: &Expr,
) -> Result<String, LowerError> {
    let context = lowered(module, parameters, body)?;
    let mut text = format!("; {title}\n");
    for (_, name) in context.func.params.user_named_funcs().iter() {
        let callee = declared_name(module, name);
        put(&mut text, format_args!("; {name} is {callee}\n"));
    }
    put(&mut text, format_args!("{}", context.func.display()));
    Ok(text)
}

/// The machine code of a function, disassembled, headed by `title`. `module` is only declared in.
///
/// # Errors
/// As [`lower`], or the code generator refuses the function.
pub fn assembly<M: Module>(
    module: &mut M,
    title: &str,
    parameters: &[Parameter],
    body: &Expr,
) -> Result<String, LowerError> {
    let mut context = lowered(module, parameters, body)?;
    let is_x86_64 = module.isa().triple().architecture == target_lexicon::Architecture::X86_64;
    context.set_disasm(!is_x86_64);
    context
        .compile(module.isa(), &mut ControlPlane::default())
        .map_err(|error| LowerError::from(ModuleError::Compilation(error.inner)))?;
    let mut text = format!("; {title}\n");
    let Some(code) = context.compiled_code() else { return Ok(text) };
    match &code.vcode {
        Some(disassembly) => text.push_str(disassembly),
        None => {
            let references: Vec<(CodeOffset, String)> = (code.buffer.relocs().iter())
                .map(|reloc| (reloc.offset, target_name(module, &context.func, &reloc.target)))
                .collect();
            disassemble(&mut text, code.code_buffer(), &references);
        }
    }
    Ok(text)
}

fn lowered<M: Module>(module: &mut M, parameters: &[Parameter], body: &Expr) -> Result<Context, LowerError> {
    let mut context = module.make_context();
    let mut scratch = FunctionBuilderContext::new();
    lower(module, &Symbols::default(), &mut scratch, &mut context, parameters, body)?;
    Ok(context)
}

/// The symbol of a function that the module has declared; nothing else is referred to without slots.
fn declared_name<M: Module>(module: &M, name: &UserExternalName) -> String {
    let id = FuncId::from_u32(name.index);
    module.declarations().get_function_decl(id).linkage_name(id).into_owned()
}

fn target_name<M: Module>(module: &M, function: &ir::Function, target: &FinalizedRelocTarget) -> String {
    if let FinalizedRelocTarget::ExternalName(ExternalName::User(reference)) = target
        && let Some(name) = function.params.user_named_funcs().get(*reference)
    {
        return declared_name(module, name);
    }
    format!("{target:?}")
}

/// Writes one instruction a line, with its offset, and with the name that it refers to; then the constants.
fn disassemble(text: &mut String, code: &[u8], references: &[(CodeOffset, String)]) {
    let mut formatter = NasmFormatter::new();
    let mut instruction = Instruction::default();
    let mut decoder = Decoder::with_ip(64, code, 0, DecoderOptions::NONE);
    // Where the constants begin, which come after the code.
    let mut constants = code.len();
    while decoder.can_decode() && decoder.position() < constants {
        let rest = &code[decoder.position()..constants];
        if constants < code.len() && rest.iter().all(|&byte| byte == 0) {
            break;
        }
        decoder.decode_out(&mut instruction);
        let place = instruction.ip()..instruction.next_ip();
        let reference = references.iter().find(|(offset, _)| place.contains(&u64::from(*offset)));
        if reference.is_none() && instruction.is_ip_rel_memory_operand() {
            let target = usize::try_from(instruction.ip_rel_memory_address()).unwrap_or(constants);
            constants = constants.min(target);
        }
        let mut line = String::new();
        formatter.format(&instruction, &mut line);
        put(text, format_args!("{:6x}  {line}", instruction.ip()));
        if let Some((_, name)) = reference {
            put(text, format_args!("  ; {name}"));
        }
        text.push('\n');
    }
    for (index, constant) in code[constants..].chunks_exact(8).enumerate() {
        let bits = constant.iter().rev().fold(0, |bits, &byte| bits << 8 | u64::from(byte));
        put(text, format_args!("{:6x}  dq {:?}\n", constants + 8 * index, f64::from_bits(bits)));
    }
}

fn put(text: &mut String, arguments: std::fmt::Arguments<'_>) {
    // A string never refuses.
    _ = text.write_fmt(arguments);
}
