//! The tree to CLIF, for any [`Module`]: JIT or object file, it makes no difference here.
//!
//! Every value is a double. Variables are the frontend's, which finds out itself which of them need no memory.

use std::collections::HashMap;

use cranelift_codegen::Context;
use cranelift_codegen::ir::condcodes::FloatCC;
use cranelift_codegen::ir::{
    AbiParam, Block, BlockArg, BlockCall, ExceptionTableData, ExceptionTableItem, ExceptionTag, FuncRef, GlobalValue,
    Inst, InstBuilder, MemFlagsData, SigRef, Signature, SourceLoc, Value, ValueLabel, types,
};
use cranelift_frontend::{FunctionBuilder, FunctionBuilderContext, Variable};
use cranelift_module::{DataId, Linkage, Module, ModuleError};

use crate::ast::{Binding, Expr, ExprKind, For, Infix, Link, Name, Parameter};
use crate::runtime;

/// Why a function could not be compiled.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LowerError {
    /// The module or the code generator refused it.
    #[error(transparent)]
    Module(Box<ModuleError>),
    /// The tree wasn't checked: it uses a name that it doesn't bind.
    #[error("`{0}` is not bound here")]
    Unchecked(Name),
}

impl From<ModuleError> for LowerError {
    fn from(error: ModuleError) -> Self {
        Self::Module(Box::new(error))
    }
}

/// What the functions of a program are in a module, where it isn't a symbol of the same name.
#[derive(Debug, Default)]
pub struct Symbols {
    /// Functions that are called through a variable, which holds the address of the current body.
    pub slots: HashMap<Name, DataId>,
    /// Functions whose symbol is another.
    pub renamed: HashMap<Name, String>,
}

impl Symbols {
    /// The symbol of the function `name`.
    pub fn symbol<'n>(&'n self, name: &'n str) -> &'n str {
        self.renamed.get(name).map_or(name, String::as_str)
    }
}

/// The signature of a function of so many doubles.
pub fn signature<M: Module>(module: &M, arity: usize) -> Signature {
    let mut signature = module.make_signature();
    signature.params.resize(arity, AbiParam::new(types::F64));
    signature.returns.push(AbiParam::new(types::F64));
    signature
}

/// The names of the variables in a function's body, in the order in which [`lower`] labels their values, after those of
/// the parameters.
pub fn variables(body: &Expr) -> Vec<Name> {
    let mut names = Vec::new();
    collect(body, &mut names);
    names
}

fn collect(expression: &Expr, names: &mut Vec<Name>) {
    match &expression.kind {
        ExprKind::Number(_) | ExprKind::Variable(_) => {}
        ExprKind::Assign { value, .. } => collect(value, names),
        ExprKind::Chain { first, rest } => {
            collect(first, names);
            rest.iter().for_each(|link| collect(&link.operand, names));
        }
        ExprKind::Unary { operand, .. } => collect(operand, names),
        ExprKind::Call { arguments, .. } => arguments.iter().for_each(|argument| collect(argument, names)),
        ExprKind::If { condition, consequent, alternative } => {
            [condition, consequent, alternative].into_iter().for_each(|part| collect(part, names));
        }
        ExprKind::For(parts) => {
            collect(&parts.start, names);
            names.push(parts.variable.clone());
            collect(&parts.body, names);
            parts.step.iter().for_each(|step| collect(step, names));
            collect(&parts.end, names);
        }
        ExprKind::Var { bindings, body } => {
            for binding in bindings {
                binding.initialiser.iter().for_each(|initialiser| collect(initialiser, names));
                names.push(binding.name.clone());
            }
            collect(body, names);
        }
        ExprKind::Throw(value) => collect(value, names),
        ExprKind::Try { body, name, handler } => {
            collect(body, names);
            names.push(name.clone());
            collect(handler, names);
        }
    }
}

/// Fills `context` with a function of `parameters` that gives `body`, calling functions of `module`. If it collects
/// debug information, the code's places in the source are noted as offsets, and the variables' values labelled.
///
/// # Errors
/// The module has a function that `body` calls with another signature, or the tree wasn't checked.
pub fn lower<M: Module>(
    module: &mut M,
    symbols: &Symbols,
    scratch: &mut FunctionBuilderContext,
    context: &mut Context,
    parameters: &[Parameter],
    body: &Expr,
) -> Result<(), LowerError> {
    context.func.signature = signature(module, parameters.len());
    let builder = FunctionBuilder::new(&mut context.func, scratch);
    let has_places = builder.func.dfg.values_labels.is_some();
    let mut lowering = Lowering {
        builder,
        module,
        symbols,
        scope: HashMap::new(),
        callees: HashMap::new(),
        landing: None,
        has_places,
    };
    let result = lowering.function(parameters, body);
    let config = lowering.module.target_config();
    // Also after an error, since it is what makes the scratch space reusable.
    lowering.builder.seal_all_blocks();
    match result {
        Ok(()) => lowering.builder.finalize(config),
        Err(_) => *scratch = FunctionBuilderContext::new(),
    }
    result
}

/// How a function is called.
#[derive(Clone, Copy)]
enum Callee {
    Direct(FuncRef),
    Slot(GlobalValue, SigRef),
}

struct Lowering<'a, 'f, M> {
    builder: FunctionBuilder<'f>,
    module: &'a mut M,
    symbols: &'a Symbols,
    /// The bindings of each name, innermost last.
    scope: HashMap<&'a Name, Vec<Variable>>,
    callees: HashMap<&'a str, Callee>,
    /// Where calls go on that throw: the innermost `try`'s.
    landing: Option<Block>,
    /// Whether places in the source are noted, for debuggers.
    has_places: bool,
}

type Lowered<T> = Result<T, LowerError>;

impl<'a, M: Module> Lowering<'a, '_, M> {
    fn function(&mut self, parameters: &'a [Parameter], body: &'a Expr) -> Lowered<()> {
        let entry = self.builder.create_block();
        self.builder.append_block_params_for_function_params(entry);
        self.builder.switch_to_block(entry);
        self.builder.seal_block(entry);
        for (i, parameter) in parameters.iter().enumerate() {
            let value = self.builder.block_params(entry)[i];
            self.bind(&parameter.name, value);
        }
        let value = self.expression(body)?;
        if self.has_places {
            self.builder.set_srcloc(SourceLoc::new(body.span.end.saturating_sub(1) as u32));
        }
        self.builder.ins().return_(&[value]);
        Ok(())
    }

    fn bind(&mut self, name: &'a Name, value: Value) {
        let variable = self.builder.declare_var(types::F64);
        self.define(variable, value);
        self.scope.entry(name).or_default().push(variable);
    }

    fn define(&mut self, variable: Variable, value: Value) {
        self.builder.def_var(variable, value);
        self.label(variable, value);
    }

    fn read(&mut self, variable: Variable) -> Value {
        let value = self.builder.use_var(variable);
        self.label(variable, value);
        value
    }

    /// Says whose value it is from here on, if debug information is collected.
    fn label(&mut self, variable: Variable, value: Value) {
        self.builder.set_val_label(value, ValueLabel::from_u32(variable.as_u32()));
    }

    fn unbind(&mut self, name: &Name) {
        self.scope.get_mut(name).and_then(Vec::pop);
    }

    fn variable(&self, name: &Name) -> Lowered<Variable> {
        let innermost = self.scope.get(name).and_then(|bindings| bindings.last());
        innermost.copied().ok_or_else(|| LowerError::Unchecked(name.clone()))
    }

    fn expression(&mut self, expression: &'a Expr) -> Lowered<Value> {
        if !self.has_places {
            return self.expression_here(expression);
        }
        let around = self.builder.srcloc();
        self.builder.set_srcloc(SourceLoc::new(expression.span.start as u32));
        let value = self.expression_here(expression);
        self.builder.set_srcloc(around);
        value
    }

    fn expression_here(&mut self, expression: &'a Expr) -> Lowered<Value> {
        match &expression.kind {
            ExprKind::Number(number) => Ok(self.builder.ins().f64const(*number)),
            ExprKind::Variable(name) => {
                let variable = self.variable(name)?;
                Ok(self.read(variable))
            }
            ExprKind::Assign { name, value, .. } => {
                let value = self.expression(value)?;
                let variable = self.variable(name)?;
                self.define(variable, value);
                Ok(value)
            }
            ExprKind::Chain { first, rest } => self.chain(first, rest),
            ExprKind::Unary { operator, operand } => {
                let operand = self.expression(operand)?;
                self.call(&operator.function, &[operand])
            }
            ExprKind::Call { callee, arguments, .. } => self.call_with(callee, arguments),
            ExprKind::If { condition, consequent, alternative } => self.conditional(condition, consequent, alternative),
            ExprKind::For(parts) => self.repetition(parts),
            ExprKind::Var { bindings, body } => self.variables(bindings, body),
            ExprKind::Throw(value) => {
                let value = self.expression(value)?;
                // It does not return; what follows is never reached, and need not be told so.
                self.call(runtime::THROW, &[value])
            }
            ExprKind::Try { body, name, handler } => self.attempt(body, name, handler),
        }
    }

    fn call_with(&mut self, callee: &'a Name, arguments: &'a [Expr]) -> Lowered<Value> {
        let arguments = arguments.iter().map(|argument| self.expression(argument)).collect::<Lowered<Vec<_>>>()?;
        self.call(callee, &arguments)
    }

    fn chain(&mut self, first: &'a Expr, rest: &'a [Link]) -> Lowered<Value> {
        let mut left = self.expression(first)?;
        for link in rest {
            let right = self.expression(&link.operand)?;
            left = match &link.operator {
                Infix::Add => self.builder.ins().fadd(left, right),
                Infix::Subtract => self.builder.ins().fsub(left, right),
                Infix::Multiply => self.builder.ins().fmul(left, right),
                Infix::Divide => self.builder.ins().fdiv(left, right),
                Infix::Less => {
                    let less = self.builder.ins().fcmp(FloatCC::UnorderedOrLessThan, left, right);
                    self.builder.ins().fcvt_from_uint(types::F64, less)
                }
                Infix::User(operator) => self.call(&operator.function, &[left, right])?,
            };
        }
        Ok(left)
    }

    /// Whether an expression is neither zero nor a NaN, as an integer.
    fn condition(&mut self, expression: &'a Expr) -> Lowered<Value> {
        // A comparison needs no detour by way of a double.
        if let ExprKind::Chain { first, rest } = &expression.kind
            && let Some((Link { operator: Infix::Less, operand }, before)) = rest.split_last()
        {
            let left = self.chain(first, before)?;
            let right = self.expression(operand)?;
            return Ok(self.builder.ins().fcmp(FloatCC::UnorderedOrLessThan, left, right));
        }
        let value = self.expression(expression)?;
        let zero = self.builder.ins().f64const(0.0);
        Ok(self.builder.ins().fcmp(FloatCC::OrderedNotEqual, value, zero))
    }

    fn conditional(&mut self, condition: &'a Expr, consequent: &'a Expr, alternative: &'a Expr) -> Lowered<Value> {
        let condition = self.condition(condition)?;
        let [on_true, on_false, join] = [(); 3].map(|()| self.builder.create_block());
        let result = self.builder.append_block_param(join, types::F64);
        self.builder.ins().brif(condition, on_true, &[], on_false, &[]);
        for (block, branch) in [(on_true, consequent), (on_false, alternative)] {
            self.builder.seal_block(block);
            self.builder.switch_to_block(block);
            let value = self.expression(branch)?;
            self.builder.ins().jump(join, &[BlockArg::Value(value)]);
        }
        self.builder.seal_block(join);
        self.builder.switch_to_block(join);
        Ok(result)
    }

    fn repetition(&mut self, parts: &'a For) -> Lowered<Value> {
        let start = self.expression(&parts.start)?;
        self.bind(&parts.variable, start);
        let variable = self.variable(&parts.variable)?;
        let [repeat, after] = [(); 2].map(|()| self.builder.create_block());
        self.builder.ins().jump(repeat, &[]);
        self.builder.switch_to_block(repeat);
        self.expression(&parts.body)?;
        let step = match &parts.step {
            Some(step) => self.expression(step)?,
            None => self.builder.ins().f64const(1.0),
        };
        let again = self.condition(&parts.end)?;
        let current = self.read(variable);
        let next = self.builder.ins().fadd(current, step);
        self.define(variable, next);
        self.builder.ins().brif(again, repeat, &[], after, &[]);
        self.builder.seal_block(repeat);
        self.builder.seal_block(after);
        self.builder.switch_to_block(after);
        self.unbind(&parts.variable);
        Ok(self.builder.ins().f64const(0.0))
    }

    fn variables(&mut self, bindings: &'a [Binding], body: &'a Expr) -> Lowered<Value> {
        for binding in bindings {
            let value = match &binding.initialiser {
                Some(initialiser) => self.expression(initialiser)?,
                None => self.builder.ins().f64const(0.0),
            };
            self.bind(&binding.name, value);
        }
        let value = self.expression(body)?;
        bindings.iter().for_each(|binding| self.unbind(&binding.name));
        Ok(value)
    }

    fn attempt(&mut self, body: &'a Expr, name: &'a Name, handler: &'a Expr) -> Lowered<Value> {
        let [landing, join] = [(); 2].map(|()| self.builder.create_block());
        let result = self.builder.append_block_param(join, types::F64);
        let pointer = self.module.target_config().pointer_type();
        // The exception, and whether it is caught, as all of the language's are.
        let exception = self.builder.append_block_param(landing, pointer);
        self.builder.append_block_param(landing, pointer);
        let around = self.landing.replace(landing);
        let value = self.expression(body);
        self.landing = around;
        let value = value?;
        self.builder.ins().jump(join, &[BlockArg::Value(value)]);

        self.builder.seal_block(landing);
        self.builder.switch_to_block(landing);
        let mut signature = self.module.make_signature();
        signature.params.push(AbiParam::new(pointer));
        signature.returns.push(AbiParam::new(types::F64));
        let caught = self.module.declare_function(runtime::CAUGHT, Linkage::Import, &signature)?;
        let caught = self.module.declare_func_in_func(caught, self.builder.func);
        let call = self.builder.ins().call(caught, &[exception]);
        let thrown = self.builder.inst_results(call)[0];
        self.bind(name, thrown);
        let value = self.expression(handler)?;
        self.unbind(name);
        self.builder.ins().jump(join, &[BlockArg::Value(value)]);
        self.builder.seal_block(join);
        self.builder.switch_to_block(join);
        Ok(result)
    }

    fn call(&mut self, name: &'a str, arguments: &[Value]) -> Lowered<Value> {
        let callee = self.callee(name, arguments.len())?;
        let Some(landing) = self.landing else {
            let call = match callee {
                Callee::Direct(function) => self.builder.ins().call(function, arguments),
                Callee::Slot(slot, signature) => {
                    let body = self.load(slot);
                    self.builder.ins().call_indirect(signature, body, arguments)
                }
            };
            return Ok(self.builder.inst_results(call)[0]);
        };
        let after = self.builder.create_block();
        let result = self.builder.append_block_param(after, types::F64);
        self.call_or_land(callee, arguments, after, landing);
        self.builder.seal_block(after);
        self.builder.switch_to_block(after);
        Ok(result)
    }

    /// A call that goes on in one of two blocks.
    fn call_or_land(&mut self, callee: Callee, arguments: &[Value], after: Block, landing: Block) -> Inst {
        let signature = match callee {
            Callee::Direct(function) => self.builder.func.dfg.ext_funcs[function].signature,
            Callee::Slot(_, signature) => signature,
        };
        let pool = &mut self.builder.func.dfg.value_lists;
        let returned = BlockCall::new(after, [BlockArg::TryCallRet(0)], pool);
        let caught = BlockCall::new(landing, [BlockArg::TryCallExn(0), BlockArg::TryCallExn(1)], pool);
        let handlers = [ExceptionTableItem::Tag(ExceptionTag::from_u32(runtime::TAG), caught)];
        let table = ExceptionTableData::new(signature, returned, handlers);
        let table = self.builder.func.dfg.exception_tables.push(table);
        match callee {
            Callee::Direct(function) => self.builder.ins().try_call(function, arguments, table),
            Callee::Slot(slot, _) => {
                let body = self.load(slot);
                self.builder.ins().try_call_indirect(body, arguments, table)
            }
        }
    }

    /// The address in a slot.
    fn load(&mut self, slot: GlobalValue) -> Value {
        let pointer = self.module.target_config().pointer_type();
        let slot = self.builder.ins().symbol_value(pointer, slot);
        self.builder.ins().load(pointer, MemFlagsData::trusted(), slot, 0)
    }

    fn callee(&mut self, name: &'a str, arity: usize) -> Lowered<Callee> {
        if let Some(&callee) = self.callees.get(name) {
            return Ok(callee);
        }
        let signature = signature(self.module, arity);
        let callee = if let Some(&slot) = self.symbols.slots.get(name) {
            let slot = self.module.declare_data_in_func(slot, self.builder.func);
            Callee::Slot(slot, self.builder.import_signature(signature))
        } else {
            let id = self.module.declare_function(self.symbols.symbol(name), Linkage::Import, &signature)?;
            Callee::Direct(self.module.declare_func_in_func(id, self.builder.func))
        };
        self.callees.insert(name, callee);
        Ok(callee)
    }
}
