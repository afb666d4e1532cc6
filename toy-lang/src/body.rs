//! Bodies that are made from the syntax tree when they are first called: until then there is no CLIF of them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use cranelift_codegen::Context;
use cranelift_frontend::FunctionBuilderContext;
use cranelift_module::{Linkage, Module};
use orcane::{
    Cause, ClifLayer, ClifModule, CompileAt, MaterializationResponsibility, MaterializationUnit, RedirectableFunction,
    SymbolName,
};

use crate::ast::Function;
use crate::lower::{LowerError, Symbols, lower, signature};

/// What bodies are made with.
#[derive(Clone)]
pub(crate) struct Workshop {
    /// Compiles them.
    pub(crate) layer: ClifLayer,
    /// What came of it.
    pub(crate) lowering: Arc<Lowering>,
}

/// Counts the functions of which CLIF was built.
#[derive(Default)]
pub(crate) struct Lowering {
    functions: AtomicU64,
    nanoseconds: AtomicU64,
}

/// Functions of which CLIF was built, and how long it took.
pub(crate) struct Lowered {
    pub(crate) functions: u64,
    pub(crate) time: Duration,
}

impl Lowering {
    fn add(&self, took: Duration) {
        self.functions.fetch_add(1, Ordering::Relaxed);
        self.nanoseconds.fetch_add(took.as_nanos() as u64, Ordering::Relaxed);
    }

    pub(crate) fn total(&self) -> Lowered {
        let time = Duration::from_nanos(self.nanoseconds.load(Ordering::Relaxed));
        Lowered { functions: self.functions.load(Ordering::Relaxed), time }
    }
}

impl Workshop {
    /// The function, called `name`, with a body to be made.
    pub(crate) fn function(&self, name: SymbolName, function: &Arc<Function>) -> RedirectableFunction {
        let (workshop, function) = (self.clone(), Arc::clone(function));
        RedirectableFunction {
            name,
            signature: None,
            body: Box::new(move |body| Box::new(AstBody { workshop, function, body: body.clone() })),
        }
    }
}

/// The body of a function, which is called by a name of its own.
struct AstBody {
    workshop: Workshop,
    function: Arc<Function>,
    body: SymbolName,
}

impl AstBody {
    fn module(&self) -> Result<ClifModule, LowerError> {
        let start = Instant::now();
        let Function { prototype, body } = &*self.function;
        let mut module = ClifModule::new(&prototype.name, self.workshop.layer.isa().clone(), CompileAt::Lookup);
        let signature = signature(&module, prototype.parameters.len());
        let id = module.declare_function(&self.body, Linkage::Export, &signature)?;
        let mut context = Context::new();
        let mut scratch = FunctionBuilderContext::new();
        lower(&mut module, &Symbols::default(), &mut scratch, &mut context, &prototype.parameters, body)?;
        module.define_function(id, &mut context)?;
        self.workshop.lowering.add(start.elapsed());
        Ok(module)
    }
}

impl MaterializationUnit for AstBody {
    fn materialize(self: Box<Self>, responsibility: MaterializationResponsibility) {
        match self.module() {
            // Whoever waits for it is told of an error.
            Ok(module) => _ = self.workshop.layer.materialize(responsibility, module),
            Err(error) => responsibility.fail(Cause::Other(Box::new(error))),
        }
    }

    fn discard(&mut self, _: &SymbolName) {}
}
