//! Recursion: a small function that calls itself takes in one round of itself.
//!
//! Cranelift saves the registers that a function needs at its entry, also for a call that returns at once, as every other
//! one of a recursion in two branches does. With one round taken in, those are no calls any more.

use std::borrow::Cow;

use cranelift_codegen::inline::{Inline, InlineCommand};
use cranelift_codegen::ir::{self, FuncRef, Function, InstructionData, Opcode};
use cranelift_codegen::{CodegenResult, Context};
use cranelift_module::FuncId;

use super::inline::{function_of, is_about_the_frame};

/// Instructions that a function has at most.
const INSTRUCTIONS: usize = 24;
/// Calls of itself that it has at most: for each, its code is there once more.
const CALLS: usize = 3;

/// Takes a round into a function of a module. Its definition has to be final: what can be redefined is redefined for its
/// own calls, too.
pub(super) fn take_in_recursion(context: &mut Context, function: FuncId) -> CodegenResult<()> {
    let (func, own) = (&context.func, function.as_u32());
    // Of a function with a debugger's labels, every round is to have a frame.
    if func.dfg.values_labels.is_none() && is_worth_it(func, own) {
        let body = func.clone();
        context.inline(OneRound { body: &body, own })?;
    }
    Ok(())
}

fn is_worth_it(func: &Function, own: u32) -> bool {
    if !func.dfg.ext_funcs.keys().any(|callee| is_own(func, callee, own)) {
        return false;
    }
    let instructions = || func.layout.blocks().flat_map(|block| func.layout.block_insts(block));
    let calls = instructions().filter(|inst| match func.dfg.insts[*inst] {
        InstructionData::Call { opcode: Opcode::Call, func_ref, .. } => is_own(func, func_ref, own),
        _ => false,
    });
    (1..=CALLS).contains(&calls.count())
        && instructions().nth(INSTRUCTIONS).is_none()
        && instructions().all(|inst| !is_about_the_frame(func.dfg.insts[inst].opcode()))
}

/// Whether a reference means the function itself, as it was declared: Cranelift asserts that.
fn is_own(func: &Function, callee: FuncRef, own: u32) -> bool {
    function_of(func, callee) == Some(own)
        && func.dfg.signatures[func.dfg.ext_funcs[callee].signature] == func.signature
}

struct OneRound<'a> {
    body: &'a Function,
    own: u32,
}

impl Inline for OneRound<'_> {
    fn inline(
        &mut self,
        caller: &Function,
        _: ir::Inst,
        opcode: Opcode,
        callee: FuncRef,
        _: &[ir::Value],
    ) -> InlineCommand<'_> {
        if opcode == Opcode::Call && is_own(caller, callee, self.own) {
            return InlineCommand::Inline { callee: Cow::Borrowed(self.body), visit_callee: false };
        }
        InlineCommand::KeepCall
    }
}
