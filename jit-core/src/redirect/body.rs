//! Where the bodies of redirectable functions come from.
//!
//! A body is a function with a name of its own, which is defined when it is first needed. It begins with the function's.

use jit_linker::SymbolName;
use rustc_hash::{FxHashMap, FxHashSet};
use smallvec::smallvec;

use super::UNIT;
use crate::clif::{Item, ModuleUnits, RESERVED};
use crate::error::{Cause, Error};
use crate::session::{
    Alias, ExecutionSession, JitDylib, MaterializationResponsibility, MaterializationUnit, ResourceTracker,
    SearchOrder, SymbolDeclaration, SymbolFlags, UnitDefinition, WeakDylib, WeakTracker,
};
use crate::sync::{Arc, Mutex, lock};

/// Makes the unit that defines a body, which is told what the body is called.
pub type BodyMaker = Box<dyn FnOnce(&SymbolName) -> Box<dyn MaterializationUnit> + Send>;

/// A redirectable function whose body is a unit of the user's: see
/// [`Jit::redefine_with`](crate::Jit::redefine_with).
pub struct RedirectableFunction {
    /// Its name.
    pub name: SymbolName,
    /// The text of its calling signature, if it is to be checked.
    pub signature: Option<SymbolName>,
    /// Makes its body, when that is first needed.
    pub body: BodyMaker,
}

/// What was defined together, and is removed when none of it is the newest of its function any more.
pub(crate) enum BodySource {
    Module {
        owner: Owner,
        units: Arc<ModuleUnits>,
    },
    Custom {
        owner: Owner,
        functions: Vec<CustomBody>,
        makers: Arc<Makers>,
    },
    /// An object, which has a body for each of its functions. It is linked as a whole, and removed with
    /// the tracker that it was added with: other code may refer to its data.
    Object {
        dylib: WeakDylib,
        order: SearchOrder,
        version: Version,
        functions: Vec<SymbolName>,
    },
    /// Functions that are others by another name: whatever has it when one is first called.
    ReExports {
        dylib: WeakDylib,
        order: SearchOrder,
        functions: Vec<Alias>,
    },
    /// The body at the second tier of a function of a module.
    Promoted {
        from: Arc<Self>,
        item: u32,
    },
    /// The function was removed.
    Removed(SymbolName),
}

/// What makes the bodies that have not been needed, by item.
type Makers = Mutex<Vec<Option<BodyMaker>>>;

/// What removes the bodies.
pub(crate) struct Owner {
    dylib: WeakDylib,
    /// The dylib alone: bodies are looked up there.
    order: SearchOrder,
    tracker: WeakTracker,
    version: Version,
    bodies: Mutex<OwnBodies>,
}

/// What became of the bodies of a source, by item: somebody else's definition of the same name is none of them.
#[derive(Default)]
struct OwnBodies {
    defined: FxHashSet<u32>,
    refused: FxHashMap<u32, Error>,
}

/// Numbers that distinguish the names of bodies that there are at a time. They are used again, so
/// that names are.
#[derive(Default)]
pub(crate) struct Versions {
    next: u64,
    free: Vec<u64>,
}

pub(crate) struct Version {
    number: u64,
    /// Whom it is given back to.
    all: Option<Arc<Mutex<Versions>>>,
}

impl Version {
    pub(super) fn new(versions: &Arc<Mutex<Versions>>) -> Self {
        let number = {
            let mut versions = lock(versions);
            let next = versions.next;
            versions.free.pop().unwrap_or_else(|| {
                versions.next += 1;
                next
            })
        };
        Self { number, all: Some(Arc::clone(versions)) }
    }

    /// One that is never given back: for bodies that may be there when nobody is the newest of its function any more.
    pub(super) fn lasting(versions: &Arc<Mutex<Versions>>) -> Self {
        let mut version = Self::new(versions);
        version.all = None;
        version
    }

    /// The name of a function's body.
    pub(super) fn body_name(&self, session: &ExecutionSession, function: &SymbolName) -> SymbolName {
        session.intern(&format!("{function}{RESERVED}.{}", self.number))
    }
}

impl Drop for Version {
    fn drop(&mut self) {
        if let Some(all) = &self.all {
            lock(all).free.push(self.number);
        }
    }
}

pub(crate) struct CustomBody {
    function: SymbolName,
    signature: Option<SymbolName>,
}

impl Owner {
    pub(crate) fn new(dylib: &JitDylib, tracker: &ResourceTracker, versions: &Arc<Mutex<Versions>>) -> Self {
        let dylib = dylib.downgrade();
        let (order, tracker, version) = (dylib.order(), tracker.downgrade(), Version::new(versions));
        Self { order, dylib, tracker, version, bodies: Mutex::default() }
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        if let Some(tracker) = self.tracker.upgrade() {
            // An error means that the dylib is gone, and the bodies with it.
            _ = tracker.remove();
        }
    }
}

impl BodySource {
    pub(crate) fn custom(owner: Owner, functions: Vec<RedirectableFunction>) -> Self {
        let (functions, makers) = functions
            .into_iter()
            .map(|RedirectableFunction { name, signature, body }| {
                (CustomBody { function: name, signature }, Some(body))
            })
            .unzip();
        Self::Custom { owner, functions, makers: Arc::new(Mutex::new(makers)) }
    }

    /// The functions that it has bodies for.
    pub(crate) fn items(&self) -> Vec<u32> {
        match self {
            Self::Module { units, .. } => units.redirectable(),
            Self::Custom { functions, .. } => (0..functions.len() as u32).collect(),
            Self::Object { functions, .. } => (0..functions.len() as u32).collect(),
            Self::ReExports { functions, .. } => (0..functions.len() as u32).collect(),
            Self::Promoted { .. } | Self::Removed(_) => Vec::new(),
        }
    }

    /// The name of a function.
    pub(crate) fn function(&self, item: u32) -> &SymbolName {
        match self {
            Self::Module { units, .. } => &units.functions[item as usize].name,
            Self::Custom { functions, .. } => &functions[item as usize].function,
            Self::Object { functions, .. } => &functions[item as usize],
            Self::ReExports { functions, .. } => &functions[item as usize].name,
            Self::Promoted { from, item } => from.function(*item),
            Self::Removed(name) => name,
        }
    }

    /// The signature of a function, if it is known.
    pub(crate) fn signature(&self, item: u32) -> Option<&SymbolName> {
        match self {
            Self::Module { units, .. } => units.functions[item as usize].signature.as_ref(),
            Self::Custom { functions, .. } => functions[item as usize].signature.as_ref(),
            Self::Promoted { from, item } => from.signature(*item),
            Self::Object { .. } | Self::ReExports { .. } | Self::Removed(_) => None,
        }
    }

    /// How a function is defined.
    pub(crate) fn flags(&self, item: u32) -> SymbolFlags {
        match self {
            Self::ReExports { functions, .. } => SymbolFlags { callable: true, ..functions[item as usize].flags },
            _ => SymbolFlags::FUNCTION,
        }
    }

    /// The redirectable functions that one of them refers to, as far as that is known.
    pub(crate) fn callees(&self, item: u32) -> Vec<SymbolName> {
        match self {
            Self::Module { units, .. } => units.callees(item),
            _ => Vec::new(),
        }
    }

    /// What its bodies are defined with, if they are nobody else's.
    pub(crate) fn tracker(&self) -> Option<ResourceTracker> {
        match self {
            Self::Module { owner, .. } | Self::Custom { owner, .. } => owner.tracker.upgrade(),
            Self::Promoted { from, .. } => from.tracker(),
            Self::Object { .. } | Self::ReExports { .. } | Self::Removed(_) => None,
        }
    }

    /// The dylib that its bodies are in; that of the functions.
    pub(crate) fn dylib(&self) -> Option<&WeakDylib> {
        match self {
            Self::Module { owner, .. } | Self::Custom { owner, .. } => Some(&owner.dylib),
            Self::Object { dylib, .. } | Self::ReExports { dylib, .. } => Some(dylib),
            Self::Promoted { from, .. } => from.dylib(),
            Self::Removed(_) => None,
        }
    }

    /// Where its bodies are looked up. None if the function was removed.
    pub(crate) fn order(&self) -> Option<&SearchOrder> {
        match self {
            Self::Module { owner, .. } | Self::Custom { owner, .. } => Some(&owner.order),
            Self::Object { order, .. } | Self::ReExports { order, .. } => Some(order),
            Self::Promoted { from, .. } => from.order(),
            Self::Removed(_) => None,
        }
    }

    /// The name of a function's body, which is defined from now on.
    pub(crate) fn define(&self, session: &ExecutionSession, item: u32) -> Result<SymbolName, Error> {
        let name = self.body_name(session, item);
        if let Self::ReExports { .. } = self {
            return Ok(name);
        }
        let dylib = self.dylib().and_then(WeakDylib::upgrade).ok_or(Error::DylibGone)?;
        match self {
            Self::Module { owner, .. } | Self::Custom { owner, .. }
                if owner.has_defined(item)? && session.symbol_state(&dylib, &name).is_some() => {}
            Self::Module { owner, units } => {
                let defined = owner.define(&name, || units.body(Item::Function(item), name.clone()));
                owner.note(item, defined)?;
            }
            Self::Custom { owner, functions, makers } => {
                // It was defined, and has been taken back.
                if lock(makers)[item as usize].is_none() {
                    return Ok(name);
                }
                let defined = owner.define(&name, || {
                    let signature = functions[item as usize].signature.clone();
                    UnitDefinition {
                        symbols: smallvec![SymbolDeclaration {
                            name: name.clone(),
                            flags: SymbolFlags::FUNCTION,
                            signature
                        }],
                        unit: Box::new(CustomUnit { makers: Arc::clone(makers), item, body: name.clone() }),
                        name: Arc::from(UNIT),
                    }
                });
                owner.note(item, defined)?;
            }
            // An object's are defined with it, and a promoted one was before it became the newest.
            Self::Object { .. } | Self::ReExports { .. } | Self::Promoted { .. } | Self::Removed(_) => {}
        }
        Ok(name)
    }

    /// As [`define`](Self::define), for the body at the second tier.
    pub(crate) fn define_promoted(&self, session: &ExecutionSession, item: u32) -> Result<Option<SymbolName>, Error> {
        let Self::Module { owner, units } = self else { return Ok(None) };
        let name = self.promoted_name(session, item);
        owner.define(&name, || units.body(Item::Promoted(item), name.clone()))?;
        Ok(Some(name))
    }

    /// Takes back a body that is the newest no more. The others that were defined with it stay.
    pub(crate) fn retire(&self, item: u32) {
        let (source, item) = match self {
            Self::Promoted { from, item } => (&**from, *item),
            _ => (self, item),
        };
        let (Self::Module { .. } | Self::Custom { .. }) = source else { return };
        let Some(dylib) = source.dylib().and_then(WeakDylib::upgrade) else { return };
        for name in [source.promoted_name(dylib.session(), item), source.body_name(dylib.session(), item)] {
            if let Err(Error::SymbolsBusy(_)) = dylib.remove_symbols(&[name]) {
                // It goes with the others.
                return;
            }
        }
        match source {
            Self::Module { units, .. } => units.forget(Item::Function(item)),
            Self::Custom { makers, .. } => {
                let maker = lock(makers)[item as usize].take();
                drop(maker);
            }
            _ => {}
        }
    }

    pub(crate) fn body_name(&self, session: &ExecutionSession, item: u32) -> SymbolName {
        match self {
            Self::Module { owner: Owner { version, .. }, .. }
            | Self::Custom { owner: Owner { version, .. }, .. }
            | Self::Object { version, .. } => version.body_name(session, self.function(item)),
            Self::ReExports { functions, .. } => functions[item as usize].aliasee.clone(),
            Self::Promoted { from, item } => from.promoted_name(session, *item),
            Self::Removed(name) => name.clone(),
        }
    }

    fn promoted_name(&self, session: &ExecutionSession, item: u32) -> SymbolName {
        session.intern(&format!("{}.2", self.body_name(session, item)))
    }
}

impl Owner {
    fn tracker(&self) -> Result<ResourceTracker, Error> {
        self.tracker.upgrade().ok_or(Error::DefunctTracker)
    }

    /// Defines a body, if no other thread has done so.
    fn define(&self, name: &SymbolName, unit: impl Fn() -> UnitDefinition) -> Result<(), Error> {
        let tracker = self.tracker()?;
        loop {
            match tracker.define(vec![unit()]) {
                Err(Error::DuplicateDefinitions(duplicates)) => match tracker.is_definer(name)? {
                    Some(true) => return Ok(()),
                    Some(false) => return Err(Error::DuplicateDefinitions(duplicates)),
                    // Taken back since.
                    None => {}
                },
                result => return result,
            }
        }
    }

    /// Notes what became of defining a body.
    fn note(&self, item: u32, result: Result<(), Error>) -> Result<(), Error> {
        let mut bodies = lock(&self.bodies);
        match &result {
            Ok(()) => _ = bodies.defined.insert(item),
            Err(error) => _ = bodies.refused.insert(item, error.clone()),
        }
        result
    }

    /// Whether a body was defined, or why it could not be.
    fn has_defined(&self, item: u32) -> Result<bool, Error> {
        let bodies = lock(&self.bodies);
        bodies.refused.get(&item).map_or(Ok(bodies.defined.contains(&item)), |error| Err(error.clone()))
    }
}

/// A body that is about to be made.
struct CustomUnit {
    makers: Arc<Makers>,
    item: u32,
    body: SymbolName,
}

impl MaterializationUnit for CustomUnit {
    fn materialize(self: Box<Self>, responsibility: MaterializationResponsibility) {
        let maker = lock(&self.makers)[self.item as usize].take();
        match maker {
            Some(maker) => maker(&self.body).materialize(responsibility),
            None => responsibility.fail(Cause::Removed),
        }
    }

    fn discard(&mut self, _: &SymbolName) {}
}
