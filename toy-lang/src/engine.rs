//! Orcane at work: functions in, values out. All that this language needs of the JIT is here.

use std::fmt;
use std::io::{self, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

use cranelift_codegen::Context;
use cranelift_codegen::isa::CallConv;
use cranelift_frontend::FunctionBuilderContext;
use cranelift_module::{Linkage, Module};
use orcane::exception::Exception;
use orcane::lazy::{LazyJitBuilder, Tiering};
use orcane::{
    AbsoluteSymbol, ClifModule, Debugger, DylibLookup, FnPointer, Jit, LookupError, OptLevel, SourceText, SymbolDef,
    SymbolFlags, SymbolName, VariableKind,
};
use target_lexicon::Triple;

use crate::ast::{Expr, ExprKind, Function, Name, Parameter};
use crate::body::Workshop;
use crate::listing;
use crate::lower::{LowerError, Symbols, lower, signature, variables};
use crate::number::shortest;
use crate::runtime;

/// Why a function can't be compiled or run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// The JIT refused.
    #[error(transparent)]
    Jit(#[from] orcane::Error),
    /// The function could not be lowered.
    #[error(transparent)]
    Lower(#[from] LowerError),
    /// A top-level expression threw this, and nothing caught it.
    #[error("nothing caught {}, which was thrown", shortest(*.0))]
    Uncaught(f64),
}

/// When a function is compiled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Compile {
    /// When it is defined.
    #[default]
    Eagerly,
    /// When it is first called.
    Lazily,
    /// When it is first called, without optimization, and again when it was called often.
    Tiered,
}

/// How programs are compiled and run.
#[derive(Clone, Copy, Debug, Default)]
pub struct EngineOptions {
    /// How hard the code generator tries.
    pub opt_level: OptLevel,
    /// When it does.
    pub compile: Compile,
    /// On how many threads; with zero, on the one that runs the program.
    pub threads: usize,
    /// Whether debuggers are told of functions, lines and variables.
    pub debug: bool,
}

/// What has been done so far, and how long it took.
#[derive(Clone, Copy, Debug, Default)]
pub struct Statistics {
    /// Functions of which there has been CLIF, top-level expressions included.
    pub lowered: u64,
    /// Functions compiled, top-level expressions included.
    pub functions: u64,
    /// Bytes of their code.
    pub code_bytes: u64,
    /// Bytes of their data and the linker's tables.
    pub data_bytes: u64,
    /// Time to read sources.
    pub parse: Duration,
    /// Time to check names and arities.
    pub check: Duration,
    /// Time to build CLIF.
    pub lower: Duration,
    /// Time to generate code, over all threads.
    pub compile: Duration,
    /// Time to link, over all threads.
    pub link: Duration,
    /// Time inside the program.
    pub run: Duration,
}

impl fmt::Display for Statistics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "functions lowered   {:>12}", self.lowered)?;
        writeln!(f, "functions compiled  {:>12}", self.functions)?;
        writeln!(f, "bytes of code       {:>12}", self.code_bytes)?;
        writeln!(f, "bytes of data       {:>12}", self.data_bytes)?;
        let phases = [
            ("parse", self.parse),
            ("check", self.check),
            ("lower", self.lower),
            ("compile", self.compile),
            ("link", self.link),
            ("run", self.run),
        ];
        for (phase, time) in phases {
            writeln!(f, "time to {phase:<11} {:>12.3} ms", time.as_secs_f64() * 1e3)?;
        }
        Ok(())
    }
}

/// A JIT with the program's functions.
pub struct Engine {
    jit: Jit,
    compile: Compile,
    /// Makes bodies when they are first called.
    workshop: Workshop,
    scratch: FunctionBuilderContext,
    context: Context,
    symbols: Symbols,
    debug: bool,
    /// Whether there has been a `throw`: expressions that may throw are compiled with a handler.
    throws: bool,
    /// How many modules there have been: what makes their names and those of expressions unique.
    modules: usize,
    lowered: u64,
    lower: Duration,
    run: Duration,
}

/// Ends the program when a function that it calls turns out not to be compilable: the call can't go on without it.
fn give_up(function: &SymbolName, error: &LookupError) -> u64 {
    // There is nobody else to tell.
    _ = writeln!(io::stderr(), "Error: `{function}` can't be compiled: {error}");
    std::process::exit(1)
}

/// A function of this process, which only code that declares its signature may call.
fn host_function<F: FnPointer>(jit: &Jit, name: &str, function: F) -> AbsoluteSymbol {
    let signature = F::signature(CallConv::triple_default(jit.isa().triple()));
    AbsoluteSymbol {
        name: jit.session().intern(name),
        definition: SymbolDef::at(function.address()),
        flags: SymbolFlags::FUNCTION,
        signature: Some(jit.session().intern(&signature.to_string())),
    }
}

type Expression = unsafe extern "C" fn() -> f64;

/// `try expression catch thrown uncaught(thrown)`: no exception may reach the host's frames.
fn guarded(expression: &Expr) -> Expr {
    let span = expression.span;
    let name = Name::from("exception.thrown");
    let thrown = Expr { kind: ExprKind::Variable(name.clone()), span };
    let call = ExprKind::Call { callee: Name::from(runtime::UNCAUGHT), callee_span: span, arguments: vec![thrown] };
    let handler = Box::new(Expr { kind: call, span });
    Expr { kind: ExprKind::Try { body: Box::new(expression.clone()), name, handler }, span }
}

impl Engine {
    /// An engine for the host.
    ///
    /// # Errors
    /// The host can't be compiled for, or the system refuses memory or threads.
    pub fn new(options: EngineOptions) -> Result<Self, EngineError> {
        let debugger = if options.debug { Debugger::On } else { Debugger::Off };
        let mut builder =
            Jit::builder().opt_level(options.opt_level).compile_threads(options.threads).debugger(debugger);
        if options.debug {
            // Without what this processor has beyond others: GDB before 16 steps over instructions of AVX wrongly, if
            // they address constants.
            builder = builder.target(Triple::host());
        }
        let jit = match options.compile {
            Compile::Eagerly => builder.build()?,
            Compile::Lazily => LazyJitBuilder::new(builder).failure_handler(give_up).build()?.into(),
            Compile::Tiered => {
                LazyJitBuilder::new(builder).failure_handler(give_up).tiers(Tiering::default()).build()?.into()
            }
        };
        // In a dylib of their own, so that a program may define functions of these names.
        let runtime = jit.session().create_dylib("runtime")?;
        runtime.define_absolute(vec![
            host_function(&jit, "printd", runtime::printd as extern "C" fn(f64) -> f64),
            host_function(&jit, "putchard", runtime::putchard as extern "C" fn(f64) -> f64),
            host_function(&jit, runtime::THROW, runtime::throw as extern "C-unwind" fn(f64) -> f64),
            host_function(&jit, runtime::CAUGHT, runtime::caught as unsafe extern "C" fn(*mut Exception) -> f64),
            host_function(&jit, runtime::UNCAUGHT, runtime::uncaught as extern "C" fn(f64) -> f64),
        ])?;
        jit.main().add_to_link_order(&runtime, DylibLookup::Exported)?;
        Ok(Self {
            compile: options.compile,
            workshop: Workshop { layer: jit.clif_layer().clone(), lowering: Arc::default() },
            scratch: FunctionBuilderContext::new(),
            context: Context::new(),
            symbols: Symbols::default(),
            debug: options.debug,
            throws: false,
            modules: 0,
            lowered: 0,
            lower: Duration::ZERO,
            run: Duration::ZERO,
            jit,
        })
    }

    /// Whether the runtime or the process has a symbol of this name. Not to be asked of a function that was defined.
    pub fn has_symbol(&self, name: &str) -> bool {
        self.jit.lookup_address(name).is_ok()
    }

    /// Gives functions a body, their first or a new one, all from one source if it is told. What they call must be defined, be it here, or a symbol.
    ///
    /// # Errors
    /// A function can't be compiled: then nothing has changed.
    pub fn define(&mut self, functions: &[Arc<Function>], source: Option<&Arc<SourceText>>) -> Result<(), EngineError> {
        self.throws |= functions.iter().any(|function| function.body.exception().is_some());
        if self.compile == Compile::Lazily {
            let name = |function: &Function| self.jit.session().intern(&function.prototype.name);
            let functions = functions.iter().map(|function| self.workshop.function(name(function), function));
            self.jit.redefine_with(functions.collect())?;
            return Ok(());
        }
        let mut module = self.new_module(source).redirectable();
        for function in functions {
            let prototype = &function.prototype;
            self.add(&mut module, &prototype.name, &prototype.parameters, &function.body)?;
        }
        self.jit.redefine(module)?;
        if self.compile == Compile::Eagerly {
            let names: Vec<_> =
                functions.iter().map(|function| self.jit.session().intern(&function.prototype.name)).collect();
            self.jit.session().lookup(&self.jit.search_order(), names).map_err(orcane::Error::from)?;
        }
        Ok(())
    }

    /// Compiles an expression, runs it once and removes it.
    ///
    /// # Errors
    /// It can't be compiled, or throws what it does not catch.
    pub fn evaluate(&mut self, expression: &Expr, source: Option<&Arc<SourceText>>) -> Result<f64, EngineError> {
        let mut module = self.new_module(source);
        // No function of the language has a point in its name.
        let name = format!("expression.{}", self.modules);
        self.throws |= expression.exception().is_some();
        if self.throws {
            self.add(&mut module, &name, &[], &guarded(expression))?;
        } else {
            self.add(&mut module, &name, &[], expression)?;
        }
        let tracker = self.jit.add_module(module)?;
        let value = self.jit.lookup::<Expression>(&name).map(|function| {
            let start = Instant::now();
            // SAFETY: the code was generated from a checked program, whose functions take and give doubles. That the
            // process's symbols it declares do so too, is what the author of the program vouches for.
            let value = unsafe { function.call() };
            self.run += start.elapsed();
            value
        });
        tracker.remove()?;
        match runtime::take_uncaught() {
            Some(thrown) => Err(EngineError::Uncaught(thrown)),
            None => Ok(value?),
        }
    }

    /// The CLIF of a function.
    ///
    /// # Errors
    /// It can't be lowered.
    pub fn clif(&self, function: &Function) -> Result<String, EngineError> {
        let title = function.prototype.to_string();
        Ok(listing::clif(&mut self.jit.module("listing"), &title, &function.prototype.parameters, &function.body)?)
    }

    /// The machine code of a function, disassembled.
    ///
    /// # Errors
    /// It can't be compiled.
    pub fn assembly(&self, function: &Function) -> Result<String, EngineError> {
        let title = function.prototype.to_string();
        let mut module = self.jit.module("listing");
        Ok(listing::assembly(&mut module, &title, &function.prototype.parameters, &function.body)?)
    }

    /// What has been compiled and run; the times of parsing and checking are zero.
    pub fn statistics(&self) -> Statistics {
        let compiled = self.jit.stats().compile;
        let made = self.workshop.lowering.total();
        Statistics {
            lowered: self.lowered + made.functions,
            functions: compiled.functions,
            code_bytes: compiled.code_bytes,
            data_bytes: compiled.data_bytes,
            lower: self.lower + made.time,
            compile: compiled.compile_time,
            link: compiled.link_time,
            run: self.run,
            ..Statistics::default()
        }
    }

    fn new_module(&mut self, source: Option<&Arc<SourceText>>) -> ClifModule {
        self.modules += 1;
        let module = self.jit.module(&format!("module {}", self.modules));
        match source {
            Some(source) if self.debug => module.source(Arc::clone(source)),
            _ => module,
        }
    }

    fn add(
        &mut self,
        module: &mut ClifModule,
        name: &str,
        parameters: &[Parameter],
        body: &Expr,
    ) -> Result<(), LowerError> {
        let start = Instant::now();
        let signature = signature(module, parameters.len());
        let id = module.declare_function(name, Linkage::Export, &signature)?;
        module.clear_context(&mut self.context);
        if self.debug {
            self.context.func.collect_debug_info();
            let double = |name: &Name| (name.to_string(), VariableKind::Float(8));
            let parameters = parameters.iter().map(|parameter| double(&parameter.name)).collect();
            module.name_variables(id, parameters, variables(body).iter().map(double).collect());
        }
        lower(module, &self.symbols, &mut self.scratch, &mut self.context, parameters, body)?;
        module.define_function(id, &mut self.context)?;
        self.lowered += 1;
        self.lower += start.elapsed();
        Ok(())
    }
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine").field("jit", &self.jit).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ast::Item;
    use crate::diagnostic::Source;
    use crate::parser::Operators;
    use crate::program;

    #[test]
    fn a_host_function_is_not_linked_with_a_call_of_another_signature() {
        let mut engine = Engine::new(EngineOptions::default()).unwrap();
        let mut evaluate = |text: &str| {
            let items = program::parse(&Source::new("test", text), &mut Operators::default()).unwrap();
            let [Item::Expression(expression)] = &items[..] else { panic!("{text}") };
            engine.evaluate(expression, None)
        };
        assert!(evaluate("printd(1, 2)").unwrap_err().to_string().contains("printd"));
        assert!(evaluate("putchard()").unwrap_err().to_string().contains("putchard"));
        assert_eq!(evaluate("printd(1) + floor(1.5)").unwrap().to_bits(), 1f64.to_bits());
    }
}
