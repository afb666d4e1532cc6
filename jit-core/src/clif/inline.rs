//! `InlineSmallFunctions`: small functions of a module, put into those that call them.

use std::borrow::Cow;

use cranelift_codegen::Context;
use cranelift_codegen::entity::EntityRef;
use cranelift_codegen::inline::{Inline, InlineCommand};
use cranelift_codegen::ir::{self, Opcode};
use cranelift_module::FuncId;
use rustc_hash::FxHashMap;

use super::module::{ClifModule, FUNCTION};
use super::transform::{ClifTransform, FunctionTransform, TransformError};
use crate::sync::Arc;

/// Inlines functions of a module into others of the same module, by Cranelift's inliner.
///
/// A function is inlined if it is small, does not call itself, and is final: what can be redefined
/// or preempted is inlined into nobody. Bodies are inlined as they were added: of several layers
/// this is best the outermost, so that the others see what was inlined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InlineSmallFunctions {
    /// Instructions that a function has at most, its return included.
    pub instructions: usize,
}

impl Default for InlineSmallFunctions {
    /// Twelve instructions: about what a call costs.
    fn default() -> Self {
        Self { instructions: 12 }
    }
}

impl ClifTransform for InlineSmallFunctions {
    fn begin(&self, module: &ClifModule) -> Box<dyn FunctionTransform> {
        let candidates = (0..module.function_count as u32).map(FuncId::from_u32);
        let small = candidates.filter_map(|id| {
            let body = module.clif(id).filter(|_| module.is_final(id))?;
            let is_small = body.insts().nth(self.instructions).is_none();
            let body = is_small.then(|| body.to_function())?;
            can_be_inlined(id, &body).then(|| (id.as_u32(), body))
        });
        Box::new(SmallFunctions(Arc::new(small.collect())))
    }
}

fn can_be_inlined(id: FuncId, body: &ir::Function) -> bool {
    let mut instructions = body.layout.blocks().flat_map(|block| body.layout.block_insts(block));
    instructions.all(|inst| match body.dfg.insts[inst] {
        ir::InstructionData::Call { func_ref, .. } | ir::InstructionData::TryCall { func_ref, .. } => {
            function_of(body, func_ref) != Some(id.as_u32())
        }
        data => !is_about_the_frame(data.opcode()),
    })
}

/// Whether an instruction means another thing in another function's frame.
pub(super) fn is_about_the_frame(opcode: Opcode) -> bool {
    matches!(opcode, Opcode::GetFramePointer | Opcode::GetStackPointer | Opcode::GetReturnAddress)
}

/// The module's function that a reference means.
pub(super) fn function_of(caller: &ir::Function, callee: ir::FuncRef) -> Option<u32> {
    let ir::ExternalName::User(name) = caller.dfg.ext_funcs.get(callee)?.name else { return None };
    let name = caller.params.user_named_funcs().get(name)?;
    (name.namespace == FUNCTION).then_some(name.index)
}

/// The functions of one module that are inlined.
struct SmallFunctions(Arc<FxHashMap<u32, ir::Function>>);

impl FunctionTransform for SmallFunctions {
    fn apply(&self, function: FuncId, context: &mut Context) -> Result<(), TransformError> {
        if !self.0.is_empty() {
            context.inline(Inliner { small: &self.0, own: function.index() as u32 })?;
        }
        Ok(())
    }
}

struct Inliner<'a> {
    small: &'a FxHashMap<u32, ir::Function>,
    own: u32,
}

impl Inline for Inliner<'_> {
    fn inline(
        &mut self,
        caller: &ir::Function,
        _: ir::Inst,
        _: Opcode,
        callee: ir::FuncRef,
        _: &[ir::Value],
    ) -> InlineCommand<'_> {
        let index = function_of(caller, callee).filter(|index| *index != self.own);
        let body = index.and_then(|index| self.small.get(&index));
        // Cranelift asserts that the declaration is the definition's.
        let declared = &caller.dfg.signatures[caller.dfg.ext_funcs[callee].signature];
        match body.filter(|body| body.signature == *declared) {
            Some(body) => InlineCommand::Inline { callee: Cow::Borrowed(body), visit_callee: false },
            None => InlineCommand::KeepCall,
        }
    }
}
