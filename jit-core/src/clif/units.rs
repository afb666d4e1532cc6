//! The units of a module: what it declares and defines, and which of it is compiled next.

use std::sync::atomic::{AtomicU64, Ordering};

use cranelift_codegen::entity::EntityRef;
use cranelift_codegen::ir;
use cranelift_module::{DataDescription, Linkage, ModuleRelocTarget};
use jit_linker::SymbolName;
use rustc_hash::{FxHashMap, FxHashSet};
use smallvec::{SmallVec, smallvec};

use super::layer::LayerShared;
use super::machine_code::{MachineCode, TakenCode};
use super::module::{ADDRESS_OF, Body, ClifModule, DATA, FUNCTION, Variables};
use super::packed::{BoxedFunction, PackedFunction};
use super::references::{self, References};
use super::signature::{DATA_OBJECT, describe};
use super::transform::FunctionTransform;
use super::{RESERVED, batch};
use crate::error::Error;
use crate::platform::code::SourceText;
use crate::redirect::FirstTier;
use crate::session::{
    ExecutionSession, MaterializationResponsibility, MaterializationUnit, Materializer, Parts, SymbolDeclaration,
    SymbolFlags, UnitDefinition, UnitEntry, UnitSource,
};
use crate::sync::thread::ThreadId;
use crate::sync::{Arc, Mutex, lock};

/// How many functions are compiled and linked together, at most: what a link costs once is shared
/// by that many.
const BATCH: usize = 32;

/// A declared function or data object, as the module refers to it.
pub(crate) struct Entry {
    pub(crate) name: SymbolName,
    /// What those who refer to it have to agree on.
    pub(crate) signature: Option<SymbolName>,
    pub(super) is_function: bool,
    pub(super) linkage: Linkage,
    /// Whether the module defines it.
    pub(super) defined: bool,
    /// Whether its definition here goes by another name: calls go through a slot.
    pub(crate) redirectable: bool,
    pub(crate) writable: bool,
    pub(crate) tls: bool,
}

impl Entry {
    /// Whether nobody need define it: it is at address 0 then.
    pub(crate) fn is_optional(&self) -> bool {
        self.flags().weak && !self.defined
    }

    /// Whether its definition here is the one that is called, always.
    pub(crate) fn is_final(&self) -> bool {
        self.linkage.is_final() && !self.redirectable
    }

    pub(super) fn flags(&self) -> SymbolFlags {
        SymbolFlags {
            weak: self.linkage == Linkage::Preemptible,
            exported: matches!(self.linkage, Linkage::Export | Linkage::Preemptible),
            callable: self.is_function,
            ..SymbolFlags::HIDDEN
        }
    }
}

/// The session's names of what a module declares.
pub(super) struct Names {
    pub(super) functions: Vec<Entry>,
    pub(super) data: Vec<Entry>,
}

impl Names {
    /// Names for all declarations.
    pub(super) fn new(session: &ExecutionSession, module: &ClifModule) -> Result<Self, Error> {
        // Makes those unique that only the module knows: a dylib may have modules from several layers.
        static MODULES: AtomicU64 = AtomicU64::new(0);
        let number = MODULES.fetch_add(1, Ordering::Relaxed);
        let mut signatures: FxHashMap<&ir::Signature, SymbolName> = FxHashMap::default();
        let name_of = |declared: &Option<String>, linkage, defined, kind, index| {
            let name = match (declared, linkage) {
                (Some(name), Linkage::Local) => session.intern(&format!("{name}{RESERVED}.{number}.{}", module.name)),
                (Some(name), _) => session.intern(name),
                (None, _) => session.intern(&format!(".{kind}{index}{RESERVED}.{number}.{}", module.name)),
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
            let described = || session.intern(&describe(&declaration.signature));
            let signature = match module.function_count {
                // It has nobody to share its text with.
                1 => described(),
                _ => signatures.entry(&declaration.signature).or_insert_with(described).clone(),
            };
            functions.push(Entry {
                name: name_of(&declaration.name, linkage, defined, "function", id.index())?,
                signature: Some(signature),
                is_function: true,
                linkage,
                defined,
                redirectable: module.redirectable && linkage == Linkage::Export,
                writable: false,
                tls: false,
            });
        }
        let mut data = Vec::new();
        let mut data_object = None;
        for (id, declaration) in module.declarations.get_data_objects() {
            let linkage = declaration.linkage;
            let defined = module.data.get(id.index()).is_some_and(Option::is_some);
            data.push(Entry {
                name: name_of(&declaration.name, linkage, defined, "data", id.index())?,
                signature: Some(data_object.get_or_insert_with(|| session.intern(DATA_OBJECT)).clone()),
                is_function: false,
                linkage,
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
    /// Of a redirectable one, where there are tiers: its body at the first.
    Function(u32),
    /// A function's body at the second tier.
    Promoted(u32),
    Data(u32),
}

/// An item, and who has to answer for it.
pub(super) type OwnedItem = (Item, MaterializationResponsibility);

/// What the units of one module share.
pub(crate) struct ModuleUnits {
    pub(crate) layer: Arc<LayerShared>,
    pub(crate) name: Arc<str>,
    /// The thread that added it, and as a rule built it: its CLIF is in that one's heap.
    pub(crate) added_by: ThreadId,
    pub(crate) functions: Vec<Entry>,
    pub(crate) data: Vec<Entry>,
    /// How many of those it defines.
    pub(super) defined: usize,
    pub(crate) source: Option<Arc<SourceText>>,
    /// What is done to a function before it is compiled, in turn.
    pub(crate) transforms: Vec<Box<dyn FunctionTransform>>,
    pub(crate) variables: Variables,
    /// What is linked alone.
    pub(super) large: FxHashSet<Item>,
    /// What its code uses: lives as long as that.
    pub(crate) used: Option<Arc<dyn Send + Sync>>,
    pub(crate) bodies: Mutex<Bodies>,
    /// What the bodies of redirectable functions begin as.
    pub(crate) first_tier: Option<Arc<dyn FirstTier>>,
    /// What is done to them when they are promoted, before the other transforms.
    pub(crate) second_tier: Option<Box<dyn FunctionTransform>>,
}

pub(crate) struct Bodies {
    pub(crate) functions: Vec<Option<Body>>,
    pub(super) references: References,
    pub(crate) data: Vec<Option<DataDescription>>,
    pub(super) machine_code: MachineCode,
    /// Functions whose references have been followed; empty until the first is.
    pub(super) followed: Vec<bool>,
    /// What those lead to, and nobody has asked the session for: callees after their callers.
    pub(super) planned: Vec<Item>,
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
        self.module.wait_for(self.item, responsibility);
    }

    fn discard(&mut self, _: &SymbolName) {
        self.module.forget(self.item);
    }
}

/// Functions by their index, and data objects after them.
impl Parts for ModuleUnits {
    fn materialize(self: Arc<Self>, part: u32, responsibility: MaterializationResponsibility) {
        self.wait_for(self.item(part), responsibility);
    }

    fn discard(&self, part: u32) {
        self.forget(self.item(part));
    }

    fn make_waiting(self: Arc<Self>, session: &ExecutionSession) {
        batch::run(session, &self);
    }
}

/// A unit for each function and data object that a module defines, but for redirectable functions.
pub(super) struct ModuleDefinitions {
    pub(super) module: Arc<ModuleUnits>,
    /// Is not to be defined either.
    pub(super) besides: Option<Item>,
}

impl ModuleDefinitions {
    pub(super) fn items(&self) -> impl Iterator<Item = Item> + use<> {
        let (module, besides) = (Arc::clone(&self.module), self.besides);
        let functions = (0..module.functions.len() as u32).map(Item::Function);
        let data = (0..module.data.len() as u32).map(Item::Data);
        functions.chain(data).filter(move |item| {
            let entry = module.entry(*item);
            entry.defined && !entry.redirectable && Some(*item) != besides
        })
    }
}

impl UnitSource for ModuleDefinitions {
    fn len(&self) -> usize {
        self.items().count()
    }

    fn names(&self) -> impl Iterator<Item = (SymbolName, SymbolFlags, &str)> {
        self.items().map(|item| {
            let entry = self.module.entry(item);
            (entry.name.clone(), entry.flags(), &*self.module.name)
        })
    }

    fn into_definitions(self) -> impl Iterator<Item = UnitDefinition> {
        self.items().map(move |item| self.module.body(item, self.module.entry(item).name.clone()))
    }

    fn into_entries(self) -> impl Iterator<Item = UnitEntry> {
        let parts: Arc<dyn Parts> = Arc::clone(&self.module) as _;
        self.items().map(move |item| UnitEntry {
            symbols: smallvec![self.module.declaration(item, self.module.entry(item).name.clone())],
            materializer: Materializer::Part(Arc::clone(&parts), self.module.part(item)),
            name: Arc::clone(&self.module.name),
        })
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

    pub(super) fn entry(&self, item: Item) -> &Entry {
        match item {
            Item::Function(index) | Item::Promoted(index) => &self.functions[index as usize],
            Item::Data(index) => &self.data[index as usize],
        }
    }

    /// The number of an item, none of which is a [body at the second tier](Item::Promoted).
    fn part(&self, item: Item) -> u32 {
        match item {
            Item::Function(index) | Item::Promoted(index) => index,
            Item::Data(index) => self.functions.len() as u32 + index,
        }
    }

    fn item(&self, part: u32) -> Item {
        part.checked_sub(self.functions.len() as u32).map_or(Item::Function(part), Item::Data)
    }

    /// Drops what an item would be made from: it is not wanted any more.
    pub(crate) fn forget(&self, item: Item) {
        let mut bodies = lock(&self.bodies);
        match item {
            Item::Function(index) | Item::Promoted(index) => {
                let body = bodies.take_function(index);
                drop(bodies);
                drop(body);
            }
            Item::Data(index) => bodies.data[index as usize] = None,
        }
    }

    /// The functions it defines that are redirectable.
    pub(crate) fn redirectable(&self) -> Vec<u32> {
        let functions = self.functions.iter().enumerate();
        functions.filter(|(_, entry)| entry.defined && entry.redirectable).map(|(index, _)| index as u32).collect()
    }

    /// The unit that defines an item by this name.
    pub(crate) fn body(self: &Arc<Self>, item: Item, name: SymbolName) -> UnitDefinition {
        UnitDefinition {
            symbols: smallvec![self.declaration(item, name)],
            unit: Box::new(ClifUnit { module: Arc::clone(self), item }),
            name: Arc::clone(&self.name),
        }
    }

    fn declaration(&self, item: Item, name: SymbolName) -> SymbolDeclaration {
        let entry = self.entry(item);
        SymbolDeclaration { name, flags: entry.flags(), signature: entry.signature.clone() }
    }

    /// The functions that one of them, which has not been compiled, calls or takes the address of.
    pub(crate) fn callees(&self, function: u32) -> Vec<SymbolName> {
        let bodies = lock(&self.bodies);
        let mut callees = Vec::new();
        if let Some(func) = bodies.clif(function) {
            references::of(func, &mut |namespace, index| {
                if matches!(namespace, FUNCTION | ADDRESS_OF)
                    && let Some(entry) = self.functions.get(index as usize)
                    && !callees.contains(&entry.name)
                {
                    callees.push(entry.name.clone());
                }
            });
        }
        callees
    }

    /// Has an item compiled and linked with others that wait.
    pub(super) fn wait_for(self: &Arc<Self>, item: Item, responsibility: MaterializationResponsibility) {
        let session = responsibility.session().clone();
        if self.defined < 2 {
            // There is nothing to wait for.
            return batch::run_alone(&session, self, item, responsibility);
        }
        let schedule;
        {
            let mut bodies = lock(&self.bodies);
            if let Item::Function(index) | Item::Promoted(index) = item {
                self.follow(&mut bodies, index);
            }
            bodies.waiting.push((item, responsibility));
            schedule = bodies.scheduled * BATCH < bodies.waiting.len();
            bodies.scheduled += usize::from(schedule);
        }
        if schedule {
            session.make_waiting(Arc::clone(self) as _);
        }
    }

    /// Plans for what a function leads to within the module and was not followed before: it will
    /// be needed, and asked for early it is compiled in one batch with others, callees first.
    fn follow(&self, bodies: &mut Bodies, function: u32) {
        let Bodies { functions, references, machine_code, followed, planned, .. } = bodies;
        followed.resize(functions.len(), false);
        let mut work: SmallVec<[u32; 8]> = smallvec![function];
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
                Some(Body::Clif(func)) => match references.noted(index) {
                    Some(noted) => noted.for_each(|(namespace, index)| see(namespace, index)),
                    None => references::of(func, &mut see),
                },
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
    /// A function's CLIF, unless it is machine code already.
    pub(crate) fn clif(&self, index: u32) -> Option<&PackedFunction> {
        match self.functions.get(index as usize)?.as_ref()? {
            Body::Clif(func) => Some(func),
            Body::Compiled(_) => None,
        }
    }

    /// Takes a function's body, the first time.
    pub(crate) fn take_function(&mut self, index: u32) -> Option<TakenBody> {
        match self.functions.get_mut(index as usize)?.take()? {
            Body::Clif(func) => Some(TakenBody::Clif(func)),
            Body::Compiled(compiled) => self.machine_code.take(index, compiled).map(TakenBody::Compiled),
        }
    }

    /// Whether an item has nothing left to compile.
    pub(crate) fn is_compiled(&self, item: Item) -> bool {
        match item {
            Item::Function(index) => matches!(self.functions.get(index as usize), Some(Some(Body::Compiled(_)))),
            Item::Promoted(_) => false,
            Item::Data(_) => true,
        }
    }

    /// Whether no batch is asked for, or will be by what is planned.
    pub(crate) fn are_done(&self) -> bool {
        self.scheduled == 0 && self.waiting.is_empty() && self.planned.is_empty()
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
