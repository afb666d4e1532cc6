//! `ClifTransformLayer`: changes functions on their way to the compiler.

use cranelift_codegen::{Context, ir};
use cranelift_module::FuncId;

use super::layer::ClifLayer;
use super::module::ClifModule;
use crate::error::Error;
use crate::session::ResourceTracker;
use crate::sync::Arc;

/// A transform's own reason to refuse a function.
pub type TransformError = Box<dyn std::error::Error + Send + Sync>;

/// Changes the functions of modules before they are compiled.
///
/// A closure over one function is one. Functions that were compiled when they were defined are past
/// it.
pub trait ClifTransform: Send + Sync {
    /// Looks at a module that is being added; nothing of it is compiled yet. What is given is
    /// applied to each of its functions when that is about to be compiled.
    fn begin(&self, module: &ClifModule) -> Box<dyn FunctionTransform>;
}

/// Changes functions of one module.
pub trait FunctionTransform: Send + Sync {
    /// Changes the function in `context`. Called once for each function that is compiled, on any
    /// thread.
    ///
    /// # Errors
    ///
    /// An error fails the function.
    fn apply(&self, function: FuncId, context: &mut Context) -> Result<(), TransformError>;
}

impl<F> ClifTransform for F
where
    F: Fn(FuncId, &mut ir::Function) -> Result<(), TransformError> + Clone + Send + Sync + 'static,
{
    fn begin(&self, _: &ClifModule) -> Box<dyn FunctionTransform> {
        Box::new(EachFunction(self.clone()))
    }
}

struct EachFunction<F>(F);

impl<F> FunctionTransform for EachFunction<F>
where
    F: Fn(FuncId, &mut ir::Function) -> Result<(), TransformError> + Send + Sync,
{
    fn apply(&self, function: FuncId, context: &mut Context) -> Result<(), TransformError> {
        (self.0)(function, &mut context.func)
    }
}

/// Takes modules: [`ClifLayer`], or a layer on top of it.
pub trait ModuleLayer: Clone + Send + Sync + 'static {
    /// Defines what the module defines, all or nothing. Nothing is compiled yet.
    ///
    /// # Errors
    ///
    /// As [`ClifLayer::add`].
    fn add_module(&self, tracker: &ResourceTracker, module: ClifModule) -> Result<(), Error>;
}

impl ModuleLayer for ClifLayer {
    fn add_module(&self, tracker: &ResourceTracker, module: ClifModule) -> Result<(), Error> {
        self.add(tracker, module)
    }
}

/// A layer that changes the functions of the modules that pass through it.
///
/// Layers stack: of several, the outermost is applied first. The one at the bottom compiles, and
/// links as its own base layer says:
///
/// ```
/// use std::sync::Arc;
/// use jit_core::{
///     ClifLayer, ClifTransformLayer, InlineSmallFunctions, Jit, ModuleLayer, ObjectLinkingLayer, ObjectTransformLayer,
/// };
///
/// # fn main() -> Result<(), jit_core::Error> {
/// let jit = Jit::new()?;
/// let linking = ObjectLinkingLayer::new();
/// let objects = ObjectTransformLayer::new(linking.clone()).on_graph(|graph| {
///     println!("{graph}");
///     Ok(())
/// });
/// let compiling = ClifLayer::over(Arc::clone(jit.isa()), &objects)?;
/// let modules = ClifTransformLayer::new(compiling, InlineSmallFunctions::default());
/// modules.add_module(&jit.main().create_tracker()?, jit.module("empty"))?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct ClifTransformLayer<L> {
    base: L,
    transform: Arc<dyn ClifTransform>,
}

impl<L: ModuleLayer> ClifTransformLayer<L> {
    /// A layer on top of `base`.
    #[must_use]
    pub fn new(base: L, transform: impl ClifTransform + 'static) -> Self {
        Self { base, transform: Arc::new(transform) }
    }
}

impl<L: ModuleLayer> ModuleLayer for ClifTransformLayer<L> {
    fn add_module(&self, tracker: &ResourceTracker, mut module: ClifModule) -> Result<(), Error> {
        module.begin(&*self.transform);
        self.base.add_module(tracker, module)
    }
}
