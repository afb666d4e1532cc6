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

#[cfg(test)]
mod tests {
    use cranelift_codegen::settings::{self, Flags};
    use cranelift_codegen::verify_function;

    use super::*;

    /// How many calls a function has, before and after, if it is function 0 of its module.
    fn calls(text: &str) -> [usize; 2] {
        let func = cranelift_reader::parse_functions(text).expect("the text is CLIF").remove(0);
        let count = |func: &Function| {
            let instructions = func.layout.blocks().flat_map(|block| func.layout.block_insts(block));
            instructions.filter(|inst| func.dfg.insts[*inst].opcode().is_call()).count()
        };
        let before = count(&func);
        let mut context = Context::for_function(func);
        take_in_recursion(&mut context, FuncId::from_u32(0)).expect("it is inlined or not");
        let after = count(&context.func);
        if after != before {
            let flags = Flags::new(settings::builder());
            verify_function(&context.func, &flags).unwrap_or_else(|errors| panic!("{errors}{}", context.func));
        }
        [before, after]
    }

    fn fib(reference: &str, body: &str) -> String {
        format!(
            "function %fib(i64) -> i64 system_v {{
                sig0 = (i64) -> i64 system_v
                fn0 = {reference} sig0
            block0(v0: i64):
                v1 = iconst.i64 2
                v2 = icmp slt v0, v1
                brif v2, block2, block1
            block1:
                {body}
                v6 = isub v0, v1
                v7 = call fn0(v6)
                return v7
            block2:
                return v0
            }}"
        )
    }

    #[test]
    fn a_round_is_taken_in_and_no_more() {
        assert_eq!(calls(&fib("u0:0", "")), [1, 1]);
        assert_eq!(calls(&fib("u0:0", "v3 = call fn0(v0)")), [2, 4]);
    }

    #[test]
    fn calls_of_others_stay() {
        assert_eq!(calls(&fib("u0:1", "v3 = call fn0(v0)")), [2, 2]);
    }

    #[test]
    fn what_is_long_or_calls_itself_often_or_looks_at_its_frame_stays() {
        let long: String = (10..30).map(|value| format!("v{value} = iadd v0, v0\n")).collect();
        let often: String = (10..13).map(|value| format!("v{value} = call fn0(v0)\n")).collect();
        assert_eq!(calls(&fib("u0:0", &long)), [1, 1]);
        assert_eq!(calls(&fib("u0:0", &format!("v3 = call fn0(v0)\n{long}"))), [2, 2]);
        assert_eq!(calls(&fib("u0:0", &often)), [4, 4]);
        assert_eq!(calls(&fib("u0:0", "v3 = call fn0(v0)\n v4 = get_return_address.i64")), [2, 2]);
    }
}
