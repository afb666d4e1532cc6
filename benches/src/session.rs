//! Orcane's bare session: a table of symbols, and graphs of units that need each other.

use std::sync::Arc;

use crate::Result;
use crate::table::SymbolTable;
use orcane::linker::arch::Architecture;
use orcane::linker::memory::SlabManager;
use orcane::{
    AbsoluteSymbol, DylibLookup, ExecutionSession, InPlaceDispatcher, InProcess, JitDylib,
    MaterializationResponsibility, MaterializationUnit, SearchOrder, SymbolDeclaration, SymbolDef, SymbolFlags,
    SymbolName, UnitDefinition,
};

/// The session as a table of absolute symbols.
#[derive(Debug)]
pub struct Table {
    session: ExecutionSession,
    main: JitDylib,
    order: SearchOrder,
    names: Vec<SymbolName>,
}

fn session() -> Result<(ExecutionSession, JitDylib)> {
    let memory = Arc::new(SlabManager::new()?);
    let executor = InProcess::new(Architecture::host().ok_or("no such architecture")?, memory);
    let session = ExecutionSession::new(Box::new(executor), Box::new(InPlaceDispatcher::new()), None);
    let main = session.create_dylib("main")?;
    Ok((session, main))
}

fn absolute(name: SymbolName, address: u64) -> AbsoluteSymbol {
    AbsoluteSymbol { name, definition: SymbolDef::at(address), flags: SymbolFlags::EXPORTED, signature: None }
}

impl Table {
    /// An empty one.
    ///
    /// # Errors
    ///
    /// The session's.
    pub fn new() -> Result<Self> {
        let (session, main) = session()?;
        let order = SearchOrder::new().then(&main, DylibLookup::All);
        Ok(Self { session, main, order, names: Vec::new() })
    }

    fn address(&self, name: &SymbolName) -> u64 {
        self.session.ready_address(&self.order, name).unwrap_or(0)
    }
}

impl SymbolTable for Table {
    fn reserve(&mut self, count: usize) {
        self.names.reserve(count);
    }

    fn intern(&mut self, name: &str) {
        self.names.push(self.session.intern(name));
    }

    fn define_all(&mut self, address: u64) -> Result<()> {
        let symbols = (address..).zip(&self.names).map(|(address, name)| absolute(name.clone(), address));
        Ok(self.main.define_absolute(symbols.collect())?)
    }

    fn lookup(&self, index: usize) -> u64 {
        self.address(&self.names[index])
    }

    fn lookup_text(&self, name: &str) -> u64 {
        self.address(&self.session.intern(name))
    }

    fn cycle(&self, name: &str) -> Result<()> {
        let name = self.session.intern(name);
        let tracker = self.main.create_tracker()?;
        tracker.define_absolute(vec![absolute(name.clone(), 1)])?;
        self.session.lookup(&self.order, name)?;
        Ok(tracker.remove()?)
    }
}

/// Who needs whom among the units of a graph, whose first is looked up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// Each needs the next.
    Chain,
    /// The first needs all others.
    Star,
    /// Each needs all others.
    Complete,
}

/// The stack that everything must do with.
const STACK: usize = 256 << 10;

impl Shape {
    fn needs(self, unit: usize, count: usize) -> Vec<usize> {
        match self {
            Self::Chain if unit + 1 < count => vec![unit + 1],
            Self::Star if unit == 0 => (1..count).collect(),
            Self::Complete => (0..count).filter(|other| *other != unit).collect(),
            Self::Chain | Self::Star => Vec::new(),
        }
    }

    /// Makes `count` units of this shape ready.
    ///
    /// # Errors
    ///
    /// The session's.
    pub fn run(self, count: usize) -> Result<()> {
        let work = move || self.on_this_stack(count).map_err(|error| error.to_string());
        let thread = std::thread::Builder::new().stack_size(STACK).spawn(work)?;
        Ok(thread.join().map_err(|_| "the thread panicked")??)
    }

    fn on_this_stack(self, count: usize) -> Result<()> {
        let (session, main) = session()?;
        let names: Vec<_> = (0..count).map(|unit| session.intern(&format!("unit_{unit}"))).collect();
        let unit_name: Arc<str> = "unit".into();
        let units = names.iter().enumerate().map(|(unit, name)| {
            let needs = self.needs(unit, count).into_iter().map(|unit| names[unit].clone()).collect();
            UnitDefinition {
                symbols: [SymbolDeclaration { name: name.clone(), flags: SymbolFlags::EXPORTED, signature: None }]
                    .into_iter()
                    .collect(),
                unit: Box::new(Node { name: name.clone(), needs }),
                name: Arc::clone(&unit_name),
            }
        });
        main.default_tracker()?.define(units.collect())?;
        let order = SearchOrder::new().then(&main, DylibLookup::All);
        session.lookup(&order, vec![names[0].clone()])?;
        Ok(())
    }
}

/// A unit that needs others, as a linked object does.
struct Node {
    name: SymbolName,
    needs: Vec<SymbolName>,
}

impl MaterializationUnit for Node {
    fn materialize(self: Box<Self>, responsibility: MaterializationResponsibility) {
        let Self { name, needs } = *self;
        if responsibility.resolve(&[(name.clone(), SymbolDef::at(1))]).is_err() {
            return;
        }
        let session = responsibility.session().clone();
        let order = responsibility.link_order();
        session.lookup_async(&order, needs, orcane::SymbolState::Resolved, move |found| {
            let found = found.unwrap_or_default();
            let dependences: Vec<_> = found.into_iter().map(|needed| (name.clone(), needed)).collect();
            // A failure fails the lookup of the first unit, which reports it.
            _ = responsibility.emit(&dependences);
        });
    }

    fn discard(&mut self, _: &SymbolName) {}
}
