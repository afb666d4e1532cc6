//! Random functions that return: scalar types and vectors, branches, tables, counted loops, calls of functions that came
//! before, recursion with fuel, and memory within a stack slot.
//!
//! `f16` and `f128` are passed, stored, loaded and chosen among; with their bits something is done.

use std::collections::HashMap;

use cranelift_codegen::ir::condcodes::FloatCC;
use cranelift_codegen::ir::immediates::Ieee16;
use cranelift_codegen::ir::{
    AbiParam, BlockArg, Endianness, ExtFuncData, ExternalName, Function, InstBuilder, MemFlagsData, Signature,
    StackSlot, StackSlotData, StackSlotKind, Type, UserFuncName, Value, types,
};
use cranelift_codegen::isa::CallConv;
use cranelift_codegen::settings;
use cranelift_frontend::{FunctionBuilder, FunctionBuilderContext, Switch};

use crate::choices::Choices;
use crate::operations::{self, SCALARS, VECTORS};
use crate::recursion;

/// Bytes of the stack slot: places of 16.
const SLOT: u32 = 128;
/// How deep branches and loops nest.
const DEPTH: usize = 3;

pub(crate) fn functions(choices: &mut Choices<'_>) -> Vec<Function> {
    let mut functions = Vec::new();
    let mut scratch = FunctionBuilderContext::new();
    let config = orcane::Jit::new().unwrap().isa().frontend_config();
    for index in 0..1 + choices.below(4) {
        if choices.below(3) == 2 {
            functions.push(recursion::function(choices, index, config));
            continue;
        }
        let mut function =
            Function::with_name_signature(UserFuncName::testcase(format!("f{index}")), signature(choices));
        let returns: Vec<_> = function.signature.returns.iter().map(|param| param.value_type).collect();
        let mut builder = FunctionBuilder::new(&mut function, &mut scratch);
        let slot = builder.create_sized_stack_slot(StackSlotData::new(StackSlotKind::ExplicitSlot, SLOT, 4));
        let mut generator = Generator { builder, earlier: &functions, values: HashMap::new(), slot, loops: 0 };
        generator.begin();
        generator.statements(choices, DEPTH);
        generator.end(choices, &returns);
        generator.builder.finalize(config);
        cranelift_codegen::verify_function(&function, &settings::Flags::new(settings::builder()))
            .unwrap_or_else(|errors| panic!("{errors}\n{function}"));
        functions.push(function);
    }
    functions
}

pub(crate) fn any_type(choices: &mut Choices<'_>) -> Type {
    if choices.below(3) == 2 { *choices.of(&VECTORS) } else { *choices.of(&SCALARS) }
}

fn signature(choices: &mut Choices<'_>) -> Signature {
    let mut signature = Signature::new(CallConv::SystemV);
    for _ in 0..1 + choices.below(5) {
        signature.params.push(AbiParam::new(any_type(choices)));
    }
    // Each in registers of its own kind: there are two of them.
    let first = any_type(choices);
    signature.returns.push(AbiParam::new(first));
    signature.returns.push(AbiParam::new(if first.is_int() { types::F64 } else { types::I64 }));
    signature
}

struct Generator<'f> {
    builder: FunctionBuilder<'f>,
    /// What can be called.
    earlier: &'f [Function],
    /// The values that dominate the current place, by type.
    values: HashMap<Type, Vec<Value>>,
    slot: StackSlot,
    /// How many loops there are around.
    loops: usize,
}

impl Generator<'_> {
    fn begin(&mut self) {
        let entry = self.builder.create_block();
        self.builder.append_block_params_for_function_params(entry);
        self.builder.switch_to_block(entry);
        for value in self.builder.block_params(entry).to_vec() {
            self.keep(value);
        }
        let zero = self.builder.ins().iconst(types::I64, 0);
        for offset in (0..SLOT).step_by(8) {
            self.builder.ins().stack_store(types::I64, zero, self.slot, offset.cast_signed());
        }
    }

    fn keep(&mut self, value: Value) {
        let of = self.builder.func.dfg.value_type(value);
        self.values.entry(of).or_default().push(value);
    }

    /// A value of a type: one that there is, or a constant.
    fn value(&mut self, choices: &mut Choices<'_>, of: Type) -> Value {
        if let Some(values) = self.values.get(&of).filter(|values| !values.is_empty())
            && choices.below(4) != 3
        {
            // The newest ones first, so that results are used.
            let back = choices.below(values.len().min(4));
            return values[values.len() - 1 - back];
        }
        let small = choices.below(256) as i64 - 128;
        match of {
            types::F32 => self.builder.ins().f32const(small as f32 / 4.0),
            types::F64 => self.builder.ins().f64const(small as f64 / 4.0),
            types::F16 => self.builder.ins().f16const(Ieee16::with_bits(small as u16)),
            types::F128 => {
                let bits = i128::from(small).wrapping_mul(0x0123_4567_89AB_CDEF_0123_4567_89AB_CDEF).cast_unsigned();
                let constant = self.builder.func.dfg.constants.insert(bits.to_le_bytes().to_vec().into());
                self.builder.ins().f128const(constant)
            }
            types::I128 => {
                let low = self.builder.ins().iconst(types::I64, small.wrapping_mul(0x0123_4567_89AB_CDEF));
                self.builder.ins().iconcat(low, low)
            }
            of if of.is_vector() => {
                let lane = self.value(choices, of.lane_type());
                self.builder.ins().splat(of, lane)
            }
            of => {
                let wide = if choices.below(2) == 0 { small } else { small.wrapping_mul(0x0123_4567_89AB_CDEF) };
                // A constant has as many bits as its type.
                let mask = u64::MAX >> (64 - of.bits());
                self.builder.ins().iconst(of, (wide.cast_unsigned() & mask).cast_signed())
            }
        }
    }

    fn statements(&mut self, choices: &mut Choices<'_>, depth: usize) {
        for _ in 0..1 + choices.below(if depth == DEPTH { 24 } else { 5 }) {
            if choices.is_empty() {
                return;
            }
            match choices.below(16) {
                0..=4 => self.operation(choices),
                5 | 6 => self.conversion(choices),
                7 => self.comparison(choices),
                8 => self.store(choices),
                9 => self.load(choices),
                10 | 11 if depth > 0 => self.branch(choices, depth - 1),
                12 if depth > 0 => self.table(choices, depth - 1),
                13 if depth > 0 && self.loops < 2 => self.repetition(choices, depth - 1),
                14 if self.loops < 2 => self.call(choices),
                _ => self.operation(choices),
            }
        }
    }

    fn operation(&mut self, choices: &mut Choices<'_>) {
        let of = any_type(choices);
        let x = self.value(choices, of);
        let result = match choices.below(5) {
            0 => operations::unary(choices, &mut self.builder, of, x),
            1 if of.is_int() && of.bits() <= 64 => {
                let y = self.value(choices, of);
                operations::divide(choices, &mut self.builder, of, x, y)
            }
            2 => {
                let y = self.value(choices, of);
                let condition = self.value(choices, types::I8);
                self.builder.ins().select(condition, x, y)
            }
            _ => {
                let y = self.value(choices, of);
                operations::binary(choices, &mut self.builder, of, [x, y])
            }
        };
        self.keep(result);
    }

    fn conversion(&mut self, choices: &mut Choices<'_>) {
        let (from, to) = (any_type(choices), any_type(choices));
        let x = self.value(choices, from);
        if let Some(result) = operations::convert(choices, &mut self.builder, from, x, to) {
            self.keep(result);
        }
    }

    fn comparison(&mut self, choices: &mut Choices<'_>) {
        let of = any_type(choices);
        let operands = [self.value(choices, of), self.value(choices, of)];
        let result = operations::compare(choices, &mut self.builder, of, operands);
        self.keep(result);
    }

    /// An address within the slot.
    fn place(&mut self, choices: &mut Choices<'_>) -> Value {
        let index = self.value(choices, types::I64);
        let mask = self.builder.ins().iconst(types::I64, i64::from(SLOT - 16));
        let offset = self.builder.ins().band(index, mask);
        let base = self.builder.ins().stack_addr(types::I64, self.slot, 0);
        self.builder.ins().iadd(base, offset)
    }

    /// Stores no NaN: what is loaded would show its bits.
    fn store(&mut self, choices: &mut Choices<'_>) {
        let of = any_type(choices);
        let value = self.value(choices, of);
        let value = without_nan(&mut self.builder, value);
        let place = self.place(choices);
        self.builder.ins().store(MemFlagsData::new(), value, place, 0);
    }

    fn load(&mut self, choices: &mut Choices<'_>) {
        let of = any_type(choices);
        let place = self.place(choices);
        let value = self.builder.ins().load(of, MemFlagsData::new(), place, 0);
        self.keep(value);
    }

    /// Runs what makes values that end with the current branch.
    fn nested(&mut self, body: impl FnOnce(&mut Self)) {
        let outer: HashMap<Type, usize> = self.values.iter().map(|(of, values)| (*of, values.len())).collect();
        body(self);
        for (of, values) in &mut self.values {
            values.truncate(outer.get(of).copied().unwrap_or(0));
        }
    }

    fn branch(&mut self, choices: &mut Choices<'_>, depth: usize) {
        let of = any_type(choices);
        let condition = self.value(choices, types::I32);
        let [on_true, on_false, join] = [(); 3].map(|()| self.builder.create_block());
        let result = self.builder.append_block_param(join, of);
        self.builder.ins().brif(condition, on_true, &[], on_false, &[]);
        for block in [on_true, on_false] {
            self.builder.switch_to_block(block);
            self.nested(|this| {
                this.statements(choices, depth);
                let value = this.value(choices, of);
                this.builder.ins().jump(join, &[BlockArg::Value(value)]);
            });
        }
        self.builder.switch_to_block(join);
        self.keep(result);
    }

    fn table(&mut self, choices: &mut Choices<'_>, depth: usize) {
        let of = any_type(choices);
        let index = self.value(choices, types::I32);
        let join = self.builder.create_block();
        let result = self.builder.append_block_param(join, of);
        let blocks: Vec<_> = (0..3 + choices.below(4)).map(|_| self.builder.create_block()).collect();
        let mut switch = Switch::new();
        for (case, block) in blocks[1..].iter().enumerate() {
            switch.set_entry(case as u128, *block);
        }
        switch.emit(&mut self.builder, index, blocks[0]);
        for block in blocks {
            self.builder.switch_to_block(block);
            self.nested(|this| {
                this.statements(choices, depth.min(1));
                let value = this.value(choices, of);
                this.builder.ins().jump(join, &[BlockArg::Value(value)]);
            });
        }
        self.builder.switch_to_block(join);
        self.keep(result);
    }

    /// A loop that runs a few times, and carries a value.
    fn repetition(&mut self, choices: &mut Choices<'_>, depth: usize) {
        let of = any_type(choices);
        let start = self.value(choices, of);
        let trips = 1 + choices.below(5) as i64;
        let [body, exit] = [(); 2].map(|()| self.builder.create_block());
        let carried = self.builder.append_block_param(body, of);
        let trip = self.builder.append_block_param(body, types::I64);
        let result = self.builder.append_block_param(exit, of);
        let zero = self.builder.ins().iconst(types::I64, 0);
        self.builder.ins().jump(body, &[BlockArg::Value(start), BlockArg::Value(zero)]);
        self.builder.switch_to_block(body);
        self.loops += 1;
        self.nested(|this| {
            this.keep(carried);
            this.keep(trip);
            this.statements(choices, depth);
            let value = this.value(choices, of);
            let one = this.builder.ins().iconst(types::I64, 1);
            let next = this.builder.ins().iadd(trip, one);
            let limit = this.builder.ins().iconst(types::I64, trips);
            let more = this.builder.ins().icmp(cranelift_codegen::ir::condcodes::IntCC::SignedLessThan, next, limit);
            let again = [BlockArg::Value(value), BlockArg::Value(next)];
            this.builder.ins().brif(more, body, &again, exit, &[BlockArg::Value(value)]);
        });
        self.loops -= 1;
        self.builder.switch_to_block(exit);
        self.keep(result);
    }

    fn call(&mut self, choices: &mut Choices<'_>) {
        if self.earlier.is_empty() {
            return;
        }
        let callee = choices.of(self.earlier);
        let signature = self.builder.import_signature(callee.signature.clone());
        let name = callee.name.to_string();
        let data = ExtFuncData {
            name: ExternalName::testcase(name.trim_start_matches('%')),
            signature,
            colocated: false,
            patchable: false,
        };
        let function = self.builder.import_function(data);
        let arguments: Vec<_> =
            callee.signature.params.iter().map(|param| self.value(choices, param.value_type)).collect();
        let call = self.builder.ins().call(function, &arguments);
        for result in self.builder.inst_results(call).to_vec() {
            self.keep(result);
        }
    }

    /// Returns values, with zero for a NaN.
    fn end(&mut self, choices: &mut Choices<'_>, returns: &[Type]) {
        let results: Vec<_> = returns.iter().map(|&of| self.value(choices, of)).collect();
        let results: Vec<_> = results.into_iter().map(|value| without_nan(&mut self.builder, value)).collect();
        self.builder.ins().return_(&results);
        self.builder.seal_all_blocks();
    }
}

/// A value, with zero for a NaN, of which nobody says what its bits are.
pub(crate) fn without_nan(builder: &mut FunctionBuilder<'_>, value: Value) -> Value {
    let of = builder.func.dfg.value_type(value);
    let zero = match of.lane_type() {
        types::F32 => builder.ins().f32const(0.0),
        types::F64 => builder.ins().f64const(0.0),
        _ => return value,
    };
    let is_number = builder.ins().fcmp(FloatCC::Ordered, value, value);
    if !of.is_vector() {
        return builder.ins().select(is_number, value, zero);
    }
    let zero = builder.ins().splat(of, zero);
    let flags = MemFlagsData::new().with_endianness(Endianness::Little);
    let mask = builder.ins().bitcast(of, flags, is_number);
    builder.ins().bitselect(mask, value, zero)
}
