//! Compiles a few items of a module into one graph, which is then linked.

use std::sync::atomic::Ordering;
use std::time::Instant;

use cranelift_codegen::control::ControlPlane;
use cranelift_codegen::entity::EntityRef;
use cranelift_codegen::ir::{self, UserExternalName};
use cranelift_codegen::isa::TargetIsa;
use cranelift_codegen::settings::OptLevel;
use cranelift_codegen::{CodegenError, Context};
use cranelift_module::{DataDescription, FuncId, Init, ModuleReloc, ModuleRelocTarget};
use jit_linker::arch::Architecture;
use jit_linker::graph::{BlockId, Edge, LinkGraph, Linkage, SymbolId as GraphSymbol};
use jit_linker::memory::SegmentKind;
use rustc_hash::{FxBuildHasher, FxHashMap};
use smallvec::{SmallVec, smallvec};

use super::layer::LentContext;
use super::libcall;
use super::linking::{Compiled, External, Extra, Own, Told};
use super::module::{ADDRESS_OF, DATA, FUNCTION, alignment, details, handlers, module_reloc};
use super::optimize::optimize;
use super::packed::BoxedFunction;
use super::reloc::{edge_kind, field_size};
use super::transform::FunctionTransform;
use super::units::{Item, ModuleUnits, OwnedItem, TakenBody};
use super::{cache, cfi, panic};
use crate::dump::Form;
use crate::error::Cause;
use crate::platform::code::Details;
use crate::platform::tls;
use crate::platform::unwind::{Frames, Handler};
use crate::redirect::FirstTier;
use crate::session::{ExecutionSession, MaterializationResponsibility, SearchOrder};
use crate::sync::{Arc, lock, thread};

/// Takes the next items of a module and links them.
pub(crate) fn run(session: &ExecutionSession, module: &Arc<ModuleUnits>) {
    let (items, planned) = lock(&module.bodies).next_batch(module);
    if !planned.is_empty()
        && let Some(Ok(dylib)) = items.first().map(|(_, responsibility)| responsibility.dylib())
    {
        dylib.demand(&planned);
    }
    let (large, items) = match module.large.is_empty() {
        true => (Vec::new(), items),
        false => items.into_iter().partition(|(item, _)| module.large.contains(item)),
    };
    for items in large.into_iter().map(|item| vec![item]).chain((!items.is_empty()).then_some(items)) {
        compile_and_link(session, module, items.into());
    }
    if lock(&module.bodies).are_done() {
        module.layer.spent.free();
    }
}

/// Links an item that is all that its module defines.
pub(crate) fn run_alone(
    session: &ExecutionSession,
    module: &Arc<ModuleUnits>,
    item: Item,
    responsibility: MaterializationResponsibility,
) {
    compile_and_link(session, module, smallvec![(item, responsibility)]);
    module.layer.spent.free();
}

fn compile_and_link(session: &ExecutionSession, module: &Arc<ModuleUnits>, items: SmallVec<[OwnedItem; 1]>) {
    let mut batch = Batch::new(session, module, items.len());
    let start = Instant::now();
    batch.compile(items);
    let compiled = Instant::now();
    let counters = &module.layer.counters;
    counters.compile_nanoseconds.fetch_add((compiled - start).as_nanos() as u64, Ordering::Relaxed);
    batch.count();
    let Batch { session, graph, externals, own, frames, .. } = batch;
    Compiled { session, module: Arc::clone(module), graph, externals, own, frames }.link();
    counters.link_nanoseconds.fetch_add(compiled.elapsed().as_nanos() as u64, Ordering::Relaxed);
}

struct Batch<'a> {
    session: ExecutionSession,
    module: &'a Arc<ModuleUnits>,
    /// How many it is for.
    items: usize,
    /// Whether this is another thread than the one that added the module.
    is_elsewhere: bool,
    architecture: Architecture,
    graph: LinkGraph,
    /// The graph's symbol for each reference, by namespace and index.
    references: FxHashMap<(u32, u32), GraphSymbol>,
    /// Where what it does not define is looked for, if anything is compiled.
    order: SearchOrder,
    /// What each external refers to, in the order of their tags.
    externals: Vec<External>,
    own: Vec<Own>,
    /// Of functions, if there is to be any.
    frames: Option<Frames>,
    /// Functions that are compiled.
    spent: Vec<BoxedFunction>,
    /// What was compiled: told to the layer once, because compile threads share its counters.
    functions: u64,
    code_bytes: u64,
    data_bytes: u64,
}

/// An item that is part of the graph.
struct Added {
    symbol: GraphSymbol,
    told: Told,
    extra: Extra,
}

/// Why an item can't be part of the graph.
type Refused = Arc<Cause>;

fn refused(message: impl ToString) -> Refused {
    Arc::new(Cause::Compilation { message: message.to_string() })
}

/// What Cranelift has to say, in one line.
fn describe_failure(error: &CodegenError) -> String {
    match error {
        CodegenError::Verifier(errors) => errors.0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "),
        other => other.to_string(),
    }
}

impl<'a> Batch<'a> {
    fn new(session: &ExecutionSession, module: &'a Arc<ModuleUnits>, items: usize) -> Self {
        let architecture = session.executor().architecture();
        let is_alone = items == 1;
        let frames = module.layer.services.want_frames().then(|| Frames::of_functions(architecture, items));
        let mut batch = Self {
            session: session.clone(),
            module,
            is_elsewhere: thread::current().id() != module.added_by,
            architecture,
            graph: LinkGraph::new(Arc::clone(&module.name), architecture),
            references: FxHashMap::with_capacity_and_hasher(if is_alone { 0 } else { 2 * items }, FxBuildHasher),
            items,
            order: SearchOrder::new(),
            externals: Vec::new(),
            own: Vec::with_capacity(items),
            frames,
            spent: Vec::new(),
            functions: 0,
            code_bytes: 0,
            data_bytes: 0,
        };
        if !is_alone {
            batch.graph.reserve(items);
        }
        batch
    }

    /// Tells the layer what was compiled.
    fn count(&self) {
        let counters = &self.module.layer.counters;
        counters.functions.fetch_add(self.functions, Ordering::Relaxed);
        counters.code_bytes.fetch_add(self.code_bytes, Ordering::Relaxed);
        counters.data_bytes.fetch_add(self.data_bytes, Ordering::Relaxed);
    }

    fn compile(&mut self, items: SmallVec<[OwnedItem; 1]>) {
        let layer = &self.module.layer;
        let symbols = self.session.first_symbols(items.iter().map(|(_, responsibility)| responsibility));
        let is_compiled = {
            let bodies = lock(&self.module.bodies);
            items.iter().all(|(item, _)| bodies.is_compiled(*item))
        };
        if !is_compiled && let Some((_, first)) = items.first() {
            self.order = first.link_order();
        }
        let mut context = layer.contexts.lend();
        for ((item, responsibility), symbol) in items.into_iter().zip(symbols).rev() {
            // Gone already: its tracker was removed.
            let Some(symbol) = symbol else { continue };
            let _span = tracing::debug_span!("compile", name = self.module.name_of(item).as_str()).entered();
            let added = panic::caught(|| match item {
                Item::Function(index) => self.add_function(&mut context, index, &responsibility),
                Item::Promoted(index) => self.add_final(&mut context, index, self.module.second_tier.as_deref()),
                Item::Data(index) => self.add_data(index),
            });
            let added = added.unwrap_or_else(|message| {
                context.discard();
                Err(Arc::new(Cause::Panicked { unit: self.module.name.to_string(), message }))
            });
            match added {
                Ok(Added { symbol: graph_symbol, told, extra }) => {
                    let responsibility = Some(responsibility);
                    self.own.push(Own { responsibility, symbol, graph_symbol, told, extra });
                }
                Err(cause) => responsibility.fail_with(&cause),
            }
        }
        if !self.spent.is_empty() {
            layer.spent.keep(std::mem::take(&mut self.spent));
        }
        if !self.is_elsewhere {
            layer.spent.free();
        }
    }

    fn add_function(
        &mut self,
        context: &mut LentContext<'_>,
        index: u32,
        responsibility: &MaterializationResponsibility,
    ) -> Result<Added, Refused> {
        if let Some(first_tier) = self.module.first_tier.clone()
            && self.module.is_redirectable(FUNCTION, index)
        {
            let context = context.get();
            context.clear();
            // A copy: it is compiled again for another tier.
            let copied = lock(&self.module.bodies).clif(index).map(|func| func.copy_to(&mut context.func));
            if copied.is_some() {
                return self.add_first_tier(context, index, &*first_tier, responsibility);
            }
        }
        self.add_final(context, index, None)
    }

    /// The function that the context holds, as it was defined, at the first tier.
    fn add_first_tier(
        &mut self,
        context: &mut Context,
        index: u32,
        first_tier: &dyn FirstTier,
        responsibility: &MaterializationResponsibility,
    ) -> Result<Added, Refused> {
        let symbols = responsibility.symbols();
        let body = symbols.first().ok_or_else(|| refused("the function was removed"))?;
        let function = &self.module.functions[index as usize].name;
        let isa = &**first_tier.isa();
        let body = first_tier.transform(function, &body.name, &mut context.func).map_err(refused)?;
        let (block, told) = self.add_loaded(context, index, isa, None)?;
        self.functions += 1;
        Ok(Added { symbol: self.define(FUNCTION, index, block), told, extra: Extra::FirstTier(body) })
    }

    /// The function as it was defined, after `first` if that is given.
    fn add_final(
        &mut self,
        context: &mut LentContext<'_>,
        index: u32,
        first: Option<&dyn FunctionTransform>,
    ) -> Result<Added, Refused> {
        let body = lock(&self.module.bodies).take_function(index);
        let module = self.module;
        let (block, told) = match body {
            Some(TakenBody::Clif(func)) => self.add_clif(context.get(), index, func, &*module.layer.isa, first)?,
            Some(TakenBody::Compiled(mut code)) => {
                let details = code.details.take().map(|details| *details).unwrap_or_default();
                let handlers = details.handlers.clone();
                let told = self.tell(code.bytes(), code.frame(), &handlers, || details);
                (self.add_code(index, code.bytes(), code.align(), &code.relocs)?, told)
            }
            None => return Err(refused("the function was materialized before")),
        };
        self.functions += 1;
        Ok(Added { symbol: self.define(FUNCTION, index, block), told, extra: Extra::None })
    }

    /// Notes what is to be told of a function.
    fn tell(
        &mut self,
        code: &[u8],
        instructions: &[u8],
        handlers: &[Handler],
        details: impl FnOnce() -> Details,
    ) -> Told {
        let frames = self.frames.as_mut().filter(|_| !instructions.is_empty());
        let wanted = self.module.layer.services.want_code();
        let size = code.len() as u64;
        Told {
            frame: frames.map(|frames| frames.add_unplaced(size, instructions, handlers)),
            code: wanted.then(|| Box::new((code.len() as u32, details()))),
        }
    }

    fn add_clif(
        &mut self,
        context: &mut Context,
        index: u32,
        mut func: BoxedFunction,
        isa: &dyn TargetIsa,
        first: Option<&dyn FunctionTransform>,
    ) -> Result<(BlockId, Told), Refused> {
        context.clear();
        // Cranelift's optimiser grows it. If compile threads do that in the heap of the one that built it, each waits
        // for the others.
        let is_copy = self.is_elsewhere && isa.flags().opt_level() != OptLevel::None;
        if is_copy {
            func.copy_to(&mut context.func);
        } else {
            func.lend_to(&mut context.func);
        }
        let added = self.add_loaded(context, index, isa, first);
        if !is_copy {
            // What the next function clears is this thread's own.
            func.take_back(&mut context.func);
        }
        self.spent.push(func);
        added
    }

    /// Adds the function that the context holds.
    fn add_loaded(
        &mut self,
        context: &mut Context,
        index: u32,
        isa: &dyn TargetIsa,
        first: Option<&dyn FunctionTransform>,
    ) -> Result<(BlockId, Told), Refused> {
        for transform in first.into_iter().chain(self.module.transforms.iter().map(|transform| &**transform)) {
            transform.apply(FuncId::new(index as usize), context).map_err(|error| Arc::new(Cause::Other(error)))?;
        }
        let module = self.module;
        let is_final = module.functions[index as usize].is_final();
        optimize(context, isa, FuncId::from_u32(index), is_final).map_err(|error| refused(describe_failure(&error)))?;
        self.call_directly(&mut context.func);
        let layer = &module.layer;
        let name = &module.functions[index as usize].name;
        let dumps = |form| layer.services.dumps.as_ref().filter(|dumps| dumps.wants(name, form));
        if let Some(dumps) = dumps(Form::Clif) {
            dumps.dump(name, Form::Clif, context.func.to_string().as_bytes());
        }
        let assembly = dumps(Form::Assembly);
        context.set_disasm(assembly.is_some());
        // No cache keeps the text.
        let cache = layer.options.cache.as_deref().filter(|_| assembly.is_none());
        if let Err(error) = cache::compile(context, isa, &mut ControlPlane::default(), cache, &layer.cache_counters) {
            return Err(refused(describe_failure(&error)));
        }
        let Some(code) = context.compiled_code() else { return Err(refused("no code was generated")) };
        if let (Some(dumps), Some(text)) = (assembly, &code.vcode) {
            dumps.dump(name, Form::Assembly, text.as_bytes());
        }
        let align = alignment(isa, code.buffer.alignment);
        let relocs = code
            .buffer
            .relocs()
            .iter()
            .map(|reloc| module_reloc(reloc, &context.func, FuncId::new(index as usize)))
            .collect::<Result<SmallVec<[_; 8]>, _>>()
            .map_err(refused)?;
        let instructions = match self.frames {
            Some(_) => cfi::instructions(isa, code.code_buffer(), &code.buffer.unwind_info),
            None => SmallVec::new(),
        };
        let names = module.variables.get(&index);
        let told = self.tell(code.code_buffer(), &instructions, &handlers(code), || details(isa, code, names));
        // The last that can fail: what has failed is not in the graph.
        Ok((self.add_code(index, code.code_buffer(), align, &relocs)?, told))
    }

    /// Makes calls near and direct whose callee is there and final: code of ours that has no slot. Its linker finds
    /// another way should that change.
    fn call_directly(&self, func: &mut ir::Function) {
        let names = func.params.user_named_funcs();
        for data in func.stencil.dfg.ext_funcs.values_mut().filter(|data| !data.colocated) {
            let ir::ExternalName::User(name) = data.name else { continue };
            let Some(&UserExternalName { namespace: FUNCTION, index }) = names.get(name) else { continue };
            let Some(callee) = self.module.functions.get(index as usize) else { continue };
            let found = self.session.find_ready(&self.order, &callee.name);
            data.colocated = found.is_some_and(|found| found.definition.slot.is_none() && !found.flags.absolute);
        }
    }

    fn add_code(&mut self, index: u32, bytes: &[u8], align: u64, relocs: &[ModuleReloc]) -> Result<BlockId, Refused> {
        self.check_references(relocs, bytes.len() as u64)?;
        self.code_bytes += bytes.len() as u64;
        // Also what is empty has an address of its own.
        let bytes = if bytes.is_empty() { &[0; 4] } else { bytes };
        let block = self.graph.add_block(SegmentKind::Code, bytes, align).map_err(refused)?;
        self.add_edges(block, Some(index), relocs)?;
        Ok(block)
    }

    /// Refuses what would leave a half-made block in the graph, or fail all of the graph. The block has `size` bytes.
    fn check_references(&self, relocs: &[ModuleReloc], size: u64) -> Result<(), Refused> {
        for reloc in relocs {
            let kind = edge_kind(self.architecture, reloc.kind).map_err(refused)?;
            let end = kind.map_or(0, |kind| u64::from(reloc.offset) + field_size(kind));
            if end > size {
                return Err(refused(format!("the relocation at {} reaches beyond its {size} bytes", reloc.offset)));
            }
            match &reloc.name {
                ModuleRelocTarget::User { namespace, index } => {
                    let count = match *namespace {
                        FUNCTION | ADDRESS_OF => self.module.functions.len(),
                        DATA => self.module.data.len(),
                        _ => 0,
                    };
                    if *index as usize >= count {
                        return Err(refused(format!("refers to the undeclared name u{namespace}:{index}")));
                    }
                }
                ModuleRelocTarget::LibCall(call) => {
                    if libcall::address(*call).is_none() {
                        return Err(refused(format!("needs the library function {call}, which Orcane does not have")));
                    }
                }
                ModuleRelocTarget::KnownSymbol(symbol) => {
                    return Err(refused(format!("refers to {symbol}, which only object files have")));
                }
                ModuleRelocTarget::FunctionOffset(function, offset) => {
                    if function.index() >= self.module.functions.len() {
                        return Err(refused(format!("refers to the undeclared function {function}")));
                    }
                    if reloc.addend.checked_add(i64::from(*offset)).is_none() {
                        return Err(refused(format!("{} bytes after {function}+{offset} is nowhere", reloc.addend)));
                    }
                }
            }
        }
        Ok(())
    }

    /// `own` is the function whose code the block is, if it is a function's.
    fn add_edges(&mut self, block: BlockId, own: Option<u32>, relocs: &[ModuleReloc]) -> Result<(), Refused> {
        for reloc in relocs {
            let Some(kind) = edge_kind(self.architecture, reloc.kind).map_err(refused)? else { continue };
            let mut addend = reloc.addend;
            let target = match &reloc.name {
                ModuleRelocTarget::User { namespace, index } => self.reference(*namespace, *index),
                ModuleRelocTarget::LibCall(call) => self.graph.absolute(libcall::address(*call).unwrap_or_default()),
                ModuleRelocTarget::FunctionOffset(function, offset) => {
                    addend += i64::from(*offset);
                    match function.as_u32() {
                        // This body, be there others or not.
                        index if own == Some(index) => self.graph.define(None, block, 0, self.own.len() as u32),
                        index => self.reference(ADDRESS_OF, index),
                    }
                }
                ModuleRelocTarget::KnownSymbol(_) => continue,
            };
            self.graph.add_edge(Edge { block, offset: reloc.offset, kind, target, addend }).map_err(refused)?;
        }
        Ok(())
    }

    fn add_data(&mut self, index: u32) -> Result<Added, Refused> {
        let Some(description) = lock(&self.module.bodies).data[index as usize].take() else {
            return Err(refused("the data object was materialized before"));
        };
        let (writable, tls) = {
            let entry = &self.module.data[index as usize];
            (entry.writable, entry.tls)
        };
        let pointer = self.module.layer.isa.pointer_type().bytes();
        let relocs: Vec<_> = description.all_relocs(cranelift_codegen::binemit::Reloc::Abs8).collect();
        self.check_references(&relocs, description.init.size() as u64)?;
        let align = description.align.unwrap_or(u64::from(pointer) * 2);
        let variable = tls.then(|| tls::Variable::new(description.init.size(), align as usize));
        let variable = variable.transpose().map_err(refused)?;
        // The initial image of a thread-local variable is only read; so is a constant.
        let kind = if writable && !tls { SegmentKind::Data } else { SegmentKind::ReadOnly };
        let block = self.add_contents(kind, &description, align)?;
        self.add_edges(block, None, &relocs)?;
        self.data_bytes += description.init.size() as u64;
        let Some(variable) = variable else {
            return Ok(Added { symbol: self.define(DATA, index, block), told: Told::default(), extra: Extra::None });
        };
        let image = self.graph.define(None, block, 0, self.own.len() as u32);
        let descriptor = tls::descriptor(&variable);
        let block = self.graph.add_block(SegmentKind::Data, &descriptor, 16).map_err(refused)?;
        let symbol = self.define(DATA, index, block);
        Ok(Added { symbol, told: Told::default(), extra: Extra::Variable(variable, image) })
    }

    fn add_contents(&mut self, kind: SegmentKind, data: &DataDescription, align: u64) -> Result<BlockId, Refused> {
        match &data.init {
            // Also what is empty has an address of its own.
            init if init.size() == 0 => self.graph.add_block(kind, &[0], align),
            Init::Bytes { contents } => self.graph.add_block(kind, contents, align),
            init => self.graph.add_zero_block(kind, init.size() as u64, align),
        }
        .map_err(refused)
    }

    /// The graph's symbol for a function or data object of the module.
    fn reference(&mut self, namespace: u32, index: u32) -> GraphSymbol {
        let Self { graph, references, externals, module, .. } = self;
        *references.entry((namespace, index)).or_insert_with(|| {
            let entry = match namespace {
                DATA => &module.data[index as usize],
                _ => &module.functions[index as usize],
            };
            let name = entry.name.clone();
            let symbol = graph.external(name.clone(), 0);
            if entry.is_optional() {
                graph.set_linkage(symbol, Linkage::Weak);
            }
            externals.push(External { symbol, name, namespace, index });
            symbol
        })
    }

    /// Defines an item. References to it that stand in the graph already now lead to it, unless
    /// it is redirectable: then they go by another name.
    fn define(&mut self, namespace: u32, index: u32, block: BlockId) -> GraphSymbol {
        let tag = self.own.len() as u32;
        let name = match namespace {
            DATA => self.module.data[index as usize].name.clone(),
            _ => self.module.functions[index as usize].name.clone(),
        };
        if self.module.is_redirectable(namespace, index) {
            return self.graph.define(Some(name), block, 0, tag);
        }
        let is_last = self.own.len() + 1 == self.items;
        let symbol = if is_last && !self.references.contains_key(&(namespace, index)) {
            // Nothing refers to it, and nothing that could comes after it.
            self.graph.define(Some(name), block, 0, tag)
        } else {
            let symbol = self.reference(namespace, index);
            self.graph.define_external(symbol, block, 0, tag);
            symbol
        };
        if namespace == FUNCTION
            && let Some(address) = self.references.get(&(ADDRESS_OF, index)).copied()
        {
            self.graph.define_external(address, block, 0, tag);
        }
        symbol
    }
}
