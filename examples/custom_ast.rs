//! A materialization unit for a program representation of one's own: a tree becomes CLIF when its
//! function is first needed, and one that nobody needs is never looked at.

use std::sync::Arc;

use orcane::cranelift::codegen::ir::{AbiParam, InstBuilder, Signature, Value, types};
use orcane::cranelift::frontend::{FunctionBuilder, FunctionBuilderContext};
use orcane::cranelift::module::{Linkage, Module, ModuleError};
use orcane::{
    Cause, ClifLayer, ClifModule, CompileAt, Jit, MaterializationResponsibility, MaterializationUnit,
    SymbolDeclaration, SymbolFlags, SymbolName, UnitDefinition,
};

/// An expression over one variable, `x`.
enum Expr {
    X,
    Number(i64),
    Add(Box<Expr>, Box<Expr>),
    Multiply(Box<Expr>, Box<Expr>),
    /// Another function of the program, applied.
    Call(&'static str, Box<Expr>),
}

use Expr::{Add, Call, Multiply, Number, X};

/// `name(x) = body`, not compiled yet.
struct Definition {
    layer: ClifLayer,
    name: SymbolName,
    body: Expr,
}

impl MaterializationUnit for Definition {
    fn materialize(self: Box<Self>, responsibility: MaterializationResponsibility) {
        println!("compiling {}", self.name);
        match self.module() {
            // The layer compiles, links and emits; whoever waits is told if that fails.
            Ok(module) => _ = self.layer.materialize(responsibility, module),
            Err(error) => responsibility.fail(Cause::Other(Box::new(error))),
        }
    }

    fn discard(&mut self, _: &SymbolName) {
        // Its only symbol has another definition: the session drops the unit.
    }
}

impl Definition {
    fn module(&self) -> Result<ClifModule, ModuleError> {
        let mut module = ClifModule::new(&self.name, self.layer.isa().clone(), CompileAt::Lookup);
        let signature = signature(&module);
        let id = module.declare_function(&self.name, Linkage::Export, &signature)?;
        let mut context = module.make_context();
        context.func.signature = signature;
        let mut frontend = FunctionBuilderContext::new();
        let mut builder = FunctionBuilder::new(&mut context.func, &mut frontend);
        let block = builder.create_block();
        builder.append_block_params_for_function_params(block);
        builder.switch_to_block(block);
        builder.seal_block(block);
        let x = builder.block_params(block)[0];
        let value = lower(&self.body, x, &mut module, &mut builder)?;
        builder.ins().return_(&[value]);
        builder.finalize(module.target_config());
        module.define_function(id, &mut context)?;
        Ok(module)
    }
}

fn signature(module: &ClifModule) -> Signature {
    let mut signature = module.make_signature();
    signature.params.push(AbiParam::new(types::I64));
    signature.returns.push(AbiParam::new(types::I64));
    signature
}

fn lower(
    expr: &Expr,
    x: Value,
    module: &mut ClifModule,
    builder: &mut FunctionBuilder<'_>,
) -> Result<Value, ModuleError> {
    Ok(match expr {
        X => x,
        Number(number) => builder.ins().iconst(types::I64, *number),
        Add(left, right) => {
            let (left, right) = (lower(left, x, module, builder)?, lower(right, x, module, builder)?);
            builder.ins().iadd(left, right)
        }
        Multiply(left, right) => {
            let (left, right) = (lower(left, x, module, builder)?, lower(right, x, module, builder)?);
            builder.ins().imul(left, right)
        }
        Call(name, argument) => {
            let argument = lower(argument, x, module, builder)?;
            let callee = module.declare_function(name, Linkage::Import, &signature(module))?;
            let callee = module.declare_func_in_func(callee, builder.func);
            let call = builder.ins().call(callee, &[argument]);
            builder.inst_results(call)[0]
        }
    })
}

fn define(jit: &Jit, name: &str, body: Expr) -> Result<(), orcane::Error> {
    let name = jit.session().intern(name);
    let symbol = SymbolDeclaration { name: name.clone(), flags: SymbolFlags::FUNCTION, signature: None };
    let unit = Definition { layer: jit.clif_layer().clone(), name, body };
    jit.main().default_tracker()?.define(vec![UnitDefinition {
        symbols: [symbol].into_iter().collect(),
        unit: Box::new(unit),
        name: Arc::from("definition"),
    }])
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let jit = Jit::new()?;
    let x = || Box::new(X);
    define(&jit, "square", Multiply(x(), x()))?;
    define(&jit, "polynomial", Add(Box::new(Call("square", x())), Box::new(Number(1))))?;
    define(&jit, "unused", Call("nobody", x()))?;

    let polynomial = jit.lookup::<unsafe extern "C" fn(i64) -> i64>("polynomial")?;
    // SAFETY: every function of the program takes and gives an integer, as `signature` says.
    println!("polynomial(9) = {}", unsafe { polynomial.call(9) });

    // What is wrong with a function is told to whoever needs it, with the reason.
    let error = jit.lookup_address("unused").unwrap_err();
    println!("error: {error}");
    Ok(())
}
