//! CLIF as LLVM's IR: the same SSA form, so that code generators are compared and not frontends. Knows the
//! instructions that [`programs`](crate::programs) use.

use std::collections::HashMap;
use std::fmt::Write;

use cranelift_codegen::ir::condcodes::{FloatCC, IntCC};
use cranelift_codegen::ir::immediates::Offset32;
use cranelift_codegen::ir::{Block, BlockCall, Function, Inst, InstructionData, Opcode, Type, Value, ValueDef, types};

use crate::Result;
use crate::programs::{HELPER, MAIN};

/// The text of a module with these functions.
///
/// # Errors
///
/// When there is an instruction that is not known here.
pub fn translate(functions: &[(&str, Function)]) -> Result<String> {
    let mut text = String::new();
    for (symbol, function) in functions {
        Translation::new(function).function(symbol, &mut text)?;
    }
    Ok(text)
}

struct Translation<'f> {
    function: &'f Function,
    /// The edges to each block: where from, and with which arguments.
    edges: HashMap<Block, Vec<(Block, Vec<Value>)>>,
}

fn name_of(of: Type) -> Result<&'static str> {
    match of {
        types::I8 => Ok("i8"),
        types::I64 => Ok("i64"),
        types::F64 => Ok("double"),
        other => Err(format!("no type {other}").into()),
    }
}

impl<'f> Translation<'f> {
    fn new(function: &'f Function) -> Self {
        let mut edges: HashMap<Block, Vec<(Block, Vec<Value>)>> = HashMap::new();
        for from in function.layout.blocks() {
            let Some(last) = function.layout.last_inst(from) else { continue };
            let (tables, handlers) = (&function.dfg.jump_tables, &function.dfg.exception_tables);
            for call in function.dfg.insts[last].branch_destination(tables, handlers) {
                let pool = &function.dfg.value_lists;
                let arguments = call.args(pool).filter_map(|argument| argument.as_value()).collect();
                edges.entry(call.block(pool)).or_default().push((from, arguments));
            }
        }
        Self { function, edges }
    }

    fn type_of(&self, value: Value) -> Result<&'static str> {
        name_of(self.function.dfg.value_type(value))
    }

    /// A value, or the constant that it is.
    fn operand(&self, value: Value) -> String {
        let value = self.function.dfg.resolve_aliases(value);
        if let ValueDef::Result(inst, _) = self.function.dfg.value_def(value) {
            match self.function.dfg.insts[inst] {
                InstructionData::UnaryImm { imm, .. } => return imm.bits().to_string(),
                InstructionData::UnaryIeee64 { imm, .. } => return format!("0x{:016X}", imm.bits()),
                _ => {}
            }
        }
        format!("%{value}")
    }

    fn typed(&self, value: Value) -> Result<String> {
        Ok(format!("{} {}", self.type_of(value)?, self.operand(value)))
    }

    /// A comparison, which is one bit in LLVM.
    fn condition(&self, value: Value) -> Result<String> {
        let value = self.function.dfg.resolve_aliases(value);
        match self.function.dfg.value_def(value) {
            ValueDef::Result(inst, _)
                if matches!(self.function.dfg.insts[inst].opcode(), Opcode::Icmp | Opcode::Fcmp) =>
            {
                Ok(format!("i1 %{value}"))
            }
            _ => Err("conditions are comparisons".into()),
        }
    }

    fn function(&self, symbol: &str, text: &mut String) -> Result<()> {
        let signature = &self.function.signature;
        let result = name_of(signature.returns[0].value_type)?;
        let layout = &self.function.layout;
        let entry = layout.entry_block().ok_or("no blocks")?;
        let parameters = self.function.dfg.block_params(entry);
        // `main` takes the memory as a pointer, so that LLVM knows whose addresses it sees.
        let pointer = (symbol == MAIN).then(|| parameters[1]);
        let list = parameters.iter().map(|&parameter| match pointer {
            Some(pointer) if pointer == parameter => Ok("ptr %memory".to_owned()),
            _ => self.typed(parameter),
        });
        let list = list.collect::<Result<Vec<_>>>()?.join(", ");
        let linkage = if symbol == MAIN { "" } else { "internal " };
        writeln!(text, "define {linkage}{result} @{symbol}({list}) {{")?;
        for block in layout.blocks() {
            writeln!(text, "{block}:")?;
            if let (Some(pointer), true) = (pointer, block == entry) {
                writeln!(text, "  %{pointer} = ptrtoint ptr %memory to i64")?;
            }
            if block != entry {
                self.phis(block, text)?;
            }
            for inst in layout.block_insts(block) {
                self.instruction(inst, text)?;
            }
        }
        writeln!(text, "}}\n")?;
        Ok(())
    }

    fn phis(&self, block: Block, text: &mut String) -> Result<()> {
        for (index, &parameter) in self.function.dfg.block_params(block).iter().enumerate() {
            let incoming = self.edges.get(&block).into_iter().flatten();
            let incoming: Vec<_> =
                incoming.map(|(from, arguments)| format!("[ {}, %{from} ]", self.operand(arguments[index]))).collect();
            writeln!(text, "  %{parameter} = phi {} {}", self.type_of(parameter)?, incoming.join(", "))?;
        }
        Ok(())
    }

    fn label(&self, call: BlockCall) -> String {
        format!("label %{}", call.block(&self.function.dfg.value_lists))
    }

    fn address(&self, inst: Inst, base: Value, offset: Offset32, text: &mut String) -> Result<String> {
        let offset = i32::from(offset);
        writeln!(text, "  %a{inst} = inttoptr i64 {} to ptr", self.operand(base))?;
        if offset == 0 {
            return Ok(format!("ptr %a{inst}"));
        }
        writeln!(text, "  %p{inst} = getelementptr i8, ptr %a{inst}, i64 {offset}")?;
        Ok(format!("ptr %p{inst}"))
    }

    fn instruction(&self, inst: Inst, text: &mut String) -> Result<()> {
        let dfg = &self.function.dfg;
        let data = &dfg.insts[inst];
        let arguments = dfg.inst_args(inst);
        let result = dfg.inst_results(inst).first().copied();
        let given = result.map(|value| format!("  %{value} = ")).unwrap_or_default();
        let of = result.map(|value| self.type_of(value)).transpose()?.unwrap_or_default();
        match *data {
            InstructionData::UnaryImm { .. } | InstructionData::UnaryIeee64 { .. } => {}
            InstructionData::Binary { opcode, args: [x, y] } => {
                let (x, y) = (self.typed(x)?, self.operand(y));
                writeln!(text, "{given}{} {x}, {y}", binary(opcode)?)?;
            }
            InstructionData::IntCompare { cond, args: [x, y], .. } => {
                let (x, y) = (self.typed(x)?, self.operand(y));
                writeln!(text, "{given}icmp {} {x}, {y}", int_condition(cond)?)?;
            }
            InstructionData::FloatCompare { cond: FloatCC::LessThan, args: [x, y], .. } => {
                writeln!(text, "{given}fcmp olt {}, {}", self.typed(x)?, self.operand(y))?;
            }
            InstructionData::Ternary { opcode: Opcode::Select, args: [condition, x, y] } => {
                let condition = self.condition(condition)?;
                writeln!(text, "{given}select {condition}, {}, {}", self.typed(x)?, self.typed(y)?)?;
            }
            InstructionData::Unary { opcode: Opcode::Sqrt, arg } => {
                writeln!(text, "{given}call double @llvm.sqrt.f64({})", self.typed(arg)?)?;
            }
            InstructionData::Unary { opcode, arg } => {
                let conversion = match opcode {
                    Opcode::Uextend => "zext",
                    Opcode::Ireduce => "trunc",
                    Opcode::FcvtFromSint => "sitofp",
                    other => return Err(format!("no instruction {other}").into()),
                };
                writeln!(text, "{given}{conversion} {} to {of}", self.typed(arg)?)?;
            }
            InstructionData::LoadNoOffset { opcode: Opcode::Bitcast, arg, .. } => {
                writeln!(text, "{given}bitcast {} to {of}", self.typed(arg)?)?;
            }
            InstructionData::Load { opcode: Opcode::Load, arg, offset, .. } => {
                let address = self.address(inst, arg, offset, text)?;
                writeln!(text, "{given}load {of}, {address}")?;
            }
            InstructionData::Store { opcode: Opcode::Store, args: [value, base], offset, .. } => {
                let address = self.address(inst, base, offset, text)?;
                writeln!(text, "  store {}, {address}", self.typed(value)?)?;
            }
            InstructionData::Call { .. } => {
                let list = arguments.iter().map(|&argument| self.typed(argument)).collect::<Result<Vec<_>>>()?;
                writeln!(text, "{given}call {of} @{HELPER}({})", list.join(", "))?;
            }
            InstructionData::Jump { destination, .. } => writeln!(text, "  br {}", self.label(destination))?,
            InstructionData::Brif { arg, blocks: [on_true, on_false], .. } => {
                let condition = self.condition(arg)?;
                writeln!(text, "  br {condition}, {}, {}", self.label(on_true), self.label(on_false))?;
            }
            InstructionData::MultiAry { opcode: Opcode::Return, .. } => {
                writeln!(text, "  ret {}", self.typed(arguments[0])?)?;
            }
            _ => return Err(format!("no instruction {}", data.opcode()).into()),
        }
        Ok(())
    }
}

fn binary(opcode: Opcode) -> Result<&'static str> {
    Ok(match opcode {
        Opcode::Iadd => "add",
        Opcode::Isub => "sub",
        Opcode::Imul => "mul",
        Opcode::Bxor => "xor",
        Opcode::Ushr => "lshr",
        Opcode::Fadd => "fadd",
        Opcode::Fsub => "fsub",
        Opcode::Fmul => "fmul",
        Opcode::Fdiv => "fdiv",
        other => return Err(format!("no instruction {other}").into()),
    })
}

fn int_condition(condition: IntCC) -> Result<&'static str> {
    match condition {
        IntCC::SignedLessThan => Ok("slt"),
        IntCC::Equal => Ok("eq"),
        other => Err(format!("no condition {other}").into()),
    }
}
