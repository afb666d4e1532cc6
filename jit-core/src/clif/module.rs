//! `ClifModule`: functions and data as CLIF, behind Cranelift's `Module` trait.

use std::sync::Arc;

use cranelift_codegen::control::ControlPlane;
use cranelift_codegen::entity::EntityRef;
use cranelift_codegen::ir::{self, InstructionData, Opcode, UserExternalName};
use cranelift_codegen::isa::{OwnedTargetIsa, TargetIsa};
use cranelift_codegen::{
    CodegenError, CompiledCode, Context, FinalizedMachExceptionHandler, FinalizedMachReloc, FinalizedRelocTarget,
    LabelValueLoc,
};
use cranelift_module::{
    DataDescription, DataId, FuncId, FuncOrDataId, Init, Linkage, Module, ModuleDeclarations, ModuleError, ModuleReloc,
    ModuleResult,
};
use rustc_hash::{FxHashMap, FxHashSet};
use smallvec::SmallVec;

use super::cache::{self, CacheCounters, ObjectCache};
use super::cfi;
use super::machine_code::{CompiledBody, MachineCode};
use super::optimize::optimize;
use super::packed::{BoxedFunction, PackedFunction};
use super::panic;
use super::references::References;
use super::transform::{ClifTransform, FunctionTransform};
use super::units::Item;
use crate::error::Error;
use crate::platform::code::{Details, LocatedVariable, Place, SourceText, VariableKind, VariableRole};
use crate::platform::exception;
use crate::platform::unwind::Handler;

/// Namespaces of user external names: those of `cranelift_module`, and one of ours for an address
/// that is taken. Cranelift relocates a call and an address alike, and a redirectable function is
/// called through its slot but known by its stub's address.
pub(crate) const FUNCTION: u32 = 0;
pub(crate) const DATA: u32 = 1;
pub(crate) const ADDRESS_OF: u32 = 2;

/// When a module's functions are compiled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CompileAt {
    /// When they are looked up, on the session's compile threads. The module keeps their CLIF.
    #[default]
    Lookup,
    /// When they are defined, as `JITModule` does: errors come from `define_function`, the
    /// context holds the compiled code afterwards, and the module keeps only machine code.
    Definition,
}

/// Functions and data that are added to a dylib together.
///
/// It implements [`cranelift_module::Module`] whole: a frontend written for `JITModule` or
/// `ObjectModule` moves over by changing the type. Each function and each data object becomes a
/// materialization unit of its own: what is not needed is neither compiled nor linked.
///
/// In the session, the names of its local functions and data and of the bodies of its redirectable functions contain
/// `$orcane`, which is reserved for that. What comes before is the name that was declared.
///
/// ```
/// use jit_core::cranelift::codegen::ir::{AbiParam, InstBuilder, types};
/// use jit_core::cranelift::frontend::{FunctionBuilder, FunctionBuilderContext};
/// use jit_core::cranelift::module::{Linkage, Module};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let jit = jit_core::Jit::new()?;
/// let mut module = jit.module("example");
/// let mut context = module.make_context();
/// context.func.signature.returns.push(AbiParam::new(types::I64));
/// let id = module.declare_function("answer", Linkage::Export, &context.func.signature)?;
/// let mut frontend = FunctionBuilderContext::new();
/// let mut builder = FunctionBuilder::new(&mut context.func, &mut frontend);
/// let block = builder.create_block();
/// builder.switch_to_block(block);
/// builder.seal_block(block);
/// let result = builder.ins().iconst(types::I64, 42);
/// builder.ins().return_(&[result]);
/// builder.finalize(module.target_config());
/// module.define_function(id, &mut context)?;
///
/// jit.add_module(module)?;
/// let answer = jit.lookup::<unsafe extern "C" fn() -> i64>("answer")?;
/// // SAFETY: the session has compared the types, and the function gives a number.
/// assert_eq!(unsafe { answer.call() }, 42);
/// # Ok(())
/// # }
/// ```
pub struct ClifModule {
    pub(crate) name: Arc<str>,
    pub(crate) isa: OwnedTargetIsa,
    pub(crate) declarations: ModuleDeclarations,
    pub(crate) function_count: usize,
    data_count: usize,
    pub(crate) functions: Vec<Option<Body>>,
    /// Of the last of them that is kept as CLIF.
    signature: Option<Arc<ir::Signature>>,
    pub(crate) references: References,
    pub(crate) data: Vec<Option<DataDescription>>,
    /// What is linked alone: there may be no memory for it.
    pub(crate) large: FxHashSet<Item>,
    pub(crate) machine_code: MachineCode,
    pub(crate) source: Option<Arc<SourceText>>,
    pub(crate) variables: Variables,
    pub(crate) redirectable: bool,
    compile_at: CompileAt,
    /// What is done to a function before it is compiled, in turn.
    pub(crate) transforms: Vec<Box<dyn FunctionTransform>>,
    cache: Option<Arc<dyn ObjectCache>>,
    /// What its code uses: lives as long as that.
    pub(crate) used: Option<Arc<dyn Send + Sync>>,
}

/// The names of functions' value labels.
pub(crate) type Variables = FxHashMap<u32, VariableNames>;

/// The names of one function's value labels: its parameters', and then its variables'.
pub(crate) struct VariableNames {
    parameters: usize,
    names: Vec<(String, VariableKind)>,
}

/// What a function was defined with.
pub(crate) enum Body {
    Clif(BoxedFunction),
    Compiled(CompiledBody),
}

impl ClifModule {
    /// An empty module for `isa`, which must generate position-independent code. The name is for
    /// errors.
    #[must_use]
    pub fn new(name: &str, isa: OwnedTargetIsa, compile_at: CompileAt) -> Self {
        Self {
            name: Arc::from(name),
            isa,
            declarations: ModuleDeclarations::default(),
            function_count: 0,
            data_count: 0,
            functions: Vec::new(),
            signature: None,
            references: References::default(),
            data: Vec::new(),
            large: FxHashSet::default(),
            machine_code: MachineCode::default(),
            source: None,
            variables: Variables::default(),
            redirectable: false,
            compile_at,
            transforms: Vec::new(),
            cache: None,
            used: None,
        }
    }

    /// Makes the exported functions redirectable: a later module may define them again. They are
    /// called through a slot, by each other too. To be said before anything is defined.
    #[must_use]
    pub fn redirectable(mut self) -> Self {
        self.redirectable = true;
        self
    }

    /// Says what the source locations of its functions are offsets into, for traps and debuggers.
    #[must_use]
    pub fn source(mut self, text: impl Into<Arc<SourceText>>) -> Self {
        self.source = Some(text.into());
        self
    }

    /// Has the functions that are compiled when they are defined asked for in a cache. The others
    /// are asked for in the layer's.
    #[must_use]
    pub fn object_cache(mut self, cache: Arc<dyn ObjectCache>) -> Self {
        self.cache = Some(cache);
        self
    }

    /// A copy of a function's CLIF, if it was defined and is compiled when it is looked up.
    #[must_use]
    pub fn body(&self, function: FuncId) -> Option<ir::Function> {
        self.clif(function).map(PackedFunction::to_function)
    }

    pub(super) fn clif(&self, function: FuncId) -> Option<&PackedFunction> {
        match self.functions.get(function.index())? {
            Some(Body::Clif(func)) => Some(func),
            _ => None,
        }
    }

    /// What Cranelift makes of a [body](Self::body), in its own notation of instructions, before the module's layer
    /// transforms anything. Nothing is kept of it.
    ///
    /// # Errors
    ///
    /// When the function has no body here, or can't be compiled.
    pub fn assembly(&self, function: FuncId) -> Result<String, Error> {
        let Some(body) = self.body(function) else {
            return Err(Error::Module(format!("{function} is not defined in {}, or compiled already", self.name)));
        };
        let mut context = Context::for_function(body);
        context.set_disasm(true);
        let text = panic::caught(|| {
            optimize(&mut context, &*self.isa, function, self.is_final(function))?;
            let code = context.compile(&*self.isa, &mut ControlPlane::default()).map_err(|error| error.inner)?;
            Ok(code.vcode.clone().unwrap_or_default())
        });
        text.unwrap_or_else(|message| Err(CodegenError::Unsupported(message)))
            .map_err(|error| Error::Module(error.to_string()))
    }

    /// Has a transform take part in the compiling of the module.
    pub(crate) fn begin(&mut self, transform: &dyn ClifTransform) {
        let begun = transform.begin(self);
        self.transforms.push(begun);
    }

    /// Names the value labels of a function, from 0 on, for debuggers: those of its parameters, and
    /// then those of its variables. To be called before it is defined; the function must collect debug information
    /// (`collect_debug_info`).
    pub fn name_variables(
        &mut self,
        function: FuncId,
        parameters: Vec<(String, VariableKind)>,
        variables: Vec<(String, VariableKind)>,
    ) {
        let (count, mut names) = (parameters.len(), parameters);
        names.extend(variables);
        self.variables.insert(function.as_u32(), VariableNames { parameters: count, names });
    }

    /// Whether a function is called directly: its definition here is final.
    pub(crate) fn is_final(&self, function: FuncId) -> bool {
        let linkage = self.declarations.get_function_decl(function).linkage;
        linkage.is_final() && !(self.redirectable && linkage == Linkage::Export)
    }

    fn place_function(&mut self, id: FuncId) -> ModuleResult<()> {
        let index = id.index();
        if index >= self.function_count {
            return Err(ModuleError::Undeclared(format!("{id}")));
        }
        let declaration = self.declarations.get_function_decl(id);
        if !declaration.linkage.is_definable() {
            return Err(ModuleError::InvalidImportDefinition(declaration.linkage_name(id).into_owned()));
        }
        if self.functions.len() <= index {
            self.functions.resize_with(index + 1, || None);
        }
        if self.functions[index].is_some() {
            return Err(ModuleError::DuplicateDefinition(declaration.linkage_name(id).into_owned()));
        }
        Ok(())
    }

    /// Sets how a function refers to others: a call to a final function is near and direct, any
    /// other goes through the linker's tables, and an address that is taken is told from a call.
    fn bind(&self, func: &mut ir::Function) -> Result<(), String> {
        let mut are_near = true;
        for data in func.stencil.dfg.ext_funcs.values_mut() {
            let ir::ExternalName::User(name) = data.name else { continue };
            let Some(name) = func.params.user_named_funcs().get(name) else {
                return Err(format!("refers to the undeclared name {name}"));
            };
            if name.namespace == FUNCTION {
                let id = self.known_function(name.index)?;
                data.colocated &= self.is_final(id);
                are_near &= data.colocated;
            }
        }
        // What is near is at one address, be it called or taken.
        if !are_near {
            tell_addresses_from_calls(func);
        }
        Ok(())
    }

    /// Compiles what the context holds, and keeps the machine code.
    fn compile(&mut self, id: FuncId, ctx: &mut Context, ctrl_plane: &mut ControlPlane) -> ModuleResult<Body> {
        optimize(ctx, &*self.isa, id, self.is_final(id)).map_err(ModuleError::Compilation)?;
        let (cache, counters) = (self.cache.as_deref(), CacheCounters::default());
        cache::compile(ctx, &*self.isa, ctrl_plane, cache, &counters).map_err(ModuleError::Compilation)?;
        let Some(code) = ctx.compiled_code() else {
            return Err(ModuleError::Compilation(CodegenError::Unsupported("no code was generated".into())));
        };
        let align = alignment(&*self.isa, code.buffer.alignment);
        let relocs = code.buffer.relocs().iter().map(|reloc| module_reloc(reloc, &ctx.func, id));
        let relocs = relocs.collect::<ModuleResult<SmallVec<[_; 8]>>>()?;
        let details = details(&*self.isa, code, self.variables.get(&id.as_u32()));
        if !details.is_empty() {
            self.machine_code.details.insert(id.as_u32(), details);
        }
        let frame = cfi::instructions(&*self.isa, code.code_buffer(), &code.buffer.unwind_info);
        Ok(self.machine_code.add(code.code_buffer(), &frame, &relocs, align))
    }

    fn known_function(&self, index: u32) -> Result<FuncId, String> {
        if (index as usize) < self.function_count {
            Ok(FuncId::from_u32(index))
        } else {
            Err(format!("refers to the undeclared function {index}"))
        }
    }
}

impl Module for ClifModule {
    fn isa(&self) -> &dyn TargetIsa {
        &*self.isa
    }

    fn declarations(&self) -> &ModuleDeclarations {
        &self.declarations
    }

    fn declare_function(&mut self, name: &str, linkage: Linkage, signature: &ir::Signature) -> ModuleResult<FuncId> {
        let (id, _) = self.declarations.declare_function(name, linkage, signature)?;
        self.function_count = self.function_count.max(id.index() + 1);
        Ok(id)
    }

    fn declare_anonymous_function(&mut self, signature: &ir::Signature) -> ModuleResult<FuncId> {
        let id = self.declarations.declare_anonymous_function(signature)?;
        self.function_count = self.function_count.max(id.index() + 1);
        Ok(id)
    }

    fn declare_data(&mut self, name: &str, linkage: Linkage, writable: bool, tls: bool) -> ModuleResult<DataId> {
        if let Some(FuncOrDataId::Data(id)) = self.declarations.get_name(name)
            && self.declarations.get_data_decl(id).tls != tls
        {
            return Err(ModuleError::IncompatibleDeclaration(name.to_owned()));
        }
        let (id, _) = self.declarations.declare_data(name, linkage, writable, tls)?;
        self.data_count = self.data_count.max(id.index() + 1);
        Ok(id)
    }

    fn declare_anonymous_data(&mut self, writable: bool, tls: bool) -> ModuleResult<DataId> {
        let id = self.declarations.declare_anonymous_data(writable, tls)?;
        self.data_count = self.data_count.max(id.index() + 1);
        Ok(id)
    }

    /// What the module has not declared is refused when the function is defined.
    fn declare_func_in_func(&mut self, id: FuncId, func: &mut ir::Function) -> ir::FuncRef {
        let declared = (id.index() < self.function_count).then(|| self.declarations.get_function_decl(id));
        let (signature, colocated) = match declared {
            Some(declared) => (declared.signature.clone(), declared.linkage.is_final()),
            None => (self.make_signature(), false),
        };
        let signature = func.import_signature(signature);
        let name = UserExternalName { namespace: FUNCTION, index: id.as_u32() };
        let name = ir::ExternalName::user(func.declare_imported_user_function(name));
        func.import_function(ir::ExtFuncData { name, signature, colocated, patchable: false })
    }

    /// What the module has not declared is refused when the function is compiled.
    fn declare_data_in_func(&self, id: DataId, func: &mut ir::Function) -> ir::GlobalValue {
        let declared = (id.index() < self.data_count).then(|| self.declarations.get_data_decl(id));
        let (colocated, tls) = declared.map_or((false, false), |declared| (declared.linkage.is_final(), declared.tls));
        let name = UserExternalName { namespace: DATA, index: id.as_u32() };
        let name = ir::ExternalName::user(func.declare_imported_user_function(name));
        func.create_global_value(ir::GlobalValueData::Symbol { name, offset: 0.into(), colocated, tls })
    }

    fn define_function_with_control_plane(
        &mut self,
        id: FuncId,
        ctx: &mut Context,
        ctrl_plane: &mut ControlPlane,
    ) -> ModuleResult<()> {
        self.place_function(id)?;
        let declared = &self.declarations.get_function_decl(id).signature;
        if ctx.func.signature != *declared {
            let name = self.declarations.get_function_decl(id).linkage_name(id).into_owned();
            return Err(ModuleError::IncompatibleSignature(name, declared.clone(), ctx.func.signature.clone()));
        }
        self.bind(&mut ctx.func).map_err(|message| {
            let name = self.declarations.get_function_decl(id).linkage_name(id);
            ModuleError::Compilation(CodegenError::Unsupported(format!("'{name}' {message}")))
        })?;
        let body = match self.compile_at {
            CompileAt::Lookup => {
                let func = Box::new(PackedFunction::of(&ctx.func, &mut self.signature));
                // Of functions that are compiled when they are called, few are ever asked.
                if !self.redirectable {
                    self.references.note(id.as_u32(), &func);
                }
                Body::Clif(func)
            }
            CompileAt::Definition => match panic::caught(|| self.compile(id, ctx, ctrl_plane)) {
                Ok(compiled) => compiled?,
                Err(message) => {
                    *ctx = self.make_context();
                    let name = self.declarations.get_function_decl(id).linkage_name(id);
                    let error = Error::Module(format!("compiling '{name}' of {} panicked: {message}", self.name));
                    return Err(ModuleError::Backend(error.into()));
                }
            },
        };
        self.functions[id.index()] = Some(body);
        Ok(())
    }

    fn define_function_bytes(
        &mut self,
        id: FuncId,
        alignment: u64,
        bytes: &[u8],
        relocs: &[ModuleReloc],
    ) -> ModuleResult<()> {
        self.place_function(id)?;
        let align = alignment.max(self.isa.symbol_alignment());
        check_place(bytes.len(), align)
            .map_err(|what| refused(&self.declarations.get_function_decl(id).linkage_name(id), &what))?;
        if is_large(bytes.len(), align) {
            self.large.insert(Item::Function(id.as_u32()));
        }
        let body = self.machine_code.add(bytes, &[], relocs, align);
        self.functions[id.index()] = Some(body);
        Ok(())
    }

    fn define_data(&mut self, id: DataId, data: &DataDescription) -> ModuleResult<()> {
        let index = id.index();
        if index >= self.data_count {
            return Err(ModuleError::Undeclared(format!("{id}")));
        }
        let declaration = self.declarations.get_data_decl(id);
        let name = || declaration.linkage_name(id).into_owned();
        if !declaration.linkage.is_definable() {
            return Err(ModuleError::InvalidImportDefinition(name()));
        }
        if data.init == Init::Uninitialized {
            return Err(ModuleError::Undeclared(format!("{}: its contents were never given", name())));
        }
        if self.data.get(index).is_some_and(Option::is_some) {
            return Err(ModuleError::DuplicateDefinition(name()));
        }
        check_place(data.init.size(), data.align.unwrap_or(1))
            .and_then(|()| check_references(data))
            .map_err(|what| refused(&name(), &what))?;
        if self.data.len() <= index {
            self.data.resize_with(index + 1, || None);
        }
        if is_large(data.init.size(), data.align.unwrap_or_default()) {
            self.large.insert(Item::Data(id.as_u32()));
        }
        self.data[index] = Some(data.clone());
        Ok(())
    }
}

/// Says why something can't lie anywhere in a link graph.
fn check_place(size: usize, align: u64) -> Result<(), String> {
    if !align.is_power_of_two() || align > 1 << 31 {
        return Err(format!("an alignment of {align} is not a power of two up to 2 GiB"));
    }
    match u32::try_from(size) {
        Ok(_) => Ok(()),
        Err(_) => Err(format!("{size} bytes are 4 GiB or more")),
    }
}

/// Says what data refers to that its description does not declare: its fields are public.
fn check_references(data: &DataDescription) -> Result<(), String> {
    let mut functions = data.function_relocs.iter().map(|(_, function)| function);
    let mut objects = data.data_relocs.iter().map(|(_, object, _)| object);
    let function = functions.find(|function| !data.function_decls.is_valid(**function)).map(ToString::to_string);
    let object = || objects.find(|object| !data.data_decls.is_valid(**object)).map(ToString::to_string);
    match function.or_else(object) {
        Some(missing) => Err(format!("it refers to {missing}, which it does not declare")),
        None => Ok(()),
    }
}

/// A definition that can't be linked.
fn refused(name: &str, what: &str) -> ModuleError {
    ModuleError::Backend(Error::Module(format!("'{name}': {what}")).into())
}

/// Whether there may be no memory for something although there is for anything else.
fn is_large(size: usize, align: u64) -> bool {
    size > 16 << 20 || align > 64 << 10
}

/// Has a function take the addresses of functions that are not near by a name of their own.
fn tell_addresses_from_calls(func: &mut ir::Function) {
    let insts = func.layout.blocks().flat_map(|block| func.layout.block_insts(block));
    // What is not declared is found by whoever compiles it.
    let is_far = |func_ref| func.dfg.ext_funcs.get(func_ref).is_some_and(|data| !data.colocated);
    let taken = insts.filter_map(|inst| match func.dfg.insts[inst] {
        InstructionData::FuncAddr { func_ref, .. } if is_far(func_ref) => Some((inst, func_ref)),
        _ => None,
    });
    for (inst, func_ref) in taken.collect::<Vec<_>>() {
        let data = func.dfg.ext_funcs[func_ref].clone();
        let ir::ExternalName::User(name) = data.name else { continue };
        let UserExternalName { namespace: FUNCTION, index } = func.params.user_named_funcs()[name] else { continue };
        let name = func.declare_imported_user_function(UserExternalName { namespace: ADDRESS_OF, index });
        let func_ref = func.import_function(ir::ExtFuncData { name: ir::ExternalName::user(name), ..data });
        func.dfg.insts[inst] = InstructionData::FuncAddr { opcode: Opcode::FuncAddr, func_ref };
    }
}

/// The alignment of a function's code.
pub(crate) fn alignment(isa: &dyn TargetIsa, code: u32) -> u64 {
    u64::from(code.max(isa.function_alignment().minimum)).max(isa.symbol_alignment())
}

/// The calls of a function whose exceptions are handled, with the handlers in order.
pub(crate) fn handlers(code: &CompiledCode) -> Vec<Handler> {
    let mut handlers = Vec::new();
    for call in code.buffer.call_sites() {
        for handler in call.exception_handlers {
            let (kind, tag, target) = match handler {
                FinalizedMachExceptionHandler::Tag(tag, target) => (exception::TAGGED, tag.as_u32(), *target),
                FinalizedMachExceptionHandler::Default(target) => (exception::DEFAULT, 0, *target),
                // Tags mean the same whatever the context.
                FinalizedMachExceptionHandler::Context(_) => continue,
            };
            handlers.push([call.ret_addr, kind, tag, target]);
        }
    }
    handlers
}

/// What is to be told of the places in a function's code.
pub(crate) fn details(isa: &dyn TargetIsa, code: &CompiledCode, names: Option<&VariableNames>) -> Details {
    let traps = code.buffer.traps().iter().map(|trap| (trap.offset, trap.code.as_raw().get())).collect();
    let known = code.buffer.get_srclocs_sorted().iter().filter(|line| !line.loc.is_default());
    let lines = known.map(|line| (line.start, line.end, line.loc.bits())).collect();
    let parameters = names.map_or(0, |names| names.parameters);
    // In ascending order; most functions have no names.
    let returns: Vec<_> = names.iter().flat_map(|_| code.buffer.call_sites()).map(|site| site.ret_addr).collect();
    let names = names.into_iter().flat_map(|names| &names.names).enumerate();
    let variables = names.filter_map(|(label, (name, kind))| {
        let role = if label < parameters { VariableRole::Parameter } else { VariableRole::Local };
        let ranges = match code.value_labels_ranges.get(&ir::ValueLabel::from_u32(label as u32)) {
            Some(ranges) => ranges.as_slice(),
            // A parameter is one, be it anywhere or not.
            None if role == VariableRole::Parameter => &[],
            None => return None,
        };
        let places = ranges.iter().filter_map(|range| match range.loc {
            LabelValueLoc::Reg(register) => {
                let register = cfi::register(isa, register)?;
                // A call takes it away, and debuggers take the call's last byte for the place that a caller is at. Cranelift
                // counts what it has put behind the call as a part of it.
                let call = returns.get(returns.partition_point(|end| *end <= range.start)).copied();
                let call = call.filter(|end| *end <= range.end && !cfi::is_preserved(isa, register));
                Some((range.start, call.map_or(range.end, |end| end - 1), Place::Register(register)))
            }
            LabelValueLoc::CFAOffset(offset) => Some((range.start, range.end, Place::Frame(offset))),
        });
        Some(LocatedVariable { name: name.clone(), kind: *kind, role, places: places.collect() })
    });
    Details { traps, lines, handlers: handlers(code), variables: variables.collect() }
}

/// A relocation in terms of the module's declarations.
pub(crate) fn module_reloc(reloc: &FinalizedMachReloc, func: &ir::Function, id: FuncId) -> ModuleResult<ModuleReloc> {
    if let FinalizedRelocTarget::ExternalName(ir::ExternalName::TestCase(name)) = &reloc.target {
        let message = format!("refers to the test case name {name}");
        return Err(ModuleError::Compilation(CodegenError::Unsupported(message)));
    }
    Ok(ModuleReloc::from_mach_reloc(reloc, func, id))
}
