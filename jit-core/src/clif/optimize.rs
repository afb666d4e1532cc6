//! What is done to functions beside what Cranelift does, where code is to be fast.

use cranelift_codegen::isa::TargetIsa;
use cranelift_codegen::settings::OptLevel;
use cranelift_codegen::{CodegenResult, Context};
use cranelift_module::FuncId;

use super::recursion::take_in_recursion;
use super::rotate::rotate_loops;

/// Makes a function of a module ready for Cranelift. `is_final` says that its own calls lead to this definition, always.
pub(super) fn optimize(
    context: &mut Context,
    isa: &dyn TargetIsa,
    function: FuncId,
    is_final: bool,
) -> CodegenResult<()> {
    if isa.flags().opt_level() != OptLevel::None {
        if is_final {
            take_in_recursion(context, function)?;
        }
        rotate_loops(context);
    }
    Ok(())
}
