//! Loop rotation: the test of a loop goes from its beginning to its end.
//!
//! ```text
//! header: test, or leave             header: test, or leave
//! body                        =>     body
//! back to header                     test: back to body, or leave
//! ```
//!
//! Frontends write loops as on the left, and Cranelift keeps them so: two jumps a round, where one will do. Nothing is
//! executed more or less often than before, so any test may move. Of what the header defines, the body and what comes
//! after the loop now have two definitions: they get them as parameters of blocks.

use cranelift_codegen::Context;
use cranelift_codegen::cursor::{Cursor, FuncCursor};
use cranelift_codegen::dominator_tree::DominatorTree;
use cranelift_codegen::entity::EntitySet;
use cranelift_codegen::flowgraph::ControlFlowGraph;
use cranelift_codegen::ir::{Block, BlockArg, Function, Inst, InstBuilder, InstructionData, Opcode, Value};
use cranelift_codegen::loop_analysis::LoopAnalysis;
use rustc_hash::FxHashMap;
use smallvec::SmallVec;

/// Instructions that a header has at most.
const INSTRUCTIONS: usize = 12;
/// Loops of a function that are looked at. Each costs what the function's size is.
const LOOPS: usize = 32;

/// Rotates the loops of a function whose tests are small.
pub(super) fn rotate_loops(context: &mut Context) {
    // A value's label would have to go with each of its definitions.
    if !may_rotate(&context.func) || context.func.dfg.values_labels.is_some() {
        return;
    }
    context.func.dfg.resolve_all_aliases();
    analyse(context);
    let loops = &context.loop_analysis;
    let mut headers: Vec<_> = loops.loops().map(|one| loops.loop_header(one)).take(LOOPS).collect();
    while let Some(header) = headers.pop() {
        let Context { func, cfg, domtree: tree, loop_analysis: loops, .. } = context;
        let analysis = Analysis { cfg, tree, loops };
        let Some(found) = Loop::find(func, &analysis, header) else { continue };
        found.rotate(func, &analysis);
        if !headers.is_empty() {
            analyse(context);
        }
    }
    // They are not what the function is now, which a verifier would find.
    context.cfg.clear();
    context.domtree.clear();
    context.loop_analysis.clear();
}

/// In the context's tables, whose memory is there already.
fn analyse(context: &mut Context) {
    context.compute_cfg();
    context.compute_domtree();
    context.compute_loop_analysis();
}

/// Whether a jump leads to a test that stands before it: analysis costs more than all the rest, and most functions have no
/// such loop. Where the test stands last, there is one jump a round already.
fn may_rotate(func: &Function) -> bool {
    let mut seen = EntitySet::with_capacity(func.dfg.num_blocks());
    func.layout.blocks().any(|block| {
        seen.insert(block);
        let last_of = |block| func.layout.last_inst(block).map(|last| func.dfg.insts[last]);
        let Some(InstructionData::Jump { destination, .. }) = last_of(block) else { return false };
        let header = destination.block(&func.dfg.value_lists);
        seen.contains(header) && matches!(last_of(header), Some(InstructionData::Brif { .. }))
    })
}

/// Whether a function may loop, for transforms that would have to analyse it: whether a branch leads to a block that
/// stands before it, as one of any loop does. Most functions have none.
#[must_use]
pub fn may_loop(func: &Function) -> bool {
    let mut seen = EntitySet::with_capacity(func.dfg.num_blocks());
    func.layout.blocks().any(|block| {
        seen.insert(block);
        let Some(last) = func.layout.last_inst(block) else { return false };
        let (tables, exceptions) = (&func.dfg.jump_tables, &func.dfg.exception_tables);
        let mut targets = func.dfg.insts[last].branch_destination(tables, exceptions).iter();
        targets.any(|target| seen.contains(target.block(&func.dfg.value_lists)))
    })
}

struct Analysis<'a> {
    cfg: &'a ControlFlowGraph,
    tree: &'a DominatorTree,
    loops: &'a LoopAnalysis,
}

impl Analysis<'_> {
    /// The blocks that are only reached through the edge from `header` to `target`.
    fn behind(&self, header: Block, target: Block) -> Vec<Block> {
        let mut others = self.cfg.pred_iter(target).filter(|from| from.block != header);
        if others.any(|from| !self.tree.block_dominates(target, from.block)) {
            return Vec::new();
        }
        self.tree.cfg_rpo().copied().filter(|block| self.tree.block_dominates(target, *block)).collect()
    }
}

/// A loop that can be rotated.
struct Loop {
    header: Block,
    /// Where the header's test leads: into the loop and out of it, in the order of its branch.
    ways: [Way; 2],
    /// What the test is of.
    condition: Value,
    /// The jump back to the header.
    back: Inst,
}

/// A way on from the header.
struct Way {
    target: Block,
    arguments: Vec<BlockArg>,
    /// What is only reached on this way.
    behind: Vec<Block>,
    /// Whether only this way leads to the target.
    is_only: bool,
}

impl Loop {
    fn find(func: &Function, analysis: &Analysis<'_>, header: Block) -> Option<Self> {
        let Analysis { cfg, tree, loops } = analysis;
        let own = loops.is_loop_header(header)?;
        let last = func.dfg.insts[func.layout.last_inst(header)?];
        let InstructionData::Brif { arg: condition, blocks, .. } = last else { return None };
        let ways = blocks.map(|call| {
            let lists = &func.dfg.value_lists;
            let target = call.block(lists);
            let is_only = cfg.pred_iter(target).count() == 1;
            Way { target, arguments: call.args(lists).collect(), behind: analysis.behind(header, target), is_only }
        });
        let insts = || func.layout.block_insts(header);
        let is_small = insts().nth(INSTRUCTIONS).is_none();
        let leaves = ways.iter().filter(|way| !loops.is_in_loop(way.target, own)).count() == 1;
        if !is_small || !leaves || insts().any(|inst| func.dfg.insts[inst].opcode().is_call()) {
            return None;
        }
        let mut backs = cfg.pred_iter(header).filter(|from| tree.block_dominates(header, from.block));
        let (back, None) = (backs.next()?.inst, backs.next()) else { return None };
        let goes_back = matches!(func.dfg.insts[back], InstructionData::Jump { .. });
        goes_back.then_some(Self { header, ways, condition, back })
    }

    fn rotate(self, func: &mut Function, analysis: &Analysis<'_>) {
        self.move_constants(func);
        self.reuse(func);
        let results = func.layout.block_insts(self.header).flat_map(|inst| func.dfg.inst_results(inst));
        let mut defined = EntitySet::new();
        defined.extend(func.dfg.block_params(self.header).iter().chain(results).copied());
        if !self.is_only_used_behind(func, analysis, &defined) {
            return;
        }

        let Some(test) = func.layout.last_inst(self.header) else { return };
        let edges = self.ways.map(|way| way.with_edge(func, self.header, &defined));
        let InstructionData::Jump { destination, .. } = func.dfg.insts[self.back] else { return };
        let arguments: Vec<_> = destination.args(&func.dfg.value_lists).collect();
        let parameters = func.dfg.block_params(self.header).iter().copied();
        // What the header defines, as it is at the loop's end.
        let mut again: FxHashMap<Value, Value> = parameters
            .zip(arguments)
            .filter_map(|(parameter, argument)| Some((parameter, argument.as_value()?)))
            .collect();
        let body: Vec<_> = func.layout.block_insts(self.header).filter(|inst| *inst != test).collect();
        for inst in body {
            let copy = func.dfg.clone_inst(inst);
            func.dfg.map_inst_values(copy, |value| renamed(&again, value));
            func.layout.insert_inst(copy, self.back);
            func.stencil.srclocs[copy] = func.stencil.srclocs[inst];
            again.extend(func.dfg.inst_results(inst).iter().copied().zip(func.dfg.inst_results(copy).iter().copied()));
        }
        branch(func, test, self.condition, &edges, |value| value);
        branch(func, self.back, renamed(&again, self.condition), &edges, |value| renamed(&again, value));
    }

    /// Moves constants to the function's beginning: as parameters they would be none.
    fn move_constants(&self, func: &mut Function) {
        let Some(first) = func.layout.entry_block().and_then(|entry| func.layout.first_inst(entry)) else { return };
        let insts: Vec<_> = func.layout.block_insts(self.header).collect();
        for inst in insts {
            if is_pure(func.dfg.insts[inst].opcode()) && func.dfg.inst_args(inst).is_empty() {
                func.layout.remove_inst(inst);
                func.layout.insert_inst(inst, first);
            }
        }
    }

    /// Has the loop use what the header has computed already, which can't be seen afterwards.
    fn reuse(&self, func: &mut Function) {
        let known: Vec<_> =
            func.layout.block_insts(self.header).filter(|inst| is_pure(func.dfg.insts[*inst].opcode())).collect();
        let mut same = FxHashMap::default();
        for block in self.ways.iter().flat_map(|way| &way.behind) {
            let mut next = func.layout.first_inst(*block);
            while let Some(inst) = next {
                next = func.layout.next_inst(inst);
                func.dfg.map_inst_values(inst, |value| renamed(&same, value));
                let earlier = known.iter().find(|known| func.dfg.insts[**known] == func.dfg.insts[inst]);
                let Some(earlier) = earlier else { continue };
                let (&[old], &[new]) = (func.dfg.inst_results(*earlier), func.dfg.inst_results(inst)) else { continue };
                if func.dfg.value_type(old) == func.dfg.value_type(new) {
                    same.insert(new, old);
                }
            }
        }
    }

    /// Whether each use of what the header defines is on one way or the other, and not where they meet.
    fn is_only_used_behind(&self, func: &Function, analysis: &Analysis<'_>, defined: &EntitySet<Value>) -> bool {
        let mut behind = EntitySet::new();
        behind.insert(self.header);
        behind.extend(self.ways.iter().flat_map(|way| way.behind.iter().copied()));
        let reachable = func.layout.blocks().filter(|block| analysis.tree.is_reachable(*block));
        reachable.filter(|block| !behind.contains(*block)).all(|block| {
            let mut values = func.layout.block_insts(block).flat_map(|inst| func.dfg.inst_values(inst));
            values.all(|value| !defined.contains(value))
        })
    }
}

/// Where a way leads now, with what.
struct Edge {
    block: Block,
    arguments: Vec<BlockArg>,
}

impl Way {
    /// Has the way bring what is used on it of what the header defines: to its target if nobody else comes there, or
    /// else to a new block before it.
    fn with_edge(self, func: &mut Function, header: Block, defined: &EntitySet<Value>) -> Edge {
        let Self { target, mut arguments, behind, is_only } = self;
        let block = if is_only { target } else { func.dfg.make_block() };
        let mut takes = Vec::new();
        let mut parameters = FxHashMap::default();
        let mut parameter = |func: &mut Function, value| {
            if !defined.contains(value) {
                return value;
            }
            *parameters.entry(value).or_insert_with(|| {
                takes.push(BlockArg::from(value));
                let of = func.dfg.value_type(value);
                func.dfg.append_block_param(block, of)
            })
        };
        for behind in behind {
            let mut next = func.layout.first_inst(behind);
            while let Some(inst) = next {
                next = func.layout.next_inst(inst);
                let values: SmallVec<[Value; 8]> = func.dfg.inst_values(inst).collect();
                if !values.iter().any(|value| defined.contains(*value)) {
                    continue;
                }
                let mut values = values.into_iter().map(|value| parameter(func, value)).collect::<Vec<_>>().into_iter();
                // In the order in which they were just given.
                func.dfg.map_inst_values(inst, |value| values.next().unwrap_or(value));
            }
        }
        if is_only {
            arguments.extend(takes);
            return Edge { block, arguments };
        }
        for argument in &mut arguments {
            *argument = argument.map_value(|value| parameter(func, value));
        }
        func.layout.insert_block_after(block, header);
        FuncCursor::new(func).at_bottom(block).ins().jump(target, &arguments);
        Edge { block, arguments: takes }
    }
}

/// Replaces an instruction by a branch to two edges.
fn branch(func: &mut Function, inst: Inst, condition: Value, edges: &[Edge; 2], name: impl Fn(Value) -> Value) {
    let named = |edge: &Edge| edge.arguments.iter().map(|argument| argument.map_value(&name)).collect::<Vec<_>>();
    let [taken, otherwise] = edges.each_ref().map(named);
    func.replace(inst).brif(condition, edges[0].block, &taken, edges[1].block, &otherwise);
}

fn renamed(names: &FxHashMap<Value, Value>, value: Value) -> Value {
    names.get(&value).copied().unwrap_or(value)
}

/// Whether an instruction gives the same for the same operands, always, and does nothing else.
fn is_pure(opcode: Opcode) -> bool {
    let does = opcode.can_load() || opcode.can_store() || opcode.can_trap() || opcode.other_side_effects();
    !does && !opcode.is_call() && !opcode.is_branch() && !opcode.is_terminator()
}

#[cfg(test)]
mod tests {
    use cranelift_codegen::settings::{self, Flags};

    use super::*;

    fn rotated(text: &str) -> Function {
        let func = cranelift_reader::parse_functions(text).expect("the text is CLIF").remove(0);
        let mut context = Context::for_function(func);
        rotate_loops(&mut context);
        let flags = Flags::new(settings::builder());
        context.verify(&flags).unwrap_or_else(|errors| panic!("{errors}{}", context.func));
        context.func
    }

    /// The conditional branches of a function, each as its block and where it leads.
    fn tests_of(func: &Function) -> Vec<(u32, Vec<u32>)> {
        let last = func.layout.blocks().filter_map(|block| Some((block, func.layout.last_inst(block)?)));
        let tests = last.filter_map(|(block, inst)| match func.dfg.insts[inst] {
            InstructionData::Brif { blocks, .. } => {
                Some((block.as_u32(), blocks.map(|call| call.block(&func.dfg.value_lists).as_u32()).to_vec()))
            }
            _ => None,
        });
        tests.collect()
    }

    #[test]
    fn the_test_is_at_the_end_and_what_is_used_goes_with_it() {
        let func = rotated(
            "function %sum(i64) -> i64 system_v {
            block0(v0: i64):
                v1 = iconst.i64 0
                jump block1(v1, v1)
            block1(v2: i64, v3: i64):
                v4 = icmp slt v2, v0
                brif v4, block2, block3
            block2:
                v5 = iadd v3, v2
                v6 = iconst.i64 1
                v7 = iadd v2, v6
                jump block1(v7, v5)
            block3:
                return v3
            }",
        );
        assert_eq!(tests_of(&func), [(1, vec![2, 3]), (2, vec![2, 3])]);
        let [inside, after] = [2, 3].map(|block| func.dfg.block_params(Block::from_u32(block)).len());
        assert_eq!((inside, after), (2, 1), "{func}");
    }

    #[test]
    fn what_the_header_computed_is_not_computed_again() {
        let text = "function %square(i64) -> i64 system_v {
            block0(v0: i64):
                v1 = iconst.i64 1
                jump block1(v1)
            block1(v2: i64):
                v3 = imul v2, v2
                v4 = iconst.i64 100
                v5 = icmp slt v3, v4
                brif v5, block2, block3
            block2:
                v6 = imul v2, v2
                v7 = iadd v6, v2
                v8 = imul v7, v4
                jump block1(v8)
            block3:
                return v3
            }";
        let func = rotated(text);
        assert_eq!(tests_of(&func).len(), 2);
        let used = |value: Value| {
            let mut insts = func.layout.blocks().flat_map(|block| func.layout.block_insts(block));
            insts.any(|inst| func.dfg.inst_values(inst).any(|one| one == value))
        };
        let squares = func.layout.block_insts(Block::from_u32(2)).filter(|inst| {
            let multiplies = func.dfg.insts[*inst].opcode() == Opcode::Imul;
            multiplies && func.dfg.inst_args(*inst)[0] == func.dfg.inst_args(*inst)[1]
        });
        // The body's is used by nobody; the copy of the header's is.
        let squares: Vec<_> = squares.map(|inst| used(func.dfg.first_result(inst))).collect();
        assert_eq!(squares, [false, true], "{func}");
    }

    #[test]
    fn loops_in_loops_are_rotated_all() {
        let func = rotated(
            "function %nested(i64, i64) -> i64 system_v {
            block0(v0: i64, v1: i64):
                v2 = iconst.i64 0
                v20 = iconst.i64 1
                jump block1(v2, v2)
            block1(v3: i64, v4: i64):
                v5 = icmp slt v3, v0
                brif v5, block2, block6
            block2:
                jump block3(v2, v4)
            block3(v6: i64, v7: i64):
                v8 = icmp slt v6, v1
                brif v8, block4, block5
            block4:
                v9 = iadd v7, v3
                v10 = iadd v6, v20
                jump block3(v10, v9)
            block5:
                v11 = iadd v3, v20
                jump block1(v11, v7)
            block6:
                return v4
            }",
        );
        assert_eq!(tests_of(&func).len(), 4, "{func}");
    }

    #[test]
    fn a_loop_whose_ways_meet_keeps_its_test_where_it_is() {
        // What block 4 gets from the header depends on the way there.
        let text = "function %meet(i64) -> i64 system_v {
            block0(v0: i64):
                jump block1(v0)
            block1(v1: i64):
                v2 = iadd v1, v0
                brif v2, block2, block4
            block2:
                brif v1, block3, block4
            block3:
                jump block1(v2)
            block4:
                return v2
            }";
        assert_eq!(tests_of(&rotated(text)), [(1, vec![2, 4]), (2, vec![3, 4])]);
    }

    #[test]
    fn a_test_that_calls_or_that_two_jumps_lead_to_stays() {
        let calling = "function %calling() system_v {
                fn0 = %more() -> i8 system_v
            block0:
                jump block1
            block1:
                v0 = call fn0()
                brif v0, block2, block3
            block2:
                jump block1
            block3:
                return
            }";
        let continuing = "function %continuing(i64) system_v {
            block0(v0: i64):
                jump block1(v0)
            block1(v1: i64):
                brif v1, block2, block5
            block2:
                v2 = isub v1, v0
                brif v2, block3, block4
            block3:
                jump block1(v2)
            block4:
                jump block1(v0)
            block5:
                return
            }";
        for (text, tests) in [(calling, 1), (continuing, 2)] {
            assert_eq!(tests_of(&rotated(text)).len(), tests);
        }
    }
}
