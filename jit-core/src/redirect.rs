//! Redirectable functions: one address for life, and a body that can be replaced.
//!
//! Such a function has a slot, which holds where its body is now, and a stub, an indirect jump
//! through the slot, whose address is the function's. Calls from compiled code go through the
//! slot. Its bodies are ordinary functions with names of their own.

use std::collections::HashMap;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use cranelift_codegen::entity::EntityRef;
use cranelift_module::{FuncId, Linkage};
use jit_linker::SymbolName;
use jit_linker::arch::Architecture;
use jit_linker::memory::{MemoryManager, Slot, SlotPool};
use smallvec::smallvec;

use crate::clif::{ClifLayer, ClifModule, describe};
use crate::error::Error;
use crate::first_call::{CallThrough, FirstCall, LazyBody};
use crate::platform::unwind::{self, Frames};
use crate::session::{
    ExecutionSession, FoundSymbol, JitDylib, MaterializationResponsibility, MaterializationUnit, ResourceTracker,
    SymbolDeclaration, SymbolDef, SymbolFlags, SymbolState, UnitDefinition, WeakTracker,
};
use crate::sync::{Arc, Mutex, lock};

/// The redirectable functions of a JIT.
pub(crate) struct Redirections {
    slots: Mutex<Option<SlotPool>>,
    memory: Arc<dyn MemoryManager>,
    architecture: Architecture,
    unwinding: bool,
    /// `None` where functions are compiled as soon as they are referred to.
    first_call: Option<Arc<dyn FirstCall>>,
    functions: Mutex<HashMap<SymbolName, Redirection>>,
    versions: AtomicU64,
    /// Where calls go whose function has no body that may be called.
    failure: u64,
}

/// Where calls go by default whose function has no body that may be called.
extern "C" fn called_unusable() -> ! {
    eprintln!("orcane: a function was called that depends on something that was removed");
    std::process::abort()
}

#[derive(Clone)]
struct Redirection {
    entry: Arc<Entry>,
    /// Removes the function itself.
    tracker: ResourceTracker,
    signature: String,
}

/// What the slot of a function should hold.
pub(crate) struct Entry {
    slot: Slot,
    body: Mutex<Body>,
    /// Where the slot points while the newest body has not been called; made when a lazy function
    /// is first referred to, and the function's own as long as it lives: a thread that was on its
    /// way through it still finds its function.
    call_through: OnceLock<CallThrough>,
    failure: u64,
}

/// A function's newest body.
#[derive(Clone)]
struct Body {
    name: SymbolName,
    /// It was removed, or something it depends on: nobody may call it.
    unusable: bool,
    _owner: Arc<BodyOwner>,
}

impl Entry {
    /// The name of the newest body.
    pub(crate) fn body_name(&self) -> SymbolName {
        lock(&self.body).name.clone()
    }

    /// Where calls go, if that is a body.
    pub(crate) fn ready(&self) -> Option<u64> {
        let target = self.slot.load();
        self.call_through.get().is_some_and(|call_through| call_through.address != target).then_some(target)
    }

    /// Makes calls go to a body, if it is still the newest, as long as it may be called.
    pub(crate) fn publish(self: &Arc<Self>, session: &ExecutionSession, found: &FoundSymbol) -> bool {
        if !self.watch(session, found) {
            return false;
        }
        // Locked until the slot is written, so that `replace` comes before or after both.
        let body = lock(&self.body);
        if body.name != found.name || body.unusable {
            return false;
        }
        self.slot.store(found.definition.address);
        true
    }

    /// Sees to it that nobody is sent to a body any more once it is gone.
    fn watch(self: &Arc<Self>, session: &ExecutionSession, found: &FoundSymbol) -> bool {
        let (entry, name) = (Arc::downgrade(self), found.name.clone());
        let withdraw = move || {
            if let Some(entry) = entry.upgrade() {
                entry.withdraw(&name);
            }
        };
        session.watch(found.id, Arc::new(withdraw))
    }

    /// The body called `name` must not be called any more.
    fn withdraw(&self, name: &SymbolName) {
        let mut body = lock(&self.body);
        if body.name == *name {
            body.unusable = true;
            self.slot.store(self.call_through.get().map_or(self.failure, |call_through| call_through.address));
        }
    }

    /// Makes `new` the newest body, and calls go to it: to where it was found, or to what compiles
    /// it. Gives the old one.
    fn replace(self: &Arc<Self>, session: &ExecutionSession, new: Body, found: Option<&FoundSymbol>) -> Body {
        let mut body = lock(&self.body);
        let old = std::mem::replace(&mut *body, new);
        let address = match (found, self.call_through.get()) {
            (Some(found), _) => Some(found.definition.address),
            (None, call_through) => call_through.map(|call_through| call_through.address),
        };
        if let Some(address) = address {
            self.slot.store(address);
        }
        drop(body);
        if let Some(found) = found
            && !self.watch(session, found)
        {
            self.withdraw(&found.name);
        }
        old
    }

    /// Makes calls go to `call_through`.
    fn defer(&self, call_through: CallThrough) {
        let _body = lock(&self.body);
        self.slot.store(self.call_through.get_or_init(|| call_through).address);
    }
}

/// Removes bodies when none of them is the newest of its function any more.
struct BodyOwner(WeakTracker);

impl Drop for BodyOwner {
    fn drop(&mut self) {
        if let Some(tracker) = self.0.upgrade() {
            // An error means that the dylib is gone, and the bodies with it.
            _ = tracker.remove();
        }
    }
}

/// A function that a module defines.
struct NewBody {
    function: SymbolName,
    name: SymbolName,
    signature: String,
}

impl Redirections {
    pub(crate) fn new(
        memory: Arc<dyn MemoryManager>,
        architecture: Architecture,
        unwinding: bool,
        first_call: Option<Arc<dyn FirstCall>>,
        failure: Option<u64>,
    ) -> Self {
        Self {
            slots: Mutex::new(None),
            memory,
            architecture,
            unwinding,
            first_call,
            functions: Mutex::default(),
            versions: AtomicU64::new(0),
            failure: failure.unwrap_or(called_unusable as *const () as u64),
        }
    }

    /// The name of the newest body of what was found, if it is redirectable.
    pub(crate) fn body_of(&self, found: &FoundSymbol) -> Option<SymbolName> {
        let functions = lock(&self.functions);
        let entry = &functions.get(&found.name)?.entry;
        (found.definition.slot == Some(entry.slot.slot_address())).then(|| entry.body_name())
    }

    /// Makes calls of `function` go to `body`, if it is still the newest.
    pub(crate) fn publish(&self, session: &ExecutionSession, function: &SymbolName, body: &FoundSymbol) {
        let entry = lock(&self.functions).get(function).map(|known| Arc::clone(&known.entry));
        _ = entry.is_some_and(|entry| entry.publish(session, body));
    }

    /// Defines the exported functions of a module, or gives them new bodies.
    pub(crate) fn define(&self, layer: &ClifLayer, dylib: &JitDylib, module: ClifModule) -> Result<(), Error> {
        let session = dylib.session();
        let version = self.versions.fetch_add(1, Ordering::Relaxed);
        let body_name = |function: SymbolName| session.intern(&format!("{function}${version}"));
        let bodies: Vec<_> = defined_functions(&module)
            .map(|(function, signature)| {
                let function = session.intern(function);
                NewBody { name: body_name(function.clone()), function, signature }
            })
            .collect();
        let known = self.check_signatures(&bodies)?;
        let tracker = dylib.create_tracker()?;
        layer.add_named(&tracker, module, body_name)?;
        let owner = Arc::new(BodyOwner(tracker.downgrade()));

        let mut added = Vec::new();
        let result = self
            .enter_new(dylib, &bodies, &known, &owner, &mut added)
            .and_then(|()| self.compile_replacements(dylib, &bodies, &known));
        let found = match result {
            Ok(found) => found,
            Err(error) => {
                self.take_back(&added);
                return Err(error);
            }
        };
        for (body, (known, found)) in bodies.into_iter().zip(known.iter().zip(found)) {
            let Some(known) = known else { continue };
            let new = Body { name: body.name, unusable: false, _owner: Arc::clone(&owner) };
            // Not with the lock held: the last body of a module removes it.
            drop(known.entry.replace(session, new, found.as_ref()));
        }
        Ok(())
    }

    /// The functions that are defined already, in the order of the bodies.
    fn check_signatures(&self, bodies: &[NewBody]) -> Result<Vec<Option<Redirection>>, Error> {
        let functions = lock(&self.functions);
        bodies
            .iter()
            .map(|body| match functions.get(&body.function) {
                Some(known) if known.signature != body.signature => Err(Error::Signature {
                    symbol: body.function.to_string(),
                    defined: known.signature.clone(),
                    wanted: body.signature.clone(),
                }),
                known => Ok(known.cloned()),
            })
            .collect()
    }

    /// Defines the functions that are new, and those anew whose definition has failed.
    fn enter_new(
        &self,
        dylib: &JitDylib,
        bodies: &[NewBody],
        known: &[Option<Redirection>],
        owner: &Arc<BodyOwner>,
        added: &mut Vec<SymbolName>,
    ) -> Result<(), Error> {
        for (body, known) in bodies.iter().zip(known) {
            if let Some(known) = known {
                let failed =
                    dylib.session().symbol_state(dylib, &body.function).is_none_or(|(_, failure)| failure.is_some());
                if !failed {
                    continue;
                }
                known.tracker.remove()?;
            }
            let redirection = self.enter(dylib, body, owner)?;
            lock(&self.functions).insert(body.function.clone(), redirection);
            added.push(body.function.clone());
        }
        Ok(())
    }

    /// A pool whose stubs can be unwound from, if other code can.
    fn new_pool(&self) -> SlotPool {
        let (memory, architecture) = (Arc::clone(&self.memory), self.architecture);
        if !self.unwinding {
            return SlotPool::new(memory, architecture);
        }
        let register =
            move |stubs| -> Box<dyn Send + Sync> { Box::new(unwind::register(Frames::of_stubs(architecture, stubs))) };
        SlotPool::registering(memory, architecture, Box::new(register))
    }

    fn enter(&self, dylib: &JitDylib, body: &NewBody, owner: &Arc<BodyOwner>) -> Result<Redirection, Error> {
        let slot = {
            let mut slots = lock(&self.slots);
            let pool = slots.get_or_insert_with(|| self.new_pool());
            pool.allocate(0)?
        };
        let first = Body { name: body.name.clone(), unusable: false, _owner: Arc::clone(owner) };
        let entry =
            Arc::new(Entry { slot, body: Mutex::new(first), call_through: OnceLock::new(), failure: self.failure });
        let tracker = dylib.create_tracker()?;
        let signature = dylib.session().intern(&body.signature);
        tracker.define(vec![UnitDefinition {
            symbols: smallvec![SymbolDeclaration {
                name: body.function.clone(),
                flags: SymbolFlags::FUNCTION,
                signature: Some(signature),
            }],
            unit: self.unit(dylib, body.function.clone(), Arc::clone(&entry)),
            name: Arc::from("redirectable functions"),
        }])?;
        Ok(Redirection { entry, tracker, signature: body.signature.clone() })
    }

    fn unit(&self, dylib: &JitDylib, function: SymbolName, entry: Arc<Entry>) -> Box<dyn MaterializationUnit> {
        let Some(first_call) = &self.first_call else { return Box::new(RedirectableUnit { function, entry }) };
        let (first_call, memory) = (Arc::clone(first_call), Arc::clone(&self.memory));
        let body = LazyBody { function, dylib: dylib.downgrade(), entry: Arc::downgrade(&entry) };
        Box::new(LazyUnit { body, entry, first_call, memory })
    }

    fn take_back(&self, added: &[SymbolName]) {
        for function in added {
            let removed = lock(&self.functions).remove(function);
            // An error means that the dylib is gone.
            _ = removed.map(|redirection| redirection.tracker.remove());
        }
    }

    /// Compiles the new bodies of functions whose old ones are in use, and says where they are.
    /// None if functions are lazy: the next call compiles them.
    fn compile_replacements(
        &self,
        dylib: &JitDylib,
        bodies: &[NewBody],
        known: &[Option<Redirection>],
    ) -> Result<Vec<Option<FoundSymbol>>, Error> {
        if self.first_call.is_some() {
            return Ok(vec![None; bodies.len()]);
        }
        let session = dylib.session();
        let used: Vec<bool> = bodies
            .iter()
            .zip(known)
            .map(|(body, known)| {
                let state = session.symbol_state(dylib, &body.function);
                known.is_some()
                    && state.is_some_and(|(state, failure)| state != SymbolState::NeverSearched && failure.is_none())
            })
            .collect();
        let names: Vec<_> =
            bodies.iter().zip(&used).filter(|(_, used)| **used).map(|(body, _)| body.name.clone()).collect();
        let mut found = session.lookup(&dylib.link_order(), names)?.into_iter();
        Ok(used.into_iter().map(|used| if used { found.next() } else { None }).collect())
    }
}

/// The exported functions that a module defines, each with its signature.
fn defined_functions(module: &ClifModule) -> impl Iterator<Item = (&str, String)> {
    module.functions.iter().enumerate().filter(|(_, body)| body.is_some()).filter_map(|(index, _)| {
        let declaration = module.declarations.get_function_decl(FuncId::new(index));
        (declaration.linkage == Linkage::Export).then_some(())?;
        Some((declaration.name.as_deref()?, describe(&declaration.signature)))
    })
}

/// Defines a redirectable function, whose body is whichever is the newest when it is needed.
struct RedirectableUnit {
    function: SymbolName,
    entry: Arc<Entry>,
}

impl MaterializationUnit for RedirectableUnit {
    fn materialize(self: Box<Self>, responsibility: MaterializationResponsibility) {
        let Self { function, entry } = *self;
        let slot = &entry.slot;
        let definition = SymbolDef { address: slot.stub_address(), slot: Some(slot.slot_address()) };
        if let Err(error) = responsibility.resolve(&[(function.clone(), definition)]) {
            return responsibility.fail(error.into());
        }
        let body = entry.body_name();
        let order = responsibility.link_order();
        let session = responsibility.session().clone();
        let of = session.clone();
        session.lookup_resolved(&order, vec![body], move |mut answers| match answers.pop() {
            Some(Ok(found)) => {
                // If not, a newer body has been put in its place meanwhile, and is there already.
                entry.publish(&of, &found);
                // The slot lives as long as anything refers to it.
                if responsibility.hold(Box::new(entry)).is_ok() {
                    _ = responsibility.emit(&[(function, found)]);
                }
            }
            Some(Err(failure)) => responsibility.fail_with(&failure.cause),
            None => drop(responsibility),
        });
    }

    fn discard(&mut self, _: &SymbolName) {}
}

/// Defines a redirectable function whose body is compiled when it is first called.
struct LazyUnit {
    body: LazyBody,
    entry: Arc<Entry>,
    first_call: Arc<dyn FirstCall>,
    memory: Arc<dyn MemoryManager>,
}

impl LazyUnit {
    fn define(&self, responsibility: &MaterializationResponsibility) -> Result<(), Error> {
        let call_through = self.first_call.call_through(&self.memory, self.body.clone())?;
        self.entry.defer(call_through);
        let slot = &self.entry.slot;
        let definition = SymbolDef { address: slot.stub_address(), slot: Some(slot.slot_address()) };
        // The slot lives as long as anything refers to it.
        responsibility.hold(Box::new(Arc::clone(&self.entry)))?;
        responsibility.resolve(&[(self.body.function.clone(), definition)])
    }
}

impl MaterializationUnit for LazyUnit {
    fn materialize(self: Box<Self>, responsibility: MaterializationResponsibility) {
        match self.define(&responsibility) {
            // An error means that the function was removed meanwhile.
            Ok(()) => _ = responsibility.emit(&[]),
            Err(error) => responsibility.fail(error.into()),
        }
    }

    fn discard(&mut self, _: &SymbolName) {}
}
