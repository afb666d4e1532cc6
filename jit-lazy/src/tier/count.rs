//! The code that counts in a function: where its loops begin again.

use jit_core::cranelift::codegen::cursor::{Cursor, FuncCursor};
use jit_core::cranelift::codegen::dominator_tree::DominatorTree;
use jit_core::cranelift::codegen::flowgraph::ControlFlowGraph;
use jit_core::cranelift::codegen::ir::{self, AbiParam, Block, InstBuilder, MemFlagsData, Signature, types};
use jit_core::cranelift::codegen::isa::CallConv;
use jit_core::cranelift::codegen::loop_analysis::LoopAnalysis;
use jit_core::seam::may_loop;

/// What code does to count: takes one from a 32-bit counter, and when that gives zero, calls a host function with the
/// counter's address.
#[derive(Clone, Copy, Debug)]
pub struct Counting {
    /// Where the counter is. It lives as long as the code.
    pub counter: u64,
    /// The host function: it takes a pointer and gives nothing.
    pub report: u64,
    /// Its calling convention.
    pub convention: CallConv,
}

/// Makes a function count the iterations of its loops. The default.
///
/// # Errors
///
/// None: a function without a body stays as it is.
pub fn count_loops(func: &mut ir::Function, counting: Counting) -> Result<(), String> {
    if may_loop(func) {
        for header in loop_headers(func) {
            count_at(func, header, counting);
        }
    }
    Ok(())
}

fn loop_headers(func: &ir::Function) -> Vec<Block> {
    let cfg = ControlFlowGraph::with_function(func);
    let tree = DominatorTree::with_function(func, &cfg);
    let mut loops = LoopAnalysis::new();
    loops.compute(func, &cfg, &tree);
    loops.loops().map(|of| loops.loop_header(of)).collect()
}

/// Makes a block count when it is entered. Several threads may count at once and lose some: the
/// counter goes down by steps of one and so comes by zero.
fn count_at(func: &mut ir::Function, block: Block, counting: Counting) {
    let Some(first) = func.layout.first_inst(block) else { return };
    let pointer = types::I64;
    let signature =
        Signature { params: vec![AbiParam::new(pointer)], returns: Vec::new(), call_conv: counting.convention };
    let signature = func.import_signature(signature);
    let (rest, hot) = (func.dfg.make_block(), func.dfg.make_block());
    func.layout.split_block(rest, first);
    func.layout.append_block(hot);
    func.layout.set_cold(hot);
    let mut cursor = FuncCursor::new(func).at_bottom(block);
    let counter = cursor.ins().iconst(pointer, counting.counter.cast_signed());
    let left = cursor.ins().load(types::I32, MemFlagsData::trusted(), counter, 0);
    let one = cursor.ins().iconst(types::I32, 1);
    let left = cursor.ins().isub(left, one);
    cursor.ins().store(MemFlagsData::trusted(), left, counter, 0);
    cursor.ins().brif(left, rest, &[], hot, &[]);
    cursor.goto_bottom(hot);
    let report = cursor.ins().iconst(pointer, counting.report.cast_signed());
    cursor.ins().call_indirect(signature, report, &[counter]);
    cursor.ins().jump(rest, &[]);
}
