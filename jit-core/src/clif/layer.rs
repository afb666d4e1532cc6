//! `ClifLayer`: turns the contents of a `ClifModule` into materialization units.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use cranelift_codegen::Context;
use cranelift_codegen::entity::EntityRef;
use cranelift_codegen::ir::{self, GlobalValueData, InstructionData};
use cranelift_codegen::isa::{OwnedTargetIsa, TargetIsa};
use cranelift_module::{DataDescription, Linkage, ModuleRelocTarget};
use jit_linker::SymbolName;
use rustc_hash::FxHashMap;
use smallvec::smallvec;

use super::batch;
use super::machine_code::{MachineCode, TakenCode};
use super::module::{ADDRESS_OF, Body, ClifModule, DATA, FUNCTION, Variables};
use super::signature::describe;
use crate::error::Error;
use crate::platform::Services;
use crate::platform::code::SourceText;
use crate::session::{
    ExecutionSession, MaterializationResponsibility, MaterializationUnit, ResourceTracker, SymbolDeclaration,
    SymbolFlags, UnitDefinition, UnitSource,
};
use crate::sync::{Arc, Mutex, lock};

/// How many functions are compiled and linked together, at most: what a link costs once is shared
/// by that many.
const BATCH: usize = 32;

/// Compiles and links CLIF, a function at a time, when it is looked up.
#[derive(Clone)]
pub struct ClifLayer {
    pub(crate) shared: Arc<LayerShared>,
}

pub(crate) struct LayerShared {
    pub(crate) isa: OwnedTargetIsa,
    /// Contexts between two batches: they keep their buffers.
    pub(crate) contexts: Mutex<Vec<Box<Context>>>,
    pub(crate) spent: Spent,
    modules: AtomicU64,
    pub(crate) counters: Counters,
    pub(crate) services: Services,
}

/// A function as its module holds it: large, and moved from hand to hand.
pub(crate) type BoxedFunction = Box<ir::Function>;

/// Functions that were compiled and have to be freed. Whoever built them allocated them; compile
/// threads that free them at once fight for that thread's heap.
#[derive(Default)]
pub(crate) struct Spent {
    functions: Mutex<Vec<BoxedFunction>>,
    freeing: AtomicBool,
}

impl Spent {
    /// Frees `functions`, or leaves it to the thread that is about it.
    pub(crate) fn free(&self, functions: Vec<BoxedFunction>) {
        lock(&self.functions).extend(functions);
        if self.freeing.swap(true, Ordering::Acquire) {
            return;
        }
        loop {
            let functions = std::mem::take(&mut *lock(&self.functions));
            if functions.is_empty() {
                break;
            }
            drop(functions);
        }
        self.freeing.store(false, Ordering::Release);
    }
}

#[derive(Default)]
pub(crate) struct Counters {
    pub(crate) functions: AtomicU64,
    pub(crate) code_bytes: AtomicU64,
    pub(crate) data_bytes: AtomicU64,
    pub(crate) compile_nanoseconds: AtomicU64,
    pub(crate) link_nanoseconds: AtomicU64,
}

/// What a layer has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct CompileStatistics {
    /// Functions compiled or taken over as machine code.
    pub functions: u64,
    /// Bytes of their code.
    pub code_bytes: u64,
    /// Bytes of data objects and of the tables of the linker.
    pub data_bytes: u64,
    /// Time in Cranelift, over all threads.
    pub compile_time: Duration,
    /// Time in the linker, over all threads; waiting for other units is not counted.
    pub link_time: Duration,
}

impl ClifLayer {
    /// A layer that compiles for `isa`.
    ///
    /// # Errors
    ///
    /// When it does not generate position-independent code, which is what separately compiled
    /// units need.
    pub fn new(isa: OwnedTargetIsa) -> Result<Self, Error> {
        Self::with_services(isa, Services::default())
    }

    pub(crate) fn with_services(isa: OwnedTargetIsa, services: Services) -> Result<Self, Error> {
        if !isa.flags().is_pic() {
            return Err(Error::Target(format!("{} without position-independent code", isa.triple())));
        }
        let (contexts, spent, modules, counters) = Default::default();
        let shared = LayerShared { isa, contexts, spent, modules, counters, services };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// The instruction set that modules have to be made for.
    #[must_use]
    pub fn isa(&self) -> &OwnedTargetIsa {
        &self.shared.isa
    }

    /// What was done so far.
    #[must_use]
    pub fn statistics(&self) -> CompileStatistics {
        let counters = &self.shared.counters;
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        CompileStatistics {
            functions: load(&counters.functions),
            code_bytes: load(&counters.code_bytes),
            data_bytes: load(&counters.data_bytes),
            compile_time: Duration::from_nanos(load(&counters.compile_nanoseconds)),
            link_time: Duration::from_nanos(load(&counters.link_nanoseconds)),
        }
    }

    /// Defines what the module defines, all or nothing. Nothing is compiled yet.
    ///
    /// # Errors
    ///
    /// When the module is for another target, declares a function or data object that it should
    /// define and does not, or defines a symbol that the dylib has.
    pub fn add(&self, tracker: &ResourceTracker, module: ClifModule) -> Result<(), Error> {
        self.add_named(tracker, module, |name| name)
    }

    /// As [`add`](Self::add). `body_name` says under which name the body of a redirectable
    /// function is defined; the module refers to it by its own name.
    pub(crate) fn add_named(
        &self,
        tracker: &ResourceTracker,
        module: ClifModule,
        body_name: impl Fn(SymbolName) -> SymbolName,
    ) -> Result<(), Error> {
        self.check_target(&module)?;
        let number = self.shared.modules.fetch_add(1, Ordering::Relaxed);
        let names = Names::new(tracker.session(), &module, number)?;
        // The declarations go first: a large module's are as large as what the session keeps.
        let ClifModule { name, functions, mut data, declarations, machine_code, source, variables, .. } = module;
        drop(declarations);
        data.resize_with(names.data.len(), || None);
        let bodies = Bodies {
            followed: vec![false; functions.len()],
            functions,
            data,
            machine_code,
            planned: Vec::new(),
            waiting: Vec::new(),
            scheduled: 0,
        };
        let units = Arc::new(ModuleUnits {
            layer: Arc::clone(&self.shared),
            name,
            functions: names.functions,
            data: names.data,
            source,
            variables,
            bodies: Mutex::new(bodies),
        });
        tracker.define_each(ModuleDefinitions { module: units, body_name })
    }

    fn check_target(&self, module: &ClifModule) -> Result<(), Error> {
        let (ours, theirs) = (&self.shared.isa, &module.isa);
        let same = Arc::ptr_eq(ours, theirs)
            || ours.triple() == theirs.triple()
                && ours.flags().to_string() == theirs.flags().to_string()
                && settings(&**ours).eq(settings(&**theirs));
        if same {
            return Ok(());
        }
        Err(Error::ForeignModule { module: theirs.triple().to_string(), session: ours.triple().to_string() })
    }
}

/// The settings that belong to one instruction set.
fn settings(isa: &dyn TargetIsa) -> impl Iterator<Item = (&'static str, String)> {
    isa.isa_flags().into_iter().map(|setting| (setting.name, setting.value_string()))
}

fn flags(linkage: Linkage) -> SymbolFlags {
    SymbolFlags {
        weak: linkage == Linkage::Preemptible,
        exported: matches!(linkage, Linkage::Export | Linkage::Preemptible),
        ..SymbolFlags::HIDDEN
    }
}

/// A declared function or data object, as the module refers to it.
pub(crate) struct Entry {
    pub(crate) name: SymbolName,
    /// Of a function.
    pub(crate) signature: Option<SymbolName>,
    flags: SymbolFlags,
    /// Whether the module defines it.
    defined: bool,
    /// Whether its definition here goes by another name: calls go through a slot.
    pub(crate) redirectable: bool,
    pub(crate) writable: bool,
    pub(crate) tls: bool,
}

/// The session's names of what a module declares.
struct Names {
    functions: Vec<Entry>,
    data: Vec<Entry>,
}

impl Names {
    /// Names for all declarations; `number` makes those unique that only the module knows.
    fn new(session: &ExecutionSession, module: &ClifModule, number: u64) -> Result<Self, Error> {
        let mut signatures: FxHashMap<&ir::Signature, SymbolName> = FxHashMap::default();
        let name_of = |declared: &Option<String>, linkage, defined, kind, index| {
            let name = match (declared, linkage) {
                (Some(name), Linkage::Local) => session.intern(&format!("{name}.{number}.{}", module.name)),
                (Some(name), _) => session.intern(name),
                (None, _) => session.intern(&format!(".{kind}{index}.{number}.{}", module.name)),
            };
            if defined || !linkage.requires_definition() {
                return Ok(name);
            }
            let name = declared.as_deref().unwrap_or(&name);
            Err(Error::Module(format!("'{name}' is declared in {} as {linkage:?} and not defined", module.name)))
        };
        let mut functions = Vec::with_capacity(module.function_count);
        for (id, declaration) in module.declarations.get_functions() {
            let linkage = declaration.linkage;
            let defined = module.functions.get(id.index()).is_some_and(Option::is_some);
            let signature = signatures
                .entry(&declaration.signature)
                .or_insert_with(|| session.intern(&describe(&declaration.signature)))
                .clone();
            functions.push(Entry {
                name: name_of(&declaration.name, linkage, defined, "function", id.index())?,
                signature: Some(signature),
                flags: SymbolFlags { callable: true, ..flags(linkage) },
                defined,
                redirectable: module.redirectable && linkage == Linkage::Export,
                writable: false,
                tls: false,
            });
        }
        let mut data = Vec::new();
        for (id, declaration) in module.declarations.get_data_objects() {
            let linkage = declaration.linkage;
            let defined = module.data.get(id.index()).is_some_and(Option::is_some);
            data.push(Entry {
                name: name_of(&declaration.name, linkage, defined, "data", id.index())?,
                signature: None,
                flags: flags(linkage),
                defined,
                redirectable: false,
                writable: declaration.writable,
                tls: declaration.tls,
            });
        }
        Ok(Self { functions, data })
    }
}

/// A function or data object of a module.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Item {
    Function(u32),
    Data(u32),
}

/// What the units of one module share.
pub(crate) struct ModuleUnits {
    pub(crate) layer: Arc<LayerShared>,
    pub(crate) name: Arc<str>,
    pub(crate) functions: Vec<Entry>,
    pub(crate) data: Vec<Entry>,
    pub(crate) source: Option<Arc<SourceText>>,
    pub(crate) variables: Variables,
    pub(crate) bodies: Mutex<Bodies>,
}

pub(crate) struct Bodies {
    pub(crate) functions: Vec<Option<Body>>,
    pub(crate) data: Vec<Option<DataDescription>>,
    machine_code: MachineCode,
    /// Functions whose references have been followed.
    followed: Vec<bool>,
    /// What those lead to, and nobody has asked the session for: callees after their callers.
    planned: Vec<Item>,
    /// What is to be compiled and linked.
    pub(crate) waiting: Vec<(Item, MaterializationResponsibility)>,
    /// Batches that the dispatcher has been asked for and that have not begun.
    pub(crate) scheduled: usize,
}

/// One function or data object.
struct ClifUnit {
    module: Arc<ModuleUnits>,
    item: Item,
}

impl MaterializationUnit for ClifUnit {
    fn materialize(self: Box<Self>, responsibility: MaterializationResponsibility) {
        let session = responsibility.session().clone();
        let schedule;
        {
            let mut bodies = lock(&self.module.bodies);
            if let Item::Function(index) = self.item {
                self.module.follow(&mut bodies, index);
            }
            bodies.waiting.push((self.item, responsibility));
            schedule = bodies.scheduled * BATCH < bodies.waiting.len();
            bodies.scheduled += usize::from(schedule);
        }
        if schedule {
            let module = self.module;
            let for_batch = session.clone();
            session.run(Box::new(move || batch::run(&for_batch, &module)));
        }
    }

    fn discard(&mut self, _: &SymbolName) {
        let mut bodies = lock(&self.module.bodies);
        match self.item {
            Item::Function(index) => drop(bodies.take_function(index)),
            Item::Data(index) => bodies.data[index as usize] = None,
        }
    }
}

/// A unit for each function and data object that a module defines.
struct ModuleDefinitions<F> {
    module: Arc<ModuleUnits>,
    body_name: F,
}

impl<F: Fn(SymbolName) -> SymbolName> ModuleDefinitions<F> {
    fn items(&self) -> impl Iterator<Item = Item> + use<F> {
        let module = Arc::clone(&self.module);
        let functions = (0..module.functions.len() as u32).map(Item::Function);
        let data = (0..module.data.len() as u32).map(Item::Data);
        functions.chain(data).filter(move |item| module.entry(*item).defined)
    }

    fn definition_name(&self, entry: &Entry) -> SymbolName {
        let name = entry.name.clone();
        if entry.redirectable { (self.body_name)(name) } else { name }
    }

    fn definition(&self, item: Item) -> UnitDefinition {
        let entry = self.module.entry(item);
        let (name, signature) = (self.definition_name(entry), entry.signature.clone());
        UnitDefinition {
            symbols: smallvec![SymbolDeclaration { name, flags: entry.flags, signature }],
            unit: Box::new(ClifUnit { module: Arc::clone(&self.module), item }),
            name: Arc::clone(&self.module.name),
        }
    }
}

impl<F: Fn(SymbolName) -> SymbolName> UnitSource for ModuleDefinitions<F> {
    fn len(&self) -> usize {
        self.items().count()
    }

    fn names(&self) -> impl Iterator<Item = (SymbolName, SymbolFlags, &str)> {
        self.items().map(|item| {
            let entry = self.module.entry(item);
            (self.definition_name(entry), entry.flags, &*self.module.name)
        })
    }

    fn into_definitions(self) -> impl Iterator<Item = UnitDefinition> {
        self.items().map(move |item| self.definition(item))
    }
}

impl ModuleUnits {
    /// Whether references to an item go by another name than its definition.
    pub(crate) fn is_redirectable(&self, namespace: u32, index: u32) -> bool {
        namespace == FUNCTION && self.functions[index as usize].redirectable
    }

    pub(crate) fn name_of(&self, item: Item) -> &SymbolName {
        &self.entry(item).name
    }

    fn entry(&self, item: Item) -> &Entry {
        match item {
            Item::Function(index) => &self.functions[index as usize],
            Item::Data(index) => &self.data[index as usize],
        }
    }

    /// Plans for what a function leads to within the module and was not followed before: it will
    /// be needed, and asked for early it is compiled in one batch with others, callees first.
    fn follow(&self, bodies: &mut Bodies, function: u32) {
        let Bodies { functions, machine_code, followed, planned, .. } = bodies;
        let mut work = vec![function];
        while let Some(index) = work.pop() {
            if std::mem::replace(&mut followed[index as usize], true) {
                continue;
            }
            let mut see = |namespace, index: u32| match namespace {
                FUNCTION | ADDRESS_OF => {
                    let defined = functions.get(index as usize).is_some_and(Option::is_some);
                    if defined && !followed[index as usize] && !self.functions[index as usize].redirectable {
                        planned.push(Item::Function(index));
                        work.push(index);
                    }
                }
                DATA if (index as usize) < self.data.len() => planned.push(Item::Data(index)),
                _ => {}
            };
            match &functions[index as usize] {
                Some(Body::Clif(func)) => references(func, &mut see),
                Some(Body::Compiled(compiled)) => {
                    for reloc in machine_code.relocs(compiled) {
                        if let ModuleRelocTarget::User { namespace, index } = reloc.name {
                            see(namespace, index);
                        }
                    }
                }
                None => {}
            }
        }
    }
}

/// What a function is made from.
pub(crate) enum TakenBody {
    Clif(BoxedFunction),
    Compiled(TakenCode),
}

impl Bodies {
    /// Takes a function's body, the first time.
    pub(crate) fn take_function(&mut self, index: u32) -> Option<TakenBody> {
        match self.functions.get_mut(index as usize)?.take()? {
            Body::Clif(func) => Some(TakenBody::Clif(func)),
            Body::Compiled(compiled) => self.machine_code.take(index, compiled).map(TakenBody::Compiled),
        }
    }

    /// Takes the next items to link, and the names to ask the session for meanwhile.
    pub(crate) fn next_batch(
        &mut self,
        module: &ModuleUnits,
    ) -> (Vec<(Item, MaterializationResponsibility)>, Vec<SymbolName>) {
        self.scheduled -= 1;
        // The newest first: a callee is asked for after its caller. Linked before it, the callee
        // is ready when the caller is, and nothing has to wait.
        let rest = self.waiting.len().saturating_sub(BATCH);
        let items = self.waiting.split_off(rest);
        let rest = self.planned.len().saturating_sub(BATCH);
        let planned = self.planned.drain(rest..).map(|item| module.entry(item).name.clone()).collect();
        (items, planned)
    }
}

/// Every function that `func` calls or takes the address of, and the data it declares.
fn references(func: &ir::Function, see: &mut impl FnMut(u32, u32)) {
    let names = func.params.user_named_funcs();
    let mut see_name = |name: &ir::ExternalName| {
        if let ir::ExternalName::User(name) = name
            && let Some(name) = names.get(*name)
        {
            see(name.namespace, name.index);
        }
    };
    for block in func.layout.blocks() {
        for inst in func.layout.block_insts(block) {
            if let InstructionData::Call { func_ref, .. }
            | InstructionData::TryCall { func_ref, .. }
            | InstructionData::FuncAddr { func_ref, .. } = func.dfg.insts[inst]
            {
                see_name(&func.dfg.ext_funcs[func_ref].name);
            }
        }
    }
    for value in func.global_values.values() {
        if let GlobalValueData::Symbol { name, .. } = value {
            see_name(name);
        }
    }
}
