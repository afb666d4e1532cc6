//! A function's CLIF as its module keeps it until it is compiled: without what can be made again from the rest.

use std::mem::swap;

use cranelift_codegen::entity::{EntityRef, PrimaryMap, SecondaryMap};
use cranelift_codegen::ir::function::{FunctionParameters, FunctionStencil};
use cranelift_codegen::ir::{
    self, Block, DataFlowGraph, DebugTags, DynamicStackSlots, GlobalValue, GlobalValueData, Inst, Layout, RelSourceLoc,
    Signature, SourceLoc, StackSlots, UserExternalName, UserExternalNameRef, UserFuncName,
};
use smallvec::SmallVec;

use crate::sync::Arc;

/// A function. Its layout, a list linked both ways, and the map of its names are made anew where it is compiled, in what
/// the function before it has left there.
pub(crate) struct PackedFunction {
    name: UserFuncName,
    signature: Arc<Signature>,
    pub(super) dfg: DataFlowGraph,
    order: Box<[Run]>,
    names: Box<[UserExternalName]>,
    rare: Option<Box<Rare>>,
}

/// It is large, and moved from hand to hand.
pub(crate) type BoxedFunction = Box<PackedFunction>;

/// Instructions of a block that follow each other, by their numbers as well. Most blocks have one such run.
#[derive(Clone, Copy)]
struct Run {
    block: Block,
    first: u32,
    count: u32,
}

impl Run {
    fn insts(self) -> impl Iterator<Item = Inst> {
        (self.first..self.first + self.count).map(Inst::from_u32)
    }
}

/// What many functions have nothing of.
#[derive(Clone)]
struct Rare {
    sized_stack_slots: StackSlots,
    dynamic_stack_slots: DynamicStackSlots,
    global_values: PrimaryMap<GlobalValue, GlobalValueData>,
    srclocs: SecondaryMap<Inst, RelSourceLoc>,
    debug_tags: DebugTags,
    stack_limit: Option<GlobalValue>,
    base_srcloc: SourceLoc,
    cold: Vec<Block>,
}

impl PackedFunction {
    /// `last` is the signature of the function packed before, which may well be that of this.
    pub(crate) fn of(func: &ir::Function, last: &mut Option<Arc<Signature>>) -> Self {
        let ir::Function { name, stencil, params } = func;
        let same = last.as_ref().filter(|last| ***last == stencil.signature);
        let signature = same.map_or_else(|| Arc::new(stencil.signature.clone()), Arc::clone);
        *last = Some(Arc::clone(&signature));
        Self {
            name: name.clone(),
            signature,
            dfg: stencil.dfg.clone(),
            order: runs(&stencil.layout),
            names: params.user_named_funcs().values().cloned().collect(),
            rare: Rare::of(stencil, params).map(Box::new),
        }
    }

    /// Its instructions, in the order of the layout.
    pub(super) fn insts(&self) -> impl Iterator<Item = Inst> {
        self.order.iter().flat_map(|run| run.insts())
    }

    /// What one of its user-defined external names stands for.
    pub(super) fn user_name(&self, name: UserExternalNameRef) -> Option<&UserExternalName> {
        self.names.get(name.index())
    }

    pub(super) fn global_values(&self) -> impl Iterator<Item = &GlobalValueData> {
        self.rare.iter().flat_map(|rare| rare.global_values.values())
    }

    /// A copy in the form that Cranelift knows.
    pub(crate) fn to_function(&self) -> ir::Function {
        let mut func = ir::Function::new();
        self.copy_to(&mut func);
        func
    }

    /// Makes an empty function a copy.
    pub(crate) fn copy_to(&self, func: &mut ir::Function) {
        func.name = self.name.clone();
        func.stencil.dfg = self.dfg.clone();
        if let Some(rare) = &self.rare {
            Rare::clone(rare).swap(&mut func.stencil);
        }
        self.lay_out(func);
    }

    /// Makes an empty function this one, until [taken back](Self::take_back).
    pub(crate) fn lend_to(&mut self, func: &mut ir::Function) {
        self.swap(func);
        self.lay_out(func);
    }

    /// Takes back what was lent, in whatever state it is by now: who has built it is to free it.
    pub(crate) fn take_back(&mut self, func: &mut ir::Function) {
        self.swap(func);
    }

    fn swap(&mut self, func: &mut ir::Function) {
        swap(&mut self.name, &mut func.name);
        swap(&mut self.dfg, &mut func.stencil.dfg);
        if let Some(rare) = &mut self.rare {
            rare.swap(&mut func.stencil);
        }
    }

    /// Makes what is not packed of a function that has nothing of it.
    fn lay_out(&self, func: &mut ir::Function) {
        let Signature { params, returns, call_conv } = &mut func.stencil.signature;
        params.extend_from_slice(&self.signature.params);
        returns.extend_from_slice(&self.signature.returns);
        *call_conv = self.signature.call_conv;
        let layout = &mut func.stencil.layout;
        let end = self.order.iter().map(|run| run.first + run.count).max().unwrap_or(0);
        if let Some((entry, last)) = self.order.first().zip(end.checked_sub(1)) {
            // The layout's table grows once then.
            layout.append_block(entry.block);
            layout.append_inst(Inst::from_u32(last), entry.block);
            layout.remove_inst(Inst::from_u32(last));
        }
        for run in &self.order {
            if layout.last_block() != Some(run.block) {
                layout.append_block(run.block);
            }
            run.insts().for_each(|inst| layout.append_inst(inst, run.block));
        }
        for (index, name) in self.names.iter().enumerate() {
            self.add_name(&mut func.params, index, name);
        }
        if let Some(rare) = &self.rare {
            rare.cold.iter().for_each(|block| layout.set_cold(*block));
            if !rare.base_srcloc.is_default() {
                func.params.ensure_base_srcloc(rare.base_srcloc);
            }
        }
    }

    fn add_name(&self, params: &mut FunctionParameters, index: usize, name: &UserExternalName) {
        if params.ensure_user_func_name(name.clone()).index() == index {
            return;
        }
        // Another one was changed into this.
        let mut unused = (0..).map(|index| UserExternalName { namespace: u32::MAX, index });
        if let Some(unused) = unused.find(|unused| !self.names.contains(unused)) {
            let added = params.ensure_user_func_name(unused);
            params.reset_user_func_name(added, name.clone());
        }
    }
}

fn runs(layout: &Layout) -> Box<[Run]> {
    let mut runs: SmallVec<[Run; 32]> = SmallVec::new();
    for block in layout.blocks() {
        let mut run = Run { block, first: 0, count: 0 };
        for inst in layout.block_insts(block) {
            if inst.as_u32() != run.first + run.count {
                if run.count > 0 {
                    runs.push(run);
                }
                run = Run { block, first: inst.as_u32(), count: 0 };
            }
            run.count += 1;
        }
        runs.push(run);
    }
    runs.into_boxed_slice()
}

impl Rare {
    /// What a function has of it, if it has any.
    fn of(stencil: &FunctionStencil, params: &FunctionParameters) -> Option<Self> {
        let FunctionStencil {
            version_marker: _,
            signature: _,
            sized_stack_slots,
            dynamic_stack_slots,
            global_values,
            dfg,
            layout,
            srclocs,
            debug_tags,
            stack_limit,
        } = stencil;
        let base_srcloc = params.base_srcloc();
        let cold: Vec<_> = dfg.blocks.iter().filter(|block| layout.is_cold(*block)).collect();
        let has_slots = !sized_stack_slots.is_empty() || !dynamic_stack_slots.is_empty();
        let has_values = !global_values.is_empty() || stack_limit.is_some();
        let has_places = !srclocs.is_empty() || !base_srcloc.is_default() || !debug_tags.is_empty();
        (has_slots || has_values || has_places || !cold.is_empty()).then(|| Self {
            sized_stack_slots: sized_stack_slots.clone(),
            dynamic_stack_slots: dynamic_stack_slots.clone(),
            global_values: global_values.clone(),
            srclocs: srclocs.clone(),
            debug_tags: debug_tags.clone(),
            stack_limit: *stack_limit,
            base_srcloc,
            cold,
        })
    }

    fn swap(&mut self, stencil: &mut FunctionStencil) {
        swap(&mut self.sized_stack_slots, &mut stencil.sized_stack_slots);
        swap(&mut self.dynamic_stack_slots, &mut stencil.dynamic_stack_slots);
        swap(&mut self.global_values, &mut stencil.global_values);
        swap(&mut self.srclocs, &mut stencil.srclocs);
        swap(&mut self.debug_tags, &mut stencil.debug_tags);
        swap(&mut self.stack_limit, &mut stencil.stack_limit);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FUNCTIONS: &str = "
        function %plain(i64, i32) -> i64 system_v {
            sig0 = (i64) -> i64 system_v
            fn0 = u0:1 sig0
            fn1 = u0:7 sig0
        block0(v0: i64, v1: i32):
            brif v1, block2, block1
        block2:
            v2 = call fn0(v0)
            jump block3(v2)
        block1:
            v3 = call fn1(v0)
            jump block3(v3)
        block3(v4: i64):
            return v4
        }

        function u0:9(i64 vmctx) -> i64 tail {
            ss0 = explicit_slot 16, align = 8
            gv0 = vmctx
            gv1 = load.i64 notrap aligned gv0+8
            gv2 = symbol u1:3
            gv3 = dyn_scale_target_const.i32x4
            dt0 = i32x4*gv3
            dss0 = explicit_dynamic_slot dt0
            stack_limit = gv1
        block0(v0: i64):
    @0010   v1 = stack_addr.i64 ss0
    @0014   v2 = symbol_value.i64 gv2
            jump block1
        block1 cold:
    <7, ss0> @0020 sequence_point
            v3 = iadd v1, v2
            return v3
        }";

    fn functions() -> Vec<ir::Function> {
        cranelift_reader::parse_functions(FUNCTIONS).expect("the text is CLIF")
    }

    fn check(func: &ir::Function) {
        let mut packed = PackedFunction::of(func, &mut None);
        assert_eq!(packed.to_function(), *func);
        let mut lent = ir::Function::new();
        packed.lend_to(&mut lent);
        assert_eq!(lent, *func);
        assert_eq!(lent.to_string(), func.to_string());
    }

    #[test]
    fn a_function_comes_out_as_it_went_in() {
        let functions = functions();
        assert_eq!(functions.len(), 2);
        functions.iter().for_each(check);
        check(&ir::Function::new());
    }

    #[test]
    fn a_function_comes_out_in_what_another_has_left() {
        let (mut func, mut last) = (ir::Function::new(), None);
        for original in functions().iter().chain(functions().iter().rev()) {
            let mut packed = PackedFunction::of(original, &mut last);
            packed.lend_to(&mut func);
            assert_eq!(func, *original);
            packed.take_back(&mut func);
            func.clear();
            assert_eq!(func, ir::Function::new());
        }
    }

    #[test]
    fn instructions_out_of_order_and_blocks_without_any_keep_their_places() {
        let mut func = functions().swap_remove(0);
        let entry = func.layout.entry_block().expect("it has blocks");
        let last = func.layout.last_block().expect("it has blocks");
        let [moved, end] = [entry, last].map(|block| func.layout.first_inst(block).expect("it has instructions"));
        func.layout.remove_inst(moved);
        func.layout.insert_inst(moved, end);
        let elsewhere = func.dfg.make_block();
        func.layout.insert_block(elsewhere, last);
        let copy = PackedFunction::of(&func, &mut None).to_function();
        assert_eq!(copy.to_string(), func.to_string());
        assert_eq!(copy.layout, func.layout);
        // Not in the layout, and cold all the same.
        let unplaced = func.dfg.make_block();
        func.layout.set_cold(unplaced);
        assert!(PackedFunction::of(&func, &mut None).to_function().layout.is_cold(unplaced));
    }

    #[test]
    fn names_that_were_changed_into_others_keep_their_numbers() {
        let mut func = functions().swap_remove(0);
        let first = UserExternalNameRef::from_u32(0);
        let second = UserExternalName { namespace: 0, index: 7 };
        func.params.reset_user_func_name(first, second.clone());
        let taken = UserExternalName { namespace: u32::MAX, index: 0 };
        func.params.ensure_user_func_name(taken);
        let copy = PackedFunction::of(&func, &mut None).to_function();
        assert_eq!(copy.params.user_named_funcs(), func.params.user_named_funcs());
        assert_eq!(copy.params.user_named_funcs()[first], second);
    }
}
