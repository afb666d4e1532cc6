//! A program as an object file, to be linked with `runtime/runtime.c`.

use std::collections::HashMap;

use cranelift_codegen::Context;
use cranelift_codegen::ir::{AbiParam, InstBuilder, MemFlagsData, types};
use cranelift_codegen::isa::OwnedTargetIsa;
use cranelift_frontend::{FunctionBuilder, FunctionBuilderContext};
use cranelift_module::{DataDescription, DataId, FuncId, Linkage, Module, ModuleError, default_libcall_names};
use cranelift_object::{ObjectBuilder, ObjectModule};

use crate::ast::Item;
use crate::image::{Image, Import, PRINT, Step};
use crate::lower::{LowerError, Symbols, lower, signature};

/// Why there is no object file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ObjectError {
    /// A function could not be compiled.
    #[error(transparent)]
    Lower(#[from] LowerError),
    /// The program throws or catches, which only the JIT has the runtime for.
    #[error("`throw` and `try` need the JIT")]
    Exceptions,
    /// The file could not be written out.
    #[error("cannot write the object file: {0}")]
    Write(#[from] cranelift_object::object::write::Error),
}

impl From<ModuleError> for ObjectError {
    fn from(error: ModuleError) -> Self {
        Self::Lower(error.into())
    }
}

/// Compiles a program, whose items have been admitted in this order, to an object file for the target of `isa`.
///
/// If there are top-level expressions, the object has a `main` that prints their values, and everything else is local
/// to it. If not, it exports the functions.
///
/// # Errors
/// The program throws or catches, the code generator has a limit that it exceeds, or
/// [`image::check`](crate::image::check) would have refused it.
pub fn emit(isa: OwnedTargetIsa, items: &[Item]) -> Result<Vec<u8>, ObjectError> {
    if items.iter().any(|item| item.exception().is_some()) {
        return Err(ObjectError::Exceptions);
    }
    let mut module = ObjectModule::new(ObjectBuilder::new(isa, "kaleidoscope", default_libcall_names())?);
    define_image(&mut module, Image::new(items))?;
    Ok(module.finish().emit()?)
}

fn define_image<M: Module>(module: &mut M, image: Image<'_>) -> Result<(), ObjectError> {
    let linkage = if image.is_program() { Linkage::Local } else { Linkage::Export };
    let mut ids = Vec::new();
    for body in &image.bodies {
        let signature = signature(module, body.parameters.len());
        ids.push(module.declare_function(&body.symbol, linkage, &signature)?);
    }
    let mut imports = HashMap::new();
    for Import { name, arity, .. } in &image.imports {
        let signature = signature(module, *arity);
        imports.insert(name, module.declare_function(name, Linkage::Import, &signature)?);
    }
    let mut slots = Vec::new();
    let mut symbols = Symbols::default();
    for slot in &image.slots {
        let id = module.declare_data(&slot.symbol, Linkage::Local, true, false)?;
        define_slot(module, id, slot.initial.map_or_else(|| imports[&slot.name], |body| ids[body]))?;
        symbols.slots.insert(slot.name.clone(), id);
        slots.push(id);
    }
    symbols.renamed = image.renamed;

    let mut scratch = FunctionBuilderContext::new();
    let mut context = module.make_context();
    for (body, &id) in image.bodies.iter().zip(&ids) {
        lower(module, &symbols, &mut scratch, &mut context, body.parameters, body.expression)?;
        module.define_function(id, &mut context)?;
        module.clear_context(&mut context);
    }
    // Last: a symbol is as weak as its last declaration, and each caller makes one.
    for Import { name, arity, .. } in image.imports.iter().filter(|import| import.is_weak) {
        let signature = signature(module, *arity);
        module.declare_function(name, Linkage::Preemptible, &signature)?;
    }
    if !image.steps.is_empty() {
        define_main(module, &mut scratch, &mut context, &image.steps, &ids, &slots)?;
    }
    Ok(())
}

fn define_slot<M: Module>(module: &mut M, slot: DataId, initial: FuncId) -> Result<(), ModuleError> {
    let mut data = DataDescription::new();
    let size = module.target_config().pointer_bytes();
    data.define(vec![0; usize::from(size)].into_boxed_slice());
    data.set_align(u64::from(size));
    let initial = module.declare_func_in_data(initial, &mut data);
    data.write_function_addr(0, initial);
    module.define_data(slot, &data)
}

fn define_main<M: Module>(
    module: &mut M,
    scratch: &mut FunctionBuilderContext,
    context: &mut Context,
    steps: &[Step],
    bodies: &[FuncId],
    slots: &[DataId],
) -> Result<(), ModuleError> {
    let mut printer = module.make_signature();
    printer.params.push(AbiParam::new(types::F64));
    let printer = module.declare_function(PRINT, Linkage::Import, &printer)?;
    context.func.signature.returns.push(AbiParam::new(types::I32));
    let main = module.declare_function("main", Linkage::Export, &context.func.signature)?;

    let pointer = module.target_config().pointer_type();
    let mut builder = FunctionBuilder::new(&mut context.func, scratch);
    let block = builder.create_block();
    builder.switch_to_block(block);
    builder.seal_block(block);
    let printer = module.declare_func_in_func(printer, builder.func);
    for &step in steps {
        match step {
            Step::Evaluate(body) => {
                let body = module.declare_func_in_func(bodies[body], builder.func);
                let call = builder.ins().call(body, &[]);
                let value = builder.inst_results(call)[0];
                builder.ins().call(printer, &[value]);
            }
            Step::Redefine { slot, body } => {
                let body = module.declare_func_in_func(bodies[body], builder.func);
                let body = builder.ins().func_addr(pointer, body);
                let slot = module.declare_data_in_func(slots[slot], builder.func);
                let slot = builder.ins().symbol_value(pointer, slot);
                builder.ins().store(MemFlagsData::trusted(), body, slot, 0);
            }
        }
    }
    let status = builder.ins().iconst(types::I32, 0);
    builder.ins().return_(&[status]);
    builder.finalize(module.target_config());
    module.define_function(main, context)?;
    module.clear_context(context);
    Ok(())
}
